"""What all commands share: option spelling, errors as one line, exit codes, signals."""

from __future__ import annotations

import atexit
import contextlib
import errno
import functools
import os
import re
import shlex
import shutil
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, NoReturn, TypeVar

import click

from gpt2chat.errors import ConfigError, DiskFullError, GPT2ChatError

# `--text_file` and `--text-file` are the same option.
SETTINGS = {
    "help_option_names": ["-h", "--help"],
    "max_content_width": 110,
    "show_default": True,
    "token_normalize_func": lambda name: name.replace("-", "_"),
}
RUNTIME_ERROR, USAGE_ERROR = 1, 2
NEEDED = ("torch", "numpy", "tiktoken", "tqdm", "safetensors", "huggingface_hub")
INSTALL = "activate the environment (. .venv/bin/activate), or install with: pip install -c constraints.txt -e ."
STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
ROOM_SECONDS = 2.0  # between two tries to write on a full disk
PLAIN_SECONDS = 10.0  # progress without a terminal: one line so often

Command = TypeVar("Command", bound=Callable[..., Any])


class Interrupted(BaseException):
    """A SIGINT or SIGTERM, raised where the work can stop; `code` is the exit code the shell expects."""

    def __init__(self, number: int) -> None:
        super().__init__(number)
        self.code = 128 + number


def say(line: str = "") -> None:
    """Print to stderr: everything that is not an answer or a result. A reader that left is no reason to stop."""
    try:
        click.echo(line, err=True)
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stderr.fileno())


def write_pieces(pieces: Iterable[str]) -> None:
    """Print an answer as it comes."""
    for piece in pieces:
        click.echo(piece, nl=False)
        sys.stdout.flush()
    click.echo()


def in_words(seconds: float) -> str:
    """Return a rough time as people say it."""
    if seconds < 90:
        return f"{round(seconds)} seconds" if seconds >= 1.5 else "a second"
    return f"{seconds / 60:.0f} minutes" if seconds < 2 * 3600 else f"{seconds / 3600:.1f} hours"


def shortened(lines: Sequence[str], most: int = 12) -> list[str]:
    """Return one line per file, or of many files the first ones and how many more there are."""
    return list(lines) if len(lines) <= most else [*lines[: most - 1], f"… and {len(lines) - most + 1} files more"]


def program(name: str) -> str:
    """Return what to type here to run `train` or `chat` in the way this program was run, with this interpreter."""
    if str(click.get_current_context().find_root().info_name).endswith(".py"):
        script = Path(sys.argv[0]).with_name("train_chatbot.py" if name == "train" else "gpt_generate.py")
        return f"{_typed('python', sys.executable)} {shlex.quote(str(script))}"
    own = Path(sys.argv[0]).stem == "gpt2chat"
    return f"{_typed('gpt2chat', sys.argv[0]) if own else 'gpt2chat'} {name}"


def _typed(name: str, path: str) -> str:
    """Return `name` if the shell finds `path` under it, else the shortest way to write `path`."""
    if Path(shutil.which(name) or "").parent == Path(path).parent:
        return name
    return shlex.quote(min(os.path.relpath(path), os.path.abspath(path), key=len))


def kept_input(pipe: Path | None) -> Path:
    """Copy a pipe, or standard input, to a temporary file, which can be read more than once; it goes with the program.

    Raises DataError when it cannot be read or there is no room.
    """
    from gpt2chat.errors import DataError

    name, place = "standard input" if pipe is None else str(pipe), tempfile.gettempdir()
    try:
        with tempfile.NamedTemporaryFile(prefix="gpt2chat-", delete=False) as kept:
            place = kept.name
            atexit.register(lambda: Path(place).unlink(missing_ok=True))
            with contextlib.nullcontext(sys.stdin.buffer) if pipe is None else pipe.open("rb") as source:
                shutil.copyfileobj(source, kept)
    except OSError as error:
        raise DataError(
            f"{name}: cannot be kept in {place}: {error.strerror}: set TMPDIR to a disk with room"
        ) from None
    return Path(place)


