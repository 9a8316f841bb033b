"""An answer on its way from the engine's thread to whoever asked, and the line of those who wait."""

from __future__ import annotations

import asyncio
import contextlib
import heapq
import threading
import time
from collections import OrderedDict, deque
from collections.abc import Callable, Collection, Iterator, Sequence
from typing import Any, Generic, Literal, NamedTuple, Self, TypeVar

from gpt2chat.drafts import Draft, Pace
from gpt2chat.paging import Held
from gpt2chat.sampling import GenerationConfig, Sampler

# an end id, a stop string; the longest answer or the end of the context; the reader left; the time was over; a fault
FinishReason = Literal["stop", "length", "cancelled", "deadline", "error"]
Item = TypeVar("Item")


class Drawn(NamedTuple):
    """An id, and if that was asked for how likely the model found it by itself: before any option had its say.

    `logprob` is a natural logarithm; `top` holds the likeliest (id, logprob), best first; `rank` 1 is the likeliest.
    """

    id: int
    logprob: float | None = None
    top: tuple[tuple[int, float], ...] = ()
    rank: int | None = None


class Request:
    """What the engine knows of one answer. Only its thread writes, but for `cancelled`.

    `top` likeliest ids are wanted with each of the answer, None if not even its own probability. With `start` nothing
    is drawn: the ids from there on are scored. `realm` is with whom pages may be shared.
    """

    def __init__(
        self,
        number: int,
        prompt: Sequence[int],
        config: GenerationConfig,
        limit: int,
        stop: Collection[int],
        watches: Sequence[Callable[[int], bool]],
        client: str,
        deadline: float | None,
        draft: Draft | None,
        *,
        realm: str = "",
        top: int | None = None,
        start: int | None = None,
    ) -> None:
        self.number, self.ids, self.realm, self.top = number, list(prompt), realm, top
        self.scored = start is not None
        self.prompt_tokens = len(prompt) if start is None else start
        self.to_read = len(prompt) - self.scored  # the last id that is scored only has to be known
        self.config, self.limit, self.stop, self.watches = config, limit, frozenset(stop), watches
        self.client, self.deadline = client, deadline
        self.sampler, self.draft, self.pace = Sampler(config), draft, Pace()
        self.held: Held | None = None
        self.drawn = self.cached_tokens = self.drafted_tokens = self.accepted_tokens = 0
        self.cancelled = self.started = False
        self.submitted = time.perf_counter()
        self.first_token_s: float | None = None
        self.finish_reason: FinishReason | None = None
        self.error: BaseException | None = None
        self._tokens = deque[Drawn]()
        self._ready = threading.Condition()
        self._waiters: list[tuple[asyncio.AbstractEventLoop, asyncio.Future[None]]] = []

    @property
    def in_prompt(self) -> bool:
        """Whether part of the prompt, or of what is scored, is still to be read."""
        return self.held is not None and self.held.cache.length < self.to_read

    def ends_with(self, token: int) -> bool:
        """Whether this id is the last one."""
        return any(watch(token) for watch in self.watches)

    def put(self, drawn: Drawn) -> None:
        """Hand over one id."""
        if self.first_token_s is None:
            self.first_token_s = time.perf_counter() - self.submitted
        with self._ready:
            self._tokens.append(drawn)
            self._tell()

    def finish(self, reason: FinishReason, error: BaseException | None = None) -> None:
        """End the answer."""
        with self._ready:
            self.finish_reason, self.error = reason, error
            self._tell()

    def _tell(self) -> None:
        self._ready.notify_all()
        waiters, self._waiters = self._waiters, []
        for loop, future in waiters:
            with contextlib.suppress(RuntimeError):  # the loop is closed: nobody reads any more
                loop.call_soon_threadsafe(_wake, future)

    def take(self) -> Drawn | None:
        """Wait for the next id; None at the end."""
        with self._ready:
            self._ready.wait_for(lambda: self._tokens or self.finish_reason)
            return self._tokens.popleft() if self._tokens else None

    def take_all(self) -> list[Drawn]:
        """Return all ids that are there."""
        with self._ready:
            taken = list(self._tokens)
            self._tokens.clear()
        return taken

    async def take_later(self) -> Drawn | None:
        """Wait for the next id without holding up the event loop; None at the end."""
        while await self.wait():
            with self._ready:
                if self._tokens:  # else another reader was faster
                    return self._tokens.popleft()
        return None

    async def wait(self) -> bool:
        """Wait, without holding up the event loop, until an id is there; return False at the end."""
        while True:
            with self._ready:
                if self._tokens or self.finish_reason:
                    return bool(self._tokens)
                loop = asyncio.get_running_loop()
                waiter = (loop, loop.create_future())
                self._waiters.append(waiter)
            try:
                await waiter[1]
            except asyncio.CancelledError:
                with self._ready, contextlib.suppress(ValueError):
                    self._waiters.remove(waiter)
                raise


def _wake(future: asyncio.Future[None]) -> None:
    if not future.done():
        future.set_result(None)


