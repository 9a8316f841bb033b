"""Completion in real shells: commands, options in both spellings, models and files; quickly and without torch."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from helpers_cli import environment, invoke, spawn

from gpt2chat.cli.completion import SHELLS
from gpt2chat.cli.options import MODELS
from gpt2chat.model import MODEL_SIZES
from gpt2chat.pretrained import canonical_name, is_known

Complete = Callable[..., list[str]]

BASH = """
source <(gpt2chat completion bash)
compopt() { COMPREPLY+=("$@"); }
COMP_WORDS=("$@"); COMP_CWORD=$(($# - 1)); COMPREPLY=()
_gpt2chat_completion gpt2chat
((${#COMPREPLY[@]})) && printf '%s\\n' "${COMPREPLY[@]}"
true
"""
ZSH = """
autoload -Uz compinit && compinit -u -D
source <(gpt2chat completion zsh)
compadd() { print -rl -- "${(P@)@[-1]}" }
_describe() { local -a found; found=("${(P@)3}"); print -rl -- "${(@)found%%:*}" }
_path_files() { print -- "$@" }
[[ ${_comps[gpt2chat]} == _gpt2chat_completion ]] || exit 1
words=("$@"); CURRENT=$#
_gpt2chat_completion
"""
FISH = """
gpt2chat completion fish | source
complete -C (string join " " -- $argv)
"""


@pytest.fixture(params=SHELLS)
def complete(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Complete:
    """What a shell offers for words, of which the last is being typed, in a folder with models."""
    shell = str(request.param)
    if shutil.which(shell) is None:
        pytest.skip(f"{shell} is not installed")
    program = tmp_path / "bin" / "gpt2chat"
    program.parent.mkdir()
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m gpt2chat "$@"\n')
    program.chmod(0o755)
    place = tmp_path / "place"
    for name in ("mine.pt", "my model.pt", "pairs.json", ".hidden.pt", "runs/first.pt", "notes/a.txt"):
        (place / name).parent.mkdir(parents=True, exist_ok=True)
        (place / name).touch()
    code = {"bash": BASH, "zsh": ZSH, "fish": FISH}[shell]
    start = {"bash": ["bash", "--norc"], "zsh": ["zsh", "-f"], "fish": ["fish", "--no-config"]}[shell]

    def run(*words: str) -> list[str]:
        seen = environment(PATH=f"{program.parent}{os.pathsep}{os.environ['PATH']}", HOME=str(tmp_path))
        command = [*start, "-c", code, *([] if shell == "fish" else ["-"]), *words]
        done = subprocess.run(command, cwd=place, env=seen, capture_output=True, text=True, timeout=60)
        assert (done.returncode, done.stderr) == (0, ""), done.stderr
        return sorted(line.partition("\t")[0].replace("\\ ", " ") for line in done.stdout.splitlines())

    return run


def test_commands_are_completed(complete: Complete) -> None:
    assert complete("gpt2chat", "ev") == ["eval"]
    assert {"train", "chat", "new", "doctor", "completion"} <= set(complete("gpt2chat", ""))
    assert complete("gpt2chat", "bench", "pre") == ["prefill"]


def test_checkpoints_are_names_files_and_folders(complete: Complete) -> None:
    expected = sorted([*MODELS, "mine.pt", "my model.pt", "notes/", "runs/"])
    assert complete("gpt2chat", "eval", "") == expected
    assert complete("gpt2chat", "train", "--model", "") == expected


def test_what_was_begun_is_gone_on_with(complete: Complete) -> None:
    assert complete("gpt2chat", "eval", "d") == ["demo"]
    assert complete("gpt2chat", "inspect", r"my\ m") == ["my model.pt"]
    assert complete("gpt2chat", "inspect", "runs/f") == ["runs/first.pt"]
    assert complete("gpt2chat", "inspect", ".h") == [".hidden.pt"]
    assert complete("gpt2chat", "generate", "--model", "gpt2-m") == ["gpt2-medium"]
    assert complete("gpt2chat", "data", "check", "--model", "mi") == []


def test_a_lone_folder_comes_with_what_is_in_it(complete: Complete) -> None:
    assert "runs/first.pt" in complete("gpt2chat", "eval", "ru")


def test_options_are_completed_in_the_spelling_that_was_begun(complete: Complete) -> None:
    assert complete("gpt2chat", "train", "--save_p") == ["--save_path"]
    assert complete("gpt2chat", "train", "--save-p") == ["--save-path"]
    assert complete("gpt2chat", "train", "--too-long", "c") == ["cut"]


def test_serving_is_completed_as_talking_is(complete: Complete) -> None:
    assert complete("gpt2chat", "ser") == ["serve"]
    assert complete("gpt2chat", "serve", "d") == ["demo"]
    assert complete("gpt2chat", "serve", "--api_k") == ["--api_key", "--api_key_file"]
    assert complete("gpt2chat", "serve", "--max-c") == ["--max-concurrent"]
    assert complete("gpt2chat", "serve", "--print_client", "") == ["aichat", "curl", "llm", "openwebui", "python"]


def test_other_options_complete_files(complete: Complete) -> None:
    assert complete("gpt2chat", "train", "--config", "") != []
    assert complete("gpt2chat", "train", "--epochs", "") == []


def test_a_value_behind_an_equals_sign_is_completed(complete: Complete, request: pytest.FixtureRequest) -> None:
    if "bash" in request.node.name:
        assert complete("gpt2chat", "eval", "--device", "=", "x") == []
        assert complete("gpt2chat", "train", "--model", "=", "gpt2-x") == ["gpt2-xl"]
    else:
        assert complete("gpt2chat", "train", "--model=gpt2-x") == ["--model=gpt2-xl"]


def test_completing_is_quick_and_leaves_torch_alone(tmp_path: Path) -> None:
    code = (
        "import sys, atexit, gpt2chat.cli as c\n"
        "atexit.register(lambda: sys.stderr.write(str('torch' in sys.modules)))\n"
        "c.main(prog_name='gpt2chat')"
    )
    words = {"_GPT2CHAT_COMPLETE": "bash_complete", "COMP_WORDS": "gpt2chat eval ", "COMP_CWORD": "2"}
    seconds = []
    for _ in range(5):
        began = time.perf_counter()
        result = spawn(["-c", code], tmp_path, **words)
        seconds.append(time.perf_counter() - began)
        assert (result.returncode, result.stderr) == (0, "False")
        assert "plain,demo" in result.stdout.splitlines()
    assert min(seconds) < 0.3


def test_a_config_file_is_not_read_while_completing(tmp_path: Path) -> None:
    words = {"_GPT2CHAT_COMPLETE": "bash_complete", "COMP_CWORD": "4"}
    result = spawn(["-m", "gpt2chat"], tmp_path, COMP_WORDS="gpt2chat train --config missing.toml --batch", **words)
    assert (result.stdout.strip(), result.stderr) == ("plain,--batch_size", "")


def test_every_name_that_is_offered_is_known_and_every_model_is_offered() -> None:
    assert all(is_known(name) for name in MODELS)
    assert {canonical_name(name) for name in MODELS} == {"demo", *MODEL_SIZES}
    assert not any(" " in name for name in MODELS)


@pytest.mark.parametrize("shell", SHELLS)
def test_without_an_argument_the_shell_in_use_is_guessed(shell: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", f"/usr/bin/{shell}")
    guessed, named = invoke("completion"), invoke("completion", shell)
    assert guessed.stdout == named.stdout != ""
    assert guessed.stderr == ""  # how to install it is for people at a terminal


@pytest.mark.parametrize("named", ["", "/bin/tcsh"])
def test_a_shell_that_is_not_known_is_one_line(named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHELL", named)
    result = invoke("completion")
    assert (result.exit_code, result.stdout) == (2, "")
    assert len(result.stderr.splitlines()) == 1
    assert "bash, zsh, fish" in result.stderr
