"""`gpt2chat new` makes a folder that trains at once, and `train --config` reads its settings."""

from __future__ import annotations

import configparser
import json
import os
import shlex
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import pytest
from click.testing import Result
from helpers_cli import ROOT, contents, invoke, pairs, same_weights, save_tiny, signals_in_step, spawn

from gpt2chat import checkpoint
from gpt2chat.cli import new
from gpt2chat.cli.config import read_config
from gpt2chat.cli.train import train_command
from gpt2chat.errors import ConfigError

SAMPLES = ROOT / "gpt2chat" / "assets" / "new"


@pytest.fixture(autouse=True)
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty folder to work in."""
    folder = tmp_path / "place"
    folder.mkdir()
    monkeypatch.chdir(folder)
    return folder


def one_line(result: Result, code: int) -> str:
    assert (result.exit_code, result.stdout) == (code, ""), result.output
    assert len(result.stderr.splitlines()) == 1, result.stderr
    return result.stderr


# -- new ---------------------------------------------------------------------------------------------------------------


def test_a_new_folder_holds_all_files_and_the_next_commands_are_printed(place: Path) -> None:
    result = invoke("new", "my-bot")
    assert result.exit_code == 0
    files = {name for name, content in contents(place / "my-bot").items() if content is not None}
    assert files == {"README.md", "train.toml", ".gitignore", "data/conversations.json", "data/notes.txt"}
    first, second = result.stdout.splitlines()
    assert first.endswith("train --config my-bot/train.toml")
    assert second.endswith("chat my-bot/trained_model.pt")
    assert os.listdir(place) == ["my-bot"]


def test_what_the_readme_tells_to_type_can_be_typed() -> None:
    from gpt2chat.cli import main

    lines = [line for line in (SAMPLES / "README.md").read_text("utf-8").splitlines() if line.startswith("gpt2chat ")]
    assert [line.split()[1] for line in lines] == ["train", "chat", "eval"]
    for line in lines:
        _, name, *words = shlex.split(line)
        context = main.commands[name].make_context(name, words, resilient_parsing=True)
        assert context.args == []


def test_the_sample_pairs_are_clean_and_different() -> None:
    records = json.loads((SAMPLES / "conversations.json").read_text("utf-8"))
    assert len(records) == 20
    assert all(set(record) == {"user", "bot"} for record in records)
    for key in ("user", "bot"):
        assert len({record[key] for record in records}) == 20
    assert all(3 <= len(record["bot"].split()) <= 30 for record in records)
    result = invoke("data", "check", SAMPLES / "conversations.json", "--json")
    assert result.exit_code == 0


def test_every_file_of_the_folder_is_package_data() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    patterns = [part.strip() for part in setup["options.package_data"]["gpt2chat"].split(",")]
    package = ROOT / "gpt2chat"
    shipped = {path for pattern in patterns for path in package.glob(pattern)}
    assert {SAMPLES / name for name in new.FILES} <= shipped
    assert {path.name for path in SAMPLES.iterdir()} == set(new.FILES)


def test_an_empty_folder_is_filled(place: Path) -> None:
    (place / "bot").mkdir()
    assert invoke("new", "bot").exit_code == 0
    assert (place / "bot" / "train.toml").is_file()


def test_a_folder_elsewhere_and_one_with_blanks_work(place: Path) -> None:
    (place / "bots").mkdir()
    result = invoke("new", "bots/my first")
    assert "train --config 'bots/my first/train.toml'\n" in result.stdout
    assert (place / "bots" / "my first" / "data" / "notes.txt").is_file()


def test_a_folder_with_files_is_left_alone(place: Path) -> None:
    (place / "bot").mkdir()
    (place / "bot" / "mine.txt").write_text("mine")
    before = contents(place)
    assert "bot: expected a new folder" in one_line(invoke("new", "bot"), 2)
    assert contents(place) == before


def test_a_file_and_a_dangling_link_are_left_alone(place: Path) -> None:
    (place / "bot").write_text("mine")
    (place / "link").symlink_to("nowhere")
    assert "found a file" in one_line(invoke("new", "bot"), 2)
    assert "found a file" in one_line(invoke("new", "link"), 2)
    assert sorted(os.listdir(place)) == ["bot", "link"]


@pytest.mark.parametrize(
    "name",
    [
        "",
        ".",
        "..",
        "/",
        "-x",
        "a\nb",
        "a\x1b[31m",
        "a/../..",
        "no/such/place",
        "con",
        "NUL.txt",
        "a" * 101,
        " a",
        "a.",
    ],
)
def test_odd_names_are_refused_in_one_line(name: str, place: Path) -> None:
    result = invoke("new", "--", name)
    assert "\x1b" not in one_line(result, 2)
    assert os.listdir(place) == []


def test_a_fault_while_writing_leaves_nothing(place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def full(path: Path, content: bytes) -> int:
        written.append(path)
        if len(written) == 4:
            raise OSError(28, "No space left on device")
        return real(path, content)

    real = Path.write_bytes
    monkeypatch.setattr(Path, "write_bytes", full)
    assert "No space left" in one_line(invoke("new", "bot"), 1)
    assert len(written) == 4
    assert os.listdir(place) == []


@pytest.mark.slow
def test_a_new_folder_trains_at_once_and_knows_its_pairs(place: Path) -> None:
    invoke("new", "bot")
    folder = place / "bot"
    result = spawn(["-m", "gpt2chat", "train", "--config", "train.toml"], folder)
    assert result.returncode == 0, result.stderr
    scores = ["eval", "trained_model.pt", "--conversation_file", "data/conversations.json", "--json"]
    result = spawn(["-m", "gpt2chat", *scores], folder)
    found = json.loads(result.stdout)["conversations"]
    assert (found["exact"], found["stopped"], found["pairs"]) == (1.0, 1.0, 20)
    chat = spawn(["-m", "gpt2chat", "chat", "--temperature", "0"], folder, stdin="How can I pay?\n")
    assert chat.stdout == "In cash or by card. We do not take cheques.\n"


# -- train --config ----------------------------------------------------------------------------------------------------


@pytest.fixture
def project(place: Path) -> Path:
    """A folder inside the one that commands run in, with a tiny model, pairs and settings."""
    folder = place / "project"
    folder.mkdir()
    save_tiny(folder / "tiny.pt")
    (folder / "pairs.json").write_text(pairs(6), "utf-8")
    settings = 'model = "tiny.pt"\nconversation-file = ["pairs.json"]\nsave_path = "out.pt"\nepochs = 2\nlr = 1e-3\n'
    (folder / "train.toml").write_text(settings, "utf-8")
    return folder


def read(folder: Path, text: str, name: str = "c.toml") -> dict[str, Any]:
    """The options that a file of this text sets."""
    path = folder / name
    path.write_text(text, "utf-8")
    with click.Context(train_command, info_name="train") as context:
        return read_config(path, context)


def test_a_config_file_trains_like_the_command_line(project: Path, place: Path) -> None:
    assert invoke("train", "--config", "project/train.toml").exit_code == 0
    data = ("--conversation_file", "project/pairs.json")
    invoke("train", "--model", "project/tiny.pt", *data, "--epochs", 2, "--lr", "1e-3", "--save_path", "same.pt")
    assert same_weights(project / "out.pt", place / "same.pt")


def test_the_command_line_wins(project: Path, place: Path) -> None:
    invoke("train", "--config", "project/train.toml", "--epochs", 1, "--save-path", "one.pt")
    training = checkpoint.load(place / "one.last.pt").training
    assert training is not None
    options = training["settings"]["options"]
    assert (options["epochs"], options["learning_rate"]) == (1, 1e-3)
    assert not (project / "out.pt").exists()


def test_stored_options_name_no_config(project: Path) -> None:
    invoke("train", "--config", "project/train.toml")
    training = checkpoint.load(project / "out.last.pt").training
    assert training is not None
    options = training["settings"]["options"]
    assert "config" not in options
    assert options["conversation_file"] == ["project/pairs.json"]


def test_an_interrupted_run_of_a_config_resumes_to_the_bit(project: Path, place: Path) -> None:
    whole = ("train", "--config", "project/train.toml", "--epochs", 4)
    invoke(*whole, "--save_path", "whole.pt")
    with signals_in_step(2, 2):
        assert invoke(*whole, "--save_path", "cut.pt").exit_code == 130
    assert (
        invoke("train", "--config", "project/train.toml", "--epochs", 4, "--save_path", "cut.pt", "--resume").exit_code
        == 0
    )
    assert same_weights(place / "cut.pt", place / "whole.pt")


def test_a_config_that_was_changed_since_resumes_only_with_more_epochs(project: Path) -> None:
    with signals_in_step(1, 2):
        invoke("train", "--config", "project/train.toml")
    path, text = project / "train.toml", (project / "train.toml").read_text("utf-8")
    path.write_text(text.replace("lr = 1e-3", "lr = 1e-2"), "utf-8")
    line = one_line(invoke("train", "--config", "project/train.toml", "--resume"), 2)
    assert "learning_rate: the run that is resumed was given 0.001, got 0.01" in line
    path.write_text(text.replace("epochs = 2", "epochs = 3"), "utf-8")
    assert invoke("train", "--config", "project/train.toml", "--resume").exit_code == 0
    assert checkpoint.load(project / "out.pt").about["step"] == 3


def test_keys_are_option_names_in_both_spellings_and_json_says_the_same(place: Path) -> None:
    toml = read(place, 'text-file = ["a.txt"]\nbatch_size = 2\ndropout = 0\ninteractive = true\ntoo_long = "cut"\n')
    same = {"text_file": ["a.txt"], "batch-size": 2, "dropout": 0, "interactive": True, "too-long": "cut"}
    assert read(place, json.dumps(same), "c.json") == read(place, json.dumps(same), "c.conf") == toml
    assert toml["text_file"] == [str(place / "a.txt")]


def test_paths_are_relative_to_the_file_and_names_stay_names(place: Path) -> None:
    (place / "mine.pt").touch()
    (place / "demo").mkdir()
    read_value = read(place, 'model = "mine.pt"\ndata = ["/abs/x", "-", "sub/*.json"]')
    assert read_value["model"] == str(place / "mine.pt")
    assert read_value["data"] == ["/abs/x", "-", str(place / "sub/*.json")]
    assert read(place, 'model = "demo"')["model"] == "demo"
    assert read(place, 'model = "owner/name"')["model"] == "owner/name"


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("epoch = 3", ["epoch:", "no such option", "did you mean epochs?"]),
        ("epochs = '3'", ["epochs:", "expected a whole number", '"3"']),
        ("epochs = true", ["epochs:", "expected a whole number", "true"]),
        ("epochs = 3.0", ["epochs:", "expected a whole number", "3.0"]),
        ("learning_rate = 'x'", ["learning_rate:", "expected a number"]),
        ("dry_run = 1", ["dry_run:", "expected true or false", "1"]),
        ("model = 124", ["model:", "expected a text in quotes", "124"]),
        ("text_file = 'a.txt'", ["text_file:", "expected a list", '"a.txt"']),
        ("probe = ['a', 1]", ["probe:", "expected a text in quotes", "1"]),
        ("too_long = 'keep'", ["too_long:", "'keep'"]),
        ("save_path = 'folder/'", ["save_path:", "expected a file name"]),
        ("lr = 1e-3\nlearning_rate = 1e-3", ["learning_rate:", "twice"]),
        ("[train]\nepochs = 1", ["train:", "no such option"]),
        ("config = 'x'", ["config:", "command line only"]),
        ("resume = 'x'", ["resume:", "command line only"]),
        ("epochs = ", ["expected TOML"]),
        ("epochs = 1\nepochs = 2", ["expected TOML"]),
        ('{"epochs": 1, "epochs": 2}', ["expected JSON", "epochs"]),
        ('{"epochs": null}', ["epochs:", "null"]),
        ("{", ["expected JSON"]),
        ('{"a":' * 100_000, ["expected JSON"]),
    ],
)
def test_what_is_wrong_in_a_config_is_one_line(text: str, named: list[str], place: Path) -> None:
    (place / "c.toml").write_text(text, "utf-8")
    line = one_line(invoke("train", "--config", "c.toml"), 2)
    assert line.startswith("error: c.toml: ")
    assert all(word in line for word in named), line
    assert os.listdir(place) == ["c.toml"]


def test_a_list_in_json_is_no_set_of_options(place: Path) -> None:
    with pytest.raises(ConfigError, match="expected an object of options"):
        read(place, "[1]", "c.json")


def unreadable(place: Path) -> Iterator[str]:
    yield "missing.toml"
    (place / "folder").mkdir()
    yield "folder"
    (place / "latin.toml").write_bytes(b'model = "\xe9"')
    yield "latin.toml"


def test_a_config_that_cannot_be_read_is_one_line(place: Path) -> None:
    for name in unreadable(place):
        assert one_line(invoke("train", "--config", name), 2).startswith(f"error: {name}: ")


def test_every_key_of_the_sample_settings_is_read(place: Path) -> None:
    values = read(place, (SAMPLES / "train.toml").read_text("utf-8"))
    assert len(values) == len(tomllib.loads((SAMPLES / "train.toml").read_text("utf-8"))) >= 5
    assert values["save_path"] == str(place / "trained_model.pt")
