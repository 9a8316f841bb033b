"""The door of the server: no request comes in by a foreign name, from a foreign page, without a key, or too large."""

from __future__ import annotations

import asyncio
import itertools
import json
import logging
from collections.abc import Callable
from typing import Any

import pytest

pytest.importorskip("starlette")

from gpt2chat.errors import ConfigError  # noqa: E402
from gpt2chat.server.faults import ApiError  # noqa: E402
from gpt2chat.server.guard import Guard, Policy  # noqa: E402
from gpt2chat.server.limits import Limits  # noqa: E402
from gpt2chat.server.names import loopback, parse_host, parse_origin  # noqa: E402

KEYS = ("sesame-1", "schlüssel-2", "sesame-3")
PAGE = "https://ui.example"
ALWAYS = ("x-content-type-options", "cache-control", "referrer-policy", "cross-origin-resource-policy", "x-request-id")


class App:
    """Answers with what it got, and counts."""

    def __init__(self, fail: Exception | None = None, after: bool = False) -> None:
        self.served: list[dict[str, Any]] = []
        self.fail, self.after = fail, after

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.served.append(scope)
        body, more = b"", True
        while more:
            message = await receive()
            body, more = body + message.get("body", b""), message.get("more_body", False)
        if self.fail and not self.after:
            raise self.fail
        headers = [(b"server", b"stub"), (b"access-control-allow-origin", b"*"), (b"cache-control", b"public")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        if self.fail:
            raise self.fail
        await send({"type": "http.response.body", "body": body})


class Response:
    """What a client would see of the messages that an app sent."""

    def __init__(self, sent: list[dict[str, Any]]) -> None:
        self.status_code: int = sent[0]["status"]
        self.headers = {name.decode(): value.decode("latin-1") for name, value in sent[0]["headers"]}
        assert len(self.headers) == len(sent[0]["headers"])
        self.content = b"".join(message["body"] for message in sent[1:])
        assert [message["more_body"] for message in sent[1:]][-1] is False
        self.text = self.content.decode()

    def json(self) -> Any:
        return json.loads(self.text)


def bytes_of(text: str | bytes) -> bytes:
    return text if isinstance(text, bytes) else text.encode("utf-8")


def scope_of(path: str, **more: Any) -> dict[str, Any]:
    headers = [(b"host", b"localhost")]
    return {
        "type": "http",
        "method": "GET",
        "path": path,
        "query_string": b"",
        "headers": headers,
        "scheme": "http",
    } | more


def run_raw(guard: Any, scope: dict[str, Any], *messages: dict[str, Any]) -> list[dict[str, Any]]:
    """Run the guard on a scope and the messages a client sent; return what it sends."""
    sent: list[dict[str, Any]] = []
    left = list(messages)

    async def receive() -> Any:
        return left.pop(0) if left else await asyncio.Event().wait()

    async def send(message: Any) -> None:
        sent.append({"body": b"", "more_body": False, **message})

    asyncio.run(guard(scope, receive, send))
    return sent


def ask(
    guard: Any,
    method: str,
    target: str,
    headers: list[tuple[str, str]],
    content: bytes | list[bytes] = b"",
    peer: str = "127.0.0.1",
) -> Response:
    """Send one request; a body in parts has no Content-Length."""
    path, _, query = target.partition("?")
    raw = [(bytes_of(name), bytes_of(value)) for name, value in headers]
    parts = content if isinstance(content, list) else [content]
    if isinstance(content, list):
        raw.append((b"transfer-encoding", b"chunked"))
    elif content and not any(name == "content-length" for name, _ in headers):
        raw.append((b"content-length", str(len(content)).encode()))
    scope = scope_of(
        path, method=method, query_string=query.encode(), headers=raw, client=(peer, 5), raw_path=path.encode()
    )
    messages = [{"type": "http.request", "body": part, "more_body": i < len(parts)} for i, part in enumerate(parts, 1)]
    return Response(run_raw(guard, scope, *messages))


HOSTS = {  # what is sent -> the name it stands for, None when it is no name
    "localhost": "localhost",
    "LocalHost:8000": "localhost",
    "localhost.": "localhost",
    "127.0.0.1:1": "127.0.0.1",
    "[::1]:8000": "[::1]",
    "[0:0::1]": "[::1]",
    "chat.example": "chat.example",
    "evil.example": "evil.example",
    "localhost.evil.example": "localhost.evil.example",
    "localhost:0": None,
    "localhost:65536": None,
    "localhost:80a": None,
    "localhost:": None,
    "localhost@evil.example": None,
    "localhost evil": None,
    "::1": None,
    "": None,
}
ORIGINS = (None, "same", "null", "https://evil.example", "http://localhost.other.example", PAGE, PAGE + "/", "", "*")


def expected(host: str, origin: str | None, key: str | None, method: str, path: str, open_to_all: bool) -> bool:
    """Whether a request is served: an oracle that shares nothing with the guard."""
    name = HOSTS[host]
    if name is None or (name not in ("localhost", "127.0.0.1", "[::1]", "chat.example") and not open_to_all):
        return False
    if origin not in (None, "same", PAGE):
        return False
    return key in KEYS or (path in ("/", "/health") and method in ("GET", "HEAD"))


def test_host_origin_key_method_path() -> None:
    checked = served = 0
    for open_to_all in (False, True):
        names = {"*"} if open_to_all else {"localhost", "127.0.0.1", "[::1]", "Chat.Example."}
        app = App()
        guard = Guard(app, Policy(frozenset(names), KEYS, frozenset({PAGE})), Limits())
        for host, origin, key in itertools.product(HOSTS, ORIGINS, (None, KEYS[1], "sesame-2")):
            for method, path in (
                ("GET", "/"),
                ("HEAD", "/health"),
                ("POST", "/health"),
                ("POST", "/v1/x"),
                ("GET", "/no"),
            ):
                headers = [("host", host), ("content-type", "application/json")]
                if origin is not None:
                    headers.append(("origin", f"http://{host}" if origin == "same" else origin))
                if key is not None:
                    headers.append(("authorization", f"Bearer {key}"))
                before = len(app.served)
                response = ask(guard, method, path, headers, b"{}" if method == "POST" else b"")
                came_in = len(app.served) > before
                assert came_in == expected(host, origin, key, method, path, open_to_all), (headers, method, path)
                assert response.status_code in ((200,) if came_in else (401, 403)), (headers, method, path)
                assert all(name in response.headers for name in ALWAYS)
                readable = response.headers.get("access-control-allow-origin")
                assert readable == (PAGE if origin == PAGE and response.status_code != 403 else None)
                assert "access-control-allow-credentials" not in response.headers
                checked, served = checked + 1, served + came_in
    assert checked > 4000
    assert 100 < served < checked / 2


def test_each_refusal_names_what_was_found_and_what_to_do() -> None:
    guard = Guard(App(), Policy(keys=KEYS), Limits())
    foreign = ask(guard, "GET", "/v1/models", [("host", "rebound.example:8000")])
    assert foreign.status_code == 403
    assert "--allow_host rebound.example" in foreign.json()["error"]["message"]
    assert "detail" not in foreign.json()
    page = ask(guard, "POST", "/chat/completions", [("host", "localhost"), ("origin", "http://a.example")])
    assert "--cors_origin http://a.example" in page.json()["detail"] == page.json()["error"]["message"]
    bare = ask(guard, "GET", "/nowhere", [("host", "localhost")])
    assert (bare.status_code, bare.json()["error"]["code"]) == (401, "invalid_api_key")
    assert bare.headers["www-authenticate"] == "Bearer"
    assert "server" not in bare.headers


@pytest.mark.parametrize("hosts", [[], ["localhost", "localhost"], ["localhost", "evil.example"]])
def test_a_request_names_one_host(hosts: list[str]) -> None:
    app = App()
    assert (
        ask(Guard(app, Policy(frozenset({"*"})), Limits()), "GET", "/", [("host", h) for h in hosts]).status_code == 400
    )
    assert not app.served


@pytest.mark.parametrize("target", ["http://evil.example/health", "localhost:80", "*", "", "health"])
def test_only_paths_are_served(target: str) -> None:
    app = App()
    sent = run_raw(Guard(app, Policy(), Limits()), scope_of(target, raw_path=target.encode()))
    assert (sent[0]["status"], app.served) == (400, [])


KEY_FORMS: list[tuple[list[str | bytes], bool]] = [
    ([], False),
    ([""], False),
    (["Bearer"], False),
    (["Bearer "], False),
    (["sesame-1"], False),
    (["Bearer sesame-1"], True),
    (["bearer sesame-1"], True),
    (["BEARER   sesame-1 "], True),
    (["Bearer sesame-3"], True),
    (["Bearer schlüssel-2"], True),
    (["Bearer schlüssel-2".encode("latin-1")], False),
    ([b"Bearer \xff\xfe\x80"], False),
    (["Basic sesame-1"], False),
    (["Bearer Sesame-1"], False),
    (["Bearer sesame-"], False),
    (["Bearer sesame-11"], False),
    (["Bearer sesame-1,sesame-3"], False),
    (["Bearer\tsesame-1"], False),
    (["Bearer sesame-1", "Bearer sesame-1"], False),
    (["Bearer wrong", "Bearer sesame-1"], False),
    (["Bearer Bearer sesame-1"], False),
    ([b"\xa0Bearer sesame-1"], False),
]
ROUTES = [("GET", "/v1/models"), ("POST", "/chat/completions"), ("POST", "/"), ("POST", "/health"), ("GET", "/stats")]
ROUTES += [("GET", "//health"), ("GET", "/health/"), ("OPTIONS", "/health"), ("DELETE", "/"), ("GET", "/x/../health")]


@pytest.mark.parametrize(("method", "path"), ROUTES)
def test_forms_of_the_key(method: str, path: str) -> None:
    app = App()
    guard = Guard(app, Policy(keys=KEYS), Limits())
    for forms, right in KEY_FORMS:
        before = len(app.served)
        scope = scope_of(path, method=method)
        scope["headers"] += [(b"authorization", bytes_of(form)) for form in forms] + [(b"x-api-key", b"sesame-1")]
        sent = run_raw(guard, scope, {"type": "http.request", "body": b""})
        assert (sent[0]["status"], len(app.served) - before) == ((200, 1) if right else (401, 0)), forms


def test_the_app_learns_who_asks_and_never_the_key() -> None:
    app = App()
    guard = Guard(app, Policy(keys=KEYS), Limits())
    for key in KEYS:
        ask(guard, "GET", "/v1/models", [("host", "localhost"), ("authorization", f"Bearer {key}")])
    ask(guard, "GET", "/", [("host", "localhost")], peer="192.0.2.7")
    ask(Guard(app, Policy(), Limits()), "GET", "/v1/models", [("host", "localhost")])
    assert [scope["state"]["client"] for scope in app.served] == ["key1", "key2", "key3", "192.0.2.7", "local"]
    assert not any(key in repr(guard.policy) for key in KEYS)


def test_request_ids() -> None:
    app = App()
    guard = Guard(app, Policy(), Limits())
    for given, kept in (
        ("abc-1._Z", True),
        ("x" * 64, True),
        ("x" * 65, False),
        ("a b", False),
        ("é", False),
        ("", False),
    ):
        response = ask(guard, "GET", "/", [("host", "localhost"), ("x-request-id", given)])
        answered = response.headers["x-request-id"]
        assert answered == app.served[-1]["state"]["request_id"]
        assert (answered == given) == kept
        assert kept or answered.startswith("req_")
    fresh = {ask(guard, "GET", "/", [("host", "localhost")]).headers["x-request-id"] for _ in range(20)}
    assert len(fresh) == 20


@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data", "json"]
)
def test_a_form_of_another_site_is_not_served(kind: str | None) -> None:
    app = App()
    headers = [("host", "localhost")] + ([("content-type", kind)] if kind else [])
    response = ask(Guard(app, Policy(), Limits()), "POST", "/chat/completions", headers, b'{"messages": []}')
    assert (response.status_code, app.served) == (415, [])
    doubled = [("host", "localhost"), ("content-type", "application/json"), ("content-type", "text/plain")]
    assert ask(Guard(app, Policy(), Limits()), "POST", "/x", doubled, b"{}").status_code == 415
    right = [("host", "localhost"), ("content-type", "Application/JSON ; charset=utf-8")]
    assert ask(Guard(app, Policy(), Limits()), "POST", "/x", right, b"{}").content == b"{}"


