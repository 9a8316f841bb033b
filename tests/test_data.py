"""Files become examples and batches whole: nothing is dropped without a word, nothing leaks between documents."""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt2chat.conversation import TEMPLATES, Example, Message, render
from gpt2chat.data import (
    Dataset,
    collate,
    epoch_batches,
    epoch_rows,
    pack,
    render_records,
    split,
)
from gpt2chat.errors import DataError
from gpt2chat.loss import IGNORE
from gpt2chat.records import Record, Report
from gpt2chat.tokenizer import Tokenizer

CHAT = TEMPLATES["chat"]
PAD = 50256
SEEDS = st.integers(0, 2**16)


# -- examples ------------------------------------------------------------------------------------------------------


@given(text=st.text(min_size=1, max_size=200), size=st.integers(2, 24))
def test_every_id_of_a_text_but_the_first_is_a_target_exactly_once(tokenizer: Tokenizer, text: str, size: int) -> None:
    [blocks] = render_records([Record("t:1", text)], CHAT, tokenizer, size, "error", Report())
    ids = [*tokenizer.encode(text), tokenizer.end_id]
    assert all(len(block.ids) <= size for block in blocks)
    assert [int(i) for n, block in enumerate(blocks) for i in block.ids[min(n, 1) :]] == ids
    labels = collate([[block] for block in blocks], PAD).labels
    assert labels[labels != IGNORE].tolist() == ids[1:]


def test_a_conversation_is_one_example_that_learns_the_answer_and_its_end(tokenizer: Tokenizer) -> None:
    record = Record("p: record 1", (Message("user", "hi"), Message("assistant", "Hello you")))
    [[example]] = render_records([record], CHAT, tokenizer, 128, "error", Report())
    alone = render(record.content, CHAT, tokenizer)  # type: ignore[arg-type]
    assert (list(example.ids), list(example.loss_mask)) == (alone.ids, alone.loss_mask)
    taught = [i for i, trained in zip(example.ids, example.loss_mask, strict=True) if trained]
    assert taught == [*tokenizer.encode(" Hello you"), tokenizer.end_id]
    assert example.joinable


def test_a_conversation_that_is_too_long_is_refused_skipped_or_cut(tokenizer: Tokenizer) -> None:
    short = Record("p: record 1", (Message("user", "hi"), Message("assistant", "yes")))
    long = Record("p: record 2", (Message("user", "hi"), Message("assistant", "yes " * 40)))
    mute = Record("p: record 3", (Message("user", "hi " * 40), Message("assistant", "yes")))
    whole = render(long.content, CHAT, tokenizer)  # type: ignore[arg-type]

    with pytest.raises(DataError, match=rf"p: record 2: expected at most 20 tokens with markers, got {len(whole.ids)}"):
        render_records([short, long], CHAT, tokenizer, 20, "error", Report())
    assert len(render_records([long], CHAT, tokenizer, len(whole.ids), "error", Report())) == 1

    report = Report()
    assert len(render_records([short, long, mute], CHAT, tokenizer, 20, "skip", report)) == 1
    assert report.lines() == ["2 records of more than 20 tokens, skipped: p: record 2, p: record 3"]

    report = Report()
    kept = render_records([short, long, mute], CHAT, tokenizer, 20, "cut", report)
    assert len(kept) == 2
    assert (list(kept[1][0].ids), list(kept[1][0].loss_mask)) == (whole.ids[:20], whole.loss_mask[:20])
    assert not kept[1][0].joinable  # it has lost its end token
    assert [len(places) for places in report.found.values()] == [2, 1]
    assert "record 3" in report.lines()[1]


# -- splits and epochs ---------------------------------------------------------------------------------------------


def plain(length: int, first: int = 0, joinable: bool = False) -> Example:
    return Example(list(range(first, first + length)), [True] * length, joinable)


def numbered(sizes: Sequence[int]) -> list[list[Example]]:
    """Documents of so many examples, each example with ids of its own."""
    starts = np.cumsum([0, *sizes])
    return [[plain(2, 2 * int(start + i)) for i in range(size)] for start, size in zip(starts, sizes, strict=False)]


