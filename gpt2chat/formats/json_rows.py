"""JSON lists, JSON lines and single objects -> rows with their line, in constant memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from gpt2chat.errors import DataError
from gpt2chat.formats.sources import Source

LONGEST_ROW = 64 << 20  # characters
UNENDED = (
    "Expecting ',' delimiter",
    "Expecting property name",
    "Expecting ':' delimiter",
)  # where a record goes on into the next one
# Python's words for what people do most often, finished.
WORDS = {
    "Invalid control character at": "a string goes on over the end of the line: is it cut off, or a quote missing?",
    "Unterminated string starting at": "the file ends within a string: it is cut off, or a quote is missing",
}
BLANK = re.compile(r"[ \t\r\n]*")


class _Fault(ValueError):
    """Something that JSON allows in writing and no reader agrees on."""


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    row = dict(pairs)
    if len(row) < len(pairs):
        keys = [key for key, _ in pairs]
        raise _Fault(f"the key {next(key for key in keys if keys.count(key) > 1)!r} stands twice in it")
    return row


def _no_constant(name: str) -> None:
    raise _Fault(f"{name} is not JSON")


DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_no_constant)


def read_rows(source: Source) -> Iterator[tuple[int, Any]]:
    """Yield (line, value) of each row: of one list, or of values one after the other, as in JSON lines.

    A fault is a DataError in the place of a value. Reading goes on at the next line that begins as the faulty record
    does, which may be the end of the file.
    """
    text = _Window(source)
    listed = text.skip() == "["
    if listed:
        text.at += 1
    first, begun = True, False
    while True:
        try:
            begun = False
            if not _goes_on(text, listed, first):
                return
            begun = bool(text.skip())
            line = text.line
            value = text.value()
        except DataError as error:
            yield text.line, error
            if (begun or text.skip() != "{") and not text.recover():
                return
            first = True  # no comma is expected before the next record
            continue
        yield line, value
        first = False


def _goes_on(text: _Window, listed: bool, first: bool) -> bool:
    """Take what stands before the next row; False at the end. Raises DataError."""
    char = text.skip()
    if char == "" and not listed:
        return False
    if char == "]" and listed:
        text.at += 1
        if text.skip():
            raise DataError(f"{text.place()}: not valid JSON: expected the end after the list")
        return False
    if char == "":
        found = "the list does not end" if first else "expected a comma between two records, found the end of the file"
        raise DataError(f"{text.place()}: not valid JSON: {found}")
    if listed and not first:
        if char != ",":
            raise DataError(f"{text.place()}: not valid JSON: expected a comma between two records, found {char!r}")
        text.at += 1
        if text.skip() == "]":
            raise DataError(f"{text.place()}: not valid JSON: remove the comma before ]")
    return True


class _Window:
    """A part of the text, from which values are taken; `line` is that of `at`."""

    def __init__(self, source: Source) -> None:
        self.name = source.name
        self._pieces = source.pieces()
        self.text, self.at, self.line = "", 0, 1
        self._indent: str | None = None

    def place(self) -> str:
        """Return file and line."""
        return f"{self.name}:{self.line}"

    def skip(self) -> str:
        """Go to the next character that is not blank and return it, "" at the end."""
        while True:
            if self.text[self.at : self.at + 1] > " ":
                return self.text[self.at]
            found = BLANK.match(self.text, self.at)
            end = found.end() if found else self.at
            breaks = self.text.count("\n", self.at, end)
            if breaks:
                self.line += breaks
                self._indent = self.text[self.text.rfind("\n", 0, end) + 1 : end]
            self.at = end
            if end < len(self.text):
                return self.text[end]
            if not self._more():
                return ""

    def value(self) -> Any:
        """Take the next value; raises DataError."""
        while True:
            try:
                value, end = DECODER.raw_decode(self.text, self.at)
                if end == len(self.text) and self._more():  # a number may go on
                    continue
            except json.JSONDecodeError as error:
                cut = error.pos > len(self.text) - 16 or error.msg.startswith("Unterminated")
                if cut and len(self.text) - self.at < LONGEST_ROW and self._more():
                    continue
                raise self._fault(error) from None
            except RecursionError:
                raise DataError(f"{self.place()}: not valid JSON: nested too deeply") from None
            except ValueError as error:  # a fault of ours, or a number of too many digits
                raise DataError(f"{self.place()}: {str(error).split(';')[0]}") from None
            self.line += self.text.count("\n", self.at, end)
            self.at = end
            return value

    def recover(self) -> bool:
        """Go to the next line that begins with a record, indented as the last one was; False when there is none."""
        between = r"(?:\n *|\}\s*,?\s*)" if self._indent is None else rf"\n{self._indent}"  # all in one line, or not
        begins = re.compile(rf"{between}(?=\{{)")
        while not (found := begins.search(self.text, self.at)):
            rest = self.text.rfind("\n", self.at)  # the break itself may belong to what is still to come
            rest = len(self.text) if rest < 0 else rest
            self.line += self.text.count("\n", self.at, rest)
            self.at = rest
            if not self._more():
                return False
        self.line += self.text.count("\n", self.at, found.end())
        self.at = found.end()
        return True

    def _more(self) -> bool:
        piece = next(self._pieces, None)
        if piece is None:
            return False
        self.text, self.at = self.text[self.at :] + piece, 0
        return True

    def _fault(self, error: json.JSONDecodeError) -> DataError:
        if len(self.text) - self.at >= LONGEST_ROW:
            return DataError(f"{self.place()}: a record of more than {LONGEST_ROW >> 20} MB")
        line = self.line + self.text.count("\n", self.at, error.pos)
        before = self.text[self.at : error.pos].rstrip()
        hint = ""
        if before.endswith(",") and self.text[error.pos : error.pos + 1] in ("]", "}", ""):
            hint = ": remove the comma before it"
        elif self.text[self.at : self.at + 1] not in ("[", "{", '"'):
            hint = ": a plain text goes to --text_file"
        elif error.msg.startswith(UNENDED) and self.text[error.pos : error.pos + 1] in ("{", "]", ""):
            hint = f": the record that begins in line {self.line} does not end"
        elif self.text[error.pos : error.pos + 1] == "'":
            hint = ": JSON takes double quotes"
        elif self.text[error.pos : error.pos + 1] in ("“", "”", "„"):
            hint = ": JSON takes straight double quotes"
        words = WORDS.get(error.msg, error.msg)
        column = error.pos - (self.text.rfind("\n", 0, error.pos) + 1) + 1
        return DataError(f"{self.name}:{line}:{column}: not valid JSON: {words}{hint}")
