"""What a training run would make of data: faults, findings, lengths, examples."""

from __future__ import annotations

import os
import random
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from gpt2chat.conversation import Size
from gpt2chat.data import in_groups, measured, rendered
from gpt2chat.errors import DataError, counted
from gpt2chat.formats import Source, read
from gpt2chat.likeness import NearRepeats, Repeats, digest, likeness, likenesses
from gpt2chat.mending import CONTROL
from gpt2chat.records import Faults, Record, Report
from gpt2chat.templates import Template
from gpt2chat.tokenizer import Tokenizer

BARS = 24


@dataclass(frozen=True)
class Oddity:
    """What a record had better not hold; only where one of `signs` is in the text, in lower case, is it looked for."""

    said: str
    pattern: re.Pattern[str]
    signs: tuple[str, ...]


ODDITIES = (
    Oddity(
        "that hold an e-mail address, which a model may repeat", re.compile(r"[\w.+-]{1,64}@[\w-]+\.[\w.]+"), ("@",)
    ),
    Oddity(
        "that seem to hold a key or password, which a model may repeat",
        re.compile(
            r"\b(?:sk-|sk_|hf_|gh[opsu]_|xox[abpsr]-)[\w-]{16,}|\bgithub_pat_\w{20,}|AKIA[0-9A-Z]{16}|AIza[\w-]{30,}"
            r"|\beyJ[\w-]{10,}\.eyJ[\w-]{10,}|-----BEGIN [A-Z ]*PRIVATE KEY"
            r"|(?i:password|passwd|api[_-]?key|secret[_-]key)[\"']?\s*[:=]\s*\S+"
        ),
        ("_", "-key", "apikey", "passw", "sk-", "xox", "akia", "aiza", "eyj", "-----begin"),
    ),
    Oddity(
        "with signs of a wrong encoding (such as Ã© or â€™)",
        re.compile(r"[ÃÂ][\x80-\xbf€‚ƒ„…†‡ˆ‰Š‹ŒŽ‘’“”•–—˜™š›œžŸ]|â€|ï¿½|\ufffd"),
        ("ã", "â", "ï", "\ufffd"),
    ),
    Oddity("with control characters", CONTROL, tuple(chr(code) for code in range(128) if CONTROL.match(chr(code)))),
)
# What most texts consist of: no sign of one character.
COMMON = bytes(
    {*range(128)} - {ord(sign) for oddity in ODDITIES for sign in oddity.signs if sign.isascii() and not sign[1:]}
)


