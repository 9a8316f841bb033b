"""CSV and TSV with a header -> rows with their line."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any

from gpt2chat.errors import DataError
from gpt2chat.formats.sources import Source

SEPARATORS = ",;\t|"
LONGEST_FIELD = 16 << 20  # characters


def separator_of(head: str) -> str | None:
    """Return what parts the columns of a first line, or None when it is no header of a table."""
    counts = {separator: head.count(separator) for separator in SEPARATORS}
    best = max(counts, key=lambda separator: counts[separator])
    return best if counts[best] else None


def read_table(source: Source, separator: str) -> Iterator[tuple[int, Any]]:
    """Yield (line, row) of each row, by the names in the header; a fault is a DataError in the place of a row."""
    csv.field_size_limit(LONGEST_FIELD)
    rows = csv.reader(source.whole_lines(), delimiter=separator, strict=True)
    line = 1
    names: list[str] = []
    while True:
        try:
            fields = next(rows)
            if not names and (fields[:1] == ["sep="] or not any(fields)):  # what Excel writes before the header
                pass
            elif not names:
                names = [name.strip().lower() for name in fields]
                if len(set(names)) < len(names):
                    raise DataError(f"{source.name}:1: expected different names in the header, got {', '.join(names)}")
            elif fields:
                yield line, _row(names, fields, f"{source.name}:{line}")
        except StopIteration:
            return
        except csv.Error as error:
            said = "a quote that opens in this row is not closed" if "end of data" in str(error) else str(error)
            said += f"; lines {line} to {rows.line_num} were not read" if rows.line_num > line else ""
            yield line, DataError(f"{source.name}:{line}: not a valid table: {said}")
            if not names:
                return
        line = rows.line_num + 1


def _row(names: list[str], fields: list[str], place: str) -> dict[str, str] | DataError:
    if len(fields) == len(names):
        return dict(zip(names, fields, strict=True))
    return DataError(
        f"{place}: expected {len(names)} columns ({', '.join(names)}), got {len(fields)}: "
        "put a field that holds the separator into double quotes"
    )
