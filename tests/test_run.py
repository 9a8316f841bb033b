"""What a training run leaves on the disk: the best weights, the state to go on from, and an honest record."""

from __future__ import annotations

import errno
import json
import math
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
import torch
from helpers_cli import weights_of

from gpt2chat import checkpoint
from gpt2chat.chatbot import GPT2Chatbot
from gpt2chat.checkpoint import Checkpoint
from gpt2chat.conversation import TEMPLATES, Example, Message, render
from gpt2chat.data import Dataset
from gpt2chat.errors import CheckpointError, ConfigError, ContextError, DataError, DiskFullError
from gpt2chat.model import GPT2, GPT2Config
from gpt2chat.run import HISTORY_ROWS, Run, RunFiles, check_replaceable, check_room, check_writable, hash_file
from gpt2chat.tokenizer import Tokenizer
from gpt2chat.training import Step, TrainConfig, make_optimizer, mean_loss, train

CHAT = TEMPLATES["chat"]
CONFIG = TrainConfig(epochs=60, learning_rate=1e-2, row_tokens=64)
MakeRun = Callable[..., Run]


def step(number: int, loss: float = 2.0, norm: float = 1.0) -> Step:
    skipped = not (math.isfinite(loss) and math.isfinite(norm))
    return Step(number, 100, loss, 1e-3, norm, tokens=50, targets=30, seconds=0.1, skipped=skipped)


def refuse_constant(name: str) -> None:
    raise AssertionError(f"{name} is not JSON")


def rows(path: Path) -> list[dict[str, Any]]:
    lines = path.read_text("utf-8").splitlines()
    return [json.loads(line, parse_constant=refuse_constant) for line in lines]


def pair(tokenizer: Tokenizer, user: str, bot: str) -> Example:
    return render([Message("user", user), Message("assistant", bot)], CHAT, tokenizer)


@pytest.fixture
def files(tmp_path: Path) -> RunFiles:
    return RunFiles(tmp_path / "bot.pt")


@pytest.fixture
def validation(tokenizer: Tokenizer) -> list[Example]:
    return [pair(tokenizer, "Hello", "Hi there"), pair(tokenizer, "Bye", "See you")]


@pytest.fixture
def make_run(tiny_config: GPT2Config, files: RunFiles) -> MakeRun:
    """A run on fresh weights; equal calls give equal runs."""

    def make(**options: Any) -> Run:
        model = GPT2(tiny_config).init_weights(0).eval()
        base = Checkpoint(tiny_config, {}, CHAT, about={"base": "tiny"})
        optimizer = make_optimizer(model, CONFIG)
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        rates = [group["lr"] for group in optimizer.param_groups]
        for group in optimizer.param_groups:
            group["lr"] = 0.0
        optimizer.step()  # moves nothing, but from now on there are moments to store
        for group, rate in zip(optimizer.param_groups, rates, strict=True):
            group["lr"] = rate
        optimizer.zero_grad()
        return Run(model, optimizer, base, files, row_tokens=64, **options)

    return make


def shake(run: Run, size: float) -> None:
    """Stand in for steps that made the model worse."""
    with torch.no_grad():
        generator = torch.Generator().manual_seed(0)
        for parameter in run.model.parameters():
            parameter += size * torch.randn(parameter.shape, generator=generator)


def resumed(run: Run) -> Run:
    loaded = checkpoint.load(run.files.last)
    assert loaded.training is not None
    run.restore(loaded.training, loaded.history)
    return run


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(one[name], other[name]) for name in one)


# -- best and last -------------------------------------------------------------------------------------------------


