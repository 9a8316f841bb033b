"""The checkpoints a user made: files in this folder, and runs by source, tag and step."""

from __future__ import annotations

import contextlib
import dataclasses
import glob
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2chat import archive
from gpt2chat.errors import CheckpointError, ConfigError, GPT2ChatError

SOURCES = {"sft": "taught on conversations", "mid": "on text", "rl": "on preferences", "base": "released weights"}
STEP = re.compile(r"_(\d{6,})$")  # of the stem of a file that holds one step of a run
OWN = "trained_model.pt"  # where training puts a model unless told otherwise
BEST = "model.pt"  # of a tagged run: the weights that are for use
TAG = re.compile(r"[A-Za-z0-9][\w.+-]*")


@dataclass(frozen=True)
class Entry:
    """A checkpoint: where it is, what it was taught on, its run's tag and step, bytes, and when it was written."""

    path: Path
    source: str
    tag: str
    step: int | None
    size: int
    modified: float
    validation_loss: float | None = None
    for_use: bool = True  # its run's best or last weights, not a step on the way
    fault: str | None = None  # why it cannot be read, if so


def runs_folder() -> Path:
    """Return where tagged runs are: `runs` here, or what GPT2CHAT_RUNS says."""
    return Path(os.environ.get("GPT2CHAT_RUNS") or "runs")


def tagged(source: str, tag: str) -> Path:
    """Return the checkpoint of a tagged run; raises ConfigError for a tag that cannot be a folder's name."""
    if not TAG.fullmatch(tag):
        raise ConfigError(f"model_tag: expected letters, digits, '.', '_' or '-', got {tag!r}")
    return runs_folder() / source / tag / BEST


def tag_of(path: Path) -> str | None:
    """Return the tag of the run that a checkpoint belongs to, if it is one of the run folder."""
    folder = path.parent
    return folder.name if folder.parent.parent.resolve() == runs_folder().resolve() else None


def last_of(tag: str) -> Path:
    """Return the state that a tagged run can be resumed from; raises CheckpointError when there is none."""
    found = sorted(runs_folder().glob(f"*/{glob.escape(tag)}/model.last.pt"), key=lambda path: path.stat().st_mtime)
    if not found:
        raise CheckpointError(f"no run {tag} to resume: {_there(entries())}")
    return found[-1]


def step_file(best: Path, step: int) -> Path:
    """Return the file that keeps one step of a run: `model.pt` -> `model_000200.pt`."""
    return best.with_name(f"{best.name.removesuffix('.pt')}_{step:06d}.pt")


def steps_of(best: Path) -> list[Path]:
    """Return the files that keep steps of a tagged run; none of another run, whose neighbours may be anything."""
    found = best.parent.glob(f"{best.stem}_*.pt") if tag_of(best) is not None else ()
    return sorted(path for path in found if STEP.search(path.stem))


def keep_step(best: Path) -> None:
    """Let a tagged run's checkpoint be found under its step too; both are one file where links can be made."""
    step = _facts(best)[0].get("step")
    if tag_of(best) is None or not isinstance(step, int):
        return
    kept = step_file(best, step)
    temporary = kept.with_name(f".{kept.name}.tmp-{os.getpid()}")
    with contextlib.suppress(OSError):
        os.link(best, temporary)
        os.replace(temporary, kept)
        temporary.unlink(missing_ok=True)  # which stays where both were one file already


def entries() -> list[Entry]:
    """Return all checkpoints in this folder and of the tagged runs, the newest first; those of a run by step."""
    runs: dict[Path, list[Entry]] = {}
    for entry in [_entry(path, None, path.stem) for path in _files(Path())]:
        best = entry.path.with_name(f"{STEP.sub('', entry.path.stem)}.pt")
        if entry.step is None or entry.path != step_file(best, entry.step):  # no step, by its name
            best = entry.path
        runs.setdefault(best, []).append(dataclasses.replace(entry, tag=best.stem))
    for folder in runs_folder().glob("*/*/"):
        runs[folder / BEST] = [_entry(path, folder.parent.name, folder.name) for path in _files(folder)]
    found = [entry for best, run in runs.items() for entry in _of_run(run, best)]
    return sorted(found, key=lambda entry: (entry.modified, entry.step or 0), reverse=True)


