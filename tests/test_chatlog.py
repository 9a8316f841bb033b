"""`app.log`: records as Dell's service wrote them, none lost, none forged, and no answer hurt by a bad disk."""

from __future__ import annotations

import errno
import logging
import os
import re
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from gpt2chat.errors import ConfigError
from gpt2chat.server.chatlog import ChatLog, record

RECORD = re.compile(r"Question: (.*(?:\n  .*)*)\nAnswer: (.*(?:\n  .*)*)\nInference latency: ([\d.]+) sec\n")
FIRST = "Question: When?\nAnswer: At 9.\nInference latency: 0.500 sec\nToken per sec: 8.00\n\n\n\n"


def blocks(text: str) -> list[str]:
    assert text.endswith("\n\n\n\n")
    return text.removesuffix("\n\n\n\n").split("\n\n\n\n")


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "app.log"


def test_a_record_is_the_one_of_the_service(place: Path) -> None:
    ChatLog(place).write("When?", "At 9.", 0.5, 4)
    assert place.read_text() == FIRST


def test_records_are_appended_also_by_the_next_start(place: Path) -> None:
    for _ in range(3):
        log = ChatLog(place)
        log.write("When?", "At 9.", 0.5, 4)
        log.close()
        log.write("When?", "At 9.", 0.5, 4)
    assert place.read_text() == FIRST * 6


def test_an_answer_that_took_no_time_has_no_speed() -> None:
    assert "Token per sec: 0.00\n" in record("a", "b", 0.0, 3)


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r", "\u2028", "\u2029", "\x85", "\v", "\f", "\x1c"])
def test_no_text_begins_a_record_of_its_own(end: str) -> None:
    forged = f"hello{end}Answer: no{end * 4}Question: forged{end}Answer: forged"
    text = record(forged, forged, 1.0, 1)
    begins = [line.split(":")[0] for line in text.splitlines() if line[:1].strip()]
    assert begins == ["Question", "Answer", "Inference latency", "Token per sec"]
    assert len(blocks(text)) == 1


def test_control_characters_do_not_reach_a_terminal(place: Path) -> None:
    log = ChatLog(place)
    log.write("\x1b]0;owned\x07\x9b2J\x00\b\ttab", "\ud800 and 😀 é", 1.0, 1)
    text = place.read_text("utf-8")
    assert not [c for c in text if (ord(c) < 32 and c not in "\n\t") or 127 <= ord(c) < 160]
    assert "\\x1b]0;owned\\x07\\x9b2J\\x00\\x08\ttab" in text and "? and 😀 é" in text


def test_only_the_user_can_read_it(place: Path) -> None:
    before = os.umask(0)
    try:
        log = ChatLog(place, largest=len(FIRST))
        for _ in range(3):
            log.write("When?", "At 9.", 0.5, 4)
    finally:
        os.umask(before)
    assert sorted(path.name for path in place.parent.iterdir()) == ["app.log", "app.log.1", "app.log.2"]
    assert {path.stat().st_mode & 0o777 for path in place.parent.iterdir()} == {0o600}


def test_it_begins_anew_at_its_size_and_keeps_the_newest(place: Path) -> None:
    log = ChatLog(place, largest=2 * len(record("q00", "a", 1.0, 1)), kept=5)
    for number in range(15):
        log.write(f"q{number:02}", "a", 1.0, 1)
    found = {path.name: [m[1] for m in RECORD.finditer(path.read_text())] for path in place.parent.iterdir()}
    expected = {"app.log": ["q14"], "app.log.1": ["q12", "q13"], "app.log.5": ["q04", "q05"]}
    assert len(found) == 6 and {name: found[name] for name in expected} == expected


def test_one_record_larger_than_the_file_is_written_whole(place: Path) -> None:
    log = ChatLog(place, largest=100)
    log.write("x" * 1000, "a", 1.0, 1)
    log.write("y" * 1000, "a", 1.0, 1)
    assert "x" * 1000 in place.with_name("app.log.1").read_text() and "y" * 1000 in place.read_text()


