"""Servers that are processes of their own, begun in a moment: this process imports what they need, and forks.

What a fork runs is the command `gpt2chat serve` from its first line to its exit code.
"""

from __future__ import annotations

import asyncio
import atexit
import contextlib
import os
import random
import re
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from serve import asked, free_port, resident_mb
from visitors import CHAT, Answer, ask

WORDS = ["river", "mill", "oats", "clock", "bread", "rye", "sea", "winter", "key", "music", "two friends", "a town"]


@dataclass(frozen=True)
class Fork:
    """A server that runs: its port, its process, and where it writes."""

    port: int
    pid: int
    log: Path

    def tasks(self) -> int:
        """Return how many asyncio tasks it has; it writes the number down when it is told to."""
        told = self.log.with_suffix(".tasks")
        told.unlink(missing_ok=True)
        os.kill(self.pid, signal.SIGUSR1)
        while not (told.exists() and told.read_text()):
            time.sleep(0.01)
        return int(told.read_text())

    def held(self) -> dict[str, float]:
        """Return what it holds: memory, open files, threads, asyncio tasks."""
        status = Path(f"/proc/{self.pid}/status").read_text()
        return {
            "rss_mb": round(resident_mb(self.pid), 1),
            "files": len(os.listdir(f"/proc/{self.pid}/fd")),
            "threads": int(re.search(r"Threads:\s+(\d+)", status)[1]),
            "tasks": self.tasks(),
        }

    def ended(self, seconds: float) -> int | None:
        """Wait for its end; return its exit code, or None when it lives on."""
        until = time.monotonic() + seconds
        while time.monotonic() < until:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.01)
        return None


def prepare() -> None:
    """Import what a server needs, so that forks have it."""
    import gc

    import gpt2chat.cli.serve
    import gpt2chat.server.running  # noqa: F401
    from gpt2chat.tokenizer import Tokenizer

    Tokenizer.gpt2().encode("ready")
    gc.collect()
    gc.freeze()


def become(words: list[str], log: Path) -> None:
    """Be `gpt2chat …` until its end."""
    from gpt2chat.cli import main

    def tell(*_: object) -> None:
        log.with_suffix(".tasks").write_text(str(len(asyncio.all_tasks())))

    code: Any = 1
    atexit._clear()  # what the parent wants done at its own end
    try:
        os.dup2(os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), 2)
        signal.signal(signal.SIGUSR1, tell)
        main(words, prog_name="gpt2chat")
    except SystemExit as leaving:
        code = leaving.code or 0
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        atexit._run_exitfuncs()
        sys.stderr.flush()
        os._exit(code)


@contextlib.contextmanager
def forked(model: str, log: Path, *options: str) -> Iterator[Fork]:
    """Serve a model until the end of the block; give the server once it is ready."""
    port = free_port()
    pid = os.fork()
    if not pid:
        become(["serve", model, "--port", str(port), *options], log)
    fork = Fork(port, pid, log)
    try:
        while b'"ready":true' not in asked(port):
            if fork.ended(0.02) is not None:
                raise RuntimeError(f"the server ended: {log.read_text()[-500:]}")
        yield fork
    finally:
        with contextlib.suppress(ProcessLookupError, ChildProcessError):
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)


def chat(rng: random.Random, new: int, **options: Any) -> dict[str, Any]:
    """Return a question."""
    words = " ".join(rng.choices(WORDS, k=rng.choice((2, 5, 30))))
    return {"messages": [{"role": "user", "content": words}], "max_tokens": new, "ignore_eos": True, **options}


def outcome(answer: Answer) -> str:
    """Return what a request came to while a server ended."""
    if answer.status == 0 and not answer.body:
        return "refused"
    if answer.status == 503 and answer.failed:
        return "503"
    if answer.status == 200 and answer.done:
        return "done"
    if answer.status == 200 and answer.whole:
        return "error event" if answer.streamed and answer.failed else "whole" if not answer.streamed else "broken"
    return "broken"


