"""Training files -> records -> examples -> batches.

A record is one document with its place, so that every message can say where. Nothing is dropped silently: the
`Report` counts and names what was left out or changed.
"""

from __future__ import annotations

import json
import random
from array import array
from bisect import bisect_left
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from gpt2chat.conversation import Example, Message, Template, render
from gpt2chat.errors import DataError
from gpt2chat.loss import IGNORE, Batch
from gpt2chat.tokenizer import END_OF_TEXT, Tokenizer


@dataclass(frozen=True)
class Record:
    """One document of a file: a conversation (messages) or a text (str), and where it stands."""

    place: str
    content: tuple[Message, ...] | str


@dataclass
class Report:
    """What reading and rendering left out or found odd: kind -> places."""

    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, place: str) -> None:
        """Note one more finding."""
        self.found.setdefault(kind, []).append(place)

    def lines(self) -> list[str]:
        """Return one line per kind, with its count and up to five places."""
        return [
            f"{len(places)} {kind}: {', '.join(places[:5])}{', …' if len(places) > 5 else ''}"
            for kind, places in self.found.items()
        ]


def read_utf8(path: Path) -> str:
    """Read a UTF-8 file, with or without a byte-order mark; raises DataError with the line of a bad byte."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        raise DataError(f"{path}: no such file") from None
    except IsADirectoryError:
        raise DataError(f"{path}: expected a file, found a folder") from None
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        raise DataError(f"{path}: expected UTF-8, found UTF-16: iconv -f UTF-16 -t UTF-8 {path} > new.txt converts it")
    try:
        return data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        raise DataError(
            f"{path}:{line}: expected UTF-8, found byte 0x{error.object[error.start]:02x}: convert the file, for "
            f"example iconv -f WINDOWS-1252 -t UTF-8 {path} > new.txt"
        ) from error


def read_text(path: Path, separator: str | None = None, report: Report | None = None) -> list[Record]:
    """Read a text file as one document, or as several between marks of `separator`; line ends become line feeds."""
    report = report or Report()
    text = read_utf8(path).replace("\r\n", "\n")
    parts = text.split(separator) if separator else [text]
    if separator and len(parts) == 1:
        report.add(f"texts without the separator {separator!r}, each one document", path.name)
    records = []
    line = 1
    for part in parts:
        _refuse_end_marker(part, str(path), line)
        if part.strip():
            records.append(Record(f"{path}:{line}", part.strip("\n")))
        elif len(parts) > 1:
            report.add("documents without text, left out", f"{path.name}:{line}")
        line += part.count("\n") + (separator or "").count("\n")
    if not records:
        raise DataError(f"{path}: expected text, found none")
    return records


def _refuse_end_marker(text: str, place: str, line: int | None = None) -> None:
    at = text.find(END_OF_TEXT)
    if at < 0:
        return
    separator = ""
    if line is not None:  # of a text file
        place = f"{place}:{line + text.count(chr(10), 0, at)}"
        separator = f', or pass --text_separator "{END_OF_TEXT}" if it separates documents'
    raise DataError(f"{place}: found {END_OF_TEXT}, which gpt2chat adds by itself: remove it{separator}")


def _no_duplicate_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    keys = [key for key, _ in pairs]
    if len(set(keys)) < len(keys):
        raise DataError(f"the key {next(k for k in keys if keys.count(k) > 1)!r} stands twice in one record")
    return dict(pairs)


def read_conversations(path: Path, report: Report, seen: set[tuple[Message, ...]] | None = None) -> list[Record]:
    """Read `[{"user": ..., "bot": ...}, ...]`; raises DataError with the record or line of the first fault.

    `seen` holds the pairs of the files before, so that repeats are found across files.
    """
    text = read_utf8(path)
    if not text.strip():
        raise DataError(f'{path}: expected a JSON list of {{"user": str, "bot": str}}, found an empty file')
    rows = _parse(path, text)
    if not isinstance(rows, list) or not rows:
        found = "an empty list" if rows == [] else f"a JSON {type(rows).__name__}"
        raise DataError(f'{path}: expected a list of {{"user": str, "bot": str}}, found {found}')
    records, seen = [], set() if seen is None else seen
    for number, row in enumerate(rows, 1):
        place = f"{path}: record {number}"
        pair = _pair(row, place, report)
        if not all(message.content for message in pair):
            report.add("records without text on one side, left out", f"{path.name} record {number}")
        elif pair in seen:
            report.add("records that repeat an earlier one, used once", f"{path.name} record {number}")
        else:
            seen.add(pair)
            records.append(Record(place, pair))
    if not records and not seen:
        raise DataError(f"{path}: expected at least one pair with text on both sides, found none")
    return records


def _parse(path: Path, text: str) -> object:
    """Parse JSON; raises DataError with the place of a fault and, where it is a common one, the mend."""
    begun = 0

    def checked(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        nonlocal begun
        begun += 1
        return _no_duplicate_keys(pairs)

    try:
        return json.loads(text, object_pairs_hook=checked)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}:{error.colno}: not valid JSON: {error.msg}{_hint(text, error)}"
        ) from None
    except RecursionError:
        raise DataError(f"{path}: not valid JSON: nested too deeply") from None
    except DataError as error:
        raise DataError(f"{path}: record {begun}: {error}") from None
    except ValueError as error:  # a number of too many digits
        raise DataError(f"{path}: record {begun + 1}: {error}") from None


def _hint(text: str, error: json.JSONDecodeError) -> str:
    before = text[: error.pos].rstrip()
    if before.endswith(",") and text[error.pos : error.pos + 1] in ("]", "}", ""):
        return f": remove the comma at the end of line {before.count(chr(10)) + 1}"
    if error.msg == "Extra data" and text.lstrip().startswith("{"):
        return ": expected one list, [...] with commas between the records"
    if not text.lstrip().startswith(("[", "{")):
        return ": a plain text goes to --text_file"
    return ""


def _pair(row: object, place: str, report: Report) -> tuple[Message, ...]:
    """The one place where the file format's `user` and `bot` become roles."""
    if not isinstance(row, dict) or not all(isinstance(row.get(key), str) for key in ("user", "bot")):
        shown = json.dumps(row, ensure_ascii=False, default=repr)
        shown = shown if len(shown) <= 80 else shown[:77] + "..."
        raise DataError(f'{place}: expected {{"user": str, "bot": str}}, got {shown}')
    for key in row.keys() - {"user", "bot"}:
        report.add(f"records with the key {key!r}, which is not used", place.rpartition(": ")[2])
    for key in ("user", "bot"):
        _refuse_end_marker(row[key], f"{place}: {key}")
        if any("\ud800" <= char <= "\udfff" for char in row[key]):
            report.add("records with half of a character (a lone surrogate), learnt as U+FFFD", place)
    return Message("user", row["user"].strip()), Message("assistant", row["bot"].strip())


