"""Checkpoints are found by source, tag and step, newest first; tagged runs keep their steps and can rehearse."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from helpers_cli import contents, invoke, same_weights, save_tiny, signals_in_step

from gpt2chat import checkpoint, shelf
from gpt2chat.checkpoint import Checkpoint
from gpt2chat.errors import CheckpointError, ConfigError
from gpt2chat.shelf import entries, find, keep_step, last_of, step_file, tag_of, tagged

Place = Callable[..., Path]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.delenv("GPT2CHAT_RUNS", raising=False)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    return checkpoint.load(save_tiny(tmp_path_factory.mktemp("tiny") / "tiny.pt"))


@pytest.fixture
def place(tiny: Checkpoint) -> Place:
    """Writes a checkpoint that says so of itself; each one is a second younger than the one before."""
    count = 0

    def write(path: Path | str, **about: Any) -> Path:
        nonlocal count
        count += 1
        tiny.about = {"base": "tiny", **about}
        Path(path).parent.mkdir(parents=True, exist_ok=True)
        checkpoint.save(tiny, path)
        os.utime(path, (1e9 + count, 1e9 + count))
        return Path(path)

    return write


def spoil(path: Path) -> None:
    """Cut a file short."""
    modified = path.stat().st_mtime
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    os.utime(path, (modified, modified))


def found(*arguments: Any, **named: Any) -> Path | None:
    entry = find(*arguments, **named)
    return entry and entry.path


# -- what there is -------------------------------------------------------------------------------------------------


def test_nothing_here_is_no_fault_unless_something_is_asked_for() -> None:
    assert entries() == []
    assert find() is None
    for asked, named in (({"tag": "bot"}, "tag bot"), ({"source": "sft", "step": 3}, "source sft, step 3")):
        with pytest.raises(CheckpointError, match=f"no checkpoint of {named}: there are none in .* nor in runs"):
            find(**asked)
    with pytest.raises(CheckpointError, match="no run bot to resume: there are none"):
        last_of("bot")
    result = invoke("ls")
    assert (result.exit_code, result.stdout) == (0, "") and "no checkpoint here yet" in result.stderr


def test_the_newest_comes_first_and_is_taken(place: Place) -> None:
    old, run, new = place("old.pt"), place("runs/sft/bot/model.pt", step=6), place("new.pt", source="mid")
    place("bot.last.pt")
    Path("other.pt").write_bytes(b"not ours")
    Path("folder.pt").mkdir()
    assert [entry.path for entry in entries()] == [new, run, old]
    assert [(e.source, e.tag, e.step) for e in entries()] == [
        ("mid", "new", None),
        ("sft", "bot", 6),
        ("mid", "old", None),
    ]
    assert all(entry.for_use and entry.size == entry.path.stat().st_size for entry in entries())
    assert found() == new
    os.utime(old)
    assert found() == old
    assert found("sft") == run
    assert found(source="mid", tag="new") == new


def test_a_source_that_is_not_stored_is_seen_from_what_was_taught(place: Place, tiny: Checkpoint) -> None:
    place("text.pt")
    tiny.trained_length = 64
    try:
        place("talk.pt")
        place("odd.pt", source=["sft"], step="six", validation_loss="low")
    finally:
        tiny.trained_length = None
    assert [(e.tag, e.source, e.step, e.validation_loss) for e in entries()] == [
        ("odd", "sft", None, None),
        ("talk", "sft", None, None),
        ("text", "mid", None, None),
    ]
    assert invoke("ls").exit_code == 0


def test_of_a_run_the_best_is_for_use_and_steps_are_asked_for(place: Place) -> None:
    first = place("runs/sft/bot/model_000010.pt", step=10)
    best = place("runs/sft/bot/model.pt", step=20, validation_loss=1.5)
    keep_step(best)
    last = place("runs/sft/bot/model_000030.pt", step=30)
    shown = {entry.path.name: (entry.step, entry.for_use) for entry in entries()}
    assert shown == {"model_000030.pt": (30, False), "model.pt": (20, True), "model_000010.pt": (10, False)}
    assert found() == found(tag="bot") == found("sft", "bot") == best
    assert found(tag="bot", step=20) == step_file(best, 20)
    assert (found(step=10), found(tag="bot", step=30)) == (first, last)


def test_a_run_here_is_one_run_too(place: Place) -> None:
    best = place("bot.pt", step=10)
    step, copy = place("bot_000020.pt", step=20), place("bot_20240101.pt", step=7)
    assert {entry.path: (entry.tag, entry.for_use) for entry in entries()} == {
        best: ("bot", True),
        step: ("bot", False),
        copy: ("bot_20240101", True),
    }
    assert (found(tag="bot"), found(tag="bot", step=20), found()) == (best, step, copy)
    best.unlink()
    assert found(tag="bot") == step


def test_a_file_named_as_runs_name_theirs_hides_no_other(place: Place) -> None:
    place("model.pt", step=3)
    new = place("new.pt", step=4)
    assert found() == found(step=4) == new


def test_what_is_missing_names_what_there_is(place: Place) -> None:
    place("runs/sft/bot/model.pt", step=10)
    place("runs/sft/bot/model_000005.pt", step=5)
    place("runs/mid/book/model.pt", step=7)
    said = r"there are (sft/bot \(step 5, 10\)|mid/book \(step 7\)); .*: gpt2chat ls shows all"
    for asked in ({"tag": "cat"}, {"source": "rl"}, {"tag": "bot", "step": 6}, {"source": "mid", "tag": "bot"}):
        with pytest.raises(CheckpointError, match=said) as caught:
            find(**asked)
        assert "\n" not in str(caught.value)
    with pytest.raises(CheckpointError, match=r"no run cat to resume: there are .*sft/bot"):
        last_of("cat")
    result = invoke("chat", "-g", "cat", stdin="")
    assert result.exit_code == 1 and "sft/bot" in result.stderr


def test_a_damaged_file_is_listed_with_its_fault_and_never_chosen(place: Place) -> None:
    good, bad = place("good.pt"), place("bad.pt")
    best, step = place("runs/sft/bot/model.pt", step=6), place("runs/sft/bot/model_000004.pt", step=4)
    for path in (bad, best):
        spoil(path)
    faults = {entry.path: entry.fault for entry in entries()}
    assert set(faults) == {good, bad, best, step}
    assert all("cut short" in str(faults[path]) for path in (bad, best)) and faults[good] is faults[step] is None
    assert (found(tag="good"), found(tag="bot"), found(tag="bot", step=4)) == (good, step, step)
    with pytest.raises(CheckpointError, match="no checkpoint of tag bad"):
        find(tag="bad")
    shown = invoke("ls")
    assert shown.exit_code == 0
    assert sum("cut short" in line for line in shown.stdout.splitlines()) == 2
    spoil(step), spoil(good)
    with pytest.raises(CheckpointError, match="cut short"):
        find()


def test_runs_can_lie_elsewhere(place: Place, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place("runs/sft/here/model.pt", step=1)
    monkeypatch.setenv("GPT2CHAT_RUNS", str(folder / "else where"))
    assert entries() == []
    there = place(tagged("sft", "bot"), step=2)
    assert there == folder / "else where/sft/bot/model.pt"
    assert [entry.path for entry in entries()] == [there] and tag_of(there) == "bot"
    monkeypatch.setenv("GPT2CHAT_RUNS", "")
    assert [entry.tag for entry in entries()] == ["here"]


@pytest.mark.parametrize("tag", ["", "a/b", "..", ".hidden", "-x", "a b", "ü", "a\n"])
def test_a_tag_that_is_no_folder_is_refused(tag: str) -> None:
    with pytest.raises(ConfigError, match="model_tag: expected letters"):
        tagged("sft", tag)


def test_whose_tag_a_file_has() -> None:
    assert tag_of(tagged("sft", "bot-2.1")) == "bot-2.1"
    for path in ("model.pt", "runs/model.pt", "runs/sft/model.pt", "other/sft/bot/model.pt", "runs/sft/bot/a/model.pt"):
        assert tag_of(Path(path)) is None


def test_a_step_is_one_file_with_the_best(place: Place) -> None:
    best = place(tagged("sft", "bot"), step=20)
    for _ in range(2):
        keep_step(best)
        assert sorted(path.name for path in best.parent.iterdir()) == ["model.pt", "model_000020.pt"]
        assert os.path.samefile(best, step_file(best, 20))
    place(best, step=30)
    keep_step(best)
    assert checkpoint.load(step_file(best, 20)).about["step"] == 20
    assert os.path.samefile(best, step_file(best, 30))
    other = place("model.pt", step=5)  # of a run without a tag
    keep_step(other)
    assert not step_file(other, 5).exists()


def test_the_table_and_its_json(place: Place) -> None:
    place("runs/mid/book/model.pt", step=7)
    best = place("runs/sft/bot/model.pt", step=20, validation_loss=1.23456)
    keep_step(best)
    place("runs/sft/bot/model_000010.pt", step=10)
    rows = [json.loads(line) for line in invoke("ls", "--json").stdout.splitlines()]
    assert [row["path"] for row in rows] == [str(entry.path) for entry in entries()]
    assert {"source": "sft", "tag": "bot", "step": 20, "for_use": True, "fault": None}.items() <= rows[1].items()
    assert rows[1]["validation_loss"] == 1.23456 and rows[1]["size"] == best.stat().st_size
    head, *lines = invoke("ls").stdout.splitlines()
    assert head.split() == ["source", "tag", "step", "size", "date", "val", "loss", "file"]
    assert [line.split()[2] for line in lines] == ["10", "20*", "7*"]
    assert "1.235" in lines[1]
    for options, tags in ((("-i", "mid"), ["book"]), (("-g", "bot"), ["bot", "bot"]), (("-g", "cat"), [])):
        shown = [json.loads(line)["tag"] for line in invoke("ls", "--json", *options).stdout.splitlines()]
        assert shown == tags


# -- tagged runs ---------------------------------------------------------------------------------------------------


@pytest.fixture
def base(folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model, outside of the folder."""
    return save_tiny(tmp_path_factory.mktemp("base") / "tiny.pt")


