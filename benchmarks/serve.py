"""The server under load: tokens per second of all clients together, against the engine without a server.

`python benchmarks/serve.py --seconds 120` starts `gpt2chat serve`, lets 256 clients ask one question after the other,
each as a stream, and probes /health beside them. Each answer is compared with the one that the same question got alone.
Before and after, the engine answers the same questions in a process of its own. Then 1,000 sockets that send a byte now
and then are opened, and honest clients' time to the first token is measured with and without them. JSON lines.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import socket
import statistics
import subprocess
import sys
import time
from contextlib import contextmanager
from pathlib import Path

from common import run_worker

WORDS = [
    "the river",
    "an old clock",
    "bread",
    "a small town",
    "winter",
    "a lost key",
    "the sea",
    "two friends",
    "music",
]
QUESTIONS = [f"Tell me about {word}, part {n}." for n in range(6) for word in WORDS]
NEW = 192
TEMPERATURE = float(os.environ.get("TEMPERATURE", "0.8"))
CONTENT = re.compile(rb'"content":("(?:[^"\\]|\\.)*")')


def body(number: int, stream: bool = True) -> bytes:
    """Return question `number` as JSON; it goes on to its length, so that all answers take the same."""
    messages = [{"role": "user", "content": QUESTIONS[number]}]
    options = {"max_tokens": NEW, "temperature": TEMPERATURE, "seed": number, "ignore_eos": True, "stream": stream}
    return json.dumps({"messages": messages, **options}).encode()


def request(path: str, data: bytes) -> bytes:
    """Return a request as it goes over the wire."""
    head = (
        f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {len(data)}\r\n"
    )
    return f"{head}\r\n".encode() + data


class Client:
    """Asks one question after the other over one connection, as OpenAI's clients do."""

    def __init__(self, port: int) -> None:
        self._port = port
        self._streams: tuple[asyncio.StreamReader, asyncio.StreamWriter] | None = None

    async def ask(self, number: int) -> tuple[str, float]:
        """Return the answer to a question, and the seconds to its first token."""
        began = time.perf_counter()
        if self._streams is None:
            self._streams = await asyncio.open_connection("127.0.0.1", self._port)
        reader, writer = self._streams
        writer.write(request("/v1/chat/completions", body(number)))
        whole, first = b"", 0.0
        while part := await reader.read(1 << 16):
            first = first or time.perf_counter() - began
            whole += part
            if whole.endswith(b"\r\n0\r\n\r\n"):
                break
        if b" 200 OK" not in whole[:20] or b"data: [DONE]" not in whole[-64:]:
            self.close()
            raise RuntimeError(f"no whole answer: {whole[:200]!r} … {whole[-200:]!r}")
        return "".join(json.loads(content) for content in CONTENT.findall(whole)), first

    def close(self) -> None:
        """Close the connection."""
        if self._streams:
            self._streams[1].close()
        self._streams = None


async def answers(port: int) -> list[str]:
    """Return the answer to each question, asked alone."""
    client = Client(port)
    found = [(await client.ask(number))[0] for number in range(len(QUESTIONS))]
    client.close()
    return found


async def healthy(port: int, until: float) -> list[float]:
    """Ask for /health ten times a second; return the seconds it took."""
    took = []
    while time.perf_counter() < until:
        began = time.perf_counter()
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
        await reader.read()
        writer.close()
        took.append(time.perf_counter() - began)
        await asyncio.sleep(0.1)
    return took


async def load(port: int, clients: int, seconds: float, alone: list[str]) -> dict[str, float]:
    """Let clients ask one question after the other; return what came of it."""
    until = time.perf_counter() + seconds
    firsts, wrong, errors, done = list[float](), [0], list[str](), [0]

    async def asking(number: int) -> None:
        client = Client(port)
        while time.perf_counter() < until:
            number = (number + 7) % len(QUESTIONS)
            try:
                text, first = await client.ask(number)
            except (RuntimeError, OSError) as error:
                errors.append(str(error))
                continue
            wrong[0] += text != alone[number]
            done[0] += 1
            firsts.append(first)
        client.close()

    began = time.perf_counter()
    probe = asyncio.create_task(healthy(port, until))
    await asyncio.gather(*map(asking, range(clients)))
    took, health = time.perf_counter() - began, sorted(await probe)
    print(*errors[:3], sep="\n", file=sys.stderr)
    return {
        "clients": clients,
        "seconds": took,
        "answers": done[0],
        "errors": len(errors),
        "unlike_alone": wrong[0],
        "tok_s": done[0] * NEW / took,
        "first_token_median_s": statistics.median(firsts),
        "health_p50_ms": 1000 * statistics.median(health),
        "health_p99_ms": 1000 * health[int(0.99 * len(health))],
        "health_probes": len(health),
    }


