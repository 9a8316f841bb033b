"""A server of the page without a model: it answers as scripted, and notes what it was asked."""

from __future__ import annotations

import asyncio
import base64
import hashlib
import json
import re
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import uvicorn
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route

PAGE = Path(__file__).resolve().parent.parent / "gpt2chat" / "server" / "page.html"
POLICY = "; ".join(
    (
        "default-src 'none'",
        "script-src 'sha256-{script}'",
        "style-src 'sha256-{style}'",
        "connect-src 'self'",
        "img-src data:",
        "base-uri 'none'",
        "form-action 'none'",
        "frame-ancestors 'none'",
    )
)


def inside(tag: str, page: str) -> str:
    """The text of the one element `tag` of the page."""
    (text,) = re.findall(rf"<{tag}>(.*?)</{tag}>", page, flags=re.S)
    return str(text)


def policy(page: str) -> str:
    hashes = {
        tag: base64.b64encode(hashlib.sha256(inside(tag, page).encode()).digest()).decode()
        for tag in ("script", "style")
    }
    return POLICY.format(**hashes)


@dataclass
class Stub:
    """What the server says next, and what it was asked. Tests change the fields while it runs."""

    answer: Callable[[list[dict[str, str]]], str] = lambda messages: f"You said: {messages[-1]['content']}"
    delay_s: float = 0.0  # before each token
    begin_s: float = 0.0  # before the first one
    piece: int = 0  # bytes per piece that is sent; 0 is an event
    refusal: tuple[int, Any, dict[str, str]] | None = None  # status, body, header fields
    fault: str = ""  # an error event in the middle of the answer
    cut_after: int = 0  # tokens after which the connection ends without a word
    dropped: int = 0
    key: str = ""
    feedback: bool = True
    model: str = "demo"
    title: str = "gpt2chat"
    suggestions: tuple[str, ...] = ()
    reason: str = "stop"  # why answers end
    context: int = 512
    loading: int = 0  # requests that the model is still loading for
    asked: list[dict[str, Any]] = field(default_factory=list)
    explained: list[dict[str, Any]] = field(default_factory=list)
    judged: list[dict[str, Any]] = field(default_factory=list)
    left: int = 0  # clients that went away in the middle
    paths: list[str] = field(default_factory=list)


def tokens_of(text: str) -> list[str]:
    return re.findall(r"\s*\S+|\s+", text)


async def events(stub: Stub, messages: list[dict[str, str]]) -> AsyncIterator[bytes]:
    """Yield the events of an answer, as the server's endpoint words them."""
    base = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": stub.model, "gpu": 0}
    prompt = sum(len(tokens_of(message["content"])) + 4 for message in messages)

    def event(delta: dict[str, str], count: int, reason: str | None = None, **more: Any) -> bytes:
        usage = {"prompt_tokens": prompt, "completion_tokens": count, "total_tokens": prompt + count}
        choice = {"index": 0, "delta": delta, "logprobs": None, "finish_reason": reason}
        details = {"prompt_tokens_details": {"cached_tokens": prompt // 2}}
        chunk = {**base, "token": delta.get("content", ""), "choices": [choice], "usage": {**usage, **details}, **more}
        return f"data: {json.dumps(chunk, ensure_ascii=False)}\r\n\r\n".encode("utf-8", "replace")

    yield event({"role": "assistant", "content": ""}, 0, gpt2chat={"dropped_turns": stub.dropped})
    await asyncio.sleep(stub.begin_s)
    yield b": ping\n\n"
    for number, token in enumerate(tokens := tokens_of(stub.answer(messages)), 1):
        if stub.delay_s:
            await asyncio.sleep(stub.delay_s)
        yield event({"content": token}, number)
        if number == stub.cut_after:
            return
        if stub.fault and number == (len(tokens) + 1) // 2:
            yield f"data: {json.dumps({'error': {'message': stub.fault, 'type': 'server_error'}})}\n\n".encode()
            return
    yield event({}, len(tokens), stub.reason)
    yield event({}, len(tokens), choices=[], done=True)


async def pieces(stub: Stub, messages: list[dict[str, str]]) -> AsyncIterator[bytes]:
    """The same bytes cut where they should not be, also within characters."""
    try:
        async for event in events(stub, messages):
            for start in range(0, len(event), stub.piece or len(event)):
                yield event[start : start + (stub.piece or len(event))]
                await asyncio.sleep(0)
    except asyncio.CancelledError:
        stub.left += 1
        raise


def application(stub: Stub, page: Path = PAGE) -> Starlette:
    """The page and the endpoints that it uses."""

    def refused(request: Request) -> Response | None:
        stub.paths.append(request.url.path)
        if stub.key and request.headers.get("authorization") != f"Bearer {stub.key}":
            return JSONResponse({"error": {"message": "This server wants its key."}}, 401)
        if stub.loading:
            stub.loading -= 1
            message = {"message": "the model is still loading", "code": "loading"}
            return JSONResponse({"error": message}, 503, {"retry-after": "1"})
        return None

    async def show(request: Request) -> Response:
        text = page.read_text("utf-8")
        return Response(text, media_type="text/html", headers={"content-security-policy": policy(text)})

    async def settings(request: Request) -> Response:
        defaults = {"temperature": 0.7, "top_k": 40, "top_p": 1.0, "max_tokens": 256, "system": ""}
        limits = {"messages": 500, "characters": 8000, "max_tokens": 4096, "top_k": 200, "temperature": 2.0}
        facts = {"model": stub.model, "description": "17.7 M parameters, taught 203 answers", "version": "0.1"}
        facts |= {"title": stub.title, "suggestions": stub.suggestions}
        sizes = {"context_length": stub.context, "trained_length": stub.context, "feedback": stub.feedback}
        return refused(request) or JSONResponse({**facts, **sizes, "defaults": defaults, "limits": limits})

    async def chat(request: Request) -> Response:
        if (answer := refused(request)) is not None:
            return answer
        stub.asked.append(body := await request.json())
        if stub.refusal is not None:
            status, content, fields = stub.refusal
            return JSONResponse(content, status, fields) if content else Response("", status, fields)
        return StreamingResponse(pieces(stub, body["messages"]), media_type="text/event-stream")

    async def explain(request: Request) -> Response:
        if (answer := refused(request)) is not None:
            return answer
        stub.explained.append(body := await request.json())
        found = []
        for number, token in enumerate(tokens_of(body["messages"][-1]["content"])):
            others = [{"token": f" other{n}", "logprob": -2.0 - n} for n in range(5)]
            found.append({"token": token, "logprob": -0.9 * (number % 6), "rank": 1, "top_logprobs": others})
        return JSONResponse({"tokens": found})

    async def feedback(request: Request) -> Response:
        if (answer := refused(request)) is not None:
            return answer
        stub.judged.append(await request.json())
        return JSONResponse({"saved": True})

    posts = {"/chat/completions": chat, "/explain": explain, "/feedback": feedback}
    routes = [Route(path, function, methods=["POST"]) for path, function in posts.items()]
    return Starlette(routes=[Route("/", show), Route("/settings", settings), *routes])


@contextmanager
def serving(stub: Stub, port: int = 0) -> Iterator[str]:
    """Serve the stub in a thread; the address ends without a slash."""
    server = uvicorn.Server(
        uvicorn.Config(application(stub), port=port, log_level="warning", timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        while not server.started:
            time.sleep(0.01)
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
