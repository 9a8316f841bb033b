"""The app on its sockets: uvicorn with deadlines for slow clients, a bound on connections, and an orderly end."""

from __future__ import annotations

import asyncio
import contextlib
import errno
import functools
import http
import signal
import socket
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from types import FrameType
from typing import Any, cast

import h11
import uvicorn
from starlette.types import ASGIApp, Scope
from uvicorn.protocols.http.h11_impl import H11Protocol

from gpt2chat.errors import ConfigError
from gpt2chat.server.faults import ApiError
from gpt2chat.server.limits import Limits
from gpt2chat.server.names import loopback as loopback
from gpt2chat.server.replies import leave

QUEUE = 2048  # connections that the system holds until they are accepted
AT_ONCE = 16  # of them are accepted before others are read again: a flood shall not evict those it has not yet heard
SPARE_FILES = 128  # besides the connections: the checkpoint, logs, libraries
ANYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1", "": "127.0.0.1"}  # what a browser on this machine can open


@dataclass(frozen=True)
class Door:
    """Sockets that listen, and the URL at which a browser finds them."""

    url: str
    sockets: tuple[socket.socket, ...]

    def close(self) -> None:
        """Stop listening."""
        for each in self.sockets:
            each.close()


def listen(host: str, port: int) -> Door:
    """Listen on all addresses of `host`; port 0 takes a free one. Raises ConfigError for what one cannot have."""
    if not 0 <= port <= 65535:
        raise ConfigError(f"--port {port}: expected a number from 0 to 65535")
    bare = host.removeprefix("[").removesuffix("]")
    try:
        found = socket.getaddrinfo(bare or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    except (OSError, ValueError) as error:
        raise ConfigError(f"--host {host!r}: expected a name or address of this machine: {error}") from None
    sockets: list[socket.socket] = []
    for family, address in dict.fromkeys((family, address[:2]) for family, _, _, _, address in found):
        try:
            sockets.append(open_socket(family, str(address[0]), port))
        except OSError as error:
            if sockets and error.errno in (errno.EADDRNOTAVAIL, errno.EAFNOSUPPORT):
                continue  # localhost has an IPv6 address by name only
            for each in sockets:
                each.close()
            raise ConfigError(cannot_listen(host, port, error)) from None
        port = sockets[0].getsockname()[1]
    shown = ANYWHERE.get(bare, bare)
    return Door(f"http://[{shown}]:{port}" if ":" in shown else f"http://{shown}:{port}", tuple(sockets))


def open_socket(family: int, address: str, port: int) -> socket.socket:
    """Return a socket that listens on one address."""
    # asyncio sends small parts at once (TCP_NODELAY) only if the protocol is named
    made = socket.socket(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
    try:
        if sys.platform != "win32":  # where it would let two servers share a port
            made.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            made.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        made.bind((address, port))
        made.listen(QUEUE)
        made.setblocking(False)
    except OSError:
        made.close()
        raise
    return made


def cannot_listen(host: str, port: int, error: OSError) -> str:
    """Say why, and what to do."""
    if error.errno == errno.EADDRINUSE:
        return f"port {port} of {host} is in use: pass another --port, or stop the program that has it"
    if error.errno in (errno.EACCES, errno.EPERM):
        return f"port {port} of {host} needs the rights of an administrator: pass a --port from 1024 on"
    return f"--host {host!r}: expected an address of this machine: {error.strerror}"


def affordable(connections: int) -> int:
    """Return how many connections the system's limit of open files allows, after raising it as far as one may."""
    try:
        import resource
    except ImportError:  # Windows has no such limit
        return connections
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = connections + SPARE_FILES
    if soft != resource.RLIM_INFINITY and soft < wanted:
        soft = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    return connections if soft == resource.RLIM_INFINITY else max(1, min(connections, soft - SPARE_FILES))


def raw(error: ApiError) -> bytes:
    """Return a whole answer for a connection on which nothing was asked yet, or nothing that could be understood."""
    body = error.encoded()
    headers = {**error.headers, "content-type": "application/json", "content-length": str(len(body))}
    lines = [f"HTTP/1.1 {error.status} {http.HTTPStatus(error.status).phrase}"]
    lines += [f"{name}: {value}" for name, value in {**headers, "connection": "close"}.items()]
    return "\r\n".join([*lines, "", ""]).encode("latin-1") + body


class Connection(H11Protocol):
    """One connection with a deadline for its header and one for a client that does not read.

    Of uvicorn's class it uses the hooks of asyncio.Protocol, `shutdown`, `send_400_response`, `on_response_complete`
    and the attributes `conn`, `connections`, `cycle`, `loop`, `transport`.
    """

    def __init__(self, limits: Limits, **options: Any) -> None:
        super().__init__(**options)
        self.limits = limits
        self.since = self.loop.time()  # when it began to wait for a request
        self.header_timer: asyncio.TimerHandle | None = None
        self.stall_timer: asyncio.TimerHandle | None = None
        self.left = 0  # bytes not yet taken by the client

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Take a connection in, for which another may have to go."""
        if len(self.connections) >= self.limits.connections and not self.evict():
            self.transport = transport
            transport.write(raw(ApiError(503, "all connections are busy: try again", headers={"retry-after": "2"})))
            transport.close()
            return
        super().connection_made(transport)
        transport.set_write_buffer_limits(high=0)  # `pause_writing` then means: the client does not read
        self.watch_header()

    def connection_lost(self, exc: Exception | None) -> None:
        """End the work for a client that is gone, and forget the deadlines of its connection."""
        if self.cycle is not None and not self.cycle.response_complete:
            leave(cast(Scope, self.cycle.scope))
        self.unwatch_header()
        self.unwatch_stall()
        super().connection_lost(exc)

    def waiting(self) -> bool:
        """Tell whether nothing is lost for anyone else when this connection ends now: no request is being answered."""
        return self.transport.is_closing() or self.conn.their_state in (h11.IDLE, h11.SEND_BODY)

    def evict(self) -> bool:
        """Make room by ending the connection that has waited longest for its client."""
        idle = [each for each in self.connections if isinstance(each, Connection) and each.waiting()]
        if not idle:
            return False
        oldest = min(idle, key=lambda each: each.since)
        self.connections.discard(oldest)
        oldest.transport.abort()
        return True

    def data_received(self, data: bytes) -> None:
        """Read on, and see whether a header is still under way."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE and not self.transport.is_closing():
            if self.header_timer is None:
                self.watch_header()
        else:
            self.unwatch_header()

    def on_response_complete(self) -> None:
        """Wait for the next request."""
        self.since = self.loop.time()
        super().on_response_complete()

    def watch_header(self) -> None:
        """From now on the client has `header_s` to send a whole header."""
        self.header_timer = self.loop.call_later(self.limits.header_s, self.end_late)

    def unwatch_header(self) -> None:
        """The header is here, or the connection is gone."""
        if self.header_timer is not None:
            self.header_timer.cancel()
            self.header_timer = None

    def end_late(self) -> None:
        """Close a connection whose header did not come in time."""
        if self.conn.trailing_data[0]:  # else there is no request to answer
            self.refuse(ApiError(408, f"expected a whole header within {self.limits.header_s:g} seconds"))
        else:
            self.transport.close()

    def send_400_response(self, msg: str) -> None:
        """Answer what h11 could not read; uvicorn calls this while it handles h11's exception."""
        error = sys.exc_info()[1]
        if getattr(error, "error_status_hint", 400) == 431:
            self.refuse(ApiError(431, f"expected a header of at most {self.limits.header} bytes"))
        else:
            self.refuse(ApiError(400, f"expected a request of HTTP/1.1: {error or msg}"[:300]))

    def refuse(self, error: ApiError) -> None:
        """Answer with an error unless an answer has begun, and end the connection."""
        if self.conn.our_state in (h11.IDLE, h11.SEND_RESPONSE):
            self.transport.write(raw(error))
            self.transport.close()
        else:
            self.transport.abort()
        if self.cycle is not None:
            self.cycle.disconnected = True  # what the app still sends must not follow

    def pause_writing(self) -> None:
        """Hear from asyncio that the client does not take what it is sent."""
        super().pause_writing()
        self.watch_stall()

    def resume_writing(self) -> None:
        """Hear from asyncio that the client has taken all."""
        self.unwatch_stall()
        super().resume_writing()

    def watch_stall(self) -> None:
        """From now on the client has `stall_s` to take something of what is left for it."""
        self.left = self.transport.get_write_buffer_size()
        self.stall_timer = self.loop.call_later(self.limits.stall_s, self.end_stalled)

    def unwatch_stall(self) -> None:
        """All is taken, or the connection is gone."""
        if self.stall_timer is not None:
            self.stall_timer.cancel()
            self.stall_timer = None

    def end_stalled(self) -> None:
        """Drop a client that took nothing; the app learns of it as `http.disconnect`."""
        if self.transport.get_write_buffer_size() < self.left:
            self.watch_stall()
        else:
            self.transport.abort()

    def shutdown(self) -> None:
        """End an idle connection, or let it end after its answer."""
        try:
            super().shutdown()
        except h11.LocalProtocolError:  # after an answer that broke off
            self.transport.abort()


class Server(uvicorn.Server):
    """uvicorn that ends in good order: running answers get `grace_s`, and signals are kept, not raised again.

    The first SIGTERM or SIGINT, or `stop()`, sets `draining` and stops accepting; SIGINT after that ends all at once.
    `received` is the first signal.
    """

    def __init__(self, app: ASGIApp, limits: Limits, draining: asyncio.Event, on_ready: Callable[[], None]) -> None:
        super().__init__(configure(app, limits))
        self.limits, self.draining, self.on_ready = limits, draining, on_ready
        self.loop: asyncio.AbstractEventLoop | None = None
        self.received: signal.Signals | None = None

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Begin to accept, and say so."""
        self.loop = asyncio.get_running_loop()
        await super().startup(sockets)
        for each in sockets or ():
            each.listen(QUEUE)  # asyncio takes one number for both
        if self.started:
            self.on_ready()

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop accepting, wait for what runs, cut what is left."""
        self.drain()
        await super().shutdown(sockets)
        self.abort()

    def handle_exit(self, sig: int, frame: FrameType | None) -> None:
        """Take a signal: the first ends in good order, SIGINT after it at once."""
        self.force_exit = self.force_exit or (self.should_exit and sig == signal.SIGINT)
        self.received = self.received or signal.Signals(sig)
        self.stop()

    def stop(self) -> None:
        """End in good order; to be called from any thread or signal handler."""
        self.should_exit = True
        if self.loop is not None:
            with contextlib.suppress(RuntimeError):  # it has ended already
                self.loop.call_soon_threadsafe(self.abort if self.force_exit else self.drain)

    def drain(self) -> None:
        """Tell the app to end its streams, and give it `grace_s` for that."""
        if not self.draining.is_set() and self.loop is not None:
            self.draining.set()
            self.loop.call_later(self.limits.grace_s, self.abort)

    def abort(self) -> None:
        """Cut the connections that are left."""
        for connection in list(self.server_state.connections):
            connection.transport.abort()


def configure(app: ASGIApp, limits: Limits) -> uvicorn.Config:
    """Return uvicorn's settings: one protocol, no logs of its own, nothing believed that a proxy might have said."""
    return uvicorn.Config(
        app,
        http=cast(Any, functools.partial(Connection, limits)),
        ws="none",
        backlog=AT_ONCE,
        loop="asyncio",
        log_config=None,
        log_level="critical",
        access_log=False,
        server_header=False,
        proxy_headers=False,
        h11_max_incomplete_event_size=limits.header,
        timeout_keep_alive=cast(int, limits.idle_s),
        timeout_graceful_shutdown=cast(int, limits.grace_s + 1),  # for what goes on without its connection
    )


def serve(
    app: ASGIApp,
    door: Door,
    limits: Limits,
    *,
    on_ready: Callable[[str], None],
    draining: asyncio.Event | None = None,
) -> signal.Signals | None:
    """Serve until SIGTERM or SIGINT and return that signal; the process then lives on, and the caller chooses its end.

    `on_ready` gets the URL once requests are taken; `draining` is set when they are no longer.
    The app's lifespan is run; SystemExit if its startup fails.
    """
    limits = replace(limits, connections=affordable(limits.connections))
    server = Server(app, limits, draining or asyncio.Event(), lambda: on_ready(door.url))
    try:
        server.run(sockets=list(door.sockets))
    finally:
        door.close()
    return server.received
