"""Every mistake a user can make: one line that names it, a code that is not zero, and a folder left as it was."""

from __future__ import annotations

import io
import json
import pickle
import re
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch
from helpers_cli import TEXT, contents, invoke, pairs, save_tiny

EARLIER = b"PK an earlier model that nobody may touch"
END = "<|endoftext|>"
MISUSE, BROKEN = 2, 1  # exit codes: a setting that cannot be; a file that cannot be used


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny.pt")


class Payload:
    """Unpickling this creates a file."""

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, ("ran.txt", "w")


def zipped(content: object) -> bytes:
    buffer = io.BytesIO()
    torch.save(content, buffer)
    return buffer.getvalue()


@dataclass
class Case:
    """A command, the files it finds, its exit code, and what its one line must name."""

    command: str
    code: int
    names: str
    files: dict[str, bytes | str] = field(default_factory=dict)
    stdin: str | bytes = ""


def data(text: str | bytes, names: str, code: int = BROKEN) -> Case:
    """Training on a conversation file of this content."""
    return Case("train --model TINY --conversation_file bad.json", code, names, {"bad.json": text})


def prose(text: str | bytes, names: str) -> Case:
    """Training on a text file of this content."""
    return Case("train --model TINY --text_file bad.txt", BROKEN, names, {"bad.txt": text})


def option(words: str, names: str, code: int = MISUSE) -> Case:
    """Training on good data with these options."""
    return Case(f"train --model TINY --conversation_file pairs.json {words}", code, names)


def model(name: str, names: str, content: bytes | str | None = None, code: int = BROKEN) -> Case:
    """Training from a model file of this content."""
    return Case(
        f"train --model {name} --conversation_file pairs.json", code, names, {} if content is None else {name: content}
    )


def talk(words: str, names: str, code: int = MISUSE, stdin: str | bytes = "") -> Case:
    """Chatting with a good model and these options."""
    return Case(f"chat TINY {words}", code, names, stdin=stdin)


