"""The demo model's recipe: rows, sampled loss, resuming."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from gpt2chat.model import GPT2, GPT2Config

ROOT = Path(__file__).resolve().parent.parent
LENGTHS = [5, 700, 30, 512, 1, 900, 64, 2000]


@pytest.fixture(scope="module")
def recipe() -> ModuleType:
    spec = importlib.util.spec_from_file_location("recipe_train", ROOT / "recipes/demo_model/train.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["recipe_train"] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def corpus(recipe: ModuleType, tmp_path: Path) -> ModuleType:
    ids = np.random.default_rng(0).integers(0, 50257, sum(LENGTHS)).astype(np.uint16)
    ids.tofile(tmp_path / "train.bin")
    np.cumsum([0, *LENGTHS]).astype(np.int64).tofile(tmp_path / "train.idx")
    return recipe.Corpus(tmp_path / "train")


def test_rows_follow_the_corpus_and_stop_at_document_borders(corpus: ModuleType) -> None:
    ids, targets, positions, mask = corpus.batch(0, rows=4)
    whole = torch.from_numpy(corpus.ids[: 4 * 512 + 1].astype(np.int64))
    assert torch.equal(ids.flatten(), whole[:-1])
    borders = torch.tensor(np.cumsum(LENGTHS) - 1)
    borders = borders[borders < 4 * 512]
    unknown = (targets.flatten() == -100).nonzero().squeeze(1)
    assert torch.equal(unknown, borders)
    known = targets.flatten() != -100
    assert torch.equal(targets.flatten()[known], whole[1:][known])
    document = np.searchsorted(np.cumsum(LENGTHS), np.arange(4 * 512), side="right").reshape(4, 512)
    for row in range(4):
        for a, b in ((0, 0), (3, 4), (4, 5), (10, 2), (500, 499), (511, 0)):
            assert bool(mask[row, 0, a, b]) == (b <= a and document[row, a] == document[row, b])
    assert (positions[:, 0] == 0).all()
    assert positions.max() < 512


def test_a_batch_depends_on_its_number_alone(corpus: ModuleType) -> None:
    for one, two in zip(corpus.batch(3, rows=2), corpus.batch(3, rows=2), strict=True):
        assert torch.equal(one, two)


def test_the_sampled_loss_estimates_the_full_one(recipe: ModuleType) -> None:
    torch.manual_seed(0)
    model = GPT2(GPT2Config(n_layer=1, n_head=2, n_embd=16, n_ctx=32, vocab_size=50257)).init_weights()
    with torch.no_grad():
        model.wte.weight.mul_(40)  # scores that differ, so that a wrong correction would show
    counts = np.arange(50257)[::-1].copy()
    loss = recipe.SampledLoss(counts)
    hidden, targets = torch.randn(2, 64, 16), torch.randint(0, 50257, (2, 64))
    targets[0, :5] = -100
    full = F.cross_entropy(model.logits(hidden).flatten(0, 1), targets.flatten())
    estimates = torch.stack([loss(model, hidden, targets, seed) for seed in range(20)])
    assert abs(estimates.mean() - full) < 0.03 * full
    loss(model, hidden, targets, 0).backward()
    touched = model.wte.weight.grad.abs().sum(1) > 0
    assert recipe.FREQUENT < int(touched.sum()) <= recipe.FREQUENT + recipe.SAMPLED


def test_a_closing_run_warms_up_and_falls_to_nothing(recipe: ModuleType) -> None:
    closing = [recipe.rate(0, 1000, closed) for closed in range(1001)]
    assert closing[0] == pytest.approx(recipe.RATE / recipe.WARMUP)
    assert closing[500] == pytest.approx(recipe.RATE / 2) and closing[1000] == 0
    assert max(closing) > 0.85 * recipe.RATE
    assert recipe.rate(10_000, 0, 0) == recipe.RATE