def test_a_browser_that_names_no_origin_still_says_cross_site() -> None:
    app = App()
    guard = Guard(app, Policy(), Limits())
    statuses = []
    for method, site in (("POST", "cross-site"), ("POST", "same-site"), ("POST", "same-origin"), ("GET", "cross-site")):
        statuses.append(ask(guard, method, "/", [("host", "localhost"), ("sec-fetch-site", site)]).status_code)
    assert statuses == [403, 403, 200, 200]
    two = [("host", "localhost"), ("origin", "http://localhost"), ("origin", "http://localhost")]
    assert ask(guard, "GET", "/", two).status_code == 403


def test_the_own_origin_is_scheme_name_and_port() -> None:
    guard = Guard(App(), Policy(), Limits())
    for host, origin, status in (
        ("localhost:8000", "http://localhost:8000", 200),
        ("localhost:80", "http://localhost", 200),
        ("localhost", "http://LOCALHOST:80", 200),
        ("localhost:8000", "http://localhost:8001", 403),
        ("localhost:8000", "https://localhost:8000", 403),
        ("localhost:8000", "http://127.0.0.1:8000", 403),
        ("localhost:8000", "http://localhost:8000/", 403),
        ("localhost:8000", "http://user@localhost:8000", 403),
    ):
        assert ask(guard, "POST", "/", [("host", host), ("origin", origin)]).status_code == status, (host, origin)


