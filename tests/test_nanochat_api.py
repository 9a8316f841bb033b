"""nanochat's own endpoint: the lines of its guide, the fields of its chunks, its limits in its words."""

from __future__ import annotations

import json
import shutil
import subprocess
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from helpers_server import Served, served

GUIDE = """curl -X POST http://localhost:8000/chat/completions \\
  -H "Content-Type: application/json" \\
  -d '{
    "messages": [{"role": "user", "content": "Hello!"}],
    "stream": true
  }'
"""
HELLO = {"role": "user", "content": "Hello!"}
DRAWN = {"messages": [HELLO], "temperature": 0.9, "top_k": 20, "max_tokens": 30, "seed": 3}


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served("demo") as running:
        yield running


def events(text: str) -> list[dict[str, Any]]:
    lines = [line for line in text.split("\n") if line]
    assert all(line.startswith("data: ") for line in lines) and "[DONE]" not in text
    return [json.loads(line.removeprefix("data: ")) for line in lines]


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_the_lines_of_its_guide(server: Served) -> None:
    line = GUIDE.replace("localhost:8000", f"127.0.0.1:{server.port}")
    done = subprocess.run(["sh", "-c", line], capture_output=True, encoding="utf-8", timeout=60)
    chunks = events(done.stdout)
    assert done.returncode == 0 and chunks[-1]["done"] is True
    assert "".join(chunk.get("token", "") for chunk in chunks).strip()
    health = subprocess.run(["curl", "-sS", f"{server.url}/health"], capture_output=True, encoding="utf-8", timeout=60)
    assert json.loads(health.stdout)["status"] == "ok"


def test_its_fields_and_those_of_openai_tell_the_same(server: Served) -> None:
    chunks = events(server.post("/chat/completions", {**DRAWN, "stream_options": {"include_usage": True}}).text)
    text = "".join(chunk["token"] for chunk in chunks)
    assert text and all(chunk["gpu"] == 0 for chunk in chunks)
    said = [chunk["choices"][0]["delta"].get("content", "") for chunk in chunks if chunk["choices"]]
    assert "".join(said) == text and chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""}
    assert chunks[0]["gpt2chat"] == {"dropped_turns": 0} and {chunk["id"] for chunk in chunks} == {chunks[0]["id"]}
    assert [chunk.get("done") for chunk in chunks] == [None] * (len(chunks) - 1) + [True]
    assert chunks[-1]["choices"][0]["finish_reason"] in ("stop", "length")
    assert chunks[-2]["choices"] == [] and chunks[-2]["usage"]["completion_tokens"] > 0


@pytest.mark.parametrize("stream", [None, True, False])
def test_it_streams_unless_it_is_told_not_to(server: Served, stream: bool | None) -> None:
    body = DRAWN if stream is None else {**DRAWN, "stream": stream}
    response = server.post("/chat/completions", body)
    whole = server.post("/v1/chat/completions", DRAWN).json()["choices"][0]["message"]["content"]
    if stream is False:
        assert response.headers["content-type"] == "application/json"
        assert response.json()["choices"][0]["message"]["content"] == whole
    else:
        assert response.headers["content-type"].startswith("text/event-stream")
        assert "".join(chunk["token"] for chunk in events(response.text)) == whole


def said(*contents: str, role: str = "user") -> list[dict[str, str]]:
    return [{"role": role, "content": content} for content in contents]


