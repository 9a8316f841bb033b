"""Files that are there whole or not at all."""

from __future__ import annotations

import contextlib
import difflib
import errno
import glob
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from gpt2chat.errors import CheckpointError, DiskFullError


def near(path: str) -> str | None:
    """Return the file or folder whose name is most like that of one that is not there, if one is."""
    folder, name = os.path.split(path.rstrip(os.sep))
    with contextlib.suppress(OSError, ValueError):
        for found in difflib.get_close_matches(name, os.listdir(folder or "."), n=1):
            return os.path.join(folder, found)
    return None


def cache_folder() -> Path | None:
    """Return where this user's programs keep what they can make again, if there is such a place; nothing is created."""
    if folder := os.environ.get("GPT2CHAT_CACHE"):
        return Path(folder)
    with contextlib.suppress(RuntimeError):  # of a user without a home
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache", "gpt2chat")
    return None


@contextlib.contextmanager
def atomic_writer(path: Path) -> Iterator[Any]:
    """Open a file beside `path`; sync and rename it at the end. On any error the old file stays as it was.

    A link is followed; a device, pipe or folder is refused, for the rename would replace it.
    """
    path = Path(os.path.realpath(path)) if path.is_symlink() else path
    temporary = path.with_name(f".{path.name}.tmp-{os.getpid()}")
    file = None
    try:
        if path.exists() and not path.is_file():
            raise CheckpointError(f"{path}: expected the name of a file, found a folder, device or pipe")
        path.parent.mkdir(parents=True, exist_ok=True)
        _sweep(path)
        with temporary.open("wb") as raw:
            if path.exists():  # who may read it stays as it was
                os.chmod(temporary, path.stat().st_mode & 0o777)
            file = _KeepsFirstError(raw)
            yield file
            raw.flush()
            os.fsync(raw.fileno())
        os.replace(temporary, path)
        _sync_folder(path.parent)
    except OSError as error:
        raise cannot_write(path, error) from error
    except RuntimeError as error:  # torch.save hides what stopped a write behind one of these
        stopped = _first_cause(error, file.error if file else None)
        if isinstance(stopped, OSError):
            raise cannot_write(path, stopped) from error
        if isinstance(stopped, Exception):
            raise
        raise stopped from None  # Ctrl-C
    finally:
        with contextlib.suppress(OSError):
            temporary.unlink(missing_ok=True)


def _first_cause(error: BaseException, written: BaseException | None) -> BaseException:
    """Return what stopped a write: what the file itself saw, else an interrupt that `error` hides, else `error`."""
    if written is not None:
        return written
    before: BaseException | None = error
    while before is not None:
        if not isinstance(before, Exception):
            return before
        before = before.__context__
    return error


class _KeepsFirstError:
    """A file that remembers what first stopped a write (a full disk, Ctrl-C), which torch.save reports as its own."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file = file
        self.error: BaseException | None = None

    def write(self, data: Any) -> int:
        try:
            return self._file.write(data)
        except BaseException as error:
            self.error = self.error or error
            raise

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)


def json_line(row: dict[str, Any]) -> str:
    """Return a line of a JSON Lines file."""
    return json.dumps(row, ensure_ascii=False) + "\n"


def append_line(path: Path, row: dict[str, Any]) -> None:
    """Add a line of JSON to a file, or none of it; raises CheckpointError."""
    try:
        with path.open("ab+", buffering=0) as file:
            line, size = json_line(row).encode("utf-8", "replace"), file.tell()
            file.seek(max(0, size - 1))
            if file.read(1) not in (b"", b"\n"):  # so an editor or a killed program left it
                line = b"\n" + line
            try:
                written = file.write(line)
                if written < len(line):  # the disk had room for a part; asked for the rest, it says why
                    file.write(line[written:])
            except OSError:
                with contextlib.suppress(OSError):
                    file.truncate(size)
                raise
    except OSError as error:
        raise cannot_write(path, error) from error


def cannot_write(path: Path, error: OSError) -> CheckpointError:
    """Return the error to raise when writing a run's file failed: a DiskFullError when it was for want of room."""
    kept = "; the file that was there is unchanged" if path.is_file() else ""
    kind = DiskFullError if error.errno in (errno.ENOSPC, errno.EDQUOT) else CheckpointError
    return kind(f"{path}: cannot be written: {error.strerror or error}{kept}")


def _sync_folder(folder: Path) -> None:
    if os.name == "posix":
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


def _sweep(path: Path) -> None:
    """Remove what killed runs left half-written for this file."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.tmp-*"):
        owner = re.search(r"\.tmp-(\d+)$", leftover.name)
        if owner and not _alive(int(owner[1])):
            leftover.unlink(missing_ok=True)


def _alive(pid: int) -> bool:
    if os.name != "posix":
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
