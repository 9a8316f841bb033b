"""Programs that speak to a real server: OpenAI's client for Node, llm, curl, and what `--print_client` prints."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from helpers_cli import ROOT, environment, invoke
from helpers_engine import idle
from helpers_server import Served, served

from gpt2chat.server.guard import Policy

KEY = "a-key-of-ours"
NODE = ROOT / "tests" / "node"
needs_llm = pytest.mark.skipif(importlib.util.find_spec("llm") is None, reason="llm is not installed")
needs_openai = pytest.mark.skipif(importlib.util.find_spec("openai") is None, reason="openai is not installed")
needs_curl = pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served("demo", policy=Policy(keys=(KEY,))) as running:
        yield running


def shell(line: str, folder: Path, stdin: str = "", key: str = KEY) -> subprocess.CompletedProcess[str]:
    """Run a line of shell as a user would, with `python` and `llm` of this environment."""
    known = {
        "GPT2CHAT_API_KEY": key,
        "LLM_USER_PATH": str(folder / "llm"),
        "HOME": str(folder),
        "PYTHON": sys.executable,
    }
    functions = 'python() { "$PYTHON" "$@"; }; llm() { "$PYTHON" -m llm "$@"; }\n'
    return subprocess.run(
        ["sh", "-c", functions + line],
        cwd=folder,
        env=environment(**known),
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        timeout=120,
    )


def printed(server: Served, client: str) -> str:
    """What the command prints for a client of this server."""
    out = invoke("serve", "--print_client", client, "--port", server.port, "--api_key", KEY).stdout
    assert KEY not in out
    return str(out)


def answer(server: Served, **options: object) -> str:
    asked = {"headers": {"authorization": f"Bearer {KEY}"}}
    body = {"messages": [{"role": "user", "content": "Hello!"}], **options}
    response = server.post("/v1/chat/completions", body, **asked)
    return str(response.json()["choices"][0]["message"]["content"])


@needs_openai
def test_the_snippet_for_python(server: Served, tmp_path: Path) -> None:
    (tmp_path / "client.py").write_text(printed(server, "python"), "utf-8")
    done = shell("python client.py", tmp_path)
    assert done.returncode == 0 and done.stdout.strip() and done.stderr == ""


@needs_curl
def test_the_snippet_for_curl(server: Served, tmp_path: Path) -> None:
    done = shell(printed(server, "curl"), tmp_path)
    *events, last = [line for line in done.stdout.splitlines() if line]
    assert last == "data: [DONE]" and done.stderr == ""
    chunks = [json.loads(event.removeprefix("data: ")) for event in events]
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in chunks).strip()
    refused = json.loads(shell(printed(server, "curl"), tmp_path, key="another").stdout)
    assert refused["error"]["code"] == "invalid_api_key"


@needs_llm
@pytest.mark.slow
def test_the_snippets_for_llm(server: Served, tmp_path: Path) -> None:
    once, talk = [line for line in printed(server, "llm").splitlines() if not line.startswith("#")]
    done = shell(once, tmp_path)
    assert done.returncode == 0 and done.stdout.strip(), done.stderr
    chat = shell(talk, tmp_path, stdin="Hello!\nexit\n")
    assert chat.returncode == 0 and chat.stdout.count("> ") == 2, chat.stderr


@needs_llm
@pytest.mark.slow
def test_llm_and_its_options(server: Served, tmp_path: Path) -> None:
    once = next(line for line in printed(server, "llm").splitlines() if line[0] != "#").removesuffix(" 'Hello!'")
    expected = answer(server, temperature=1.2, seed=4, max_tokens=20)
    drawn = "-o temperature 1.2 -o seed 4 -o max_tokens 20"
    for options in (drawn, f"{drawn} --no-stream"):
        assert shell(f"{once} {options} 'Hello!'", tmp_path).stdout == f"{expected}\n"
        assert shell(f"{once} {options}", tmp_path, stdin="Hello!").stdout == f"{expected}\n"
    cut = shell(f"{once} {drawn} -o stop '{expected[5:8]}' Hello!", tmp_path).stdout
    assert cut == f"{expected[: expected.index(expected[5:8])]}\n"
    told = shell(f"{once} -o temperature 0 -s 'You are a cat.' 'Hello!'", tmp_path)
    assert told.returncode == 0 and told.stdout.strip()
    assert "gpt2chat" in shell(f"{once} --models", tmp_path).stdout
    wrong = shell(once.replace("-m gpt2chat", "-m gpt-9") + " Hello!", tmp_path)
    assert wrong.returncode == 1 and "'gpt-9' is not served here" in wrong.stderr and "Traceback" not in wrong.stderr
    long = shell(f"{once} '{'word ' * 900}'", tmp_path)
    assert long.returncode == 1 and "the context leaves" in long.stderr
    locked = shell(f"{once} Hello!", tmp_path, key="another")
    assert locked.returncode == 1 and "expected a key of this server" in locked.stderr
    schema = shell(f"{once} --schema 'name, age int' Hello!", tmp_path)
    assert schema.returncode == 1 and "response_format" in schema.stderr


@pytest.mark.slow
def test_the_client_for_node(server: Served, tmp_path: Path) -> None:
    missing = [name for name in ("node", "npm") if shutil.which(name) is None]
    if missing:
        pytest.skip(f"{missing[0]} is not installed")
    for name in ("package.json", "package-lock.json", "client.mjs"):
        shutil.copy(NODE / name, tmp_path)
    fetch = ["npm", "ci", "--no-audit", "--no-fund", "--ignore-scripts", "--cache", str(tmp_path / "cache")]
    fetched = subprocess.run(fetch, cwd=tmp_path, capture_output=True, encoding="utf-8", timeout=120)
    if fetched.returncode:
        pytest.skip(f"npm ci: {fetched.stderr.strip().splitlines()[-1]}")
    command = ["node", "client.mjs", f"{server.url}/v1", KEY]
    done = subprocess.run(command, cwd=tmp_path, env=os.environ, capture_output=True, encoding="utf-8", timeout=120)
    assert done.returncode == 0, done.stderr
    names = ["chat", "stream", "stop", "several", "seed", "logprobs", "texts", "models", "errors", "abort"]
    assert done.stdout.split() == names
    idle(server.engine)


def test_the_packages_for_node_are_exact_and_of_the_public_registry() -> None:
    wanted = json.loads((NODE / "package.json").read_text("utf-8"))["dependencies"]
    locked = json.loads((NODE / "package-lock.json").read_text("utf-8"))["packages"]
    assert wanted["openai"] == locked["node_modules/openai"]["version"]
    for name, package in locked.items():
        assert package.get("resolved", "https://registry.npmjs.org/").startswith("https://registry.npmjs.org/")
        assert not name or package["integrity"].startswith("sha512-")
