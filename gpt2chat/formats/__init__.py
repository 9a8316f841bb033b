"""Files in every form people keep conversations and texts in -> records. The form is seen from the content.

`read` names what it found; `--format` overrides it. Readers stream: a file may be larger than the memory.
"""

from __future__ import annotations

import codecs
import contextlib
import dataclasses
import itertools
import re
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from gpt2chat.errors import ConfigError, DataError, counted
from gpt2chat.formats.json_rows import read_rows
from gpt2chat.formats.rows import KINDS, Kind, Messages, checked, kind_of, phrasings, read_row
from gpt2chat.formats.sources import LONGEST_TEXT, Source, expand
from gpt2chat.formats.tables import read_table, separator_of
from gpt2chat.formats.transcripts import SPOKEN, is_chatml, is_transcript, read_chatml, read_transcript, speakers_of
from gpt2chat.records import Faults, Record, Report
from gpt2chat.tokenizer import END_OF_TEXT

__all__ = ["FORMATS", "Library", "Reading", "Source", "expand", "read", "read_conversations"]

FORMATS = (*dict.fromkeys(kind.name for kind in KINDS), "transcript", "chatml")
FIRST_ROWS = 100  # among which one that tells the kind of all is looked for, where faults are passed over
JSON_BEGINS = re.compile(r"\s*(?:\{|\[\s*(?:[\[{\]\"]|$))")


@dataclass
class Reading:
    """A file, the form it was found to have, and its records as they are read.

    `kind` is what all of them are, "conversations" or "texts".
    """

    source: Source
    form: str
    kind: str
    records: Iterator[Record]
    speakers: tuple[str, ...] = ()  # whose names seem to begin the lines of a text

    def is_left_out(self, only: str | None, report: Report) -> bool:
        """Whether this is a file of a folder, but not of the `only` kind that is wanted; then `report` notes it.

        Raises DataError for a file of the other kind that was named itself.
        """
        if only in (None, self.kind):
            return False
        if not self.source.in_folder:
            option = "--text_file" if self.kind == "texts" else "--conversation_file"
            talk = f"; if it is a talk, {' and '.join(self.speakers)} must be User: and Bot:" if self.speakers else ""
            expected = "conversations" if only == "conversations" else "text"
            raise DataError(f"{self.source.name}: expected {expected}, found {self.form}, which goes to {option}{talk}")
        report.add(f"files of {self.kind} in a folder of {only}, left out", self.source.name)
        return True


class Library:
    """Gathers the records of many files: conversations and texts, each content once, and what was found where."""

    def __init__(self, report: Report, wanted: str | None = None, separator: str | None = None) -> None:
        self.report, self.wanted, self.separator = report, wanted, separator
        self.conversations: list[Record] = []
        self.texts: list[Record] = []
        self.found: list[str] = []
        self._seen: set[object] = set()

    def add(self, source: Source, only: str | None = None) -> None:
        """Read a file; with `only` ("conversations" or "texts") the other kind is left out, or a DataError."""
        reading = read(source, self.report, self.wanted, self.separator, as_text=only == "texts")
        if reading.is_left_out(only, self.report):
            return
        count, kept = 0, self.texts if reading.kind == "texts" else self.conversations
        for record in reading.records:
            count += 1
            if record.content in self._seen:
                self.report.add(f"{reading.kind} that repeat an earlier one, used once", record.place)
                continue
            self._seen.add(record.content)
            kept.append(record)
        self.found.append(f"{source.name}: {reading.form}, {counted(count, 'record')}")


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
    faults: Faults | None = None,
) -> Reading:
    """Find out a file's form and read it; `as_text` takes what is neither JSON nor a table as text.

    `separator` cuts texts into documents. Raises DataError with the place of a fault, ConfigError for an unknown form.
    With `faults`, faulty records are noted there and passed over.
    """
    if wanted is not None and wanted not in FORMATS:
        raise ConfigError(f"format: expected one of {', '.join(FORMATS)}, got {wanted!r}")
    head = dataclasses.replace(source, faults=None if faults is None else Faults()).head()
    source = dataclasses.replace(source, faults=faults)
    if not head.strip():
        raise DataError(f"{source.name}: expected text or records, found an empty file")
    lines = re.sub(r"^\s*(?:sep=.\s+)?", "", head).splitlines()  # that is what Excel writes before the header
    kind = None if wanted in ("transcript", "chatml") else wanted
    if _is_json(head, source, wanted, as_text):
        return _rows(source, report, "JSON", read_rows(source), kind, faults)
    _note_encoding(source, report)
    parted = _table_separator(lines, source.name)
    if parted and wanted not in ("text", "transcript", "chatml"):
        form = {"\t": "TSV", ",": "CSV"}.get(parted, f"table with {parted}")
        return _rows(source, report, form, read_table(source, parted), kind, faults)
    if wanted == "chatml" or (wanted is None and not as_text and is_chatml(lines)):
        return Reading(source, "ChatML", "conversations", _conversations(source, read_chatml(source), report, faults))
    if wanted == "transcript" or (wanted is None and not as_text and is_transcript(lines)):
        return Reading(
            source, "transcript", "conversations", _conversations(source, read_transcript(source), report, faults)
        )
    if kind not in (None, "text"):
        raise DataError(f"{source.name}: expected {kind} in JSON or a table, found neither")
    speakers = () if wanted or as_text else _note_talk(lines, source, report)
    return Reading(source, "text", "texts", _texts(source, report, separator, faults), speakers)


