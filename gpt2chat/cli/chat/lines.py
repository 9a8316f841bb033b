"""Where the user's lines come from: prompt_toolkit if it is installed, readline, or a pipe."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import sys
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import FrameType
from typing import Any, Protocol

import click

from gpt2chat.cli.terminal import Interrupted, say

KEPT = 1000  # lines of history
QUOTES = '"""'
Completions = Callable[[str], tuple[int, Sequence[str]]]  # text before the cursor -> where the word begins, words


class Lines(Protocol):
    """Reads a line; Ctrl-C is KeyboardInterrupt, the end of input EOFError."""

    def read(self, prompt: str, default: str = "") -> str:
        """Return what was typed behind `prompt`, where `default` stands to be edited; it may hold newlines."""


def read_message(lines: Lines, prompt: str) -> str:
    """Read a message: a line, or all lines up to the closing mark after an opening \"\"\"."""
    line = lines.read(prompt).strip()
    if not line.startswith(QUOTES):
        return line
    parts, rest = list[str](), line.removeprefix(QUOTES)
    while QUOTES not in rest:
        parts.append(rest)
        try:
            rest = lines.read("... ")
        except EOFError:
            rest = QUOTES
    parts.append(rest.partition(QUOTES)[0])
    return "\n".join(parts).strip()


def open_lines(interactive: bool, history: bool, completions: Completions, plain: bool) -> Lines:
    """Return the best reader there is here."""
    if not interactive:
        return PipedLines()
    kept = History(history_file() if history else None)
    with contextlib.suppress(ImportError):
        return ToolkitLines(kept, completions, plain)
    with contextlib.suppress(ImportError):
        return ReadlineLines(kept, completions)
    return ConsoleLines()


def history_file() -> Path | None:
    """Return where what was typed is kept for the next chat."""
    with contextlib.suppress(RuntimeError):  # of a user without a home
        return Path(os.environ.get("XDG_STATE_HOME") or Path.home() / ".local/state", "gpt2chat", "history.jsonl")
    return None


class History:
    """What was typed before, oldest first; kept in a file that only its user can read. A fault of the disk is no fault.

    One JSON string per line, as messages may hold newlines.
    """

    def __init__(self, path: Path | None) -> None:
        self._path = path
        self.lines = list(self._read())
        if len(self.lines) > 2 * KEPT:
            self._shorten()
        self.lines = self.lines[-KEPT:]

    def _read(self) -> Iterator[str]:
        with contextlib.suppress(OSError):
            for line in self._path.read_text("utf-8", "replace").splitlines() if self._path else ():
                with contextlib.suppress(ValueError, RecursionError):
                    typed = json.loads(line)
                    if isinstance(typed, str) and "\0" not in typed:
                        yield typed.encode("utf-8", "replace").decode("utf-8")

    def _shorten(self) -> None:
        """Let the file hold the last lines alone."""
        assert self._path is not None
        shorter = self._path.with_name(f".{self._path.name}.{os.getpid()}")
        with contextlib.suppress(OSError):
            self._write(shorter, self.lines[-KEPT:])
            os.replace(shorter, self._path)

    def add(self, line: str) -> None:
        """Keep a line unless it repeats the last one."""
        if not line.strip() or line in self.lines[-1:]:
            return
        self.lines.append(line)
        if self._path is not None:
            with contextlib.suppress(OSError):
                self._path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
                self._write(self._path, [line])

    @staticmethod
    def _write(path: Path, lines: Sequence[str]) -> None:
        with os.fdopen(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600), "a", encoding="utf-8") as file:
            if hasattr(os, "fchmod"):
                os.fchmod(file.fileno(), 0o600)  # also when it was there
            file.writelines(json.dumps(line) + "\n" for line in lines)


class PipedLines:
    """Lines of standard input, without a prompt."""

    def __init__(self) -> None:
        self._told = False

    def read(self, prompt: str, default: str = "") -> str:
        """Return the next line."""
        line = sys.stdin.readline()
        if not line:
            raise EOFError
        if "\ufffd" in line and not self._told:
            self._told = True
            say("note: what is not UTF-8 in the input was replaced by \ufffd")
        return line.rstrip("\n")


class ConsoleLines:
    """A terminal whose system edits lines by itself."""

    def read(self, prompt: str, default: str = "") -> str:
        """Return what was typed."""
        return input(prompt)


