"""Whatever is typed, a chat goes on: no line ends it with a traceback, and long chats stay fast and small."""

from __future__ import annotations

import dataclasses
import gc
import json
import re
import statistics
import time
from collections.abc import Iterator
from pathlib import Path

import click
import pytest
from helpers_cli import ROOT, invoke, save_tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2chat import checkpoint
from gpt2chat.chatbot import GPT2Chatbot
from gpt2chat.chats import Feedback
from gpt2chat.cli.chat import commands
from gpt2chat.cli.chat.lines import History, read_message
from gpt2chat.cli.chat.loop import Talk
from gpt2chat.cli.chat.screen import Screen, Wrap, columns, fold
from gpt2chat.hardware import _resident_bytes as resident_bytes
from gpt2chat.sampling import GenerationConfig

NAMES = sorted(set(commands.BY_NAME) - {"/retrain"}) + [*commands.BY_WORD, "temp", "top_p", "length", "/nothing", "hi"]
WORDS = st.one_of(
    st.sampled_from(
        ["", "none", "all", "clear", "chat.json", "bot.pt", "pairs.json", "0", "-1", "1e400", "nan", "x" * 300]
    ),
    st.sampled_from(
        [f"{name} {value}" for name in commands.SETTINGS for value in ("0", "-3", "none", "1e9", "\\n", '"')]
    ),
    st.text(max_size=20),
)
LINES = st.lists(st.tuples(st.sampled_from(NAMES), WORDS).map(" ".join), min_size=1, max_size=6)


class Scripted:
    """Lines that are already there."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = iter(lines)

    def read(self, prompt: str, default: str = "") -> str:
        for line in self._lines:
            return line
        raise EOFError


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a tiny model, where the test runs."""
    folder = tmp_path_factory.mktemp("commands")
    save_tiny(folder / "bot.pt")
    (folder / "pairs.json").write_text('[{"user": "a", "bot": "b"}]')
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv("EDITOR", "true")
        patch.setenv("VISUAL", "true")
        yield folder


@settings(max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow])
@given(lines=LINES)
def test_no_line_ends_a_chat_with_a_traceback(place: Path, bot: GPT2Chatbot, lines: list[str]) -> None:
    bot.generation = GenerationConfig(temperature=0, max_new_tokens=3)
    bot.system, bot.stop, bot.messages = None, (), []
    bot.set_template(None)
    bot.clear_custom_examples()
    lines = [line for line in lines if "\n" not in line]
    talk = Talk(bot, "bot.pt", Scripted([*lines, "/new", "Hello"]), Screen(False), place / "f.jsonl")
    with click.Context(click.Command("chat"), info_name="gpt2chat"):
        assert talk.run() == 0


@pytest.fixture(scope="module")
def bot(place: Path) -> GPT2Chatbot:
    made = GPT2Chatbot("demo", generation=GenerationConfig(temperature=0, max_new_tokens=3))
    made.load_model(place / "bot.pt")
    return made


def test_the_help_names_every_command_and_each_line_fits(place: Path) -> None:
    shown = invoke("chat", "bot.pt", stdin="/help\n").stderr
    for command in commands.COMMANDS:
        assert all(name in shown for name in (*command.names, *command.bare[:2]))
        assert command.words in shown


def test_the_page_on_the_chat_names_every_command_and_setting() -> None:
    page = (ROOT / "docs" / "chat.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `/")]
    assert len(rows) == len(commands.COMMANDS)
    for command, row in zip(commands.COMMANDS, rows, strict=True):
        assert set(re.findall(r"`(/?[?\w]+)[` ]", row.split("|")[1])) >= {*command.names, *command.bare}
    assert all(name in page for name in commands.SETTINGS)


@pytest.mark.parametrize(
    ("before", "start", "found"),
    [
        ("/re", 0, ["/reset", "/regen", "/retrain"]),
        ("/set te", 5, ["temperature", "temp", "template"]),
        ("/load pa", 6, ["pairs.json"]),
        ("/model ./bo", 7, ["./bot.pt"]),
        ("hello", 5, []),
        ("/nothing x", 10, []),
        ("/set temperature 0.", 19, []),
    ],
)
def test_what_tab_offers(place: Path, before: str, start: int, found: list[str]) -> None:
    offered = commands.completions(before)
    assert (offered[0], set(offered[1])) == (start, set(found))


def test_triple_quotes_hold_several_lines() -> None:
    assert read_message(Scripted(['"""one', "", '  two"""']), "") == "one\n\n  two"
    assert read_message(Scripted(['"""one"""']), "") == "one"
    assert read_message(Scripted(['"""', "never closed"]), "") == "never closed"
    assert read_message(Scripted(['say "hi"']), "") == 'say "hi"'


@given(st.text(alphabet="ab 語👋é\n", max_size=200), st.integers(20, 60), st.randoms())
def test_wrapping_changes_blanks_and_newlines_alone(text: str, width: int, random: object) -> None:
    wrap, out, at = Wrap(5), "", 0
    while at < len(text):
        size = random.randint(1, 7)  # type: ignore[attr-defined]
        out += wrap.push(text[at : at + size], width)
        at += size
    out += wrap.flush(width)
    assert "".join(out.split()) == "".join(text.split())
    first, *rest = out.split("\n")
    assert columns(first) + 5 <= width or len(first.split()) <= 1
    assert all(columns(line.rstrip()) <= width or len(line.split()) == 1 for line in rest)


