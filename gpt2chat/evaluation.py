"""What a checkpoint knows: perplexity on text, and its own answers to pairs."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass

import torch
import torch.nn.functional as F

from gpt2chat.conversation import Conversation, Message, fit_context, render
from gpt2chat.errors import ConfigError, ContextError
from gpt2chat.generation import Decoder, stream_answer
from gpt2chat.model import GPT2
from gpt2chat.runtime import Runtime, as_runtime
from gpt2chat.sampling import GenerationConfig
from gpt2chat.templates import Template
from gpt2chat.tokenizer import Tokenizer

SCORED_TOGETHER = 256  # tokens whose logits are in memory together


@dataclass(frozen=True)
class Perplexity:
    """Summed negative log-likelihood in nats, and what it is divided by."""

    nats: float
    tokens: int
    bytes: int

    @property
    def per_token(self) -> float:
        """exp of the mean loss per token."""
        return math.exp(min(700.0, self.nats / max(1, self.tokens)))

    @property
    def per_byte(self) -> float:
        """exp of the mean loss per UTF-8 byte; comparable between vocabularies."""
        return math.exp(min(700.0, self.nats / max(1, self.bytes)))

    def to_dict(self) -> dict[str, float]:
        """Return the figures for JSON."""
        rounded = {"perplexity_per_token": self.per_token, "perplexity_per_byte": self.per_byte}
        bits = self.nats / math.log(2) / max(1, self.bytes)
        return {**{k: round(v, 4) for k, v in rounded.items()}, "bits_per_byte": round(bits, 4), **asdict(self)}


@dataclass(frozen=True)
class Reply:
    """What the model answers to one taught question, greedily."""

    question: str
    expected: str
    answer: str
    stopped: bool
    ids: tuple[int, ...] = ()  # of the answer, without the end token

    @property
    def tokens(self) -> int:
        """How many tokens the answer has."""
        return len(self.ids)

    @property
    def exact(self) -> bool:
        """Whether the answer is the taught one, letter by letter."""
        return self.answer.strip() == self.expected.strip()


def text_perplexity(model: GPT2 | Runtime, tokenizer: Tokenizer, text: str, stride: int | None = None) -> Perplexity:
    """Score a text with a sliding window of the whole context that moves by `stride` ids (default: half of it).

    An end token before the text gives the first token a context, so every byte of the text is scored once.
    """
    runtime, ids = as_runtime(model), [tokenizer.end_id, *tokenizer.encode(text)]
    n_ctx = runtime.config.n_ctx
    if stride is not None and stride < 1:
        raise ConfigError(f"stride: expected a whole number of 1 or more, got {stride!r}")
    stride = min(stride or n_ctx // 2, n_ctx - 1)
    nats, scored = 0.0, 1  # ids[:scored] have been scored; the end token needs none
    while scored < len(ids):
        end = min(len(ids), max(scored + stride, n_ctx))
        begin = max(0, end - n_ctx)
        nats += sum(part.sum().item() for part in _losses(runtime, ids[begin:end], scored - begin))
        scored = end
    return Perplexity(nats, len(ids) - 1, len(text.encode("utf-8", "replace")))


def _losses(runtime: Runtime, ids: Sequence[int], first: int) -> Iterator[torch.Tensor]:
    """Yield the losses in nats of ids[first:], each foretold from all before it, some at a time."""
    cache = runtime.new_cache()
    if first > 1:
        runtime.forward(ids[: first - 1], cache)
    for begin in range(first - 1, len(ids) - 1, SCORED_TOGETHER):
        part = ids[begin : min(begin + SCORED_TOGETHER, len(ids) - 1)]
        logits = runtime.forward(part, cache, len(part))
        targets = torch.tensor(ids[begin + 1 : begin + 1 + len(part)], device=logits.device)
        yield F.cross_entropy(logits, targets, reduction="none").double()


def answer_perplexity(
    model: GPT2 | Runtime, tokenizer: Tokenizer, template: Template, conversations: Sequence[Conversation]
) -> Perplexity:
    """Score the answers (and their end tokens) given what comes before; raises ContextError when one does not fit."""
    runtime, nats, tokens, size = as_runtime(model), 0.0, 0, 0
    n_ctx = runtime.config.n_ctx
    for conversation in conversations:
        example = render(conversation, template, tokenizer)
        if len(example.ids) > n_ctx:
            raise ContextError(f"conversation: expected at most {n_ctx} tokens, got {len(example.ids)}")
        wanted = torch.tensor(example.loss_mask[: len(example.ids)], dtype=torch.bool)
        wanted[0] = False  # nothing foretells the first
        if wanted.any():
            first = int(wanted.nonzero()[0])
            losses = torch.cat(list(_losses(runtime, example.ids, first)))
            nats += losses[wanted[first:].to(losses.device)].sum().item()
        tokens += int(wanted.sum())
        size += sum(len(m.content.encode("utf-8", "replace")) for m in conversation if m.role == "assistant")
    return Perplexity(nats, tokens, size)


def replies(
    model: GPT2 | Runtime,
    tokenizer: Tokenizer,
    template: Template,
    conversations: Sequence[Conversation],
    max_new_tokens: int | None = None,
) -> Iterator[Reply]:
    """Yield the model's greedy answer to the last question of each conversation, given the turns before it.

    An answer may have `max_new_tokens`, by default twice as many as the taught one. It stopped by itself when the
    model drew a control token; a stop string counts only for templates that have none.
    """
    decoder = Decoder(model)
    for *before, answer in conversations:
        yield _reply(decoder, tokenizer, template, before, answer.content, max_new_tokens)


def replies_in_a_row(
    model: GPT2 | Runtime, tokenizer: Tokenizer, template: Template, conversations: Sequence[Conversation], length: int
) -> Iterator[Reply]:
    """Ask the last question of each conversation, all in one chat that remembers up to `length` tokens.

    The model sees its own earlier answers, right or wrong, and whole oldest turns leave, as in `GPT2Chatbot`.
    """
    decoder, said = Decoder(model), list[Message]()
    for *_, question, answer in conversations:
        said.append(question)
        try:
            said, _ = fit_context([], said, template, tokenizer, length, decoder.runtime.config.n_ctx)
        except ContextError:  # which a chat would say
            yield Reply(said.pop().content, answer.content, "", stopped=False)
            continue
        reply = _reply(decoder, tokenizer, template, said, answer.content)
        said.append(Message("assistant", reply.answer))
        yield reply


def _reply(
    decoder: Decoder,
    tokenizer: Tokenizer,
    template: Template,
    asked: Conversation,
    expected: str,
    max_new_tokens: int | None = None,
) -> Reply:
    room = max_new_tokens or max(64, 2 * len(tokenizer.encode(expected)))
    config = GenerationConfig(temperature=0, max_new_tokens=room)
    text = "".join(stream_answer(decoder, asked, template, tokenizer, config))
    reason = decoder.finish_reason
    stopped = reason == "stop" or (reason is None and not template.trainable)
    return Reply(asked[-1].content, expected, text, stopped, tuple(decoder.ids[decoder.prompt_tokens :]))
