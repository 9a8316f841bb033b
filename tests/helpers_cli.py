"""What tests share: a tiny model on the disk, copies of weights, sample data, and ways to run a command."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from click.testing import CliRunner, Result
from torch.optim.optimizer import register_optimizer_step_post_hook

from gpt2chat import checkpoint
from gpt2chat.checkpoint import Checkpoint
from gpt2chat.cli import main
from gpt2chat.conversation import TEMPLATES
from gpt2chat.model import GPT2, GPT2Config

ROOT = Path(__file__).resolve().parent.parent
TEXT = "The mill by the river ground rye in autumn and oats in spring, and slept all summer long.\n" * 30


def save_tiny(path: Path, template: str = "chat", seed: int = 0) -> Path:
    """Write a checkpoint of a tiny random model."""
    config = GPT2Config(n_layer=2, n_head=2, n_embd=32, n_ctx=128, vocab_size=50257)
    model = GPT2(config).init_weights(seed)
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    checkpoint.save(Checkpoint(config, weights, TEMPLATES[template], about={"base": "tiny"}), path)
    return path


def weights_of(model: GPT2) -> dict[str, torch.Tensor]:
    """A copy of the weights that later steps do not change."""
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def pairs(count: int) -> str:
    """JSON of so many different pairs."""
    return json.dumps([{"user": f"What is number {n}?", "bot": f"It is {n * 7}."} for n in range(count)])


def invoke(*args: object, stdin: str | bytes | None = None) -> Result:
    """Run `gpt2chat ARGS` in this process; an exception that the user would see as a traceback is raised here."""
    result = CliRunner().invoke(main, [str(arg) for arg in args], input=stdin, prog_name="gpt2chat")
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


def environment(**extra: str) -> dict[str, str]:
    """What a child process sees: this checkout, few threads, no hub."""
    kept = {name: os.environ[name] for name in ("PATH", "HOME", "TMPDIR", "LD_LIBRARY_PATH") if name in os.environ}
    fixed = {"PYTHONPATH": str(ROOT), "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", "PYTHONIOENCODING": "utf-8"}
    return {**kept, **fixed, **extra}


def spawn(command: list[str], folder: Path, stdin: str = "", **extra: str) -> subprocess.CompletedProcess[str]:
    """Run a Python command line in a folder and wait for it."""
    return subprocess.run(
        [sys.executable, *command],
        cwd=folder,
        env=environment(**extra),
        input=stdin,
        capture_output=True,
        encoding="utf-8",
        timeout=300,
    )


def rows(path: Path) -> list[dict[str, Any]]:
    """Read JSON lines."""
    return [json.loads(line) for line in path.read_text("utf-8").splitlines()]


def same_weights(one: Path, other: Path) -> bool:
    """Whether two checkpoints hold the same numbers, bit for bit."""
    a, b = checkpoint.load(one).weights, checkpoint.load(other).weights
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def contents(folder: Path) -> dict[str, bytes | None]:
    """Everything in a folder: path -> bytes, or None for a folder."""
    return {
        path.relative_to(folder).as_posix(): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
    }


@contextlib.contextmanager
def failing(runtime: Any, call: int, error: BaseException, must: bool = True) -> Iterator[None]:
    """Let one call of a runtime's `forward` raise, the first being 1."""
    forward, calls = runtime.forward, 0

    def raise_once(*arguments: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == call:
            raise error
        return forward(*arguments)

    runtime.forward = raise_once
    try:
        yield
    finally:
        del runtime.forward
    assert calls >= call or not must, f"forward was called {calls} times"


@contextlib.contextmanager
def signals_in_step(number: int, *signals: int) -> Iterator[None]:
    """Send signals to this process inside optimizer step `number`, after the weights have moved."""
    taken = 0

    def hook(*_: object) -> None:
        nonlocal taken
        taken += 1
        if taken == number:
            for signal_number in signals:
                signal.raise_signal(signal_number)

    handle = register_optimizer_step_post_hook(hook)
    try:
        yield
    finally:
        handle.remove()
    assert taken >= number, f"the run ended before step {number}"
