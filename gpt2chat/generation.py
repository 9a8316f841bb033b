"""Prompt ids -> stream of ids -> stream of text."""

from __future__ import annotations

from collections.abc import Callable, Collection, Generator, Iterable, Iterator, Sequence
from typing import Protocol

from torch import Tensor

from gpt2chat.conversation import Conversation, render_prompt
from gpt2chat.drafts import Draft, Pace
from gpt2chat.errors import ContextError
from gpt2chat.model import GPT2
from gpt2chat.runtime import Runtime, as_runtime, rewind
from gpt2chat.sampling import GenerationConfig, Sampler, Scores
from gpt2chat.templates import Template
from gpt2chat.tokenizer import StreamDecoder, Tokenizer

PREFILL_TOKENS = 512  # longer prompts go through the network in slices of this size


class Decoder:
    """Decodes with a KV cache that outlives the prompt.

    Each call finds the longest common beginning of the ids it has seen and the new prompt, and computes only the
    rest; so the next turn of a chat, an edited or a regenerated one need no bookkeeping by the caller.
    After a stream has ended, `finish_reason` is "stop" (an end id was drawn) or "length"; `cached_tokens` of
    the `prompt_tokens` ids came from the cache; of `drafted_tokens` guesses by `draft` the model took
    `accepted_tokens`.
    """

    def __init__(self, model: GPT2 | Runtime, draft: Draft | None = None) -> None:
        self.runtime = as_runtime(model)
        self.cache = self.runtime.new_cache()
        self.ids: list[int] = []
        self.finish_reason: str | None = None
        self.prompt_tokens = self.cached_tokens = 0
        self.draft = draft
        self.drafted_tokens = self.accepted_tokens = 0
        self._generations = 0

    def generate(self, prompt: Sequence[int], config: GenerationConfig, stop: Collection[int]) -> Iterator[int]:
        """Yield the answer's ids until one of `stop` is drawn (it is not yielded) or no room is left.

        Raises ContextError when the prompt leaves no room for a single token, ConfigError when `config` names ids that
        the model does not have. There is one cache: a stream that goes on after another one has begun raises
        RuntimeError instead of mixing the two.
        """
        n_ctx = self.runtime.config.n_ctx
        if not 0 < len(prompt) < n_ctx:
            raise ContextError(f"prompt: expected 1 to {n_ctx - 1} tokens, got {len(prompt)}")
        config.check_ids(self.runtime.config.vocab_size)
        sampler = Sampler(config)
        self.finish_reason = None
        self.drafted_tokens = self.accepted_tokens = 0
        self._generations += 1
        mine = self._generations
        limit = min(config.max_new_tokens, n_ctx - len(prompt))
        for drawn, token in enumerate(self._tokens(prompt, sampler, stop, limit)):
            if token in stop:
                self.finish_reason = "stop"
                return
            self.ids.append(token)
            yield token
            if self._generations != mine:
                raise RuntimeError("another answer has begun on this decoder; give each stream a decoder of its own")
            if drawn + 1 == limit:
                break
        self.finish_reason = "length"

    def read(self, prompt: Sequence[int], answer: Sequence[int]) -> Iterator[Tensor]:
        """Yield the model's own logits (rows, V), some rows at a time, that each id of `answer` would be drawn from.

        What is cached of the prompt is used; the last id of the answer is not computed, so prompt and answer may fill
        the context. Raises ContextError when they do not fit. It ends a stream of this decoder that has not ended.
        """
        n_ctx, ids = self.runtime.config.n_ctx, [*prompt, *answer][:-1]
        if not prompt or len(ids) > n_ctx:
            raise ContextError(
                f"prompt and answer: expected 1 to {n_ctx} tokens and one more, got {len(prompt)} and {len(answer)}"
            )
        self._generations += 1
        same = rewind(self.cache, self.ids, prompt)
        self.ids = ids[:same]
        for start in range(same, len(ids) if answer else same, PREFILL_TOKENS):
            part = ids[start : start + PREFILL_TOKENS]
            wanted = min(len(part), start + len(part) - len(prompt) + 1)
            rows = self.runtime.forward(part, self.cache, max(1, wanted))
            self.ids.extend(part)
            if wanted > 0:
                yield rows

    def forget(self, length: int) -> None:
        """Forget all tokens from position `length` on. It ends a stream of this decoder that has not ended."""
        self._generations += 1
        self.cache.truncate(length)
        del self.ids[length:]

    def _tokens(self, prompt: Sequence[int], sampler: Sampler, stop: Collection[int], limit: int) -> Iterator[int]:
        """Yield at least `limit` tokens unless a stop id comes; whoever takes them adds them to `ids`."""
        pace, drawn = Pace(), 0
        guesses: list[int] = []
        rows = self._prefill(prompt)
        while True:
            tokens = checked(rows, guesses, sampler, self.ids, drawn, stop)
            self.cache.truncate(len(self.ids) + len(tokens) - 1)
            self.drafted_tokens += len(guesses)
            self.accepted_tokens += len(tokens) - 1
            if guesses:
                pace.note(len(guesses), len(tokens) - 1)
            drawn += len(tokens)
            yield from tokens
            most = min(pace.most(), limit - drawn - 1) if self.draft else 0
            guesses = self.draft.propose(self.ids, most, sampler, drawn) if self.draft and most > 0 else []
            rows = self.runtime.forward([self.ids[-1], *guesses], self.cache, 1 + len(guesses))

    def _prefill(self, prompt: Sequence[int]) -> Tensor:
        """Bring the cache to the whole prompt; return the logits (1, V) after its last id."""
        same = rewind(self.cache, self.ids, prompt)
        self.prompt_tokens, self.cached_tokens = len(prompt), same
        self.ids = list(prompt[:same])
        for start in range(same, len(prompt), PREFILL_TOKENS):
            part = prompt[start : start + PREFILL_TOKENS]
            logits = self.runtime.forward(part, self.cache)
            self.ids.extend(part)
        return logits


