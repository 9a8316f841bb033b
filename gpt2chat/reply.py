"""An answer while it is being written: text piece by piece, and afterwards what it took."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import threading
import time
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, Protocol

from gpt2chat.generation import StopFilter, stream_text
from gpt2chat.tokenizer import StreamDecoder


class Told(Protocol):
    """What a source of ids says of the answer it gives: a `Decoder`, or a `Stream` of the engine."""

    @property
    def finish_reason(self) -> str | None:
        """Why the answer ended."""

    @property
    def prompt_tokens(self) -> int:
        """How many ids the prompt has."""

    @property
    def cached_tokens(self) -> int:
        """How many of them came from the cache."""

    @property
    def drafted_tokens(self) -> int:
        """How many tokens were guessed."""

    @property
    def accepted_tokens(self) -> int:
        """How many of those the model took."""


@dataclass(frozen=True)
class Given:
    """What is told of an answer whose ids were there before it began: all but the prompt was free."""

    prompt_tokens: int
    finish_reason: str | None
    cached_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0


@dataclass
class Usage:
    """What an answer took: counts of tokens, and seconds from the first request of a piece on."""

    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    first_token_s: float = 0.0
    seconds: float = 0.0

    def add(self, other: Usage) -> None:
        """Count another answer too."""
        for each in fields(self):
            setattr(self, each.name, getattr(self, each.name) + getattr(other, each.name))

    @property
    def tokens_per_second(self) -> float:
        """Speed behind the first token, or of it if there is no other."""
        if self.new_tokens > 1 and self.seconds > self.first_token_s:
            return (self.new_tokens - 1) / (self.seconds - self.first_token_s)
        return self.new_tokens / self.seconds if self.seconds else 0.0


@dataclass
class Answer:
    """What is known of an answer; `text` and `tokens` grow while it is written.

    At the end `finish_reason` is "stop" (the model ended it, or a stop string), "length", "cancelled" (by its reader,
    or Ctrl-C) or "error". `confidence` was judged, if it was; `replaced` tells that the judge gave another text.
    """

    prompt: list[int]
    tokens: list[int] = field(default_factory=list)
    parts: list[str] = field(default_factory=list)
    finish_reason: str | None = None
    usage: Usage = field(default_factory=Usage)
    confidence: float | None = None
    replaced: bool = False
    stopping: bool = False

    @property
    def text(self) -> str:
        """What was said so far."""
        return "".join(self.parts)


Judge = Callable[[Answer], str | None]


class StreamingReply(Iterator[str]):
    """Yields an answer piece by piece, whole characters only; nothing is computed ahead of its reader.

    `text`, `tokens`, `finish_reason` and `usage` are those of `answer`. It can be iterated once, also with `async for`;
    as a context manager it stops at the end of the block. When it is stopped or dropped, what was said stays said.
    A task that is cancelled while it waits for a piece ends when that piece is computed, which is then the last one.
    """

    def __init__(
        self,
        prompt: Sequence[int],
        source: Callable[[], tuple[Iterator[int], Told]],
        decoder: StreamDecoder,
        stop: Iterable[str] = (),
        lead: str = "",
        at_end: Callable[[Answer], None] = lambda answer: None,
        judge: Judge | None = None,
        kv_cache: Any = None,
    ) -> None:
        """Take a prompt and what begins to answer it.

        `at_end` is called once, unless the answer ends by a fault. With a `judge` nothing is yielded before the whole
        answer is there; the text that it returns, if it does, is given instead. What was not judged is not said.
        """
        self.answer, self.kv_cache = Answer(list(prompt), usage=Usage(len(prompt))), kv_cache
        # The generator knows the answer and not this object, so that dropping this object ends it at once.
        self._pieces = _written(self.answer, source, decoder, StopFilter(stop, lead), lead, at_end, judge)
        self._turn = threading.RLock()  # one thread at a time computes a piece or ends the answer

    @property
    def text(self) -> str:
        """What was said so far."""
        return self.answer.text

    @property
    def tokens(self) -> list[int]:
        """The ids of the answer so far."""
        return self.answer.tokens

    @property
    def finish_reason(self) -> str | None:
        """Why the answer ended; None while it is written."""
        return self.answer.finish_reason

    @property
    def eos(self) -> bool:
        """Whether the answer has ended."""
        return self.answer.finish_reason is not None

    @property
    def usage(self) -> Usage:
        """What the answer took."""
        return self.answer.usage

    def __str__(self) -> str:
        return self.text

    def __repr__(self) -> str:
        return f"StreamingReply({self.text!r}, {self.finish_reason or 'not at its end; read it, or wait()'})"

    def __next__(self) -> str:
        with self._turn:
            return next(self._pieces)

    def stop(self) -> None:
        """End the answer here. While another thread waits for a piece, it ends behind that one."""
        self.answer.stopping = True
        if self._turn.acquire(blocking=False):
            try:
                self._end()
            finally:
                self._turn.release()

    def close(self) -> None:
        """End the answer as `stop` does, and return when no other thread computes it any more."""
        self.answer.stopping = True
        with self._turn:
            self._end()

    def _end(self) -> None:
        # A signal, or what is called at the end, may ask for it in the middle of a piece.
        if inspect.getgeneratorstate(self._pieces) != inspect.GEN_RUNNING:
            self._pieces.close()
            self.answer.finish_reason = self.answer.finish_reason or "cancelled"  # of one that nobody began to read

    def wait(self) -> str:
        """Read the answer to its end and return it whole."""
        for _ in self:
            pass
        return self.text

    def __enter__(self) -> StreamingReply:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def __aiter__(self) -> StreamingReply:
        return self

    async def __anext__(self) -> str:
        step = asyncio.get_running_loop().run_in_executor(None, next, self, None)
        try:
            piece = await asyncio.shield(step)
        except asyncio.CancelledError:
            self.answer.stopping = True
            while not step.done():  # who asks next must not meet a thread that computes still
                with contextlib.suppress(asyncio.CancelledError):
                    await asyncio.wait([step])
            self.close()
            raise
        if piece is None:
            raise StopAsyncIteration
        return piece


def _written(
    answer: Answer,
    source: Callable[[], tuple[Iterator[int], Told]],
    decoder: StreamDecoder,
    stops: StopFilter,
    lead: str,
    at_end: Callable[[Answer], None],
    judge: Judge | None,
) -> Generator[str, None, None]:
    """Yield the pieces of an answer and keep account of it."""
    began = time.perf_counter()
    try:
        ids, told = source()
        texts = stream_text(_tapped(ids, answer, told, began), decoder, stops, lead)
        try:
            yield from _kept(texts, answer) if judge is None else _judged(texts, answer, judge)
        finally:
            texts.close()
            _close(ids)
    except Exception:
        answer.finish_reason = "error"
        raise
    except BaseException:  # the reader left, or Ctrl-C
        answer.finish_reason = "cancelled"
        at_end(answer)
        raise
    ended = "stop" if stops.stopped else told.finish_reason or "stop"
    answer.finish_reason = "cancelled" if answer.stopping else ended
    at_end(answer)


def _tapped(ids: Iterable[int], answer: Answer, told: Told, began: float) -> Generator[int, None, None]:
    for token in ids:
        answer.tokens.append(token)
        _note(answer, told, began)
        yield token
        if answer.stopping:
            return
    _note(answer, told, began)


def _kept(texts: Iterable[str], answer: Answer) -> Generator[str, None, None]:
    for piece in texts:
        answer.parts.append(piece)
        yield piece


def _judged(texts: Iterable[str], answer: Answer, judge: Judge) -> Generator[str, None, None]:
    parts = list(texts)
    if answer.stopping:
        return
    answer.parts = parts
    try:
        instead = judge(answer)
    except BaseException:
        answer.parts = []
        raise
    if instead is not None:
        answer.parts, answer.replaced = [instead], True
    if answer.text:
        yield answer.text


def _close(ids: Iterator[int]) -> None:
    close = getattr(ids, "close", None)
    if close is not None:
        close()


def _note(answer: Answer, told: Told, began: float) -> None:
    """Take down what an answer took so far; later its source may tell of another one."""
    usage = answer.usage
    usage.seconds, usage.new_tokens = time.perf_counter() - began, len(answer.tokens)
    if usage.new_tokens and not usage.first_token_s:
        usage.first_token_s = usage.seconds
    usage.prompt_tokens, usage.cached_tokens = told.prompt_tokens, told.cached_tokens
    usage.drafted_tokens, usage.accepted_tokens = told.drafted_tokens, told.accepted_tokens