def keys(documents: Sequence[Sequence[Example]]) -> list[int]:
    return [int(example.ids[0]) for document in documents for example in document]


@given(sizes=st.lists(st.integers(1, 6), min_size=1, max_size=24), fraction=st.floats(0, 0.9), seed=SEEDS)
def test_a_split_is_disjoint_complete_and_by_whole_documents(sizes: list[int], fraction: float, seed: int) -> None:
    documents = numbered(sizes)
    train, held = split(documents, fraction, seed)
    assert sorted(keys(train) + keys(held)) == keys(documents)
    assert (train, held) == split(documents, fraction, seed)
    if fraction == 0:
        assert held == []
    elif len(documents) >= 10 or all(size == 1 for size in sizes):
        assert all(document in documents for document in [*train, *held])
        assert len(held) == min(max(1, round(fraction * len(documents))), len(documents) - 1)
        assert train
    else:  # the end of each document
        assert all(
            max(keys([t]), default=-1) < min(keys([d])) + 2 * len(t) for t, d in zip(train, documents, strict=True)
        )


def test_another_seed_holds_out_other_documents() -> None:
    documents = numbered([1] * 40)
    assert len({tuple(keys(split(documents, 0.2, seed)[1])) for seed in range(5)}) > 1


def test_an_epoch_without_a_share_holds_everything_once_in_a_new_order() -> None:
    dataset = Dataset([plain(4)] * 20, [plain(9)] * 30)
    orders = [dataset.epoch(number, seed) for number in (0, 1) for seed in (0, 1)]
    assert all(sorted(order) == list(range(50)) for order in orders)
    assert len({tuple(order) for order in orders}) == 4
    assert orders[0] == dataset.epoch(0, 0)


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.9])
def test_text_share_is_the_share_of_the_ids_that_is_text(share: float) -> None:
    rng = random.Random(0)
    conversations = [plain(rng.randint(5, 30)) for _ in range(400)]
    texts = [plain(rng.randint(24, 32)) for _ in range(90)]
    dataset = Dataset(conversations, texts, share)
    drawn = set[int]()
    for number in range(3):
        order = dataset.epoch(number, 0)
        counts = Counter(order)
        assert all(counts[i] == 1 for i in range(400))
        text = [counts[i] for i in range(400, 490)]
        assert max(text) - min(text) <= 1
        lengths = [len(dataset.examples[i].ids) for i in order]
        of_text = sum(length for i, length in zip(order, lengths, strict=True) if i >= 400)
        assert of_text / sum(lengths) == pytest.approx(share, rel=0.1)
        assert order == dataset.epoch(number, 0)
        drawn |= {i for i in order if i >= 400}
    few = share * sum(len(e.ids) for e in conversations) / (1 - share) / 28
    assert len(drawn) > min(89, 1.5 * few)  # drawn afresh each time


# -- batches -------------------------------------------------------------------------------------------------------


@given(lengths=st.lists(st.integers(1, 32), min_size=1, max_size=80), seed=SEEDS)
def test_packing_places_every_index_once_and_no_row_is_too_long(lengths: list[int], seed: int) -> None:
    order = list(range(len(lengths)))
    random.Random(seed).shuffle(order)
    rows = pack(lengths, order, 32)
    assert sorted(index for row in rows for index in row) == list(range(len(lengths)))
    assert all(0 < sum(lengths[index] for index in row) <= 32 for row in rows)
    assert rows == pack(lengths, order, 32)


def test_packing_fills_rows() -> None:
    rng = random.Random(0)
    lengths = [rng.randint(5, 40) for _ in range(2000)]
    assert len(pack(lengths, range(2000), 256)) <= 1.05 * sum(lengths) / 256


@st.composite
def documents_in_rows(draw: st.DrawFn) -> list[list[Example]]:
    def document() -> Example:
        length = draw(st.integers(1, 9))
        ids = draw(st.lists(st.integers(0, 99), min_size=length, max_size=length))
        mask = draw(st.lists(st.booleans(), min_size=length, max_size=length))
        return Example(ids, mask, joinable=draw(st.booleans()))

    return [[document() for _ in range(draw(st.integers(1, 7)))] for _ in range(draw(st.integers(1, 3)))]


