"""Many answers at once: requests join and leave at every step, and nobody's answer depends on the others.

One thread owns the model. Each step it takes the next token of every running answer and a slice of a prompt that is
still to be read through the network together. See docs/engine.md.
"""

from __future__ import annotations

import atexit
import dataclasses
import math
import operator
import os
import threading
import time
import weakref
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any

from gpt2chat.drafts import PromptLookup
from gpt2chat.errors import ConfigError, ContextError, EngineFull
from gpt2chat.generation import stop_watch
from gpt2chat.hardware import available_bytes
from gpt2chat.model import GPT2
from gpt2chat.paging import PAGE, memory_for
from gpt2chat.runtime import NativeRuntime, Runtime, as_runtime
from gpt2chat.sampling import GenerationConfig
from gpt2chat.slots import batched
from gpt2chat.steps import Stats, Steps
from gpt2chat.streams import FinishReason, Line, Request, Scores, Stream
from gpt2chat.tokenizer import Tokenizer

MOST_TOP = 20  # likeliest ids that are told of each place


class Engine:
    """Answers many requests at once with one model.

    `streams` answers run at a time, up to `waiting` requests wait, `per_client` of each client that gives a name (half
    of them by default). `memory` is the budget for keys and values in bytes: by default enough for all streams, at
    most half of what is free. Requests that begin alike share their pages unless `share` is off. The same seed gives
    the same ids whatever else runs. Repetition is guessed (`draft`) with the native decoder, which alone gives the same
    sums for one row and for several. Close it, or use it in a `with` block: its thread keeps it alive.
    """

    def __init__(
        self,
        model: GPT2 | Runtime,
        *,
        streams: int = 16,
        waiting: int = 512,
        per_client: int | None = None,
        memory: int | None = None,
        share: bool = True,
        draft: str = "auto",
    ) -> None:
        if draft not in ("auto", "lookup", "none"):
            raise ConfigError(f"draft: expected auto, lookup or none, got {draft!r}")
        _check_number("streams", streams, 1)
        _check_number("waiting", waiting, 0)
        for name, value in (("per_client", per_client), ("memory", memory)):
            if value is not None:
                _check_number(name, value, 1)
        self.runtime = batched(as_runtime(model), streams)
        self._exact = isinstance(self.runtime, NativeRuntime)
        self._guess, self._share = self._exact and draft != "none", share
        self.streams, self.waiting = streams, waiting
        self.per_client = per_client or max(1, waiting // 2)
        self._memory = memory_for(self.runtime, memory or self._enough(streams), share)
        self._line, self._running, self._dropped = Line(), list[Request](), deque[Request]()
        self._stats, self._numbers = Stats(), 0
        self._steps = Steps(self.runtime, self._memory, self._stats, self._exact)
        self._changed, self._closed, self._process = threading.Condition(), False, os.getpid()
        self._thread = threading.Thread(target=self._run, name="gpt2chat-engine", daemon=True)
        self._thread.start()
        _OPEN.add(self)

    def _enough(self, streams: int) -> int:
        """Return the bytes of a full context for all streams and half as much again, if there is so much."""
        c = self.runtime.config
        context = 8 * c.n_layer * -(-c.n_ctx // PAGE) * PAGE * c.n_embd  # float32; half of it in bfloat16
        return max(context, min(streams * context * 3 // 4, available_bytes() // 2))

    # -- called by any thread ------------------------------------------------------------------------------------

    def submit(
        self,
        prompt: Sequence[int],
        config: GenerationConfig | None = None,
        *,
        stop: Collection[int] = (),
        stop_strings: Iterable[str] = (),
        lead: str = "",
        until: Callable[[int], bool] | None = None,
        client: str = "",
        realm: str = "",
        deadline: float | None = None,
        logprobs: int | None = None,
    ) -> Stream:
        """Ask for an answer; it comes through the stream that is returned, without the id of `stop` that ends it.

        The id that completes one of `stop_strings` behind the `lead` of the answer is the last one. So is one for which
        `until`, called in the engine's thread, returns True. Pages are shared with requests of the same `realm` only.
        `deadline` is in seconds from now. With `logprobs` the stream's `take` tells how likely the model found each id,
        and so many likeliest ones. Raises ContextError for a prompt that leaves no room for an answer or needs more
        memory than there is, ConfigError for ids that the model does not have, EngineFull when too many requests wait.
        """
        config = config or GenerationConfig()
        ids = self._ids(prompt)
        limit = self._limit(ids, config)
        if logprobs is not None:
            _check_number("logprobs", logprobs, 0, MOST_TOP)
        watches = [until] if until else []
        if strings := tuple(stop_strings):
            watches.append(stop_watch(Tokenizer.gpt2().stream_decoder(), strings, lead))
        draft = PromptLookup() if self._guess else None
        asked = (ids, config, limit, stop, watches, client, _time(deadline), draft)
        return Stream(self._enter(Request(0, *asked, realm=realm, top=logprobs)), self._cancel, self._dropped.append)

    def score(
        self,
        ids: Sequence[int],
        start: int,
        top: int = 5,
        *,
        client: str = "",
        realm: str = "",
        deadline: float | None = None,
    ) -> Scores:
        """Ask how likely the model finds ids[start:], each behind those before it; the stream gives a `Drawn` for each.

        Nothing is drawn. `top` likeliest ids come with each. The ids may fill the context; the first cannot be scored.
        Raises what `submit` does.
        """
        ids, n_ctx = self._ids(ids), self.runtime.config.n_ctx
        if not 0 < len(ids) <= n_ctx:
            raise ContextError(f"prompt: expected 1 to {n_ctx} tokens, got {len(ids)}")
        _check_number("start", start, 1, len(ids))
        _check_number("top", top, 0, MOST_TOP)
        self._check_room(len(ids))
        asked = (ids, GenerationConfig(), len(ids) - start, (), (), client, _time(deadline), None)
        request = Request(0, *asked, realm=realm, top=top, start=start)
        if start == len(ids):
            request.finish("stop")
        return Scores(request if request.finish_reason else self._enter(request), self._cancel, self._dropped.append)

    def _enter(self, request: Request) -> Request:
        """Put a request in the line, if there is a place."""
        with self._changed:
            if self._closed or self._process != os.getpid():
                raise RuntimeError("the engine is closed" if self._closed else "the engine is of another process")
            self._admit(request.client)
            self._numbers += 1
            request.number = self._numbers
            self._line.add(request)
            self._changed.notify()
        return request

    def submit_many(self, prompt: Sequence[int], config: GenerationConfig, count: int, **options: Any) -> list[Stream]:
        """Ask for several answers to one prompt, which is read once; answer i has the seed of `config` plus i.

        The options are those of `submit` but `until`, which would be one for all.
        """
        if "until" in options:
            raise ConfigError("until: expected stop_strings, which each answer meets by itself")
        streams = list[Stream]()
        try:
            for number in range(count):
                seed = None if config.seed is None else (config.seed + number) % 2**63
                streams.append(self.submit(prompt, dataclasses.replace(config, seed=seed), **options))
        except BaseException:
            for stream in streams:
                stream.cancel()
            raise
        return streams

    def generate(self, prompt: Sequence[int], config: GenerationConfig, stop: Collection[int]) -> Iterator[int]:
        """Yield an answer's ids, as `Decoder.generate` does."""
        with self.submit(prompt, config, stop=stop) as stream:
            yield from stream

    def stats(self) -> Stats:
        """Return what was done so far; it never waits for a step."""
        with self._changed:
            values = self._stats.to_dict() | {"running": len(self._running), "waiting": len(self._line)}
        memory = self._memory
        values |= {"used_bytes": memory.used_bytes(), "kept_bytes": memory.kept_bytes()}
        return Stats(**values | {"budget_bytes": memory.budget_bytes()})  # type: ignore[arg-type]

    def close(self) -> None:
        """End all answers as cancelled, and the thread."""
        with self._changed:
            self._closed = True
            self._changed.notify()
        if self._thread is not threading.current_thread():
            self._thread.join()

    def __enter__(self) -> Engine:
        return self

    def __exit__(self, *_: Any) -> None:
        self.close()

    def _limit(self, prompt: list[int], config: GenerationConfig) -> int:
        """Return how long the answer may be."""
        n_ctx = self.runtime.config.n_ctx
        if not 0 < len(prompt) < n_ctx:
            raise ContextError(f"prompt: expected 1 to {n_ctx - 1} tokens, got {len(prompt)}")
        config.check_ids(self.runtime.config.vocab_size)
        limit = min(config.max_new_tokens, n_ctx - len(prompt))
        self._check_room(len(prompt) + limit)
        return limit

    def _check_room(self, length: int) -> None:
        if not self._memory.fits(length):
            room = self._memory.budget_bytes() >> 20
            raise ContextError(
                f"{length} tokens do not fit into {room} MB for keys and values; ask for fewer new tokens"
            )

    def _ids(self, prompt: Sequence[int]) -> list[int]:
        """Return a prompt as a list of whole numbers, which the model has."""
        try:
            ids = [operator.index(id) for id in prompt]
        except TypeError as error:
            raise ConfigError(f"prompt: expected ids, whole numbers in a row: {error}") from error
        vocab_size = self.runtime.config.vocab_size
        if ids and not 0 <= min(ids) <= max(ids) < vocab_size:
            raise ConfigError(f"prompt: expected ids from 0 to {vocab_size - 1}, got {min(ids)} to {max(ids)}")
        return ids

    def _admit(self, client: str) -> None:
        """Raise EngineFull unless there is a place to run or to wait in."""
        waiting, mine = len(self._line), self._line.of(client)
        beginning = max(0, self.streams - len(self._running))  # those who have only not been looked at yet
        if waiting >= self.waiting + beginning:
            self._stats.refused += 1
            raise EngineFull(f"{waiting} requests wait, which is the most; try again later")
        if client and mine >= self.per_client + beginning:
            self._stats.refused += 1
            raise EngineFull(f"{mine} requests of this client wait, which is the most; try again later")

    def _cancel(self, request: Request) -> None:
        if request.finish_reason:
            return
        request.cancelled = True
        with self._changed:
            if self._line.remove(request):
                self._note_end("cancelled")
                request.finish("cancelled")

    # -- the engine's thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._wait():
            began = time.perf_counter()
            try:
                self._step()
            except BaseException as error:  # a fault of the engine itself: all who run get it, and it begins anew
                self._end_all("error", error)
            self._stats.busy_s += time.perf_counter() - began
        with self._changed:
            self._running += self._line.clear()
        self._end_all("cancelled")

    def _end_all(self, reason: FinishReason, error: BaseException | None = None) -> None:
        """End all who run, whatever state they are in, and take all memory back."""
        left, self._running = self._running, []
        for request in left:
            request.held = None
            self._note_end(reason)
            request.finish(reason, error)
        self._memory.begin_anew()

    def _wait(self) -> bool:
        """Wait for something to do; return False when the engine is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._running or len(self._line))
            return not self._closed

    def _step(self) -> None:
        """Let requests leave and join, and compute the next tokens of all."""
        now = time.monotonic()
        while self._dropped:
            self._cancel(self._dropped.popleft())
        for request in list(self._running):
            if request.cancelled:
                self._leave(request, "cancelled")
            elif request.deadline is not None and request.deadline <= now:
                self._leave(request, "deadline")
        with self._changed:
            for request in self._line.late(now):
                self._note_end("deadline")
                request.finish("deadline")
            self._join()
        for request, reason, error in self._steps.run(self._running):
            self._leave(request, reason, error)

    def _join(self) -> None:
        """Let those who wait begin, in turn, as long as there is room."""
        while len(self._running) < self.streams and (request := self._line.first()):
            if self._share and self._exact and self._will_be_read(request):
                return
            try:
                length = request.prompt_tokens + request.limit
                held = self._memory.hold(request.ids[: request.prompt_tokens], length, request.realm)
            except BaseException as error:
                self._line.remove(request)
                self._note_end("error")
                request.finish("error", error)
                continue
            if held is None:
                return
            self._line.remove(request)
            request.held, request.cached_tokens, request.started = held, held.cached, True
            self._stats.prompt_tokens += request.to_read
            self._stats.cached_tokens += held.cached
            self._running.append(request)

    def _will_be_read(self, request: Request) -> bool:
        """Whether another request is reading a prompt that begins as this one does, so that waiting saves work."""
        for other in self._running:
            if other.held and other.in_prompt and other.realm == request.realm:
                most = min(request.prompt_tokens, other.to_read) - 1
                same = next((i for i in range(most) if request.ids[i] != other.ids[i]), most)
                if same // PAGE * PAGE > other.held.cache.length:
                    return True
        return False

    def _leave(self, request: Request, reason: FinishReason, error: BaseException | None = None) -> None:
        """End a request and take back what it held."""
        self._running.remove(request)
        held, request.held = request.held, None
        self._note_end(reason)
        request.finish(reason, error)
        if held:
            self._memory.release(held)

    def _note_end(self, reason: FinishReason) -> None:
        stats = self._stats
        stats.cancelled += reason == "cancelled"
        stats.failed += reason == "error"
        stats.finished += reason not in ("cancelled", "error")


def _check_number(name: str, value: object, least: int, most: float = math.inf) -> None:
    if type(value) is not int or not least <= value <= most:
        expected = f"{least} or more" if most == math.inf else f"{least} to {most}"
        raise ConfigError(f"{name}: expected a whole number, {expected}, got {value!r}")


def _time(deadline: float | None) -> float | None:
    """Return when a time is over that is given in seconds from now."""
    if deadline is not None and math.isnan(deadline):
        raise ConfigError("deadline: expected seconds, got nan")
    return None if deadline is None else time.monotonic() + deadline


_OPEN: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """End engines that were left open: a thread in the middle of a pass would abort the interpreter."""
    for engine in list(_OPEN):
        engine.close()
