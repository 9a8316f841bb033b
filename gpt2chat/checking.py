"""What a training run would make of data: faults, findings, lengths, examples."""

from __future__ import annotations

import hashlib
import random
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from typing import Any

from gpt2chat.conversation import Template, render
from gpt2chat.errors import DataError
from gpt2chat.formats import Source, read
from gpt2chat.records import Record, Report
from gpt2chat.tokenizer import Tokenizer

# What a model had better not learn by heart, and what a wrong encoding leaves behind.
ODD = {
    "that hold an e-mail address, which a model may repeat": re.compile(r"[\w.+-]+@[\w-]+\.[\w.]+"),
    "that seem to hold a key or password, which a model may repeat": re.compile(
        r"\b(?:sk|hf|ghp|xox[bp])[-_][\w-]{16,}|AKIA[0-9A-Z]{16}|-----BEGIN [A-Z ]*PRIVATE KEY"
        r"|(?i:password)\s*[:=]\s*\S+"
    ),
    "with signs of a wrong encoding (such as Ã© or â€™)": re.compile(r"[ÃÂ][\x80-\xbf]|â€|\ufffd"),
    "with control characters": re.compile(r"[\x00-\x08\x0b\x0c\x0e-\x1f\x7f]"),
}
WORDS = re.compile(r"\w+")
BARS = 24


