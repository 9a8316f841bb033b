"""The server among bad clients and bad luck: mutated bodies, clients that leave, signals, faults, and what it keeps.

Each part is asked for with a count, as in `python benchmarks/hostile.py --fuzz 1000000 --disconnects 5000`, and prints
one JSON line; a part that finds something wrong says so under "wrong", and the exit code is 1. `--model` takes any
model; without it a tiny one with random weights is made, so that the server and not the network is what is busy.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

sys.path.append(str(Path(__file__).resolve().parent.parent / "tests"))

from mutants import mutant
from serve import server
from visitors import small

CHUNK = 20_000  # bodies of one seed
HEAD = "POST {} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n"


class Client(asyncio.Protocol):
    """A keep-alive connection that asks one thing after the other and reads each answer to its end."""

    def __init__(
        self, ask: Callable[[], tuple[bytes, str] | None], told: Callable[[str, int, str, bytes], None]
    ) -> None:
        self.ask, self.told, self.done = ask, told, asyncio.get_running_loop().create_future()
        self.data, self.what, self.transport = bytearray(), "", None

    def connection_made(self, transport: asyncio.Transport) -> None:
        self.transport = transport
        self.next()

    def next(self) -> None:
        asked = self.ask()
        if asked is None:
            self.what = ""
            self.transport.close()
            return
        data, self.what = asked
        self.data.clear()
        self.transport.write(data)

    def data_received(self, data: bytes) -> None:
        self.data += data
        end = self.data.find(b"\r\n\r\n")
        if end < 0 or not self.what:
            return
        head = bytes(self.data[:end]).lower()
        at = head.find(b"\r\ncontent-length: ")
        if at >= 0:
            there = len(self.data) >= end + 4 + int(head[at + 18 :].split(b"\r\n", 1)[0])
        else:
            there = self.data.endswith(b"0\r\n\r\n")
        if there:
            what, self.what = self.what, ""
            self.told(what, int(head[9:12]), head.decode("latin-1"), bytes(self.data[end + 4 :]))
            if b"\r\nconnection: close" in head:
                self.transport.close()
            else:
                self.next()

    def connection_lost(self, error: Exception | None) -> None:
        if self.what:
            self.told(self.what, 0, "", bytes(self.data))
        if not self.done.done():
            self.done.set_result(None)


async def fuzz(port: int, count: int, connections: int = 64, seed: int = 0) -> dict[str, Any]:
    """Send mutated bodies over keep-alive connections; count answers by status, 0 being a connection that was lost.

    An answer is wrong when its status is 500 or above, or it is no JSON, or there is none.
    """
    rng, left, statuses, kinds, wrong = random.Random(seed), [count], Counter[int](), Counter[str](), list[str]()
    bodies: dict[str, bytes] = {}

    def ask() -> tuple[bytes, str] | None:
        if not left[0]:
            return None
        left[0] -= 1
        path, body = mutant(rng)
        name = f"{path} {left[0]}"
        bodies[name] = body
        return HEAD.format(path, len(body)).encode() + body, name

    def told(what: str, status: int, head: str, answer: bytes) -> None:
        statuses[status] += 1
        body, path = bodies.pop(what), what.split()[0]
        kinds[path] += 200 <= status < 300
        try:
            fine = 200 <= status < 500 and ("event-stream" in head or isinstance(json.loads(answer), dict))
        except ValueError:
            fine = False
        if "event-stream" in head and b'"error"' in answer:
            fine = False
        if not fine:
            wrong.append(f"{status} for {path} {body[:300]!r}: {answer[:300]!r}")

    async def one() -> None:
        loop = asyncio.get_running_loop()
        while left[0]:
            _, client = await loop.create_connection(lambda: Client(ask, told), "127.0.0.1", port)
            await client.done

    began = time.perf_counter()
    await asyncio.gather(*(one() for _ in range(connections)))
    took = time.perf_counter() - began
    answered = {str(status): number for status, number in sorted(statuses.items())}
    return {
        "bodies": count, "statuses": answered, "answered": dict(kinds), "seconds": took, "per_s": count / took,
        "wrong": wrong[:20],
    }  # fmt: skip


def fuzz_part(count: int, model: str, folder: Path) -> dict[str, Any]:
    """Run `fuzz` against a server of its own."""
    options = ("--feedback", str(folder / "feedback.jsonl"), "--max_queue", "1024")
    whole: dict[str, Any] = {"bodies": 0, "seconds": 0.0, "wrong": []}
    with server(model, *options) as (port, _):
        for seed, start in enumerate(range(0, count, CHUNK)):
            found = asyncio.run(fuzz(port, min(CHUNK, count - start), seed=seed))
            for name in ("bodies", "seconds", "wrong"):
                whole[name] += found[name]
            for name in ("statuses", "answered"):
                whole[name] = dict(Counter(whole.get(name, {})) + Counter(found[name]))
            print(json.dumps(whole), file=sys.stderr)
    return {**whole, "per_s": count / whole["seconds"]}


def inside_part(name: str, count: int, folder: Path) -> dict[str, Any]:
    """Run a part that watches the server from inside."""
    import logging

    import inside
    from helpers_server import served

    logging.disable()
    with served(small(folder, 512)) as here:
        return asyncio.run(getattr(inside, name)(here, count))


def forked_part(name: str, count: int, model: str, folder: Path) -> dict[str, Any]:
    """Run a part that needs processes."""
    import canaries
    import forks

    forks.prepare()
    if name == "sigterms":
        return forks.sigterms(model, small(folder, 1024), count, folder)
    return (forks.memory if name == "requests" else canaries.canary_part)(model, count, folder)


# what forks comes before threads are begun
PARTS: dict[str, tuple[str, Callable[[int, str, Path], dict[str, Any]]]] = {
    "sigterms": ("SIGTERM under load", lambda n, model, folder: forked_part("sigterms", n, model, folder)),
    "canaries": ("chats side by side", lambda n, model, folder: forked_part("canaries", n, model, folder)),
    "requests": (
        "memory, files, threads and tasks",
        lambda n, model, folder: forked_part("requests", n, model, folder),
    ),
    "fuzz": ("mutated bodies", fuzz_part),
    "disconnects": ("clients that leave", lambda n, model, folder: inside_part("disconnect", n, folder)),
    "faults": ("exceptions in all layers", lambda n, model, folder: inside_part("fault_all", n, folder)),
}


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, (words, _) in PARTS.items():
        parser.add_argument(f"--{name}", type=int, metavar="N", help=f"so many: {words}")
    parser.add_argument("--model", help="a checkpoint or the name of a model  [default: a tiny random one]")
    arguments = parser.parse_args()
    wrong = False
    with tempfile.TemporaryDirectory() as folder:
        for name, (_, part) in PARTS.items():
            if count := getattr(arguments, name):
                model = arguments.model or small(Path(folder))
                found = part(count, model, Path(folder))
                print(json.dumps({"bench": f"hostile {name}", **found}, ensure_ascii=False), flush=True)
                wrong = wrong or bool(found["wrong"])
    sys.exit(wrong)


if __name__ == "__main__":
    main()
