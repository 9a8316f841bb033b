"""Chats on the disk, in a form that can be trained on: what was said, and which answers were approved or corrected."""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from gpt2chat.conversation import Message
from gpt2chat.errors import ConfigError, DataError
from gpt2chat.files import append_line, atomic_writer, json_line
from gpt2chat.formats.rows import kind_of
from gpt2chat.formats.writers import as_rows
from gpt2chat.taught import Pair, latest
from gpt2chat.tokenizer import LONE_SURROGATE
from gpt2chat.version import __version__


def provenance(by: str, model: str) -> dict[str, str]:
    """Return what is noted beside a conversation: who approved it, which model spoke, when."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"by": by, "model": model, "time": now, "gpt2chat": __version__}


def save(messages: Sequence[Message], path: Path, model: str) -> None:
    """Write a chat as `[{"messages": [...]}]`, whole or not at all; raises CheckpointError when it cannot be written.

    Answers without text are left out together with their questions, as nothing could be learnt from them. A file that
    holds something else than a chat is not replaced; raises ConfigError.
    """
    _check_name(path)
    said = [m for m, after in zip(messages, [*messages, None][1:], strict=True) if not _lost(m, after)]
    if not said:
        raise ConfigError(f"{path}: expected something that was said and answered, found nothing to save")
    row = {"messages": as_rows(said), "provenance": provenance("chat", model)}
    text = json.dumps([row], ensure_ascii=False, indent=1) + "\n"
    with atomic_writer(path) as file:
        file.write(LONE_SURROGATE.sub("\ufffd", text).encode("utf-8"))


def _check_name(path: Path) -> None:
    try:
        if path.exists() and not _is_chat(path):
            raise ConfigError(f"{path}: holds something else than a saved chat and stays: pass another name")
        if not path.parent.is_dir():
            raise ConfigError(f"{path}: there is no folder {path.parent}")
    except OSError as error:  # a name that is too long, a folder that may not be read
        raise ConfigError(f"{path}: cannot be written: {error.strerror}") from error


def _is_chat(path: Path) -> bool:
    try:
        load(path)
    except DataError:
        return path.is_file() and path.stat().st_size == 0
    return True


def _lost(message: Message, after: Message | None) -> bool:
    unanswered = after is not None and after.role == "assistant" and not after.content.strip()
    return not message.content.strip() or (message.role == "user" and unanswered)


def load(path: Path) -> list[Message]:
    """Read a chat that `save` or another program wrote as messages; raises DataError with the place."""
    try:
        content = json.loads(path.read_text("utf-8-sig"))
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected a chat as JSON, as /save writes it, found something else") from error
    chats = content if isinstance(content, list) else [content]
    if len(chats) != 1 or not isinstance(chats[0], dict):
        raise DataError(f'{path}: expected one chat, {{"messages": [...]}}, got {len(chats)} entries')
    try:
        kind = kind_of(chats[0], str(path), "messages")
        messages = [message for message in kind.read(chats[0]) if isinstance(message, Message)]
    except DataError as error:
        raise DataError(str(error) if str(path) in str(error) else f"{path}: {error}") from None
    if not all(message.content.strip() for message in messages):
        raise DataError(f"{path}: expected text in every message, found one without")
    return messages


Said = tuple[tuple[str, str], ...]  # of messages, who says what


@dataclass
class Feedback:
    """Approved and corrected answers of one model, a conversation per line of a file that can be trained on.

    Beside it, `preferences` collects what was said and rejected, with what was chosen instead when that is known. A new
    judgement of the same answer takes the place of the one before it.
    """

    path: Path
    model: str
    pairs: int = 0  # that this object has added
    _kept: dict[Said, str] = field(default_factory=dict)  # conversation -> its line in the file
    _rejected: dict[Said, str] = field(default_factory=dict)

    @property
    def preferences(self) -> Path:
        """Return the file of rejected answers."""
        name = self.path.name.removesuffix(".jsonl").removesuffix("feedback").removesuffix(".")
        return self.path.with_name(f"{name}.preferences.jsonl" if name else "preferences.jsonl")

    def approve(self, messages: Sequence[Message]) -> None:
        """Keep a conversation for its last answer; the earlier ones are not learnt from."""
        said = _said(messages)
        if said in self._kept:
            return
        _take_back(self.preferences, self._rejected.pop(said, None))
        *before, answer = messages
        shown = [Message(m.role, m.content, m.role != "assistant") for m in before]
        self._keep(said, [*shown, Message("assistant", answer.content)], "good")

    def teach(self, messages: Sequence[Message], right: str) -> None:
        """Keep the right answer to the last question, as a pair; what was said instead is rejected."""
        *before, answer = messages
        system = [message for message in before if message.role == "system"]
        corrected = _said([*before, Message("assistant", right)])
        if corrected not in self._kept:
            self._keep(corrected, [*system, before[-1], Message("assistant", right)], "teach")
        if right != answer.content:
            self.reject(messages, right)

    def reject(self, messages: Sequence[Message], chosen: str | None = None) -> None:
        """Keep the last answer as one that was not wanted, and what was chosen in its place."""
        said = _said(messages)
        if _take_back(self.path, self._kept.pop(said, None)):
            self.pairs -= 1
        for pair, line in [*self._lines()]:  # also what was taught in an earlier chat
            if pair == tuple(message.content for message in messages[-2:]):
                _take_back(self.path, line)
        _take_back(self.preferences, self._rejected.pop(said, None))
        *prompt, answer = messages
        row: dict[str, Any] = {"prompt": as_rows([Message(m.role, m.content) for m in prompt])}
        if chosen is not None:
            row["chosen"] = as_rows([Message("assistant", chosen)])
        row["rejected"] = as_rows([Message("assistant", answer.content)])
        row["provenance"] = provenance("bad", self.model)
        append_line(self.preferences, row)
        self._rejected[said] = json_line(row)

    def taught(self) -> list[Pair]:
        """Return the questions and answers that were taught, the last answer to each."""
        return latest(pair for pair, _ in self._lines())

    def _lines(self) -> Iterator[tuple[Pair, str]]:
        """Yield the pairs that were taught, by earlier objects too, each with its line; other lines are passed over."""
        with contextlib.suppress(OSError):
            for line in self.path.read_bytes().decode("utf-8-sig", "surrogateescape").split("\n"):
                with contextlib.suppress(ValueError, TypeError, KeyError, IndexError, RecursionError):
                    row = json.loads(line)
                    if row["provenance"]["by"] == "teach":
                        question, answer = (str(message["content"]) for message in row["messages"][-2:])
                        if question.strip() and answer.strip():
                            yield (question, answer), f"{line}\n"

    def _keep(self, said: Said, messages: Sequence[Message], by: str) -> None:
        row = {"messages": as_rows(messages), "provenance": provenance(by, self.model)}
        append_line(self.path, row)
        self._kept[said] = json_line(row)
        self.pairs += 1


def _said(messages: Sequence[Message]) -> Said:
    return tuple((message.role, message.content) for message in messages)


def _take_back(path: Path, line: str | None) -> bool:
    """Remove a line of a file, wherever it is by now; return False when it is not there."""
    if line is None or not path.is_file():
        return False
    whole = line.encode("utf-8", "replace")
    before, found, after = path.read_bytes().rpartition(whole)
    if found:
        with atomic_writer(path) as file:
            file.write(before + after)
    return bool(found)
