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


def read_table(source: Source, separator: str) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield (line, row) of each row, by the names in the header; raises DataError with the line of a fault."""
    csv.field_size_limit(LONGEST_FIELD)
    rows = csv.reader((line + "\n" for line in source.lines()), delimiter=separator, strict=True)
    line = 1
    try:
        names = [name.strip().lower() for name in next(rows)]
        if len(set(names)) < len(names):
            raise DataError(f"{source.name}:1: expected different names in the header, got {', '.join(names)}")
        line = rows.line_num + 1
        for fields in rows:
            if fields and len(fields) != len(names):
                raise DataError(
                    f"{source.name}:{line}: expected {len(names)} columns ({', '.join(names)}), got {len(fields)}: "
                    "put a field that holds the separator into double quotes"
                )
            if fields:
                yield line, dict(zip(names, fields, strict=True))
            line = rows.line_num + 1
    except csv.Error as error:
        raise DataError(f"{source.name}:{line}: not a valid table: {error}") from None