class ReadlineLines:
    """A terminal with GNU readline or libedit: arrows, history, Tab; Alt-Enter begins another line."""

    def __init__(self, history: History, completions: Completions) -> None:
        import readline

        self._readline, self._history, self._completions = readline, history, completions
        self._found: Sequence[str] = ()
        readline.clear_history()
        for line in history.lines:
            readline.add_history(line)
        readline.set_auto_history(False)
        readline.set_completer(self._complete)
        readline.set_completer_delims(" ")
        if "libedit" in (readline.__doc__ or ""):
            readline.parse_and_bind("bind ^I rl_complete")
        else:
            readline.parse_and_bind("tab: complete")
            readline.parse_and_bind("set enable-bracketed-paste on")
            readline.parse_and_bind(r'"\e\C-m": "\C-v\C-j"')

    def read(self, prompt: str, default: str = "") -> str:
        """Return what was typed."""
        self._readline.set_startup_hook((lambda: self._readline.insert_text(default)) if default else None)
        try:
            with _heard():
                line = input(prompt)
        finally:
            self._readline.set_startup_hook(None)
        if line.strip():
            self._readline.add_history(line)
        self._history.add(line)
        return line

    def _complete(self, word: str, state: int) -> str | None:
        if state == 0:
            before = self._readline.get_line_buffer()[: self._readline.get_endidx()]
            start, found = self._completions(before)
            cut = self._readline.get_begidx() - start
            self._found = [text[cut:] for text in found] if cut >= 0 else ()
        return self._found[state] if state < len(self._found) else None


@contextlib.contextmanager
def _heard() -> Iterator[None]:
    """Let signals be heard at once: readline only looks for them when a key or another signal comes.

    Python's own note of a signal wakes a thread, which knocks with one that means nothing until readline looks.
    """
    if not hasattr(signal, "SIGWINCH"):
        yield
        return
    reader, writer = socket.socketpair()
    writer.setblocking(False)
    main, done = threading.get_ident(), threading.Event()

    def knock() -> None:
        while reader.recv(64):
            while not done.wait(0.05):
                signal.pthread_kill(main, signal.SIGWINCH)

    thread = threading.Thread(target=knock, daemon=True)
    thread.start()
    before = signal.set_wakeup_fd(writer.fileno(), warn_on_full_buffer=False)
    try:
        yield
    finally:
        signal.set_wakeup_fd(before)
        done.set()
        writer.close()
        thread.join()
        reader.close()


class ToolkitLines:
    """A terminal with prompt_toolkit: as readline, with a menu of completions and suggestions from the history."""

    def __init__(self, history: History, completions: Completions, plain: bool) -> None:
        from prompt_toolkit import PromptSession
        from prompt_toolkit.auto_suggest import AutoSuggestFromHistory
        from prompt_toolkit.key_binding import KeyBindings
        from prompt_toolkit.output import ColorDepth

        keys = KeyBindings()

        keys.add("escape", "enter")(lambda event: event.current_buffer.insert_text("\n"))
        colourless = plain or click.get_current_context().color is False
        self._session: Any = PromptSession(
            history=_toolkit_history(history),
            completer=_toolkit_completer(completions),
            complete_while_typing=False,
            auto_suggest=None if plain else AutoSuggestFromHistory(),
            key_bindings=keys,
            enable_open_in_editor=True,
            color_depth=ColorDepth.DEPTH_1_BIT if colourless else None,
            prompt_continuation="... ",
        )

    def read(self, prompt: str, default: str = "") -> str:
        """Return what was typed."""
        before = signal.signal(signal.SIGTERM, self._leave)
        try:
            return str(self._session.prompt(prompt, default=default))
        finally:
            signal.signal(signal.SIGTERM, before)

    def _leave(self, number: int, frame: FrameType | None) -> None:
        """End the prompt by a signal: an exception that is raised here would end in the event loop."""
        app = self._session.app
        if app.loop is None or not app.is_running:
            raise Interrupted(number)
        app.loop.call_soon_threadsafe(lambda: app.exit(exception=Interrupted(number)))


def _toolkit_history(kept: History) -> Any:
    from prompt_toolkit.history import History as Base

    class Adapted(Base):
        def load_history_strings(self) -> Iterator[str]:
            yield from reversed(kept.lines)

        def store_string(self, string: str) -> None:
            kept.add(string)

    return Adapted()


def _toolkit_completer(completions: Completions) -> Any:
    from prompt_toolkit.completion import Completer, Completion

    class Adapted(Completer):
        def get_completions(self, document: Any, complete_event: Any) -> Iterator[Completion]:
            before = document.text_before_cursor
            start, found = completions(before)
            for text in found:
                yield Completion(text, start_position=start - len(before))

    return Adapted()