def checked(
    rows: Iterable[Tensor | Scores],
    guesses: Sequence[int],
    sampler: Sampler,
    ids: Sequence[int],
    drawn: int,
    stop: Collection[int],
) -> list[int]:
    """Draw from rows of logits (1 + guesses, V) behind `ids`, for as long as what is drawn is what was guessed.

    The first token is at the place `drawn` of the answer; at least one is returned.
    """
    seen, tokens = list(ids) if sampler.looks_back else [], list[int]()
    for row, guess in zip(rows, [*guesses, None], strict=True):
        token = sampler.sample(row, seen + tokens, drawn + len(tokens))
        tokens.append(token)
        if token != guess or token in stop:
            break
    return tokens


class StopFilter:
    """Cuts a stream of text at the first stop string and holds back what may become one.

    `stopped` tells whether a stop string was met; nothing after it comes out. Where a text opens with `lead`, which its
    reader does not see, only what follows is looked at.
    """

    def __init__(self, stop: Iterable[str], lead: str = "") -> None:
        self.stop = [string for string in stop if string]
        self.stopped = False
        self._lead, self._led = lead, 0  # characters of the lead in what is held
        self._held = ""

    def push(self, text: str) -> str:
        """Take more text; return what certainly belongs to the answer."""
        if self.stopped:
            return ""
        self._held += text
        if self._lead:
            if len(self._held) < len(self._lead) and self._lead.startswith(self._held):
                return ""
            self._led, self._lead = len(self._lead) if self._held.startswith(self._lead) else 0, ""
        found = [(at + len(string), at) for string in self.stop if (at := self._find(string)) >= 0]
        if found:  # the string that was complete first wins, however the text arrived
            self.stopped = True
            out, self._held = self._held[: min(found)[1]], ""
            return out
        keep = max((self._overlap(string) for string in self.stop), default=0)
        cut = len(self._held) - keep
        out, self._held, self._led = self._held[:cut], self._held[cut:], max(0, self._led - cut)
        return out

    def _find(self, string: str) -> int:
        """Return where a stop string begins behind the lead; -1 for none."""
        return self._held.find(string, self._led)

    def flush(self) -> str:
        """Return what was held back when the stream ends without a stop string."""
        out, self._held = self._held, ""
        return "" if self.stopped else out

    def _overlap(self, string: str) -> int:
        """Length of the longest end of the held text that begins `string`."""
        for size in range(min(len(string) - 1, len(self._held) - self._led), 0, -1):
            if self._held.endswith(string[:size]):
                return size
        return 0


