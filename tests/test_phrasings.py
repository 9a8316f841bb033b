"""A question with several phrasings is several pairs of one answer, in every place that takes pairs."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from helpers_cli import contents, invoke, save_tiny
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from gpt2chat import checkpoint
from gpt2chat.chatbot import GPT2Chatbot
from gpt2chat.checkpoint import Checkpoint
from gpt2chat.conversation import TEMPLATES, Message
from gpt2chat.errors import DataError
from gpt2chat.formats import Library, Source
from gpt2chat.formats.rows import PAIRS, pairs_to_messages
from gpt2chat.model import GPT2
from gpt2chat.records import Faults, Report
from gpt2chat.tokenizer import END_OF_TEXT

ASKED = ["When do you open?", "opening hours", "Wann öffnet ihr? 猫"]
WORDS = st.text(st.characters(exclude_categories=("Cs", "Cc")), min_size=1, max_size=12).filter(str.strip)
FORMS = ("json", "jsonl", "one")


def written(path: Path, rows: list[Any], form: str = "json") -> Path:
    """Write rows as a JSON list, as JSON lines, or a single one as it is."""
    text = json.dumps(rows, ensure_ascii=False) if form == "json" else "\n".join(map(json.dumps, rows))
    path.write_text(text, "utf-8")
    return path


def read(path: Path, report: Report | None = None) -> Library:
    library = Library(report or Report())
    library.add(Source(path))
    return library


def pairs_of(library: Library) -> list[tuple[str, ...]]:
    return [tuple(message.content for message in record.content) for record in library.conversations]  # type: ignore[union-attr]


# -- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("names", PAIRS, ids="/".join)
def test_each_phrasing_is_a_pair_of_its_own(tmp_path: Path, form: str, names: tuple[str, str]) -> None:
    rows = [{names[0]: ASKED, names[1]: "At nine."}]
    if form != "one":
        rows.append({names[0]: "Where is it?", names[1]: "There."})  # type: ignore[dict-item]
    library = read(written(tmp_path / "p.json", rows, form))
    found = [(asked, "At nine.") for asked in ASKED]
    assert pairs_of(library) == (found if form == "one" else [*found, ("Where is it?", "There.")])
    assert [record.place.partition(": ")[2] for record in library.conversations[:3]] == [
        f"record 1, phrasing {number}" for number in (1, 2, 3)
    ]
    if form != "one":
        assert library.conversations[3].place.endswith(": record 2")


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(rows=st.lists(st.tuples(st.lists(WORDS, min_size=1, max_size=4), WORDS), min_size=1, max_size=5))
def test_lists_are_read_as_the_rows_they_stand_for(tmp_path: Path, rows: list[tuple[list[str], str]]) -> None:
    short = [{"user": asked, "bot": said} for asked, said in rows]
    long = [{"user": one, "bot": said} for asked, said in rows for one in asked]
    expected = pairs_of(read(written(tmp_path / "long.json", long)))
    for form in ("json", "jsonl"):
        assert pairs_of(read(written(tmp_path / "short.json", short, form))) == expected
    messages = pairs_to_messages(short)
    assert messages == pairs_to_messages(long)
    assert [m.role for m in messages] == ["user", "assistant"] * len(long)


def test_one_phrasing_in_a_list_is_a_pair(tmp_path: Path) -> None:
    one, plain = [{"user": ["Hi"], "bot": "Hello."}], [{"user": "Hi", "bot": "Hello."}]
    assert pairs_of(read(written(tmp_path / "a.json", one))) == pairs_of(read(written(tmp_path / "b.json", plain)))


def test_what_stands_beside_a_question_goes_with_each_phrasing(tmp_path: Path) -> None:
    report = Report()
    row = {"user": ["Hi", "Hey"], "bot": "Hello.", "system": "Be kind.", "id": 7}
    library = read(written(tmp_path / "p.json", [row]), report)
    assert pairs_of(library) == [("Be kind.", "Hi", "Hello."), ("Be kind.", "Hey", "Hello.")]
    [line] = report.lines()
    assert "the key 'id', which is not used" in line


def test_a_phrasing_that_is_there_twice_is_used_once(tmp_path: Path) -> None:
    report = Report()
    library = read(written(tmp_path / "p.json", [{"user": ["Hi", " Hi "], "bot": "Hello."}]), report)
    assert pairs_of(library) == [("Hi", "Hello.")]
    assert report.lines() == ["1 conversations that repeat an earlier one, used once: p.json:1: record 1, phrasing 2"]


def test_a_phrasing_without_words_is_left_out_and_named(tmp_path: Path) -> None:
    report = Report()
    library = read(written(tmp_path / "p.json", [{"user": ["Hi", " ", "Hey"], "bot": "Hello."}]), report)
    assert pairs_of(library) == [("Hi", "Hello."), ("Hey", "Hello.")]
    assert report.lines() == ["1 records without text on one side, left out: p.json:1: record 1, phrasing 2"]


def test_a_fault_names_line_record_and_phrasing(tmp_path: Path) -> None:
    rows = [{"user": "Hi", "bot": "Hello."}, {"user": ["Hi", f"x{END_OF_TEXT}"], "bot": "Hello."}]
    for form, place in (("json", ":1: record 2, phrasing 2: found"), ("jsonl", ":2: record 2, phrasing 2: found")):
        with pytest.raises(DataError, match=place):
            read(written(tmp_path / "p.json", rows, form))


WRONG: dict[str, Any] = {
    "empty": [],
    "numbers": ["Hi", 3],
    "nothing": ["Hi", None],
    "lists": [["Hi"]],
    "records": [{"user": "Hi"}],
    "a number": 3,
    "nothing at all": None,
    "a record": {"a": "Hi"},
}


@pytest.mark.parametrize("asked", WRONG.values(), ids=WRONG.keys())
def test_what_is_no_list_of_texts_is_one_clear_fault(tmp_path: Path, asked: Any) -> None:
    row = {"user": asked, "bot": "Hello."}
    for rows, record in (([row], 1), ([{"user": ["Hi", "Hey"], "bot": "Hello."}, row], 2)):
        with pytest.raises(DataError) as found:
            read(written(tmp_path / "p.json", rows))
        said = str(found.value)
        assert re.search(rf"p\.json:1: record {record}: user: expected text.*, got ", said)
        assert "\n" not in said and len(said) < 300
    with pytest.raises(DataError, match="example 1: user: expected text.*, got"):
        pairs_to_messages([{"user": "a", "bot": "b"}, row])


@pytest.mark.parametrize("said", [["Hello.", "Hi."], [], 3])
def test_an_answer_is_one_text(tmp_path: Path, said: Any) -> None:
    with pytest.raises(DataError, match="bot: expected text, got"):
        read(written(tmp_path / "p.json", [{"user": ["Hi", "Hey"], "bot": said}]))


def test_behind_a_fault_reading_goes_on(tmp_path: Path) -> None:
    from gpt2chat.formats import read as read_source

    rows = [{"user": [], "bot": "a"}, {"user": ["Hi", "Hey"], "bot": "b"}, {"user": [1], "bot": "c"}]
    faults = Faults()
    reading = read_source(Source(written(tmp_path / "p.json", rows, "jsonl")), Report(), faults=faults)
    assert [record.place.partition(": ")[2] for record in reading.records] == [
        "record 2, phrasing 1",
        "record 2, phrasing 2",
    ]
    assert faults.count == 2


@pytest.mark.parametrize("row", [{"instruction": ["a", "b"], "output": "c"}, {"text": ["a", "b"]}])
def test_other_kinds_take_no_lists(tmp_path: Path, row: dict[str, Any]) -> None:
    with pytest.raises(DataError, match="expected text, got"):
        read(written(tmp_path / "p.json", [row]))


# -- Python --------------------------------------------------------------------------------------------------------


@pytest.fixture
def bot(tiny_model: GPT2) -> GPT2Chatbot:
    weights = {name: tensor.detach() for name, tensor in tiny_model.state_dict().items()}
    made = GPT2Chatbot("demo", grounded=True)
    made.use(Checkpoint(tiny_model.config, weights, TEMPLATES["chat"], about={"base": "tiny"}))
    return made


def test_examples_have_phrasings_that_find_their_answer(bot: GPT2Chatbot) -> None:
    assert bot.add_custom_examples([{"user": ASKED, "bot": "At nine."}, {"user": "Hi", "bot": "Hello."}]) == 4
    assert bot.examples[:2] == [Message("user", ASKED[0]), Message("assistant", "At nine.")]
    for asked in ASKED:
        assert bot.chat(asked) == "At nine."
    bot.drop_custom_example(ASKED[0], "At nine.")
    assert len(bot.examples) == 6


def test_a_bad_example_adds_none_and_names_the_phrasing(bot: GPT2Chatbot) -> None:
    good = {"user": ASKED, "bot": "At nine."}
    for bad, place in (
        ({"user": ["Hi", " "], "bot": "Hello."}, "example 1, phrasing 2: expected text on both sides"),
        ({"user": ["Hi", f"{END_OF_TEXT}"], "bot": "Hello."}, "example 1, phrasing 2: found"),
        ({"user": [], "bot": "Hello."}, "example 1: user: expected text.*, got \\[\\]"),
    ):
        with pytest.raises(DataError, match=place):
            bot.add_custom_examples([good, bad])
    assert bot.examples == []


# -- commands ------------------------------------------------------------------------------------------------------


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a tiny model and a question in three ways."""
    monkeypatch.chdir(tmp_path)
    save_tiny(tmp_path / "tiny.pt")
    written(tmp_path / "p.json", [{"user": ASKED, "bot": "At nine."}, {"user": "Hi", "bot": "Hello."}])
    return tmp_path


