"""`gpt2chat data`: every fault and finding with its place, and conversions that come back the same."""

from __future__ import annotations

import gzip
import json
import lzma
from pathlib import Path
from typing import Any

import pytest
from helpers_cli import invoke
from hypothesis import given
from hypothesis import strategies as st

from gpt2chat.checking import draw, marked, split_by_question
from gpt2chat.conversation import TEMPLATES, Message, render
from gpt2chat.errors import DataError
from gpt2chat.formats import Library, Source
from gpt2chat.formats.writers import TARGETS, write
from gpt2chat.records import Record, Report
from gpt2chat.tokenizer import END_OF_TEXT, Tokenizer

WORDS = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
SAID = WORDS.map(str.strip).filter(lambda text: bool(text) and END_OF_TEXT not in text)
SYSTEM = st.lists(SAID.map(lambda text: Message("system", text)), max_size=1)
PAIR = st.tuples(SAID, SAID).map(lambda both: [Message("user", both[0]), Message("assistant", both[1])])


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that outlives one example of hypothesis."""
    return tmp_path_factory.mktemp("written")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def back(path: Path, form: str) -> list[Any]:
    library = Library(Report(), wanted=None if form == "csv" else form)
    library.add(Source(path))
    return [record.content for record in (library.conversations or library.texts)]


# -- convert -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("form", [form for form in TARGETS if form != "text"])
@pytest.mark.parametrize("name", ["out.json", "out.jsonl"])
@given(system=SYSTEM, turns=st.lists(PAIR, min_size=1, max_size=3), learnt=st.booleans())
def test_what_is_written_is_read_back_the_same(
    form: str, name: str, folder: Path, system: list[Message], turns: list[list[Message]], learnt: bool
) -> None:
    turns = turns[:1] if form in ("pairs", "csv") else turns
    system = [] if form == "csv" else system
    messages = (*system, *[message for turn in turns for message in turn])
    if form == "messages" and not learnt and len(turns) > 1:
        first = messages.index(turns[0][1])
        messages = (*messages[:first], Message("assistant", turns[0][1].content, trained=False), *messages[first + 1 :])
    path = folder / (name if form != "csv" else "out.csv")
    assert write([Record("x:1", messages)], path, form) == 1
    assert back(path, form) == [messages]


@given(texts=st.lists(SAID.map(lambda text: text.strip("\n")), min_size=1, max_size=4, unique=True))
def test_texts_are_read_back_the_same(folder: Path, texts: list[str]) -> None:
    for name in ("t.json", "t.jsonl"):
        write([Record("x:1", text) for text in texts], folder / name, "text")
        assert back(folder / name, "text") == texts


@pytest.mark.parametrize(
    ("form", "content", "said"),
    [
        ("pairs", (Message("user", "a"), Message("assistant", "b")) * 2, "takes one question and one answer, found 2"),
        ("alpaca", (Message("user", "a"), Message("user", "b"), Message("assistant", "c")), "in turn"),
        ("sharegpt", (Message("user", "a"), Message("assistant", "b", trained=False)), "not learnt"),
        ("csv", (Message("system", "s"), Message("user", "a"), Message("assistant", "b")), "system prompt"),
        ("messages", "a text", "a text cannot become messages"),
        ("text", (Message("user", "a"), Message("assistant", "b")), "a conversation cannot become text"),
    ],
)
def test_what_a_form_has_no_room_for_is_refused_and_nothing_is_written(
    form: str, content: Any, said: str, tmp_path: Path
) -> None:
    (tmp_path / "out.x").write_text("old")
    with pytest.raises(DataError, match=said):
        write([Record("f.json:7", content)], tmp_path / "out.x", form)
    assert [path.name for path in tmp_path.iterdir()] == ["out.x"]
    assert (tmp_path / "out.x").read_text() == "old"


def test_a_table_of_questions_becomes_any_form(place: Path) -> None:
    (place / "faq.csv").write_text('question,answer\n"When, exactly?",At 9.\nWhere?,Here.\n')
    for form in ("pairs", "messages", "sharegpt", "alpaca"):
        result = invoke("data", "convert", "faq.csv", f"{form}.json", "--to", form)
        assert (result.exit_code, result.stderr) == (0, f"wrote 2 records to {form}.json\n")
        assert [m.content for m in back(place / f"{form}.json", form)[0]] == ["When, exactly?", "At 9."]
    assert invoke("data", "convert", "faq.csv", "x.json", "--to", "xml").exit_code == 2
    assert not (place / "x.json").exists()


# -- check ---------------------------------------------------------------------------------------------------------

ROWS = [
    {"user": "Hi", "bot": "Hello."},
    {"user": "Hi", "bot": "Hello."},
    {"user": "hi!", "bot": "hello"},
    {"user": "Mail?", "bot": "Write to me@example.org."},
    {"user": "Key?", "bot": "It is sk-abcdefghijklmnop1234."},
    {"user": "CafÃ©?", "bot": "Yes."},
    {"user": "Bell", "bot": "\u0007"},
    {"user": "", "bot": "nothing"},
    {"user": "Long?", "bot": "word " * 60},
    {"user": "Broken", "bot": 7},
    {"ask": "Other"},
]


def test_check_names_every_fault_and_finding_with_its_line(place: Path) -> None:
    (place / "faq.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS), "utf-8")
    result = invoke("data", "check", "faq.jsonl", "--max_length", "50")
    assert result.exit_code == 1
    said = result.stdout
    for line in (
        "error: faq.jsonl:10: record 10: bot: expected text, got 7",
        "error: faq.jsonl:11: record 11: expected {",
        "note: 1 records that repeat an earlier one: faq.jsonl:2: record 2",
        "note: 1 records that differ from an earlier one only in case, marks or blanks: faq.jsonl:3: record 3",
        "e-mail address, which a model may repeat: faq.jsonl:4: record 4",
        "key or password, which a model may repeat: faq.jsonl:5: record 5",
        "with signs of a wrong encoding (such as Ã© or â€™): faq.jsonl:6: record 6",
        "with control characters: faq.jsonl:7: record 7",
        "records without text on one side, left out: faq.jsonl:8: record 8",
        "conversations longer than 50 tokens: faq.jsonl:9: record 9",
        "example: User: Hi⏎Bot:⟦ Hello.",
    ):
        assert line in said, line


def test_check_prints_one_json_object_that_counts_as_training_does(place: Path, tokenizer: Tokenizer) -> None:
    (place / "faq.json").write_text(json.dumps(ROWS[:1] + ROWS[3:4]), "utf-8")
    result = invoke("data", "check", "faq.json", "--json")
    assert result.exit_code == 0
    found = json.loads(result.stdout)
    pairs = [(Message("user", row["user"]), Message("assistant", row["bot"])) for row in (ROWS[0], ROWS[3])]
    examples = [render(pair, TEMPLATES["chat"], tokenizer) for pair in pairs]
    assert found["tokens"] == sum(len(example.ids) for example in examples)
    assert found["learnt_tokens"] == sum(sum(example.loss_mask) for example in examples)
    assert (found["conversations"], found["texts"], found["errors"]) == (2, 0, [])
    assert found["longest"] == max(len(example.ids) for example in examples)


def test_check_finds_held_out_records_that_are_trained_on(place: Path) -> None:
    (place / "train.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS[:5]))
    (place / "held.jsonl").write_text("\n".join(json.dumps(row) for row in ({"user": "HI", "bot": "hello"}, ROWS[8])))
    result = invoke("data", "check", "train.jsonl", "--heldout", "held.jsonl")
    assert "note: 1 held-out records that are in the training data too: held.jsonl:1: record 1" in result.stdout
    assert "held.jsonl: pairs (user/bot) in JSON, 2 records held out" in result.stdout


def test_a_fault_in_held_out_data_is_named_and_the_report_goes_on(place: Path) -> None:
    (place / "train.jsonl").write_text("\n".join(json.dumps(row) for row in ROWS[:5]))
    (place / "held.jsonl").write_text(json.dumps(ROWS[0]) + "\n{broken\n" + json.dumps(ROWS[8]))
    (place / "sheet.csv").write_bytes(b"PK\x03\x04")
    result = invoke("data", "check", "train.jsonl", "--heldout", "held.jsonl", "--heldout", "sheet.csv")
    assert result.exit_code == 1
    assert "held.jsonl: pairs (user/bot) in JSON, 2 records held out, 1 error" in result.stdout
    assert "error: held.jsonl:2:" in result.stdout and "error: sheet.csv: expected text, found a zip" in result.stdout
    assert "held-out records that are in the training data too: held.jsonl:1" in result.stdout


def test_check_names_what_has_no_answer_within_the_context(place: Path) -> None:
    (place / "long.json").write_text(json.dumps([{"user": "word " * 60, "bot": "Yes."}]))
    result = invoke("data", "check", "long.json", "--max_length", "50")
    assert "note: 1 conversations with no answer within 50 tokens: long.json:1: record 1" in result.stdout


def test_check_reads_up_to_a_fault_of_the_file_itself(place: Path) -> None:
    (place / "cut.jsonl").write_text('{"user": "a", "bot": "b"}\n{"user": "c", "b')
    (place / "good.txt").write_text("A text.")
    result = invoke("data", "check", "cut.jsonl", "good.txt")
    assert result.exit_code == 1
    assert "error: cut.jsonl:2:" in result.stdout
    assert "good.txt: text, 1 record\n" in result.stdout
    assert "1 conversation, 1 text" in result.stdout


def test_what_is_learnt_is_marked(tokenizer: Tokenizer) -> None:
    ids = tokenizer.encode("one two three")
    assert marked(ids, [False, True, False], tokenizer) == "one⟦ two⟧ three"
    assert marked(ids, [True, True, True], tokenizer) == "⟦one two three⟧"
    assert marked([], [], tokenizer) == ""


# -- split and sample ----------------------------------------------------------------------------------------------


@given(
    numbers=st.lists(st.integers(0, 12), min_size=2, max_size=40),
    fraction=st.floats(0.05, 0.9),
    seed=st.integers(0, 99),
)
def test_a_split_keeps_every_record_once_and_equal_questions_together(
    numbers: list[int], fraction: float, seed: int
) -> None:
    records = [
        Record(f"x:{i}", (Message("user", f"Number {n}{'!' * (i % 2)}"), Message("assistant", str(i))))
        for i, n in enumerate(numbers)
    ]
    if len(set(numbers)) < 2:
        with pytest.raises(DataError, match="two different"):
            split_by_question(records, fraction, seed)
        return
    kept, held = split_by_question(records, fraction, seed)
    assert sorted([*kept, *held], key=lambda r: int(r.place[2:])) == records
    assert kept
    assert held
    sides = [{record.content[0].content.rstrip("!") for record in side} for side in (kept, held)]  # type: ignore[union-attr]
    assert not sides[0] & sides[1]
    assert split_by_question(records, fraction, seed) == (kept, held)


def test_split_writes_two_files_that_training_reads(place: Path) -> None:
    (place / "faq.jsonl").write_text("\n".join(json.dumps({"user": f"Q{n}", "bot": f"A{n}"}) for n in range(50)))
    result = invoke("data", "split", "faq.jsonl", "--fraction", "0.2")
    assert result.stderr == "wrote 40 records to train.jsonl\nwrote 10 records to heldout.jsonl\n"
    both = [*back(place / "train.jsonl", "messages"), *back(place / "heldout.jsonl", "messages")]
    assert sorted(m[0].content for m in both) == sorted(f"Q{n}" for n in range(50))


def test_split_writes_both_files_or_none(place: Path) -> None:
    (place / "rows.jsonl").write_text("\n".join(map(json.dumps, ROWS)))
    (place / "file").touch()
    result = invoke("data", "split", "rows.jsonl", "--train", "train.jsonl", "--heldout", "file/held.jsonl")
    assert result.exit_code == 1 and not (place / "train.jsonl").exists()


def test_what_is_written_is_packed_as_its_name_says(place: Path) -> None:
    (place / "rows.jsonl").write_text(json.dumps(ROWS[0]))
    for name, unpack in (("a.json.gz", gzip.decompress), ("a.jsonl.xz", lzma.decompress)):
        assert invoke("data", "convert", "rows.jsonl", name, "--to", "pairs").exit_code == 0
        text = unpack((place / name).read_bytes()).decode()
        assert (json.loads(text)[0] if "json." in name else json.loads(text))["user"] == ROWS[0]["user"]
    (place / "text.md").write_text("A text.")
    result = invoke("data", "convert", "text.md", "t.txt", "--to", "text")
    assert result.exit_code == 2 and "name it t.jsonl" in result.stderr


def test_a_sample_is_even_and_in_order() -> None:
    records = [Record(f"x:{n}", str(n)) for n in range(20)]
    counts = [0] * 20
    for seed in range(2000):
        drawn = [int(str(record.content)) for record in draw(iter(records), 5, seed)]
        assert drawn == sorted(set(drawn))
        assert len(drawn) == 5
        for number in drawn:
            counts[number] += 1
    assert all(400 < count < 600 for count in counts)
    assert draw(records[:3], 5, 0) == records[:3]


def test_sample_prints_records_with_their_place(place: Path) -> None:
    (place / "faq.csv").write_text("user,bot\nHi,Hello.\n")
    result = invoke("data", "sample", "faq.csv")
    assert result.stdout == "faq.csv:2: record 1\nuser: Hi\nassistant: Hello.\n\n"
