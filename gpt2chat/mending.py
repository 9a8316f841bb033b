"""Traces of a wrong encoding or of a terminal in texts -> what was meant, where that is certain."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator

from gpt2chat.records import Record, Report

UNDEFINED = "\x81\x8d\x8f\x90\x9d"  # bytes that cp1252 leaves open; programs pass them through
BEYOND_ASCII = bytes(range(0x80, 0x100)).decode("cp1252", "ignore") + UNDEFINED
MISREAD = re.compile(f"[{re.escape(BEYOND_ASCII)}]{{2,}}")
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")
HALF = re.compile(r"[\ud800-\udfff]")


def _reread(found: re.Match[str]) -> str:
    """Return what a run of characters is if UTF-8 was read as cp1252, or the run itself if it was not."""
    try:
        return b"".join(c.encode("latin-1" if c in UNDEFINED else "cp1252") for c in found[0]).decode("utf-8")
    except UnicodeDecodeError:
        return found[0]


MENDS: tuple[tuple[str, Callable[[str], str]], ...] = (
    (
        "whose wrong encoding was undone (Ã© is é again)",
        lambda text: text if text.isascii() else MISREAD.sub(_reread, text),
    ),
    ("whose control characters were removed", lambda text: text if text.isprintable() else CONTROL.sub("", text)),
    ("whose halves of characters were removed", lambda text: text if text.isascii() else HALF.sub("", text)),
)


def mended(records: Iterable[Record], report: Report) -> Iterator[Record]:
    """Yield records with what can be mended, and note in `report` what was done where.

    A record that has no text left on one side is left out.
    """
    for record in records:
        content = record.content
        texts = [content] if isinstance(content, str) else [message.content for message in content]
        for kind, mend in MENDS:
            better = [mend(text) for text in texts]
            if better != texts:
                report.add(f"records {kind}", record.place)
                texts = better
        if not all(text.strip() for text in texts):
            report.add("records with nothing but control characters on one side, left out", record.place)
        elif isinstance(content, str):
            yield Record(record.place, texts[0])
        else:
            messages = zip(content, texts, strict=True)
            yield Record(record.place, tuple(dataclasses.replace(m, content=text.strip()) for m, text in messages))