async def until_refused(fork: Fork, clients: int, new: tuple[int, int], after: float, seed: int) -> dict[str, Any]:
    """Let clients ask one thing after the other, send SIGTERM after some time, and go on until nobody listens."""
    rng, outcomes, broken, sent = random.Random(seed), Counter[str](), list[str](), [0.0]

    async def client() -> None:
        while True:
            answer = await ask(fork.port, CHAT, chat(rng, rng.randint(*new), stream=rng.random() < 0.8))
            what = outcome(answer)
            if what == "refused" and answer.head != "refused" and not sent[0]:
                what = "broken"  # the connection was taken and nothing came, while nobody had asked for the end
            outcomes[what] += bool(sent[0])
            if what == "broken":
                broken.append(f"{answer.status} {answer.body[-200:]!r}")
            if what in ("refused", "503", "broken"):
                return

    async def end() -> None:
        await asyncio.sleep(after)
        sent[0] = time.monotonic()
        os.kill(fork.pid, signal.SIGTERM)

    await asyncio.gather(end(), *(client() for _ in range(clients)))
    return {"outcomes": outcomes, "broken": broken, "sent": sent[0]}


def sigterms(model: str, long_model: str, count: int, folder: Path, clients: int = 40) -> dict[str, Any]:
    """Stop servers under load; every tenth has answers that are longer than the grace.

    What was under way or comes later must end as a whole answer, a stream with its last event, 503 or a refused
    connection.
    """
    outcomes, wrong, took = Counter[str](), list[str](), list[float]()
    rng, log = random.Random(1), folder / "server.log"
    for number in range(count):
        long = number % 10 == 9
        with forked(long_model if long else model, log) as fork:
            new = (900, 1000) if long else (1, 100)
            found = asyncio.run(until_refused(fork, clients, new, rng.uniform(0.02, 1.0), number))
            code = fork.ended(15)
            took.append(time.monotonic() - found["sent"])
        outcomes += found["outcomes"]
        wrong += found["broken"]
        if code != 0:
            wrong.append(f"round {number}: exit code {code}")
    text = log.read_text("utf-8", "replace")
    wrong += [text[at.start() - 200 : at.start() + 1500] for at in re.finditer("Traceback", text)][:3]
    most = max(took)
    if most > 11:
        wrong.append(f"the end took {most:.1f} s, the grace is 10")
    return {"stops": count, "clients": clients, "after_sigterm": dict(outcomes), "longest_s": most, "wrong": wrong[:20]}


async def many(port: int, count: int, clients: int = 32) -> Counter[str]:
    """Ask many things, of all kinds, streamed and not; return how they were answered."""
    rng, left, statuses = random.Random(2), [count], Counter[str]()

    async def client() -> None:
        while left[0] > 0:
            left[0] -= 1
            kind, stream = rng.random(), rng.random() < 0.5
            if kind < 0.6:
                answer = await ask(port, CHAT, chat(rng, rng.randint(1, 30), stream=stream, n=rng.choice((1, 1, 2))))
            elif kind < 0.75:
                answer = await ask(
                    port, "/v1/completions", {"prompt": rng.choice(WORDS), "max_tokens": 5, "logprobs": 3}
                )
            elif kind < 0.9:
                answer = await ask(port, "/chat/completions", chat(rng, 8))
            else:
                answer = await ask(port, CHAT, {"messages": "none"})
            statuses[str(answer.status) if answer.whole else "broken"] += 1

    await asyncio.gather(*(client() for _ in range(clients)))
    return statuses


def memory(model: str, count: int, folder: Path) -> dict[str, Any]:
    """Ask many things and see what the server holds: at first, after a tenth, and at the end."""
    wrong, statuses = list[str](), Counter[str]()
    with forked(model, folder / "server.log") as fork:
        asyncio.run(many(fork.port, 40))  # all that is made once is made
        held = []
        for part in (0, count // 10, count - count // 10):
            statuses += asyncio.run(many(fork.port, part)) if part else Counter()
            time.sleep(1)
            held.append(fork.held())
    start, tenth, end = held
    if end["rss_mb"] > 1.05 * tenth["rss_mb"]:
        wrong.append(f"memory grew from {tenth['rss_mb']} to {end['rss_mb']} MB")
    wrong += [
        f"{n}: {start[n]} at first, {end[n]} at the end" for n in ("files", "threads", "tasks") if end[n] != start[n]
    ]
    wrong += [f"{number} answers were {status}" for status, number in statuses.items() if status not in ("200", "400")]
    return {
        "requests": count,
        "statuses": dict(statuses),
        "at_first": start,
        "tenth": tenth,
        "end": end,
        "wrong": wrong,
    }