def test_a_run_learns_each_phrasing(place: Path) -> None:
    result = invoke("train", "--model", "tiny.pt", "--conversation_file", "p.json", "--steps", 1)
    assert result.exit_code == 0, result.stderr
    assert "4 records" in result.stderr
    taught = checkpoint.load(place / "trained_model.pt").taught
    assert taught == [*((asked, "At nine.") for asked in ASKED), ("Hi", "Hello.")]


def test_data_check_counts_each_and_names_faults(place: Path) -> None:
    result = invoke("data", "check", "p.json")
    assert result.exit_code == 0, result.output
    assert "4" in result.output
    written(place / "bad.json", [{"user": ["Hi", "Hey"], "bot": "a"}, {"user": [], "bot": "b"}], "jsonl")
    result = invoke("data", "check", "bad.json")
    assert result.exit_code == 1
    assert re.search(r"bad\.json:2: record 2: user: expected text.*, got \[\]", result.output)


@pytest.mark.parametrize("asked", [[], ["Hi", 3]])
def test_a_run_on_bad_lists_is_one_line_and_writes_nothing(place: Path, asked: list[Any]) -> None:
    written(place / "bad.json", [{"user": asked, "bot": "b"}])
    before = contents(place)
    result = invoke("train", "--model", "tiny.pt", "--conversation_file", "bad.json", "--steps", 1)
    assert result.exit_code == 1
    [line] = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert re.search(r"bad\.json:1: record 1: user: expected text.*, got", line)
    assert contents(place) == before


def test_the_chat_shows_phrasings_of_a_file(place: Path) -> None:
    said = invoke("chat", "tiny.pt", "--grounded", stdin="/examples p.json\nopening HOURS\n")
    assert said.exit_code == 0, said.stderr
    assert "4 examples of p.json added" in said.stderr
    assert "At nine." in said.stdout
