"""Which model a command opens when none is named: the newest of one's own that fits."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from gpt2chat.cli.options import stacked
from gpt2chat.cli.terminal import say

DATA = (".json", ".jsonl", ".csv", ".tsv", ".txt", ".md")
SOURCES = click.Choice(["sft", "mid", "rl", "base"])


def source_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --source, --model_tag and --step."""
    words = "Of the newest: taught on conversations, text, preferences; base."
    return stacked(
        click.option("-i", "--source", type=SOURCES, help=words),
        click.option("-g", "--model_tag", help="The run to talk to; gpt2chat ls lists them."),
        click.option("-s", "--step", type=int, help="The step of it.  [default: the one that is for use]"),
    )(function)


def named(name: str | None, source: str | None = None, tag: str | None = None, step: int | None = None) -> str:
    """Return the model that was named, or the newest own checkpoint that fits, or the demo, and say which.

    Raises ConfigError.
    """
    from gpt2chat import shelf
    from gpt2chat.cli.chat.screen import say_folded
    from gpt2chat.errors import ConfigError

    asked = (source, tag, step) != (None, None, None)
    if name is not None and not asked:
        _check_model(name)
        return name
    if name is not None:
        raise ConfigError(
            f"model: expected CHECKPOINT or --source, --model_tag and --step, got {name} and one of these"
        )
    if source == "base":
        if step is not None:
            raise ConfigError(f"step: released weights have no steps, got {step}")
        return tag or "demo"
    there = shelf.entries()
    entry = shelf.find(source, tag, step, there)
    if entry is None:
        say("using demo, the built-in model: no checkpoint of your own is here; gpt2chat train makes one")
        return "demo"
    for other in there:
        if other.fault and other.modified > entry.modified:
            say(f"note: {other.path} is newer, but {other.fault}")
    say_folded(f"using {entry.path}{'' if asked else ', your newest model here (gpt2chat ls shows all)'}")
    return str(entry.path)


def _check_model(name: str) -> None:
    """Raise ConfigError for a file with data, the likeliest mistake."""
    from gpt2chat.errors import ConfigError

    path = Path(name)
    if path.suffix.lower() in DATA and path.is_file():
        words = "text_file" if path.suffix.lower() in (".txt", ".md") else "conversation_file"
        raise ConfigError(
            f"{name}: expected a model, found data: gpt2chat train --{words} {shlex.quote(name)} makes one of it"
        )