def pairs_to_messages(pairs: Sequence[object]) -> list[Message]:
    """Turn `[{"user", "bot"}]` given in Python into messages; raises DataError naming the index."""
    if not isinstance(pairs, Sequence) or isinstance(pairs, (str, bytes)):
        raise DataError(f'examples: expected a list of {{"user": str, "bot": str}}, got {type(pairs).__name__}')
    report, messages = Report(), list[Message]()
    for index, pair in enumerate(pairs):
        both = _pair(pair, f"example {index}", report)
        if not all(message.content for message in both):
            raise DataError(f"example {index}: expected text on both sides, got {pair!r}")
        messages += both
    return messages


def render_records(
    records: Sequence[Record],
    template: Template,
    tokenizer: Tokenizer,
    max_tokens: int,
    too_long: str,
    report: Report,
) -> list[list[Example]]:
    """Render each record to the examples it makes: a conversation to one, a text to blocks of `max_tokens`.

    `too_long` says what to do with a conversation of more ids: "error", "skip", or "cut" (keep its beginning).
    """
    documents = []
    for record in records:
        if isinstance(record.content, str):
            documents.append(_text_blocks(record.content, tokenizer, max_tokens))
            continue
        if any(stop in m.content for m in record.content if m.role == "assistant" for stop in template.stop):
            report.add(f"answers with {template.stop[0]!r} in them, where chat will end them", record.place)
        example = render(record.content, template, tokenizer)
        if len(example.ids) > max_tokens:
            if too_long == "error":
                raise DataError(
                    f"{record.place}: expected at most {max_tokens} tokens with markers, got {len(example.ids)}: "
                    "shorten it, raise --max_length, or pass --too_long skip or --too_long cut"
                )
            report.add(f"records of more than {max_tokens} tokens, {too_long}", record.place.rpartition(": ")[2])
            if too_long == "skip":
                continue
            example = Example(example.ids[:max_tokens], example.loss_mask[:max_tokens])
        if not any(example.loss_mask):
            report.add("records in which no token of the answer is left to learn, left out", record.place)
            continue
        documents.append([example])
    return documents


