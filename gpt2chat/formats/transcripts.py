"""Conversations written down as text: `User: ... / Bot: ...` and ChatML -> messages with their line."""

from __future__ import annotations

import re
from collections.abc import Iterator

from gpt2chat.conversation import Message
from gpt2chat.errors import DataError
from gpt2chat.formats.rows import SPEAKERS
from gpt2chat.formats.sources import Source

SPOKEN = re.compile(r"(user|human|customer|bot|assistant|gpt|chatgpt|agent|system) ?: ?(.*)", re.I)
BEGIN, END = re.compile(r"<\|im_start\|>(\w+)[ \t]*(.*)"), "<|im_end|>"


def is_transcript(lines: list[str]) -> bool:
    """Whether the first lines of a file are a transcript: two speakers one after the other, or ChatML."""
    spoken = [match for line in lines if (match := SPOKEN.match(line))]
    filled = [line for line in lines if line.strip()]
    return is_chatml(lines) or (bool(filled) and SPOKEN.match(filled[0]) is not None and len(spoken) > 1)


def is_chatml(lines: list[str]) -> bool:
    """Whether the first line with text opens a ChatML message."""
    return next((bool(BEGIN.match(line)) for line in lines if line.strip()), False)


def read_transcript(source: Source) -> Iterator[tuple[int, tuple[Message, ...]]]:
    """Yield (line, messages) of each conversation; a blank line before a user's turn begins the next one.

    Lines without a speaker go on with the turn before.
    """
    begun, messages, blank = 1, list[tuple[str, list[str]]](), False
    for number, line in enumerate(source.lines(), 1):
        found = SPOKEN.match(line)
        if found:
            role = SPEAKERS[found[1].lower()]
            if blank and role != "assistant" and any(speaker == "assistant" for speaker, _ in messages):
                yield begun, _finished(messages)
                messages = []
            begun = begun if messages else number
            messages.append((role, [found[2]]))
        elif line.strip() and not messages:
            raise DataError(f"{source.name}:{number}: expected a speaker, User: or Bot:, got {line[:40]!r}")
        elif messages:
            messages[-1][1].append(line)
        blank = not line.strip()
    if messages:
        yield begun, _finished(messages)


def read_chatml(source: Source) -> Iterator[tuple[int, tuple[Message, ...]]]:
    """Yield (line, messages) of each conversation of <|im_start|>role ... <|im_end|>; raises DataError."""
    begun, opened, messages, blank = 1, 0, list[tuple[str, list[str]]](), False
    for number, line in enumerate(source.lines(), 1):
        found = BEGIN.match(line) if not opened else None
        if found:
            role = SPEAKERS.get(found[1].lower())
            if role is None:
                raise DataError(f"{source.name}:{number}: expected user, assistant or system, got {found[1]!r}")
            if role != "assistant" and messages and (role == "system" or blank):
                yield begun, _finished(messages)
                messages = []
            begun, opened = begun if messages else number, number
            messages.append((role, []))
            line = found[2]
        elif not opened and line.strip():
            raise DataError(f"{source.name}:{number}: expected <|im_start|>, got {line[:40]!r}")
        if opened and END in line:
            messages[-1][1].append(line.partition(END)[0])
            opened = 0
        elif opened and (line or not found):
            messages[-1][1].append(line)
        blank = not line.strip()
    if opened:
        raise DataError(f"{source.name}:{opened}: expected {END} after this message, found the end of the file")
    if messages:
        yield begun, _finished(messages)


def _finished(messages: list[tuple[str, list[str]]]) -> tuple[Message, ...]:
    return tuple(Message(role, "\n".join(lines).strip()) for role, lines in messages)
