"""Records -> examples -> batches.

A record is one document with its place, so that every message can say where. Nothing is dropped silently: the
`Report` counts and names what was left out or changed.
"""

from __future__ import annotations

import random
from array import array
from bisect import bisect_left
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from gpt2chat.conversation import Example, Size, measure_many, render_many
from gpt2chat.errors import DataError
from gpt2chat.loss import IGNORE, Batch
from gpt2chat.records import Record, Report
from gpt2chat.taught import Pair
from gpt2chat.templates import Template
from gpt2chat.tokenizer import Tokenizer

GROUP, GROUP_SIZE = 256, 1 << 20  # records, or characters, that are rendered at a time


def render_records(
    records: Sequence[Record],
    template: Template,
    tokenizer: Tokenizer,
    max_tokens: int,
    too_long: str,
    report: Report,
    whole: list[Record | None] | None = None,
) -> list[list[Example]]:
    """Render each record to the examples it makes: a conversation to one, a text to blocks of `max_tokens`.

    `too_long` says what to do with a conversation of more ids: "error", "skip", or "cut" (keep its beginning).
    `whole` is filled with the record of each conversation's example, or None where it was cut.
    """
    documents = []
    for record, example in rendered(records, template, tokenizer):
        if isinstance(record.content, str):
            documents.append(_text_blocks(example.ids, max_tokens))
            continue
        if any(stop in m.content for m in record.content if m.role == "assistant" for stop in template.stop):
            report.add(f"answers with {template.stop[0]!r} in them, where chat will end them", record.place)
        if was_cut := len(example.ids) > max_tokens:
            if too_long == "error":
                raise DataError(
                    f"{record.place}: expected at most {max_tokens} tokens with markers, got {len(example.ids)}: "
                    "shorten it, or pass --too_long skip or --too_long cut"
                )
            done = {"skip": "skipped", "cut": "cut"}[too_long]
            report.add(f"records of more than {max_tokens} tokens, {done}", record.place)
            if too_long == "skip":
                continue
            example = Example(example.ids[:max_tokens], example.loss_mask[:max_tokens])
        if not any(example.loss_mask):
            report.add("records in which no token of the answer is left to learn, left out", record.place)
            continue
        documents.append([example])
        if whole is not None:
            whole.append(None if was_cut else record)
    return documents


def last_pair(record: Record) -> Pair | None:
    """Return the last question of a conversation and its answer, if it ends with both and the answer is learnt."""
    if isinstance(record.content, str) or len(record.content) < 2:
        return None
    question, answer = record.content[-2:]
    learnt = (question.role, answer.role) == ("user", "assistant") and answer.trained
    return (question.content, answer.content) if learnt else None


def rendered(records: Iterable[Record], template: Template, tokenizer: Tokenizer) -> Iterator[tuple[Record, Example]]:
    """Yield each record with its ids: a conversation as `render` gives it, of a text all, its end token included."""
    for group in in_groups(records):
        texts = _text_examples([record.content for record in group if isinstance(record.content, str)], tokenizer)
        conversations = [record.content for record in group if not isinstance(record.content, str)]
        examples = iter(render_many(conversations, template, tokenizer))
        for record in group:
            yield record, next(texts if isinstance(record.content, str) else examples)


def measured(group: Sequence[Record], template: Template, tokenizer: Tokenizer) -> list[Size]:
    """Return the sizes of what `rendered` gives for each record of a group."""
    texts = [record.content for record in group if isinstance(record.content, str)]
    whole = iter([Size(n + 1, n + 1, 0) for n in tokenizer.encode_apart(texts)[1].tolist()])
    sizes = iter(measure_many([r.content for r in group if not isinstance(r.content, str)], template, tokenizer))
    return [next(whole if isinstance(record.content, str) else sizes) for record in group]


def _text_examples(texts: Sequence[str], tokenizer: Tokenizer) -> Iterator[Example]:
    ids, lengths = tokenizer.encode_apart(texts)
    for end, length in zip(lengths.cumsum(), lengths, strict=True):
        own = array("H", ids[end - length : end].astype(np.uint16).tobytes())
        own.append(tokenizer.end_id)
        yield Example(own, array("B", b"\1") * len(own))


def in_groups(records: Iterable[Record]) -> Iterator[list[Record]]:
    """Cut a stream into lists of a few hundred records, or a few megabytes, which are faster to work on."""
    group, size = list[Record](), 0
    for record in records:
        group.append(record)
        content = record.content
        size += len(content) if isinstance(content, str) else sum([len(message.content) for message in content])
        if len(group) >= GROUP or size >= GROUP_SIZE:
            yield group
            group, size = [], 0
    if group:
        yield group


def _text_blocks(ids: Sequence[int], size: int) -> list[Example]:
    """Cut a text into blocks that overlap by one id, so that every id but the first is a target once."""
    starts = range(0, max(1, len(ids) - 1), size - 1)
    blocks, every = [ids[start : start + size] for start in starts], [True] * size
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
    apart: float = 0.0,
) -> Batch:
    """Lay documents out in rows: positions restart and attention ends at each document's border.

    A single exchange goes on the conversation of the one before with probability `join`, so that a model taught on
    pairs has seen earlier turns; not so in a share `apart` of the rows. Padding is masked, up to 64 and to `limit`.
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
        chance = 0.0 if apart and rng.random() < apart else join
        open_end = False  # whether the document before may be followed by another exchange
        for example in row:
            end = at + len(example.ids)
            if end == at:
                continue
            if not (open_end and example.joinable and rng.random() < chance):
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
    dataset: Dataset,
    epoch: int,
    row_tokens: int,
    batch_size: int,
    seed: int,
    join: float,
    pad_id: int,
    apart: float = 0.0,
) -> Iterator[Batch]:
    """Yield the batches of one epoch, the last one possibly smaller; the same for the same arguments."""
    examples = dataset.examples
    rows = epoch_rows(dataset, epoch, row_tokens, seed)
    rng = random.Random(f"{seed}/{epoch}/join")
    for start in range(0, len(rows), batch_size):
        chosen = [[examples[i] for i in row] for row in rows[start : start + batch_size]]
        yield collate(chosen, pad_id, join, rng, limit=row_tokens, apart=apart)


def epoch_rows(dataset: Dataset, epoch: int, row_tokens: int, seed: int) -> list[list[int]]:
    """Return the packed rows of one epoch, as indices of examples, in training order."""
    rows = pack([len(example.ids) for example in dataset.examples], dataset.epoch(epoch, seed), row_tokens)
    random.Random(f"{seed}/{epoch}/rows").shuffle(rows)
    return rows