class Check:
    """Reads files as training would and keeps what is to be said about them, in constant memory."""

    def __init__(self, template: Template, max_tokens: int = 1024, show: int = 3, report: Report | None = None) -> None:
        self.template, self.max_tokens, self.show = template, max_tokens, show
        self.report, self.faults, self.tokenizer = report or Report(), Faults(), Tokenizer.gpt2()
        self.found: list[str] = []
        self.examples: list[str] = []
        self.lengths: Counter[int] = Counter()
        self.kinds: Counter[str] = Counter()
        self.learnt = self.cut = self.too_long = 0
        self._same, self._alike, self._questions, self._near = Repeats(), Repeats(), Repeats(), NearRepeats()

    def add(self, source: Source, wanted: str | None = None) -> None:
        """Read one file to its end, or to a fault after which nothing can be read."""
        for _ in self.records(source, wanted):
            pass

    def records(self, source: Source, wanted: str | None = None) -> Iterator[Record]:
        """Read one file as `add` does and yield its records, those that repeat an earlier one left out."""
        for group in in_groups(self._read(source, wanted)):
            texts, added = [_text(record) for record in group], self.template.added
            folded = [text.casefold() for text in texts]
            self._look_for_oddities(group, texts, folded)
            for _, example in rendered(group[: self.show - len(self.examples)], self.template, self.tokenizer):
                self.examples.append(marked(example.ids[:120], example.loss_mask[:120], self.tokenizer, added))
            sizes = measured(group, self.template, self.tokenizer)
            questions = [_single_question(record) for record in group]
            asked = iter(likenesses([question.casefold() for question in questions if question is not None]))
            alike = likenesses(folded)
            for number, (record, size) in enumerate(zip(group, sizes, strict=True)):
                question = None if questions[number] is None else next(asked)
                if not self._repeats(record, alike[number], question, folded[number]):
                    self._measure(record, size)
                    yield record

    def _read(self, source: Source, wanted: str | None, held_out: str = "") -> Iterator[Record]:
        """Yield the records of a file up to a fault after which nothing can be read; note what it is."""
        form, count, before = "", 0, self.faults.count
        try:
            reading = read(source, self.report, wanted, faults=self.faults)
            form = reading.form
            for record in reading.records:
                count += 1
                yield record
        except DataError as error:
            self.faults.add(error)
        faults = self.faults.count - before
        errors = f", {counted(faults, 'error')}" if faults else ""
        read_to = f"{form}, {counted(count, 'record')}{held_out}{errors}"
        self.found.append(f"{source.name}: {read_to if form else 'not read, see the error'}")

    def compare(self, source: Source, wanted: str | None = None) -> None:
        """Read held-out data and note what is in the data already read, up to case, marks and blanks."""
        if self._alike.overflowed:
            self.report.note("records further on were not compared with the held-out ones", self._alike.beyond)
        for record in self._read(source, wanted, " held out"):
            if likeness(_text(record)) in self._alike:
                self.report.add("held-out records that are in the training data too", record.place)
            elif (question := _single_question(record)) is not None and likeness(question) in self._questions:
                self.report.add("held-out questions that are in the training data too", record.place)

    def finish(self) -> None:
        """Note what can only be known at the end: records that are nearly the same, and repeats of long data."""
        for place, earlier in self._near.found():
            self.report.add("records that are nearly an earlier one", f"{place} (as {os.path.basename(earlier)})")
        if self._near.full:
            self.report.note("records, the first ones, were compared for being nearly the same", len(self._near))
        same = self._same.late()
        if same:
            self.report.note("records further on that repeat another one", same)
        if self._same.overflowed and (alike := self._alike.late() - same) > 0:
            self.report.note("records further on that differ from another one only in case, marks or blanks", alike)

    def _look_for_oddities(self, group: Sequence[Record], texts: Sequence[str], folded: Sequence[str]) -> None:
        """Note what is odd; signs of it are first looked for in the texts of all records at once, which is fast."""
        data = "\n".join(folded).encode("utf-8", "replace")
        rare = data.translate(None, COMMON)
        for oddity in ODDITIES:
            signs = [sign for sign in oddity.signs if sign.encode() in (data if sign[1:] else rare)]
            for record, text, lower in zip(group, texts, folded, strict=True) if signs else ():
                if any(sign in lower for sign in signs) and oddity.pattern.search(text):
                    self.report.add(f"records {oddity.said}", record.place)

    def _measure(self, record: Record, size: Size) -> None:
        self.lengths[size.ids] += 1
        self.learnt += size.learnt
        if isinstance(record.content, str):
            self.kinds["texts"] += 1
            return
        self.kinds["conversations"] += 1
        if size.ids > self.max_tokens:
            self.too_long += 1
            self.cut += size.ids - self.max_tokens
            self.report.add(f"conversations longer than {self.max_tokens} tokens", record.place)
            if size.before >= self.max_tokens:
                self.report.add(f"conversations with no answer within {self.max_tokens} tokens", record.place)

    def _repeats(self, record: Record, own: int, question: int | None, folded: str) -> bool:
        """Return whether a record repeats an earlier one; note that, and one that is much alike.

        `own` is its likeness, `question` that of a single question.
        """
        place = record.place
        alike = self._alike.add(own)
        if self._same.add(digest(record.content)):
            self.report.add("records that repeat an earlier one", place)
            return True
        if alike:
            self.report.add("records that differ from an earlier one only in case, marks or blanks", place)
            return False
        if question is not None and self._questions.add(question):
            self.report.add("questions that were answered otherwise before; a model learns to waver", place)
        self._near.add(folded, place)
        return False

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        found, counts = self.report.found, self.report.counts
        tokens = sum(length * count for length, count in self.lengths.items())
        return {
            "files": self.found,
            "errors": self.faults.lines(),
            "error_count": self.faults.count,
            "notes": {kind: {"count": counts[kind], "places": places[:20]} for kind, places in found.items()},
            "conversations": self.kinds["conversations"],
            "texts": self.kinds["texts"],
            "tokens": tokens,
            "learnt_tokens": self.learnt,
            "median": percentile(self.lengths, 0.5),
            "longest": max(self.lengths, default=0),
            "too_long": self.too_long,
            "cut_share": round(self.cut / tokens, 4) if tokens else 0.0,
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
    return content if isinstance(content, str) else "\n".join([message.content for message in content])


def _single_question(record: Record) -> str | None:
    """Return what is asked in a conversation of one question."""
    if isinstance(record.content, str):
        return None
    asked = [message.content for message in record.content if message.role != "assistant"]
    return "\n".join(asked) if len(record.content) - len(asked) == 1 else None


def percentile(counts: Counter[int], share: float) -> int:
    """Return the value below which `share` of the counted values are; 0 of none."""
    left = share * counts.total()
    for value in sorted(counts):
        left -= counts[value]
        if left < 0:
            return value
    return max(counts, default=0)


def marked(
    ids: Sequence[int], mask: Sequence[bool] | Sequence[int], tokenizer: Tokenizer, added: Sequence[str] = ()
) -> str:
    """Return the text of ids on one line, with what is learnt between ⟦ and ⟧; `added` names tokens of a template."""
    out, inside, part = "", False, list[int]()
    for token, trained in [*zip(ids, mask, strict=True), (-1, False)]:
        if token < 0 or bool(trained) != inside:
            text = tokenizer.decode(part, added).replace("\n", "⏎")
            out += f"⟦{text}⟧" if inside else text
            part, inside = [], bool(trained)
        part.append(token)
    return out


def split_by_question(records: Sequence[Record], fraction: float, seed: int) -> tuple[list[Record], list[Record]]:
    """Hold out about a fraction of the records; those whose first questions are alike stay together.

    Raises DataError when there are not two different ones.
    """
    groups: dict[int, list[int]] = {}
    for index, record in enumerate(records):
        content = record.content
        text = content if isinstance(content, str) else next(m.content for m in content if m.role == "user")
        groups.setdefault(likeness(text), []).append(index)
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
