"""A chat on the disk is the chat that was said, can be trained on, and is there whole or not at all."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest
from helpers_cli import contents, invoke, rows, save_tiny
from hypothesis import given
from hypothesis import strategies as st

from gpt2chat.chats import Feedback, load, provenance, save
from gpt2chat.conversation import Message
from gpt2chat.errors import ConfigError, DataError, DiskFullError
from gpt2chat.version import __version__

FULL = Path("/dev/full")  # takes nothing, for want of room
needs_dev_full = pytest.mark.skipif(not FULL.exists(), reason="needs /dev/full")
USER, BOT = Message("user", "Où est le café ? 猫 🦉"), Message("assistant", 'At "home",\n\tof course \\ </s>')
CUT = Message("assistant", "I was go", trained=False)
CHAT = [Message("system", "Be kind."), USER, BOT, Message("user", "Go on"), CUT]
TALK = st.lists(
    st.builds(Message, st.sampled_from(["system", "user", "assistant"]), st.text(max_size=8), st.booleans()), max_size=6
)


def good_json() -> str:
    return json.dumps([{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}])


# -- saving and loading --------------------------------------------------------------------------------------------


def test_a_chat_comes_back_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "a chat.json"
    save(CHAT, path, "runs/sft/bot/model.pt")
    assert load(path) == CHAT
    [row] = json.loads(path.read_text("utf-8"))
    assert [message.get("weight") for message in row["messages"]] == [None, None, None, None, 0]
    assert set(row) == {"messages", "provenance"}
    assert {"by": "chat", "model": "runs/sft/bot/model.pt", "gpt2chat": __version__}.items() <= row[
        "provenance"
    ].items()
    save(load(path), path, "demo")
    assert load(path) == CHAT


@given(messages=TALK)
def test_what_is_saved_can_be_loaded(messages: list[Message], tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.getbasetemp() / "any.json"
    if not any(
        message.content.strip() and not (message.role == "user" and empty_answer(after))
        for message, after in zip(messages, [*messages, None][1:], strict=True)
    ):
        with pytest.raises(ConfigError, match="nothing to save"):
            save(messages, path, "demo")
        return
    save(messages, path, "demo")
    loaded = load(path)
    assert [(m.role, m.content, m.trained) for m in loaded if m.role != "assistant"] == [
        (m.role, m.content.strip(), m.trained)
        for m, after in zip(messages, [*messages, None][1:], strict=True)
        if m.role != "assistant" and m.content.strip() and not (m.role == "user" and empty_answer(after))
    ]
    answers = [m for m in messages if m.role == "assistant" and m.content.strip()]
    assert [(m.content, m.trained) for m in loaded if m.role == "assistant"] == [
        (m.content.strip(), m.trained) for m in answers
    ]


def empty_answer(message: Message | None) -> bool:
    return message is not None and message.role == "assistant" and not message.content.strip()


@pytest.mark.parametrize("empty", ["", " \n"])
def test_an_answer_without_text_goes_with_its_question(tmp_path: Path, empty: str) -> None:
    path = tmp_path / "chat.json"
    save([*CHAT[:3], Message("user", "Well?"), Message("assistant", empty, False)], path, "demo")
    assert load(path) == CHAT[:3]
    save([Message("system", "Be kind."), Message("assistant", empty)], path, "demo")
    assert load(path) == CHAT[:1]


def test_half_characters_are_saved_as_such(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    save([Message("user", "a\ud800b"), Message("assistant", "🦉\udfff")], path, "m\udce9.pt")
    assert load(path) == [Message("user", "a\ufffdb"), Message("assistant", "🦉\ufffd")]


def test_a_saved_chat_trains_and_gives_no_notes(tmp_path: Path) -> None:
    chat, tiny, saved = tmp_path / "chat.json", save_tiny(tmp_path / "tiny.pt"), tmp_path / "bot.pt"
    save(CHAT, chat, str(tiny))
    found = invoke("data", "check", chat)
    assert found.exit_code == 0, found.stderr
    assert "not used" not in found.output and "key" not in found.output
    result = invoke("train", "--model", tiny, "--conversation_file", chat, "--save_path", saved, "--epochs", 1)
    assert result.exit_code == 0, result.stderr
    assert "note:" not in result.stderr
    assert saved.exists()


def test_other_programs_chats_can_be_loaded(tmp_path: Path) -> None:
    path = tmp_path / "chat.json"
    messages = [{"role": "User", "content": [{"type": "text", "text": "a"}]}, {"role": "assistant", "content": " b "}]
    for content in ({"messages": messages}, [{"messages": messages, "model": "x"}]):
        path.write_bytes(b"\xef\xbb\xbf" + json.dumps(content).encode())
        assert load(path) == [Message("user", "a"), Message("assistant", "b")]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("", "expected a chat as JSON"),
        ("{", "expected a chat as JSON"),
        ("[" * 100_000, "expected a chat as JSON"),
        ("[]", "expected one chat"),
        ("7", "expected one chat"),
        ("[1]", "expected one chat"),
        ("[{}, {}]", "got 2 entries"),
        ("{}", "got the keys of an empty record"),
        ('{"Messages": []}', "lower case"),
        ('{"user": "a", "bot": "b"}', "got the keys 'user', 'bot'"),
        ('{"messages": 3}', "messages: expected a list, got 3"),
        ('{"messages": [3]}', "message 1: expected"),
        ('{"messages": [{"role": "judge", "content": "a"}]}', "message 1: role: expected user"),
        ('{"messages": [{"role": "user", "content": 5}]}', "message 1: expected"),
        ('{"messages": [{"role": "user", "content": "a", "weight": 2}]}', "weight: expected 0 or 1"),
        ('{"messages": [{"role": "user", "content": " "}]}', "expected text in every message"),
        ('{"messages": [' + "[" * 900 + "]" * 900 + "]}", "message 1: expected"),
        ("9" * 5000, "expected a chat as JSON"),
    ],
)
def test_a_file_that_is_no_chat_is_refused_in_one_line(tmp_path: Path, content: str, said: str) -> None:
    path = tmp_path / "chat.json"
    path.write_text(content, "utf-8")
    with pytest.raises(DataError, match=said) as caught:
        load(path)
    assert str(caught.value).startswith(f"{path}: ")
    assert "\n" not in str(caught.value)


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    (tmp_path / "latin.json").write_bytes(b'["\xe9"]')
    for name in ("none.json", ".", "latin.json", "nul\0.json"):
        with pytest.raises(DataError, match="cannot be read|expected a chat as JSON|no such file") as caught:
            load(tmp_path / name)
        assert str(tmp_path) in str(caught.value) and "\n" not in str(caught.value)


KEYS = ["messages", "role", "content", "weight", "type", "text", "Messages", "provenance"]
VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-2, 2) | st.floats() | st.sampled_from(["user", "assistant", "", "text"]),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(KEYS), inner, max_size=4),
    max_leaves=12,
)


@given(value=VALUES)
def test_any_json_is_a_chat_or_a_fault(value: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    check_mangled(json.dumps(value), tmp_path_factory)
    check_mangled(json.dumps({"messages": value}), tmp_path_factory)
    check_mangled(json.dumps([{"messages": [value, value]}]), tmp_path_factory)


@given(data=st.data())
def test_a_mangled_chat_is_a_chat_or_a_fault(data: st.DataObject, tmp_path_factory: pytest.TempPathFactory) -> None:
    text = good_json()
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(0, len(text)))
        text = (
            text[:at] + data.draw(st.sampled_from(["", "}", '"', "[", "\\ud800", "\n", "\0", "null"])) + text[at + 2 :]
        )
    check_mangled(text, tmp_path_factory)


def check_mangled(text: str, folders: pytest.TempPathFactory) -> None:
    path = folders.getbasetemp() / "mangled.json"
    path.write_text(text, "utf-8")
    try:
        assert all(isinstance(message, Message) for message in load(path))
    except DataError as error:
        assert "\n" not in str(error) and str(path) in str(error)


# -- feedback ------------------------------------------------------------------------------------------------------


def test_feedback_is_training_data_that_says_where_it_is_from(tmp_path: Path) -> None:
    tiny, saved = save_tiny(tmp_path / "tiny.pt"), tmp_path / "bot.pt"
    feedback = Feedback(tmp_path / "tiny.feedback.jsonl", "tiny.pt")
    feedback.approve([*CHAT[:3], Message("user", "Why?"), Message("assistant", "Because.", trained=False)])
    feedback.teach([USER, Message("assistant", "At home.")], "At home.")
    assert feedback.pairs == 2
    approved, taught = rows(feedback.path)
    assert [message.get("weight", 1) for message in approved["messages"]] == [1, 1, 0, 1, 1]
    assert taught["messages"] == [
        {"role": "user", "content": USER.content},
        {"role": "assistant", "content": "At home."},
    ]
    for row, by in ((approved, "good"), (taught, "teach")):
        assert row["provenance"] == provenance(by, "tiny.pt") | {"time": row["provenance"]["time"]}
        assert len(row["provenance"]["time"]) == len("2024-01-01T00:00:00Z")
    found = invoke("data", "check", feedback.path)
    assert found.exit_code == 0 and "not used" not in found.output, found.output
    result = invoke("train", "--model", tiny, "--conversation_file", feedback.path, "--save_path", saved, "--epochs", 1)
    assert result.exit_code == 0, result.stderr
    assert "2 conversations" in result.stderr and "note:" not in result.stderr


def test_rejected_answers_lie_beside_with_what_was_chosen(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path / "tiny.feedback.jsonl", "tiny.pt")
    feedback.reject(CHAT)
    feedback.reject(CHAT[:3], chosen="At home.")
    assert not feedback.path.exists() and feedback.pairs == 0
    assert feedback.preferences == tmp_path / "tiny.preferences.jsonl"
    first, second = rows(feedback.preferences)
    assert set(first) == {"prompt", "rejected", "provenance"}
    assert first["rejected"] == [{"role": "assistant", "content": "I was go"}]
    assert first["prompt"] == [{"role": m.role, "content": m.content} for m in CHAT[:4]]
    assert second["chosen"] == [{"role": "assistant", "content": "At home."}]
    assert second["provenance"]["by"] == "bad"


@pytest.mark.parametrize(
    ("name", "beside"),
    [
        ("feedback.jsonl", "preferences.jsonl"),
        ("bot.feedback.jsonl", "bot.preferences.jsonl"),
        ("mine.jsonl", "mine.preferences.jsonl"),
        ("preferences.jsonl", "preferences.preferences.jsonl"),
    ],
)
def test_the_file_beside_is_another_one(name: str, beside: str) -> None:
    assert Feedback(Path("folder", name), "demo").preferences == Path("folder", beside)


@pytest.mark.parametrize("left", [b'{"messages": []}', b"{", b'{"cut": "of'])
def test_a_last_line_that_was_not_ended_spoils_only_itself(tmp_path: Path, left: bytes) -> None:
    feedback = Feedback(tmp_path / "feedback.jsonl", "demo")
    feedback.path.write_bytes(left)
    feedback.teach([USER, Message("assistant", "At home.")], "At home.")
    feedback.teach([USER, Message("assistant", "Here.")], "Here.")
    first, *lines = feedback.path.read_bytes().splitlines()
    assert first == left
    assert [json.loads(line)["messages"][1]["content"] for line in lines] == ["At home.", "Here."]


# -- a full disk ---------------------------------------------------------------------------------------------------


def test_a_chat_that_cannot_be_written_leaves_the_old_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "chat.json"
    save(CHAT, path, "demo")
    before = contents(tmp_path)
    monkeypatch.setattr("os.fsync", Mock(side_effect=OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    with pytest.raises(DiskFullError, match=r"chat\.json: cannot be written: No space left .*unchanged"):
        save(CHAT[:3], path, "demo")
    monkeypatch.undo()
    assert contents(tmp_path) == before
    for place in (tmp_path, path / "chat.json"):
        with pytest.raises(ConfigError):
            save(CHAT, place, "demo")
    other = tmp_path / "model.pt"
    other.write_bytes(b"not a chat")
    with pytest.raises(ConfigError, match="something else than a saved chat"):
        save(CHAT, other, "demo")
    assert contents(tmp_path) == before | {"model.pt": b"not a chat"}


@needs_dev_full
def test_feedback_on_a_full_disk_is_an_error_and_not_counted(tmp_path: Path) -> None:
    feedback = Feedback(tmp_path / "feedback.jsonl", "demo")
    feedback.path.symlink_to(FULL)
    for keep in (lambda: feedback.approve(CHAT[:3]), lambda: feedback.teach([USER, Message("assistant", "x")], "x")):
        with pytest.raises(DiskFullError, match=r"feedback\.jsonl: cannot be written: No space left"):
            keep()
    assert feedback.pairs == 0


@pytest.mark.parametrize("room", [0, 1, 40])
def test_an_append_that_fails_leaves_the_file_as_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, room: int
) -> None:
    feedback = Feedback(tmp_path / "feedback.jsonl", "demo")
    feedback.teach([USER, Message("assistant", "At home.")], "At home.")
    before = feedback.path.read_bytes()
    real = Path.open

    def small_disk(path: Path, *arguments: Any, **options: Any) -> Any:
        return SmallDisk(real(path, *arguments, **options), room)

    monkeypatch.setattr(Path, "open", small_disk)
    with pytest.raises(DiskFullError, match="unchanged"):
        feedback.teach([USER, Message("assistant", "No room for this.")], "No room for this.")
    monkeypatch.undo()
    assert feedback.path.read_bytes() == before
    assert feedback.pairs == 1
    feedback.teach([USER, Message("assistant", "Now there is.")], "Now there is.")
    assert len(rows(feedback.path)) == 2


class SmallDisk:
    """A file on a disk with room for so many more bytes."""

    def __init__(self, file: Any, room: int) -> None:
        self._file, self._room = file, room

    def __enter__(self) -> SmallDisk:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)

    def write(self, data: bytes) -> int:
        fitting = data[: self._room]
        if not fitting:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        self._room -= len(fitting)
        return int(self._file.write(fitting))
