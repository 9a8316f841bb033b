"""OpenAI's own Python client against a real server: errors, retries, time limits, and clients that leave."""

from __future__ import annotations

import asyncio
import re
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers_cli import save_tiny
from helpers_engine import idle
from helpers_server import Served, served

from gpt2chat.server.guard import Policy

openai = pytest.importorskip("openai")

CHAT = "/v1/chat/completions"
HELLO: Any = [{"role": "user", "content": "Hello!"}]
KEY = "a-key-of-ours"
CLIENTS: list[Any] = []


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny.pt")


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Served]:
    with served(model, policy=Policy(keys=(KEY,))) as running:
        yield running


@pytest.fixture(autouse=True)
def _clients() -> Iterator[None]:
    """Close the clients that a test made."""
    yield
    while CLIENTS:
        CLIENTS.pop().close()


def client_of(server: Served, **options: Any) -> Any:
    options = {"api_key": KEY, "max_retries": 0, "timeout": 60, **options}
    CLIENTS.append(openai.OpenAI(base_url=f"{server.url}/v1", **options))
    return CLIENTS[-1]


def ask(client: Any, **options: Any) -> Any:
    return client.chat.completions.create(**{"model": "tiny", "messages": HELLO, "max_tokens": 4, **options})


def answered(server: Served, status: int, path: str = CHAT) -> int:
    """How many responses of a status the server has counted."""
    text = server.get("/metrics", headers={"authorization": f"Bearer {KEY}"}).text
    found = re.search(rf'gpt2chat_http_requests_total{{path="{path}",status="{status}"}} (\d+)', text)
    return int(found[1]) if found else 0


@contextmanager
def paused(server: Served) -> Iterator[None]:
    """Let the model compute nothing within the block."""
    runtime, go = server.engine.runtime, threading.Event()
    forward = runtime.forward_batch

    def wait(parts: Any) -> Any:
        assert go.wait(30)
        return forward(parts)

    runtime.forward_batch = wait  # type: ignore[method-assign]
    try:
        yield
    finally:
        go.set()
        del runtime.forward_batch


REFUSED: dict[str, tuple[dict[str, Any], str]] = {
    "no messages": ({"messages": []}, "messages"),
    "a tool": ({"tools": [{"type": "function", "function": {"name": "f", "parameters": {}}}]}, "tools"),
    "a function": ({"functions": [{"name": "f", "parameters": {}}]}, "functions"),
    "JSON": ({"response_format": {"type": "json_object"}}, "response_format"),
    "a schema": ({"response_format": {"type": "json_schema", "json_schema": {"name": "x"}}}, "response_format"),
    "sound": ({"modalities": ["text", "audio"]}, "modalities"),
    "temperature": ({"temperature": 2.5}, "temperature"),
    "top_p": ({"top_p": 1.5}, "top_p"),
    "n": ({"n": 100}, "n"),
    "max_tokens": ({"max_tokens": 0}, "max_tokens"),
    "stops": ({"stop": ["a", "b", "c", "d", "e"]}, "stop"),
    "a bias": ({"logit_bias": {"5": 101}}, "logit_bias"),
    "a token that is none": ({"logit_bias": {"99999999": 1}}, None),  # type: ignore[dict-item]
    "likeliest tokens": ({"top_logprobs": 3}, "top_logprobs"),
    "too many of them": ({"top_logprobs": 21, "logprobs": True}, "top_logprobs"),
    "penalty": ({"presence_penalty": 3}, "presence_penalty"),
    "min_p": ({"extra_body": {"min_p": 7}}, "min_p"),
}


@pytest.mark.parametrize("name", REFUSED)
def test_what_cannot_be_served_is_a_bad_request_that_names_its_field(server: Served, name: str) -> None:
    options, param = REFUSED[name]
    before = answered(server, 400)
    with pytest.raises(openai.BadRequestError) as caught:
        ask(client_of(server, max_retries=3), **options)
    error = caught.value
    assert error.type == "invalid_request_error" and error.status_code == 400 and error.request_id.startswith("req_")
    assert param is None or (error.param == param and param in error.body["message"])
    assert answered(server, 400) == before + 1  # it is not tried again
    with pytest.raises(openai.BadRequestError):
        ask(client_of(server), **options, stream=True)


def test_parts_that_are_no_text(server: Served) -> None:
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    for messages in ([{"role": "user", "content": [picture]}], [{"role": "tool", "content": "x", "tool_call_id": "1"}]):
        with pytest.raises(openai.BadRequestError) as caught:
            ask(client_of(server), messages=messages)
        assert caught.value.param.startswith("messages.0")


@pytest.mark.parametrize("stream", [False, True])
def test_a_message_that_cannot_fit(server: Served, stream: bool) -> None:
    with pytest.raises(openai.BadRequestError, match="max_tokens") as caught:
        ask(client_of(server), messages=[{"role": "user", "content": "word " * 400}], stream=stream)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "messages")
    assert "max_new_tokens" not in str(caught.value)
    with pytest.raises(openai.BadRequestError) as caught:
        client_of(server).completions.create(model="tiny", prompt="word " * 400, stream=stream)
    assert (caught.value.code, caught.value.param) == ("context_length_exceeded", "prompt")


