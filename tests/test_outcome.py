"""A run says what came back and how to go on, the printed command works, and more epochs or steps can be given."""

from __future__ import annotations

import itertools
import json
import re
import shlex
import signal
from pathlib import Path

import pytest
from click.testing import Result
from helpers_cli import contents, invoke, pairs, rows, same_weights, save_tiny, signals_in_step

from gpt2chat import checkpoint
from gpt2chat.recall import Quiz, Recall

FAST = ("--learning_rate", "1e-2", "--dtype", "float32")
CASES = Path(__file__).resolve().parents[2] / "shared" / "cases" / "1-non-english-not-learnt"


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny model, six pairs and a text."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gpt2chat.cli.plan.OWN", 4)  # rows that a model draws before it is taught
    save_tiny(tmp_path / "tiny.pt")
    (tmp_path / "pairs.json").write_text(pairs(6), "utf-8")
    (tmp_path / "text.txt").write_text("one two three four " * 200, "utf-8")
    return tmp_path


@pytest.fixture
def few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Open runs end after 14 steps."""
    monkeypatch.setattr("gpt2chat.estimate.MOST_STEPS", 14)
    monkeypatch.setattr("gpt2chat.estimate.MOST_PASSES", 1)


def train(*options: object, code: int = 0) -> Result:
    result = invoke("train", "--model", "tiny.pt", "--conversation_file", "pairs.json", *FAST, *options)
    assert result.exit_code == code, result.stderr
    return result


def resume(*options: object, code: int = 0) -> Result:
    result = invoke("train", "--resume", *options)
    assert result.exit_code == code, result.stderr
    return result


def steps_of(path: Path) -> list[int]:
    return [row["step"] for row in rows(path) if "loss" in row]


def error(result: Result) -> str:
    [line] = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    return line


# -- until the answers come back -----------------------------------------------------------------------------------


def test_a_run_without_a_number_of_epochs_ends_when_the_answers_come_back(place: Path) -> None:
    said = train().stderr
    assert "epochs: until the taught answers come back, at most 600 steps" in said
    assert re.search(r"^training until the answers come back, at most 600 steps \(about .*\), on cpu", said, re.M)
    assert re.search(r"^step 1/600 .* at most \d+ s left$", said, re.M)
    assert re.search(r"^6 of 6 taught answers come back$", said, re.M)
    assert "Go on" not in said and "go on with" not in said
    steps = steps_of(place / "trained_model.metrics.jsonl")
    assert len(steps) < 600
    found = [row for row in rows(place / "trained_model.metrics.jsonl") if "recall" in row]
    assert found[-1] == {"step": steps[-1], "recall": 1.0, "recalled": 6, "pairs": 6}
    assert found[0]["recalled"] == 0
    loaded = checkpoint.load(place / "trained_model.pt")
    assert loaded.about["recall"] == {"recall": 1.0, "recalled": 6, "pairs": 6}
    assert [row for row in loaded.history if "recall" in row] == found
    assert json.loads(invoke("inspect", "trained_model.pt", "--json").stdout)["about"]["recall"]["recalled"] == 6
    scores = json.loads(invoke("eval", "trained_model.pt", "--conversation_file", "pairs.json", "--json").stdout)
    assert scores["conversations"]["exact"] == 1.0


def test_one_pair_comes_back(place: Path) -> None:
    (place / "pairs.json").write_text(pairs(1), "utf-8")
    assert re.search(r"^1 of 1 taught answers come back$", train().stderr, re.M)


def test_texts_keep_a_number_of_epochs_and_say_nothing_of_answers(place: Path) -> None:
    result = invoke("train", "--model", "tiny.pt", "--text_file", "text.txt", "--max_length", 64)
    assert result.exit_code == 0
    assert re.search(r"^epochs: \d+, so that there are about \d+ steps", result.stderr, re.M)
    assert "come back" not in result.stderr
    assert (place / "trained_model.last.pt").exists()


@pytest.mark.parametrize(
    ("moment", "stop"),
    [
        ("step", 5),
        ("check", 2),
        *(
            pytest.param(moment, stop, marks=pytest.mark.slow)
            for moment, stop in itertools.product(("step", "check"), (1, 6))
        ),
    ],
)
def test_an_open_run_that_was_interrupted_ends_as_if_it_had_not_been(
    moment: str, stop: int, place: Path, few: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    train("--dropout", 0.1, "--save_path", "whole.pt")
    ask, asked = Quiz.ask, []

    def interrupted(*arguments: object) -> Recall:
        asked.append(1)
        if len(asked) == stop:
            signal.raise_signal(signal.SIGINT)
        return ask(*arguments)  # type: ignore[arg-type]

    if moment == "step":
        with signals_in_step(stop, signal.SIGINT):
            said = train("--dropout", 0.1, code=130).stderr
    else:
        monkeypatch.setattr(Quiz, "ask", interrupted)
        stop = min(stop, 3)  # two checks on the way, one at the end
        said = train("--dropout", 0.1, code=130).stderr
    [command] = re.findall(r"^  gpt2chat train (.+)$", said, re.M)
    assert invoke("train", *shlex.split(command)).exit_code == 0
    assert same_weights(place / "trained_model.pt", place / "whole.pt")
    assert same_weights(place / "trained_model.last.pt", place / "whole.last.pt")
    one, other = (
        [r | {"tokens_per_second": 0} for r in rows(place / f"{n}.metrics.jsonl")] for n in ("trained_model", "whole")
    )
    assert one == other


# -- what did not come back ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["bot.pt", "it's $HOME.pt"])
@pytest.mark.parametrize("length", [(), ("--epochs", 14), ("--steps", 14)], ids=["open", "epochs", "steps"])
def test_the_printed_command_goes_on(name: str, length: tuple[object, ...], place: Path, few: None) -> None:
    said = train("--save_path", name, *length).stderr
    found = re.search(r"^0 of 6 taught answers come back, loss [\d.]+: go on with `gpt2chat (.+)`$", said, re.M)
    assert found, said
    command = shlex.split(found[1])
    assert command[-2:] == ["--steps" if length[:1] == ("--steps",) else "--epochs", "28"]
    assert (place / name.replace(".pt", ".last.pt")).exists()
    said = invoke(*command).stderr
    assert steps_of(place / name.replace(".pt", ".metrics.jsonl")) == list(range(1, 29))
    assert re.search(r"^\d of 6 taught answers come back", said, re.M)


def test_a_number_of_epochs_is_obeyed_and_reported_in_the_same_way(place: Path) -> None:
    said = train("--epochs", 9).stderr
    assert steps_of(place / "trained_model.metrics.jsonl") == list(range(1, 10))
    rates = [row["learning_rate"] for row in rows(place / "trained_model.metrics.jsonl") if "loss" in row]
    assert rates == sorted(rates, reverse=True)
    assert re.search(r"^\d of 6 taught answers come back, loss .*--epochs 18`$", said, re.M)


def test_the_count_is_that_of_the_weights_which_validation_chose(place: Path) -> None:
    options = ("--val_fraction", 0.34, "--epochs", 30, "--eval_every", 1, "--learning_rate", 0.1)
    said = train(*options).stderr
    kept = checkpoint.load(place / "trained_model.pt").about
    assert kept["step"] < 30
    assert f"{kept['recall']['recalled']} of 4 taught answers come back" in said
    assert "validation kept the weights of an earlier step" in said


# -- the state to go on from ---------------------------------------------------------------------------------------


def test_a_large_state_is_kept_only_where_there_is_more_to_learn_or_on_request(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt2chat.run.SMALL_STATE", 0.0)
    (place / "pairs.json").write_text(pairs(2), "utf-8")
    last = place / "trained_model.last.pt"
    assert "was not kept" not in train("--epochs", 1).stderr
    assert last.exists()
    said = train().stderr
    assert re.search(
        r"^trained_model\.last\.pt \(20 MB, to go on from\) was not kept: --keep_state keeps it$", said, re.M
    )
    assert not last.exists() and "beside it: trained_model.metrics.jsonl" in said
    line = error(resume(code=1))
    assert "only with --keep_state" in line and "--model trained_model.pt" in line
    assert "was not kept" not in train("--keep_state").stderr
    assert last.exists()


def test_a_state_that_was_asked_for_stays_when_the_run_goes_on(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2chat.run.SMALL_STATE", 0.0)
    (place / "pairs.json").write_text(pairs(2), "utf-8")
    train("--keep_state", "--steps", 1)
    for steps in (40, 41):
        resume("trained_model.last.pt", "--steps", steps)
    assert (place / "trained_model.last.pt").exists()


# -- more epochs or steps ------------------------------------------------------------------------------------------


def test_a_finished_run_takes_more_and_without_says_what_to_pass(place: Path) -> None:
    train("--epochs", 3)
    before = contents(place)
    said = resume().stderr
    assert "trained_model.last.pt is at its last step, 3: nothing is left to train" in said
    assert "`gpt2chat train --resume trained_model.last.pt --epochs 6`" in said
    assert contents(place) == before
    resume("trained_model.last.pt", "--epochs", 5)
    assert steps_of(place / "trained_model.metrics.jsonl") == [1, 2, 3, 4, 5]
    rates = [row["learning_rate"] for row in rows(place / "trained_model.metrics.jsonl") if "loss" in row]
    assert rates[3] == max(rates)  # a schedule of its own
    resume("trained_model.last.pt", "--steps", 6)
    assert steps_of(place / "trained_model.metrics.jsonl") == [1, 2, 3, 4, 5, 6]


def test_a_run_that_was_given_more_resumes_to_the_bit(place: Path) -> None:
    for name in ("whole", "cut"):
        train("--epochs", 4, "--dropout", 0.1, "--save_path", f"{name}.pt")
    resume("whole.last.pt", "--steps", 12)
    with signals_in_step(3, signal.SIGINT):
        resume("cut.last.pt", "--steps", 12, code=130)
    resume("cut.last.pt")
    assert same_weights(place / "whole.last.pt", place / "cut.last.pt")
    assert steps_of(place / "cut.metrics.jsonl") == list(range(1, 13))


def test_an_interrupted_run_takes_another_length(place: Path) -> None:
    with signals_in_step(2, signal.SIGINT):
        train("--epochs", 4, code=130)
    resume("--epochs", 6)
    train("--epochs", 6, "--save_path", "whole.pt")
    assert steps_of(place / "trained_model.metrics.jsonl") == [1, 2, 3, 4, 5, 6]
    assert not same_weights(place / "trained_model.pt", place / "tiny.pt")


@pytest.mark.parametrize(
    ("options", "code", "words"),
    [
        (("--epochs", 3), 2, "epochs: the run has taken 3 epochs already: pass more than 3, all together"),
        (("--epochs", 2), 2, "epochs: the run has taken 3 epochs already: pass more than 3"),
        (("--steps", 2), 2, "steps: the run has taken 3 steps already: pass more than 3"),
        (("--steps", 0), 2, "steps: expected a whole number from 1 to 10,000,000, got 0"),
        (("--steps", 9, "--epochs", 9), 2, "steps: --epochs says how long the run goes on already"),
        (("--batch_size", 2), 2, "batch_size: the first run left it open, got 2: leave it out, or train afresh"),
        (("--seed", 2), 2, "seed: the run that is resumed was given 0, got 2: leave it out, or train afresh"),
    ],
)
def test_what_contradicts_the_first_run_is_one_line(
    options: tuple[object, ...], code: int, words: str, place: Path
) -> None:
    train("--steps", 3)
    before = contents(place)
    assert words in error(resume("trained_model.last.pt", *options, code=code))
    assert contents(place) == before


def test_steps_and_epochs_exclude_each_other(place: Path) -> None:
    assert "pass one of the two" in error(train("--steps", 3, "--epochs", 2, code=2))
    train("--steps", 5)
    assert steps_of(place / "trained_model.metrics.jsonl") == [1, 2, 3, 4, 5]


@pytest.mark.slow
@pytest.mark.skipif(not CASES.exists(), reason="the small files in other scripts are not beside the checkout")
def test_eight_russian_pairs_come_back(place: Path) -> None:
    data = CASES / "ru.json"
    result = invoke("train", "--model", "demo", "--conversation_file", data, "--save_path", "ru.pt")
    assert re.search(r"^8 of 8 taught answers come back$", result.stderr, re.M), result.stderr
    for form in ("none", "int8"):
        scores = invoke("eval", "ru.pt", "--conversation_file", data, "--quantize", form, "--json")
        assert json.loads(scores.stdout)["conversations"]["exact"] == 1.0


# -- with something held out ---------------------------------------------------------------------------------------


def test_what_is_held_out_unasked_does_not_keep_an_open_run_from_teaching(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt2chat.cli.plan.LARGE", 6)
    said = train().stderr
    assert "5 conversations of" in said and "1 held out to validate" in said
    assert re.search(r"^5 of 5 taught answers come back$", said, re.M), said
    assert same_weights(place / "trained_model.pt", place / "trained_model.last.pt")
    assert any("validation_loss" in row for row in rows(place / "trained_model.metrics.jsonl"))


def test_validation_that_was_asked_for_ends_an_open_run_when_it_turns(place: Path) -> None:
    said = train("--val_fraction", 0.34, "--learning_rate", 0.1).stderr
    assert "stopped early: 3 validations in a row brought no progress" in said
    losses = [row["validation_loss"] for row in rows(place / "trained_model.metrics.jsonl") if "validation_loss" in row]
    assert min(losses[-3:]) >= min(losses)
    kept = checkpoint.load(place / "trained_model.pt").about
    assert round(kept["validation_loss"], 5) == min(losses)
    assert f"{kept['recall']['recalled']} of 4 taught answers come back" in said