class Reader(Generic[Item]):
    """One answer as it comes: iterate, or `async for`; leaving early, or `cancel`, ends the computation.

    An event loop with many answers takes in bulk: `while await stream.wait(): … stream.take()`. After the end,
    `finish_reason` is "stop", "length", "cancelled" or "deadline". A fault is raised where the next id would have been.
    """

    def __init__(self, request: Request, cancel: Callable[[Request], None], dropped: Callable[[Request], None]) -> None:
        self._request, self._cancel, self._dropped = request, cancel, dropped
        self.worker = 0  # the number of its engine in a fleet

    def _item(self, drawn: Drawn) -> Item:
        """Return what the iteration gives."""
        raise NotImplementedError

    def __iter__(self) -> Iterator[Item]:
        return self

    def __next__(self) -> Item:
        return self._given(self._request.take(), StopIteration)

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Item:
        with self._leaving():
            drawn = await self._request.take_later()
        return self._given(drawn, StopAsyncIteration)

    def take(self) -> list[Drawn]:
        """Return, without waiting, all that came since the last time; an empty list if that is nothing."""
        return self._request.take_all()

    async def wait(self) -> bool:
        """Wait until there is something to `take`; return False when the answer has ended and all of it was taken.

        Raises the fault that ended the answer, if one did. A task that is cancelled here cancels the answer.
        """
        with self._leaving():
            there = await self._request.wait()
        if not there and self._request.error is not None:
            raise self._request.error
        return there

    @contextlib.contextmanager
    def _leaving(self) -> Iterator[None]:
        """Cancel the answer with the task that waits for it."""
        try:
            yield
        except asyncio.CancelledError:
            self.cancel()
            raise

    def _given(self, drawn: Drawn | None, end: type[Exception]) -> Item:
        if drawn is not None:
            return self._item(drawn)
        if self._request.error is not None:
            raise self._request.error
        raise end

    def cancel(self) -> None:
        """End the answer within one step of the engine, also while it waits; what came so far can still be read."""
        self._cancel(self._request)

    def close(self) -> None:
        """Cancel, as a generator does."""
        self.cancel()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: Any) -> None:
        self.cancel()

    def drop(self) -> None:
        """Cancel without waiting for a lock; the engine hears of it at its next step."""
        self._request.cancelled = True
        self._dropped(self._request)

    def __del__(self) -> None:
        self.drop()  # this may come in the middle of anything

    @property
    def finish_reason(self) -> FinishReason | None:
        """Why the answer ended; None before."""
        return self._request.finish_reason

    @property
    def started(self) -> bool:
        """Whether it has left the line of those who wait, and was given memory."""
        return self._request.started

    @property
    def prompt_tokens(self) -> int:
        """How long the prompt is."""
        return self._request.prompt_tokens

    @property
    def cached_tokens(self) -> int:
        """How many tokens of the prompt were there from earlier requests."""
        return self._request.cached_tokens

    @property
    def new_tokens(self) -> int:
        """How many ids were drawn or scored so far."""
        return self._request.drawn

    @property
    def drafted_tokens(self) -> int:
        """How many guesses were checked."""
        return self._request.drafted_tokens

    @property
    def accepted_tokens(self) -> int:
        """How many guesses the model took."""
        return self._request.accepted_tokens

    @property
    def first_token_s(self) -> float | None:
        """Seconds from the request to the first id."""
        return self._request.first_token_s


class Stream(Reader[int]):
    """The ids of an answer."""

    def _item(self, drawn: Drawn) -> int:
        return drawn.id


class Scores(Reader[Drawn]):
    """How likely the model found ids that were there before."""

    def _item(self, drawn: Drawn) -> Drawn:
        return drawn


class Line:
    """Requests that wait: each client's in order, the clients in turn."""

    def __init__(self) -> None:
        self._clients: OrderedDict[str, OrderedDict[int, Request]] = OrderedDict()
        self._deadlines: list[tuple[float, int, Request]] = []
        self._count = 0

    def __len__(self) -> int:
        return self._count

    def of(self, client: str) -> int:
        """Return how many requests of a client wait."""
        return len(self._clients.get(client, ()))

    def add(self, request: Request) -> None:
        """Put a request behind those of its client."""
        self._clients.setdefault(request.client, OrderedDict())[request.number] = request
        self._count += 1
        if request.deadline is not None:
            if len(self._deadlines) > 2 * self._count + 64:  # most of them have left
                every = (request for requests in self._clients.values() for request in requests.values())
                self._deadlines = [(r.deadline, r.number, r) for r in every if r.deadline is not None]
                heapq.heapify(self._deadlines)
            else:
                heapq.heappush(self._deadlines, (request.deadline, request.number, request))

    def first(self) -> Request | None:
        """Return whose turn it is."""
        for requests in self._clients.values():
            return next(iter(requests.values()))
        return None

    def remove(self, request: Request) -> bool:
        """Take a request out, if it waits; its client is the last to have a turn again."""
        requests = self._clients.get(request.client, OrderedDict())
        if requests.pop(request.number, None) is None:
            return False
        self._count -= 1
        self._clients.move_to_end(request.client)
        if not requests:
            del self._clients[request.client]
        return True

    def late(self, now: float) -> list[Request]:
        """Take out and return the requests whose time is over."""
        late = []
        while self._deadlines and self._deadlines[0][0] <= now:
            request = heapq.heappop(self._deadlines)[2]
            if self.remove(request):
                late.append(request)
        return late

    def clear(self) -> list[Request]:
        """Take out and return all requests."""
        every = [request for requests in self._clients.values() for request in requests.values()]
        self._clients, self._deadlines, self._count = OrderedDict(), [], 0
        return every
