"""`app.log`: questions and answers for the operator who asked for them, in the form of Dell's chatbot service.

    Question: When are you open?
    Answer: From 9 to 17.
    Inference latency: 0.214 sec
    Token per sec: 42.06

Three empty lines end a record. Further lines of a question or answer are indented and control characters are written as
escapes, so that nothing a visitor types can begin a record or reach the operator's terminal as a command.
"""

from __future__ import annotations

import contextlib
import logging
import os
import stat
import threading
from pathlib import Path

from gpt2chat.errors import ConfigError

LARGEST, KEPT = 10_000_000, 5  # bytes of a file; files behind it
FLAGS = os.O_WRONLY | os.O_APPEND | os.O_CREAT
FLAGS |= getattr(os, "O_CLOEXEC", 0) | getattr(os, "O_NONBLOCK", 0)  # a pipe that nobody reads must not hold anyone up
ESCAPES = {code: f"\\x{code:02x}" for code in (*range(9), *range(10, 32), *range(127, 160))}

_logger = logging.getLogger(__name__)


def record(question: str, answer: str, seconds: float, tokens: int) -> str:
    """Return the record of one answer."""
    speed = tokens / seconds if seconds > 0 else 0.0
    return (
        f"Question: {_plain(question)}\nAnswer: {_plain(answer)}\n"
        f"Inference latency: {seconds:.3f} sec\nToken per sec: {speed:.2f}\n\n\n\n"
    )


def _plain(text: str) -> str:
    return "\n  ".join(line.translate(ESCAPES) for line in text.splitlines())


class ChatLog:
    """A file that records are appended to, from any thread; the user alone may read it.

    It begins anew at `largest` bytes; the last `kept` files stay as app.log.1 (the newest), app.log.2 and so on. What
    cannot be written is missing, which is said once through logging; no answer suffers, and the next record is tried.
    """

    def __init__(self, path: Path, largest: int = LARGEST, kept: int = KEPT) -> None:
        """Open the file; raises ConfigError if that cannot be done."""
        self.path, self.largest, self.kept = path, largest, kept
        self.missing = 0  # records since the last one that was written
        self._lock = threading.Lock()
        self._file: int | None = None
        try:
            self._file = self._opened()
        except (OSError, ValueError) as error:
            reason = getattr(error, "strerror", None) or error
            raise ConfigError(f"log_prompts: {path}: expected a file that can be written: {reason}") from error

    def write(self, question: str, answer: str, seconds: float, tokens: int) -> None:
        """Append the record of an answer that took so long and has so many tokens."""
        content = record(question, answer, seconds, tokens).encode("utf-8", "replace")
        with self._lock:
            try:
                self._append(content)
            except OSError as error:
                self._forget()
                self.missing += 1
                if self.missing == 1:
                    reason = error.strerror or error
                    _logger.warning("%s cannot be written: %s; it is tried again at each answer", self.path, reason)
            else:
                if self.missing:
                    _logger.warning("%s is written again; %d answers are missing", self.path, self.missing)
                self.missing = 0

    def close(self) -> None:
        """Close the file; a later `write` opens it again."""
        with self._lock:
            self._forget()

    def _opened(self) -> int:
        return os.open(self.path, FLAGS, 0o600)

    def _forget(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            with contextlib.suppress(OSError):
                os.close(file)

    def _append(self, content: bytes) -> None:
        self._follow()
        if self._file is None:
            self._file = self._opened()
        facts = os.fstat(self._file)
        regular = stat.S_ISREG(facts.st_mode)
        if regular and facts.st_size and facts.st_size + len(content) > self.largest:
            self._rotate()
            self._file = self._opened()
            facts = os.fstat(self._file)
        try:
            written = 0
            while written < len(content):
                written += os.write(self._file, content[written:])
        except OSError:
            if regular:  # no half a record
                with contextlib.suppress(OSError):
                    os.ftruncate(self._file, facts.st_size)
            raise

    def _follow(self) -> None:
        """Close a file that was moved or removed from outside."""
        if self._file is not None:
            try:
                same = os.path.samestat(os.stat(self.path), os.fstat(self._file))
            except OSError:
                same = False
            if not same:
                self._forget()

    def _rotate(self) -> None:
        self._forget()
        target = Path(os.path.realpath(self.path))
        numbered = [target, *(target.with_name(f"{target.name}.{number}") for number in range(1, self.kept + 1))]
        for older, newer in zip(reversed(numbered), reversed(numbered[:-1]), strict=False):
            with contextlib.suppress(FileNotFoundError):
                os.replace(newer, older)