async def slow_sockets(port: int, count: int, rounds: int) -> dict[str, float]:
    """Measure the time to the first token with and without sockets that send a byte now and then, in turn."""

    async def firsts() -> list[float]:
        client = Client(port)
        found = [(await client.ask(number))[1] for number in range(20)]
        client.close()
        return found

    async def trickle(writers: list[asyncio.StreamWriter]) -> None:
        head = b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: " + 100 * b"a"
        for at in range(len(head)):
            for i, writer in enumerate(writers):
                if not writer.is_closing():
                    writer.write(head[at : at + 1])
                if i % 100 == 99:
                    await asyncio.sleep(0.05)
            await asyncio.sleep(0.5)

    alone, among = list[float](), list[float]()
    await firsts()
    for _ in range(rounds):
        alone += await firsts()
        writers = []
        for _ in range(count):
            try:
                writers.append((await asyncio.open_connection("127.0.0.1", port))[1])
            except OSError as error:
                raise SystemExit(f"could not open {count} sockets: {error}") from error
        trickling = asyncio.create_task(trickle(writers))
        among += await firsts()
        trickling.cancel()
        for writer in writers:
            writer.transport.abort()
        await asyncio.sleep(1)
    medians = statistics.median(alone), statistics.median(among)
    return {"slow_sockets": count, "first_token_s": medians[0], "among_s": medians[1], "ratio": medians[1] / medians[0]}


def free_port() -> int:
    """Return a port that nobody listens on."""
    with socket.socket() as door:
        door.bind(("127.0.0.1", 0))
        return door.getsockname()[1]


@contextmanager
def server(model: str, *options: str):
    """Run `gpt2chat serve`; give its port and process number."""
    port = free_port()
    command = [sys.executable, "-m", "gpt2chat", "serve", model, "--port", str(port), *options]
    log = open(os.environ.get("SERVE_LOG", os.devnull), "w")  # noqa: SIM115 - as long as the program
    process = subprocess.Popen(command, stderr=log)
    try:
        while b'"ready":true' not in asked(port):
            if process.poll() is not None:
                raise SystemExit(f"the server ended with {process.returncode}")
            time.sleep(0.1)
        yield port, process.pid
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait(30)


def asked(port: int) -> bytes:
    """Return what /health says, or nothing while nobody listens."""
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as connection:
            connection.sendall(b"GET /health HTTP/1.1\r\nHost: 127.0.0.1\r\nConnection: close\r\n\r\n")
            return b"".join(iter(lambda: connection.recv(4096), b""))
    except OSError:
        return b""


def resident_mb(pid: int) -> float:
    """Return how much memory a process holds."""
    return int(re.search(r"VmRSS:\s+(\d+)", Path(f"/proc/{pid}/status").read_text())[1]) / 1024


def worker(model: str, streams: str, clients: str, seconds: str) -> None:
    """Measure the engine with the same questions: as many of them wait as there are clients."""
    from gpt2chat import pretrained
    from gpt2chat.conversation import Message, render_prompt
    from gpt2chat.decoding import choose, open_model
    from gpt2chat.engine import Engine
    from gpt2chat.sampling import GenerationConfig
    from gpt2chat.tokenizer import Tokenizer

    loaded, runtime = open_model(model, choose(), pretrained.load)
    tokenizer = Tokenizer.gpt2()
    prompts = [render_prompt([Message("user", q)], loaded.template, tokenizer) for q in QUESTIONS]
    with Engine(runtime, streams=int(streams), waiting=1024, per_client=1024) as engine:
        until, number, running, done = time.perf_counter() + float(seconds), 0, [], 0
        began = time.perf_counter()
        while time.perf_counter() < until:
            while len(running) < int(clients):
                number = (number + 7) % len(QUESTIONS)
                config = GenerationConfig(temperature=TEMPERATURE, top_k=50, seed=number, max_new_tokens=NEW)
                running.append(engine.submit(prompts[number], config))
            done += len(list(running.pop(0)))
        done += sum(stream.new_tokens for stream in running)
        print(json.dumps({"tok_s": done / (time.perf_counter() - began)}))


def main() -> None:
    """Measure everything; or, with --worker, the engine alone."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--clients", type=int, default=256)
    parser.add_argument("--streams", type=int, default=32)
    parser.add_argument("--seconds", type=float, default=120)
    parser.add_argument("--slow", type=int, default=1000)
    parser.add_argument("--worker", nargs=4, metavar=("MODEL", "STREAMS", "CLIENTS", "SECONDS"))
    arguments = parser.parse_args()
    if arguments.worker:
        worker(*arguments.worker)
        return
    baseline = (arguments.model, str(arguments.streams), str(arguments.clients), str(arguments.seconds / 4))
    before = run_worker(__file__, *baseline)["tok_s"]
    options = ("--max_concurrent", str(arguments.streams), "--max_queue", str(arguments.clients))
    with server(arguments.model, *options) as (port, pid):
        alone = asyncio.run(answers(port))
        started = resident_mb(pid)
        found = asyncio.run(load(port, arguments.clients, arguments.seconds, alone))
        grown = resident_mb(pid)
        slow = asyncio.run(slow_sockets(port, arguments.slow, 3)) if arguments.slow else {}
    after = run_worker(__file__, *baseline)["tok_s"]
    engine = {"engine_tok_s": [before, after], "of_engine": found["tok_s"] / statistics.mean([before, after])}
    print(json.dumps({"bench": "load", "model": arguments.model, **found, **engine, "rss_mb": [started, grown]}))
    if slow:
        print(json.dumps({"bench": "slow sockets", "model": arguments.model, **slow}))


if __name__ == "__main__":
    main()
