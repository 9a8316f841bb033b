"""What tests share that need a server: the real one in a thread of the test, or as a program."""

from __future__ import annotations

import asyncio
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
from helpers_cli import environment

from gpt2chat import pretrained
from gpt2chat.decoding import choose, open_model
from gpt2chat.engine import Engine
from gpt2chat.sampling import GenerationConfig
from gpt2chat.server.app import application
from gpt2chat.server.guard import Guard, Policy
from gpt2chat.server.limits import Limits
from gpt2chat.server.service import Service, Settings
from gpt2chat.server.sockets import Server, listen


@dataclass
class Served:
    """A server that runs: where, and what is behind it."""

    url: str
    service: Service
    engine: Engine
    server: Server

    @property
    def port(self) -> int:
        return int(self.url.rpartition(":")[2])

    def post(self, path: str, body: dict[str, Any], **options: Any) -> httpx.Response:
        return httpx.post(self.url + path, json=body, timeout=60, **options)

    def get(self, path: str, **options: Any) -> httpx.Response:
        return httpx.get(self.url + path, timeout=60, **options)

    def ask(self, text: str, path: str = "/v1/chat/completions", **options: Any) -> dict[str, Any]:
        """The answer to one question, as the API gives it."""
        response = self.post(path, {"messages": [{"role": "user", "content": text}], **options})
        assert response.status_code == 200, response.text
        found: dict[str, Any] = response.json()
        return found


@contextmanager
def served(
    model: str | Path,
    *,
    streams: int = 8,
    waiting: int = 64,
    workers: int = 1,
    policy: Policy | None = None,
    limits: Limits | None = None,
    **settings: Any,
) -> Iterator[Served]:
    """Serve a model on a free port of this machine until the end of the block."""
    loaded, runtime = open_model(str(model), choose(), pretrained.load)
    limits = limits or Limits()
    settings.setdefault("generation", GenerationConfig(temperature=0.8, max_new_tokens=64))
    service = Service(Settings("tiny", limits=limits, **settings), workers)
    engines = [Engine(runtime, streams=streams, waiting=waiting, per_client=waiting) for _ in range(workers)]
    service.open(loaded, engines)
    draining, ready, door = asyncio.Event(), threading.Event(), listen("127.0.0.1", 0)
    server = Server(Guard(application(service), policy or Policy(), limits, draining), limits, draining, ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": list(door.sockets)})
    thread.start()
    try:
        assert ready.wait(30)
        yield Served(door.url, service, engines[0], server)
    finally:
        server.should_exit = True
        thread.join(30)
        door.close()
        for engine in engines:
            engine.close()
        assert not thread.is_alive()


class Program:
    """A running `gpt2chat serve`."""

    def __init__(self, *args: str, folder: Path, **extra: str) -> None:
        command = [sys.executable, "-m", "gpt2chat", "serve", *args]
        self._said = tempfile.TemporaryFile("w+", encoding="utf-8")  # noqa: SIM115 - as long as the program
        self.process = subprocess.Popen(command, cwd=folder, env=environment(**extra), stderr=self._said)

    @property
    def said(self) -> str:
        self._said.seek(0)
        return self._said.read()

    def until(self, words: str) -> str:
        """Wait until these words come; return all that was said."""
        end = time.monotonic() + 60
        while words not in self.said:
            assert time.monotonic() < end and self.process.poll() is None, self.said
            time.sleep(0.02)
        return self.said

    @property
    def url(self) -> str:
        found = re.search(r"http://\S+", self.until("All workers initialized!"))
        assert found
        return found[0]

    def close(self) -> None:
        self._said.close()

    def end(self, number: int = signal.SIGTERM) -> int:
        self.process.send_signal(number)
        return self.process.wait(30)


@contextmanager
def program(*args: str, folder: Path, **extra: str) -> Iterator[Program]:
    running = Program(*args, folder=folder, **extra)
    try:
        yield running
    finally:
        running.process.kill()
        running.process.wait()
        running.close()
