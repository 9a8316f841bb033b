"""Many runs of the real programs, each in a process of its own, for the price of one start of torch.

A server imports what the programs import and forks for each command line. Where that is not safe, each run starts anew.
"""

from __future__ import annotations

import atexit
import gc
import json
import os
import runpy
import subprocess
import sys
import traceback
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

FORKS = sys.platform == "linux"
IMPORTS = ["gpt2chat.benchmark", "gpt2chat.cli.plan", "gpt2chat.offline", "gpt2chat.training", "torch._dynamo"]


@dataclass(frozen=True)
class Outcome:
    """What a program left: exit code, standard output, standard error."""

    code: int
    stdout: str
    stderr: str


class Programs:
    """Runs `gpt2chat …` and `python SCRIPT …` in folders, with one environment."""

    def __init__(self, place: Path, environment: dict[str, str]) -> None:
        """Take a folder for what goes in and comes out."""
        self._place, self._environment = place, environment
        self._server = self._start() if FORKS else None

    def _start(self) -> subprocess.Popen[bytes]:
        command = [sys.executable, __file__]
        return subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=self._environment)

    def __enter__(self) -> Programs:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self._server is not None:
            self._server.communicate()

    def run(self, words: list[str], folder: Path, stdin: str = "", **extra: str) -> Outcome:
        """Run a command line in a folder; `extra` is added to the environment."""
        paths = {name: self._place / name for name in ("stdin", "stdout", "stderr")}
        paths["stdin"].write_text(stdin, "utf-8")
        if self._server is None:
            module = ["-m", "gpt2chat", *words[1:]] if words[0] == "gpt2chat" else words[1:]
            with paths["stdin"].open() as i, paths["stdout"].open("w") as o, paths["stderr"].open("w") as e:
                given: dict[str, Any] = {"cwd": folder, "env": {**self._environment, **extra}}
                code = subprocess.run(
                    [sys.executable, *module], stdin=i, stdout=o, stderr=e, timeout=300, **given
                ).returncode
        else:
            request = {"words": words, "folder": str(folder), "extra": extra}
            request |= {name: str(path) for name, path in paths.items()}
            assert self._server.stdin is not None and self._server.stdout is not None
            self._server.stdin.write(json.dumps(request).encode() + b"\n")
            self._server.stdin.flush()
            code = int(self._server.stdout.readline())
        return Outcome(code, paths["stdout"].read_text("utf-8"), paths["stderr"].read_text("utf-8"))


def become(words: list[str], folder: str, stdin: str, stdout: str, stderr: str, extra: dict[str, str]) -> None:
    """Be the program of a command line from here on."""
    os.environ |= extra
    os.chdir(folder)
    new = os.O_WRONLY | os.O_CREAT | os.O_TRUNC
    for number, (path, flags) in enumerate([(stdin, os.O_RDONLY), (stdout, new), (stderr, new)]):
        os.dup2(os.open(path, flags, 0o600), number)
    sys.path[0] = folder
    program, *sys.argv[1:] = words if words[0] == "gpt2chat" else words[1:]
    sys.argv[0] = program
    if program == "gpt2chat":
        runpy.run_module("gpt2chat", run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(program, run_name="__main__")


def finish(request: dict[str, Any]) -> None:
    """Be a program to its end; taking the interpreter apart, which costs more than most runs, is left out."""
    code: Any = 0
    try:
        become(**request)
    except SystemExit as leaving:
        code = leaving.code or 0
        if not isinstance(code, int):
            print(code, file=sys.stderr)
            code = 1
    except BaseException:
        traceback.print_exc()
        code = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)


def serve() -> None:
    """Read requests, fork for each, and answer with its exit code."""
    for name in IMPORTS:
        __import__(name)
    from huggingface_hub import snapshot_download  # noqa: F401 - loaded when it is first named

    from gpt2chat.tokenizer import Tokenizer

    assert Tokenizer.gpt2().fingerprint and Tokenizer.gpt2().encode("ready")
    gc.collect()
    gc.freeze()  # a fork then shares its pages
    requests, answers = os.fdopen(os.dup(0), "rb"), os.dup(1)
    while line := requests.readline():
        child = os.fork()
        if not child:
            finish(json.loads(line))
        code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        os.write(answers, b"%d\n" % code)


if __name__ == "__main__":
    serve()