def test_the_best_by_validation_is_kept_while_the_last_moves_on(make_run: MakeRun, validation: list[Example]) -> None:
    run = make_run(validation=validation)
    run.begin()
    run.record(step(1))
    first = run.evaluate()
    good = weights_of(run.model)
    assert first.improved
    assert first.validation_loss == run.best == mean_loss(run.model, validation, 64, run.tokenizer.end_id)

    shake(run, 0.5)
    run.record(step(2))
    second = run.evaluate()
    assert not second.improved
    assert second.validation_loss is not None and second.validation_loss > first.validation_loss
    run.finish()

    best, last = checkpoint.load(run.files.best), checkpoint.load(run.files.last)
    assert same(best.weights, good)
    assert (best.about["step"], best.about["validation_loss"]) == (1, first.validation_loss)
    assert same(last.weights, weights_of(run.model))
    assert not same(last.weights, good)
    assert best.training is None
    assert last.training is not None and last.training["step"] == 2
    assert best.about["base"] == last.about["base"] == "tiny"


def test_without_validation_the_file_holds_the_last_weights(make_run: MakeRun) -> None:
    run = make_run()
    run.begin()
    run.record(step(1))
    shake(run, 0.1)
    run.finish()
    best = checkpoint.load(run.files.best)
    assert same(best.weights, weights_of(run.model))
    assert best.training is None
    assert "validation_loss" not in best.about


def test_a_run_stops_early_after_as_many_validations_without_progress_as_asked(
    make_run: MakeRun, validation: list[Example]
) -> None:
    for patience in (2, 0):
        run = make_run(validation=validation, patience=patience)
        run.begin()
        good = weights_of(run.model)
        shake(run, 0.5)
        assert run.evaluate().improved
        shake(run, 0.5)
        finished = [run.finished_early]
        for weights in (None, None, good):  # worse, no better, better
            if weights is not None:
                run.model.load_state_dict(weights)
            assert run.evaluate().improved == (weights is not None)
            finished.append(run.finished_early)
        assert finished == [False, False, patience == 2, False]


def test_a_validation_loss_that_is_not_finite_is_never_the_best(make_run: MakeRun, validation: list[Example]) -> None:
    run = make_run(validation=validation)
    run.begin()
    good = weights_of(run.model)
    with torch.no_grad():
        run.model.wte.weight.mul_(1e38)
        run.model.ln_f.weight.mul_(1e38)
    assert all(torch.isfinite(tensor).all() for tensor in run.model.state_dict().values())
    bad = run.evaluate()
    assert bad.validation_loss is not None and not math.isfinite(bad.validation_loss)
    assert not bad.improved
    run.model.load_state_dict(good)
    assert run.evaluate().improved
    assert same(checkpoint.load(run.files.best).weights, good)
    assert len(rows(run.files.metrics)) == 2  # all of it JSON


def test_validation_looks_at_no_more_than_its_share(make_run: MakeRun) -> None:
    pairs, texts = [Example([1] * 64, [True] * 64)] * 1000, [Example([2] * 64, [True] * 64)] * 1000
    chosen = make_run(validation=[*pairs, *texts]).validation
    assert len(chosen) == 1024  # 65,536 tokens
    assert 400 < sum(example.ids[0] == 2 for example in chosen) < 624  # of both kinds
    assert make_run(validation=pairs).validation == pairs


# -- going on ------------------------------------------------------------------------------------------------------


def test_a_restored_run_goes_on_where_the_saved_one_was(make_run: MakeRun, validation: list[Example]) -> None:
    run = make_run(validation=validation, patience=9)
    run.begin()
    for number in range(1, 5):
        run.record(step(number))
    run.evaluate()
    shake(run, 0.5)
    run.evaluate()
    run.save_last()
    kept = rows(run.files.metrics)
    for number in (5, 6):  # lost: the state was saved before them
        run.record(step(number))
    run.evaluate()

    again = resumed(make_run(validation=validation, patience=9))
    assert (again.number, again.evaluated, again.best, again.waited) == (4, 4, run.best, 1)
    assert rows(again.files.metrics) == again.history == kept
    for number in (5, 6):
        again.record(step(number))
    assert [row["step"] for row in rows(again.files.metrics) if "loss" in row] == [1, 2, 3, 4, 5, 6]
    assert again.history == rows(again.files.metrics)


