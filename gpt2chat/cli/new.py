"""`gpt2chat new`: a folder with sample data and settings, which can be trained at once."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import shutil
from importlib import resources
from pathlib import Path

import click

from gpt2chat.cli.terminal import SETTINGS, program, reports_errors, say
from gpt2chat.errors import ConfigError

# Where each file of the package goes.
FILES = {
    "conversations.json": "data/conversations.json",
    "notes.txt": "data/notes.txt",
    "train.toml": "train.toml",
    "README.md": "README.md",
    "gitignore.txt": ".gitignore",
}
GOOD_NAME = re.compile(r"\w(?:[\w. -]*\w)?")
RESERVED = re.compile(r"(?:con|prn|aux|nul|com\d|lpt\d)(?:\..*)?", re.IGNORECASE)  # no folder on Windows


@click.command("new", context_settings=SETTINGS)
@click.argument("name")
@reports_errors
def new_command(name: str) -> None:
    """Make the folder NAME with sample pairs, a text, settings and a README, ready to train.

    \b
    Examples:
      gpt2chat new my-bot
      gpt2chat train --config my-bot/train.toml
      gpt2chat chat my-bot/trained_model.pt
    """
    folder = Path(name)
    _check(folder, name)
    _write(folder)
    say(f"made {folder}: {', '.join(FILES.values())}")
    click.echo(f"{program('train')} --config {shlex.quote(str(folder / 'train.toml'))}")
    click.echo(f"{program('chat')} {shlex.quote(str(folder / 'trained_model.pt'))}")


def _check(folder: Path, name: str) -> None:
    """Refuse what is there, and names that are trouble later; raises ConfigError."""
    last = name.rstrip("/" + os.sep).replace(os.sep, "/").rpartition("/")[2]
    if not GOOD_NAME.fullmatch(last) or RESERVED.fullmatch(last) or len(last.encode()) > 100:
        shown = name if len(name) <= 60 else f"{name[:57]}…"
        raise ConfigError(f"new: expected a name of letters, digits, - and _, such as my-bot, got {shown!r}")
    try:
        if os.path.lexists(folder) and not folder.is_dir():
            raise ConfigError(f"new: {folder}: expected a new folder, found a file: choose another name")
        if folder.is_dir() and any(folder.iterdir()):
            raise ConfigError(f"new: {folder}: expected a new folder, found one with files in it: choose another name")
        if not folder.parent.is_dir():
            raise ConfigError(f"new: {folder.parent}: expected a folder to make {last} in, found none")
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        reason = (error.strerror if isinstance(error, OSError) else None) or error
        raise ConfigError(f"new: {name!r} cannot be looked at: {reason}") from error


def _write(folder: Path) -> None:
    """Write all files into a folder beside it that then takes its name; raises CheckpointError and leaves nothing."""
    from gpt2chat.files import cannot_write

    target = Path(os.path.realpath(folder))
    made = target.with_name(f".{target.name}.tmp-{os.getpid()}")
    content = resources.files("gpt2chat").joinpath("assets/new")
    try:
        for source, place in FILES.items():
            path = made / place
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(content.joinpath(source).read_bytes())
        with contextlib.suppress(FileNotFoundError):
            target.rmdir()  # an empty one, which Windows would not let go otherwise
        made.rename(target)
    except OSError as error:
        raise cannot_write(folder, error) from error
    finally:
        shutil.rmtree(made, ignore_errors=True)
