"""`gpt2chat generate`: text that goes on, and a file of prompts."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest
from helpers_cli import invoke

ROWS = [
    {"user": "What is 2 plus 2?"},
    {"prompt": "Once upon a time", "stop": ["."], "id": "story"},
    {"messages": [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}], "max_tokens": 7},
    {"prompt": "The", "temperature": 1, "seed": 9, "custom_id": 5, "stop": "e"},
]


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def test_text_goes_on() -> None:
    first = invoke("generate", "Once upon a time", "--temperature", 0, "--max_new_tokens", 12)
    assert first.exit_code == 0
    assert len(first.stdout.split()) > 3
    assert invoke("generate", "-", "--temperature", 0, "--max_new_tokens", 12, stdin="Once upon a time").stdout == (
        first.stdout
    )


def test_a_file_is_answered_in_order(tmp_path: Path) -> None:
    batch = write(tmp_path / "q.jsonl", ROWS * 10)
    result = invoke("generate", "--batch", batch, "--seed", 3, "--max_new_tokens", 15)
    assert result.exit_code == 0
    assert "40 answers" in result.stderr
    answers = read(tmp_path / "q.answers.jsonl")
    assert [answer["id"] for answer in answers[:8]] == [0, "story", 2, 5, 4, "story", 6, 5]
    assert all(answer["finish_reason"] in ("stop", "length") for answer in answers)
    assert all("." not in answer["text"] for answer in answers[1::4])
    assert all(answer["new_tokens"] <= 7 for answer in answers[2::4])
    assert len({answer["text"] for answer in answers[3::4]}) == 1  # a seed of its own
    assert answers[0]["text"] == "Two plus two is four."


def test_a_row_may_have_penalties_and_a_bias(tmp_path: Path) -> None:
    row = {"prompt": "Once upon a time", "temperature": 0, "max_tokens": 30}
    options = (
        {},
        {"logit_bias": {"257": -100}},
        {"presence_penalty": 2, "frequency_penalty": 2},
        {"logit_bias": {13: 100}},
    )
    batch = write(tmp_path / "q.jsonl", [row | own for own in options])
    assert invoke("generate", "--batch", batch).exit_code == 0
    plain, without_a, varied, dots = (answer["text"] for answer in read(tmp_path / "q.answers.jsonl"))
    assert " a " in plain
    assert " a " not in without_a
    assert len(set(varied.split())) > len(set(plain.split()))
    assert dots == "." * 30


def test_answers_do_not_depend_on_how_many_are_computed_at_once(tmp_path: Path) -> None:
    batch = write(tmp_path / "q.jsonl", ROWS * 6)
    found = []
    for streams in (1, 5, 16):
        out = tmp_path / f"{streams}.jsonl"
        assert invoke("generate", "--batch", batch, "--seed", 3, "--out", out, "--streams", streams).exit_code == 0
        found.append(out.read_bytes())
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("kept", [0, 1, 200, 1000, 10**6])
def test_an_interrupted_run_goes_on_where_it_was(tmp_path: Path, kept: int) -> None:
    batch, out = write(tmp_path / "q.jsonl", ROWS * 6), tmp_path / "q.answers.jsonl"
    arguments = ("generate", "--batch", batch, "--seed", 3, "--max_new_tokens", 12)
    invoke(*arguments)
    whole = out.read_bytes()
    out.write_bytes(whole[:kept])
    before = whole[:kept].count(b"\n")
    result = invoke(*arguments)
    assert result.exit_code == 0
    assert f"{24 - before} answers" in result.stderr
    assert out.read_bytes() == whole


def test_answers_of_other_rows_options_or_models_are_not_mixed(tmp_path: Path) -> None:
    batch, out = write(tmp_path / "q.jsonl", ROWS), tmp_path / "q.answers.jsonl"
    invoke("generate", "--batch", batch, "--seed", 3)
    whole = out.read_bytes()
    for options in (["--seed", 4], ["--seed", 3, "--top_k", 7], ["--seed", 3, "--quantize", "none"]):
        result = invoke("generate", "--batch", batch, *options)
        assert result.exit_code == 1
        assert "q.answers.jsonl:1: is not the answer to row 1 with this model and these options" in result.stderr
    write(batch, ROWS[:2])
    assert "q.answers.jsonl:3: has more answers than there are rows" in (
        invoke("generate", "--batch", batch, "--seed", 3).stderr
    )
    assert out.read_bytes() == whole


def test_a_pipe_is_answered_on_stdout() -> None:
    result = invoke("generate", "--batch", "-", "--temperature", 0, stdin='{"user": "hi"}\n\n{"prompt": "A"}\n')
    assert result.exit_code == 0
    assert [json.loads(line)["id"] for line in result.stdout.splitlines()] == [0, 1]


@pytest.mark.parametrize(
    ("line", "words"),
    [
        ("{", "expected one JSON object per line"),
        ("[" * 100_000, "expected one JSON object per line"),
        ("3", "expected a JSON object such as"),
        ("{}", "expected one of prompt, user, messages, got none"),
        ('{"prompt": "a", "user": "b"}', "expected one of prompt, user, messages, got prompt and user"),
        ('{"prompt": ""}', "prompt: expected text, got ''"),
        ('{"user": 5}', "user: expected text, got 5"),
        ('{"user": "  "}', "user: expected text"),
        ('{"messages": []}', "messages: expected a list"),
        ('{"messages": ["hi"]}', r"messages\[0\]: expected a role of system, user, assistant, got 'hi'"),
        ('{"messages": [{"role": "user", "content": null}]}', r"messages\[0\]: expected text, got None"),
        ('{"messages": [{"role": "assistant", "content": "x"}]}', "expected the user to have the last word"),
        ('{"prompt": "a", "temperature": "hot"}', "temperature: expected a number from 0 to 100, got 'hot'"),
        ('{"prompt": "a", "logit_bias": {"x": 1}}', "logit_bias: expected ids from 0 to 2.31, got 'x'"),
        ('{"prompt": "a", "logit_bias": {"50257": 1}}', "logit_bias: expected ids from 0 to 50256, got 50257"),
        ('{"prompt": "a", "n": 2}', "'n': expected only"),
        ('{"prompt": "a", "stop": [""]}', "stop: expected a text or a list of texts"),
        ('{"prompt": "a", "id": [1]}', "id: expected a text or a whole number"),
        (json.dumps({"prompt": "word " * 600}), "prompt: expected at most 511 tokens, got 601"),
    ],
)
def test_a_bad_line_is_named_before_anything_is_computed(tmp_path: Path, line: str, words: str) -> None:
    batch = tmp_path / "q.jsonl"
    batch.write_text('{"prompt": "fine"}\n\n' + line + "\n")
    result = invoke("generate", "--batch", batch)
    assert result.exit_code == 1
    assert f"{batch}:3: " in result.stderr
    assert re.search(words, result.stderr)
    assert not (tmp_path / "q.answers.jsonl").exists()


def test_what_cannot_be_read_or_written_is_named(tmp_path: Path) -> None:
    assert "cannot be read: No such file" in invoke("generate", "--batch", tmp_path / "no.jsonl").stderr
    (tmp_path / "latin.jsonl").write_bytes(b'{"prompt": "\xe9"}\n')
    assert "expected UTF-8, got the byte 0xe9" in invoke("generate", "--batch", tmp_path / "latin.jsonl").stderr
    batch = write(tmp_path / "q.jsonl", ROWS)
    result = invoke("generate", "--batch", batch, "--out", tmp_path / "nowhere" / "x.jsonl")
    assert result.exit_code == 1
    assert "cannot be written: No such file" in result.stderr
    for arguments in ([], ["text", "--batch", batch]):
        result = invoke("generate", *arguments)
        assert result.exit_code == 2
        assert "expected TEXT or --batch FILE" in result.stderr
    assert invoke("generate", "x", "--draft", "demo").exit_code == 2


def test_no_file_of_others_is_overwritten(tmp_path: Path) -> None:
    batch, notes = write(tmp_path / "q.jsonl", ROWS), tmp_path / "notes.txt"
    for content in ("a line without an end", "two\nlines\n", "{"):
        notes.write_text(content)
        result = invoke("generate", "--batch", batch, "--out", notes)
        assert (result.exit_code, notes.read_text()) == (1, content) if content != "{" else (0, notes.read_text())
    before = batch.read_bytes()
    assert "holds the questions" in invoke("generate", "--batch", batch, "--out", batch).stderr
    assert batch.read_bytes() == before
    (tmp_path / "empty.jsonl").write_text("\n")
    assert "empty.jsonl: has no rows" in invoke("generate", "--batch", tmp_path / "empty.jsonl", "--out", batch).stderr
    assert batch.read_bytes() == before


def test_a_named_pipe_is_read_once(tmp_path: Path) -> None:
    pipe, content = tmp_path / "pipe", "".join(json.dumps(row) + "\n" for row in ROWS)
    os.mkfifo(pipe)
    writer = threading.Thread(target=lambda: pipe.write_text(content))
    writer.start()
    result = invoke("generate", "--batch", pipe, "--out", tmp_path / "out.jsonl", "--max_new_tokens", 3)
    writer.join()
    assert result.exit_code == 0
    assert len(read(tmp_path / "out.jsonl")) == 4


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no full device here")
def test_a_full_disk_is_named(tmp_path: Path) -> None:
    batch = write(tmp_path / "q.jsonl", ROWS)
    result = invoke("generate", "--batch", batch, "--out", "/dev/full")
    assert result.exit_code == 1
    assert "cannot be written" in result.stderr


def test_ctrl_c_keeps_what_was_answered(tmp_path: Path) -> None:
    rows = [{"prompt": f"{number}", "max_new_tokens": 400} for number in range(5000)]
    batch, out = write(tmp_path / "q.jsonl", rows), tmp_path / "q.answers.jsonl"
    command = [sys.executable, "-m", "gpt2chat", "generate", "--batch", str(batch), "--seed", "1", "--streams", "4"]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True, env={**os.environ, "NO_COLOR": "1"})
    while not out.exists() or out.stat().st_size == 0:
        assert running.poll() is None
        time.sleep(0.02)
    running.send_signal(signal.SIGINT)
    said = running.communicate(timeout=60)[1]
    assert running.returncode == 130
    assert "of 5000 answered; the same command goes on" in said
    assert "Traceback" not in said
    assert out.read_bytes().endswith(b"\n")
