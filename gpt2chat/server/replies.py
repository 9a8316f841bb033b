"""Responses that end their work when the client leaves."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, Awaitable, Callable, Iterable, Mapping
from typing import Any, TypeVar

from starlette.responses import Response
from starlette.types import Receive, Scope, Send

T = TypeVar("T")
LEAVING = "leaving"  # in scope["state"]: what is called the moment the client leaves
LEFT = "left"  # in scope["state"]: that it has left


class ClientLeft(Exception):
    """The client closed the connection before its answer was there."""


def at_leaving(scope: Scope, acts: Iterable[Callable[[], None]]) -> None:
    """Have work ended the moment the client leaves, or at once if it has left: tasks hear of it some turns later."""
    state = scope.setdefault("state", {})
    state.setdefault(LEAVING, []).extend(acts)
    if LEFT in state:
        leave(scope)


def leave(scope: Scope) -> None:
    """End the work of a request whose client has left; the connection calls it."""
    state = scope.setdefault("state", {})
    state[LEFT] = True
    for act in state.pop(LEAVING, ()):
        act()


async def unless_left(receive: Receive, work: Awaitable[T]) -> T:
    """Wait for work as long as the client does, else cancel it and raise ClientLeft; the body must have been read."""
    working, leaving = asyncio.ensure_future(work), asyncio.create_task(_left(receive))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientLeft
    finally:
        await _ended(working, leaving)


async def _left(receive: Receive) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass


async def _ended(*tasks: asyncio.Future[Any]) -> None:
    """Cancel tasks and wait until they have ended."""
    for task in tasks:
        task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await asyncio.gather(*tasks, return_exceptions=True)


class EventStream(Response):
    """Server-sent events (https://html.spec.whatwg.org/multipage/server-sent-events.html)."""

    media_type = "text/event-stream"

    def __init__(
        self, events: AsyncGenerator[tuple[bytes, bool], None], headers: Mapping[str, str], at_end: Callable[[], None]
    ) -> None:
        """Take events, each with whether more follow, and what is called once they have ended or were left."""
        super().__init__(headers={**headers, "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events, self._at_end = events, at_end

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Send events until they end or the client leaves, which closes their generator."""
        try:
            with contextlib.suppress(ClientLeft):
                await unless_left(receive, self._write(send))
        finally:
            self._at_end()

    async def _write(self, send: Send) -> None:
        async with contextlib.aclosing(self._events) as events:
            await send({"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers})
            async for data, more in events:
                await send({"type": "http.response.body", "body": data, "more_body": more})