@given(rows=documents_in_rows(), join=st.sampled_from([0.0, 1.0]))
def test_documents_in_a_row_neither_see_nor_foretell_each_other(rows: list[list[Example]], join: float) -> None:
    batch = collate(rows, PAD, join)
    width = batch.input_ids.size(1)
    causal = torch.ones(width, width, dtype=torch.bool).tril()
    seen = causal.expand(len(rows), width, width) if batch.mask is None else batch.mask[:, 0]
    assert batch.tokens == sum(len(example.ids) for row in rows for example in row)
    assert seen.any(-1).all()  # a position that sees nothing would become NaN
    for r, row in enumerate(rows):
        ids, labels, positions, segments = [], [], [], []
        for i, example in enumerate(row):
            joined = i > 0 and join == 1 and example.joinable and row[i - 1].joinable
            begin = positions[-1] + 1 if joined else 0
            segments += [segments[-1] if joined else i] * len(example.ids)
            ids += example.ids
            positions += range(begin, begin + len(example.ids))
            nexts = zip(example.ids[1:], example.loss_mask[1:], strict=True)
            labels += [*(i if trained else IGNORE for i, trained in nexts), IGNORE]
        used = len(ids)
        assert batch.input_ids[r].tolist() == ids + [PAD] * (width - used)
        assert batch.labels[r].tolist() == labels + [IGNORE] * (width - used)
        assert batch.positions[r, :used].tolist() == positions
        segment = torch.tensor(segments + [-1] * (width - used))
        assert torch.equal(seen[r, :used], (segment[:, None] == segment)[:used] & causal[:used])


def test_a_masked_id_is_never_a_target_whatever_holds_the_ids() -> None:
    ids, mask = [5, 6, 7, 8], [True, False, True, False]
    for example in (Example(ids, mask), Example(np.array(ids, np.uint16), np.array(mask))):
        assert collate([[example]], PAD).labels[0, :4].tolist() == [IGNORE, 7, IGNORE, IGNORE]


def test_an_empty_example_in_a_row_changes_nothing() -> None:
    empty, full = Example([], []), plain(3, 1)
    for row in ([empty, full], [full, empty], [empty, empty, full]):
        batch = collate([row], PAD)
        assert batch.labels[0, :4].tolist() == [2, 3, IGNORE, IGNORE]
        assert batch.tokens == 3


def test_pairs_join_into_one_conversation() -> None:
    row = [plain(3, joinable=True)] * 6
    assert collate([row], PAD, 1.0).positions[0, :18].tolist() == [*range(18)]
    assert collate([row], PAD, 0.0).positions[0, :18].tolist() == [*range(3)] * 6
    starts = [
        (collate([row] * 200, PAD, 0.5, random.Random(seed)).positions[:, 3:6] == torch.arange(3))
        .all(-1)
        .float()
        .mean()
        for seed in range(2)
    ]
    assert all(0.35 < float(start) < 0.65 for start in starts)


def test_the_batches_of_an_epoch_hold_its_rows_and_depend_on_the_arguments_alone() -> None:
    rng = random.Random(1)
    dataset = Dataset([plain(rng.randint(3, 20), joinable=True) for _ in range(30)], [plain(16)] * 10, 0.4)

    def batches(epoch: int, seed: int) -> list[list[Any]]:
        made = epoch_batches(dataset, epoch, 48, 4, seed, 0.5, PAD)
        return [[batch.input_ids.tolist(), batch.labels.tolist(), batch.positions.tolist()] for batch in made]

    assert batches(1, 2) == batches(1, 2)
    assert batches(1, 2) != batches(0, 2)
    assert batches(1, 2) != batches(1, 3)
    rows = epoch_rows(dataset, 1, 48, 2)
    assert sorted(index for row in rows for index in row) == sorted(dataset.epoch(1, 2))
    assert [len(ids) for ids, _, _ in batches(1, 2)] == [4] * (len(rows) // 4) + [len(rows) % 4] * (len(rows) % 4 > 0)
