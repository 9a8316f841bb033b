"""Traces of a wrong encoding or of a terminal in texts -> what was meant, where that is certain."""

from __future__ import annotations

import dataclasses
import re
from collections.abc import Callable, Iterable, Iterator

from gpt2chat.records import Record, Report
from gpt2chat.tokenizer import END_OF_TEXT, LONE_SURROGATE

UNDEFINED = "\x81\x8d\x8f\x90\x9d"  # bytes that cp1252 leaves open; programs pass them through
BEYOND_ASCII = bytes(range(0x80, 0x100)).decode("cp1252", "ignore") + UNDEFINED
FOLLOWS = f"[{re.escape(BEYOND_ASCII)}]"
MISREAD = re.compile(f"[ÂÃÅÆË]{FOLLOWS}|â{FOLLOWS}{{2}}|ð{FOLLOWS}{{3}}")  # two, three and four bytes
# What no sound text holds. A quotation mark, dash or hard blank behind a capital letter proves nothing: “IRMÔ.
CERTAIN = re.compile("Ã[¡-ª¬-º¼-¿ƒŠŒŽšœžŸ†‡ˆ‰™˜€]|â€[™œ˜\x9d“”¦¢]|â‚¬|ðŸ|Â[¡-ª¬-º¼-¿]")
CONTROL = re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]")


def _reread(text: str) -> str:
    """Undo that UTF-8 was read as cp1252, in a text that shows it."""
    return text if text.isascii() or not CERTAIN.search(text) else MISREAD.sub(_as_utf8, text)


def _as_utf8(found: re.Match[str]) -> str:
    """Return what a few characters are as UTF-8, or themselves where they are none."""
    try:
        return b"".join(c.encode("latin-1" if c in UNDEFINED else "cp1252") for c in found[0]).decode("utf-8")
    except UnicodeDecodeError:
        return found[0]


MENDS: tuple[tuple[str, Callable[[str], str]], ...] = (
    ("whose wrong encoding was undone (Ã© is é again)", _reread),
    ("whose control characters were removed", lambda text: text if text.isprintable() else CONTROL.sub("", text)),
    ("whose halves of characters were removed", lambda text: text if text.isascii() else LONE_SURROGATE.sub("", text)),
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
        if any(END_OF_TEXT in text for text in texts):
            report.add(f"records that would hold {END_OF_TEXT}, left out", record.place)
        elif not all(text.strip() for text in texts):
            report.add("records with nothing but control characters on one side, left out", record.place)
        elif isinstance(content, str):
            yield Record(record.place, texts[0])
        else:
            messages = zip(content, texts, strict=True)
            yield Record(record.place, tuple(dataclasses.replace(m, content=text.strip()) for m, text in messages))