def visible(text: str) -> str:
    """Return text from a file with what would steer the terminal written out, such as \\x1b."""
    return STEERING.sub(lambda found: ascii(found[0])[1:-1], text)


def tolerate_any_text() -> None:
    """Let odd bytes and narrow encodings become replacement characters instead of ending a chat."""
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # closed by whoever began the program
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: SIM115 - as long as the program
    for stream in (sys.stdin, sys.stdout):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="replace")


def colourless(wanted: bool) -> None:
    """Leave out all colours from now on, if that is wanted."""
    if wanted:
        click.get_current_context().color = False


def fail(message: str, code: int) -> NoReturn:
    """Print one line and leave."""
    say(click.style("error: ", fg="red") + visible(" ".join(message.split())))
    sys.exit(code)


def _interrupt(number: int, frame: FrameType | None) -> NoReturn:
    """End the work as Ctrl-C would, so that nothing half-written stays behind."""
    raise Interrupted(number)


def reports_errors(function: Command) -> Command:
    """Turn errors the user can fix into one line and an exit code; anything else keeps its traceback."""

    @functools.wraps(function)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        if os.environ.get("NO_COLOR") or not sys.stderr.isatty():
            click.get_current_context().color = False
        before = signal.signal(signal.SIGTERM, _interrupt)
        try:
            return function(*args, **kwargs)
        except ConfigError as error:
            fail(str(error), USAGE_ERROR)
        except GPT2ChatError as error:
            fail(str(error), RUNTIME_ERROR)
        except Interrupted as interrupt:
            say("interrupted")
            sys.exit(interrupt.code)
        except KeyboardInterrupt:
            say("interrupted")
            sys.exit(128 + signal.SIGINT)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            sys.exit(0)
        except OSError as error:
            if error.errno != errno.ENOSPC or error.filename is not None:
                raise
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            fail("what was to be written could not be: no space left on the device", RUNTIME_ERROR)
        except ModuleNotFoundError as error:
            if error.name not in NEEDED:
                raise
            fail(f"{error.name} is not installed for {sys.executable}: {INSTALL}", RUNTIME_ERROR)
        finally:
            signal.signal(signal.SIGTERM, before)

    return wrapper  # type: ignore[return-value]


class Signals:
    """Lets SIGINT and SIGTERM interrupt everywhere but in critical sections, at whose end they are raised.

    The third SIGINT in one critical section leaves the program at once, without saving.
    """

    def __init__(self) -> None:
        self._critical = False
        self._pending: list[int] = []

    @property
    def pending(self) -> bool:
        """Whether a signal waits for the end of a critical section."""
        return bool(self._pending)

    def __enter__(self) -> Signals:
        self._before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        for number in self._before:
            signal.signal(number, self._handle)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if not self._critical:
            raise Interrupted(number)
        self._pending.append(number)
        if self._pending.count(signal.SIGINT) > 2:
            os._exit(128 + signal.SIGINT)
        say("\nfinishing this step …")

    @contextlib.contextmanager
    def critical(self) -> Iterator[None]:
        """Hold signals back until the end of the block."""
        self._critical = True
        try:
            yield
        finally:
            self._critical = False
        if self._pending:
            number, self._pending = self._pending[0], []
            raise Interrupted(number)


class RoomWait:
    """What a run does while its disk is full: it says so, waits, and tries again for ten minutes altogether."""

    def __init__(self, signals: Signals, seconds: float = 600.0) -> None:
        self._signals, self._left = signals, seconds
        self._last = -60.0

    def __call__(self, error: DiskFullError) -> bool:
        """Return True after a pause, False when the patience or the user's has ended."""
        if self._left <= 0 or self._signals.pending:
            return False
        if time.monotonic() - self._last >= 60:
            self._last = time.monotonic()
            say(f"\n{error}. Waiting for room, {self._left / 60:.0f} minutes at most; Ctrl-C ends the run")
        time.sleep(ROOM_SECONDS)
        self._left -= ROOM_SECONDS
        return True