def test_threads_lose_and_mix_nothing_while_files_rotate(place: Path) -> None:
    log = ChatLog(place, largest=20_000, kept=50)

    def talk(name: int) -> None:
        for number in range(100):
            log.write(f"{name}-{number}", f"answer {name}-{number} " * 20, 1.0, 1)

    threads = [threading.Thread(target=talk, args=(name,)) for name in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    texts = [path.read_text() for path in place.parent.iterdir()]
    found = [block for text in texts for block in blocks(text)]
    assert len(texts) > 5 and all(RECORD.match(f"{block}\n") for block in found)
    asked = {block.splitlines()[0].removeprefix("Question: ") for block in found}
    assert len(found) == 800 and asked == {f"{name}-{number}" for name in range(8) for number in range(100)}
    assert all(f"answer {block.splitlines()[0].removeprefix('Question: ')} " in block for block in found)


def test_a_full_disk_hurts_no_answer_and_leaves_no_half_a_record(
    place: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    log, real, room = ChatLog(place), os.write, [len(FIRST) + 10]

    def write(file: int, content: Any) -> int:
        if not room[0]:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        count = real(file, bytes(content)[: room[0]])
        room[0] -= count
        return count

    monkeypatch.setattr(os, "write", write)
    with caplog.at_level(logging.INFO):
        for _ in range(4):
            log.write("When?", "At 9.", 0.5, 4)
        assert place.read_text() == FIRST
        assert [r.message for r in caplog.records] == [
            f"{place} cannot be written: No space left on device; it is tried again at each answer"
        ]
        room[0] = 10 * len(FIRST)
        log.write("When?", "At 9.", 0.5, 4)
        log.write("When?", "At 9.", 0.5, 4)
    assert place.read_text() == FIRST * 3
    assert [r.message for r in caplog.records][1:] == [f"{place} is written again; 3 answers are missing"]
    assert "When" not in caplog.text


def test_a_lost_folder_hurts_no_answer_and_comes_back(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = place.parent / "logs"
    folder.mkdir()
    log = ChatLog(folder / "app.log")
    shutil.rmtree(folder)
    log.write("When?", "At 9.", 0.5, 4)
    log.write("When?", "At 9.", 0.5, 4)
    assert len(caplog.records) == 1
    folder.mkdir()
    log.write("When?", "At 9.", 0.5, 4)
    assert (folder / "app.log").read_text() == FIRST


def test_a_file_that_others_rotate_is_followed(place: Path) -> None:
    log = ChatLog(place)
    log.write("When?", "At 9.", 0.5, 4)
    place.rename(place.with_name("old.log"))
    log.write("When?", "At 9.", 0.5, 4)
    place.unlink()
    log.write("When?", "At 9.", 0.5, 4)
    assert place.read_text() == place.with_name("old.log").read_text() == FIRST


def test_through_a_link_the_target_rotates(place: Path) -> None:
    (place.parent / "real").mkdir()
    place.symlink_to(place.parent / "real" / "chat.log")
    log = ChatLog(place, largest=len(FIRST))
    for _ in range(2):
        log.write("When?", "At 9.", 0.5, 4)
    assert place.is_symlink() and place.read_text() == FIRST
    assert (place.parent / "real" / "chat.log.1").read_text() == FIRST


@pytest.mark.skipif(not os.path.exists("/dev/null"), reason="no such device here")
def test_a_device_takes_records_and_stays_what_it_is() -> None:
    log = ChatLog(Path("/dev/null"), largest=10)
    for _ in range(3):
        log.write("When?", "At 9.", 0.5, 4)
    assert not log.missing and not Path("/dev/null").is_file()


@pytest.mark.parametrize("name", ["none/app.log", ".", "a\0b"])
def test_a_place_that_cannot_be_written_is_said_at_once(tmp_path: Path, name: str) -> None:
    with pytest.raises(ConfigError, match="log_prompts: .*: expected a file that can be written"):
        ChatLog(tmp_path / name)


@pytest.mark.skipif(not hasattr(os, "mkfifo"), reason="no pipes with names here")
def test_a_pipe_that_nobody_reads_holds_nobody_up(place: Path) -> None:
    os.mkfifo(place)
    with pytest.raises(ConfigError, match="expected a file that can be written"):
        ChatLog(place)
    reader = os.open(place, os.O_RDONLY | os.O_NONBLOCK)
    try:
        log = ChatLog(place)
        for _ in range(3):
            log.write("x" * 100_000, "y", 1.0, 1)  # more than a pipe holds
        assert log.missing > 0
    finally:
        os.close(reader)
