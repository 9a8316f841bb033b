"""The server on real sockets: slow, greedy and vanishing clients harm nobody else, and it ends in good order."""

from __future__ import annotations

import asyncio
import contextlib
import inspect
import os
import select
import signal
import socket
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")

from gpt2chat.errors import ConfigError  # noqa: E402
from gpt2chat.server.guard import Guard, Policy  # noqa: E402
from gpt2chat.server.limits import Limits  # noqa: E402
from gpt2chat.server.sockets import Connection, Server, affordable, listen  # noqa: E402

ROOT = Path(__file__).resolve().parent.parent
QUICK = Limits(
    body=4096,
    header=4096,
    header_fields=20,
    header_s=0.3,
    body_s=0.3,
    stall_s=0.4,
    idle_s=0.3,
    connections=40,
    grace_s=1.0,
)
GET = b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n"
WHOLE_S = 5.0  # far more than any deadline above


class App:
    """/ answers at once; /stream writes until the client goes; /wait answers when told to."""

    def __init__(self) -> None:
        self.gone: list[float] = []
        self.open = threading.Event()
        self.asked = 0
        self.draining: asyncio.Event | None = None

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            return
        self.asked += 1
        await send({"type": "http.response.start", "status": 200, "headers": []})
        if scope["path"] == "/stream":
            await self.stream(receive, send)
        while scope["path"] == "/wait" and not self.open.is_set():
            if self.draining is not None and self.draining.is_set():
                await send({"type": "http.response.body", "body": b"ended early", "more_body": True})
                break
            await asyncio.sleep(0.01)
        await send({"type": "http.response.body", "body": b"done"})

    async def stream(self, receive: Any, send: Any) -> None:
        async def watch() -> None:
            while (await receive())["type"] != "http.disconnect":
                pass

        watcher = asyncio.create_task(watch())
        while not watcher.done():
            await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})
            await asyncio.sleep(0)
        self.gone.append(time.monotonic())


class Running:
    """A server in a thread of its own."""

    def __init__(self, limits: Limits) -> None:
        self.app, self.draining = App(), asyncio.Event()
        self.app.draining = self.draining
        self.door = listen("127.0.0.1", 0)
        self.port = self.door.sockets[0].getsockname()[1]
        ready = threading.Event()
        guard = Guard(self.app, Policy(), limits, self.draining)
        self.server = Server(guard, limits, self.draining, ready.set)
        self.thread = threading.Thread(target=self.server.run, args=(list(self.door.sockets),), daemon=True)
        self.thread.start()
        assert ready.wait(10)

    def connect(self, data: bytes = b"") -> socket.socket:
        client = socket.create_connection(("127.0.0.1", self.port), timeout=WHOLE_S)
        client.sendall(data)
        return client

    def ask(self, data: bytes) -> bytes:
        with self.connect(data) as client:
            return read_all(client)

    def connections(self) -> int:
        return len(self.server.server_state.connections)


