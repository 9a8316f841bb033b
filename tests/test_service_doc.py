"""docs/service.md says what the files say."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml
from helpers_cli import ROOT, invoke

from gpt2chat.server.chatlog import record
from gpt2chat.server.settings import KEYS, ServiceFile, read_service

PAGE = (ROOT / "docs" / "service.md").read_text("utf-8")
COMPOSE = (ROOT / "compose.yaml").read_text("utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```", PAGE, flags=re.M | re.S)


def table(first: str) -> list[list[str]]:
    """The rows of the table whose first column is called so."""
    lines = PAGE.partition(f"\n| {first} |")[2].splitlines()[2:]
    rows = lines[: next(number for number, line in enumerate(lines) if not line.startswith("|"))]
    return [[cell.strip() for cell in row.split("|")[1:-1]] for row in rows]


def test_every_command_names_a_service_or_a_profile_that_is_there() -> None:
    services = yaml.safe_load(COMPOSE)["services"]
    lines = [line for block in blocks("bash") for line in block.splitlines() if line.startswith("docker compose")]
    assert len(lines) == 3
    for line in lines:
        words = shlex.split(line)[2:]
        named = {words[n + 1] for n, word in enumerate(words) if word == "--profile"}
        named |= {word for word in words if not word.startswith("-")} - {"up"}
        assert named <= set(services), line


def test_the_variables_are_those_of_the_compose_file() -> None:
    told = {name for row in table("name") for name in re.findall(r"`(\w+)`", row[0])}
    assert told == set(re.findall(r"\$\{(\w+)", COMPOSE))
    written = {line.split("=")[0] for block in blocks("bash") for line in block.splitlines() if "=" in line.split()[0]}
    assert written and written <= told


def test_the_keys_and_what_they_are_when_left_out(tmp_path: Path) -> None:
    rows = {row[0].strip("`"): row[2] for row in table("key")}
    assert list(rows) == [key for keys in KEYS.values() for key in keys]
    found = ServiceFile(tmp_path)
    expected = (found.model, found.max_new_tokens, found.max_length, f"torch.{found.dtype}", found.port)
    assert [rows[key].strip("`") for key in KEYS["chatbot_args"]] == [str(value) for value in expected]


def test_the_file_of_the_page_is_read(tmp_path: Path) -> None:
    [text] = blocks("yaml")
    (tmp_path / "config.yml").write_text(text)
    assert read_service(tmp_path / "config.yml", {}).model == "meta-llama/Llama-2-7b-hf"


def test_the_error_of_the_page_is_what_the_command_says(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config.yml").write_text("chatbot_args:\n  port: 80x\n")
    result = invoke("serve", "--config", "config.yml")
    assert result.exit_code == 2 and result.stderr in blocks("text")


def test_the_record_of_the_page_is_what_is_written() -> None:
    assert record("When are you open?", "From 9 to 17.", 0.214, 9).rstrip("\n") + "\n" in blocks("text")
