"""What a run says beforehand: the parts it counts are those it computes, and a dry run changes nothing."""

from __future__ import annotations

import dataclasses
import json
import re
from array import array
from pathlib import Path

import pytest
import torch
from helpers_cli import invoke
from hypothesis import given
from hypothesis import strategies as st

from gpt2chat.conversation import Example
from gpt2chat.data import Dataset, epoch_batches
from gpt2chat.estimate import largest_part, parameter_count, rough_run, training_memory
from gpt2chat.loss import IGNORE
from gpt2chat.model import GPT2, MODEL_SIZES, GPT2Config
from gpt2chat.training import TrainConfig

SMALL = MODEL_SIZES["gpt2-small (124M)"]
EXAMPLES = st.lists(
    st.tuples(st.integers(2, 60), st.integers(0, 59)).map(
        lambda both: Example(array("H", [7] * both[0]), [i >= both[1] for i in range(both[0])])
    ),
    min_size=1,
    max_size=30,
)


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    pairs = [{"user": f"question {number}", "bot": f"answer {number}"} for number in range(40)]
    (tmp_path / "pairs.json").write_text(json.dumps(pairs))
    (tmp_path / "text.txt").write_text("one two three " * 500)
    return tmp_path


@given(examples=EXAMPLES, batch=st.integers(1, 5), parts=st.integers(1, 5), seed=st.integers(0, 9))
def test_the_largest_part_is_that_of_the_batches_that_are_trained(
    examples: list[Example], batch: int, parts: int, seed: int
) -> None:
    config = TrainConfig(batch_size=batch, accumulate=min(parts, batch), row_tokens=64, seed=seed)
    dataset = Dataset(examples)
    rows = width = targets = 0
    for made in epoch_batches(dataset, 0, 64, batch, seed, 0.0, 50256):
        size = -(-made.input_ids.size(0) // config.accumulate)
        if size * made.input_ids.size(1) > rows * width:
            rows, width = size, made.input_ids.size(1)
        for cut in made.labels.split(size):
            targets = max(targets, int((cut != IGNORE).sum()))
    assert largest_part(dataset, config) == (rows, width, targets)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_formula_grows_with_what_is_computed(dtype: torch.dtype) -> None:
    assert training_memory(SMALL, 1, 256, 128, dtype) >= 16 * parameter_count(SMALL)
    known = [training_memory(SMALL, rows, 1024, 1024 * rows, dtype) for rows in (1, 2, 4, 16)]
    assert known == sorted(known) and known[-1] > 2 * known[0]
    dropped = dataclasses.replace(SMALL, dropout=0.1)
    assert training_memory(dropped, 4, 512, 128, dtype) > training_memory(SMALL, 4, 512, 128, dtype)
    assert training_memory(SMALL, 32, 128, 4096, dtype, parts=4) > training_memory(SMALL, 32, 128, 4096, dtype)


def test_parameters_are_counted_without_building_the_network(tiny_model: GPT2, tiny_config: GPT2Config) -> None:
    assert parameter_count(tiny_config) == sum(parameter.numel() for parameter in tiny_model.parameters())
    assert [round(parameter_count(config) / 1e6) for config in MODEL_SIZES.values()] == [124, 355, 774, 1558]


def test_a_rough_run_takes_the_epochs_that_training_takes() -> None:
    epochs, steps, seconds = rough_run(SMALL, "conversations", 4096)
    assert (epochs, steps) == (26, 130)
    assert rough_run(SMALL, "conversations", 4_096_000)[2] > seconds
    assert rough_run(SMALL, "texts", 100_000_000)[0] == 1


@pytest.mark.parametrize("data", ["--conversation_file pairs.json", "--text_file text.txt --max_length 64"])
def test_a_dry_run_says_what_training_then_does_and_writes_nothing(
    data: str, tiny_checkpoint: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt2chat.estimate.MOST_STEPS", 20)
    monkeypatch.setattr("gpt2chat.estimate.MOST_PASSES", 2)
    options = ["train", "--model", str(tiny_checkpoint), *data.split(), "--save_path", "new/out.pt"]
    before = sorted(place.rglob("*"))
    result = invoke(*options, "--dry_run")
    assert result.exit_code == 0
    assert sorted(place.rglob("*")) == before
    said = result.stdout
    for line in (
        r"^parameters: 1\.\d million$",
        r"^tokens: \d+ in one pass, \d+ of them learnt$",
        r"^disk: \d+ MB for",
        r"^memory: \d+ MB at the peak, by formula$",
        r"^time: (about|until the answers come back, at most) .* \(3 steps took [\d., ]+ s; \d+ tokens per second\)$",
        r"^memory in these steps: \d+ MB at the peak, measured$",
        r"^--accumulate 4: \d+ MB, the same result" if "--text_file" in options else "",
        r"^--batch_size 2: \d+ MB(, \d+ steps)?$",
    ):
        assert re.search(line, said, re.M), (line, said)
    steps = re.search(r"^steps: (until the answers come back, at most )?(\d+) of", said, re.M)
    assert steps and bool(steps[1]) == ("--conversation_file" in options)
    trained = invoke(*options)
    assert trained.exit_code == 0
    assert f"training {steps[1] or ''}{steps[2]} steps" in trained.stderr
    assert (place / "new/out.pt").exists()


def test_a_dry_run_of_an_interrupted_run_counts_what_is_left(tiny_checkpoint: Path, place: Path) -> None:
    options = ["train", "--model", str(tiny_checkpoint), "--conversation_file", "pairs.json", "--save_path", "out.pt"]
    assert invoke(*options, "--epochs", "2").exit_code == 0
    kept = (place / "out.last.pt").read_bytes()
    result = invoke("train", "--resume", "out.last.pt", "--dry_run")
    assert result.exit_code == 0
    assert "nothing is left to train" in result.stdout
    assert (place / "out.last.pt").read_bytes() == kept


def test_a_dry_run_with_a_chat_behind_it_is_refused(place: Path) -> None:
    result = invoke("train", "--model", "demo", "--conversation_file", "pairs.json", "--dry_run", "--interactive")
    assert result.exit_code == 2 and "dry_run:" in result.stderr
    assert invoke("train", "--dry_run").exit_code == 2


@pytest.mark.slow
def test_a_dry_run_of_a_released_size_needs_no_weights(place: Path) -> None:
    result = invoke(
        *("train", "--model", "gpt2-small (124M)", "--text_file", "text.txt", "--max_length", "64"),
        *("--batch_size", "1", "--dry_run"),
    )
    assert result.exit_code == 0
    assert "parameters: 124.4 million" in result.stdout
    assert "random weights" in result.stderr
    formula, measured = (int(found) for found in re.findall(r"^memory.*?: (\d+) MB at", result.stdout, re.M))
    assert formula < 1.5 * measured  # the tests' own memory is in what is measured here