def read_all(client: socket.socket) -> bytes:
    """Read until the server ends the connection."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while part := client.recv(65536):
            data += part
    return data


def read_one(client: socket.socket) -> bytes:
    """Read one chunked answer."""
    data = b""
    while not data.endswith(b"\r\n0\r\n\r\n"):
        part = client.recv(65536)
        assert part, data
        data += part
    return data


def until(condition: Any) -> None:
    deadline = time.monotonic() + WHOLE_S
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.005)


@pytest.fixture
def running() -> Iterator[Running]:
    made = Running(QUICK)
    yield made
    made.app.open.set()
    made.server.stop()
    made.thread.join(10)
    assert not made.thread.is_alive()


def status(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1]) if answer else 0


def test_an_answer_says_nothing_of_the_program(running: Running) -> None:
    answer = running.ask(GET)
    assert status(answer) == 200
    assert b"server:" not in answer.lower()
    assert b"x-request-id: req_" in answer


@pytest.mark.parametrize("sent", [b"", b"GET", b"GET / HTTP/1.1\r\nHost: localhost\r\nX-Slow: "])
def test_a_header_has_a_deadline(running: Running, sent: bytes) -> None:
    start = time.monotonic()
    with running.connect(sent) as client:
        answer = trickle(client, b"a" if sent else b"")
    assert 0.2 < time.monotonic() - start < 2
    assert status(answer) == (408 if sent else 0)
    until(lambda: running.connections() == 0)
    assert running.app.asked == 0


def trickle(client: socket.socket, drop: bytes) -> bytes:
    """Send a byte now and then until the server answers or ends the connection."""
    while not select.select([client], [], [], 0.05)[0]:
        with contextlib.suppress(OSError):
            client.sendall(drop)
    return read_all(client)


def test_the_next_header_of_a_connection_has_a_deadline_too(running: Running) -> None:
    with running.connect(GET) as client:
        assert status(read_one(client)) == 200
        client.sendall(b"G")
        start = time.monotonic()
        assert status(trickle(client, b"x")) == 408
        assert 0.2 < time.monotonic() - start < 2
    with running.connect(GET + GET[:9]) as client:  # begun before the first answer was out
        assert read_all(client).count(b"HTTP/1.1 200") == 1


def test_an_idle_connection_is_closed_and_a_used_one_is_not(running: Running) -> None:
    with running.connect() as client:
        for _ in range(6):
            client.sendall(GET)
            assert status(read_one(client)) == 200
            time.sleep(0.1)
        start = time.monotonic()
        assert read_all(client) == b""
        assert time.monotonic() - start < 2


def test_small_answers_are_sent_at_once(running: Running) -> None:
    with running.connect() as client:
        start = time.monotonic()
        for _ in range(40):
            client.sendall(GET)
            assert status(read_one(client)) == 200
    assert time.monotonic() - start < 1, "40 ms each: the second part waits until the first is acknowledged"


POST = b"POST / HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"


@pytest.mark.parametrize("framing", [b"Content-Length: 4000\r\n\r\n", b"Transfer-Encoding: chunked\r\n\r\n"])
def test_a_body_has_a_deadline(running: Running, framing: bytes) -> None:
    start = time.monotonic()
    with running.connect(POST + framing) as client:
        answer = trickle(client, b"x" if b"Length" in framing else b"1\r\nx\r\n")
    assert 0.2 < time.monotonic() - start < 2
    assert (status(answer), running.app.asked) == (408, 0)
    assert b"connection: close" in answer


BOMBS = {
    "many": b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"".join(b"X-%d: 1\r\n" % i for i in range(300)) + b"\r\n",
    "long": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 100_000 + b"\r\n\r\n",
    "endless": b"GET / HTTP/1.1\r\nHost: localhost\r\nX: " + b"y" * 100_000,
    "target": b"GET /" + b"y" * 100_000 + b" HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "names": b"GET / HTTP/1.1\r\nHost: localhost\r\n" + b"y" * 100_000,
}


@pytest.mark.parametrize("bomb", BOMBS.values(), ids=BOMBS)
def test_large_headers_are_refused_at_once(running: Running, bomb: bytes) -> None:
    start = time.monotonic()
    answer = running.ask(bomb)
    assert (status(answer), running.app.asked) == (431, 0)
    assert time.monotonic() - start < 1


ODD = {
    "two lengths": POST + b"Content-Length: 2\r\nContent-Length: 3\r\n\r\n{}x",
    "length list": POST + b"Content-Length: 2, 3\r\n\r\n{}x",
    "length sign": POST + b"Content-Length: +2\r\n\r\n{}",
    "length hex": POST + b"Content-Length: 0x2\r\n\r\n{}",
    "length and coding": POST + b"Content-Length: 2\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n",
    "coding list": POST + b"Transfer-Encoding: gzip, chunked\r\n\r\n0\r\n\r\n",
    "coding odd": POST + b"Transfer-Encoding: xchunked\r\n\r\n0\r\n\r\n",
    "coding twice": POST + b"Transfer-Encoding: chunked\r\nTransfer-Encoding: identity\r\n\r\n0\r\n\r\n",
    "space before colon": POST + b"Content-Length : 2\r\n\r\n{}",
    "chunk size": POST + b"Transfer-Encoding: chunked\r\n\r\n-1\r\n{}\r\n0\r\n\r\n",
    "chunk end": POST + b"Transfer-Encoding: chunked\r\n\r\n2\r\n{}xx0\r\n\r\n",
    "no host": b"GET / HTTP/1.1\r\n\r\n",
    "no host, old": b"GET / HTTP/1.0\r\n\r\n",
    "two hosts": b"GET / HTTP/1.1\r\nHost: localhost\r\nHost: localhost\r\n\r\n",
    "absolute": b"GET http://localhost/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "absolute, foreign": b"GET http://evil.example/ HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "connect": b"CONNECT localhost:80 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "star": b"OPTIONS * HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "null": b"GET /\x00 HTTP/1.1\r\nHost: localhost\r\n\r\n",
    "bytes": b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03\r\n\r\n",
    "http/2": b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
}


@pytest.mark.parametrize("request_", ODD.values(), ids=ODD)
def test_what_two_programs_could_read_differently_is_refused(running: Running, request_: bytes) -> None:
    answer = running.ask(request_ + GET)
    assert answer.count(b"HTTP/1.1 ") == 1, "what follows was read as a request"
    assert (status(answer), running.app.asked) == (400, 0)
    assert b'"error"' in answer


def test_a_streamed_body_is_cut_at_the_limit(running: Running) -> None:
    with running.connect(POST + b"Transfer-Encoding: chunked\r\n\r\n") as client:
        sent = 0
        with contextlib.suppress(OSError):
            while sent < 1 << 30 and not select.select([client], [], [], 0)[0]:
                client.sendall(b"1000\r\n" + b"x" * 4096 + b"\r\n")
                sent += 4096
        assert status(read_all(client)) == 413
    assert sent < 1 << 25
    announced = running.ask(POST + b"Content-Length: 5000\r\nExpect: 100-continue\r\n\r\n")
    assert status(announced) == 413
    late = running.ask(POST + b"Content-Length: 200000\r\n\r\n" + b"x" * 200_000)  # sends all before it reads
    assert (status(late), running.app.asked) == (413, 0)


def test_waiting_clients_make_room_for_new_ones(running: Running) -> None:
    used = running.connect(GET)
    assert status(read_one(used)) == 200
    held = [running.connect(b"GET") for _ in range(QUICK.connections * 2)]
    with running.connect(GET) as honest:
        assert status(read_one(honest)) == 200
    assert running.connections() <= QUICK.connections
    assert select.select([held[0]], [], [], WHOLE_S)[0], "the oldest went first"
    assert not select.select([held[-1]], [], [], 0)[0]
    for client in (used, *held):
        client.close()


def test_when_all_are_busy_a_new_client_is_told_so() -> None:
    running = Running(Limits(connections=3, header_s=0.5))
    busy = [running.connect(GET.replace(b"/", b"/wait", 1)) for _ in range(3)]
    until(lambda: running.app.asked == 3)
    answer = running.ask(GET)
    assert status(answer) == 503
    assert b"\r\nretry-after: " in answer
    running.app.open.set()
    for client in busy:
        assert b"done" in read_one(client)
        client.close()
    assert status(running.ask(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))) == 200
    running.server.stop()
    running.thread.join(10)


def test_a_client_that_does_not_read_is_dropped_and_the_app_told(running: Running) -> None:
    with running.connect(GET.replace(b"/", b"/stream", 1)):
        start = time.monotonic()
        until(lambda: running.app.gone)
        assert QUICK.stall_s * 0.9 < time.monotonic() - start < QUICK.stall_s + 2
        until(lambda: running.connections() == 0)


def test_a_slow_reader_is_not_dropped(running: Running) -> None:
    with running.connect(GET.replace(b"/", b"/stream", 1)) as client:
        deadline = time.monotonic() + 3 * QUICK.stall_s
        while time.monotonic() < deadline:
            assert client.recv(1 << 20)
            time.sleep(0.02)
        assert not running.app.gone
    until(lambda: running.app.gone)


def test_draining_ends_streams_and_closes_idle_connections(running: Running) -> None:
    idle, streaming = running.connect(GET), running.connect(GET.replace(b"/", b"/wait", 1))
    with idle, streaming:
        check_draining(running, idle, streaming)


def check_draining(running: Running, idle: socket.socket, streaming: socket.socket) -> None:
    assert status(read_one(idle)) == 200
    until(lambda: running.app.asked == 2)
    start = time.monotonic()
    running.server.stop()
    assert read_all(idle) == b""
    assert read_all(streaming).endswith(b"ended early\r\n4\r\ndone\r\n0\r\n\r\n")
    running.thread.join(10)
    assert time.monotonic() - start < QUICK.grace_s
    with pytest.raises(OSError):
        running.connect()


def test_what_does_not_end_within_the_grace_is_cut(running: Running) -> None:
    client = running.connect(GET.replace(b"/", b"/stream", 1))
    reader = threading.Thread(target=read_all, args=(client,))
    reader.start()
    until(lambda: running.app.asked)
    start = time.monotonic()
    running.server.stop()
    running.thread.join(10)
    assert QUICK.grace_s * 0.8 < time.monotonic() - start < QUICK.grace_s + 1
    assert running.app.gone
    reader.join(5)
    client.close()


PROGRAM = """
    import asyncio, sys
    from gpt2chat.server.guard import Guard, Policy
    from gpt2chat.server.limits import Limits
    from gpt2chat.server.sockets import listen, serve

    async def app(scope, receive, send):
        if scope["type"] != "http":
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not (draining.is_set() and HEEDS):
            await send({"type": "http.response.body", "body": b".", "more_body": True})
            await asyncio.sleep(0.01)
        await send({"type": "http.response.body", "body": b"END"})

    HEEDS = sys.argv[1] == "heeds"
    draining, limits = asyncio.Event(), Limits(grace_s=float(sys.argv[2]))
    received = serve(Guard(app, Policy(), limits, draining), listen("127.0.0.1", 0), limits,
                     on_ready=lambda url: print(url, flush=True), draining=draining)
    print("after", received.name, flush=True)
    sys.exit(int(sys.argv[3]))
