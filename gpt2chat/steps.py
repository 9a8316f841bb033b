"""One step of the engine: what each request computes, one pass through the network for all, and what is drawn."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from gpt2chat.generation import checked
from gpt2chat.likelihood import likelihoods
from gpt2chat.paging import Memory
from gpt2chat.runtime import ROWS, Cache, Part, Runtime
from gpt2chat.sampling import Scores
from gpt2chat.slices import Slice
from gpt2chat.streams import Drawn, FinishReason, Request

GUESSING = 4  # answers at once up to which guesses are checked: beyond, the rows are worth more to others
FIXED_SLICE = 64  # of prompts where sums depend on how many rows are computed together
SCORED = 64  # rows of logits of one step for ids that are scored: 13 MB


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
        return dataclasses.asdict(self)


class Ending(NamedTuple):
    """A request that ends with this step, and why."""

    request: Request
    reason: FinishReason
    error: BaseException | None = None


@dataclass(frozen=True)
class Work:
    """What one request computes in a step."""

    request: Request
    part: Part
    guesses: list[int]


class Steps:
    """Runs steps for those who run. `exact` says that sums do not depend on how many rows are computed together."""

    def __init__(self, runtime: Runtime, memory: Memory, stats: Stats, exact: bool) -> None:
        self._runtime, self._memory, self._stats, self._exact = runtime, memory, stats, exact
        self._slice = Slice()

    def run(self, running: Sequence[Request]) -> list[Ending]:
        """Compute the next tokens of answers and a slice of prompts, and hand out what was drawn.

        A fault ends the request that it belongs to.
        """
        work = self._chosen(running)
        if not work:
            return []
        self._stats.steps += 1
        began = time.perf_counter()
        endings = self._computed(work)
        self._slice.note(sum(len(w.part.ids) for w in work), time.perf_counter() - began)
        return endings

    def _chosen(self, running: Sequence[Request]) -> list[Work]:
        """Choose what is computed."""
        work, reading = list[Work](), list[Request]()
        for request in running:
            if request.in_prompt:
                reading.append(request)
            elif request.held:
                guesses = self._guesses(request, len(running))
                part = Part([request.ids[-1], *guesses], request.held.cache, 1 + len(guesses))
                work.append(Work(request, part, guesses))
        rows, scored = self._slice.rows(sum(len(w.part.ids) for w in work)), SCORED
        for request in reading:
            if rows > 0 and request.held and (scored > 0 or not request.scored):
                part = self._slice_of(request, request.held.cache, rows, scored)
                work.append(Work(request, part, []))
                rows -= len(part.ids)
                scored -= part.wanted if request.scored else 0
        return work

    def _slice_of(self, request: Request, cache: Cache, rows: int, scored: int) -> Part:
        """Return the next ids of a prompt; behind its last one logits are wanted, when ids are scored for `scored`."""
        past, first = cache.length, request.prompt_tokens - 1
        end = min(past + (rows if self._exact else FIXED_SLICE), request.to_read)
        if request.scored and self._exact:
            end = min(end, max(past, first) + scored)
        return Part(request.ids[past:end], cache, max(0, end - max(past, first)))

    def _guesses(self, request: Request, running: int) -> list[int]:
        if not request.draft or running > GUESSING:
            return []
        most = min(request.pace.most(), request.limit - request.drawn - 1, ROWS // 16 // running)
        return request.draft.propose(request.ids, most, request.sampler, request.drawn) if most > 0 else []

    def _computed(self, work: list[Work]) -> list[Ending]:
        """Run the network and draw."""
        endings = list[Ending]()

        def guarded(w: Work, act: Callable[[], FinishReason | None]) -> bool:
            try:
                reason = act()
            except BaseException as error:  # whatever a request's own code raises ends that request alone
                endings.append(Ending(w.request, "error", error))
                return False
            if reason:
                endings.append(Ending(w.request, reason))
            return True

        ready = [w for w in work if guarded(w, lambda w=w: self._extend(w))]  # type: ignore[misc]
        try:
            rows = self._logits([w.part for w in ready])
        except BaseException:  # whose fault it is, is seen one by one
            for w in ready:
                guarded(w, lambda w=w: self._learn(w, self._logits([w.part])))  # type: ignore[misc]
            return endings
        done = 0
        for w in ready:
            own = rows[done : done + w.part.wanted]
            done += w.part.wanted
            guarded(w, lambda w=w, own=own: self._learn(w, own))  # type: ignore[misc]
        return endings

    def _extend(self, work: Work) -> None:
        assert work.request.held
        self._memory.extend(work.request.held, work.part.cache.length + len(work.part.ids))

    def _logits(self, parts: Sequence[Part]) -> Scores:
        """Return the wanted logits of all parts (wanted, V)."""
        if not parts:
            return np.empty((0, 0), np.float32)
        return self._runtime.forward_batch(parts).float().cpu().numpy()

    def _learn(self, work: Work, rows: Scores) -> FinishReason | None:
        """Draw from the logits of one request and hand over its ids; return why it ends, if it does."""
        request, held = work.request, work.request.held
        assert held
        if request.scored:
            return self._score(work, rows)
        tokens = list[int]()
        if work.part.wanted:
            tokens = checked(rows, work.guesses, request.sampler, request.ids, request.drawn, request.stop)
            held.cache.truncate(len(request.ids) + len(tokens) - 1)
            self._count(request, len(work.guesses), len(tokens))
        self._memory.note(held, [*request.ids, *tokens] if tokens else request.ids)
        for drawn in _judged(rows[: len(tokens)], tokens, request.top):
            token = drawn.id
            if token in request.stop:
                return "stop"
            request.ids.append(token)
            request.drawn += 1
            request.put(drawn)
            if request.ends_with(token):
                return "stop"
            if request.drawn == request.limit:
                return "length"
        return None

    def _score(self, work: Work, rows: Scores) -> FinishReason | None:
        """Hand over how likely the model found the ids behind those of a slice."""
        request, held = work.request, work.request.held
        assert held
        self._memory.note(held, request.ids)
        end = held.cache.length + 1
        for drawn in _judged(rows, request.ids[end - len(rows) : end], request.top):
            request.drawn += 1
            request.put(drawn)
        return None if request.in_prompt else "stop"

    def _count(self, request: Request, guessed: int, drawn: int) -> None:
        if guessed:
            request.pace.note(guessed, drawn - 1)
            request.drafted_tokens += guessed
            request.accepted_tokens += drawn - 1
            self._stats.drafted_tokens += guessed
            self._stats.accepted_tokens += drawn - 1
        self._stats.new_tokens += drawn


def _judged(rows: Scores, ids: Sequence[int], top: int | None) -> list[Drawn]:
    """Return ids with what the model found of them in their rows of logits, if that is wanted."""
    if top is None or not ids:
        return [Drawn(id) for id in ids]
    found = likelihoods(rows, ids, top)
    return [Drawn(id, each.logprob, each.top, each.rank) for id, each in zip(ids, found, strict=True)]
