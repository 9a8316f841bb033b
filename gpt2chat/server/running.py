"""From settings to a server that runs: the door opens, the model loads behind it, and everything ends in order."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from dataclasses import dataclass

from starlette.applications import Starlette

from gpt2chat import pretrained
from gpt2chat.checkpoint import Checkpoint
from gpt2chat.decoding import Choice, choose, open_model
from gpt2chat.engine import Engine
from gpt2chat.errors import ConfigError
from gpt2chat.server.app import application
from gpt2chat.server.guard import Guard, Policy
from gpt2chat.server.service import Service
from gpt2chat.server.sockets import Door, serve

ENDING = 0.8  # of the grace: what still runs then is ended, so that there is time to say so


@dataclass(frozen=True)
class Workers:
    """Which model computes, in which form, and how many answers at a time: one worker, or one for each GPU."""

    name: str
    count: int = 1
    device: str = "auto"
    dtype: str = "auto"
    quantize: str = "auto"
    draft: str = "auto"
    streams: int = 32
    waiting: int = 256
    shared_key: bool = False  # all clients are one to the queue, which none of them can fill for the others

    def choices(self, notice: Callable[[str], None]) -> list[Choice]:
        """Return where each worker computes; raises ConfigError."""
        if self.count == 1:
            return [choose(self.device, self.dtype, self.quantize, notice)]
        if self.device not in ("auto", "cuda"):
            raise ConfigError(f"num_gpus: expected 1 for a device of type {self.device}, got {self.count}")
        import torch

        if self.count > torch.cuda.device_count():
            there = torch.cuda.device_count()
            raise ConfigError(f"num_gpus: expected at most {there}, the GPUs of this machine, got {self.count}")
        return [choose(f"cuda:{number}", self.dtype, self.quantize, notice) for number in range(self.count)]

    def open(self, choices: Sequence[Choice], said: Callable[[str], None]) -> tuple[Checkpoint, list[Engine]]:
        """Load the model for each worker; raises what loading raises."""
        engines = list[Engine]()
        for choice in choices:
            loaded, runtime = open_model(self.name, choice, pretrained.load)
            if not engines:
                said(f"{pretrained.describe(loaded)}; {runtime.description}")
            per_client = self.waiting if self.shared_key else None
            most = {"streams": self.streams, "waiting": self.waiting, "per_client": per_client or None}
            engines.append(Engine(runtime, draft=self.draft, **most))  # type: ignore[arg-type]
        return loaded, engines


class Running:
    """A service, its workers and its door, until SIGTERM or SIGINT."""

    def __init__(self, service: Service, workers: Workers, policy: Policy, said: Callable[[str], None]) -> None:
        """`said` gets what an operator should know, from any thread."""
        self._service, self._workers, self._policy, self._said = service, workers, policy, said
        self._draining = asyncio.Event()
        self._fault: BaseException | None = None

    def serve(
        self, door: Door, choices: Sequence[Choice], on_listening: Callable[[str], None]
    ) -> signal.Signals | None:
        """Serve until a signal, and return it; raises what loading the model raised."""
        app = application(self._service, self._lifespan(choices))
        limits = self._service.settings.limits
        guarded = Guard(app, self._policy, limits, self._draining, self._service.figures.refuse)
        try:
            received = serve(guarded, door, limits, on_ready=on_listening, draining=self._draining)
        finally:
            if self._service.engine:
                self._service.engine.close()
        if self._fault:
            raise self._fault
        return received

    def _lifespan(
        self, choices: Sequence[Choice]
    ) -> Callable[[Starlette], contextlib.AbstractAsyncContextManager[None]]:
        @contextlib.asynccontextmanager
        async def lifespan(app: Starlette) -> AsyncIterator[None]:
            loop = asyncio.get_running_loop()
            threading.Thread(target=self._load, args=(choices, loop), name="gpt2chat-loading", daemon=True).start()
            ending = asyncio.create_task(self._end())
            try:
                yield
            finally:
                ending.cancel()

        return lifespan

    def _load(self, choices: Sequence[Choice], loop: asyncio.AbstractEventLoop) -> None:
        try:
            loaded, engines = self._workers.open(choices, self._said)
            self._service.open(loaded, engines, self._workers.name)
        except BaseException as error:
            self._fault = error
            with contextlib.suppress(RuntimeError):  # the loop has ended before
                loop.call_soon_threadsafe(signal.raise_signal, signal.SIGTERM)
        else:
            self._said("All workers initialized!")

    async def _end(self) -> None:
        """Once the end is announced, end those who wait, and at last those who run."""
        await self._draining.wait()
        self._service.drain()
        await asyncio.sleep(ENDING * self._service.settings.limits.grace_s)
        self._service.end_all()
