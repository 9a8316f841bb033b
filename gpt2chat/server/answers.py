"""A checked request -> answers of the engine, piece by piece, for one event loop."""

from __future__ import annotations

import asyncio
import contextlib
import math
import time
from collections import deque
from collections.abc import AsyncGenerator, Callable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpt2chat.generation import Spelling
from gpt2chat.sampling import GenerationConfig
from gpt2chat.server.faults import ApiError
from gpt2chat.streams import Drawn, Reader
from gpt2chat.tokenizer import Tokenizer


@dataclass(frozen=True)
class Question:
    """What the engine is asked: ids, how to draw, where to stop, and what was left out to make it fit."""

    prompt: Sequence[int]
    config: GenerationConfig
    stop: tuple[str, ...] = ()
    lead: str = ""
    logprobs: int | None = None  # of how many of the likeliest tokens, or none at all
    client: str = ""
    endless: bool = False  # whether it goes on where the model would end


@dataclass(frozen=True)
class Placed:
    """A token of an answer, and at which character of its text it begins, behind `cut` characters of its own."""

    drawn: Drawn
    place: int
    cut: int = 0  # of the template's lead, which is no part of the answer


@dataclass
class Piece:
    """What came of one answer since the piece before; the last one has the reason why it ended."""

    index: int
    text: str = ""
    tokens: list[Placed] = field(default_factory=list)
    finish_reason: str | None = None


@dataclass
class Pace:
    """How often answers are handed on: each token at once while there are few, some of them together among many.

    What an event loop and a network cost per message is then bounded, and nobody reads faster than a tenth of a second.
    """

    active: int = 0
    FEW, EACH, MOST = 4, 0.003, 0.1

    def seconds(self) -> float:
        """Return how long to gather before the next piece."""
        return 0.0 if self.active <= self.FEW else min(self.MOST, self.EACH * self.active)


Judge = Callable[[str, Sequence[float]], str | None]  # an answer and its log-probabilities -> what is said instead