def test_a_folded_line_keeps_its_words_and_its_indent() -> None:
    folded = fold("  /save FILE   keep the chat as JSON that can be trained on", 30)
    assert folded.split() == [
        "/save",
        "FILE",
        "keep",
        "the",
        "chat",
        "as",
        "JSON",
        "that",
        "can",
        "be",
        "trained",
        "on",
    ]
    assert all(len(line) < 30 and line.startswith("  ") for line in folded.splitlines())


def test_a_history_that_cannot_be_kept_is_no_fault(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    history = History(tmp_path / "file" / "history.jsonl")
    history.add("one")
    assert history.lines == ["one"]


def test_a_history_grows_no_longer_than_it_may(tmp_path: Path) -> None:
    path = tmp_path / "history.jsonl"
    for begin in range(0, 2800, 700):
        history = History(path)
        for number in range(begin, begin + 700):
            history.add(f"line {number}")
    assert History(path).lines == [f"line {number}" for number in range(1800, 2800)]
    assert len(path.read_text().splitlines()) <= 2000


def test_two_hundred_turns_stay_fast_and_small(tmp_path: Path) -> None:
    """The context is full from the first turns on, so that all answers have the same work to do."""
    save_tiny(tmp_path / "bot.pt")
    bot = GPT2Chatbot("demo", generation=GenerationConfig(temperature=1.0, seed=1, max_new_tokens=16))
    bot.load_model(tmp_path / "bot.pt")
    seconds, memory = [], []
    for turn in range(221):
        began = time.process_time()
        bot.chat(f"Question {turn}: and what then?")
        seconds.append(time.process_time() - began)
        if turn in (60, 220):
            gc.collect()
            memory.append(resident_bytes())
    assert len(bot.messages) == 2 * 221
    early, late = statistics.median(seconds[10:30]), statistics.median(seconds[190:221])
    assert late < 2 * early
    assert memory[1] - memory[0] < 8e6


# -- what is taught stays taught -----------------------------------------------------------------------------------


def faq(folder: Path) -> Path:
    """A tiny model that says of itself that it knows single questions and answers."""
    tiny = checkpoint.load(save_tiny(folder / "tiny.pt"))
    checkpoint.save(dataclasses.replace(tiny, taught=[("a?", "b.")], about={"faq": True}), folder / "faq.pt")
    return folder / "faq.pt"


def test_what_was_taught_is_given_in_later_chats_until_it_is_taken_back(tmp_path: Path) -> None:
    path = faq(tmp_path)
    first = invoke("chat", path, stdin="Can you paint my frame?\n/teach Yes, from 150 pounds.\n")
    assert "/retrain learns it, /bad takes it back." in first.stderr
    later = invoke("chat", path, stdin="Can you paint my frame?\n")
    assert "given as answers, as you taught them before: 1 pair of" in later.stderr
    assert later.stdout.splitlines()[0] == "Yes, from 150 pounds."
    assert invoke("chat", path, "-p", "can you paint my frame").stdout.strip() == "Yes, from 150 pounds."
    invoke("chat", path, stdin="Can you paint my frame?\n/bad\n")
    assert (tmp_path / "faq.feedback.jsonl").read_text("utf-8") == ""
    Feedback(tmp_path / "faq.feedback.jsonl", "faq.pt").path.write_text("{}\nno json\n[1]\n", "utf-8")
    assert "as you taught them before" not in invoke("chat", path, "-p", "hello").stderr


def test_an_approved_answer_of_a_faq_is_kept_without_the_conversation_before_it(tmp_path: Path) -> None:
    path = faq(tmp_path)
    invoke("chat", path, stdin="a?\na?\n/good\n")
    [line] = (tmp_path / "faq.feedback.jsonl").read_text("utf-8").splitlines()
    assert [message["role"] for message in json.loads(line)["messages"]] == ["user", "assistant"]


def test_examples_that_are_taken_back_are_counted(tmp_path: Path) -> None:
    (tmp_path / "two.json").write_text('[{"user": "c", "bot": "d"}, {"user": "e", "bot": "f"}]')
    said = invoke("chat", faq(tmp_path), stdin=f"/examples {tmp_path / 'two.json'}\n/examples clear\n").stderr
    assert "2 examples taken back." in said


def test_what_is_taught_goes_before_the_fallback_of_a_model_of_conversations_too(tmp_path: Path) -> None:
    tiny = checkpoint.load(save_tiny(tmp_path / "tiny.pt"))
    checkpoint.save(dataclasses.replace(tiny, taught=[("a?", "b.")]), tmp_path / "talks.pt")
    said = invoke("chat", tmp_path / "talks.pt", "--fallback", "No.", stdin="c?\n/teach d.\nc?\n/new\nwho?\n")
    assert said.stdout.splitlines() == ["No.", "d.", "No."]
    assert invoke("chat", tmp_path / "talks.pt", "--fallback", "No.", "-p", "c?").stdout.strip() == "d."


@pytest.mark.parametrize(
    "spoilt", [b"\xff\xfe\n", b'{"provenance": {"by": "teach"}, "messages": []}\n', b"[" * 9999 + b"\n"]
)
def test_a_spoilt_line_of_what_was_taught_costs_no_other(tmp_path: Path, spoilt: bytes) -> None:
    path = faq(tmp_path)
    invoke("chat", path, stdin="c?\n/teach d.\n")
    kept = tmp_path / "faq.feedback.jsonl"
    empty = kept.read_text("utf-8").replace('"d."', '" "').replace('"c?"', '"e?"').encode()
    kept.write_bytes(b"\xef\xbb\xbf" + kept.read_bytes() + spoilt + empty)
    assert invoke("chat", path, "-p", "c?").stdout.strip() == "d."