class Answering(Protocol):
    """Turns prompts into ids: a `Decoder`, or an `Engine` with others."""

    def generate(self, prompt: Sequence[int], config: GenerationConfig, stop: Collection[int]) -> Iterator[int]:
        """Yield the answer's ids until one of `stop` is drawn or no room is left."""


def stream_answer(
    decoder: Answering, conversation: Conversation, template: Template, tokenizer: Tokenizer, config: GenerationConfig
) -> Generator[str, None, None]:
    """Answer the last message of a conversation piece by piece: rendered, decoded, ended as the template says."""
    ids = decoder.generate(render_prompt(conversation, template, tokenizer), config, tokenizer.stop_ids)
    return stream_text(ids, tokenizer.stream_decoder(), template.stop, template.lead)


def stream_text(
    ids: Iterable[int], decoder: StreamDecoder, stop: Iterable[str] | StopFilter, lead: str = ""
) -> Generator[str, None, None]:
    """Turn a stream of ids into whole characters: without `lead` at the start, ended by the first stop string.

    However the stream ends, `ids` is closed, and with it the computation. A character that was not finished is left
    out. A filter that is given tells what happened.
    """
    spelled = Spelling(decoder, stop, lead)
    try:
        for token in ids:
            if text := spelled.push(token):
                yield text
            if spelled.stopped:
                break
        if text := spelled.flush():
            yield text
    finally:
        if isinstance(ids, Generator):
            ids.close()


class Spelling:
    """Ids of an answer -> its text as they come, as `stream_text` gives it.

    `place` counts the characters that the ids so far spell, and `given` those of them that are certain to belong to the
    answer, both with `lead`.
    """

    def __init__(self, decoder: StreamDecoder, stop: Iterable[str] | StopFilter, lead: str = "") -> None:
        self._decoder, self._stops = decoder, stop if isinstance(stop, StopFilter) else StopFilter(stop, lead)
        self._unlead = _LeadFilter(lead)
        self.place = self.given = 0

    @property
    def stopped(self) -> bool:
        """Whether a stop string was met."""
        return self._stops.stopped

    @property
    def led(self) -> bool:
        """Whether `lead` was there and was left out."""
        return self._unlead.met

    def push(self, token: int) -> str:
        """Take one more id; return the text that is certain now."""
        text = self._decoder.push(token)
        self.place += len(text)
        return self._give(self._stops.push(text))

    def flush(self) -> str:
        """Return what was held back when the ids end; a character that was not finished is left out."""
        self._decoder.flush()
        return self._give(self._stops.flush()) + self._unlead.flush()

    def _give(self, text: str) -> str:
        self.given += len(text)
        return self._unlead.push(text)


def stop_watch(decoder: StreamDecoder, stop: Iterable[str], lead: str = "") -> Callable[[int], bool]:
    """Return what tells, given the ids of an answer one by one, whether its text behind `lead` has a stop string."""
    stops = StopFilter(stop, lead)

    def watch(token: int) -> bool:
        stops.push(decoder.push(token))
        return stops.stopped

    return watch


class _LeadFilter:
    """Removes a prefix from a stream of text, however it is cut into pieces."""

    def __init__(self, lead: str) -> None:
        self._lead, self._held, self.met = lead, "", False

    def push(self, text: str) -> str:
        self._held += text
        if len(self._held) < len(self._lead) and self._lead.startswith(self._held):
            return ""
        return self.flush()

    def flush(self) -> str:
        self.met = self.met or (self._lead != "" and self._held.startswith(self._lead))
        out, self._held, self._lead = self._held.removeprefix(self._lead), "", ""
        return out
