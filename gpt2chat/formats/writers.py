"""Records -> files in the forms that other programs take; reading them back gives the same records."""

from __future__ import annotations

import contextlib
import csv
import gzip
import io
import json
import lzma
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import IO, Any

from gpt2chat.conversation import Message
from gpt2chat.errors import ConfigError, DataError
from gpt2chat.files import atomic_writer
from gpt2chat.records import Record
from gpt2chat.tokenizer import LONE_SURROGATE

Messages = tuple[Message, ...]


def as_rows(messages: Iterable[Message]) -> list[dict[str, Any]]:
    """Return messages as OpenAI writes them; an answer that is not to be learnt has the weight 0."""
    return [{"role": m.role, "content": m.content} | ({} if m.trained else {"weight": 0}) for m in messages]


def _messages(content: Messages) -> dict[str, Any]:
    return {"messages": as_rows(content)}


def _learnt(content: Messages, form: str) -> Messages:
    if not all(message.trained for message in content):
        raise DataError(f"{form} has no place for an answer that is not learnt: use messages")
    return content


def _sharegpt(content: Messages) -> dict[str, Any]:
    names = {"user": "human", "assistant": "gpt", "system": "system"}
    return {"conversations": [{"from": names[m.role], "value": m.content} for m in _learnt(content, "sharegpt")]}


def _turns(content: Messages, form: str) -> tuple[str, list[tuple[str, str]]]:
    """Return the system prompt and (question, answer) pairs; raises DataError for a conversation of another shape."""
    system = "".join(message.content for message in content[:1] if message.role == "system")
    rest = _learnt(content[1:] if content[0].role == "system" else content, form)
    if [message.role for message in rest] != ["user", "assistant"] * (len(rest) // 2):
        raise DataError(f"{form} takes questions and answers in turn: use messages")
    texts = [message.content for message in rest]
    return system, list(zip(texts[::2], texts[1::2], strict=True))


def _pair(content: Messages, form: str = "pairs") -> dict[str, Any]:
    system, turns = _turns(content, form)
    if len(turns) != 1:
        raise DataError(f"{form} takes one question and one answer, found {len(turns)}: use messages")
    row = {"user": turns[0][0], "bot": turns[0][1]}
    return {"system": system, **row} if system else row


def _alpaca(content: Messages) -> dict[str, Any]:
    system, turns = _turns(content, "alpaca")
    *history, (question, answer) = turns
    row: dict[str, Any] = {"instruction": question, "input": "", "output": answer}
    if system:
        row["system"] = system
    if history:
        row["history"] = [list(turn) for turn in history]
    return row


ROWS: dict[str, Callable[[Messages], dict[str, Any]]] = {
    "pairs": _pair,
    "messages": _messages,
    "sharegpt": _sharegpt,
    "alpaca": _alpaca,
    "csv": lambda content: _pair(content, "csv"),
}
TARGETS = (*ROWS, "text")
PACKERS: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".xz": lzma.open}


def write(records: Iterable[Record], path: Path, form: str) -> int:
    """Write records as `form`; return how many. JSON is one object per line unless `path` ends in .json.

    Raises DataError with the place of a record that the form has no room for; then nothing is written.
    """
    if form not in TARGETS:
        raise ConfigError(f"to: expected one of {', '.join(TARGETS)}, got {form!r}")
    if form == "text" and path.suffix.lower() in (".txt", ".md"):
        raise ConfigError(
            f'{path}: text is written as JSON lines {{"text": ...}}: name it {path.with_suffix(".jsonl")}'
        )
    with opened(path) as file:
        return write_to(file, records, form, is_list(path))


@contextlib.contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """Open a file that is there whole at the end, or not at all; packed if its name ends in .gz or .xz."""
    packer = PACKERS.get(path.suffix.lower())
    with atomic_writer(path) as file, contextlib.nullcontext(file) if packer is None else packer(file, "wb") as written:
        yield written


def is_list(path: Path) -> bool:
    """Whether JSON of this name is one list."""
    return path.name.lower().endswith((".json", *(f".json{end}" for end in PACKERS)))


def write_to(file: IO[bytes], records: Iterable[Record], form: str, listed: bool) -> int:
    """Write records to an open file, as one list or one per line; return how many."""
    count = 0
    for piece in _pieces(records, form, listed):
        count += 1
        file.write(LONE_SURROGATE.sub("\ufffd", piece).encode("utf-8"))
    if form != "csv" and listed:
        file.write(b"\n]\n" if count else b"[]\n")
    return count


def _pieces(records: Iterable[Record], form: str, listed: bool) -> Iterator[str]:
    begins = "[\n"
    for number, record in enumerate(records):
        row = _row(record, form)
        if form == "csv":
            yield _csv_line(row, header=number == 0)
            continue
        line = json.dumps(row, ensure_ascii=False)
        yield f"{begins if number == 0 else ',' + chr(10)}{line}" if listed else line + "\n"


def _row(record: Record, form: str) -> dict[str, Any]:
    try:
        if isinstance(record.content, str):
            if form != "text":
                raise DataError(f"a text cannot become {form}: use text")
            return {"text": record.content}
        if form == "text":
            raise DataError("a conversation cannot become text: use messages")
        return ROWS[form](record.content)
    except DataError as error:
        raise DataError(f"{record.place}: {error}") from None


def _csv_line(row: dict[str, Any], header: bool) -> str:
    if "system" in row:
        raise DataError("csv has no place for a system prompt: use messages")
    out = io.StringIO()
    lines = csv.writer(out, lineterminator="\n", quoting=csv.QUOTE_ALL)
    if header:
        lines.writerow(row)
    lines.writerow(row.values())
    return out.getvalue()