def test_preflight() -> None:
    app = App()
    guard = Guard(app, Policy(keys=KEYS, cors_origins=frozenset({PAGE})), Limits())
    wish = [
        ("host", "localhost"),
        ("access-control-request-method", "POST"),
        ("access-control-request-headers", "Authorization, x-stainless-os,bad name,\x7f, content-type"),
    ]
    response = ask(guard, "OPTIONS", "/v1/chat/completions", [*wish, ("origin", PAGE)])
    assert (response.status_code, response.content, app.served) == (204, b"", [])
    assert response.headers["access-control-allow-origin"] == PAGE
    assert response.headers["access-control-allow-headers"] == "authorization, x-stainless-os, content-type"
    assert "POST" in response.headers["access-control-allow-methods"]
    assert response.headers["vary"] == "Origin"
    assert "access-control-allow-credentials" not in response.headers
    for origin in ("https://evil.example", "null"):
        refused = ask(guard, "OPTIONS", "/v1/chat/completions", [*wish, ("origin", origin)])
        assert refused.status_code == 403
        assert not [name for name in refused.headers if name.startswith("access-control")]
    key = ("authorization", f"Bearer {KEYS[0]}")
    read = ask(guard, "GET", "/v1/models", [("host", "localhost"), ("origin", PAGE), key])
    assert "x-gpt2chat-dropped-turns" in read.headers["access-control-expose-headers"]