LONG_NAME = "a" * 300
CASES = {
    # data
    "conversations: missing": Case("train --model TINY --conversation_file no.json", BROKEN, "no.json: no such file"),
    "text: missing": Case("train --model TINY --text_file no.txt", BROKEN, "no.txt: no such file"),
    "conversations: folder": Case(
        "train --model TINY --conversation_file folder", BROKEN, "folder: expected data files"
    ),
    "text: folder": Case("train --model TINY --text_file folder", BROKEN, "folder: expected data files"),
    "text: name too long": Case(f"train --model TINY --text_file {LONG_NAME}", BROKEN, LONG_NAME),
    "conversations: one of two missing": Case(
        "train --model TINY --conversation_file pairs.json --conversation_file no.json", BROKEN, "no.json"
    ),
    "conversations: empty": data("", "bad.json: .*empty"),
    "conversations: white space": data(" \n\n", "bad.json"),
    "text: empty": prose("", "bad.txt: expected text"),
    "text: white space": prose(" \n\t\n", "bad.txt: expected text"),
    "text: not UTF-8": prose(b"caf\xe9\nline\n", r"bad.txt:1: expected UTF-8, found byte 0xe9"),
    "text: UTF-16": prose(TEXT.encode("utf-16")[:-1], "bad.txt:[0-9]+: expected UTF-16"),
    "text: end marker": prose(f"one\ntwo{END}three", r"bad.txt:2: found <\|endoftext\|>"),
    "conversations: not JSON": data("[{'user': 'a'}]", "bad.json:1:3: not valid JSON"),
    "conversations: cut short": data(pairs(3)[:-9], "bad.json:1:.*not valid JSON"),
    "conversations: JSON lines": data('{"user": "a", "bot": "b"}\n{"user": "c", "bot"}', "bad.json:2:20"),
    "conversations: object": data('{"user": "a", "boot": "b"}', "bad.json:1: expected .*got the keys 'user', 'boot'"),
    "conversations: number": data("7", "bad.json: expected conversations, found text, which goes to --text_file"),
    "conversations: empty list": data("[]", "bad.json: expected at least one record"),
    "conversations: wrong keys": data('[{"user": "a", "bot": "b"}, {"prompt": "a"}]', "bad.json:1: record 2: expected"),
    "conversations: number for text": data('[{"user": "a", "bot": 7}]', "record 1: bot: expected text, got 7"),
    "conversations: null for text": data('[{"user": null, "bot": "b"}]', "record 1"),
    "conversations: record is a list": data('[["a", "b"]]', "bad.json:1: expected records .*got list"),
    "conversations: key twice": data('[{"user": "a", "bot": "b", "bot": "c"}]', "bad.json:1: .*'bot' stands twice"),
    "conversations: not UTF-8": data(b'[{"user": "caf\xe9", "bot": "b"}]', "bad.json:1: expected UTF-8"),
    "conversations: end marker": data(json.dumps([{"user": "a", "bot": f"b{END}"}]), "record 1: found"),
    "conversations: all empty": data(
        '[{"user": " ", "bot": "b"}, {"user": "a", "bot": ""}]', "nothing is left to learn from: 2 records without text"
    ),
    "conversations: answer too long": data(
        json.dumps([{"user": "a", "bot": "b"}, {"user": "a", "bot": "word " * 200}]), "record 2: expected at most 128"
    ),
    "conversations: nothing left": Case(
        "train --model TINY --conversation_file bad.json --too_long skip",
        BROKEN,
        "nothing is left to learn from",
        {"bad.json": json.dumps([{"user": "a", "bot": "word " * 200}])},
    ),
    "conversations: deep": data("[" * 100_000, "bad.json:1: not valid JSON: nested too deeply"),
    # models
    "model: unknown": model(
        "gpt3", "'gpt3' is not known: did you mean 'gpt2'. Expected demo, 'gpt2-small", code=MISUSE
    ),
    "model: nearly a file": model("./pairs.jso", "'./pairs.jso' is not known: did you mean './pairs.json", code=MISUSE),
    "model: name too long": model(LONG_NAME, LONG_NAME, code=MISUSE),
    "model: missing": model("no.pt", "no.pt: no such file"),
    "model: empty": model("bad.pt", "bad.pt: .*empty", b""),
    "model: text file": model("bad.pt", "bad.pt: expected weights .*begins with", TEXT),
    "model: raw pickle with code": model("bad.pt", "bad.pt: holds objects other than", pickle.dumps(Payload())),
    "model: zip with code": model("bad.pt", "bad.pt: .*refused", zipped({"format": "gpt2chat", "x": Payload()})),
    "model: another program's": model("bad.pt", "bad.pt: expected the tensors of a GPT-2", zipped({"state_dict": {}})),
    "model: a later version": model("bad.pt", "found 99: update", zipped({"format": "gpt2chat", "version": 99})),
    "model: folder without weights": Case("train --model folder --text_file text.txt", BROKEN, "folder: expected"),
    # places
    "save: a folder": option("--save_path folder", "folder: expected a file name", BROKEN),
    "save: under a file": option("--save_path pairs.json/bot.pt", "pairs.json/bot.pt: cannot be written", BROKEN),
    "save: name too long": option(f"--save_path {LONG_NAME}.pt", LONG_NAME, BROKEN),
    "save: over another program's weights": Case(
        "train --model TINY --conversation_file pairs.json --save_path other.pt",
        BROKEN,
        "other.pt: is no checkpoint of gpt2chat and would be overwritten",
        {"other.pt": zipped({"state_dict": {}})},
    ),
    "save: over a text": Case(
        "train --model TINY --conversation_file pairs.json --save_path thesis.docx --dry_run",
        BROKEN,
        "thesis.docx: is no checkpoint of gpt2chat",
        {"thesis.docx": "what I wrote"},
    ),
    "save: over the data": option("--save_path pairs.json", "pairs.json"),
    # settings
    "train: nothing to learn": Case("train --model TINY", MISUSE, "--text_file, --conversation_file or --data"),
    "epochs 0": option("--epochs 0", "epochs: .*got 0"),
    "epochs -1": option("--epochs -1", "epochs: .*got -1"),
    "learning rate 0": option("--learning_rate 0", "learning_rate: .*got 0"),
    "learning rate -1": option("--learning_rate -1", "learning_rate: .*got -1"),
    "learning rate nan": option("--learning_rate nan", "learning_rate: .*got nan"),
    "learning rate inf": option("--lr inf", "learning_rate: .*got inf"),
    "batch size 0": option("--batch_size 0", "batch_size: .*got 0"),
    "accumulate above batch size": option("--accumulate 9", "accumulate: .*got 9"),
    "weight decay nan": option("--weight_decay nan", "weight_decay: .*got nan"),
    "dropout 1": option("--dropout 1", "dropout: .*got 1"),
    "join 2": option("--join 2", "join: .*got 2"),
    "val fraction 1.5": option("--val_fraction 1.5", "val_fraction: .*got 1.5"),
    "val fraction nan": option("--val_fraction nan", "val_fraction: .*got nan"),
    "text share without text": option("--text_share 0.5", "text_share: expected both"),
    "max length above the context": option("--max_length 4096", "max_length: expected at most 128.*got 4096"),
    "max length 0": option("--max_length 0", "max_length: .*got 0"),
    "patience -1": option("--patience -1", "patience: .*got -1"),
    "patience without validation": option("--patience 2 --val_fraction 0", "patience: .*val_fraction"),
    "seed -1": option("--seed -1", "seed: .*got -1"),
    "template: unknown": option("--template morse", "template: expected one of chat, .*'morse'"),
    "template: few-shot": option("--template few-shot", "template: few-shot .*use chat"),
    "device: unknown": option("--device abacus", "device: .*'abacus'"),
    "device: unknown number": option("--device cpu:many", "device: .*'cpu:many'"),
    "dtype: unknown": option("--dtype float8", "dtype: .*'float8'"),
    "probe: too long": option("--probe " + "word_" * 200, "probe: expected under 128"),
    "resume: nothing to resume": Case("train --resume", BROKEN, "trained_model.last.pt: no such file"),
    "resume: empty training state": Case("train --resume stateless.last.pt", BROKEN, "stateless.last.pt"),
    # chat
    "chat: missing": Case("chat no.pt", BROKEN, "no.pt: no such file"),
    "chat: what is here is no model": Case("chat -p hello", BROKEN, "trained_model.pt"),
    "chat: unknown model": Case("chat gpt3", MISUSE, "'gpt3' is not known"),
    "chat: an empty fallback": talk("-p hi --fallback=", "fallback: .*got"),
    "chat: temperature -1": talk("--temperature -1", "temperature: .*got -1"),
    "chat: temperature nan": talk("--temperature nan", "temperature: .*got nan"),
    "chat: top_p 2": talk("--top_p 2", "top_p: .*got 2"),
    "chat: top_p 0": talk("--top_p 0", "top_p: .*got 0"),
    "chat: top_k -1": talk("--top_k -1", "top_k: .*got -1"),
    "chat: repetition penalty 0": talk("--repetition_penalty 0", "repetition_penalty: .*got 0"),
    "chat: no new tokens": talk("--max_new_tokens 0", "max_new_tokens: .*got 0"),
    "chat: seed -1": talk("--seed -1", "seed: .*got -1"),
    "chat: unknown device": talk("--device abacus", "device: .*'abacus'"),
    "chat: unknown dtype": talk("--dtype int3", "dtype: .*'int3'"),
    "chat: unknown template": talk("--template morse -p hello", "template: .*'morse'"),
    "chat: unknown template, before any message": talk("--template morse", "template: .*'morse'"),
    "chat: empty prompt": talk("-p -", "message: expected text", stdin=" \n"),
    "chat: prompt too long": talk("-p -", "the message has", BROKEN, stdin="word " * 500),
    # eval and inspect
    "eval: no files": Case("eval TINY", MISUSE, "--conversation_file, --text_file, --paraphrases or --outside"),
    "eval: missing model": Case("eval no.pt --text_file text.txt", BROKEN, "no.pt: no such file"),
    "eval: missing data": Case("eval TINY --conversation_file no.json", BROKEN, "no.json: no such file"),
    "eval: empty text": Case("eval TINY --text_file bad.txt", BROKEN, "bad.txt", {"bad.txt": ""}),
    "eval: question too long": Case(
        "eval TINY --conversation_file bad.json",
        BROKEN,
        "bad.json:1: record 1",
        {"bad.json": json.dumps([{"user": "word " * 200, "bot": "b"}])},
    ),
    "inspect: missing": Case("inspect no.pt", BROKEN, "no.pt: no such file"),
    "inspect: folder": Case("inspect folder", BROKEN, "folder: expected"),
}