"""


@contextlib.contextmanager
def program(*arguments: str) -> Iterator[tuple[subprocess.Popen[str], socket.socket]]:
    """Run PROGRAM, with one client in the middle of a stream."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-c", textwrap.dedent(PROGRAM), *arguments]
    process = subprocess.Popen(command, stdout=-1, stderr=-1, text=True, env=environment)
    try:
        assert process.stdout is not None
        port = int(process.stdout.readline().rpartition(":")[2])
        with socket.create_connection(("127.0.0.1", port), timeout=10) as client:
            client.sendall(GET)
            assert client.recv(65536)
            yield process, client
    finally:
        process.kill()
        process.wait()


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
@pytest.mark.parametrize(("which", "code"), [(signal.SIGTERM, 0), (signal.SIGINT, 7)])
def test_after_a_signal_streams_end_and_the_caller_chooses_the_exit_code(which: signal.Signals, code: int) -> None:
    with program("heeds", "5", str(code)) as (process, client):
        process.send_signal(which)
        assert read_all(client).endswith(b"END\r\n0\r\n\r\n")
        output, errors = process.communicate(timeout=10)
    assert (process.returncode, output, errors) == (code, f"after {which.name}\n", "")


@pytest.mark.skipif(sys.platform == "win32", reason="signals of POSIX")
def test_a_second_interrupt_ends_at_once() -> None:
    with program("ignores", "60", "0") as (process, _):
        process.send_signal(signal.SIGINT)
        time.sleep(0.3)
        assert process.poll() is None
        start = time.monotonic()
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=10)
        assert time.monotonic() - start < 3
    assert process.returncode == 0