def test_keys_and_names(server: Served) -> None:
    for key in ("another", f"{KEY}x", "none"):
        with pytest.raises(openai.AuthenticationError) as caught:
            ask(client_of(server, api_key=key, max_retries=2))
        assert caught.value.code == "invalid_api_key" and KEY not in str(caught.value)
    with pytest.raises(openai.NotFoundError) as caught:
        ask(client_of(server), model="gpt-9")
    assert (caught.value.code, caught.value.param) == ("model_not_found", "model")
    with pytest.raises(openai.NotFoundError):
        client_of(server).embeddings.create(model="tiny", input="a")
    with pytest.raises(openai.PermissionDeniedError) as caught:
        ask(client_of(server, default_headers={"Origin": "https://evil.example"}))
    assert caught.value.code == "origin_not_allowed"


def test_the_id_of_a_request_is_the_one_that_was_sent(server: Served) -> None:
    assert ask(client_of(server), extra_headers={"x-request-id": "my-own.1"})._request_id == "my-own.1"
    first, second = (ask(client_of(server))._request_id for _ in range(2))
    assert first.startswith("req_") and first != second


def test_a_full_queue_is_tried_again_after_the_time_the_server_says(model: Path) -> None:
    with served(model, streams=1, waiting=1, policy=Policy(keys=(KEY,))) as server:
        busy = [threading.Thread(target=ask, args=(client_of(server),)) for _ in range(2)]
        with paused(server):
            for thread in busy:
                thread.start()
            while (stats := server.engine.stats()).running + stats.waiting < 2 or not stats.running:
                time.sleep(0.005)
            with pytest.raises(openai.RateLimitError) as caught:
                ask(client_of(server))
            assert caught.value.code == "queue_full" and caught.value.type == "rate_limit_error"
            assert int(caught.value.response.headers["retry-after"]) >= 1
            began, before = time.perf_counter(), answered(server, 429)
            with pytest.raises(openai.RateLimitError):
                ask(client_of(server, max_retries=1), stream=True)
            assert answered(server, 429) == before + 2 and time.perf_counter() - began >= 1
        for thread in busy:
            thread.join(30)
        idle(server.engine)
        assert ask(client_of(server)).choices


def test_a_model_that_still_loads(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server.service, "_loaded", None)
    echo: dict[str, Any] = {"model": "tiny", "prompt": "a", "echo": True, "logprobs": 0}
    for call in (ask, lambda client: client.completions.create(**echo)):
        with pytest.raises(openai.InternalServerError) as caught:
            call(client_of(server))
        assert (caught.value.status_code, caught.value.code) == (503, "loading")
    assert client_of(server).models.list().data


def test_the_client_waits_until_the_model_is_loaded(server: Served) -> None:
    service, loaded = server.service, server.service._loaded
    before = answered(server, 503)
    service._loaded = None
    later = threading.Timer(0.4, setattr, (service, "_loaded", loaded))
    later.start()
    try:
        assert ask(client_of(server, max_retries=2)).choices
    finally:
        later.join()
    assert answered(server, 503) == before + 1


def test_faults_of_the_server_are_not_tried_again(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("a fault")

    monkeypatch.setattr(server.service, "check_name", broken)
    before = answered(server, 500)
    with pytest.raises(openai.InternalServerError, match="a fault of its own") as caught:
        ask(client_of(server, max_retries=2))
    assert caught.value.type == "server_error" and answered(server, 500) == before + 1


def test_a_fault_amid_a_stream_is_an_error_of_the_client(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = ask(client_of(server), stream=True, max_tokens=90, extra_body={"ignore_eos": True})
    next(stream)
    server.service.end_all()
    with pytest.raises(openai.APIError, match="shutting down"):
        list(stream)
    idle(server.engine)


def test_clients_that_run_out_of_time_free_the_engine(server: Served) -> None:
    with paused(server):
        for stream in (False, True):
            with pytest.raises(openai.APITimeoutError):
                ask(client_of(server, timeout=0.2), stream=stream)
    idle(server.engine)
    assert ask(client_of(server)).choices


def test_streams_that_are_left_free_the_engine(server: Served) -> None:
    long = {"stream": True, "max_tokens": 100, "extra_body": {"ignore_eos": True}}
    cancelled = server.engine.stats().cancelled
    for _ in range(3):
        stream = ask(client_of(server), **long, n=2)
        next(stream)
        stream.close()
    idle(server.engine)

    async def leave() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key=KEY, max_retries=0) as client:
            tasks = [asyncio.create_task(ask(client, **{**long, "stream": False})) for _ in range(4)]
            while server.engine.stats().running + server.engine.stats().waiting < 4:
                await asyncio.sleep(0.001)
            for task in tasks:
                task.cancel()
            assert all(isinstance(one, BaseException) for one in await asyncio.gather(*tasks, return_exceptions=True))

    with paused(server):
        asyncio.run(leave())
    idle(server.engine)
    assert server.engine.stats().cancelled > cancelled
    health = httpx.get(f"{server.url}/health").json()
    assert health == {"status": "ok", "ready": True, "num_gpus": 1, "available_workers": 1}
