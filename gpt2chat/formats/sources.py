"""Files, folders and patterns -> decoded text, a piece at a time."""

from __future__ import annotations

import codecs
import contextlib
import glob
import gzip
import lzma
import os
import re
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from io import BufferedReader
from pathlib import Path
from typing import Any

from gpt2chat.errors import ConfigError, DataError
from gpt2chat.files import near
from gpt2chat.records import Faults, Report

HEAD, LONGEST_TEXT = 1 << 16, 8 << 20  # characters
PIECE = 1 << 20  # bytes that are decoded at a time
ESCAPED = re.compile(r"[\udc80-\udcff]+")  # what Python makes of bytes that are not UTF-8
LINE_END = re.compile(r"\r\n?|\n")
SUFFIXES = (".txt", ".md", ".markdown", ".json", ".jsonl", ".ndjson", ".csv", ".tsv")
PACKED: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"\xfd7zXZ\x00": lzma.open}
BOMS = (  # of UTF-32 before those of UTF-16, with which they begin
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)


OFFICE = "save it as CSV (UTF-8) or as text"
NO_TEXT = {
    b"PK\x03\x04": ("a zip file, perhaps of Excel or Word", f"unpack it, or {OFFICE}"),
    b"\xd0\xcf\x11\xe0": ("a file of Excel or Word", OFFICE),
    b"%PDF-": ("a PDF", "save it as text"),
    b"\x89PNG": ("a picture", "pass files of text"),
    b"\xff\xd8\xff": ("a picture", "pass files of text"),
    b"\x7fELF": ("a program", "pass files of text"),
    b"BZh": ("a bzip2 file", "unpack it, or pack it with gzip or xz"),
    b"\x28\xb5\x2f\xfd": ("a zstd file", "unpack it, or pack it with gzip or xz"),
}