def test_an_evaluation_that_is_done_again_after_a_resume_stands_once(
    make_run: MakeRun, validation: list[Example]
) -> None:
    options: dict[str, Any] = {"validation": validation, "probes": ["Hello"]}
    run = make_run(**options)
    run.begin()
    run.record(step(1))
    run.evaluate()
    run.record(step(2))
    run.save_last()
    run.evaluate()  # then the power fails

    again = resumed(make_run(**options))
    assert again.evaluated == 1
    again.evaluate()
    assert [(row["step"], "loss" in row) for row in rows(again.files.metrics)] == [
        (1, True),
        (1, False),
        (2, True),
        (2, False),
    ]
    assert [row["step"] for row in rows(again.files.samples)] == [1, 2]


@pytest.mark.parametrize("cut", [1, 20])
def test_metrics_cut_off_in_the_middle_of_a_line_do_not_stop_a_resume(make_run: MakeRun, cut: int) -> None:
    run = make_run()
    run.begin()
    for number in (1, 2):
        run.record(step(number))
    run.save_last()
    run.record(step(3))
    text = run.files.metrics.read_bytes()
    run.files.metrics.write_bytes(text[:-cut])
    again = resumed(make_run())
    again.record(step(3))
    assert [row["step"] for row in rows(again.files.metrics)] == [1, 2, 3]


def test_missing_metrics_do_not_stop_a_resume(make_run: MakeRun) -> None:
    run = make_run()
    run.begin()
    run.record(step(1))
    run.save_last()
    run.files.metrics.unlink()
    again = resumed(make_run())
    again.record(step(2))
    assert [row["step"] for row in again.history] == [1, 2]
    assert rows(again.files.metrics)[-1]["step"] == 2


@pytest.mark.parametrize("broken", [{}, {"optimizer": {"state": {}, "param_groups": []}}, {"step": "x"}])
def test_a_training_state_that_does_not_fit_is_refused(make_run: MakeRun, broken: dict[str, Any]) -> None:
    run = make_run()
    whole = {"optimizer": run.optimizer.state_dict(), "step": 1, "evaluated": -1, "best": None, "waited": 0}
    with pytest.raises(CheckpointError, match="training state does not fit"):
        run.restore({**whole, **broken} if broken else {}, [])


def test_a_fresh_run_replaces_the_record_of_an_earlier_one(make_run: MakeRun) -> None:
    for _ in range(2):
        run = make_run(probes=["Hello"])
        run.begin()
        run.record(step(1))
        run.evaluate()
    assert len(rows(run.files.metrics)) == len(rows(run.files.samples)) == 1


