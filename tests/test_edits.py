"""Cached equals uncached: whatever was asked, taken back and changed before, an answer is that of a fresh chat."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import pytest
from helpers_cli import failing, weights_of

from gpt2chat.chatbot import GPT2Chatbot
from gpt2chat.checkpoint import Checkpoint
from gpt2chat.conversation import TEMPLATES, Message
from gpt2chat.decoding import choose, runtime_of
from gpt2chat.errors import ContextError
from gpt2chat.history import ChatHistory, ChatModel
from gpt2chat.model import GPT2, GPT2Config
from gpt2chat.reply import StreamingReply
from gpt2chat.runtime import NativeRuntime, Runtime, TorchRuntime
from gpt2chat.sampling import GenerationConfig

QUESTIONS = ("Hello", "And now?", "What is the number of the house, please?", "猫 🦉", "Hello again", "So?")
SYSTEMS = (None, "Be kind.", "Be kind and brief.")
TEMPLATE_NAMES = (None, "few-shot", "alpaca", "llama-2", "dialogpt")
DRAWN: tuple[dict[str, Any], ...] = ({"temperature": 0}, {"temperature": 1.0, "top_k": 0, "seed": 7})


@pytest.fixture(scope="module")
def loaded(tiny_model: GPT2) -> Checkpoint:
    return Checkpoint(tiny_model.config, weights_of(tiny_model), TEMPLATES["chat"], about={"base": "tiny"})


@pytest.fixture(scope="module")
def native(loaded: Checkpoint) -> Runtime:
    """The native decoder, whose answers are the same to the bit however they are computed."""
    runtime = runtime_of(loaded, choose("cpu", quantize="int8"))
    return runtime if isinstance(runtime, NativeRuntime) else through_torch(loaded.config)


@pytest.fixture(scope="module")
def wide(tiny_config: GPT2Config) -> Runtime:
    return through_torch(tiny_config)


def through_torch(config: GPT2Config) -> Runtime:
    """Torch in float64: what it rounds otherwise when a prompt is read in other parts changes no choice."""
    return TorchRuntime(GPT2(config).init_weights(0).double().eval())


def common(one: Sequence[int], other: Sequence[int]) -> int:
    """The length of the common beginning."""
    return next((n for n, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


# -- a bot ---------------------------------------------------------------------------------------------------------


class Sequenced:
    """A bot that is asked and edited at random, compared with fresh ones after every step."""

    def __init__(self, loaded: Checkpoint, seed: int, counts: Counter[str]) -> None:
        self.loaded, self.draw, self.counts = loaded, random.Random(seed), counts
        self.template: str | None = None
        self.examples: list[dict[str, str]] = []
        self.bot = self.new()
        self.turn = seed

    def new(self) -> GPT2Chatbot:
        """A bot that was told the same and has computed nothing."""
        bot = GPT2Chatbot("demo", notice=lambda line: None, match=False, generation=GenerationConfig(max_new_tokens=3))
        bot.use(self.loaded)
        bot.set_template(self.template)
        bot.add_custom_examples(self.examples)
        if hasattr(self, "bot"):
            bot.system, bot.messages = self.bot.system, list(self.bot.messages)
        return bot

    def drawn(self) -> dict[str, Any]:
        """How the next answer is drawn: greedily, then at temperature 1, and so on."""
        self.turn += 1
        return DRAWN[self.turn % 2] | {"max_new_tokens": self.draw.choice((1, 2, 5))}

    def step(self) -> None:
        """Do one thing at random, and look whether the next answer is right."""
        kinds = (self.ask, self.ask, self.regenerate, self.edit, self.undo, self.correct, self.surround, self.disturb)
        (self.draw.choice(kinds) if self.bot.messages else self.ask)()
        config = GenerationConfig(**self.drawn())
        asked = [*self.bot.messages, Message("user", self.draw.choice(QUESTIONS))]
        self.compare("next", lambda bot: bot.complete(asked, config), self.new())

    def compare(self, kind: str, answer: Callable[[GPT2Chatbot], StreamingReply], fresh: GPT2Chatbot) -> None:
        """Let both bots answer, and read both as far."""
        decoder, most = self.bot.decoder, self.draw.choice((0, 1, 2, 9, 9, 9))
        held = decoder.ids[: decoder.cache.length]
        replies = [answer(self.bot), answer(fresh)]
        said = [read(reply, most if kind != "next" else 99) for reply in replies]
        assert said[0] == said[1], kind
        reply, other = replies
        assert (reply.tokens, reply.finish_reason) == (other.tokens, other.finish_reason)
        assert self.bot.messages == fresh.messages
        if reply.tokens:
            assert reply.usage.cached_tokens == common(held, reply.answer.prompt[:-1])
            assert other.usage.cached_tokens == 0
            assert reply.usage.prompt_tokens == other.usage.prompt_tokens
            self.counts[kind] += 1
            self.counts[f"{kind}, cached"] += reply.usage.cached_tokens > 0
            self.counts["guesses taken"] += reply.usage.accepted_tokens

    def ask(self) -> None:
        text, options = self.draw.choice(QUESTIONS), self.drawn()
        self.compare("ask", lambda bot: bot.stream(text, **options), self.new())

    def regenerate(self) -> None:
        options = self.drawn()
        self.compare("regenerate", lambda bot: bot.regenerate(**options), self.new())

    def edit(self) -> None:
        text, options = self.draw.choice(QUESTIONS), self.drawn()
        self.compare("edit", lambda bot: bot.edit(text, **options), self.new())

    def undo(self) -> None:
        self.bot.undo()

    def correct(self) -> None:
        self.bot.correct(self.draw.choice(("Right.", "It is 7.", "猫")))

    def surround(self) -> None:
        """Change what stands around the conversation, or forget it."""
        kind = self.draw.randrange(5)
        if kind == 0:
            self.bot.reset()
        elif kind == 1:
            self.examples.append({"user": self.draw.choice(QUESTIONS), "bot": "Just so."})
            self.bot.add_custom_examples(self.examples[-1:])
        elif kind == 2:
            self.examples.clear()
            self.bot.clear_custom_examples()
        elif kind == 3:
            self.bot.system = self.draw.choice(SYSTEMS)
        else:
            self.template = self.draw.choice(TEMPLATE_NAMES)
            self.bot.set_template(self.template)

    def disturb(self) -> None:
        """Let an answer end by Ctrl-C, by a fault, or by a text that is too long; or leave it open."""
        kind, before = self.draw.randrange(4), list(self.bot.messages)
        if kind == 0:
            with pytest.raises(ContextError):
                self.bot.stream("word " * 130)
            assert self.bot.messages == before
        elif kind == 1:
            left_open = self.bot.stream("Hello", **self.drawn())
            next(left_open, None)
            (self.bot.undo if left_open.tokens else self.bot.reset)()
            assert left_open.eos
        else:
            error = RuntimeError() if kind == 2 else KeyboardInterrupt()
            runtime, call = self.bot.decoder.runtime, self.draw.randint(1, 3)
            with failing(runtime, call, error, must=False):
                try:
                    self.bot.stream("Hello", **self.drawn()).wait()
                except RuntimeError:
                    assert self.bot.messages == before
                except KeyboardInterrupt:
                    assert len(self.bot.messages) == len(before) + 2 and not self.bot.messages[-1].trained


def read(reply: StreamingReply, most: int) -> list[str]:
    """Read at most so many pieces and stop."""
    with reply:
        return [piece for _, piece in zip(range(most), reply, strict=False)]


def run_bots(loaded: Checkpoint, seeds: range) -> Counter[str]:
    counts = Counter[str]()
    for seed in seeds:
        sequence = Sequenced(loaded, seed, counts)
        for _ in range(sequence.draw.randint(3, 6)):
            sequence.step()
    for kind in ("ask", "regenerate", "edit", "next"):
        assert counts[kind] > len(seeds) / 8, counts
        assert counts[f"{kind}, cached"] > counts[kind] * 0.4, counts
    return counts


SOON, LATER = range(150), pytest.param(range(150, 500), marks=pytest.mark.slow)


@pytest.mark.parametrize("seeds", [SOON, LATER], ids=["soon", "later"])
def test_an_answer_of_a_bot_is_that_of_a_fresh_one(
    loaded: Checkpoint, native: Runtime, monkeypatch: pytest.MonkeyPatch, seeds: range
) -> None:
    monkeypatch.setattr("gpt2chat.chatbot.runtime_of", lambda *_: native)
    counts = run_bots(loaded, seeds)
    assert counts["guesses taken"] > len(seeds) / 5 or isinstance(native, TorchRuntime)


def test_an_answer_of_a_bot_is_that_of_a_fresh_one_through_torch(
    loaded: Checkpoint, wide: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt2chat.chatbot.runtime_of", lambda *_: wide)
    run_bots(loaded, range(500, 560))


# -- a ChatHistory -------------------------------------------------------------------------------------------------


class Led:
    """A `ChatHistory` that is led and changed at random; each answer is compared with that of a fresh one."""

    def __init__(self, model: ChatModel, seed: int, counts: Counter[str]) -> None:
        self.model, self.draw, self.counts, self.turn = model, random.Random(seed), counts, seed
        self.template = self.draw.choice(TEMPLATE_NAMES)
        self.chat = ChatHistory(model, self.template, self.draw.choice(SYSTEMS))

    def step(self) -> None:
        """Do one thing at random, then go on."""
        kinds = (self.take_out, self.pop, self.rewrite, self.forget, self.begin_anew, self.put_in, self.leave)
        self.draw.choice(kinds)()
        self.answer()

    def answer(self) -> None:
        """Ask, and let the bot answer what the chat has cached and what it has not."""
        chat, wrap = self.chat, self.draw.choice((None, 40, 70))
        chat.append("user", self.draw.choice(QUESTIONS))
        held, plain = chat.kv_cache.ids if chat.kv_cache else [], ChatHistory(self.model, self.template)
        plain.messages = []
        for message in chat:
            plain.append(message.role, message.text)
        ids, position = chat.embed_chat(wrap_tokens=wrap, max_tokens=100)
        whole, nothing = plain.embed_chat(wrap_tokens=wrap, max_tokens=100)
        assert (position, nothing) == (common(held, whole[:-1]), 0)
        assert [*held[:position], *ids] == whole
        assert chat.to_list() == plain.to_list()
        self.turn += 1
        options = {"stop_tokens": chat.template.stop, "max_new_tokens": self.draw.choice((1, 3, 6))}
        options |= {"do_sample": bool(self.turn % 2), "temperature": 1.0, "top_p": 1.0, "seed": 3}
        replies = [self.model.generate(ids, kv_cache=chat.kv_cache, **options), self.model.generate(whole, **options)]
        most = self.draw.choice((0, 1, 2, 9, 9))
        said = [read(reply, most) for reply in replies]
        assert said[0] == said[1]
        assert replies[0].tokens == replies[1].tokens
        if replies[0].tokens:
            assert replies[0].usage.cached_tokens == position
            self.counts["answers"] += 1
            self.counts["cached"] += position > 0
        chat.append("bot", replies[0])

    def take_out(self) -> None:
        chat, size = self.chat, len(self.chat)
        if size:
            at = self.draw.randrange(-size, size)
            self.draw.choice((lambda: chat.remove(at), lambda: chat.__delitem__(at), lambda: chat.remove(at, size)))()

    def pop(self) -> None:
        self.chat.pop(self.draw.randint(0, min(3, len(self.chat))))

    def rewrite(self) -> None:
        for message in self.draw.sample(self.chat.messages, min(1, len(self.chat))):
            message.text = self.draw.choice(("Changed.", message.text[:4], message.text + "!"))

    def forget(self) -> None:
        cache = self.chat.kv_cache
        if cache is not None:
            count = self.draw.randint(0, 1 + len(cache))
            self.draw.choice((lambda: cache.pop(count), lambda: cache.remove(count), lambda: cache.remove(0)))()
        if self.draw.random() < 0.2:
            self.chat.embed_chat(use_cache=False)

    def begin_anew(self) -> None:
        kind = self.draw.randrange(3)
        if kind == 0:
            self.chat.reset(use_cache=self.draw.random() < 0.5)
        elif kind == 1:
            self.chat.reset(wrap_tokens=50)
        else:
            self.chat.system_prompt = self.draw.choice(SYSTEMS)

    def put_in(self) -> None:
        self.chat.append(self.draw.choice(("user", "bot")), self.draw.choice(QUESTIONS))

    def leave(self) -> None:
        """Leave an answer open that is no part of the chat, on the chat's own cache."""
        if self.chat.kv_cache is not None:
            reply = self.model.generate("And so on", kv_cache=self.chat.kv_cache)
            next(reply, None)
            self.left_open = reply