# each body also breaks all limits behind the one that is told
LATER = {"temperature": 3.0, "top_k": 201, "max_tokens": 0}
LIMITS: list[tuple[str, dict[str, Any]]] = [
    ("At least one message is required", {"messages": [], **LATER}),
    (
        "Too many messages. Maximum 500 messages allowed per request",
        {"messages": said(*[""] * 501, role="robot"), **LATER},
    ),
    ("Message 1 has empty content", {"messages": said("a", "", "x" * 8001, role="robot"), **LATER}),
    (
        "Message 1 is too long. Maximum 8000 characters allowed per message",
        {"messages": said("a", "x" * 8001, *["y" * 8000] * 4, role="robot"), **LATER},
    ),
    (
        "Total conversation is too long. Maximum 32000 characters allowed",
        {"messages": said(*["y" * 8000] * 4, "x", role="robot"), **LATER},
    ),
    (
        "Message 2 has invalid role. Must be 'user', 'assistant', or 'system'",
        {"messages": [*said("a", "b"), *said("c", role="developer")], **LATER},
    ),
    ("Temperature must be between 0.0 and 2.0", {"messages": [HELLO], **LATER}),
    ("top_k must be between 0 and 200", {"messages": [HELLO], **LATER, "temperature": 2.0}),
    ("max_tokens must be between 1 and 4096", {"messages": [HELLO], **LATER, "temperature": 0.0, "top_k": 200}),
]


@pytest.mark.parametrize(("words", "body"), LIMITS, ids=[words for words, _ in LIMITS])
@pytest.mark.parametrize("stream", [None, False])
def test_its_limits_in_its_words_and_order(server: Served, words: str, body: dict[str, Any], stream: Any) -> None:
    response = server.post("/chat/completions", {**body, "stream": stream})
    assert response.status_code == 400 and response.json()["detail"] == words
    assert response.json()["error"]["message"] == words


@pytest.mark.parametrize(
    "options",
    [
        {"temperature": -0.1},
        {"top_k": -1},
        {"max_tokens": 4097},
        {"temperature": 2.0001},
        {"top_k": 201},
        {"max_tokens": -5},
    ],
)
def test_both_ends_of_its_limits(server: Served, options: dict[str, float]) -> None:
    (name,) = options
    words = {"temperature": "Temperature", "top_k": "top_k", "max_tokens": "max_tokens"}[name]
    response = server.post("/chat/completions", {"messages": [HELLO], **options})
    assert response.status_code == 400 and response.json()["detail"].startswith(f"{words} must be between")


def test_what_is_just_within_its_limits_is_answered(server: Served) -> None:
    many = [{"role": "user" if n % 2 == 0 else "assistant", "content": "x" * 60} for n in range(499)]
    system = {"role": "system", "content": "Be kind."}
    bodies: list[dict[str, Any]] = [
        {"messages": [system, *many], "max_tokens": 1},
        {"messages": [HELLO], "temperature": 0.0, "top_k": 0, "max_tokens": 4096},
        {"messages": [HELLO], "temperature": 2.0, "top_k": 200, "max_tokens": 1},
        {"messages": [HELLO, {"role": "assistant", "content": ""}, HELLO], "max_tokens": 1},
        {"messages": [*said("y" * 8000, role="assistant"), HELLO], "max_tokens": 1},
    ]
    for body in bodies:
        response = server.post("/chat/completions", body)
        assert response.status_code == 200 and events(response.text)[-1]["done"] is True, response.text
    dropped = server.post("/chat/completions", bodies[0])
    assert int(dropped.headers["x-gpt2chat-dropped-turns"]) > 100
    assert events(dropped.text)[0]["gpt2chat"]["dropped_turns"] == int(dropped.headers["x-gpt2chat-dropped-turns"])


def test_its_figures(server: Served) -> None:
    assert server.get("/health").json().keys() >= {"status", "ready", "num_gpus", "available_workers"}
    stats = server.get("/stats").json()
    assert stats["total_workers"] == 1 and stats["workers"] == [{"gpu_id": 0, "device": "cpu"}]


def test_a_stream_that_is_left_ends(server: Served) -> None:
    body = {"messages": [HELLO], "max_tokens": 400, "ignore_eos": True}
    with httpx.stream("POST", f"{server.url}/chat/completions", json=body, timeout=30) as response:
        next(response.iter_lines())
    for _ in range(500):
        if server.engine.stats().running == 0:
            break
        httpx.get(f"{server.url}/health")
    assert server.engine.stats().running == 0 and server.get("/stats").json()["available_workers"] == 1
