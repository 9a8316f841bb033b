"""Chats on the disk, in a form that can be trained on: what was said, and which answers were approved or corrected."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2chat.conversation import Message
from gpt2chat.errors import DataError
from gpt2chat.files import append_line, atomic_writer
from gpt2chat.formats.rows import kind_of
from gpt2chat.tokenizer import LONE_SURROGATE
from gpt2chat.version import __version__


def as_rows(messages: Sequence[Message]) -> list[dict[str, Any]]:
    """Return messages as OpenAI writes them; an answer that is not to be learnt has the weight 0."""
    return [{"role": m.role, "content": m.content} | ({} if m.trained else {"weight": 0}) for m in messages]


def provenance(by: str, model: str) -> dict[str, str]:
    """Return what is noted beside a conversation: who approved it, which model spoke, when."""
    now = time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime())
    return {"by": by, "model": model, "time": now, "gpt2chat": __version__}


def save(messages: Sequence[Message], path: Path, model: str) -> None:
    """Write a chat as `[{"messages": [...]}]`, whole or not at all; raises CheckpointError when it cannot be written.

    Answers without text are left out together with their questions, as nothing could be learnt from them.
    """
    said = [m for m, after in zip(messages, [*messages, None][1:], strict=True) if not _lost(m, after)]
    row = {"messages": as_rows(said), "provenance": provenance("chat", model)}
    text = json.dumps([row], ensure_ascii=False, indent=1) + "\n"
    with atomic_writer(path) as file:
        file.write(LONE_SURROGATE.sub("\ufffd", text).encode("utf-8"))


def _lost(message: Message, after: Message | None) -> bool:
    unanswered = after is not None and after.role == "assistant" and not after.content.strip()
    return not message.content.strip() or (message.role == "user" and unanswered)


def load(path: Path) -> list[Message]:
    """Read a chat that `save` or another program wrote as messages; raises DataError with the place."""
    try:
        content = json.loads(path.read_text("utf-8-sig"))
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: expected a chat as JSON: {error}") from error
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


@dataclass
class Feedback:
    """Approved and corrected answers of one model, a conversation per line of a file that can be trained on.

    Beside it, `preferences` collects what was said and rejected, with what was chosen instead when that is known.
    """

    path: Path
    model: str
    pairs: int = 0  # that this object has added
    _approved: tuple[list[Message], int, int] | None = None  # what was last, and where it begins and ends in the file

    @property
    def preferences(self) -> Path:
        """Return the file of rejected answers."""
        name = self.path.name.removesuffix(".jsonl").removesuffix("feedback").removesuffix(".")
        return self.path.with_name(f"{name}.preferences.jsonl" if name else "preferences.jsonl")

    def approve(self, messages: Sequence[Message]) -> None:
        """Keep a conversation for its last answer; the earlier ones are not learnt from."""
        if self._approved and self._approved[0] == list(messages):
            return
        *before, answer = messages
        begin = self.path.stat().st_size if self.path.exists() else 0
        shown = [Message(m.role, m.content, m.role != "assistant") for m in before]
        self._add([*shown, Message("assistant", answer.content)], "good")
        self._approved = list(messages), begin, self.path.stat().st_size

    def teach(self, question: Message, answer: str) -> None:
        """Keep the right answer to a question, as a pair."""
        self._add([question, Message("assistant", answer)], "teach")

    def reject(self, messages: Sequence[Message], chosen: str | None = None) -> None:
        """Keep the last answer as one that was not wanted, and what was chosen in its place.

        If it was just approved, that is taken back.
        """
        if self._approved and self._approved[0] == list(messages) and self.path.stat().st_size == self._approved[2]:
            os.truncate(self.path, self._approved[1])
            self.pairs -= 1
        self._approved = None
        *prompt, answer = messages
        row = {"prompt": as_rows([Message(m.role, m.content) for m in prompt])}
        if chosen is not None:
            row["chosen"] = as_rows([Message("assistant", chosen)])
        row["rejected"] = as_rows([Message("assistant", answer.content)])
        append_line(self.preferences, {**row, "provenance": provenance("bad", self.model)})

    def _add(self, messages: Sequence[Message], by: str) -> None:
        append_line(self.path, {"messages": as_rows(messages), "provenance": provenance(by, self.model)})
        self.pairs += 1