def run_histories(model: ChatModel, seeds: range) -> None:
    counts = Counter[str]()
    for seed in seeds:
        led = Led(model, seed, counts)
        for _ in range(led.draw.randint(2, 5)):
            led.step()
    assert counts["answers"] > 2 * len(seeds)
    assert counts["cached"] > counts["answers"] / 2, counts


@pytest.mark.parametrize("seeds", [SOON, LATER], ids=["soon", "later"])
def test_an_answer_in_a_history_is_that_of_a_fresh_one(loaded: Checkpoint, native: Runtime, seeds: range) -> None:
    run_histories(ChatModel(loaded, native), seeds)


def test_an_answer_in_a_history_is_that_of_a_fresh_one_through_torch(loaded: Checkpoint, wide: Runtime) -> None:
    run_histories(ChatModel(loaded, wide), range(500, 560))


def test_an_answer_that_goes_on_after_its_cache_was_cut_is_refused(loaded: Checkpoint, native: Runtime) -> None:
    chat = ChatHistory(ChatModel(loaded, native))
    chat.append("user", "Hello")
    reply = chat.model.generate(chat.embed_chat()[0], max_new_tokens=9)
    next(reply)
    chat.append("bot", reply)
    assert chat.kv_cache is not None
    for cut in (chat.kv_cache.pop, chat.kv_cache.remove, lambda count: chat.embed_chat()):
        other = chat.model.generate("More", kv_cache=chat.kv_cache, max_new_tokens=9)
        next(other)
        cut(3)
        with pytest.raises(RuntimeError, match="another answer has begun"):
            list(other)