def test_the_state_to_resume_from_is_written_every_ten_minutes(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("gpt2chat.run.time", Mock(monotonic=lambda: now[0]))
    run, saved = make_run(), list[int | None]()
    for number, now[0] in enumerate([1.0, 599.0, 601.0, 1200.0, 1202.0], 1):
        run.record(step(number))
        training = checkpoint.load(run.files.last).training if run.files.last.exists() else None
        saved.append(training and training["step"])
    assert saved == [None, None, 3, 3, 5]


# -- the record ----------------------------------------------------------------------------------------------------


def test_every_row_of_the_metrics_is_json_also_of_a_skipped_step(make_run: MakeRun, validation: list[Example]) -> None:
    run = make_run(validation=validation)
    run.begin()
    for number, (loss, norm) in enumerate([(2.0, 1.0), (2.0, math.nan), (math.inf, math.inf)], 1):
        run.record(step(number, loss, norm))
    run.evaluate()
    found = rows(run.files.metrics)
    assert [row.get("skipped") for row in found] == [False, True, True, None]
    assert found[0].keys() == {
        "step",
        "loss",
        "learning_rate",
        "gradient_norm",
        "tokens",
        "tokens_per_second",
        "skipped",
    }
    assert found[3].keys() == {"step", "validation_loss"}


def test_a_long_history_is_thinned_in_the_checkpoint_and_whole_in_the_metrics(make_run: MakeRun) -> None:
    run = make_run()
    run.begin()
    for number in range(1, HISTORY_ROWS + 300):
        run.record(step(number))
    steps = [row["step"] for row in run.history]
    assert len(steps) <= HISTORY_ROWS
    assert steps == sorted(set(steps))
    assert (steps[0], steps[-1]) == (1, HISTORY_ROWS + 299)
    assert len(rows(run.files.metrics)) == HISTORY_ROWS + 299


def test_the_answers_to_the_probes_are_written(make_run: MakeRun) -> None:
    run = make_run(probes=["Hello", "明日?"])
    run.begin()
    run.record(step(1))
    found = run.evaluate()
    assert [question for question, _ in found.answers] == ["Hello", "明日?"]
    assert rows(run.files.samples) == [
        {"step": 1, "question": question, "answer": answer} for question, answer in found.answers
    ]
    assert found.answers == run.evaluate().answers  # greedy


def test_a_probe_that_does_not_fit_the_context_is_refused_before_training(make_run: MakeRun) -> None:
    with pytest.raises((ConfigError, ContextError), match="probe"):
        make_run(probes=["Hello", "word " * 200])


def test_the_files_of_a_run_stand_beside_its_checkpoint(tmp_path: Path) -> None:
    files = RunFiles(tmp_path / "my.bot.pt")
    names = [files.last, files.metrics, files.curve, files.samples]
    assert [path.name for path in names] == [
        "my.bot.last.pt",
        "my.bot.metrics.jsonl",
        "my.bot.loss.svg",
        "my.bot.samples.jsonl",
    ]
    assert {path.parent for path in names} == {tmp_path}


# -- the disk ------------------------------------------------------------------------------------------------------


def test_a_place_that_cannot_be_written_is_refused_before_any_work(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="expected a file name for the checkpoint, found a folder"):
        check_replaceable(RunFiles(tmp_path))
    (tmp_path / "file").write_text("here")
    with pytest.raises(CheckpointError, match="cannot be written"):
        check_writable(RunFiles(tmp_path / "file" / "bot.pt"))
    assert (tmp_path / "file").read_text() == "here"


def test_a_writable_place_is_left_as_it_was(tmp_path: Path) -> None:
    (tmp_path / "bot.pt").write_text("old")
    check_writable(RunFiles(tmp_path / "bot.pt"))
    check_writable(RunFiles(tmp_path / "new" / "bot.pt"))
    assert {path.name for path in tmp_path.rglob("*")} == {"bot.pt", "new"}
    assert (tmp_path / "bot.pt").read_text() == "old"


def test_a_file_is_known_by_its_content(tmp_path: Path) -> None:
    (tmp_path / "a").write_bytes(b"abc")
    assert hash_file(tmp_path / "a") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"
    with pytest.raises(DataError, match="cannot be read"):
        hash_file(tmp_path / "missing")


def test_what_a_run_wrote_loads_and_answers(tokenizer: Tokenizer, make_run: MakeRun) -> None:
    taught: Sequence[tuple[str, str]] = [("Hello", "Hi there!"), ("Bye", "See you 👋")]
    examples = [pair(tokenizer, user, bot) for user, bot in taught]
    run = make_run(validation=examples, probes=["Hello"])
    run.begin()
    for taken in train(run.model, Dataset(examples), CONFIG, run.optimizer, tokenizer.end_id):
        run.record(taken)
        if taken.number % 20 == 0:
            run.evaluate()
    run.finish()
    bot = GPT2Chatbot("demo")
    bot.load_model(run.files.best)
    for user, answer in taught:
        bot.reset()
        assert bot.chat(user, temperature=0) == answer
    found = rows(run.files.metrics)
    assert [row["step"] for row in found if "loss" in row] == list(range(1, 61))
    losses = [row["validation_loss"] for row in found if "validation_loss" in row]
    assert losses == sorted(losses, reverse=True)
    assert rows(run.files.samples)[-1] == {"step": 60, "question": "Hello", "answer": "Hi there!"}


# -- a full disk ---------------------------------------------------------------------------------------------------

FULL = Path("/dev/full")  # takes nothing, for want of room
needs_dev_full = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: state.clear(),
        lambda state: state.pop(0),
        lambda state: state[0].pop("exp_avg"),
        lambda state: state[0].update(exp_avg=torch.zeros(3)),
        lambda state: state[0]["exp_avg_sq"].fill_(math.nan),
    ],
    ids=["empty", "one missing", "without moments", "another shape", "NaN"],
)
def test_an_optimizer_state_that_does_not_fit_is_refused(make_run: MakeRun, spoil: Callable[[Any], Any]) -> None:
    run = make_run()
    run.record(step(1))
    run.save_last()
    loaded = checkpoint.load(run.files.last)
    assert loaded.training is not None
    spoil(loaded.training["optimizer"]["state"])
    with pytest.raises(CheckpointError, match=r"bot\.last\.pt: its (training|optimizer) state does not fit"):
        make_run().restore(loaded.training, loaded.history)


