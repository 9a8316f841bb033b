"""The real program in a real pseudo-terminal, its screen as a person would see it."""

from __future__ import annotations

import fcntl
import os
import pty
import select
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path
from types import TracebackType

import pyte
from helpers_cli import environment

PATIENCE = 240.0  # seconds for anything that is awaited: the machine may be busy
WITHOUT_TOOLKIT = "import sys; sys.modules['prompt_toolkit'] = None; "
RUN = "from gpt2chat.cli import main; main(prog_name='gpt2chat')"
ESCAPE, UP, LEFT, TAB, ENTER = "\x1b", "\x1b[A", "\x1b[D", "\t", "\r"
CTRL_A, CTRL_C, CTRL_D = "\x01", "\x03", "\x04"


class Terminal:
    """A program in a terminal of so many columns; what it shows is in `screen`, what scrolled away in its history."""

    def __init__(self, *args: object, folder: Path, columns: int = 100, toolkit: bool = True, **extra: str) -> None:
        self.screen = pyte.HistoryScreen(columns, 50, history=5000)
        self._stream = pyte.ByteStream(self.screen)
        self._master, slave = pty.openpty()
        self.screen.write_process_input = lambda data: os.write(self._master, data.encode()) and None  # type: ignore[method-assign]
        self._resize(columns)
        code = RUN if toolkit else WITHOUT_TOOLKIT + RUN
        self.process = subprocess.Popen(
            [sys.executable, "-c", code, *map(str, args)],
            cwd=folder,
            env=environment(TERM="xterm-256color", XDG_STATE_HOME=str(folder / "state"), **extra),
            stdin=slave,
            stdout=slave,
            stderr=slave,
            start_new_session=True,
            preexec_fn=lambda: fcntl.ioctl(slave, termios.TIOCSCTTY, 0),
        )
        os.close(slave)
        self._raw = b""

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, at: TracebackType | None) -> None:
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait()
        os.close(self._master)
        if error is not None:
            error.add_note("the screen was:\n" + self.text())

    def _resize(self, columns: int) -> None:
        fcntl.ioctl(self._master, termios.TIOCSWINSZ, struct.pack("HHHH", 50, columns, 0, 0))

    def resize(self, columns: int) -> None:
        """Make the window another width, as a window manager does."""
        self._resize(columns)
        self.screen.resize(columns=columns)
        self.process.send_signal(signal.SIGWINCH)

    def type(self, text: str) -> None:
        """Press keys."""
        os.write(self._master, text.encode())

    def paste(self, text: str) -> None:
        """Paste as terminals do: between marks, if the program asked for them."""
        self.type(f"\x1b[200~{text}\x1b[201~" if b"\x1b[?2004h" in self._raw else text)

    def text(self) -> str:
        """Return all lines, also those that scrolled away."""
        rows = [*self.screen.history.top, *(self.screen.buffer[y] for y in range(self.screen.lines))]
        lines = ["".join(row[x].data for x in range(self.screen.columns)).rstrip() for row in rows]
        return "\n".join(lines).rstrip()

    def _pump(self, seconds: float) -> bool:
        """Take what the program writes; return False at its end."""
        ready, _, _ = select.select([self._master], [], [], seconds)
        if not ready:
            return True
        try:
            data = os.read(self._master, 65536)
        except OSError:  # the program has left its terminal
            return False
        self._raw += data
        self._stream.feed(data)
        return bool(data)

    def wait(self, *shown: str, after: int = 0) -> str:
        """Wait until all of `shown` stand on the screen behind the line `after`; return the text there."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            text = "\n".join(self.text().splitlines()[after:])
            if all(part in text for part in shown):
                return text
            if not self._pump(0.05):
                break
        raise AssertionError(f"expected {shown}, found:\n{self.text()}")

    def prompt(self) -> int:
        """Wait for the prompt on the last line; return how many lines stand above it."""
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            lines = self.text().splitlines()
            if lines and lines[-1].startswith("You:") and lines[-1].rstrip() == "You:":
                return len(lines) - 1
            if not self._pump(0.05):
                break
        raise AssertionError(f"expected a prompt, found:\n{self.text()}")

    def say(self, line: str) -> str:
        """Type a line at the prompt, wait for the next prompt, and return what was shown in between."""
        before = self.prompt()
        self.type(line + ENTER)
        until = time.monotonic() + PATIENCE
        while time.monotonic() < until:
            lines = self.text().splitlines()
            if len(lines) > before + 1 and lines[-1].rstrip() == "You:":
                return "\n".join(lines[before + 1 : -1])
            if not self._pump(0.05):
                break
        return "\n".join(self.text().splitlines()[before + 1 :])

    def end(self) -> int:
        """Wait for the program to leave; return its exit code."""
        until = time.monotonic() + PATIENCE
        while self._pump(0.5) and self.process.poll() is None:
            assert time.monotonic() < until, f"expected the end of the program, found:\n{self.text()}"
        while self._pump(0.1) and select.select([self._master], [], [], 0)[0]:
            pass
        return self.process.wait(PATIENCE)
