"""What clients of the benchmarks share: one request on one connection, and what came of it."""

from __future__ import annotations

import asyncio
import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONTENT = re.compile(rb'"(?:content|text)":\s*("(?:[^"\\]|\\.)*")')
CHAT = "/v1/chat/completions"


@dataclass(frozen=True)
class Answer:
    """What a connection gave: status 0 is none at all; `whole` says that nothing of it is missing."""

    status: int
    head: str
    body: bytes
    whole: bool

    @property
    def streamed(self) -> bool:
        return "event-stream" in self.head

    @property
    def done(self) -> bool:
        """Whether it is a stream that came to its end."""
        return self.whole and self.streamed and self.body.rstrip().endswith(b"data: [DONE]")

    @property
    def failed(self) -> bool:
        """Whether it is an error, as an object of its own or as the last event of a stream."""
        if not self.whole:
            return False
        last = self.body.rstrip().rpartition(b"data: ")[2] if self.streamed else self.body
        try:
            return "error" in json.loads(last)
        except ValueError:
            return False

    @property
    def text(self) -> str:
        """The answer, or all choices of it one behind the other."""
        if self.streamed:
            return "".join(json.loads(content) for content in CONTENT.findall(self.body))
        choices = json.loads(self.body)["choices"]
        return "".join(choice.get("text") or choice.get("message", {}).get("content", "") for choice in choices)


def posted(path: str, body: dict[str, Any], key: str = "") -> bytes:
    """Return a request as it goes over the wire."""
    data = json.dumps(body).encode()
    lines = [f"POST {path} HTTP/1.1", "Host: 127.0.0.1", "Content-Type: application/json", "Connection: close"]
    lines += [f"Content-Length: {len(data)}"] + [f"Authorization: Bearer {key}"] * bool(key)
    return "\r\n".join([*lines, "", ""]).encode() + data


def read(data: bytes) -> Answer:
    """Return what stands in all bytes of a connection."""
    head, gap, body = data.partition(b"\r\n\r\n")
    if not gap:
        return Answer(0, "", data, False)
    text = head.decode("latin-1").lower()
    if "transfer-encoding: chunked" in text:
        parts, rest = [], body
        while rest:
            size, _, rest = rest.partition(b"\r\n")
            length = int(size, 16)
            if not length:
                return Answer(int(head[9:12]), text, b"".join(parts), rest == b"\r\n")
            parts.append(rest[:length])
            if rest[length : length + 2] != b"\r\n":
                break
            rest = rest[length + 2 :]
        return Answer(int(head[9:12]), text, b"".join(parts), False)
    told = re.search(r"content-length: (\d+)", text)
    return Answer(int(head[9:12]), text, body, told is not None and int(told[1]) == len(body))


async def ask(port: int, path: str, body: dict[str, Any], key: str = "") -> Answer:
    """Ask and read to the end; status 0 when the connection was refused or gave nothing."""
    parts = list[bytes]()
    try:
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
    except OSError:
        return Answer(0, "refused", b"", False)
    try:
        writer.write(posted(path, body, key))
        while part := await reader.read(1 << 16):
            parts.append(part)
    except OSError:
        pass
    finally:
        writer.transport.abort()
    return read(b"".join(parts))


def small(folder: Path, n_ctx: int = 128) -> str:
    """Write a checkpoint of a tiny random model; return its path."""
    from gpt2chat import checkpoint
    from gpt2chat.checkpoint import Checkpoint
    from gpt2chat.conversation import TEMPLATES
    from gpt2chat.model import GPT2, GPT2Config

    config = GPT2Config(n_layer=2, n_head=2, n_embd=32, n_ctx=n_ctx, vocab_size=50257)
    weights = {name: tensor.detach() for name, tensor in GPT2(config).init_weights(0).state_dict().items()}
    path = folder / f"tiny-{n_ctx}.pt"
    checkpoint.save(Checkpoint(config, weights, TEMPLATES["chat"], about={"base": "tiny"}), path)
    return str(path)
