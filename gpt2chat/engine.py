"""Many answers at once: requests join and leave at every step, and nobody's answer depends on the others.

One thread owns the model. Each step it takes the next token of every running answer and a slice of a prompt that is
still to be read through the network together. See docs/engine.md.
"""

from __future__ import annotations

import atexit
import dataclasses
import threading
import time
import weakref
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from gpt2chat.drafts import PromptLookup
from gpt2chat.errors import ConfigError, ContextError, EngineFull
from gpt2chat.generation import checked
from gpt2chat.hardware import available_bytes
from gpt2chat.model import GPT2
from gpt2chat.paging import PAGE, memory_for
from gpt2chat.runtime import ROWS, NativeRuntime, Part, Runtime, as_runtime
from gpt2chat.sampling import GenerationConfig, Scores
from gpt2chat.slices import Slice
from gpt2chat.slots import batched
from gpt2chat.streams import FinishReason, Line, Request, Stream

GUESSING = 4  # answers at once up to which guesses are checked: beyond, the rows are worth more to others
FIXED_SLICE = 64  # of prompts where sums depend on how many rows are computed together


@dataclass
class Stats:
    """What an engine has done so far, and what it holds."""

    running: int = 0
    waiting: int = 0
    finished: int = 0
    cancelled: int = 0
    refused: int = 0
    failed: int = 0
    steps: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    new_tokens: int = 0
    drafted_tokens: int = 0
    accepted_tokens: int = 0
    busy_s: float = 0.0
    used_bytes: int = 0
    kept_bytes: int = 0
    budget_bytes: int = 0

    def to_dict(self) -> dict[str, float]:
        """Return all figures by name."""
        return {field.name: getattr(self, field.name) for field in dataclasses.fields(self)}


@dataclass(frozen=True)
class _Work:
    """What one request computes in a step."""

    request: Request
    part: Part
    guesses: list[int] = dataclasses.field(default_factory=list)
    reading: bool = False  # of the prompt


