"""Who may come in: Host, Origin, key, and how much a request may bring. It stands before everything else."""

from __future__ import annotations

import asyncio
import hashlib
import hmac
import logging
import re
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from gpt2chat.errors import ConfigError
from gpt2chat.server.faults import ApiError, own_fault
from gpt2chat.server.limits import Limits
from gpt2chat.server.names import fresh, is_address, loopback, origin_of, parse_host, parse_origin

LOOPBACK = frozenset({"localhost", "127.0.0.1", "[::1]"})
DETAILED = {"/chat/completions", "/health", "/stats"}  # their clients read `detail`
READING = {"GET", "HEAD"}
LINGER_S = 1.0  # how long a body that nobody wants is read, so that its sender sees the answer and no reset
TOKEN = re.compile(rb"[A-Za-z0-9!#$%&'*+.^_`|~-]{1,64}")
REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,64}")
EXPOSED = b"x-request-id, retry-after, x-gpt2chat-dropped-turns"
ALWAYS = [
    (b"x-content-type-options", b"nosniff"),
    (b"cache-control", b"no-store"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
]
CLOSE = {"connection": "close"}
OURS = {name for name, _ in ALWAYS} | {b"x-request-id", b"server"}
LOG = logging.getLogger("gpt2chat.server")


@dataclass(frozen=True)
class Policy:
    """Names the server answers to ("*" = any), keys of which a request needs one, origins whose pages may ask.

    `open_paths` need no key for GET and HEAD. Raises ConfigError for a name, key or origin that could never match.
    """

    hosts: frozenset[str] = LOOPBACK
    keys: tuple[str, ...] = field(default=(), repr=False)
    cors_origins: frozenset[str] = frozenset()
    open_paths: frozenset[str] = frozenset({"/health", "/"})
    addresses: bool = False  # whether any address may stand in place of a name

    def __post_init__(self) -> None:
        for name in self.hosts - {"*"}:
            if (parse_host(name) or ("", 0))[1] is not None:
                raise ConfigError(
                    f"--allow_host {name!r}: expected the name of a host without a port, as in my.server.org"
                )
        for origin in self.cors_origins:
            if parse_origin(origin) is None:
                raise ConfigError(
                    f"--cors_origin {origin!r}: expected scheme://host[:port], as in http://localhost:3000"
                )
        for number, key in enumerate(self.keys, 1):
            if not key or any(ord(character) < 33 or ord(character) == 127 for character in key):
                raise ConfigError(f"key {number}: expected characters without spaces, found none or a space among them")


class Visit:
    """One request as the guard sees it."""

    def __init__(self, scope: Scope) -> None:
        self.scope, self.method, self.path = scope, str(scope["method"]), str(scope["path"])
        self.headers: list[tuple[bytes, bytes]] = list(scope["headers"])
        self.lengths, self.codings = self.all(b"content-length"), self.all(b"transfer-encoding")
        self.unread = bool(self.codings) or any(length.strip(b"0") for length in self.lengths)
        given = self.all(b"x-request-id")
        self.id = given[0] if len(given) == 1 and REQUEST_ID.fullmatch(given[0]) else b""
        self.id = self.id or fresh("req_").encode()
        self.cors: list[tuple[bytes, bytes]] = []  # headers for an origin that may read the answer

    def all(self, name: bytes) -> list[bytes]:
        """Return the values of all headers of that name."""
        return [value for key, value in self.headers if key.lower() == name]

    def size(self) -> int:
        """Return the bytes of the header, near enough."""
        line = len(self.scope.get("raw_path") or self.path.encode("utf-8", "replace")) + len(self.scope["query_string"])
        return line + sum(len(name) + len(value) + 4 for name, value in self.headers)


class Reply:
    """Sends what the app answers, with the headers that every answer carries."""

    def __init__(self, visit: Visit, send: Send) -> None:
        self.visit, self.send, self.started = visit, send, False

    async def __call__(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.started = True
            own = [(name.lower(), value) for name, value in message.get("headers", ())]
            kept = [(n, v) for n, v in own if n not in OURS and not n.startswith(b"access-control-")]
            message = {**message, "headers": [*kept, (b"x-request-id", self.visit.id), *ALWAYS, *self.visit.cors]}
        await self.send(message)

    async def plain(self, status: int, headers: Mapping[str, str], body: bytes = b"", more: bool = False) -> None:
        """Send a whole answer; with `more` it stays open until an empty part is sent."""
        pairs = [(name.lower().encode(), value.encode("latin-1")) for name, value in headers.items()]
        await self({"type": "http.response.start", "status": status, "headers": pairs})
        await self({"type": "http.response.body", "body": body, "more_body": more})

    async def refuse(self, error: ApiError, receive: Receive, limit: int) -> None:
        """Send an error. A body nobody read is thrown away for a moment, and the connection ends."""
        body, linger = error.encoded(detail=self.visit.path in DETAILED), self.visit.unread
        headers = {"content-type": "application/json", "content-length": str(len(body)), **error.headers}
        if linger:
            headers["connection"] = "close"
        await self.plain(error.status, headers, body, more=linger)
        if linger:
            await swallow(receive, limit)
            await self({"type": "http.response.body", "body": b"", "more_body": False})


class Guard:
    """ASGI middleware that lets a request through to `app` when `policy` and `limits` allow it.

    It sets scope["state"]["request_id"] and scope["state"]["client"]: "key1", "key2", … by the key that was given, else
    the address of the peer, "local" for this machine. The app gets the body in one piece, and no exception of the app
    reaches the client. Once `draining` is set, all requests are told to come back later.
    """

    def __init__(
        self,
        app: ASGIApp,
        policy: Policy,
        limits: Limits,
        draining: asyncio.Event | None = None,
        refused: Callable[[int], None] = lambda status: None,
    ) -> None:
        """Take what is guarded and how; `refused` hears the status of each request that does not reach it."""
        self.app, self.policy, self.limits, self.draining, self.refused = app, policy, limits, draining, refused
        self.hosts = {host[0] for name in policy.hosts if (host := parse_host(name))}
        self.origins = {parse_origin(origin) for origin in policy.cors_origins}
        self.digests = [hashlib.sha256(key.encode("utf-8", "surrogateescape")).digest() for key in policy.keys]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            await self.app(scope, receive, send)
        if scope["type"] != "http":
            return
        visit = Visit(scope)
        reply = Reply(visit, send)
        state: dict[str, Any] = scope.setdefault("state", {})
        state["request_id"] = visit.id.decode()
        try:
            self.check_form(visit)
            self.check_origin(visit, self.check_host(visit))
            if visit.cors and visit.method == "OPTIONS" and visit.all(b"access-control-request-method"):
                visit.cors += preflight(visit)
                await reply.plain(204, {})
                return
            state["client"] = self.check_key(visit)
            self.check_draining()
            self.check_body(visit)
            body = await self.read_body(visit, receive)
            if body is not None:
                await self.app(scope, body, reply)
        except Exception as error:
            fault = error if isinstance(error, ApiError) else None
            if fault is None or reply.started:
                LOG.error("request %s: %s", state["request_id"], describe(error))
            if reply.started:
                raise
            self.refused(fault.status if fault else 500)
            await reply.refuse(fault or own_fault(), receive, self.limits.body)

    def check_form(self, visit: Visit) -> None:
        """Raise ApiError for a header too large, or one that another program could read differently."""
        limits = self.limits
        if len(visit.headers) > limits.header_fields:
            found = f"expected at most {limits.header_fields} header fields, found {len(visit.headers)}"
            raise ApiError(431, found, headers=CLOSE)
        if visit.size() > limits.header:
            raise ApiError(431, f"expected a header of at most {limits.header} bytes", headers=CLOSE)
        if not visit.path.startswith("/") or not (visit.scope.get("raw_path") or b"/").startswith(b"/"):
            raise ApiError(400, "expected a request for a path, as in GET /health", headers=CLOSE)
        if visit.lengths and visit.codings:
            raise ApiError(400, "expected Content-Length or Transfer-Encoding, found both", headers=CLOSE)

    def check_host(self, visit: Visit) -> tuple[str, int | None]:
        """Return what the Host header names: a page must not reach this server by a name of its own (DNS rebinding)."""
        given = visit.all(b"host")
        if len(given) != 1:
            raise ApiError(400, f"expected one Host header, found {len(given)}", headers=CLOSE)
        text = given[0].decode("latin-1").strip(" \t")
        host = parse_host(text)
        if host is None:
            raise ApiError(
                403, f"Host: expected the name of this server, found {text[:100]!r}", code="host_not_allowed"
            )
        by_address = self.policy.addresses and is_address(host[0])  # which no page can have as its own name
        if host[0] not in self.hosts and "*" not in self.policy.hosts and not by_address:
            message = f"this server does not answer to {host[0]!r}: start it with --allow_host {host[0]}"
            raise ApiError(403, message, code="host_not_allowed")
        return host

    def check_origin(self, visit: Visit, host: tuple[str, int | None]) -> None:
        """Raise ApiError when a page of another origin asks; give CORS headers to those that may."""
        given = visit.all(b"origin")
        site = [value.strip().lower() for value in visit.all(b"sec-fetch-site")]
        if not given:
            if visit.method not in READING and any(value in (b"cross-site", b"same-site") for value in site):
                raise ApiError(403, "Sec-Fetch-Site: a page of another site asks", code="origin_not_allowed")
            return
        text = given[0].decode("latin-1").strip(" \t")
        origin = parse_origin(text) if len(given) == 1 else None
        if origin is not None and origin in self.origins:
            visit.cors = [
                (b"access-control-allow-origin", text.encode("latin-1")),
                (b"access-control-expose-headers", EXPOSED),
                (b"vary", b"Origin"),
            ]
        elif origin is None or origin != origin_of(str(visit.scope.get("scheme", "http")), host):
            message = f"pages of {text[:100]!r} may not ask this server: start it with --cors_origin {text[:100]}"
            raise ApiError(403, message, code="origin_not_allowed")

    def check_key(self, visit: Visit) -> str:
        """Return who asks; raise ApiError when a key is needed and none of ours was given."""
        peer = (visit.scope.get("client") or ("",))[0]
        peer = "local" if loopback(peer) else peer
        if not self.digests:
            return peer
        given = visit.all(b"authorization")
        scheme, _, key = given[0].strip(b" \t").partition(b" ") if len(given) == 1 else (b"", b"", b"")
        digest = hashlib.sha256(key.strip(b" ")).digest()
        # each key is compared to its end, whatever the others said
        right = [number for number, known in enumerate(self.digests, 1) if hmac.compare_digest(known, digest)]
        if right and scheme.lower() == b"bearer":
            return f"key{right[0]}"
        if visit.path in self.policy.open_paths and visit.method in READING:
            return peer
        found = "another one" if given else "none"
        message = f"expected a key of this server as Authorization: Bearer KEY, found {found}"
        raise ApiError(401, message, code="invalid_api_key", headers={"www-authenticate": "Bearer"})

    def check_draining(self) -> None:
        """Raise ApiError when the server is about to stop."""
        if self.draining is not None and self.draining.is_set():
            raise ApiError(503, "the server is stopping: try again later", headers={"retry-after": "5", **CLOSE})

    def check_body(self, visit: Visit) -> None:
        """Raise ApiError for a body that is announced too large, or that a form of another site could send."""
        kinds = [value.partition(b";")[0].strip().lower() for value in visit.all(b"content-type")]
        if visit.method == "POST" and visit.unread and kinds != [b"application/json"]:
            found = ", ".join(kind.decode("latin-1")[:100] for kind in kinds) or "none"
            raise ApiError(415, f"expected Content-Type: application/json, found {found}")
        for length in visit.lengths:
            if not length.isdigit() or len(length) > 20:
                raise ApiError(400, "Content-Length: expected a number of bytes", headers=CLOSE)
            if int(length) > self.limits.body:
                raise self.too_large()

    def too_large(self) -> ApiError:
        """Return the error for a body over the limit."""
        return ApiError(413, f"expected a body of at most {self.limits.body} bytes", headers=CLOSE)

    async def read_body(self, visit: Visit, receive: Receive) -> Receive | None:
        """Read the whole body and return what hands it on; None when the client went away meanwhile."""
        if not visit.unread:
            return receive
        body, more = bytearray(), True
        try:
            async with asyncio.timeout(self.limits.body_s):
                while more:
                    message = await receive()
                    if message["type"] == "http.disconnect":
                        return None
                    body += message.get("body", b"")
                    more = message.get("more_body", False)
                    if len(body) > self.limits.body:
                        visit.unread = more
                        raise self.too_large()
        except TimeoutError:
            visit.unread = False  # whoever was this slow is not waited for again
            message_text = f"expected the whole body within {self.limits.body_s:g} seconds"
            raise ApiError(408, message_text, headers=CLOSE) from None
        visit.unread = False
        return handing_on(bytes(body), receive)


def preflight(visit: Visit) -> list[tuple[bytes, bytes]]:
    """Return the headers that allow what a page of an allowed origin is about to send."""
    asked = b",".join(visit.all(b"access-control-request-headers")).split(b",")
    names = [name.strip().lower() for name in asked[:64]]
    allowed = [name.decode() for name in names if TOKEN.fullmatch(name)] or ["authorization", "content-type"]
    return [
        (b"access-control-allow-methods", b"GET, HEAD, POST"),
        (b"access-control-allow-headers", ", ".join(allowed).encode()),
        (b"access-control-max-age", b"600"),
    ]


def handing_on(body: bytes, receive: Receive) -> Receive:
    """Return a `receive` that gives `body` first and then waits for what comes next."""
    first: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

    async def hand() -> Message:
        return first.pop() if first else await receive()

    return hand


async def swallow(receive: Receive, limit: int) -> None:
    """Throw a body away, for LINGER_S or four times `limit` bytes at most."""
    size, more = 0, True
    try:
        async with asyncio.timeout(LINGER_S):
            while more and size <= 4 * limit:
                message = await receive()
                size += len(message.get("body", b""))
                more = message["type"] == "http.request" and message.get("more_body", False)
    except TimeoutError:
        return


def describe(error: BaseException) -> str:
    """Return the type of an exception and where it came from. Not its text: that may quote what a client wrote."""
    parts, seen = [], set[int]()
    cause: BaseException | None = error
    while cause is not None and id(cause) not in seen:
        seen.add(id(cause))
        frames = "".join(traceback.format_tb(cause.__traceback__)[-30:])
        parts.append(f"{type(cause).__module__}.{type(cause).__qualname__}\n{frames}")
        cause = cause.__cause__ or (None if cause.__suppress_context__ else cause.__context__)
    return "caused by ".join(parts)