def test_listening() -> None:
    first = listen("127.0.0.1", 0)
    port = first.sockets[0].getsockname()[1]
    assert first.url == f"http://127.0.0.1:{port}"
    with pytest.raises(ConfigError, match=f"^port {port} of 127.0.0.1 is in use: pass another --port, or stop"):
        listen("127.0.0.1", port)
    first.close()
    listen("127.0.0.1", port).close()
    anywhere = listen("0.0.0.0", 0)
    assert anywhere.url.startswith("http://127.0.0.1:")
    anywhere.close()
    both = listen("localhost", 0)
    assert both.url.startswith("http://localhost:")
    assert len({each.getsockname()[1] for each in both.sockets}) == 1
    both.close()


def test_listening_on_ipv6() -> None:
    try:
        socket.create_server(("::1", 0), family=socket.AF_INET6).close()
    except OSError:
        pytest.skip("this machine has no IPv6")
    for host in ("::1", "[::1]"):
        door = listen(host, 0)
        assert door.url == f"http://[::1]:{door.sockets[0].getsockname()[1]}"
        door.close()


@pytest.mark.parametrize("host", ["203.0.113.7", "a b", "x" * 70, "ho\0st", "no-such-host.invalid", "http://localhost"])
def test_a_host_one_cannot_have(host: str) -> None:
    with pytest.raises(ConfigError, match="--host") as caught:
        listen(host, 0)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("port", [-1, 65536, 10**9])
def test_a_port_that_is_none(port: int) -> None:
    with pytest.raises(ConfigError, match="--port"):
        listen("127.0.0.1", port)


def test_files_for_connections() -> None:
    assert affordable(10) == 10
    assert 0 < affordable(10**9) < 10**9


def test_uvicorn_has_what_this_leans_on() -> None:
    """If this fails, uvicorn has changed: read `Connection` and `Server` against its new source."""
    import uvicorn
    from uvicorn.protocols.http.h11_impl import H11Protocol, RequestResponseCycle

    hooks = ("connection_made", "connection_lost", "data_received", "pause_writing", "resume_writing", "shutdown")
    for name in (*hooks, "send_400_response", "on_response_complete"):
        assert name in vars(H11Protocol), name
        assert name in vars(Connection), name
    assert "self.send_400_response(msg)" in inspect.getsource(H11Protocol.handle_events)
    assert "on_response=self.on_response_complete" in inspect.getsource(H11Protocol.handle_events)
    assert "if self.disconnected:" in inspect.getsource(RequestResponseCycle.send)
    for name in ("startup", "shutdown", "handle_exit"):
        assert name in vars(uvicorn.Server), name
    server = inspect.getsource(uvicorn.Server)
    assert all(word in server for word in ("self.should_exit", "self.force_exit", "self.server_state.connections"))
