"""The same prompt with the same seed gives the same text in Python, in the terminal and over HTTP."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers_cli import invoke, spawn
from helpers_server import Served, served

from gpt2chat.chatbot import GPT2Chatbot

PROMPTS = (
    "What is your name?",
    "Tell me about the sea.",
    "How do I bake bread?",
    "Wo bist du? 😀",
    "a",
    "  Why is the sky blue?  ",
    "Say\ntwo\nlines.",
    "مرحبا, how are you?",
    "User: and Bot: are words here",
    "What is 2 + 2? " * 12,
)
SYSTEMS = (None, "You are a sailor from the north.")
TURNS = ("What do you like?", "And what else?", "Why?", "Can we go there?")
MOST = 40


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served("demo") as running:
        yield running


@pytest.fixture
def plain() -> Iterator[Served]:
    """The model itself: no written answers."""
    with served("demo", match=False) as running:
        yield running


@pytest.fixture(scope="module")
def bot() -> GPT2Chatbot:
    made = GPT2Chatbot("demo")
    made.open("demo")
    return made


def over_http(
    server: Served, said: Sequence[str], path: str, stream: bool, system: str | None, **options: Any
) -> tuple[str, int]:
    """The answer behind turns that alternate between user and assistant, and how many of them were dropped."""
    messages = [{"role": ("user", "assistant")[n % 2], "content": text} for n, text in enumerate(said)]
    if system:
        messages.insert(0, {"role": "system", "content": system})
    response = server.post(path, {"messages": messages, "stream": stream, "max_tokens": MOST, "top_k": 50, **options})
    assert response.status_code == 200, response.text
    dropped = int(response.headers["x-gpt2chat-dropped-turns"])
    if not stream:
        assert response.json()["gpt2chat"]["dropped_turns"] == dropped
        return response.json()["choices"][0]["message"]["content"], dropped
    lines = [line.removeprefix("data: ") for line in response.text.split("\n") if line and line != "data: [DONE]"]
    deltas = [choice["delta"] for line in lines for choice in json.loads(line)["choices"]]
    return "".join(delta.get("content", "") for delta in deltas), dropped


def everywhere(server: Served, said: Sequence[str], system: str | None, **options: Any) -> tuple[str, int]:
    """The answer of both endpoints, streamed and whole, which is one and the same."""
    ways = [(path, stream) for path in ("/v1/chat/completions", "/chat/completions") for stream in (False, True)]
    answers = {over_http(server, said, path, stream, system, **options) for path, stream in ways}
    assert len(answers) == 1, answers
    return answers.pop()


def in_terminal(lines: Sequence[str], system: str | None, temperature: float, seed: int, *more: str) -> list[str]:
    """The answers of `gpt2chat chat` to lines from a pipe."""
    options = ["--json", "-t", temperature, "--seed", seed, "--max_tokens", MOST, "-k", 50, *more]
    options += ["--system", system] if system else []
    out = invoke("chat", "demo", *options, stdin="\n".join(lines) + "\n").stdout
    return [json.loads(line)["answer"] for line in out.splitlines()]


def asked(temperature: float, seed: int) -> dict[str, Any]:
    return {"temperature": temperature, "seed": seed}


@pytest.mark.parametrize("temperature", [pytest.param(0.0, marks=pytest.mark.slow), 0.9])
def test_ten_prompts(server: Served, bot: GPT2Chatbot, temperature: float) -> None:
    texts = []
    for seed, prompt in enumerate(PROMPTS):
        bot.reset()
        text = bot.chat(prompt, max_tokens=MOST, top_k=50, **asked(temperature, seed))
        assert everywhere(server, [prompt], None, **asked(temperature, seed)) == (text, 0)
        texts.append(text)
        if temperature and seed % 3:  # the others in a process of their own
            continue
        flags = ("-t", temperature, "--seed", seed, "--max_tokens", MOST)
        out = invoke("chat", "demo", "-p", prompt, "--json", *flags).stdout
        assert json.loads(out)["answer"] == text
    assert len(set(texts)) > len(PROMPTS) // 2


@pytest.mark.slow
@pytest.mark.parametrize("temperature", [0.0, 0.9])
def test_ten_prompts_in_a_process_of_their_own(server: Served, tmp_path: Path, temperature: float) -> None:
    for seed, prompt in enumerate(PROMPTS):
        text, _ = over_http(server, [prompt], "/v1/chat/completions", True, None, **asked(temperature, seed))
        flags = ["-t", str(temperature), "--seed", str(seed), "--max_tokens", str(MOST)]
        done = spawn(["-m", "gpt2chat", "chat", "demo", "-p", prompt, *flags], tmp_path)
        assert done.returncode == 0 and done.stdout.removesuffix("\n") == text, done.stderr


@pytest.mark.parametrize(("temperature", "system"), [(0.0, SYSTEMS[1]), (0.9, None)])
def test_a_conversation(server: Served, bot: GPT2Chatbot, temperature: float, system: str | None) -> None:
    bot.reset()
    bot.system = system
    said = list[str]()
    try:
        for turn in TURNS:
            said.append(turn)
            text = bot.chat(turn, max_tokens=MOST, top_k=50, **asked(temperature, 7))
            assert everywhere(server, said, system, **asked(temperature, 7)) == (text, 0)
            said.append(text)
    finally:
        bot.system = None
    assert in_terminal(TURNS, system, temperature, 7) == said[1::2]


@pytest.mark.parametrize("system", [pytest.param(None, marks=pytest.mark.slow), SYSTEMS[1]])
def test_a_conversation_longer_than_the_context(plain: Served, system: str | None) -> None:
    bot = GPT2Chatbot("demo", match=False)
    turns = [f"{turn} {n} " + f"Tell me more of {n} things. " * 13 for n, turn in enumerate(TURNS + TURNS[:3])]
    bot.system = system
    said, left = list[str](), list[int]()
    for turn in turns:
        said.append(turn)
        text = bot.chat(turn, max_tokens=MOST, top_k=50, **asked(0.9, 5))
        found, dropped = everywhere(plain, said, system, **asked(0.9, 5))
        assert found == text and bot.answer
        prompt = bot.tokenizer.decode(bot.answer.prompt)
        assert [f" {n} Tell" in prompt for n in range(len(left) + 1)] == [n >= dropped for n in range(len(left) + 1)]
        left.append(dropped)
        said.append(text)
    assert left[0] == 0 and left == sorted(left) and left[-1] >= 2
    assert in_terminal(turns, system, 0.9, 5, "--no_match") == said[1::2]


def test_a_system_prompt_of_the_server() -> None:
    system = SYSTEMS[1]
    with served("demo", system=system, match=False) as told:
        bot = GPT2Chatbot("demo", system=system, match=False)
        text = bot.chat(PROMPTS[0], max_tokens=MOST, top_k=50, **asked(0.9, 3))
        assert everywhere(told, [PROMPTS[0]], None, **asked(0.9, 3)) == (text, 0)
        assert everywhere(told, [PROMPTS[0]], system, **asked(0.9, 3)) == (text, 0)
        assert everywhere(told, [PROMPTS[0]], "You are a cat.", **asked(0.9, 3))[0] != text
