"""Files in every form people keep conversations and texts in -> records. The form is seen from the content.

`read` names what it found; `--format` overrides it. Readers stream: a file may be larger than the memory.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

from gpt2chat.conversation import Message
from gpt2chat.errors import ConfigError, DataError
from gpt2chat.formats.json_rows import read_rows
from gpt2chat.formats.rows import KINDS, Kind, checked, kind_of, read_row
from gpt2chat.formats.sources import Source, expand
from gpt2chat.formats.tables import read_table, separator_of
from gpt2chat.formats.transcripts import is_chatml, is_transcript, read_chatml, read_transcript
from gpt2chat.records import Record, Report
from gpt2chat.tokenizer import END_OF_TEXT

__all__ = ["FORMATS", "Library", "Reading", "Source", "expand", "read", "read_conversations"]

FORMATS = (*dict.fromkeys(kind.name for kind in KINDS), "transcript", "chatml")
HEAD = 1 << 16  # characters that decide
JSON_BEGINS = re.compile(r"\s*(?:\{|\[\s*(?:[\[{\]\"]|$))")


@dataclass
class Reading:
    """A file, the form it was found to have, and its records as they are read."""

    source: Source
    form: str
    records: Iterator[Record]


class Library:
    """Gathers the records of many files: conversations and texts, each content once, and what was found where."""

    def __init__(self, report: Report, wanted: str | None = None, separator: str | None = None) -> None:
        self.report, self.wanted, self.separator = report, wanted, separator
        self.conversations: list[Record] = []
        self.texts: list[Record] = []
        self.found: list[str] = []
        self._seen: set[object] = set()

    def add(self, source: Source, only: str | None = None) -> None:
        """Read a file; with `only` ("conversations" or "texts") the other kind is a DataError."""
        reading = read(source, self.report, self.wanted, self.separator, as_text=only == "texts")
        count = 0
        for record in reading.records:
            kind, other = ("texts", "text") if isinstance(record.content, str) else ("conversations", "conversation")
            if only not in (None, kind):
                raise DataError(f"{record.place}: found {reading.form}, which goes to --{other}_file")
            count += 1
            if record.content in self._seen:
                self.report.add(f"{kind} that repeat an earlier one, used once", record.place)
                continue
            self._seen.add(record.content)
            (self.texts if kind == "texts" else self.conversations).append(record)
        self.found.append(f"{source.name}: {reading.form}, {count} record{'s' * (count != 1)}")


def read_conversations(sources: Iterable[Source], report: Report, wanted: str | None = None) -> list[Record]:
    """Read the conversations of files, each once; raises DataError for files of texts and where none is left."""
    library = Library(report, wanted)
    for source in sources:
        library.add(source, "conversations")
    if not library.conversations:
        raise DataError(f"{', '.join(library.found)}: nothing is left to learn from: {'; '.join(report.lines())}")
    return library.conversations


def read(
    source: Source,
    report: Report,
    wanted: str | None = None,
    separator: str | None = None,
    as_text: bool = False,
    faults: list[str] | None = None,
) -> Reading:
    """Find out a file's form and read it; `as_text` takes what is neither JSON nor a table as text.

    `separator` cuts texts into documents. With `faults`, faulty records are noted there and passed over. Raises
    DataError with the place of a fault, ConfigError for an unknown form.
    """
    if wanted is not None and wanted not in FORMATS:
        raise ConfigError(f"format: expected one of {', '.join(FORMATS)}, got {wanted!r}")
    head = next(source.pieces(), "")[:HEAD]
    if not head.strip():
        raise DataError(f"{source.name}: expected text or records, found an empty file")
    lines = head.splitlines()
    kind = None if wanted in ("transcript", "chatml") else wanted
    if JSON_BEGINS.match(head) and (wanted != "text" or '"text"' in head):
        return _rows(source, report, "JSON", read_rows(source), kind, faults)
    parted = separator_of(lines[0])
    names = [name.strip().strip('"').lower() for name in lines[0].split(parted)] if parted else []
    table = any(each.fits(names) for each in KINDS) or source.name.lower().endswith((".csv", ".tsv"))
    if parted and table and wanted not in ("text", "transcript", "chatml"):
        form = {"\t": "TSV", ",": "CSV"}.get(parted, f"table with {parted}")
        return _rows(source, report, form, read_table(source, parted), kind, faults)
    if wanted == "chatml" or (wanted is None and not as_text and is_chatml(lines)):
        return Reading(source, "ChatML", _checked(read_chatml(source), source, report))
    if wanted == "transcript" or (wanted is None and not as_text and is_transcript(lines)):
        return Reading(source, "transcript", _checked(read_transcript(source), source, report))
    if kind not in (None, "text"):
        raise DataError(f"{source.name}: expected {kind} in JSON or a table, found neither")
    return Reading(source, "text", _texts(source, report, separator))


def _rows(
    source: Source,
    report: Report,
    form: str,
    rows: Iterator[tuple[int, object]],
    wanted: str | None,
    faults: list[str] | None,
) -> Reading:
    """Read the first row to know their kind, then all of them."""
    first = next(rows, None)
    if first is None:
        raise DataError(f"{source.name}: expected at least one record, found none")
    line, row = first
    if not isinstance(row, dict):
        raise DataError(f"{source.name}:{line}: expected records {{...}}, got {type(row).__name__}")
    kind = kind_of(row, f"{source.name}:{line}", wanted)

    def records() -> Iterator[Record]:
        for number, (line, row) in enumerate(_chain(first, rows), 1):
            try:
                record = read_row(row, kind, f"{source.name}:{line}: record {number}", report)
            except DataError as error:
                if faults is None:
                    raise
                faults.append(str(error))
                continue
            if record:
                yield record

    return Reading(source, f"{_named(kind)} in {form}", records())


def _named(kind: Kind) -> str:
    return kind.name if kind.name != "pairs" else f"pairs ({'/'.join(kind.keys)})"


def _chain(first: tuple[int, object], rest: Iterable[tuple[int, object]]) -> Iterator[tuple[int, object]]:
    yield first
    yield from rest


def _checked(
    conversations: Iterator[tuple[int, tuple[Message, ...]]], source: Source, report: Report
) -> Iterator[Record]:
    for line, messages in conversations:
        if record := checked(messages, f"{source.name}:{line}", report):
            yield record


def _texts(source: Source, report: Report, separator: str | None) -> Iterator[Record]:
    """Yield the documents of a text: all of it, or what stands between marks of `separator`."""
    text = source.text()
    parts = text.split(separator) if separator else [text]
    if separator and len(parts) == 1:
        report.add(f"texts without the separator {separator!r}, each one document", source.name)
    line, found = 1, False
    for part in parts:
        at = part.find(END_OF_TEXT)
        if at >= 0:
            raise DataError(
                f"{source.name}:{line + part.count(chr(10), 0, at)}: found {END_OF_TEXT}, which gpt2chat adds by "
                f'itself: remove it, or pass --text_separator "{END_OF_TEXT}" if it separates documents'
            )
        if "\0" in part:
            report.add("texts with NUL characters, learnt as they are", f"{source.name}:{line}")
        if part.strip():
            found = True
            yield Record(f"{source.name}:{line}", part.strip("\n"))
        elif len(parts) > 1:
            report.add("documents without text, left out", f"{source.name}:{line}")
        line += part.count("\n") + (separator or "").count("\n")
    if not found:
        raise DataError(f"{source.name}: expected text, found none")