class Engine:
    """Answers many requests at once with one model.

    `streams` answers run at a time, up to `waiting` requests wait, `per_client` of each client. `memory` is the budget
    for keys and values in bytes: by default enough for all streams, at most half of what is free. Requests that begin
    alike share their pages unless `share` is off. With the native decoder the same seed gives the same ids whatever
    else runs; through torch, requests take turns within a step for that. Close it, or use it in a `with` block.
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
        for name, value, least in (("streams", streams, 1), ("waiting", waiting, 0), ("memory", memory or 1, 1)):
            if type(value) is not int or value < least:
                raise ConfigError(f"{name}: expected a whole number, {least} or more, got {value!r}")
        self.runtime = batched(as_runtime(model), streams)
        self._exact = isinstance(self.runtime, NativeRuntime)
        self._guess = draft == "lookup" or (draft == "auto" and self._exact)
        self.streams, self.waiting, self.per_client = streams, waiting, per_client or waiting
        self._share, self._budget = share, memory or self._enough(streams)
        self._memory = memory_for(self.runtime, self._budget, share)
        self._line, self._running = Line(), list[Request]()
        self._slice, self._stats, self._numbers = Slice(), Stats(), 0
        self._changed, self._closed = threading.Condition(), False
        self._thread = threading.Thread(target=self._run, name="gpt2chat-engine", daemon=True)
        self._thread.start()
        _OPEN.add(self)

    def _enough(self, streams: int) -> int:
        """Return the bytes of a full context for all streams and half as much again, if there is so much."""
        c = self.runtime.config
        context = 8 * c.n_layer * c.n_ctx * c.n_embd  # float32; half of it in bfloat16
        return max(context, min(streams * context * 3 // 4, available_bytes() // 2))

    # -- called by any thread ------------------------------------------------------------------------------------

    def submit(
        self,
        prompt: Sequence[int],
        config: GenerationConfig | None = None,
        *,
        stop: Collection[int] = (),
        until: Callable[[int], bool] | None = None,
        client: str = "",
        deadline: float | None = None,
    ) -> Stream:
        """Ask for an answer; it comes through the stream that is returned, without the id of `stop` that ends it.

        `until` is called in the engine's thread with each id and ends the answer behind it by returning True.
        `deadline` is in seconds from now. Raises ContextError for a prompt that leaves no room for an answer or needs
        more memory than there is, EngineFull when too many requests wait.
        """
        config = config or GenerationConfig()
        limit = self._limit(prompt, config)
        end = None if deadline is None else time.monotonic() + deadline
        draft = PromptLookup() if self._guess else None
        with self._changed:
            if self._closed:
                raise RuntimeError("the engine is closed")
            self._admit(client)
            self._numbers += 1
            request = Request(self._numbers, prompt, config, limit, stop, until, client, end, draft)
            self._line.add(request)
            self._changed.notify()
        return Stream(request, self._cancel)

    def submit_many(self, prompt: Sequence[int], config: GenerationConfig, count: int, **options: Any) -> list[Stream]:
        """Ask for several answers to one prompt, which is read once; answer i has the seed of `config` plus i."""
        streams = []
        for number in range(count):
            seed = None if config.seed is None else (config.seed + number) % 2**63
            streams.append(self.submit(prompt, dataclasses.replace(config, seed=seed), **options))
        return streams

    def generate(self, prompt: Sequence[int], config: GenerationConfig, stop: Collection[int]) -> Iterator[int]:
        """Yield an answer's ids, as `Decoder.generate` does."""
        with self.submit(prompt, config, stop=stop) as stream:
            yield from stream

    def stats(self) -> Stats:
        """Return what was done so far."""
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

    def _limit(self, prompt: Sequence[int], config: GenerationConfig) -> int:
        """Return how long the answer may be."""
        n_ctx, vocab_size = self.runtime.config.n_ctx, self.runtime.config.vocab_size
        if not 0 < len(prompt) < n_ctx:
            raise ContextError(f"prompt: expected 1 to {n_ctx - 1} tokens, got {len(prompt)}")
        if not 0 <= min(prompt) <= max(prompt) < vocab_size:
            raise ConfigError(f"prompt: expected ids from 0 to {vocab_size - 1}, got {min(prompt)} to {max(prompt)}")
        limit = min(config.max_new_tokens, n_ctx - len(prompt))
        if not self._memory.fits(len(prompt) + limit):
            room, asked = self._memory.budget_bytes() >> 20, len(prompt) + limit
            raise ContextError(
                f"{asked} tokens do not fit into {room} MB for keys and values; ask for fewer new tokens"
            )
        return limit

    def _admit(self, client: str) -> None:
        waiting, mine = len(self._line), self._line.of(client)
        if waiting >= self.waiting and (waiting or len(self._running) >= self.streams):
            self._stats.refused += 1
            raise EngineFull(f"{waiting} requests wait, which is the most; try again later")
        if mine >= self.per_client:
            self._stats.refused += 1
            raise EngineFull(f"{mine} requests of this client wait, which is the most; try again later")

    def _cancel(self, request: Request) -> None:
        if request.finish_reason:
            return
        request.cancelled = True
        with self._changed:
            if self._line.remove(request):
                self._stats.cancelled += 1
                request.finish("cancelled")

    # -- the engine's thread -------------------------------------------------------------------------------------

    def _run(self) -> None:
        while self._wait():
            began = time.perf_counter()
            try:
                self._step()
            except Exception as error:  # a fault of the engine itself: all who run get it, and it begins anew
                for request in list(self._running):
                    self._leave(request, "error", error)
                self._memory = memory_for(self.runtime, self._budget, self._share)
            self._stats.busy_s += time.perf_counter() - began
        with self._changed:
            left = [*self._running, *self._line.clear()]
        for request in left:
            request.finish("cancelled")
        self._running = []

    def _wait(self) -> bool:
        """Wait for something to do; return False when the engine is closed."""
        with self._changed:
            self._changed.wait_for(lambda: self._closed or self._running or len(self._line))
            return not self._closed

    def _step(self) -> None:
        """Let requests leave and join, and compute the next tokens of all."""
        now = time.monotonic()
        for request in list(self._running):
            if request.cancelled:
                self._leave(request, "cancelled")
            elif request.deadline is not None and request.deadline <= now:
                self._leave(request, "deadline")
        with self._changed:
            for request in self._line.late(now):
                self._stats.finished += 1
                request.finish("deadline")
            self._join()
        work = self._work()
        if work:
            self._stats.steps += 1
            began = time.perf_counter()
            self._compute(work)
            self._slice.note(sum(len(w.part.ids) for w in work), time.perf_counter() - began)

    def _join(self) -> None:
        """Let those who wait begin, in turn, as long as there is room."""
        while len(self._running) < self.streams and (request := self._line.first()):
            if self._share and self._exact and self._will_be_read(request):
                return
            held = self._memory.hold(request.ids, request.prompt_tokens + request.limit)
            if held is None:
                return
            self._line.remove(request)
            request.held, request.cached_tokens = held, held.cached
            self._stats.prompt_tokens += request.prompt_tokens
            self._stats.cached_tokens += held.cached
            self._running.append(request)

    def _will_be_read(self, request: Request) -> bool:
        """Whether another request is reading a prompt that begins as this one does, so that waiting saves work."""
        for other in self._running:
            if other.held and other.in_prompt:
                most = min(len(request.ids), other.prompt_tokens) - 1
                same = next((i for i in range(most) if request.ids[i] != other.ids[i]), most)
                if same // PAGE * PAGE > other.held.cache.length:
                    return True
        return False

    def _work(self) -> list[_Work]:
        """Choose what is computed in this step."""
        work, reading = list[_Work](), list[Request]()
        for request in self._running:
            if request.in_prompt:
                reading.append(request)
            elif request.held:
                guesses = self._guesses(request)
                part = Part([request.ids[-1], *guesses], request.held.cache, 1 + len(guesses))
                work.append(_Work(request, part, guesses))
        rows = self._slice.rows(sum(len(w.part.ids) for w in work))
        for request in reading:
            if rows > 0 and request.held:
                past = request.held.cache.length
                end = min(past + (rows if self._exact else FIXED_SLICE), request.prompt_tokens)
                part = Part(request.ids[past:end], request.held.cache, int(end == request.prompt_tokens))
                work.append(_Work(request, part, reading=True))
                rows -= end - past
        return work

    def _guesses(self, request: Request) -> list[int]:
        if not request.draft or len(self._running) > GUESSING:
            return []
        most = min(request.pace.most(), request.limit - request.drawn - 1, ROWS // 16 // len(self._running))
        return request.draft.propose(request.ids, most, request.sampler, request.drawn) if most > 0 else []

    def _compute(self, work: list[_Work]) -> None:
        """Run the network and hand out what was drawn; a fault ends the request that it belongs to."""
        ready = [w for w in work if self._guarded(w.request, lambda w=w: self._extend(w))]  # type: ignore[misc]
        try:
            rows = self._logits([w.part for w in ready])
        except Exception:  # whose fault it is, is seen one by one
            for w in ready:
                self._guarded(w.request, lambda w=w: self._learn(w, self._logits([w.part])))  # type: ignore[misc]
            return
        done = 0
        for w in ready:
            own = rows[done : done + w.part.wanted]
            done += w.part.wanted
            self._guarded(w.request, lambda w=w, own=own: self._learn(w, own))  # type: ignore[misc]

    def _guarded(self, request: Request, act: Callable[[], None]) -> bool:
        try:
            act()
        except Exception as error:
            self._leave(request, "error", error)
            return False
        return True

    def _extend(self, work: _Work) -> None:
        assert work.request.held
        self._memory.extend(work.request.held, work.part.cache.length + len(work.part.ids))

    def _logits(self, parts: Sequence[Part]) -> Scores:
        """Return the wanted logits of all parts (wanted, V)."""
        if not parts:
            return np.empty((0, 0), np.float32)
        return self.runtime.forward_batch(parts).float().cpu().numpy()

    def _learn(self, work: _Work, rows: Scores) -> None:
        """Draw from the logits of one request and hand over its ids."""
        request, held = work.request, work.request.held
        assert held
        tokens = list[int]()
        if work.part.wanted:
            tokens = checked(rows, work.guesses, request.sampler, request.ids, request.drawn, request.stop)
            held.cache.truncate(len(request.ids) + len(tokens) - 1)
            self._count(request, len(work.guesses), len(tokens))
        self._memory.note(held, [*request.ids, *tokens] if tokens else request.ids)
        for token in tokens:
            if token in request.stop:
                self._leave(request, "stop")
                break
            request.ids.append(token)
            request.drawn += 1
            request.put(token)
            ended = request.until is not None and request.until(token)
            if ended or request.drawn == request.limit:
                self._leave(request, "stop" if ended else "length")
                break

    def _count(self, request: Request, guessed: int, drawn: int) -> None:
        if guessed:
            request.pace.note(guessed, drawn - 1)
            request.drafted_tokens += guessed
            request.accepted_tokens += drawn - 1
            self._stats.drafted_tokens += guessed
            self._stats.accepted_tokens += drawn - 1
        self._stats.new_tokens += drawn

    def _leave(self, request: Request, reason: FinishReason, error: BaseException | None = None) -> None:
        """End a request and take back what it held."""
        self._running.remove(request)
        held, request.held = request.held, None
        names: dict[FinishReason, str] = {"cancelled": "cancelled", "error": "failed"}
        name = names.get(reason, "finished")
        setattr(self._stats, name, getattr(self._stats, name) + 1)
        request.finish(reason, error)
        if held:
            self._memory.release(held)


_OPEN: weakref.WeakSet[Engine] = weakref.WeakSet()


@atexit.register
def _close_all() -> None:
    """End engines that were left open: a thread in the middle of a pass would abort the interpreter."""
    for engine in list(_OPEN):
        engine.close()