def check(case: Case, folder: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a case in a folder; fail unless it is refused in one line and nothing is changed."""
    monkeypatch.chdir(folder)
    good = {"trained_model.pt": EARLIER, "pairs.json": pairs(6).encode(), "text.txt": TEXT.encode()}
    for name, content in {**good, **case.files}.items():
        (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    (folder / "folder").mkdir()
    before = contents(folder)
    result = invoke(*[str(tiny) if word == "TINY" else word for word in case.command.split()], stdin=case.stdin)
    assert result.exit_code == case.code
    lines = result.stderr.splitlines()
    errors = [line for line in lines if line.startswith("error: ")]
    assert len(errors) == 1, result.stderr
    assert lines[-1] == errors[0]
    assert re.search(case.names, errors[0]), errors[0]
    assert "Traceback" not in result.output
    assert result.stdout == ""
    assert contents(folder) == before


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_a_mistake_is_one_line_and_changes_nothing(
    case: Case, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if "stateless" in case.command:
        from gpt2chat import checkpoint

        loaded = checkpoint.load(tiny)
        loaded.training = {}
        checkpoint.save(loaded, tmp_path / "stateless.last.pt")
    check(case, tmp_path, tiny, monkeypatch)


@pytest.mark.parametrize("command", ["train", "chat", "eval", "inspect"])
@pytest.mark.parametrize("damage", ["cut", "cut at the end", "flipped"])
def test_a_damaged_checkpoint_is_one_line_and_changes_nothing(
    damage: str, command: str, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = tiny.read_bytes()
    middle = len(whole) // 2
    damaged = {
        "cut": whole[:middle],
        "cut at the end": whole[:-1000],
        "flipped": whole[:middle] + bytes([whole[middle] ^ 1]) + whole[middle + 1 :],
    }[damage]
    words = {"train": "train --conversation_file pairs.json --model bad.pt", "eval": "eval bad.pt --text_file text.txt"}
    case = Case(words.get(command, f"{command} bad.pt"), BROKEN, "bad.pt: .*damaged", {"bad.pt": damaged})
    check(case, tmp_path, tiny, monkeypatch)


@pytest.mark.parametrize(
    ("command", "stdin"),
    [
        ("chat TINY", b"caf\xe9\n"),
        ("chat TINY -p -", b"caf\xe9\n"),
        ("chat TINY -p \udce9", b""),
        ("chat TINY -p hello --system \udce9", b""),
        ("train --model TINY --conversation_file pairs.json --epochs 1 --probe \udce9", b""),
    ],
    ids=["chat", "prompt from a pipe", "prompt", "system", "probe"],
)
def test_words_that_are_not_unicode_are_taken_or_refused_in_one_line(
    command: str, stdin: bytes, tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "pairs.json").write_text(pairs(6), "utf-8")
    result = invoke(*[str(tiny) if word == "TINY" else word for word in command.split()], stdin=stdin)
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert (result.exit_code != 0) == (len(errors) == 1)


@pytest.mark.parametrize(
    "words",
    [
        ["train", "--no_such_option"],
        ["train", "--epochs", "many"],
        ["train", "--too_long", "squeeze"],
        ["train", "stray"],
        ["chat", "--temperature", "hot"],
        ["chat", "one.pt", "two.pt"],
        ["eval"],
        ["eval", "TINY", "--limit", "0"],
        ["inspect"],
        ["teach"],
    ],
    ids=" ".join,
)
def test_a_command_line_that_cannot_be_read_shows_the_usage(words: list[str], tmp_path: Path, tiny: Path) -> None:
    result = invoke(*[tiny if word == "TINY" else word for word in words])
    assert result.exit_code == MISUSE
    assert result.stderr.startswith("Usage: gpt2chat")
    assert len([line for line in result.stderr.splitlines() if line.startswith("Error: ")]) == 1
    assert result.stdout == ""


def test_the_check_itself_sees_a_run_that_succeeds(tmp_path: Path, tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError):
        check(Case("inspect TINY", BROKEN, ""), tmp_path, tiny, monkeypatch)


def test_a_payload_would_run_if_it_were_unpickled(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    pickle.loads(pickle.dumps(Payload())).close()
    assert (tmp_path / "ran.txt").exists()
