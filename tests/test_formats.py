"""Files in every form become records: nothing is dropped without a word, and every fault is named with its place."""

from __future__ import annotations

import gzip
import json
import lzma
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from gpt2chat import formats
from gpt2chat.conversation import TEMPLATES, Message, render
from gpt2chat.errors import ConfigError, DataError
from gpt2chat.formats import Library, Source, expand
from gpt2chat.formats.json_rows import read_rows
from gpt2chat.formats.rows import pairs_to_messages
from gpt2chat.formats.sources import PIECE
from gpt2chat.records import Faults, Record, Report
from gpt2chat.tokenizer import END_OF_TEXT, Tokenizer

SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8)
JSON = st.recursive(
    SCALARS, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=4), inner, max_size=3)
)
PAIR = st.fixed_dictionaries({"user": st.text("ab \n", max_size=2), "bot": st.text("ab \t", max_size=2)})


def write(path: Path, content: object) -> Path:
    path.write_text(content if isinstance(content, str) else json.dumps(content), encoding="utf-8")
    return path


def pair(user: str, bot: str) -> dict[str, str]:
    return {"user": user, "bot": bot}


def contents(records: Sequence[Record]) -> list[Any]:
    return [r.content if isinstance(r.content, str) else tuple(m.content for m in r.content) for r in records]


def read_conversations(path: Path, report: Report | None = None) -> list[Record]:
    return formats.read_conversations([Source(path)], report or Report())


