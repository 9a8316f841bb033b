"""The files of a training run: where they are, and what is checked before the first step."""

from __future__ import annotations

import hashlib
import os
import shutil
from dataclasses import dataclass
from pathlib import Path

from gpt2chat import archive
from gpt2chat.errors import CheckpointError, DataError, DiskFullError
from gpt2chat.files import atomic_writer
from gpt2chat.shelf import step_file


@dataclass(frozen=True)
class RunFiles:
    """The files of a run: the checkpoint to use, and beside it what resuming and judging need."""

    best: Path

    def beside(self, ending: str) -> Path:
        """Return a sibling: `trained_model.pt` -> `trained_model.<ending>`."""
        return self.best.with_name(f"{self.best.name.removesuffix('.pt')}.{ending}")

    def step(self, number: int) -> Path:
        """Return the file that keeps one step: `model.pt` -> `model_000200.pt`."""
        return step_file(self.best, number)

    @property
    def last(self) -> Path:
        """Weights, optimizer and position of the last step."""
        return self.beside("last.pt")

    @property
    def metrics(self) -> Path:
        """One JSON object per step."""
        return self.beside("metrics.jsonl")

    @property
    def curve(self) -> Path:
        """The loss curve as SVG."""
        return self.beside("loss.svg")

    @property
    def samples(self) -> Path:
        """The answers to the probe questions during training."""
        return self.beside("samples.jsonl")


def check_room(files: RunFiles, parameters: int) -> None:
    """Compare the free disk space with what a run writes; raises DiskFullError before any work is lost."""
    best, last = 4 * parameters, 3 * 4 * parameters  # weights; weights and AdamW's two moments
    there = sum(path.stat().st_size for path in (files.best, files.last) if path.is_file())
    needed = best + last + max(best, last) - min(there, best + last)  # a new file is written beside its predecessor
    free = shutil.disk_usage(files.best.parent).free
    if free < needed:
        raise DiskFullError(
            f"{files.best.parent}: expected {needed / 1e6:.1f} MB free for the checkpoints of this model, found "
            f"{free / 1e6:.1f} MB: free some, or pass another --save_path"
        )


def check_replaceable(files: RunFiles) -> None:
    """Refuse to write over what is no checkpoint; raises CheckpointError."""
    for path in (files.best, files.last):
        if os.path.isfile(path) and os.path.getsize(path) and not archive.is_checkpoint(path):
            raise CheckpointError(f"{path}: is no checkpoint of gpt2chat and would be overwritten: pass another name")
        if os.path.exists(path) and not os.path.isfile(path):
            found = "a folder" if path.is_dir() else "a device or pipe"
            raise CheckpointError(f"{path}: expected a file name for the checkpoint, found {found}")


def check_writable(files: RunFiles) -> None:
    """Try to write beside the checkpoint before any work is done; raises CheckpointError."""
    probe = files.beside("writable")
    try:
        with atomic_writer(probe) as file:
            file.write(b"")
        probe.unlink()
    except OSError as error:
        raise CheckpointError(f"{files.best}: cannot be written: {error.strerror}") from error
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(probe), str(files.best))) from error


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a data file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