JSON = [("host", "localhost"), ("content-type", "application/json")]


def parts(number: int, size: int) -> list[bytes]:
    return [b"x" * size] * number


def test_bodies_are_bounded_announced_or_not() -> None:
    app = App()
    guard = Guard(app, Policy(), Limits(body=1000))
    assert ask(guard, "POST", "/", JSON, b"x" * 1000).content == b"x" * 1000
    assert ask(guard, "POST", "/", JSON, parts(10, 100)).content == b"x" * 1000
    for content in (b"x" * 1001, parts(11, 100), parts(3, 10_000)):
        response = ask(guard, "POST", "/", JSON, content)
        assert (response.status_code, response.headers["connection"]) == (413, "close")
        assert "1000 bytes" in response.json()["error"]["message"]
    assert ask(guard, "GET", "/", JSON, b"x" * 1001).status_code == 413
    assert ask(guard, "POST", "/", [*JSON, ("content-length", "9" * 30)]).status_code == 400
    assert len(app.served) == 2
    scope = scope_of("/", method="POST")
    scope["headers"] += [(b"content-length", b"1001"), (b"content-type", b"application/json")]
    assert run_raw(guard, scope, {"type": "http.disconnect"})[0]["status"] == 413, "refused before it is sent"


def test_after_a_body_nobody_read_the_connection_ends() -> None:
    response = ask(Guard(App(), Policy(keys=KEYS), Limits()), "POST", "/", JSON, b"{}")
    assert (response.status_code, response.headers["connection"]) == (401, "close")


def test_a_body_that_does_not_come_is_not_waited_for() -> None:
    app = App()
    guard = Guard(app, Policy(), Limits(body_s=0.05))
    scope = scope_of("/", method="POST")
    scope["headers"] += [(b"content-length", b"9"), (b"content-type", b"application/json")]
    sent = run_raw(guard, scope, {"type": "http.request", "body": b"x", "more_body": True})
    assert (sent[0]["status"], sent[-1]["more_body"], app.served) == (408, False, [])
    assert run_raw(guard, scope, {"type": "http.disconnect"}) == []