def read_text(path: Path, separator: str | None = None) -> list[Record]:
    texts = Library(Report(), separator=separator)
    texts.add(Source(path), "texts")
    return texts.texts


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that outlives one example of hypothesis."""
    return tmp_path_factory.mktemp("data")


# -- pairs ---------------------------------------------------------------------------------------------------------


def test_pairs_become_messages_in_order(tmp_path: Path) -> None:
    report = Report()
    path = write(tmp_path / "pairs.json", [pair(" hi ", "Hello\nyou 👋\n"), pair("bye", "日本")])
    records = read_conversations(path, report)
    assert [record.content for record in records] == [
        (Message("user", "hi"), Message("assistant", "Hello\nyou 👋")),
        (Message("user", "bye"), Message("assistant", "日本")),
    ]
    assert records[1].place == f"{path}:1: record 2"
    assert report.lines() == []


def test_a_byte_order_mark_changes_nothing(tmp_path: Path) -> None:
    rows = json.dumps([pair("a", "b")])
    (tmp_path / "bom.json").write_bytes(b"\xef\xbb\xbf" + rows.encode())
    (tmp_path / "bom.txt").write_bytes(b"\xef\xbb\xbftext")
    assert contents(read_conversations(tmp_path / "bom.json", Report())) == [("a", "b")]
    assert contents(read_text(tmp_path / "bom.txt")) == ["text"]


def test_extra_keys_are_counted_and_named(tmp_path: Path) -> None:
    report = Report()
    rows = [pair("a", "b") | {"id": 7}, pair("c", "d"), pair("e", "f") | {"id": None}]
    assert len(read_conversations(write(tmp_path / "p.json", rows), report)) == 3
    assert report.lines() == ["2 records with the key 'id', which is not used: p.json:1: record 1, p.json:1: record 3"]


def test_empty_sides_and_duplicates_are_left_out_and_named(tmp_path: Path) -> None:
    report = Report()
    rows = [pair("a", "b"), pair("", "b"), pair("a", " \n"), pair(" a", "b "), pair("a", "c"), pair("a", "b")]
    assert contents(read_conversations(write(tmp_path / "p.json", rows), report)) == [("a", "b"), ("a", "c")]
    assert report.lines() == [
        "2 records without text on one side, left out: p.json:1: record 2, p.json:1: record 3",
        "2 conversations that repeat an earlier one, used once: p.json:1: record 4, p.json:1: record 6",
    ]


def test_a_report_names_five_places_and_counts_all() -> None:
    report = Report()
    for number in range(7):
        report.add("odd", f"record {number}")
    assert report.lines() == ["7 odd: record 0, record 1, record 2, record 3, record 4, …"]


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ('[{"user": "a",\n "bot": }]', ":2:9: not valid JSON"),
        ('[{"user": "a", "bot": "b"}', ":1: not valid JSON: expected a comma between two records, found the end"),
        ('[{"user": "a", "bot": "b"},\n]', ":2: not valid JSON: remove the comma before ]"),
        ('[{"user": "a", "bot": "b",}]', ": remove the comma before it"),
        ("[{'user': 'a'}]", ": JSON takes double quotes"),
        ("", ": expected text or records, found an empty file"),
        (" \n", "found an empty file"),
        ("[]", "expected at least one record, found none"),
        ([{"ask": "a", "reply": "b"}], ':1: expected {"messages": '),
        ([pair("a", "b"), {"user": "a"}], ':1: record 2: expected {"user": str, "bot": str}, got {"user": "a"}'),
        ([{"user": "a", "bot": 3}], ":1: record 1: bot: expected text, got 3"),
        ([{"user": None, "bot": "b"}], "record 1: user: expected text, got null"),
        (["a"], ":1: expected records {...}, got str"),
        ('[{"user": "a", "user": "b", "bot": "c"}]', ":1: the key 'user' stands twice in it"),
        ('[{"user": "a", "bot": NaN}]', ":1: NaN is not JSON"),
        ([pair("a", "b"), pair("a", f"b{END_OF_TEXT}")], f"record 2: found {END_OF_TEXT}"),
        ([pair("", "")], "nothing is left to learn from: 1 records without text on one side"),
        ("Once upon a time", "expected conversations, found text, which goes to --text_file"),
        ("[" * 200_000, "nested too deeply"),
        ('[{"user": "a", "bot": ' + "9" * 5000 + "}]", ": "),
    ],
)
def test_a_faulty_pairs_file_is_refused_with_its_place(tmp_path: Path, content: object, said: str) -> None:
    path = write(tmp_path / "pairs.json", content)
    with pytest.raises(DataError) as caught:
        read_conversations(path, Report())
    assert str(caught.value).startswith(str(path))
    assert said in str(caught.value)


@pytest.mark.parametrize("depth", [300, 600, 900, 980, 2_000, 100_000])
def test_a_deeply_nested_value_is_a_data_error(tmp_path: Path, depth: int) -> None:
    path = write(tmp_path / "deep.json", '[{"user": ' + "[" * depth + "]" * depth + ', "bot": "b"}]')
    with pytest.raises(DataError):
        read_conversations(path, Report())


def test_a_long_wrong_record_is_shown_shortened(tmp_path: Path) -> None:
    path = write(tmp_path / "pairs.json", [{"user": "a" * 500}])
    with pytest.raises(DataError) as caught:
        read_conversations(path, Report())
    assert "..." in str(caught.value)
    assert "a" * 100 not in str(caught.value)


@given(rows=st.lists(JSON | PAIR, max_size=4) | JSON)
def test_any_json_gives_records_or_a_data_error(folder: Path, rows: object) -> None:
    try:
        records = read_conversations(write(folder / "any.json", rows), Report())
    except DataError as error:
        assert str(folder / "any.json") in str(error)
    else:
        assert 0 < len(records) <= (1 if isinstance(rows, dict) else len(rows))  # type: ignore[arg-type]


@given(data=st.binary(max_size=60))
def test_any_bytes_give_records_or_a_data_error(folder: Path, data: bytes) -> None:
    (folder / "any.bin").write_bytes(data)
    for read in (lambda path: read_conversations(path, Report()), read_text):
        try:
            assert read(folder / "any.bin")
        except DataError as error:
            assert str(folder / "any.bin") in str(error)


@given(rows=st.lists(PAIR, min_size=1, max_size=12))
def test_every_pair_is_used_or_named(folder: Path, rows: list[dict[str, str]]) -> None:
    report = Report()
    try:
        records = read_conversations(write(folder / "pairs.json", rows), report)
    except DataError:
        assert not any(row["user"].strip() and row["bot"].strip() for row in rows)
        return
    used = {int(record.place.rpartition(" ")[2]) for record in records}
    named = [int(place.rpartition(" ")[2]) for places in report.found.values() for place in places]
    assert sorted([*used, *named]) == list(range(1, len(rows) + 1))
    clean = [(row["user"].strip(), row["bot"].strip()) for row in rows]
    assert contents(records) == list(dict.fromkeys(both for both in clean if all(both)))


@pytest.mark.parametrize("bad", [{"user": "a"}, {}, "a", None, 3, ["a", "b"], {"user": b"a", "bot": "b"}, object()])
def test_a_bad_entry_given_in_python_is_a_data_error_with_its_index(bad: object) -> None:
    with pytest.raises(DataError, match="example 1: (user: )?expected"):
        pairs_to_messages([pair("a", "b"), bad])


# -- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("read", [read_text, lambda path: read_conversations(path, Report())], ids=["text", "pairs"])
def test_a_missing_file_a_folder_and_bad_bytes_are_refused_with_their_place(tmp_path: Path, read: Any) -> None:
    with pytest.raises(DataError, match="cannot be read: No such file"):
        read(tmp_path / "missing")
    with pytest.raises(DataError, match="expected a file, found a folder"):
        read(tmp_path)
    (tmp_path / "latin").write_bytes(b"one\ntwo \xe9\nthree")
    with pytest.raises(DataError, match=r"latin:2: expected UTF-8, found byte 0xe9: --encoding cp1252 would read it"):
        read(tmp_path / "latin")


def test_a_bad_byte_after_a_byte_order_mark_is_named_with_its_own_line(tmp_path: Path) -> None:
    (tmp_path / "bom").write_bytes(b"\xef\xbb\xbfa\n\xe9")
    with pytest.raises(DataError, match=r"bom:2: expected UTF-8, found byte 0xe9"):
        read_text(tmp_path / "bom")


def test_the_end_marker_inside_a_text_is_refused_with_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "text.txt", f"one\ntwo\nthree {END_OF_TEXT}\n")
    with pytest.raises(DataError, match=r"text\.txt:3: found <\|endoftext\|>.*--text_separator"):
        read_text(path)
    assert contents(read_text(path, END_OF_TEXT)) == ["one\ntwo\nthree "]
    separated = write(tmp_path / "parts.txt", f"one\n---\ntwo\n{END_OF_TEXT}")
    with pytest.raises(DataError, match=r"parts\.txt:4: found"):
        read_text(separated, "---\n")


@pytest.mark.parametrize("name", ["a{0}.txt", "a{b}.txt", "a{.txt"])
def test_a_file_name_with_braces_is_only_a_name(tmp_path: Path, name: str) -> None:
    assert contents(read_text(write(tmp_path / name, "text"))) == ["text"]
    with pytest.raises(DataError) as caught:
        read_text(write(tmp_path / name, END_OF_TEXT))
    assert str(caught.value).startswith(f"{tmp_path / name}:1: found")
    with pytest.raises(DataError) as caught:
        read_conversations(write(tmp_path / name, [pair("a", END_OF_TEXT)]))
    assert str(caught.value).startswith(f"{tmp_path / name}:1: record 1: found")


def test_line_ends_of_windows_become_line_feeds(tmp_path: Path) -> None:
    (tmp_path / "crlf.txt").write_bytes(b"one\r\ntwo\r\n===\r\nthree\r\n")
    assert contents(read_text(tmp_path / "crlf.txt")) == ["one\ntwo\n===\nthree"]
    assert contents(read_text(tmp_path / "crlf.txt", "===\n")) == ["one\ntwo", "three"]


def test_a_separator_cuts_a_text_into_documents_with_their_lines(tmp_path: Path) -> None:
    path = write(tmp_path / "text.txt", "one\nmore\n===\ntwo\n===\n \n===\nthree\n")
    records = read_text(path, "===\n")
    assert contents(records) == ["one\nmore", "two", "three"]
    assert [record.place for record in records] == [f"{path}:1", f"{path}:4", f"{path}:8"]
    assert contents(read_text(path)) == ["one\nmore\n===\ntwo\n===\n \n===\nthree"]


@pytest.mark.parametrize("content", ["", " \n\n", "==="])
def test_a_text_without_text_is_refused(tmp_path: Path, content: str) -> None:
    with pytest.raises(DataError, match="expected text, found none|found an empty file"):
        read_text(write(tmp_path / "text.txt", content), "===")


# -- forms ---------------------------------------------------------------------------------------------------------

TALK = (Message("user", "Hi"), Message("assistant", "Hello."), Message("user", "Bye"), Message("assistant", "See you."))
FROM = {"user": "human", "assistant": "gpt"}
FORMS: dict[str, tuple[object, str, tuple[Message, ...]]] = {
    "pairs.jsonl": ('{"user": "Hi", "bot": "Hello."}\n\n', "pairs (user/bot) in JSON", TALK[:2]),
    "one.json": ({"question": "Hi", "answer": "Hello."}, "pairs (question/answer) in JSON", TALK[:2]),
    "prompts.jsonl": ('{"prompt": "Hi", "completion": "Hello."}', "pairs (prompt/completion) in JSON", TALK[:2]),
    "messages.jsonl": (
        {"messages": [{"role": m.role, "content": m.content} for m in TALK]},
        "messages in JSON",
        TALK,
    ),
    "sharegpt.json": (
        [
            {
                "id": "x",
                "conversations": [{"from": {"user": "human"}.get(m.role, "gpt"), "value": m.content} for m in TALK],
            }
        ],
        "sharegpt in JSON",
        TALK,
    ),
    "alpaca.json": (
        [{"instruction": "Bye", "input": "", "output": "See you.", "history": [["Hi", "Hello."]]}],
        "alpaca in JSON",
        TALK,
    ),
    "alpaca_input.json": (
        [{"system": "Be kind.", "instruction": "Add.", "input": "1 2", "output": "3"}],
        "alpaca in JSON",
        (Message("system", "Be kind."), Message("user", "Add.\n1 2"), Message("assistant", "3")),
    ),
    "faq.csv": ("Question,Answer\nHi,Hello.\n", "pairs (question/answer) in CSV", TALK[:2]),
    "faq.txt": ('user;bot\n"Hi";"Hello."\n', "pairs (user/bot) in table with ;", TALK[:2]),
    "faq.tsv": ("bot\tuser\r\nHello.\tHi\r\n", "pairs (user/bot) in TSV", TALK[:2]),
    "talk.txt": ("User: Hi\nBot: Hello.\nUser: Bye\nBot: See you.\n", "transcript", TALK),
    "talk.md": ("Human: Hi\n\nAssistant: Hello.\n", "transcript", TALK[:2]),
    "talk.chatml": (
        "".join(f"<|im_start|>{m.role}\n{m.content}<|im_end|>\n" for m in TALK),
        "ChatML",
        TALK,
    ),
}


def library(path: Path, **options: Any) -> Library:
    made = Library(Report(), **options)
    made.add(Source(path))
    return made


@pytest.mark.parametrize("name", FORMS)
@pytest.mark.parametrize("packed", [None, gzip.compress, lzma.compress], ids=["plain", "gz", "xz"])
def test_every_form_is_recognised_and_named(name: str, packed: Any, tmp_path: Path) -> None:
    content, form, expected = FORMS[name]
    path = write(tmp_path / name, content)
    if packed:
        path.write_bytes(packed(path.read_bytes()))
    found = library(path)
    assert [record.content for record in found.conversations] == [expected]
    assert found.found == [f"{path}: {form}, 1 record"]


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-32"])
@pytest.mark.parametrize("name", ["one.json", "faq.csv", "talk.txt"])
def test_a_byte_order_mark_tells_the_encoding(encoding: str, name: str, tmp_path: Path) -> None:
    content = FORMS[name][0]
    text = content if isinstance(content, str) else json.dumps(content)
    (tmp_path / name).write_bytes(text.encode(encoding))
    assert len(library(tmp_path / name).conversations) == 1


def test_another_encoding_is_offered_and_never_guessed(tmp_path: Path) -> None:
    path = tmp_path / "faq.csv"
    path.write_bytes("question,answer\nCafé?,Déjà vu.\n".encode("cp1252"))
    with pytest.raises(DataError, match=r"faq.csv:2: expected UTF-8, found byte 0xe9: --encoding cp1252 would read it"):
        library(path)
    made = Library(Report())
    made.add(Source(path, "cp1252"))
    assert contents(made.conversations) == [("Café?", "Déjà vu.")]
    with pytest.raises(ConfigError, match="encoding: 'klingon' is not known"):
        Library(Report()).add(Source(path, "klingon"))


def test_a_message_of_weight_zero_is_shown_but_not_learnt(tmp_path: Path, tokenizer: Tokenizer) -> None:
    messages = [{"role": m.role, "content": m.content} for m in TALK]
    messages[1]["weight"] = 0  # type: ignore[assignment]
    [record] = library(write(tmp_path / "m.jsonl", {"messages": messages})).conversations
    example = render(record.content, TEMPLATES["chat"], tokenizer)  # type: ignore[arg-type]
    whole = render(TALK, TEMPLATES["chat"], tokenizer)
    assert example.ids == whole.ids
    taught = [token for token, trained in zip(example.ids, example.loss_mask, strict=True) if trained]
    assert taught == [*tokenizer.encode(" See you."), tokenizer.end_id]


def test_what_is_not_used_of_a_conversation_is_named(tmp_path: Path) -> None:
    rows = [list(TALK[:3]), [TALK[0]], list(TALK)]
    text = "\n".join(json.dumps({"messages": [{"role": m.role, "content": m.content} for m in row]}) for row in rows)
    found = library(write(tmp_path / "m.jsonl", text))
    assert [record.content for record in found.conversations] == [TALK[:2], TALK]
    assert found.report.lines() == [
        "1 records that end with a question; it is not used: m.jsonl:1: record 1",
        "1 records without an answer to learn, left out: m.jsonl:2: record 2",
    ]


@pytest.mark.parametrize(
    ("name", "content", "said"),
    [
        ("m.jsonl", '{"messages": [{"role": "tool", "content": "x"}]}', "message 1: role: expected user, assistant"),
        ("m.jsonl", '{"messages": [{"role": "user"}]}', 'message 1: expected {"role": str, "content": str}, got'),
        ("m.jsonl", '{"messages": "hi"}', "messages: expected a list, got"),
        ("m.jsonl", '{"messages": [{"role": "user", "content": "a", "weight": 2}]}', "weight: expected 0 or 1, got 2"),
        (
            "a.json",
            '[{"instruction": "a", "output": "b", "history": [["x"]]}]',
            "history 1: expected [question, answer",
        ),
        ("f.csv", "question,answer\na,b,c\n", "f.csv:2: expected 2 columns (question, answer), got 3"),
        ("f.csv", 'question,answer\n"a,b\n', "f.csv:2: not a valid table"),
        (
            "f.csv",
            "ask,reply\na,b\n",
            "expected columns named user and bot, question and answer, prompt and completion, or text, found ask",
        ),
        ("f.csv", "user,user\na,b\n", "expected different names in the header"),
        ("t.txt", "User: hi\nBot: ho\n<|im_start|>", None),
        ("c.txt", "<|im_start|>user\nhi", "c.txt:1: expected <|im_end|> after this message"),
        ("c.txt", "<|im_start|>alien\nhi<|im_end|>", "expected user, assistant or system, got 'alien'"),
        ("p.jsonl", '{"user": "a", "bot": "b"}\n{"user": "a" "bot"}', r"p.jsonl:2:14: not valid JSON"),
        ("p.jsonl", '{"user": "a", "bot": "b"}\nhello', "p.jsonl:2:1: not valid JSON"),
    ],
)
def test_a_fault_in_a_form_is_named_with_its_line(name: str, content: str, said: str | None, tmp_path: Path) -> None:
    path = write(tmp_path / name, content)
    if said is None:
        assert library(path).conversations
        return
    with pytest.raises(DataError) as caught:
        library(path)
    assert str(path) in str(caught.value)
    assert said in str(caught.value)


def test_a_format_that_is_given_overrides_what_is_seen(tmp_path: Path) -> None:
    path = write(tmp_path / "talk.txt", "User: Hi\nBot: Hello.\n")
    assert contents(library(path, wanted="text").texts) == ["User: Hi\nBot: Hello."]
    rows = [{"user": "a", "bot": "b", "text": "c"}]
    assert contents(library(write(tmp_path / "both.json", rows), wanted="text").texts) == ["c"]
    with pytest.raises(ConfigError, match="format: expected one of messages, .*got 'xml'"):
        library(path, wanted="xml")
    with pytest.raises(DataError, match="expected messages in JSON or a table, found neither"):
        library(path, wanted="messages")


def test_folders_patterns_and_near_names(tmp_path: Path) -> None:
    (tmp_path / "deep" / "er").mkdir(parents=True)
    for name in ("b.md", "a.txt", "deep/er/c.jsonl", "deep/x.png", ".hidden.txt"):
        (tmp_path / name).write_text("{}")
    assert [source.path.name for source in expand([tmp_path])] == ["a.txt", "b.md", "c.jsonl"]
    assert [source.path.name for source in expand([tmp_path / "**" / "*.jsonl"])] == ["c.jsonl"]
    with pytest.raises(DataError, match=r"a\.tx: no such file: did you mean .*a\.txt\?"):
        expand([tmp_path / "a.tx"])
    with pytest.raises(DataError, match=r"expected data files .* found none"):
        (tmp_path / "empty").mkdir()
        expand([tmp_path / "empty"])


def test_what_openai_and_others_also_write_is_read(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]
    rows = [
        {
            "messages": [
                {"role": "developer", "content": parts},
                *({"role": r, "content": r} for r in ("user", "assistant")),
            ]
        },
        {"messages": [{"role": "user", "content": [{"type": "image_url"}]}, {"role": "assistant", "content": "x"}]},
    ]
    (tmp_path / "m.jsonl").write_text("\n".join(map(json.dumps, rows)))
    faults = Faults()
    (record,) = formats.read(Source(tmp_path / "m.jsonl"), Report(), faults=faults).records
    assert record.content[0] == Message("system", "Be brief.")
    assert faults.count == 1 and "m.jsonl:2: record 2: message 1" in faults.kept[0]
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]
    (tmp_path / "s.json").write_text(json.dumps([{"conversations": turns}]))
    assert library(tmp_path / "s.json").conversations[0].content == (Message("user", "a"), Message("assistant", "b"))
    (tmp_path / "k.json").write_text('[{"User": "a", "Bot": "b"}]')
    with pytest.raises(DataError, match="expected keys in lower case, got 'User', 'Bot': rename them"):
        library(tmp_path / "k.json")


def test_what_a_folder_holds_is_used_or_named(tmp_path: Path) -> None:
    for folder in ("one", "other", ".git"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "faq.jsonl").write_text('{"user": "a", "bot": "b", "id": 1}')
    (tmp_path / "one" / ".note.txt").write_text("hidden")
    (tmp_path / "linked.txt").symlink_to(tmp_path / "nowhere")
    (tmp_path / "another").symlink_to(tmp_path / "one")
    os.mkfifo(tmp_path / "pipe.txt")
    report = Report()
    sources = expand([tmp_path], report=report)
    assert [source.path.parent.name for source in sources] == ["one", "other"]
    assert report.lines() == [
        "2 hidden files of folders, left out: .git, one/.note.txt",
        "3 links to folders or to nothing, pipes and devices in folders, left out: another, linked.txt, pipe.txt",
    ]
    for source in sources:
        list(formats.read(source, report).records)
    assert report.lines()[2].endswith("not used: one/faq.jsonl:1: record 1, other/faq.jsonl:1: record 1")


@pytest.mark.parametrize("packed", [gzip.compress, lzma.compress])
def test_a_packed_file_that_is_cut_short_is_named(packed: Any, tmp_path: Path) -> None:
    data = packed(b'{"user": "a", "bot": "b"}\n' * 1000)
    (tmp_path / "p.jsonl.gz").write_bytes(data[:-10])
    with pytest.raises(DataError, match=r"p\.jsonl\.gz: its compression is damaged or cut short"):
        library(tmp_path / "p.jsonl.gz")


@given(
    rows=st.lists(
        st.fixed_dictionaries({"user": st.text(max_size=30), "n": st.integers() | st.floats(-9, 9)}), min_size=1
    ),
    indent=st.sampled_from([None, 1]),
    lines=st.booleans(),
)
def test_streamed_rows_equal_parsed_ones_whatever_the_pieces(
    folder: Path, rows: list[dict[str, Any]], indent: int | None, lines: bool
) -> None:
    text = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) if lines else json.dumps(rows, indent=indent)
    path = write(folder / "rows.json", text)
    for size in (1, 7, PIECE):
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("gpt2chat.formats.sources.PIECE", size)
            assert [row for _, row in read_rows(Source(path))] == rows


def test_a_row_knows_its_line(tmp_path: Path) -> None:
    path = write(tmp_path / "rows.json", '\n[\n {"a": 1},\n\n {"a":\n 2}, {"a": 3}\n]\n')
    assert [line for line, _ in read_rows(Source(path))] == [3, 5, 6]


# -- the documents -------------------------------------------------------------------------------------------------

DATA_GUIDE = (Path(__file__).resolve().parent.parent / "docs" / "data.md").read_text("utf-8")
EXAMPLES = dict(re.findall(r"^### ([\w.]+)\n```\w+\n(.*?)^```", DATA_GUIDE, flags=re.M | re.S))


def test_the_guide_shows_every_form() -> None:
    assert len(EXAMPLES) == 11
    for name in formats.FORMATS:
        assert f"`{name}`" in DATA_GUIDE


@pytest.mark.parametrize("name", EXAMPLES)
def test_every_example_of_the_guide_is_read(name: str, tmp_path: Path) -> None:
    found = library(write(tmp_path / name, EXAMPLES[name]))
    if found.texts:
        assert all("9 to 17" in str(record.content) or "park" in str(record.content) for record in found.texts)
    else:
        assert contents(found.conversations) == [
            ("When are you open?", "From 9 to 17."),
            ("Where can I park?", "Behind the house."),
        ]
    assert not found.report.found