class Answering:
    """One answer on its way: whoever reads `pieces` has it, and leaving them ends the computation."""

    def __init__(
        self, stream: Reader[Any], question: Question, index: int, pace: Pace, queue_s: float, answer_s: float
    ):
        self.stream, self.index, self._pace = stream, index, pace
        self._limits = queue_s, answer_s
        self._spelling = Spelling(Tokenizer.gpt2().stream_decoder(), question.stop, question.lead)
        self._scored, self._lead = question.logprobs is not None, question.lead
        self._pending = deque[tuple[Drawn, int]]()
        self._ended: str | None = None  # by the server: late, long, or why everything ends
        self.began = time.perf_counter()
        self.judge: Judge | None = None
        self.given: str | None = None  # why it ends, of an answer whose ids were there before
        self.first_s: float | None = None
        self.finish_reason: str | None = None

    def end(self, why: str) -> None:
        """End the answer from outside: "late", "long" or "shutdown"."""
        self._ended = self._ended or why
        self.stream.cancel()

    def _late(self) -> None:
        if not self.stream.started:
            self.end("late")

    def pieces(self) -> AsyncGenerator[Piece, None]:
        """Yield what comes; the last piece has a finish_reason. Raises ApiError when the server ends the answer.

        With a `judge` there is one piece, the whole answer or what is said in its place.
        """
        return self._drawn() if self.judge is None else self._judged(self.judge)

    async def _judged(self, judge: Judge) -> AsyncGenerator[Piece, None]:
        async with contextlib.aclosing(self._drawn()) as pieces:
            (answer,) = joined([piece async for piece in pieces], 1, self.index)
        logprobs = [each.drawn.logprob or 0.0 for each in answer.tokens]
        instead = await asyncio.to_thread(judge, answer.text, logprobs)
        if instead is not None:
            answer.text, answer.tokens, answer.finish_reason = instead, [], "stop"
        yield answer

    async def _drawn(self) -> AsyncGenerator[Piece, None]:
        loop, (queue_s, answer_s) = asyncio.get_running_loop(), self._limits
        timers = [loop.call_later(queue_s, self._late), loop.call_later(queue_s + answer_s, self.end, "long")]
        try:
            while await self.stream.wait():
                if self.first_s is None:
                    self.first_s = time.perf_counter() - self.began
                    self._pace.active += 1
                piece = self._piece(self.stream.take())
                if self._spelling.stopped:
                    self.stream.cancel()
                if piece.text or piece.tokens:
                    yield piece
                if self._spelling.stopped:
                    break
                if seconds := self._pace.seconds():
                    await asyncio.sleep(seconds)
            yield self._last()
        finally:
            self.stream.cancel()
            self._pace.active -= self.first_s is not None
            for timer in timers:
                timer.cancel()

    def _piece(self, drawn: Sequence[Drawn]) -> Piece:
        text = list[str]()
        for each in drawn:
            if self._spelling.stopped:
                break
            place = self._spelling.place
            text.append(self._spelling.push(each.id))
            if self._scored:
                self._pending.append((each, place))
        return Piece(self.index, "".join(text), self._certain(self._spelling.given))

    def _certain(self, given: float) -> list[Placed]:
        """Return the tokens that begin before so many characters; the last ones may still be part of a stop string."""
        led, certain = len(self._lead) if self._spelling.led else 0, list[Placed]()
        while self._pending and self._pending[0][1] < given:
            drawn, place = self._pending.popleft()
            certain.append(Placed(drawn, max(0, place - led), max(0, led - place)))
        return certain

    def _last(self) -> Piece:
        """Return the last piece; raises ApiError for an answer that the server had to end."""
        if self._ended == "late":
            raise late()
        if self._ended == "shutdown":
            raise ApiError(503, "the server is shutting down", code="shutting_down")
        if self._spelling.stopped:
            self.finish_reason = "stop"
            return Piece(self.index, self._spelling.flush(), self._certain(self._spelling.given), "stop")
        reason = self.given or self.stream.finish_reason
        self.finish_reason = "stop" if reason == "stop" else "length"
        text = self._spelling.flush()
        return Piece(self.index, text, self._certain(math.inf), self.finish_reason)

    @property
    def seconds(self) -> float:
        """How long it has taken so far."""
        return time.perf_counter() - self.began


def joined(pieces: Iterable[Piece], count: int, first: int = 0) -> list[Piece]:
    """Return each of so many answers, numbered from `first`, in one piece."""
    texts: list[list[str]] = [[] for _ in range(count)]
    whole = [Piece(index) for index in range(first, first + count)]
    for piece in pieces:
        number = piece.index - first
        texts[number].append(piece.text)
        whole[number].tokens += piece.tokens
        whole[number].finish_reason = piece.finish_reason
    for piece, text in zip(whole, texts, strict=True):
        piece.text = "".join(text)
    return whole


def late() -> ApiError:
    """Return what a client is told whose request waited too long."""
    message = "the queue is too long: the answer did not begin in time; try again later"
    return ApiError(503, message, code="queue_timeout", headers={"retry-after": "5"})


async def merged(answers: Sequence[Answering]) -> AsyncGenerator[Piece, None]:
    """Yield the pieces of several answers as they come; when one fails, all end."""
    if len(answers) == 1:
        async with contextlib.aclosing(answers[0].pieces()) as pieces:
            async for piece in pieces:
                yield piece
        return
    queue = asyncio.Queue[Piece | BaseException | None]()
    tasks = [asyncio.create_task(_feed(answer, queue.put_nowait)) for answer in answers]
    try:
        left = len(tasks)
        while left:
            come = await queue.get()
            if isinstance(come, BaseException):
                raise come
            if come is None:
                left -= 1
            else:
                yield come
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _feed(answer: Answering, put: Callable[[Piece | BaseException | None], None]) -> None:
    try:
        async with contextlib.aclosing(answer.pieces()) as pieces:
            async for piece in pieces:
                put(piece)
    except Exception as error:
        put(error)
    else:
        put(None)