def write_pairs(name: str, first: int, count: int, answer: str = "It is") -> Path:
    pairs = [{"user": f"What is number {n}?", "bot": f"{answer} {n * 7}."} for n in range(first, first + count)]
    Path(name).write_text(json.dumps(pairs), "utf-8")
    return Path(name)


def run(model: Path, data: Path, *options: object, code: int = 0, kind: str = "conversation") -> str:
    result = invoke("train", "--model", model, f"--{kind}_file", data, "--batch_size", 2, *options)
    assert result.exit_code == code, result.stderr
    return result.stderr


def test_a_tagged_run_keeps_its_steps_and_is_found(base: Path) -> None:
    said = run(base, write_pairs("a.json", 0, 30), "-g", "bot", "--epochs", 3, "--save_every", 2)
    best = tagged("sft", "bot")
    steps = shelf.steps_of(best)
    assert str(best) in said and "an earlier run" not in said
    last = checkpoint.load(best).about["step"]
    assert [int(path.stem[-6:]) for path in steps] == sorted({*range(2, last + 1, 2), last})
    assert [checkpoint.load(path).about["step"] for path in steps] == [int(path.stem[-6:]) for path in steps]
    assert os.path.samefile(best, step_file(best, last))
    assert not same_weights(steps[0], best)
    assert found() == best and found(tag="bot", step=2) == steps[0]
    assert entries()[0].source == "sft"
    assert list(Path().glob("*.pt")) == []
    answered = invoke("chat", "-g", "bot", "-s", 2, stdin="Hello\n")
    assert answered.exit_code == 0 and "model_000002.pt" in answered.stderr


