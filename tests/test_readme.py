"""The commands of the README run as they stand there."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import httpx
import pytest
from helpers_server import program

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", README, flags=re.M | re.S)


def commands() -> list[str]:
    lines = [line for block in blocks("bash") for line in block.splitlines()]
    return [line for line in lines if line.startswith(("python train", "python gpt", "gpt2chat "))]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with what the README's reader has: the scripts and the sample data."""
    place = tmp_path_factory.mktemp("readme")
    for name in ("train_chatbot.py", "gpt_generate.py"):
        shutil.copy(ROOT / name, place)
    shutil.copytree(ROOT / "data", place / "data")
    return place


def run(command: list[str], folder: Path) -> subprocess.CompletedProcess[str]:
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin", "HF_HUB_OFFLINE": "1", "HOME": str(folder)}
    return subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=1800)


def interpreter(line: str) -> list[str]:
    first, *rest = shlex.split(line)
    return [sys.executable, *(["-m", "gpt2chat"] if first == "gpt2chat" else []), *rest]


def test_there_are_commands_to_run() -> None:
    assert len(commands()) >= 6
    assert len(blocks("python")) >= 1


@pytest.mark.slow
def test_commands_run_in_their_order(folder: Path) -> None:
    for line in commands():
        if line.startswith("gpt2chat serve ") and "--print_client" not in line:
            serve(shlex.split(line)[2:], folder)
            continue
        result = run(interpreter(line), folder)
        assert result.returncode == 0, (line, result.stderr)


def serve(options: list[str], folder: Path) -> None:
    """Serve as the README does, but on a free port; ask for the page, and what its curl line asks."""
    (asked,) = [block for block in blocks("bash") if block.startswith("curl ")]
    with program(*options, "--port", "0", folder=folder) as running:
        assert httpx.get(running.url).text.startswith("<!doctype html>")
        command = shlex.split(asked.replace("http://127.0.0.1:8000", running.url).replace("\\\n", " "))
        answer = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
        assert "gpt2chat" in answer["choices"][0]["message"]["content"]
        assert running.end() == 0


@pytest.mark.slow
def test_taught_answers_come_back_and_stop(folder: Path) -> None:
    if not (folder / "trained_model.pt").exists():
        run(interpreter(next(line for line in commands() if "trained_model.pt" in line)), folder)
    pairs = ["--conversation_file", "data/conversations.json", "--json"]
    result = run([sys.executable, "-m", "gpt2chat", "eval", "trained_model.pt", *pairs], folder)
    assert result.returncode == 0, result.stderr
    scores = json.loads(result.stdout)["conversations"]
    assert scores["exact"] >= 0.95
    assert scores["stopped"] == 1.0


@pytest.mark.slow
def test_python_blocks_run(folder: Path) -> None:
    if not (folder / "trained_model.pt").exists():
        run(interpreter(next(line for line in commands() if "trained_model.pt" in line)), folder)
    for block in blocks("python"):
        result = run([sys.executable, "-c", block], folder)
        assert result.returncode == 0, result.stderr
        assert result.stdout.strip()


def test_files_named_in_the_readme_exist() -> None:
    for name in re.findall(r"\]\(([\w./-]+)\)", README):
        assert (ROOT / name).exists(), name
    for name in re.findall(r"^  (\w+\.py) ", README, flags=re.M):
        assert (ROOT / "gpt2chat" / name).exists(), name