@needs_dev_full
def test_a_run_waits_for_room_and_goes_on(make_run: MakeRun) -> None:
    run, asked = make_run(), []
    run.record(step(1))
    written = run.files.metrics.read_bytes()
    run.files.metrics.unlink()
    run.files.metrics.symlink_to(FULL)

    def free_some(error: DiskFullError) -> bool:
        asked.append(str(error))
        if len(asked) == 2:
            run.files.metrics.unlink()
            run.files.metrics.write_bytes(written)
        return True

    run.wait_for_room = free_some
    run.record(step(2))
    assert [row["step"] for row in rows(run.files.metrics)] == [1, 2]
    assert len(asked) == 2
    assert all("bot.metrics.jsonl: cannot be written: No space left" in line for line in asked)


@needs_dev_full
def test_a_full_disk_is_an_error_when_nobody_waits(make_run: MakeRun) -> None:
    run = make_run()
    run.record(step(1))
    run.files.metrics.unlink()
    run.files.metrics.symlink_to(FULL)
    with pytest.raises(DiskFullError, match="No space left"):
        run.record(step(2))


def test_the_best_weights_are_noted_only_when_they_are_on_the_disk(
    make_run: MakeRun, validation: list[Example], monkeypatch: pytest.MonkeyPatch
) -> None:
    run = make_run(validation=validation)
    full = OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    replies = iter([True, True, False])
    run.wait_for_room = lambda error: next(replies)
    monkeypatch.setattr("os.fsync", Mock(side_effect=full))
    with pytest.raises(DiskFullError):
        run.evaluate()
    assert run.best is None
    assert not run.files.best.exists()
    monkeypatch.undo()
    assert run.evaluate().improved
    assert run.files.best.exists()


def test_room_is_counted_before_the_first_step(files: RunFiles, monkeypatch: pytest.MonkeyPatch) -> None:
    """A million parameters: 4 MB of weights, 12 MB of state, and one of them twice while it is replaced."""

    def free(megabytes: float) -> None:
        monkeypatch.setattr("shutil.disk_usage", lambda folder: Mock(free=megabytes * 1e6))

    free(28)
    check_room(files, 1_000_000)
    free(27.9)
    with pytest.raises(DiskFullError, match=r"expected 28\.0 MB free .* found 27\.9 MB"):
        check_room(files, 1_000_000)
    files.best.write_bytes(bytes(4_000_000))
    files.last.write_bytes(bytes(12_000_000))
    free(12)  # an earlier run's files will be replaced one by one
    check_room(files, 1_000_000)
    free(11.9)
    with pytest.raises(DiskFullError):
        check_room(files, 1_000_000)
