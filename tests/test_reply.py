"""An answer is its pieces joined, ends as it says, and what was said stays said, whoever ends it and from where."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import threading
import time
from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
from helpers_cli import failing, weights_of

from gpt2chat.chatbot import GPT2Chatbot
from gpt2chat.checkpoint import Checkpoint
from gpt2chat.conversation import TEMPLATES, Message
from gpt2chat.engine import Engine
from gpt2chat.errors import ConfigError, ContextError
from gpt2chat.model import GPT2
from gpt2chat.reply import Answer, StreamingReply, Told
from gpt2chat.runtime import TorchRuntime
from gpt2chat.sampling import GenerationConfig
from gpt2chat.tokenizer import Tokenizer

GREEDY = GenerationConfig(temperature=0, max_new_tokens=12)
TEXT = "Hi there, 明日 👋! And then some more."


@dataclass
class Source:
    """Gives ids one by one, and tells of them what a decoder would; `gate` holds up the one that it is at."""

    ids: list[int]
    finish_reason: str | None = "stop"
    prompt_tokens: int = 3
    cached_tokens: int = 2
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    fault: BaseException | None = None
    taken: int = 0
    closed: bool = False
    gate: Callable[[int], object] = lambda number: None

    def __call__(self) -> tuple[Iterator[int], Told]:
        return self._tokens(), self

    def _tokens(self) -> Generator[int, None, None]:
        try:
            for number, token in enumerate(self.ids):
                self.gate(number)
                self.taken += 1
                self.drafted_tokens += 1
                yield token
            if self.fault:
                raise self.fault
        finally:
            self.closed = True


@pytest.fixture
def source(tokenizer: Tokenizer) -> Source:
    return Source(tokenizer.encode(TEXT))


@pytest.fixture
def ended() -> list[Answer]:
    """The answers that came to their end."""
    return []


@pytest.fixture
def reply(source: Source, tokenizer: Tokenizer, ended: list[Answer]) -> StreamingReply:
    return make(source, tokenizer, ended)


def make(source: Source, tokenizer: Tokenizer, ended: list[Answer], **options: Any) -> StreamingReply:
    return StreamingReply([1, 2, 3], source, tokenizer.stream_decoder(), at_end=ended.append, **options)


@pytest.fixture
def loaded(tiny_model: GPT2) -> Checkpoint:
    return Checkpoint(tiny_model.config, weights_of(tiny_model), TEMPLATES["chat"], about={"base": "tiny"})


@pytest.fixture
def runtime(tiny_model: GPT2) -> TorchRuntime:
    return TorchRuntime(tiny_model)


@pytest.fixture
def bot(loaded: Checkpoint, runtime: TorchRuntime, monkeypatch: pytest.MonkeyPatch) -> GPT2Chatbot:
    monkeypatch.setattr("gpt2chat.chatbot.runtime_of", lambda *_: runtime)
    return bot_like(loaded)


def bot_like(loaded: Checkpoint, **options: Any) -> GPT2Chatbot:
    bot = GPT2Chatbot("demo", **({"generation": GREEDY} | options))
    bot.use(loaded)
    return bot


def next_is_right(bot: GPT2Chatbot, loaded: Checkpoint) -> None:
    """The next answer is that of a bot which has cached nothing."""
    fresh, said = bot_like(loaded), bot.chat("And now?")
    fresh.messages = bot.messages[:-2]
    assert said == fresh.chat("And now?") != ""
    assert bot.messages == fresh.messages


# -- text, tokens, end, usage --------------------------------------------------------------------------------------


def test_the_pieces_join_to_the_text_and_to_the_tokens(
    reply: StreamingReply, source: Source, ended: list[Answer], tokenizer: Tokenizer
) -> None:
    pieces = []
    assert (reply.text, reply.tokens, reply.eos, reply.finish_reason) == ("", [], False, None)
    for piece in reply:
        pieces.append(piece)
        assert reply.text == "".join(pieces)
        assert tokenizer.decode(reply.tokens).startswith(reply.text)
        assert ended == []
        assert not reply.eos
    assert str(reply) == reply.text == TEXT
    assert all(pieces) and len(pieces) > 5
    assert reply.tokens == source.ids
    assert (reply.eos, reply.finish_reason, ended) == (True, "stop", [reply.answer])
    assert list(reply) == [] and reply.wait() == TEXT and len(ended) == 1


@pytest.mark.parametrize(
    ("finish_reason", "stop", "expected", "text"),
    [
        ("stop", (), "stop", TEXT),
        ("length", (), "length", TEXT),
        (None, (), "stop", TEXT),
        ("length", (" And then",), "stop", "Hi there, 明日 👋!"),
        ("length", ("there, 明", "zzz"), "stop", "Hi "),
        ("length", ("more. And",), "length", TEXT),
        ("stop", ("Hi",), "stop", ""),
    ],
)
def test_why_an_answer_ended(
    source: Source,
    tokenizer: Tokenizer,
    ended: list[Answer],
    finish_reason: str | None,
    stop: tuple[str, ...],
    expected: str,
    text: str,
) -> None:
    source.finish_reason = finish_reason
    reply = make(source, tokenizer, ended, stop=stop)
    assert reply.wait() == text
    assert reply.finish_reason == expected
    assert source.closed and len(ended) == 1


def test_the_end_token_and_the_length_end_an_answer_of_a_model(bot: GPT2Chatbot, tokenizer: Tokenizer) -> None:
    long = bot.stream("Hello")
    long.wait()
    assert (long.finish_reason, len(long.tokens)) == ("length", 12)
    last = long.tokens[4]
    first = long.tokens.index(last)
    prompt = long.answer.prompt
    ids = bot.decoder.generate(prompt, GREEDY, {last})
    short = StreamingReply(prompt, lambda: (ids, bot.decoder), tokenizer.stream_decoder())
    short.wait()
    assert (short.finish_reason, short.tokens) == ("stop", long.tokens[:first])


def test_a_lead_is_cut_and_a_partial_character_is_left_out(tokenizer: Tokenizer, ended: list[Answer]) -> None:
    source = Source(tokenizer.encode(" Hi 👋")[:-1])
    pieces = list(make(source, tokenizer, ended, lead=" "))
    assert pieces[0] == "Hi"
    assert "".join(pieces) == "Hi "


def test_usage_adds_up(bot: GPT2Chatbot) -> None:
    for question, cached in (("Hello", False), ("Go on", True)):
        reply = bot.stream(question)
        began = time.perf_counter()
        for number, _ in enumerate(reply, 1):
            assert number <= reply.usage.new_tokens == len(reply.tokens)
        took, usage = time.perf_counter() - began, reply.usage
        assert usage.prompt_tokens == len(reply.answer.prompt)
        assert (usage.cached_tokens > 0) == cached and usage.cached_tokens < usage.prompt_tokens
        assert usage.new_tokens == len(reply.tokens) == 12
        assert 0 <= usage.accepted_tokens <= usage.drafted_tokens
        assert 0 < usage.first_token_s < usage.seconds <= took
        assert usage.tokens_per_second == pytest.approx(11 / (usage.seconds - usage.first_token_s))
        assert bot.answer is reply.answer


def test_usage_of_one_token_and_of_none(bot: GPT2Chatbot, source: Source, tokenizer: Tokenizer) -> None:
    reply = bot.stream("Hello", max_tokens=1)
    reply.wait()
    assert 0 < reply.usage.first_token_s <= reply.usage.seconds
    assert reply.usage.tokens_per_second == 1 / reply.usage.seconds
    source.ids = []
    empty = make(source, tokenizer, [])
    assert (empty.wait(), empty.finish_reason) == ("", "stop")
    assert (empty.usage.new_tokens, empty.usage.first_token_s, empty.usage.tokens_per_second) == (0, 0, 0)
    assert (empty.usage.prompt_tokens, empty.usage.cached_tokens) == (3, 2)


def test_usage_stays_that_of_the_answer_when_another_one_begins(bot: GPT2Chatbot) -> None:
    reply = bot.stream("Hello, who is there at this time of the day?")
    next(reply)
    prompt, drafted = reply.usage.prompt_tokens, reply.usage.drafted_tokens
    bot.complete([Message("user", "Hi")]).wait()
    reply.stop()
    assert (reply.usage.prompt_tokens, reply.usage.drafted_tokens) == (prompt, drafted)
    assert prompt == len(reply.answer.prompt)


def test_nothing_is_computed_ahead_of_the_reader(reply: StreamingReply, source: Source) -> None:
    assert source.taken == 0
    next(reply)
    taken = source.taken
    time.sleep(0.01)
    assert source.taken == taken < len(source.ids)


# -- ended by its reader -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("read", [1, 3])
def test_a_stop_in_the_middle(
    reply: StreamingReply, source: Source, ended: list[Answer], read: int, times: int
) -> None:
    pieces = [next(reply) for _ in range(read)]
    for _ in range(times):
        reply.stop()
    assert (reply.text, reply.finish_reason, reply.eos) == ("".join(pieces), "cancelled", True)
    assert ended == [reply.answer]
    assert source.closed and source.taken < len(source.ids)
    assert list(reply) == []
    reply.close()
    assert len(ended) == 1


def test_a_stop_before_the_first_piece_computes_and_remembers_nothing(
    reply: StreamingReply, source: Source, ended: list[Answer]
) -> None:
    reply.stop()
    assert (reply.wait(), reply.finish_reason, reply.eos) == ("", "cancelled", True)
    assert (source.taken, ended) == (0, [])


def test_a_stop_behind_the_end_changes_nothing(reply: StreamingReply, ended: list[Answer]) -> None:
    reply.wait()
    reply.stop()
    assert (reply.text, reply.finish_reason, len(ended)) == (TEXT, "stop", 1)


def test_a_stop_from_another_thread_ends_it_behind_the_piece_that_is_waited_for(
    reply: StreamingReply, source: Source, ended: list[Answer]
) -> None:
    reached, go_on = threading.Event(), threading.Event()

    def hold(number: int) -> None:
        if number == 2:
            reached.set()
            assert go_on.wait(10)

    source.gate = hold
    reader = threading.Thread(target=reply.wait)
    reader.start()
    assert reached.wait(10)
    reply.stop()  # returns at once
    assert not reply.eos
    go_on.set()
    reader.join(10)
    assert not reader.is_alive()
    assert (source.taken, reply.finish_reason, ended) == (3, "cancelled", [reply.answer])
    assert reply.text and TEXT.startswith(reply.text)


def test_close_waits_for_a_piece_that_another_thread_computes(reply: StreamingReply, source: Source) -> None:
    reached, computing = threading.Event(), []

    def hold(number: int) -> None:
        if number == 1:
            computing.append(True)
            reached.set()
            time.sleep(0.05)
            computing.clear()

    source.gate = hold
    reader = threading.Thread(target=reply.wait)
    reader.start()
    assert reached.wait(10)
    reply.close()
    assert computing == []
    assert source.closed and reply.eos
    reader.join(10)
    assert reply.finish_reason == "cancelled"


@pytest.mark.parametrize("seed", range(20))
def test_stops_and_reads_of_many_threads_never_collide(tokenizer: Tokenizer, seed: int) -> None:
    ended: list[Answer] = []
    faults: list[BaseException] = []
    source = Source(tokenizer.encode("word " * 200))
    reply = make(source, tokenizer, ended)

    def read() -> None:
        try:
            reply.wait()
        except BaseException as error:
            faults.append(error)

    readers = [threading.Thread(target=read) for _ in range(3)]
    for reader in readers:
        reader.start()
    time.sleep(seed / 20_000)
    (reply.stop, reply.close)[seed % 2]()
    for reader in readers:
        reader.join(10)
    assert faults == []
    assert len(ended) == (1 if source.taken else 0)
    assert reply.eos and source.closed == (source.taken > 0)


def test_a_bot_that_is_asked_while_another_thread_reads_ends_that_answer_first(
    bot: GPT2Chatbot, loaded: Checkpoint
) -> None:
    for _ in range(5):
        bot.reset()
        reply = bot.stream("Tell me all", max_tokens=90)
        began = threading.Event()
        faults: list[BaseException] = []

        def read(reply: StreamingReply = reply, began: threading.Event = began, faults: Any = faults) -> None:
            try:
                for _ in reply:
                    began.set()
            except BaseException as error:
                faults.append(error)

        reader = threading.Thread(target=read)
        reader.start()
        assert began.wait(10)
        next_is_right(bot, loaded)
        reader.join(10)
        assert faults == []
        assert bot.messages[:2] == [Message("user", "Tell me all"), Message("assistant", reply.text, False)]
        assert len(bot.messages) == 4


def test_dropping_the_last_reference_ends_it_at_once(bot: GPT2Chatbot, loaded: Checkpoint) -> None:
    gc.disable()  # by the count of references, not by luck
    try:
        reply = bot.stream("Hello")
        said = next(reply) + next(reply)
        del reply
        assert bot.messages == [Message("user", "Hello"), Message("assistant", said, False)]
        assert bot.answer is not None and bot.answer.finish_reason == "cancelled"
    finally:
        gc.enable()
    next_is_right(bot, loaded)


def test_the_end_of_a_block_stops_it(bot: GPT2Chatbot, loaded: Checkpoint) -> None:
    with bot.stream("Hello") as reply:
        said = next(reply)
    assert (reply.text, reply.finish_reason) == (said, "cancelled")
    with contextlib.suppress(KeyError), bot.stream("Hello") as other:
        next(other)
        raise KeyError
    assert [message.trained for message in bot.messages] == [True, False] * 2
    with bot.stream("Hello") as whole:
        whole.wait()
    assert whole.finish_reason == "length"
    next_is_right(bot, loaded)


# -- async ---------------------------------------------------------------------------------------------------------


def test_async_for_gives_the_same_pieces(bot: GPT2Chatbot) -> None:
    async def read() -> list[str]:
        return [piece async for piece in bot.stream("Hello")]

    pieces = list(bot.stream("Hello"))
    bot.reset()
    assert asyncio.run(read()) == pieces
    assert bot.messages[-1] == Message("assistant", "".join(pieces))


def test_an_async_reader_does_not_hold_up_others(reply: StreamingReply, source: Source) -> None:
    source.gate = lambda number: time.sleep(0.002)
    ticks = 0

    async def tick() -> None:
        nonlocal ticks
        while not reply.eos:
            ticks += 1
            await asyncio.sleep(0.0005)

    async def both() -> None:
        other = asyncio.create_task(tick())
        async for _ in reply:
            pass
        await other

    asyncio.run(both())
    assert reply.text == TEXT and ticks > len(source.ids)


def test_an_async_reader_that_leaves_keeps_what_was_said(bot: GPT2Chatbot, loaded: Checkpoint) -> None:
    async def read() -> str:
        async for piece in bot.stream("Hello"):
            return piece
        raise AssertionError("no piece")

    said = asyncio.run(read())
    assert bot.messages == [Message("user", "Hello"), Message("assistant", said, False)]
    next_is_right(bot, loaded)


@pytest.mark.parametrize("often", [1, 3])
def test_a_cancelled_task_ends_the_answer_and_leaves_no_thread_behind(
    bot: GPT2Chatbot, loaded: Checkpoint, runtime: TorchRuntime, monkeypatch: pytest.MonkeyPatch, often: int
) -> None:
    computing, forward = threading.Event(), runtime.forward

    def slow(*arguments: Any) -> Any:
        computing.set()
        time.sleep(0.02)
        logits = forward(*arguments)
        computing.clear()
        return logits

    async def cancel() -> None:
        task = asyncio.create_task(read())
        while len(bot.decoder.ids) < 12 or not computing.is_set():
            await asyncio.sleep(0.001)
        for _ in range(often):
            task.cancel()
            await asyncio.sleep(0.001)
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not computing.is_set()

    async def read() -> None:
        async for _ in bot.stream("Hello"):
            pass

    monkeypatch.setattr(runtime, "forward", slow)
    asyncio.run(asyncio.wait_for(cancel(), 10))
    monkeypatch.undo()
    monkeypatch.setattr("gpt2chat.chatbot.runtime_of", lambda *_: runtime)
    assert [(m.role, m.trained) for m in bot.messages] == [("user", True), ("assistant", False)]
    assert bot.answer is not None and bot.answer.text == bot.messages[-1].content
    next_is_right(bot, loaded)


def test_a_loop_that_ends_does_not_wait_for_an_answer_left_open(bot: GPT2Chatbot, loaded: Checkpoint) -> None:
    async def leave() -> None:
        async def read() -> None:
            async for _ in bot.stream("Hello", max_tokens=80):
                pass

        task = asyncio.create_task(read())
        while not bot.decoder.ids:
            await asyncio.sleep(0.001)
        assert not task.done()  # asyncio.run cancels it

    asyncio.run(leave())
    assert bot.answer is not None and bot.answer.finish_reason == "cancelled"
    next_is_right(bot, loaded)


def test_a_fault_comes_to_the_async_reader(source: Source, reply: StreamingReply, ended: list[Answer]) -> None:
    source.fault = OSError("broken")

    async def read() -> None:
        async for _ in reply:
            pass

    with pytest.raises(OSError, match="broken"):
        asyncio.run(read())
    assert (reply.finish_reason, ended) == ("error", [])


# -- faults and interrupts -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("call", [1, 2, 5])
def test_a_fault_in_the_model_remembers_nothing_and_the_next_answer_is_right(
    bot: GPT2Chatbot, loaded: Checkpoint, runtime: TorchRuntime, call: int
) -> None:
    bot.chat("Hello")
    before = list(bot.messages)
    for ask in (lambda: bot.stream("Go on"), bot.regenerate, lambda: bot.edit("What else?")):
        with failing(runtime, call, RuntimeError("out of memory")), pytest.raises(RuntimeError, match="out of memory"):
            reply = ask()
            reply.wait()
        assert reply.finish_reason == "error" and reply.eos
        assert reply.usage.new_tokens == len(reply.tokens) == call - 1
        assert bot.messages == before
    next_is_right(bot, loaded)


@pytest.mark.parametrize("call", [1, 2, 5])
def test_ctrl_c_inside_a_step_keeps_what_was_said_as_a_message_that_is_not_learnt(
    bot: GPT2Chatbot, loaded: Checkpoint, runtime: TorchRuntime, call: int
) -> None:
    with failing(runtime, call, KeyboardInterrupt()), pytest.raises(KeyboardInterrupt):
        bot.stream("Hello").wait()
    assert bot.answer is not None and bot.answer.finish_reason == "cancelled"
    assert len(bot.answer.tokens) == call - 1
    assert bot.messages == [Message("user", "Hello"), Message("assistant", bot.answer.text, trained=False)]
    next_is_right(bot, loaded)


def test_a_prompt_that_the_source_refuses_is_an_error(tokenizer: Tokenizer, ended: list[Answer]) -> None:
    def refuse() -> tuple[Iterator[int], Told]:
        raise ContextError("too long")

    reply = StreamingReply([1], refuse, tokenizer.stream_decoder(), at_end=ended.append)
    with pytest.raises(ContextError):
        next(reply)
    assert (reply.finish_reason, reply.eos, ended) == ("error", True, [])


def test_what_is_called_at_the_end_may_stop_and_ask_again(bot: GPT2Chatbot) -> None:
    said: list[str] = []

    def again(answer: Answer) -> None:
        reply.stop()
        reply.close()
        said.append(answer.text)

    reply = bot._reply([Message("user", "Hello")], GREEDY, again)
    assert reply.wait() == said[0]
    assert reply.finish_reason == "length"


# -- the judge -----------------------------------------------------------------------------------------------------


def test_a_judge_sees_the_whole_answer_and_nothing_is_given_before(
    source: Source, tokenizer: Tokenizer, ended: list[Answer]
) -> None:
    def judge(answer: Answer) -> str | None:
        assert (answer.text, answer.tokens) == (TEXT, source.ids)
        assert answer.finish_reason is None
        return instead

    for instead, expected in (("I do not know.", ["I do not know."]), (None, [TEXT]), ("", [])):
        ended.clear()
        source.taken = 0
        reply = make(source, tokenizer, ended, judge=judge)
        pieces = []
        for piece in reply:
            assert source.taken == len(source.ids)
            pieces.append(piece)
        assert pieces == expected
        assert (reply.answer.replaced, reply.finish_reason) == (instead is not None, "stop")
        assert [answer.text for answer in ended] == ["".join(expected)]


def test_what_was_not_judged_is_not_said(source: Source, tokenizer: Tokenizer, ended: list[Answer]) -> None:
    def interrupted(answer: Answer) -> str | None:
        raise KeyboardInterrupt

    def forbidden(answer: Answer) -> str | None:
        raise AssertionError("judged")

    source.gate = lambda number: reply.stop() if number == 3 else None
    reply = make(source, tokenizer, ended, judge=forbidden)
    assert list(reply) == []
    assert (reply.text, reply.finish_reason, len(reply.tokens)) == ("", "cancelled", 4)
    source.gate = lambda number: None
    other = make(source, tokenizer, ended, judge=interrupted)
    with pytest.raises(KeyboardInterrupt):
        other.wait()
    assert (other.text, other.finish_reason) == ("", "cancelled")
    assert ended == [reply.answer, other.answer]


def test_a_fallback_is_what_is_said_and_remembered(
    loaded: Checkpoint, runtime: TorchRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt2chat.chatbot.runtime_of", lambda *_: runtime)
    for threshold, replaced in ((1.0, True), (0.0, False)):
        bot = bot_like(loaded, fallback="Ask somebody else.", confidence=threshold)
        reply = bot.stream("Hello")
        pieces = list(reply)
        assert (reply.answer.replaced, len(pieces)) == (replaced, 1)
        assert (pieces == ["Ask somebody else."]) == replaced
        assert reply.answer.confidence is not None and 0 <= reply.answer.confidence <= 1
        assert bot.messages == [Message("user", "Hello"), Message("assistant", pieces[0])]
        assert len(reply.tokens) == reply.usage.new_tokens == 12
    next_is_right(bot_like(loaded), loaded)


# -- going back ----------------------------------------------------------------------------------------------------


def test_going_back_ends_an_open_answer_first(bot: GPT2Chatbot) -> None:
    bot.chat("One")
    for go_back in (bot.regenerate, lambda: bot.edit("Three")):
        open_one = bot.stream("Two")
        next(open_one)
        again = go_back()
        assert open_one.eos
        again.wait()
        questions = [message.content for message in bot.messages if message.role == "user"]
        assert questions == ["One", "Two" if go_back == bot.regenerate else "Three"]
        bot.undo()


def test_what_was_said_stays_until_the_new_answer_ends(bot: GPT2Chatbot) -> None:
    bot.chat("One")
    bot.chat("Two")
    before = list(bot.messages)
    with pytest.raises(ContextError):
        bot.edit("word " * 200)
    with pytest.raises(ConfigError):
        bot.edit(" ")
    with pytest.raises(ConfigError, match="heat"):
        bot.regenerate(heat=3)
    bot.regenerate().stop()  # never read
    del bot.edit("Three")._pieces
    assert bot.messages == before
    reply = bot.edit("Three")
    next(reply)
    assert bot.messages == before
    reply.stop()
    assert bot.messages == [*before[:2], Message("user", "Three"), Message("assistant", reply.text, False)]
    bot.correct("Right.")
    assert bot.messages[-1] == Message("assistant", "Right.")
    assert bot.undo() == Message("user", "Three")
    assert bot.messages == before[:2]


@pytest.mark.parametrize("go_back", ["regenerate", "undo", "edit", "correct"])
def test_without_a_question_there_is_nothing_to_go_back_to(bot: GPT2Chatbot, go_back: str) -> None:
    arguments = ["text"] if go_back in ("edit", "correct") else []
    with pytest.raises(ConfigError, match="expected a question to go back to, found none"):
        getattr(bot, go_back)(*arguments)


def test_a_template_that_the_model_has_no_tokens_for_is_refused_at_once(bot: GPT2Chatbot) -> None:
    with pytest.raises(ConfigError, match="train it first"):
        bot.set_template("chatml")
    assert bot.template.name == "chat"
    bot.set_template("alpaca")
    with pytest.raises(ConfigError, match="expected one of"):
        bot.set_template("morse")
    assert bot.template.name == "alpaca"
    bot.set_template(None)
    assert bot.template.name == "chat"


# -- through the engine --------------------------------------------------------------------------------------------


def test_an_answer_of_the_engine_is_the_same(bot: GPT2Chatbot, loaded: Checkpoint, runtime: TorchRuntime) -> None:
    expected = bot.stream("Hello")
    expected.wait()
    with Engine(runtime) as engine:
        other = GPT2Chatbot("demo", generation=GREEDY)
        other.use(loaded, engine)
        reply = other.stream("Hello")
        assert reply.wait() == expected.text
        assert (reply.tokens, reply.finish_reason) == (expected.tokens, "length")
        assert reply.usage.prompt_tokens == expected.usage.prompt_tokens
        cut = other.stream("Go on")
        said = next(cut)
        cut.stop()
        assert (cut.text, cut.finish_reason) == (said, "cancelled")
        assert other.messages[-1] == Message("assistant", said, False)
        assert other.chat("And now?")
