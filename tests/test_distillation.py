"""What a model said before is noted, costs nothing while it is still said, and holds it while something is taught."""

from __future__ import annotations

import copy
import dataclasses
import json
import random
from pathlib import Path

import pytest
import torch
from helpers_cli import invoke, save_tiny, weights_of

from gpt2chat import checkpoint
from gpt2chat.checkpoint import Checkpoint
from gpt2chat.cli.plan import drawn
from gpt2chat.conversation import Example
from gpt2chat.data import Dataset
from gpt2chat.decoding import choose, runtime_of
from gpt2chat.distillation import LENGTH, LIKELIEST, PLACES, ROWS, Distillation, row_length
from gpt2chat.engine import Engine
from gpt2chat.errors import CheckpointError
from gpt2chat.model import GPT2
from gpt2chat.templates import TEMPLATES
from gpt2chat.training import TrainConfig, make_optimizer, train

DOCUMENTS = [[random.Random(number).randrange(2000) for _ in range(40)] for number in range(700)]


@pytest.fixture
def noted(tiny_model: GPT2) -> Distillation:
    return Distillation.taken(tiny_model, DOCUMENTS, 1.0)


def test_shapes(noted: Distillation) -> None:
    length = noted.ids.size(1)
    assert len(noted.ids) == ROWS and length <= LENGTH
    assert noted.places.shape == (ROWS, min(PLACES, length))
    assert noted.tokens.shape == noted.logprobs.shape == (*noted.places.shape, LIKELIEST)
    assert (noted.logprobs.exp().sum(2) <= 1 + 1e-4).all()


def test_what_is_still_said_costs_nothing_and_anything_else_does(tiny_model: GPT2, noted: Distillation) -> None:
    for step in (0, 1, ROWS + 1):
        assert abs(float(noted.loss(tiny_model, step).detach())) < 1e-5
    other = copy.deepcopy(tiny_model)
    with torch.no_grad():
        other.wte.weight.add_(torch.randn_like(other.wte.weight), alpha=0.5)
    assert float(noted.loss(other, 0).detach()) > 1e-3
    doubled = dataclasses.replace(noted, weight=2.0)
    assert torch.isclose(doubled.loss(other, 0), 2 * noted.loss(other, 0))


def test_too_little_text_is_refused(tiny_model: GPT2) -> None:
    with pytest.raises(ValueError, match="at least"):
        Distillation.taken(tiny_model, [[1, 2, 3]], 1.0)


def test_it_goes_through_plain_data(noted: Distillation) -> None:
    back = Distillation.restored(noted.stored())
    assert back and back.weight == noted.weight
    for name in ("ids", "places", "tokens", "logprobs"):
        assert torch.equal(getattr(back, name), getattr(noted, name))
    assert Distillation.restored(None) is None
    short = {**noted.stored(), "tokens": noted.tokens[:, :1]}
    wrong = (
        {"ids": noted.ids[:1]},
        {"ids": 3},
        {"weight": "x"},
        {"places": noted.places + 10_000},
        {"ids": noted.ids[:0]},
    )
    for damaged in ({}, [], short, *({**noted.stored(), **each} for each in wrong)):
        with pytest.raises(CheckpointError, match="distillation"):
            Distillation.restored(damaged)


def test_a_model_that_is_taught_forgets_less(tiny_model: GPT2, noted: Distillation) -> None:
    lesson = Example([7, 8, 9, 10, 11, 12] * 5, [True] * 30)
    config = TrainConfig(steps=30, learning_rate=1e-2, row_tokens=64)
    drift = {}
    for name, held in (("alone", None), ("held", dataclasses.replace(noted, weight=100.0))):
        model = copy.deepcopy(tiny_model)
        steps = list(train(model, Dataset([lesson]), config, make_optimizer(model, config), 0, distillation=held))
        drift[name] = sum(float(noted.loss(model, row).detach()) for row in range(ROWS)) / ROWS
        assert steps[-1].loss < steps[0].loss / 2
    assert drift["held"] < drift["alone"] / 2


def test_a_run_on_few_pairs_notes_and_resumes_exactly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gpt2chat.cli.plan.OWN", 4)
    tiny = checkpoint.load(save_tiny(tmp_path / "tiny.pt"))
    checkpoint.save(dataclasses.replace(tiny, taught=[("Hello", "Good day.")]), tmp_path / "tiny.pt")
    pairs = [{"user": f"What is {n}?", "bot": f"It is {n}."} for n in range(4)]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    common = ("--conversation_file", "pairs.json", "--lr", "0.01", "--keep_state")
    assert invoke("train", "--model", "tiny.pt", *common, "--save_path", "held.pt").exit_code == 0
    assert (
        invoke("train", "--model", "tiny.pt", *common, "--save_path", "free.pt", "--distillation", "0").exit_code == 0
    )
    held, free = (checkpoint.load(tmp_path / f"{name}.last.pt").training for name in ("held", "free"))
    assert held and free and free["distillation"] is None
    assert isinstance(held["distillation"], dict) and held["distillation"]["weight"] == 2.0
    given_end = invoke("train", "--model", "tiny.pt", *common, "--save_path", "given.pt", "--steps", "2")
    assert given_end.exit_code == 0
    training = checkpoint.load(tmp_path / "given.last.pt").training
    assert training and training["distillation"] is None
    refused = invoke("train", "--model", "tiny.pt", *common, "--distillation", "-1")
    assert refused.exit_code and "distillation: expected 0 to 100, got -1.0" in refused.stderr


def test_a_model_draws_rows_of_its_own_and_they_are_noted_first(
    tiny_model: GPT2, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt2chat.cli.plan.OWN", few := 8)
    loaded = Checkpoint(tiny_model.config, weights_of(tiny_model), TEMPLATES["chat"])
    rows = []
    for _ in range(2):
        with Engine(runtime_of(loaded, choose("cpu", "float32", "none"))) as engine:
            rows.append(drawn(engine, DOCUMENTS))
    assert rows[0] == rows[1] and len(rows[0]) == few
    assert {len(row) for row in rows[0]} == {row_length(tiny_model.config)}
    assert len({tuple(row) for row in rows[0]}) == few
    notes = Distillation.taken(tiny_model, DOCUMENTS, 1.0, rows[0])
    assert notes.ids[:few].tolist() == rows[0] and few < len(notes.ids) <= ROWS
    assert (
        notes.ids[few:].tolist() == Distillation.taken(tiny_model, DOCUMENTS, 1.0).ids[: len(notes.ids) - few].tolist()
    )
