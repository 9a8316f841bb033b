"""`gpt2chat ls`: the checkpoints there are."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click

from gpt2chat.cli.terminal import SETTINGS, reports_errors, say, visible

if TYPE_CHECKING:
    from gpt2chat.shelf import Entry

COLUMNS = ("source", "tag", "step", "size", "date", "val loss", "file")


@click.command("ls", context_settings=SETTINGS)
@click.option("-i", "--source", help="Only those taught so: sft, mid, rl or base.")
@click.option("-g", "--model_tag", help="Only this run.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per line.")
@reports_errors
def list_command(source: str | None, model_tag: str | None, as_json: bool) -> None:
    """List the checkpoints in this folder and of the runs in runs/ (or $GPT2CHAT_RUNS), the newest first.

    \b
    Sources: sft = taught on conversations, mid = on text, rl = on preferences. `gpt2chat chat` takes
    the newest one, or what -i, -g and -s (step) say; * marks the weights of a run that are for use.
    """
    from gpt2chat import shelf

    shown = [e for e in shelf.entries() if source in (None, e.source) and model_tag in (None, e.tag)]
    for line in map(json.dumps, map(_facts, shown)) if as_json else _table(shown):
        click.echo(line)
    if not shown and shelf.entries():
        say("none of these; gpt2chat ls without options shows all")
    elif not shown:
        say("no checkpoint here yet; gpt2chat train makes one, gpt2chat chat demo needs none")


def _facts(entry: Entry) -> dict[str, Any]:
    date = time.strftime("%Y-%m-%dT%H:%M:%S", time.localtime(entry.modified))
    return {**entry.__dict__, "path": str(entry.path), "modified": date}


def _table(entries: list[Entry]) -> list[str]:
    rows = [COLUMNS, *map(_row, entries)] if entries else []
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _row(entry: Entry) -> tuple[str, ...]:
    step = "" if entry.step is None else f"{entry.step}{'*' if entry.for_use else ''}"
    date = time.strftime("%Y-%m-%d %H:%M", time.localtime(entry.modified))
    loss = "" if entry.validation_loss is None else f"{entry.validation_loss:.3f}"
    fault = f" ({entry.fault})" if entry.fault else ""
    return (
        entry.source,
        visible(entry.tag),
        step,
        f"{entry.size / 1e6:.0f} MB",
        date,
        loss,
        visible(f"{entry.path}{fault}"),
    )