def _text_blocks(text: str, tokenizer: Tokenizer, size: int) -> list[Example]:
    """Cut a text into blocks that overlap by one id, so that every id but the first is a target once."""
    ids = [*tokenizer.encode(text), tokenizer.end_id]
    starts = range(0, max(1, len(ids) - 1), size - 1)
    blocks, every = [array("H", ids[start : start + size]) for start in starts], [True] * size
    return [Example(block, every if len(block) == size else every[: len(block)]) for block in blocks]


def split(
    documents: Sequence[list[Example]], fraction: float, seed: int
) -> tuple[list[list[Example]], list[list[Example]]]:
    """Hold out a fraction: whole documents chosen by seed, or, of fewer than ten long texts, the end of each.

    Something is held out where there are two documents or blocks, and something is kept.
    """
    if fraction == 0:
        return list(documents), []
    if len(documents) >= 10 or all(len(document) == 1 for document in documents):
        count = min(max(1, round(fraction * len(documents))), max(0, len(documents) - 1))
        held = set(random.Random(seed).sample(range(len(documents)), count))
        return [d for i, d in enumerate(documents) if i not in held], [documents[i] for i in sorted(held)]
    train, val = [], []
    for document in documents:
        blocks = min(max(1, round(fraction * len(document))), len(document) - 1)
        train.append(document[: len(document) - blocks])
        if blocks:
            val.append(document[len(document) - blocks :])
    return train, val


