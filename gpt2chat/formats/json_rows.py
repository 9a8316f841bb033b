"""JSON lists, JSON lines and single objects -> rows with their line, in constant memory."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

from gpt2chat.errors import DataError
from gpt2chat.formats.sources import Source

LONGEST_ROW = 64 << 20  # characters
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

    Raises DataError with the line of the first fault.
    """
    text = _Window(source)
    listed = text.skip() == "["
    if listed:
        text.at += 1
    first = True
    while True:
        char = text.skip()
        if char == "" and not listed:
            return
        if char == "]" and listed:
            text.at += 1
            if text.skip():
                raise DataError(f"{text.place()}: not valid JSON: expected the end after the list")
            return
        if listed and not first:
            if char != ",":
                found = repr(char) if char else "the end of the file"
                raise DataError(f"{text.place()}: not valid JSON: expected a comma between two records, found {found}")
            text.at += 1
            if text.skip() == "]":
                raise DataError(f"{text.place()}: not valid JSON: remove the comma before ]")
        elif listed and char == "":
            raise DataError(f"{text.place()}: not valid JSON: the list does not end")
        text.skip()
        line = text.line
        yield line, text.value()
        first = False


class _Window:
    """A part of the text, from which values are taken; `line` is that of `at`."""

    def __init__(self, source: Source) -> None:
        self.name = source.name
        self._pieces = source.pieces()
        self.text, self.at, self.line = "", 0, 1
        self._ended = False

    def place(self) -> str:
        """Return file and line."""
        return f"{self.name}:{self.line}"

    def skip(self) -> str:
        """Go to the next character that is not blank and return it, "" at the end."""
        while True:
            found = BLANK.match(self.text, self.at)
            end = found.end() if found else self.at
            self.line += self.text.count("\n", self.at, end)
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
        elif self.text[error.pos : error.pos + 1] == "'":
            hint = ": JSON takes double quotes"
        column = error.pos - (self.text.rfind("\n", 0, error.pos) + 1) + 1
        return DataError(f"{self.name}:{line}:{column}: not valid JSON: {error.msg}{hint}")