class Check:
    """Reads files as training would and keeps what is to be said about them."""

    def __init__(self, template: Template, max_tokens: int = 1024, show: int = 3) -> None:
        self.template, self.max_tokens, self.show = template, max_tokens, show
        self.report, self.tokenizer = Report(), Tokenizer.gpt2()
        self.found: list[str] = []
        self.faults: list[str] = []
        self.examples: list[str] = []
        self.lengths: Counter[int] = Counter()
        self.kinds: Counter[str] = Counter()
        self.learnt = 0
        self._seen: set[bytes] = set()
        self._alike: set[bytes] = set()

    def add(self, source: Source, wanted: str | None = None) -> None:
        """Read one file to its end, or to a fault after which nothing can be read."""
        count = 0
        try:
            reading = read(source, self.report, wanted, faults=self.faults)
            for record in reading.records:
                count += 1
                self._look(record)
            self.found.append(f"{source.name}: {reading.form}, {count} record{'s' * (count != 1)}")
        except DataError as error:
            self.faults.append(str(error))
            self.found.append(f"{source.name}: {count} records, up to a fault")

    def compare(self, source: Source, wanted: str | None = None) -> None:
        """Read held-out data and note what is in the data already read, up to case, marks and blanks."""
        count = 0
        for record in read(source, self.report, wanted).records:
            count += 1
            if _likeness(_text(record)) in self._alike:
                self.report.add("held-out records that are in the training data too", record.place)
        self.found.append(f"{source.name}: {count} held out")

    def _look(self, record: Record) -> None:
        content = record.content
        texts = [content] if isinstance(content, str) else [message.content for message in content]
        self._repeats(_text(record), record.place)
        for kind, pattern in ODD.items():
            if any(pattern.search(text) for text in texts):
                self.report.add(f"records {kind}", record.place)
        if isinstance(content, str):
            self.kinds["texts"] += 1
            ids = [*self.tokenizer.encode(content), self.tokenizer.end_id]
            mask = [True] * len(ids)
        else:
            self.kinds["conversations"] += 1
            example = render(content, self.template, self.tokenizer)
            ids, mask = list(example.ids), list(example.loss_mask)
            if len(ids) > self.max_tokens:
                self.report.add(f"conversations longer than {self.max_tokens} tokens", record.place)
                if not any(mask[: self.max_tokens]):
                    self.report.add(f"conversations with no answer within {self.max_tokens} tokens", record.place)
        self.lengths[len(ids)] += 1
        self.learnt += sum(mask)
        if len(self.examples) < self.show:
            self.examples.append(marked(ids[:120], mask[:120], self.tokenizer))

    def _repeats(self, text: str, place: str) -> None:
        """Note a record equal to an earlier one, or equal but for case, marks and blanks."""
        exact, alike = _digest(text), _likeness(text)
        if exact in self._seen:
            self.report.add("records that repeat an earlier one", place)
        elif alike in self._alike:
            self.report.add("records that differ from an earlier one only in case, marks or blanks", place)
        self._seen.add(exact)
        self._alike.add(alike)

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        lengths = sorted(self.lengths.elements())
        found, counts = self.report.found, self.report.counts
        notes = {kind: {"count": counts[kind], "places": places[:20]} for kind, places in found.items()}
        return {
            "files": self.found,
            "errors": self.faults,
            "notes": notes,
            "conversations": self.kinds["conversations"],
            "texts": self.kinds["texts"],
            "tokens": sum(length * count for length, count in self.lengths.items()),
            "learnt_tokens": self.learnt,
            "median": lengths[len(lengths) // 2] if lengths else 0,
            "longest": lengths[-1] if lengths else 0,
            "too_long": sum(count for length, count in self.lengths.items() if length > self.max_tokens),
        }

    def histogram(self) -> list[str]:
        """Draw how many records have how many tokens, in steps that double."""
        bins: Counter[int] = Counter()
        for length, count in self.lengths.items():
            bins[max(0, length - 1).bit_length()] += count
        most, lines = max(bins.values()), []
        for size in range(min(bins), max(bins) + 1):
            bar = "█" * max(bins[size] > 0, round(BARS * bins[size] / most))
            lines.append(f"{f'up to {1 << size}':>14} {bar:{BARS}} {bins[size]}")
        return lines


def _text(record: Record) -> str:
    content = record.content
    return content if isinstance(content, str) else "\n".join(message.content for message in content)


def _digest(text: str) -> bytes:
    return hashlib.blake2b(text.encode("utf-8", "replace"), digest_size=8).digest()


def _likeness(text: str) -> bytes:
    """Return what texts share that differ only in case, marks and blanks."""
    return _digest(" ".join(WORDS.findall(text.casefold())))


def marked(ids: list[int], mask: list[bool], tokenizer: Tokenizer) -> str:
    """Return the text of ids on one line, with what is learnt between ⟦ and ⟧."""
    out, inside, part = "", False, list[int]()
    for token, trained in [*zip(ids, mask, strict=True), (-1, False)]:
        if token < 0 or trained != inside:
            text = tokenizer.decode(part).replace("\n", "⏎")
            out += f"⟦{text}⟧" if inside else text
            part, inside = [], trained
        part.append(token)
    return out


def split_by_question(records: Sequence[Record], fraction: float, seed: int) -> tuple[list[Record], list[Record]]:
    """Hold out about a fraction of the records; those whose first questions are alike stay together.

    Raises DataError when there are not two different ones.
    """
    groups: dict[bytes, list[int]] = {}
    for index, record in enumerate(records):
        content = record.content
        text = content if isinstance(content, str) else next(m.content for m in content if m.role == "user")
        groups.setdefault(_likeness(text), []).append(index)
    if len(groups) < 2:
        raise DataError(f"split: expected at least two different records, found {len(groups)}")
    order = list(groups.values())
    random.Random(seed).shuffle(order)
    wanted, held = max(1, round(fraction * len(records))), set[int]()
    for group in order[:-1]:
        if len(held) >= wanted:
            break
        held.update(group)
    return [r for i, r in enumerate(records) if i not in held], [r for i, r in enumerate(records) if i in held]


def draw(records: Iterable[Record], count: int, seed: int) -> list[Record]:
    """Draw `count` records evenly from a stream, in its order (Vitter's algorithm R)."""
    rng, kept = random.Random(seed), list[tuple[int, Record]]()
    for number, record in enumerate(records):
        if number < count:
            kept.append((number, record))
        elif (place := rng.randrange(number + 1)) < count:
            kept[place] = (number, record)
    return [record for _, record in sorted(kept, key=lambda pair: pair[0])]
