"""Bad input ends in one clear line and a non-zero exit; nothing is lost and nothing half-written stays."""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from gpt2chat.cli import main

PAIR = {"user": "Hello", "bot": "Hello to you."}
EARLIER = b"an earlier checkpoint that must stay as it is"


class Bomb:
    """An object that would run a command when it is unpickled."""

    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.system, ("touch executed",)


def pairs(*rows: object) -> str:
    return json.dumps(rows)


def damaged(path: Path, tiny: Path, change: Callable[[bytearray], object]) -> None:
    data = bytearray(tiny.read_bytes())
    change(data)
    path.write_bytes(data)


def flip(data: bytearray) -> None:
    data[len(data) // 2] ^= 4


def cut(data: bytearray) -> None:
    del data[len(data) // 3 :]


@pytest.fixture
def folder(tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with good and bad files, and a checkpoint of an earlier run."""
    place = tmp_path / "work"
    place.mkdir()
    monkeypatch.chdir(place)
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    files = {
        "good.json": pairs(PAIR, {"user": "Bye", "bot": "See you."}),
        "good.txt": "Once upon a time there was a small model. " * 20,
        "empty.json": "",
        "empty.txt": "",
        "blank.txt": " \n\t\n",
        "not.json": '[{"user": "a", "bot": "b"},\n{"user": oops}]',
        "object.json": json.dumps(PAIR),
        "none.json": "[]",
        "keys.json": pairs(PAIR, {"question": "a", "answer": "b"}),
        "number.json": pairs(PAIR, {"user": "a", "bot": 3}),
        "list.json": pairs(PAIR, ["a", "b"]),
        "twice.json": '[{"user": "a", "user": "b", "bot": "c"}]',
        "deep.json": "[" * 100_000,
        "silent.json": pairs({"user": "a", "bot": "  "}),
        "marker.json": pairs(PAIR, {"user": "a", "bot": "b<|endoftext|>"}),
        "marker.txt": "one\ntwo <|endoftext|> three",
        "long.json": pairs(PAIR, {"user": "Tell me all", "bot": "word " * 300}),
    }
    for name, text in files.items():
        (place / name).write_text(text, "utf-8")
    (place / "latin.json").write_bytes('[{"user": "caf\xe9", "bot": "b"}]'.encode("latin-1"))
    (place / "tiny.pt").write_bytes(tiny_checkpoint.read_bytes())
    (place / "text.pt").write_text("not a checkpoint", "utf-8")
    (place / "nothing.pt").write_bytes(b"")
    (place / "bomb.pt").write_bytes(pickle.dumps({"weights": Bomb()}))
    damaged(place / "flipped.pt", tiny_checkpoint, flip)
    damaged(place / "cut.pt", tiny_checkpoint, cut)
    (place / "folder").mkdir()
    (place / "trained_model.pt").write_bytes(EARLIER)
    return place


TRAIN = ["train", "--model", "tiny.pt", "--epochs", "1"]
GOOD = [*TRAIN, "--conversation_file", "good.json"]

# name -> (arguments, exit code, what the line must say)
CASES: dict[str, tuple[list[str], int, str]] = {
    "missing pairs": ([*TRAIN, "--conversation_file", "absent.json"], 1, "absent.json: no such file"),
    "missing text": ([*TRAIN, "--text_file", "absent.txt"], 1, "absent.txt: no such file"),
    "folder for pairs": ([*TRAIN, "--conversation_file", "folder"], 1, "folder: expected a file, found a folder"),
    "folder for text": ([*TRAIN, "--text_file", "folder"], 1, "folder: expected a file, found a folder"),
    "empty pairs": ([*TRAIN, "--conversation_file", "empty.json"], 1, "found an empty file"),
    "empty text": ([*TRAIN, "--text_file", "empty.txt"], 1, "empty.txt: expected text, found none"),
    "blank text": ([*TRAIN, "--text_file", "blank.txt"], 1, "blank.txt: expected text, found none"),
    "not JSON": ([*TRAIN, "--conversation_file", "not.json"], 1, "not.json:2:10: not valid JSON"),
    "object for list": ([*TRAIN, "--conversation_file", "object.json"], 1, "expected a list of"),
    "empty list": ([*TRAIN, "--conversation_file", "none.json"], 1, "found an empty list"),
    "wrong keys": ([*TRAIN, "--conversation_file", "keys.json"], 1, "keys.json: record 2: expected"),
    "number for text": ([*TRAIN, "--conversation_file", "number.json"], 1, "number.json: record 2: expected"),
    "list for record": ([*TRAIN, "--conversation_file", "list.json"], 1, "list.json: record 2: expected"),
    "key twice": ([*TRAIN, "--conversation_file", "twice.json"], 1, "'user' stands twice"),
    "too deep": ([*TRAIN, "--conversation_file", "deep.json"], 1, "nested too deeply"),
    "no answers": ([*TRAIN, "--conversation_file", "silent.json"], 1, "found none"),
    "not UTF-8": ([*TRAIN, "--conversation_file", "latin.json"], 1, "latin.json:1: expected UTF-8, found byte 0xe9"),
    "marker in a pair": ([*TRAIN, "--conversation_file", "marker.json"], 1, "record 2: bot: found <|endoftext|>"),
    "marker in a text": ([*TRAIN, "--text_file", "marker.txt"], 1, "marker.txt:2: found <|endoftext|>"),
    "answer too long": ([*TRAIN, "--conversation_file", "long.json"], 1, "record 2: expected at most 128 tokens"),
    "no data": (TRAIN, 2, "expected --text_file or --conversation_file"),
    "unknown model": ([*GOOD, "--model", "gpt9"], 2, "'gpt9' is not known"),
    "missing model file": ([*GOOD, "--model", "absent.pt"], 1, "absent.pt: no such file"),
    "folder without weights": ([*GOOD, "--model", "folder"], 1, "expected config.json and model.safetensors"),
    "weights that are not here": ([*GOOD, "--model", "124M"], 1, "go on without a network with --model demo"),
    "flipped bit": ([*GOOD, "--model", "flipped.pt"], 1, "flipped.pt: damaged"),
    "truncated": ([*GOOD, "--model", "cut.pt"], 1, "cut.pt: damaged"),
    "text for a checkpoint": ([*GOOD, "--model", "text.pt"], 1, "text.pt: damaged, cut short or not a checkpoint"),
    "empty checkpoint": ([*GOOD, "--model", "nothing.pt"], 1, "found an empty file"),
    "code in a checkpoint": ([*GOOD, "--model", "bomb.pt"], 1, "bomb.pt: damaged, cut short or not a checkpoint"),
    "save to a folder": ([*GOOD, "--save_path", "folder"], 1, "expected a file name"),
    "save below a file": ([*GOOD, "--save_path", "good.txt/model.pt"], 1, "cannot be written"),
    "no epochs": ([*GOOD, "--epochs", "0"], 2, "epochs: expected a whole number of 1 or more, got 0"),
    "negative epochs": ([*GOOD, "--epochs", "-1"], 2, "epochs: expected"),
    "negative rate": ([*GOOD, "--learning_rate", "-1"], 2, "learning_rate: expected a number above 0"),
    "rate that is no number": ([*GOOD, "--learning_rate", "nan"], 2, "learning_rate: expected a number above 0"),
    "infinite rate": ([*GOOD, "--learning_rate", "inf"], 2, "learning_rate: expected a number above 0"),
    "empty batch": ([*GOOD, "--batch_size", "0"], 2, "batch_size: expected"),
    "held out too much": ([*GOOD, "--val_fraction", "1.5"], 2, "val_fraction: expected"),
    "longer than the context": ([*GOOD, "--max_length", "4096"], 2, "max_length: expected at most 128"),
    "unknown template": ([*GOOD, "--template", "mystery"], 2, "template: expected one of chat"),
    "untrainable template": ([*GOOD, "--template", "few-shot"], 2, "has no end token to learn"),
    "unknown device": ([*GOOD, "--device", "abacus"], 2, "device: expected"),
    "unknown dtype": ([*GOOD, "--dtype", "int3"], 2, "dtype: expected"),
    "negative seed": ([*GOOD, "--seed", "-3"], 2, "seed: expected"),
    "resume from nothing": (["train", "--resume"], 1, "trained_model.last.pt: no such file"),
    "resume from a finished file": (["train", "--resume", "tiny.pt"], 1, "expected a .last.pt with training state"),
    "chat with nothing": (["chat", "absent.pt"], 1, "absent.pt: no such file"),
    "chat with damage": (["chat", "flipped.pt", "-p", "hi"], 1, "flipped.pt: damaged"),
    "negative temperature": (["chat", "tiny.pt", "-p", "hi", "-t", "-1"], 2, "temperature: expected"),
    "top_p above one": (["chat", "tiny.pt", "-p", "hi", "--top_p", "2"], 2, "top_p: expected"),
    "no room to answer": (["chat", "tiny.pt", "-p", "hi", "--max_new_tokens", "0"], 2, "max_new_tokens: expected"),
    "empty prompt": (["chat", "tiny.pt", "-p", " "], 2, "message: expected text"),
    "prompt over the context": (["chat", "tiny.pt", "-p", "word " * 300], 1, "shorten it"),
    "eval without data": (["eval", "tiny.pt"], 2, "expected --conversation_file or --text_file"),
    "eval of damage": (["eval", "cut.pt", "--text_file", "good.txt"], 1, "cut.pt: damaged"),
    "inspect nothing": (["inspect", "absent.pt"], 1, "absent.pt: no such file"),
}


def run(arguments: list[str]) -> Result:
    return CliRunner().invoke(main, arguments, input="")


@pytest.mark.parametrize("name", CASES)
def test_one_clear_line_and_nothing_lost(name: str, folder: Path) -> None:
    arguments, code, says = CASES[name]
    before = sorted(path.relative_to(folder) for path in folder.rglob("*"))
    result = run(arguments)
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    assert result.exit_code == code, result.stderr
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert result.stderr.splitlines()[-1] == errors[0]
    assert says in errors[0]
    assert "Traceback" not in result.stderr
    assert result.stdout == ""
    assert (folder / "trained_model.pt").read_bytes() == EARLIER
    assert sorted(path.relative_to(folder) for path in folder.rglob("*")) == before


def test_an_unknown_option_gets_a_suggestion(folder: Path) -> None:
    result = run([*GOOD, "--epoch", "3"])
    assert result.exit_code == 2
    assert "--epochs" in result.stderr


def test_good_input_passes_where_bad_input_failed(folder: Path) -> None:
    assert run([*GOOD, "--save_path", "new.pt"]).exit_code == 0
    assert (folder / "new.pt").exists()


def test_too_long_answers_can_be_cut_or_skipped(folder: Path) -> None:
    for choice in ("cut", "skip"):
        arguments = [*TRAIN, "--conversation_file", "long.json", "--too_long", choice, "--save_path", "new.pt"]
        result = run(arguments)
        assert result.exit_code == 0, result.stderr
        assert "1 records of more than 128 tokens" in result.stderr
