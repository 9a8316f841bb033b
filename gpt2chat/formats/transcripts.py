"""Conversations written down as text: `User: ... / Bot: ...` and ChatML -> messages with their line."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator

from gpt2chat.conversation import Message
from gpt2chat.errors import DataError
from gpt2chat.formats.rows import SPEAKERS
from gpt2chat.formats.sources import Source

SPOKEN = re.compile(r"(user|human|customer|bot|assistant|gpt|chatgpt|agent|system) ?: ?(.*)", re.I)
NAMED = re.compile(r"(?:[\W\d]*(?:[AaPp]\.?[Mm]\.?)?\W*)??([^\W\d][\w. -]{0,24}?)\W{0,2}: ?\S")
BEGIN, END = re.compile(r"<\|im_start\|>(\w+)[ \t]*(.*)"), "<|im_end|>"


def is_transcript(lines: list[str]) -> bool:
    """Whether the first lines of a file are a transcript: two speakers one after the other, or ChatML."""
    spoken = [match for line in lines if (match := SPOKEN.match(line))]
    filled = [line for line in lines if line.strip()]
    return is_chatml(lines) or (bool(filled) and SPOKEN.match(filled[0]) is not None and len(spoken) > 1)


def is_chatml(lines: list[str]) -> bool:
    """Whether the first line with text opens a ChatML message."""
    return next((bool(BEGIN.match(line)) for line in lines if line.strip()), False)


def speakers_of(lines: list[str]) -> tuple[str, ...]:
    """Return the two names that begin most lines with text, as in `Anna: Hello`, behind a time or not; or none."""
    filled = [line for line in lines if line.strip()]
    names = Counter(found[1] for line in filled if (found := NAMED.match(line[:80])))
    two = names.most_common(2)
    often = len(two) == 2 and two[1][1] > 1 and sum(count for _, count in two) > 0.6 * len(filled)
    return tuple(name for name, _ in two) if often else ()


def read_transcript(source: Source) -> Iterator[tuple[int, tuple[Message, ...] | DataError]]:
    """Yield (line, messages) of each conversation; a blank line before a user's turn begins the next one.

    Lines without a speaker go on with the turn before. A fault is a DataError in the place of messages.
    """
    begun, messages, blank = 1, list[tuple[str, list[str]]](), False
    for number, line in enumerate(source.lines(), 1):
        found = SPOKEN.match(line)
        if found:
            role = SPEAKERS[found[1].lower()]
            if blank and role != "assistant" and any(speaker != "system" for speaker, _ in messages):
                yield begun, _finished(messages)
                messages = []
            begun = begun if messages else number
            messages.append((role, [found[2]]))
        elif line.strip() and not messages:
            place = f"{source.name}:{number}"
            yield number, DataError(f"{place}: expected a speaker, User: or Bot:, got {line[:40]!r}")
        elif messages:
            messages[-1][1].append(line)
        blank = not line.strip()
    if messages:
        yield begun, _finished(messages)


def read_chatml(source: Source) -> Iterator[tuple[int, tuple[Message, ...] | DataError]]:
    """Yield (line, messages) of each conversation of <|im_start|>role ... <|im_end|>.

    A fault is a DataError in the place of messages; the conversation it is in is left out.
    """
    begun, opened, messages, blank, lost = 1, 0, list[tuple[str, list[str]]](), True, False
    for number, line in _split_behind_ends(source):
        found = BEGIN.match(line)
        role = SPEAKERS.get(found[1].lower()) if found else None
        begins = role not in (None, "assistant") and (role == "system" or blank) and not opened
        blank = not line.strip()
        if begins and messages:
            yield begun, _finished(messages)
        if begins:
            messages, lost = [], False
        if lost or (blank and not opened):
            continue
        if (role is None or opened) and (found or not opened):
            expected = END if opened else "user, assistant or system" if found else "<|im_start|>"
            got = found[1] if found and not opened else line[:40]
            yield number, DataError(f"{source.name}:{number}: expected {expected}, got {got!r}")
            messages, lost, opened = [], True, 0
            continue
        if role is not None and found:
            begun, opened = begun if messages else number, number
            messages.append((role, []))
            line = found[2]
        text, end, _ = line.partition(END)
        if text or not found:
            messages[-1][1].append(text)
        opened = 0 if end else opened
    if opened:
        place = f"{source.name}:{opened}"
        yield opened, DataError(f"{place}: expected {END} after this message, found the end of the file")
    elif messages:
        yield begun, _finished(messages)


def _split_behind_ends(source: Source) -> Iterator[tuple[int, str]]:
    """Yield (line, text) of each line, cut behind each end of a message."""
    for number, line in enumerate(source.lines(), 1):
        parts = line.split(END)
        for part in parts[:-1]:
            yield number, part + END
        if parts[-1] or len(parts) == 1:
            yield number, parts[-1]


def _finished(messages: list[tuple[str, list[str]]]) -> tuple[Message, ...]:
    return tuple(Message(role, "\n".join(lines).strip()) for role, lines in messages)