@dataclass(frozen=True)
class Source:
    """A file to read; `encoding` None is UTF-8. A byte-order mark says more than either.

    With `faults`, lines that are not UTF-8 are noted there and read as cp1252. `in_folder` says that the folder was
    named, not the file.
    """

    path: Path
    encoding: str | None = None
    label: str = ""
    faults: Faults | None = None
    in_folder: bool = False

    @property
    def name(self) -> str:
        """How messages call it."""
        return self.label or str(self.path)

    def pieces(self) -> Iterator[str]:
        """Yield the decoded text; raises DataError with the line of a byte that cannot be."""
        with self._open() as file:
            data = file.read1(PIECE)
            self._refuse_programs_files(data)
            encoding, mark = self._encoding(data)
            data = data[len(mark) :]
            tolerant = self.faults is not None and encoding == "utf-8"
            decoder = codecs.getincrementaldecoder(encoding)("surrogateescape" if tolerant else "strict")
            line, ended = 1, False
            while True:
                try:
                    text = decoder.decode(data, final=ended)
                except UnicodeDecodeError as error:
                    yield error.object[: error.start].decode(encoding)
                    raise self._undecodable(error.object, error.start, encoding, line) from None
                except UnicodeError as error:
                    raise DataError(f"{self.name}:{line}: expected {encoding.upper()}: {error}") from None
                if tolerant and not _is_unicode(text):
                    text = self._guessed(text, line)
                line += text.count("\n")
                if text:
                    yield text
                if ended:
                    return
                data = file.read1(PIECE)
                ended = not data

    def head(self) -> str:
        """Return the first characters, which tell the form."""
        pieces = self.pieces()
        text = next(pieces, "")
        return (text if len(text) >= HEAD else text + next(pieces, ""))[:HEAD]

    def lines(self) -> Iterator[str]:
        """Yield the lines without their ends, whether those are of Unix, Windows or old Macs."""
        for line in self.whole_lines():
            yield line.rstrip("\r\n")

    def whole_lines(self) -> Iterator[str]:
        """Yield the lines with their ends, as they stand there."""
        rest = ""
        for piece in self.pieces():
            text, searched = rest + piece, max(0, len(rest) - 1)
            end = len(text) - text.endswith("\r")  # its line feed may be still to come
            at = 0
            for found in LINE_END.finditer(text, searched, end):
                yield text[at : found.end()]
                at = found.end()
            rest = text[at:]
        if rest:
            yield rest

    def text(self) -> str:
        """Return all of it; line ends become line feeds."""
        return "".join(self.pieces()).replace("\r\n", "\n")

    def documents(self, separator: str | None) -> Iterator[tuple[int, str, bool]]:
        """Yield (line, text, whether it was cut) of what stands between separators, or of all.

        Line ends become line feeds. A text of more than LONGEST_TEXT is cut at the end of a line.
        """
        rest, line = "", 1
        for piece in self.pieces():
            rest = (rest + piece).replace("\r\n", "\n")
            *whole, rest = rest.split(separator) if separator else [rest]
            for text in whole:
                yield line, text, False
                line += text.count("\n") + str(separator).count("\n")
            while len(rest) > LONGEST_TEXT:
                at = rest.rfind("\n", 0, LONGEST_TEXT) + 1 or LONGEST_TEXT
                yield line, rest[:at], True
                line += rest.count("\n", 0, at)
                rest = rest[at:]
        yield line, rest, False

    @contextlib.contextmanager
    def _open(self) -> Iterator[BufferedReader]:
        try:
            with self.path.open("rb") as plain:
                head = plain.read(6)
            opener = next((opener for magic, opener in PACKED.items() if head.startswith(magic)), None)
            with self.path.open("rb") if opener is None else opener(self.path, "rb") as file:
                yield file
        except IsADirectoryError:
            raise DataError(f"{self.name}: expected a file, found a folder") from None
        except (EOFError, lzma.LZMAError, gzip.BadGzipFile, zlib.error) as error:
            raise DataError(f"{self.name}: its compression is damaged or cut short: {error}") from None
        except OSError as error:
            raise DataError(f"{self.name}: cannot be read: {error.strerror or error}") from None

    def _refuse_programs_files(self, head: bytes) -> None:
        """Raise DataError for what is no text, with the way to make text of it."""
        for magic, (found, hint) in NO_TEXT.items():
            if head.startswith(magic):
                raise DataError(f"{self.name}: expected text, found {found}: {hint}")
        zeros = (head[:4096:2].count(0), head[1:4096:2].count(0))
        if (
            not self.encoding
            and not head.startswith(tuple(mark for mark, _ in BOMS))
            and max(zeros) > 0.4 * len(head[:2048])
            and min(zeros) < 0.1 * len(head[:2048])
        ):
            guess = "utf-16-be" if zeros[0] > zeros[1] else "utf-16-le"
            raise DataError(f"{self.name}: expected UTF-8, found what looks like {guess}: pass --encoding {guess}")

    def _encoding(self, head: bytes) -> tuple[str, bytes]:
        """Return the encoding, and the mark of it at the beginning, which is no text."""
        for mark, name in BOMS:
            if head.startswith(mark):
                return name, mark
        if self.encoding is None:
            return "utf-8", b""
        try:
            "".encode(self.encoding)  # which only an encoding of text can
            name = codecs.lookup(self.encoding).name
            if name in ("punycode", "idna"):  # of names on the net
                raise LookupError
            return name, b""
        except (LookupError, UnicodeError):
            raise ConfigError(f"encoding: {self.encoding!r} is not known; utf-8, cp1252 and utf-16-le are") from None

    def _guessed(self, text: str, line: int) -> str:
        """Note each line with bytes that are not UTF-8, and return the text with these bytes read as cp1252."""
        at, counted, named = line, 0, 0
        for found in ESCAPED.finditer(text):
            at += text.count("\n", counted, found.start())
            counted = found.start()
            if at > named and self.faults is not None:
                before = text[max(0, counted - 12) : counted].encode("utf-8", "surrogateescape")
                data = before + text[counted : found.end() + 12].encode("utf-8", "surrogateescape")
                fault = self._undecodable(data, len(before), "utf-8", at - before.count(b"\n"))
                self.faults.add(fault, mended=True, group=f"lines of {self.name} are not UTF-8")
                named = at
        return ESCAPED.sub(lambda m: m[0].encode("utf-8", "surrogateescape").decode("cp1252", "replace"), text)

    def _undecodable(self, data: bytes, start: int, encoding: str, line: int) -> DataError:
        line += data.count(b"\n", 0, start)
        around = data[max(0, start - 12) : start + 12]
        hint = "the file is damaged" if self.encoding is None else "pass its --encoding"
        with contextlib.suppress(UnicodeDecodeError):
            if encoding == "utf-8":
                hint = f"--encoding cp1252 would read it as {around.decode('cp1252')!r}"
            elif self.encoding is not None:
                data.decode("utf-8")
                hint = "it is UTF-8, for which no --encoding is needed"
        return DataError(f"{self.name}:{line}: expected {encoding.upper()}, found byte 0x{data[start]:02x}: {hint}")