def _note_talk(lines: list[str], source: Source, report: Report) -> tuple[str, ...]:
    """Note a text that may be meant as a conversation; return the names of its speakers, where they are not ours."""
    if sum(map(bool, map(SPOKEN.match, lines))) > 3:
        report.add("texts with lines that begin with User: or Bot:; --format transcript reads them so", source.name)
        return ()
    speakers = speakers_of(lines)
    if speakers:
        names = " and ".join(speakers)
        report.add(f"texts that look like a talk of {names}; named User: and Bot: they are conversations", source.name)
    return speakers


def _is_json(head: str, source: Source, wanted: str | None, as_text: bool) -> bool:
    """Whether a file holds JSON; what is to be text and only begins like it does not."""
    if not JSON_BEGINS.match(head) or wanted in ("transcript", "chatml") or (wanted == "text" and '"text"' not in head):
        return False
    return not as_text or not isinstance(next(read_rows(source))[1], DataError)


def _table_separator(lines: list[str], name: str) -> str | None:
    """Return what parts the columns, if the first line is a header that tells what the rows are, or the name does."""
    parted, named = separator_of(lines[0]), name.lower().endswith((".csv", ".tsv"))
    names = [name.strip().strip('"').lower() for name in lines[0].split(parted)]
    if parted is None:
        return "," if named and names == ["text"] else None
    return parted if any(kind.fits(names) for kind in KINDS) or named else None


def _note_encoding(source: Source, report: Report) -> None:
    """Note a file that is read in another encoding because it was asked for, although it is UTF-8."""
    if source.encoding and codecs.lookup(source.encoding).name != "utf-8":
        strict = dataclasses.replace(source, faults=None)
        with contextlib.suppress(DataError):
            if dataclasses.replace(strict, encoding=None).head() != strict.head():
                report.add(f"files that are UTF-8, read as {source.encoding} as asked", source.name)


def _rows(
    source: Source,
    report: Report,
    form: str,
    rows: Iterator[tuple[int, object]],
    wanted: str | None,
    faults: Faults | None,
) -> Reading:
    """Read the first row to know their kind, or with `faults` the first one that tells it; then all of them."""
    head: list[tuple[int, object]] = []
    kind: Kind | DataError = DataError(f"{source.name}: expected at least one record, found none")
    for line, row in itertools.islice(rows, 1 if faults is None else FIRST_ROWS):
        head.append((line, row))
        found = _kind(row, f"{source.name}:{line}", wanted)
        kind = kind if len(head) > 1 and isinstance(found, DataError) else found
        if isinstance(kind, Kind):
            break
    if isinstance(kind, DataError):
        if form != "JSON" and head and isinstance(head[0][1], dict):
            raise DataError(
                f"{source.name}:1: expected columns named user and bot, question and answer, prompt and completion, or "
                f"text, found {', '.join(head[0][1])}: rename them"
            )
        raise kind
    name = source.name
    placed = (
        each
        for number, (line, row) in enumerate(itertools.chain(head, rows), 1)
        for each in phrasings(row, kind, f"{name}:{line}: record {number}")
    )
    records = _sound(placed, lambda row, place: read_row(row, kind, place, report), faults)
    holds = "texts" if kind.name == "text" else "conversations"
    return Reading(source, f"{_named(kind)} in {form}", holds, records)


def _kind(row: object, place: str, wanted: str | None) -> Kind | DataError:
    """Return what kind of rows this one is of, or why that cannot be told."""
    if isinstance(row, DataError):
        return row
    if not isinstance(row, dict):
        return DataError(f"{place}: expected records {{...}}, got {type(row).__name__}")
    try:
        return kind_of(row, place, wanted)
    except DataError as error:
        return error


def _named(kind: Kind) -> str:
    return kind.name if kind.name != "pairs" else f"pairs ({'/'.join(kind.keys)})"


def _conversations(
    source: Source, found: Iterator[tuple[int, Messages | DataError]], report: Report, faults: Faults | None
) -> Iterator[Record]:
    placed = ((f"{source.name}:{line}", messages) for line, messages in found)
    return _sound(placed, lambda messages, place: checked(messages, place, report), faults)


def _sound(
    items: Iterable[tuple[str, Any]], read: Callable[[Any, str], Record | None], faults: Faults | None
) -> Iterator[Record]:
    """Yield the records that `read` makes of items; a fault is noted in `faults`, or raised where there are none."""
    for place, item in items:
        try:
            if isinstance(item, DataError):
                raise item
            record = read(item, place)
        except DataError as error:
            if faults is None:
                raise
            faults.add(error)
            continue
        if record:
            yield record


def _texts(source: Source, report: Report, separator: str | None, faults: Faults | None) -> Iterator[Record]:
    """Yield the documents of a text: all of it, or what stands between marks of `separator`."""
    count, there = 0, False
    for line, text, cut in source.documents(separator):
        count += 1
        place = f"{source.name}:{line}"
        if cut:
            report.add(f"texts cut behind {LONGEST_TEXT >> 20} million characters, at the end of a line", place)
        there = there or bool(text.strip())
        yield from _sound([(place, text)], lambda text, place: _document(text, place, report), faults)
    if not there:
        raise DataError(f"{source.name}: expected text, found none")
    if separator and count == 1:
        report.add(f"texts without the separator {separator!r}, each one document", source.name)


def _document(text: str, place: str, report: Report) -> Record | None:
    at = text.find(END_OF_TEXT)
    if at >= 0:
        name, _, line = place.rpartition(":")
        raise DataError(
            f"{name}:{int(line) + text.count(chr(10), 0, at)}: found {END_OF_TEXT}, which gpt2chat adds by "
            f'itself: remove it, or pass --text_separator "{END_OF_TEXT}" if it separates documents'
        )
    if "\0" in text:
        report.add("texts with NUL characters, learnt as they are", place)
    if not text.strip():
        report.add("documents without text, left out", place)
        return None
    return Record(place, text.strip("\n"))