def test_the_same_tag_again_replaces_the_run_with_a_note(base: Path) -> None:
    data = write_pairs("a.json", 0, 30)
    run(base, data, "-g", "bot", "--epochs", 3, "--save_every", 2)
    best = tagged("sft", "bot")
    before = contents(best.parent)
    said = run(base, data, "-g", "bot", "--epochs", 1, "--seed", 5)
    assert "model.pt and model.last.pt and" in said and "of an earlier run will be replaced" in said
    after = contents(best.parent)
    assert {name for name in after if name.endswith(".pt")} == {
        "model.pt",
        "model.last.pt",
        step_file(best, checkpoint.load(best).about["step"]).name,
    }
    assert before["model.pt"] != after["model.pt"]


def test_a_tag_and_a_path_are_one_too_many(base: Path, folder: Path) -> None:
    data = write_pairs("a.json", 0, 4)
    before = contents(folder)
    for options, said in (
        (("-g", "bot", "--save_path", "x.pt"), "save_path: --model_tag chooses the place of a run"),
        (("-g", "../bot"), "model_tag: expected letters"),
        (("-g", "bot", "--save_every", -1), "save_every: expected a whole number of 0 or more"),
    ):
        assert said in run(base, data, *options, code=2)
    assert contents(folder) == before


def test_text_and_conversations_go_to_their_own_folders(base: Path) -> None:
    Path("a.txt").write_text("The mill by the river ground rye in autumn. " * 40, "utf-8")
    run(base, Path("a.txt"), "-g", "bot", "--epochs", 1, kind="text")
    run(base, write_pairs("a.json", 0, 4), "-g", "bot", "--epochs", 1)
    assert sorted(entry.source for entry in entries()) == ["mid", "sft"]
    assert found("mid", "bot") == tagged("mid", "bot")
    assert last_of("bot") == tagged("sft", "bot").with_name("model.last.pt")