def _is_unicode(text: str) -> bool:
    """Whether a text holds whole characters only, and no bytes that were none."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def expand(places: Sequence[str | Path], encoding: str | None = None, report: Report | None = None) -> list[Source]:
    """Return the files of paths, folders (all data files in them) and patterns; raises DataError for none.

    What else is in a folder is noted in `report`.
    """
    sources: list[Source] = []
    for place in places:
        path = Path(place)
        try:
            folder, there = path.is_dir(), path.exists()
        except (OSError, ValueError) as error:  # a name too long for a file system, a NUL
            raise DataError(f"{place}: cannot be a file name: {error}") from None
        if folder:
            sources += [Source(file, encoding, in_folder=True) for file in _inside(path, report or Report())]
        elif there:
            sources.append(Source(path, encoding))
        else:
            sources += expand(_matching(str(place)), encoding, report)
    return sources


def _inside(folder: Path, report: Report) -> list[Path]:
    files = list[Path]()

    def refused(error: OSError) -> None:
        report.add("folders that cannot be opened, left out", str(error.filename))

    for here, folders, names in os.walk(folder, onerror=refused):
        entered = [f for f in sorted(folders) if not f.startswith(".") and not os.path.islink(os.path.join(here, f))]
        rest = {*folders, *names} - {*entered}
        folders[:] = entered
        for name in sorted(rest, key=lambda name: (not name.startswith("."), name)):
            place = Path(here, name)
            reason = _why_left_out(place)
            if reason is None:
                files.append(place)
            else:
                report.add(f"{reason}, left out", str(place))
    files.sort()
    if not files:
        raise DataError(f"{folder}: expected data files ({', '.join(SUFFIXES)}, also .gz and .xz) in it, found none")
    return files


def _why_left_out(place: Path) -> str | None:
    """Return what something in a folder is that is not read; None of a data file."""
    if place.name.startswith("."):
        return "hidden files of folders"
    if not os.path.isfile(place):  # which does not mind a folder that cannot be entered
        return "links to folders or to nothing, pipes and devices in folders"
    if not _is_data(place):
        return "files of folders that are not named as data is"
    return None if place.stat().st_size else "empty files of folders"


def _is_data(file: Path) -> bool:
    name = file.name.lower()
    for end in (".gz", ".xz"):
        name = name.removesuffix(end)
    return name.endswith(SUFFIXES)


def _matching(pattern: str) -> list[str]:
    try:
        deep = "**" in pattern  # finds what is in the folders too
        there = sorted(glob.glob(pattern, recursive=True))
        found = [place for place in there if os.path.isfile(place) or (os.path.isdir(place) and not deep)]
    except ValueError:  # a NUL in the name
        found = []
    if found:
        return found
    meant = near(pattern)
    raise DataError(f"{pattern}: no such file{f': did you mean {meant}?' if meant else ''}")
