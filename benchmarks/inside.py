"""Clients that leave and faults that happen, watched from inside: the server runs in a thread of this process."""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import random
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any
from unittest.mock import patch

from helpers_server import Served
from visitors import CHAT, Answer, ask, posted

from gpt2chat import steps
from gpt2chat.engine import Engine
from gpt2chat.server import shapes
from gpt2chat.server.guard import Guard
from gpt2chat.server.sockets import Connection
from gpt2chat.steps import Steps
from gpt2chat.streams import Request

VISIT: contextvars.ContextVar[Visit | None] = contextvars.ContextVar("visit", default=None)


@dataclass
class Visit:
    """One request to the server, what it asked of the engine, and how many steps worked for it after it had left."""

    asked: list[Request] = field(default_factory=list)
    left: str = ""  # where it was when the server noticed
    steps_after: int = 0

    def place(self) -> str:
        """Return how far the answers have come."""
        if not self.asked:
            return "before"
        running = [request for request in self.asked if not request.finish_reason]
        if not running:
            return "end"
        if not any(request.started for request in running):
            return "queued"
        return "prefill" if any(request.in_prompt for request in running) else "decode"


@contextlib.contextmanager
def watched() -> Iterator[list[Visit]]:
    """Note all requests to servers of this process, and count the engine's steps that still work for those who left.

    A step counts when it begins after `connection_lost` of the socket did, and one of the requests it computes is the
    client's. `connection_lost` is the first that a server knows of a client that leaves. On a machine that is busy with
    other things the system may halt the server's thread right there, for as long as several steps take.
    """
    visits = list[Visit]()
    enter, call, lost, run = Engine._enter, Guard.__call__, Connection.connection_lost, Steps.run

    async def calling(self: Guard, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            scope["visit"] = visit = Visit()
            visits.append(visit)
            VISIT.set(visit)
        await call(self, scope, receive, send)

    def entering(self: Engine, request: Request) -> Request:
        if visit := VISIT.get():
            visit.asked.append(request)
            request.visit = visit  # type: ignore[attr-defined]
        return enter(self, request)

    def losing(self: Connection, error: Exception | None) -> None:
        visit = self.cycle.scope.get("visit") if self.cycle else None
        if visit and not self.cycle.response_complete:
            visit.left = visit.place()
        lost(self, error)

    def running(self: Steps, requests: Any) -> Any:
        for visit in {id(v): v for r in requests if (v := getattr(r, "visit", None)) and v.left}.values():
            visit.steps_after += 1
        return run(self, requests)

    with contextlib.ExitStack() as stack:
        for owner, name, new in [
            (Engine, "_enter", entering),
            (Guard, "__call__", calling),
            (Connection, "connection_lost", losing),
            (Steps, "run", running),
        ]:
            stack.enter_context(patch.object(owner, name, new))
        yield visits


def question(rng: random.Random) -> tuple[str, dict[str, Any]]:
    """Return one of many different requests."""
    words = " ".join(
        rng.choices(["river", "mill", "oats", "clock", "bread", "rye", "sea"], k=rng.choice((3, 3, 60, 250)))
    )
    kind, options = rng.random(), {"max_tokens": rng.choice((1, 4, 30, 100)), "ignore_eos": True, "seed": 1}
    if kind < 0.15:
        return "/v1/completions", {"prompt": [words, "a"], "stream": rng.random() < 0.5, **options}
    messages = [{"role": "user", "content": words}]
    if kind < 0.25:
        return "/explain", {"messages": [*messages, {"role": "assistant", "content": words}]}
    path = CHAT if kind < 0.8 else "/chat/completions"
    return path, {"messages": messages, "stream": rng.random() < 0.6, "n": rng.choice((1, 1, 1, 3)), **options}


async def leave(port: int, rng: random.Random) -> None:
    """Ask something and leave at some moment: in the request, a little later, after some events, or at the end."""
    data, how = posted(*question(rng)), rng.random()
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    try:
        if how < 0.1:
            writer.write(data[: rng.randrange(1, len(data))])
            await asyncio.sleep(rng.random() * 0.01)
            return
        writer.write(data)
        if how < 0.5:
            await asyncio.sleep(rng.random() ** 2 * 0.3)
            return
        size, until = 0, rng.choice((1, 1, 1000, 3000, 10000, 1 << 30))
        while part := await reader.read(1 << 16):
            size += len(part)
            if size >= until or b'"finish_reason":"' in part or b'"finish_reason": "' in part:
                return
    finally:
        if rng.random() < 0.5:
            writer.transport.abort()
        else:
            writer.close()


async def disconnect(served: Served, count: int, clients: int = 32) -> dict[str, Any]:
    """Let clients come and leave; tell where they were, what was still computed for them, and what the engine holds."""
    rng, left, start, wrong = random.Random(0), [count], served.engine.stats(), list[str]()

    async def client() -> None:
        while left[0] > 0:
            left[0] -= 1
            await leave(served.port, rng)

    with watched() as visits:
        began = time.perf_counter()
        await asyncio.gather(*(client() for _ in range(clients)))
        await at_rest(served)
        took = time.perf_counter() - began
    places = Counter(visit.left for visit in visits if visit.left)
    after = Counter(visit.steps_after for visit in visits if visit.left)
    stats = served.engine.stats()
    for name in ("running", "waiting", "used_bytes"):
        if getattr(stats, name) != getattr(start, name):
            wrong.append(f"{name}: {getattr(start, name)} before, {getattr(stats, name)} after")
    if served.service._running or served.service.pace.active:
        wrong.append(
            f"{len(served.service._running)} answers are not accounted for, {served.service.pace.active} active"
        )
    wrong += [f"{many} clients left and {steps} steps worked for each" for steps, many in after.items() if steps > 1]
    return {
        "clients": count, "left": dict(places), "steps_after": {str(k): v for k, v in sorted(after.items())},
        "stayed": count - sum(places.values()), "seconds": took, "wrong": wrong,
    }  # fmt: skip


async def at_rest(served: Served, seconds: float = 10) -> None:
    """Wait until the engine has nothing to do."""
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        stats = served.engine.stats()
        if not stats.running + stats.waiting + stats.used_bytes and not served.service._running:
            return
        await asyncio.sleep(0.01)


# where a fault may happen: name -> (owner, function); what belongs to the engine's memory is found when it is there
def places_of(served: Served) -> dict[str, tuple[Any, str]]:
    """Return where a fault may happen."""
    engine = served.engine
    return {
        "sampler": (steps, "checked"),
        "likelihoods": (steps, "likelihoods"),
        "network": (engine.runtime, "forward_batch"),
        "memory.hold": (engine._memory, "hold"),
        "memory.extend": (engine._memory, "extend"),
        "memory.note": (engine._memory, "note"),
        "memory.release": (engine._memory, "release"),
        "engine.join": (engine, "_join"),
        "prompt": (served.service, "_rendered"),
        "writing": (shapes.ChatShape, "_choice"),
    }


@contextlib.contextmanager
def fault(owner: Any, name: str, call: int, error: BaseException, times: int) -> Iterator[list[int]]:
    """Let a function raise at its call number `call`, and as often as `times` from there on; give the calls so far."""
    real, calls = getattr(owner, name), [0]

    def failing(*given: Any, **options: Any) -> Any:
        calls[0] += 1
        if call <= calls[0] < call + times:
            raise error
        return real(*given, **options)

    with patch.object(owner, name, failing):
        yield calls


SECRET = "a secret that no client may read"
HARMLESS = (("memory.release", 1), ("engine.join", 1))  # the answer is there before the one, and begins after the other
ERRORS = (RuntimeError, MemoryError, ValueError, KeyError, IndexError, OSError, AssertionError)


async def fault_all(served: Served, count: int) -> dict[str, Any]:
    """Let faults happen, one at a time, in a request of its own; the next request must be answered as ever."""
    rng, places, wrong = random.Random(0), places_of(served), list[str]()
    body = {"messages": [{"role": "user", "content": "Where?"}], "max_tokens": 8, "seed": 5, "logprobs": True}
    body |= {"ignore_eos": True}
    right = (await ask(served.port, CHAT, body)).text
    outcomes = Counter[str]()
    await at_rest(served)
    used = served.engine.stats().used_bytes
    for number in range(count):
        name = sorted(places)[number % len(places)]
        call, error, streamed = rng.randint(1, 6), rng.choice(ERRORS)(SECRET), rng.random() < 0.5
        call = 1 if name in ("memory.hold", "memory.release", "prompt") else call
        call = min(call, 3 if streamed else 1) if name == "writing" else call
        times = 2 if name == "network" else 1  # a step that failed is tried again for each request alone
        with fault(*places[name], call, error, times) as calls:
            given = await ask(served.port, CHAT, body | {"stream": streamed})
            await at_rest(served)
        what = outcome(given, right)
        outcomes[f"{name}: {what}"] += 1
        if what == "neither" or (what == "answer" and (name, call) not in HARMLESS) or SECRET.encode() in given.body:
            wrong.append(f"{name} call {call} of {calls[0]}, streamed {streamed}: {given.status} {given.body[-200:]!r}")
        after = await ask(served.port, CHAT, body)
        if after.status != 200 or after.text != right:
            wrong.append(f"after {name} call {call}: {after.status} {after.body[:200]!r}")
        await at_rest(served)
        if served.engine.stats().used_bytes != used:
            wrong.append(f"after {name}: {served.engine.stats().used_bytes} bytes in use, {used} before")
    return {"faults": count, "outcomes": dict(sorted(outcomes.items())), "wrong": wrong[:20]}


def outcome(given: Answer, right: str) -> str:
    """Return what a request came to."""
    if given.failed and (given.status >= 500 or given.streamed):
        return "error"
    return "answer" if given.status == 200 and given.whole and given.text == right else "neither"