def interrupt(model: Path, data: Path, *options: object) -> None:
    """Train and press Ctrl-C in the third step."""
    with signals_in_step(3, signal.SIGINT):
        assert "Go on with" in run(model, data, *options, code=130)


def test_a_tagged_run_resumes_to_the_bit(base: Path) -> None:
    data, options = write_pairs("a.json", 0, 40), ("--epochs", 4, "--save_every", 2, "--val_fraction", 0.2)
    run(base, data, "-g", "whole", *options)
    interrupt(base, data, "-g", "cut", *options)
    assert last_of("cut") == tagged("sft", "cut").with_name("model.last.pt")
    resumed = invoke("train", "--resume", "-g", "cut")
    assert resumed.exit_code == 0, resumed.stderr
    whole, cut = tagged("sft", "whole"), tagged("sft", "cut")
    assert [path.name for path in shelf.steps_of(whole)] == [path.name for path in shelf.steps_of(cut)] != []
    for one, other in zip(shelf.steps_of(whole), shelf.steps_of(cut), strict=True):
        assert same_weights(one, other)
    assert same_weights(whole, cut)
    refused = invoke("train", "--resume", "-g", "nobody")
    assert refused.exit_code == 1 and "no run nobody to resume" in refused.stderr


# -- rehearsing ----------------------------------------------------------------------------------------------------


@pytest.fixture
def taught(base: Path) -> Path:
    """A model that was taught the numbers from 0 to 11."""
    run(base, write_pairs("first.json", 0, 12), "--save_path", "first.pt", "--epochs", 1)
    return Path("first.pt")


def learnt(path: Path) -> dict[str, str]:
    return dict(checkpoint.load(path).taught)


