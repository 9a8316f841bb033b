"""What tests share that need a server: the real application, guard and sockets in a thread of the test."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

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
    policy: Policy | None = None,
    limits: Limits | None = None,
    **settings: Any,
) -> Iterator[Served]:
    """Serve a model on a free port of this machine until the end of the block."""
    loaded, runtime = open_model(str(model), choose(), pretrained.load)
    limits = limits or Limits()
    settings.setdefault("generation", GenerationConfig(temperature=0.8, max_new_tokens=64))
    service = Service(Settings("tiny", limits=limits, **settings))
    engine = Engine(runtime, streams=streams, waiting=waiting, per_client=waiting)
    service.open(loaded, [engine])
    draining, ready, door = asyncio.Event(), threading.Event(), listen("127.0.0.1", 0)
    server = Server(Guard(application(service), policy or Policy(), limits, draining), limits, draining, ready.set)
    thread = threading.Thread(target=server.run, kwargs={"sockets": list(door.sockets)})
    thread.start()
    try:
        assert ready.wait(30)
        yield Served(door.url, service, engine, server)
    finally:
        server.should_exit = True
        thread.join(30)
        door.close()
        engine.close()
        assert not thread.is_alive()