@dataclass(frozen=True)
class Dataset:
    """Conversation and text examples, and how an epoch draws from them.

    With `text_share` set, an epoch holds every conversation once and as many text blocks, drawn afresh, as make that
    share of its ids; otherwise it holds everything once.
    """

    conversations: Sequence[Example] = ()
    texts: Sequence[Example] = ()
    text_share: float | None = None

    @property
    def examples(self) -> list[Example]:
        """All examples; `epoch` returns indices into them."""
        return [*self.conversations, *self.texts]

    def epoch(self, number: int, seed: int) -> list[int]:
        """Return the shuffled indices of one epoch; the same for the same number and seed."""
        rng = random.Random(f"{seed}/{number}")
        own, texts = len(self.conversations), range(len(self.conversations), len(self.conversations) + len(self.texts))
        chosen = list(texts)
        if self.text_share is not None and own and texts:
            ids = sum(len(example.ids) for example in self.conversations)
            wanted, mean = ids * self.text_share / (1 - self.text_share), np.mean([len(e.ids) for e in self.texts])
            exact = wanted / float(mean)
            count = int(exact) + (rng.random() < exact % 1)  # whole blocks; right on average over the epochs
            chosen = [i for _ in range(count // len(texts)) for i in texts] + rng.sample(texts, count % len(texts))
        order = [*range(own), *chosen]
        rng.shuffle(order)
        return order


def pack(lengths: Sequence[int], order: Sequence[int], size: int) -> list[list[int]]:
    """Pack examples into rows of at most `size` ids: each goes into the fullest of a few open rows that has room."""
    rows: list[list[int]] = []
    free, opened = list[int](), list[list[int]]()  # the room of the open rows, fullest first, and their examples
    for index in order:
        place = bisect_left(free, lengths[index])
        room, row = (free.pop(place), opened.pop(place)) if place < len(free) else (size, [])
        row.append(index)
        room -= lengths[index]
        place = bisect_left(free, room)
        free.insert(place, room)
        opened.insert(place, row)
        if len(opened) > 16:
            rows.append(opened.pop(0))
            free.pop(0)
    return rows + opened


def collate(
    rows: Sequence[Sequence[Example]],
    pad_id: int,
    join: float = 0.0,
    rng: random.Random | None = None,
    limit: int | None = None,
) -> Batch:
    """Lay documents out in rows: positions restart and attention ends at each document's border.

    A single exchange goes on the conversation of the one before with probability `join`, so that a model taught on
    pairs has seen earlier turns. Padding is masked from the loss; it goes up to a multiple of 64, but not past `limit`.
    """
    rng = rng or random.Random(0)
    used = [sum(len(example.ids) for example in row) for row in rows]
    width = -(-max(used) // 64) * 64  # a few shapes instead of many, so that memory is reused
    width = max(max(used), min(width, limit or width))
    ids = np.full((len(rows), width), pad_id, np.int64)
    labels = np.full((len(rows), width), IGNORE, np.int64)
    positions = np.zeros((len(rows), width), np.int64)
    segment = np.full((len(rows), width), -1, np.int64)
    for r, row in enumerate(rows):
        at = begin = number = 0
        open_end = False  # whether the document before may be followed by another exchange
        for example in row:
            end = at + len(example.ids)
            if end == at:
                continue
            if not (open_end and example.joinable and rng.random() < join):
                begin, number = at, number + 1
            open_end = example.joinable
            ids[r, at:end] = example.ids
            labels[r, at : end - 1] = np.where(example.loss_mask[1:], ids[r, at + 1 : end], IGNORE)
            positions[r, at:end] = np.arange(at - begin, end - begin)
            segment[r, at:end] = number
            at = end
    blocks = _block_mask(segment)
    return Batch(torch.from_numpy(ids), torch.from_numpy(labels), torch.from_numpy(positions), blocks, tokens=sum(used))


def _block_mask(segment: np.ndarray) -> torch.Tensor | None:
    """Return where a token may look, (B, 1, T, T): back, within its segment (B, T); None where rows are one segment."""
    if (segment == segment[:, :1]).all():
        return None
    same = torch.from_numpy(segment[:, None, :, None] == segment[:, None, None, :])
    return same & torch.ones(same.shape[-2:], dtype=torch.bool).tril()


def epoch_batches(
    dataset: Dataset, epoch: int, row_tokens: int, batch_size: int, seed: int, join: float, pad_id: int
) -> Iterator[Batch]:
    """Yield the batches of one epoch, the last one possibly smaller; the same for the same arguments."""
    examples = dataset.examples
    rows = epoch_rows(dataset, epoch, row_tokens, seed)
    rng = random.Random(f"{seed}/{epoch}/join")
    for start in range(0, len(rows), batch_size):
        chosen = [[examples[i] for i in row] for row in rows[start : start + batch_size]]
        yield collate(chosen, pad_id, join, rng, limit=row_tokens)


def epoch_rows(dataset: Dataset, epoch: int, row_tokens: int, seed: int) -> list[list[int]]:
    """Return the packed rows of one epoch, as indices of examples, in training order."""
    rows = pack([len(example.ids) for example in dataset.examples], dataset.epoch(epoch, seed), row_tokens)
    random.Random(f"{seed}/{epoch}/rows").shuffle(rows)
    return rows