def test_headers_are_bounded() -> None:
    guard = Guard(App(), Policy(), Limits(header=2000, header_fields=20))
    assert ask(guard, "GET", "/", [("host", "localhost")] + [(f"x-{i}", "1") for i in range(30)]).status_code == 431
    assert ask(guard, "GET", "/", [("host", "localhost"), ("x", "y" * 2000)]).status_code == 431
    assert ask(guard, "GET", "/?" + "y" * 2000, [("host", "localhost")]).status_code == 431
    both = [*JSON, ("content-length", "2"), ("transfer-encoding", "chunked")]
    assert ask(guard, "POST", "/", both, b"{}").status_code == 400


def test_faults_of_the_app_are_logged_without_what_the_client_wrote(caplog: pytest.LogCaptureFixture) -> None:
    written = "canary"

    def fail() -> Exception:
        try:
            try:
                raise ValueError(written)
            except ValueError as cause:
                raise KeyError(written) from cause
        except KeyError as error:
            return error

    with caplog.at_level(logging.ERROR, "gpt2chat.server"):
        response = ask(Guard(App(fail()), Policy(), Limits()), "POST", "/canary", JSON, b'"canary"')
    assert response.status_code == 500
    assert response.json()["error"]["message"] == "the server met a fault of its own"
    assert "canary" not in caplog.text + response.text
    assert all(
        word in caplog.text for word in ("KeyError", "ValueError", "test_guard.py", response.headers["x-request-id"])
    )
    caplog.clear()
    with pytest.raises(KeyError):
        ask(Guard(App(fail(), after=True), Policy(), Limits()), "GET", "/", [("host", "localhost")])
    assert "KeyError" in caplog.text


def test_errors_of_the_app_for_the_client_are_sent_as_they_are() -> None:
    guard = Guard(App(ApiError(429, "too many", headers={"retry-after": "3"})), Policy(), Limits())
    response = ask(guard, "POST", "/chat/completions", JSON, b"{}")
    assert (response.status_code, response.headers["retry-after"]) == (429, "3")
    assert response.json()["detail"] == "too many"


def test_no_new_requests_while_draining() -> None:
    draining = asyncio.Event()
    guard = Guard(App(), Policy(), Limits(), draining)
    assert ask(guard, "GET", "/", [("host", "localhost")]).status_code == 200
    draining.set()
    response = ask(guard, "GET", "/", [("host", "localhost")])
    assert (response.status_code, response.headers["connection"]) == (503, "close")
    assert int(response.headers["retry-after"]) > 0


@pytest.mark.parametrize(
    "make",
    [
        lambda: Policy(hosts=frozenset({"a:80"})),
        lambda: Policy(hosts=frozenset({"http://a"})),
        lambda: Policy(hosts=frozenset({""})),
        lambda: Policy(keys=("",)),
        lambda: Policy(keys=("good", "b ad")),
        lambda: Policy(cors_origins=frozenset({"*"})),
        lambda: Policy(cors_origins=frozenset({"null"})),
        lambda: Policy(cors_origins=frozenset({"https://a.example/"})),
    ],
)
def test_a_policy_that_could_never_match_is_refused(make: Callable[[], Policy]) -> None:
    with pytest.raises(ConfigError) as caught:
        make()
    assert "b ad" not in str(caught.value)


def test_names() -> None:
    assert parse_host("A.b:99") == ("a.b", 99)
    assert parse_host("[::FFFF:127.0.0.1]") == ("[::ffff:7f00:1]", None)
    assert not any(parse_host(text) for text in ("a..b", "a" * 64, "[::1", "[::g]", "a:99999", "a\n", "é", ".", "a/b"))
    assert parse_origin("HTTPS://a") == parse_origin("https://A:443") == ("https", "a", 443)
    inside = ("localhost", "LOCALHOST.", "127.0.0.1", "127.9.9.9", "::1", "[::1]", "::ffff:127.0.0.1")
    assert all(loopback(host) for host in inside)
    assert not any(loopback(h) for h in ("", "0.0.0.0", "::", "192.168.1.2", "localhost.evil.example", "127.1.evil"))


def test_error_bodies_are_json_for_any_bytes() -> None:
    guard = Guard(App(), Policy(), Limits())
    for value in (b"\xff\xfe", b"a\x00b", "ü".encode(), b"'\"<script>"):
        for name in (b"host", b"origin", b"content-type"):
            scope = scope_of("/", method="POST")
            scope["headers"] = [(b"content-length", b"2"), (name, value)] + (
                [] if name == b"host" else scope["headers"]
            )
            sent = run_raw(guard, scope, {"type": "http.request", "body": b"{}"})
            assert sent[0]["status"] in (403, 415)
            assert json.loads(sent[1]["body"])["error"]["message"]