def _of_run(run: Sequence[Entry], best: Path) -> list[Entry]:
    """Return the checkpoints of a run; where its best can be read, other steps are not for use."""
    chosen = next((entry for entry in run if entry.path == best and not entry.fault), None)
    if chosen is None:
        return list(run)
    twin = best if chosen.step is None else step_file(best, chosen.step)
    return [chosen, *[dataclasses.replace(e, for_use=False) for e in run if e.path not in (best, twin)]]


def _files(folder: Path) -> list[Path]:
    """Return the checkpoints in a folder that are for use, not those to resume from."""
    paths = [path for path in sorted(folder.glob("*.pt")) if not path.name.endswith(".last.pt") and path.is_file()]
    return [path for path in paths if path.name == OWN or archive.is_checkpoint(path)]


def _entry(path: Path, source: str | None, tag: str) -> Entry:
    status = path.stat()
    step, loss, fault = None, None, None
    try:
        about, trained_length = _facts(path)
        step, loss = _number(about.get("step"), int), _number(about.get("validation_loss"), int, float)
        stored = str(about.get("source"))
        source = source or (stored if stored in SOURCES else "sft" if trained_length else "mid")
    except GPT2ChatError as error:
        fault = str(error).removeprefix(f"{path}: ").partition(". ")[0]
        step = int(named[1]) if (named := STEP.search(path.stem)) else None
    return Entry(path, source or "?", tag, step, status.st_size, status.st_mtime, loss, fault=fault)


def _number(value: object, *types: type) -> Any:
    return value if type(value) in types else None


def _facts(path: Path) -> tuple[dict[str, Any], int | None]:
    """Return `about` and the taught length of a checkpoint without reading its weights; raises CheckpointError."""
    if not archive.is_checkpoint(path):
        raise CheckpointError("is no checkpoint of gpt2chat")
    content = archive.unpickle(path, archive.MAPPING)
    about = content.get("about") if isinstance(content, dict) else None
    if not isinstance(content, dict) or not isinstance(about, dict):
        raise CheckpointError("holds no facts about itself")
    return about, content.get("trained_length")


def find(
    source: str | None = None, tag: str | None = None, step: int | None = None, there: Sequence[Entry] | None = None
) -> Entry | None:
    """Return the newest checkpoint of `there`, by default all, that fits; None when nothing is asked for nor there.

    Without a step the one that is for use is taken. Raises CheckpointError, naming what there is, when something was
    asked for that is not there.
    """
    there = entries() if there is None else there
    fitting = [entry for entry in there if source in (None, entry.source) and tag in (None, entry.tag)]
    if step is not None:
        fitting = [entry for entry in fitting if entry.step == step]
    usable = [entry for entry in fitting if not entry.fault and (entry.for_use or step is not None)]
    if usable:
        kept = step_file(usable[0].path, step or 0)
        asked_for = step is not None and kept.exists()  # which stays when a later run makes another one for use
        return dataclasses.replace(usable[0], path=kept) if asked_for else usable[0]
    if (source, tag, step) == (None, None, None):
        if fitting:
            raise CheckpointError(f"{fitting[0].path}: {fitting[0].fault}")
        return None
    asked = ", ".join(f"{name} {value}" for name, value in _named(source, tag, step) if value is not None)
    raise CheckpointError(f"no checkpoint of {asked}: {_there(there)}")


def _named(source: str | None, tag: str | None, step: int | None) -> Sequence[tuple[str, object]]:
    return ("source", source), ("tag", tag), ("step", step)


def _there(there: Sequence[Entry]) -> str:
    """Say in a few words which checkpoints exist."""
    if not there:
        return f"there are none in {Path.cwd()} nor in {runs_folder()}; gpt2chat train makes one"
    runs: dict[str, list[str]] = {}
    for entry in there:
        runs.setdefault(f"{entry.source}/{entry.tag}", []).append("?" if entry.step is None else str(entry.step))
    shown = [f"{name} (step {', '.join(steps[:6])})" for name, steps in list(runs.items())[:8]]
    return f"there are {'; '.join(shown)}{' and more' if len(runs) > 8 else ''}: gpt2chat ls shows all"