def test_what_was_taught_is_learnt_again_and_new_answers_win(taught: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[str] = []
    from gpt2chat.cli import plan

    real = plan.render_records

    def spy(records: Any, *arguments: Any) -> Any:
        seen.extend(m.content for record in records if not isinstance(record.content, str) for m in record.content)
        return real(records, *arguments)

    monkeypatch.setattr(plan, "render_records", spy)
    said = run(taught, write_pairs("b.json", 10, 4, "Now"), "--rehearse", "-g", "bot", "--epochs", 1)
    assert "rehearsed: 10 pairs that the model was taught before" in said
    assert "14 conversations" in said
    pairs = dict(zip(seen[::2], seen[1::2], strict=True))
    assert len(seen) == 28
    assert pairs == {f"What is number {n}?": f"{'Now' if n > 9 else 'It is'} {n * 7}." for n in range(14)}
    assert learnt(tagged("sft", "bot")) == pairs
    assert "rehearsed" in checkpoint.load(tagged("sft", "bot")).about["data_sha256"]


def test_beside_text_the_pairs_are_rehearsed_too(taught: Path) -> None:
    Path("a.txt").write_text("The mill by the river ground rye in autumn. " * 40, "utf-8")
    said = run(taught, Path("a.txt"), "--rehearse", "-g", "bot", "--epochs", 1, kind="text")
    assert "12 conversations" in said
    assert [entry.source for entry in entries() if entry.tag == "bot"] == ["sft"]
    assert learnt(tagged("sft", "bot")) == learnt(taught)


def test_without_taught_pairs_there_is_nothing_to_rehearse(base: Path, folder: Path) -> None:
    data = write_pairs("a.json", 0, 4)
    before = contents(folder)
    assert "rehearse: the model keeps no pairs" in run(base, data, "--rehearse", code=2)
    assert contents(folder) == before


@pytest.mark.parametrize(
    "options",
    [(), ("--val_fraction", 0.3), ("--max_length", 64, "--too_long", "skip")],
    ids=["plain", "held out", "left out"],
)
@pytest.mark.parametrize("room", [2_000_000, 500], ids=["all kept", "some kept"])
def test_a_run_that_rehearses_resumes_to_the_bit(
    base: Path, monkeypatch: pytest.MonkeyPatch, options: tuple[object, ...], room: int
) -> None:
    first = json.loads(write_pairs("first.json", 0, 14).read_text("utf-8"))
    first.insert(5, {"user": "What is long?", "bot": "word " * 70})
    Path("first.json").write_text(json.dumps(first), "utf-8")
    run(base, Path("first.json"), "--save_path", "first.pt", "--epochs", 1)
    monkeypatch.setattr("gpt2chat.cli.inputs.MOST_BYTES", room)
    data = write_pairs("b.json", 10, 8, "Now")
    options = ("--rehearse", "--epochs", 3, *options)
    run(Path("first.pt"), data, "-g", "whole", *options)
    interrupt(Path("first.pt"), data, "-g", "cut", *options)
    resumed = invoke("train", "--resume", last_of("cut"))
    assert resumed.exit_code == 0, resumed.stderr
    whole, cut = tagged("sft", "whole"), tagged("sft", "cut")
    assert same_weights(whole, cut)
    assert same_weights(whole.with_name("model.last.pt"), cut.with_name("model.last.pt"))
    assert checkpoint.load(whole).taught == checkpoint.load(cut).taught != []


def test_a_state_to_resume_from_can_be_a_base_that_is_rehearsed(taught: Path) -> None:
    run(taught, write_pairs("b.json", 10, 4, "Now"), "--rehearse", "--save_path", "second.pt", "--epochs", 1)
    run(Path("second.last.pt"), write_pairs("c.json", 20, 2), "--rehearse", "--save_path", "third.pt", "--epochs", 1)
    assert len(learnt(Path("third.pt"))) == 16
    assert learnt(Path("second.pt")).items() <= learnt(Path("third.pt")).items()
