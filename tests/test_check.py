"""What `data check` finds, mends and counts: beyond the first fault, in constant memory, and with nothing lost."""

from __future__ import annotations

import gzip
import json
import os
import random
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from helpers_cli import environment, invoke, spawn
from hypothesis import given
from hypothesis import strategies as st

from gpt2chat import likeness
from gpt2chat.checking import Check, percentile
from gpt2chat.conversation import TEMPLATES, Message, render
from gpt2chat.errors import DataError
from gpt2chat.formats import Source, expand, read
from gpt2chat.formats.transcripts import speakers_of
from gpt2chat.likeness import NearRepeats, Repeats
from gpt2chat.mending import CERTAIN, CONTROL, mended
from gpt2chat.records import MOST_KINDS, Faults, Record, Report
from gpt2chat.summary import Summary
from gpt2chat.tokenizer import Tokenizer

PAIRS = [{"user": f"question {number}", "bot": f"answer {number}"} for number in range(6)]


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def tolerant(path: Path, wanted: str | None = None) -> tuple[list[str], Faults]:
    """The questions that are read, or texts, and the faults."""
    faults = Faults()
    reading = read(Source(path), Report(), wanted, faults=faults)
    contents = [record.content for record in reading.records]
    return [content if isinstance(content, str) else content[0].content for content in contents], faults


# -- going on behind a fault ---------------------------------------------------------------------------------------

BROKEN_ROWS = {
    '{"user": "x", "bot": "y"': "does not end",
    '{"user": "x", "bot": "y",}': "remove the comma",
    "{'user': 'x', 'bot': 'y'}": "JSON takes double quotes",
    '{"user": "x", "bot": NaN}': "NaN is not JSON",
    '{"user": "x", "user": "y", "bot": "z"}': "stands twice",
    '{"user": "x", "bot": 7}': "expected text, got 7",
    '{"user": "x"}': "expected {",
    '{"user": "x", "bot": ' + "[" * 100_000: "nested too deeply",
    "not JSON at all": "not valid JSON",
}


@pytest.mark.parametrize("layout", ["lines", "list", "indented"])
@pytest.mark.parametrize("at", [0, 2, 5])
@pytest.mark.parametrize(("broken", "said"), BROKEN_ROWS.items())
def test_one_broken_row_is_named_and_all_others_are_read(
    layout: str, at: int, broken: str, said: str, tmp_path: Path
) -> None:
    if broken == "not JSON at all" and at == 0:
        pytest.skip("that is a text file")
    rows = [json.dumps(row, indent=2 if layout == "indented" else None) for row in PAIRS]
    rows[at] = broken
    first, between, last = ("", "\n", "\n") if layout == "lines" else ("[\n", ",\n", "\n]\n")
    text = first + between.join(rows) + last
    if layout == "indented":
        text = text.replace("\n", "\n  ")
    (tmp_path / "rows").write_text(text)
    questions, faults = tolerant(tmp_path / "rows")
    assert questions == [row["user"] for number, row in enumerate(PAIRS) if number != at]
    assert any(said in fault for fault in faults.kept), faults.kept
    line = text[: text.index(broken[:20].replace("\n", "\n  "))].count("\n") + 1
    assert any(f"rows:{line}" in fault or f"line {line} " in fault for fault in faults.kept), (line, faults.kept)


@given(st.lists(st.sampled_from([*BROKEN_ROWS][:7]) | st.integers(0, 3), min_size=1, max_size=8))
def test_any_mixture_of_sound_and_broken_lines_keeps_every_sound_one(
    tmp_path_factory: pytest.TempPathFactory, lines: list[Any]
) -> None:
    path = tmp_path_factory.mktemp("mixed") / "rows.jsonl"
    rows = [json.dumps(PAIRS[line]) if isinstance(line, int) else line for line in lines]
    path.write_text("\n".join(rows))
    sound = [PAIRS[line]["user"] for line in lines if isinstance(line, int)]
    try:
        questions, faults = tolerant(path)
    except DataError:  # no row tells what all are
        assert not sound
    else:
        assert questions == sound
        assert faults.count == len(lines) - len(sound)


@pytest.mark.parametrize(
    ("broken", "said"),
    [('{"user": "x", "bot": "y"', "line 3 does not end"), ('{"user" "x", "bot": "' + "y" * 90 + '"}', "Expecting ':'")],
)
def test_a_fault_at_the_border_of_two_pieces_loses_nothing(
    broken: str, said: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [json.dumps(row) for row in PAIRS]
    rows[2] = broken
    (tmp_path / "rows").write_text("\n".join(rows))
    for size in (*range(1, 60), *range(60, 200, 7), 1 << 20):
        monkeypatch.setattr("gpt2chat.formats.sources.PIECE", size)
        questions, faults = tolerant(tmp_path / "rows")
        assert questions == [row["user"] for number, row in enumerate(PAIRS) if number != 2]
        assert faults.count == 1 and said in faults.kept[0]


def test_reading_goes_on_at_the_next_record_and_not_inside_one(tmp_path: Path) -> None:
    rows = [
        {"messages": [{"role": role, "content": f"{role} {n}"} for role in ("user", "assistant")]} for n in range(4)
    ]
    text = json.dumps(rows, indent=2).replace('"user 1",', '"user 1"')
    text = text.replace('"content": "user 1"', '"content": "user 1" oops')
    (tmp_path / "rows.json").write_text(text)
    questions, faults = tolerant(tmp_path / "rows.json")
    assert questions == ["user 0", "user 2", "user 3"] and faults.count == 1


def test_the_line_of_a_byte_counts_the_lines_shortly_before_it(tmp_path: Path) -> None:
    (tmp_path / "short").write_bytes(b"a\nb\nc\xe9\nd\n")
    _, faults = tolerant(tmp_path / "short", "text")
    assert "short:3: expected UTF-8" in faults.kept[0]


def test_lines_that_are_not_utf8_are_named_once_each_and_read_as_cp1252(tmp_path: Path) -> None:
    lines = [b'{"user": "caf\xe9 \xe9", "bot": "\x93quoted\x94"}', '{"user": "café", "bot": "ok"}'.encode()]
    (tmp_path / "mixed").write_bytes(b"\n".join([lines[1], *lines]))
    questions, faults = tolerant(tmp_path / "mixed")
    assert questions == ["café", "café é", "café"]
    assert (faults.count, faults.mended) == (1, 1)
    assert "mixed:2: expected UTF-8, found byte 0xe9: --encoding cp1252 would read it as" in faults.kept[0]
    with pytest.raises(DataError, match="mixed:2: expected UTF-8"):
        list(read(Source(tmp_path / "mixed"), Report()).records)


def test_a_whole_file_of_another_encoding_takes_no_longer_than_it_should(tmp_path: Path) -> None:
    (tmp_path / "latin").write_bytes(b'{"user": "\xe9", "bot": "' + b"\xe9 " * 50 + b'"}\n' * 1)
    with (tmp_path / "latin").open("ab") as file:
        for _ in range(20_000):
            file.write(b'{"user": "\xe9", "bot": "' + b"\xe9 " * 20 + b'"}\n')
    questions, faults = tolerant(tmp_path / "latin")
    assert len(questions) == faults.count == 20_001
    assert len(faults.kept) == 1 and faults.lines()[1].startswith("20000 more lines of ")


def test_tables_and_transcripts_go_on_behind_a_fault(tmp_path: Path) -> None:
    (tmp_path / "faq.csv").write_text("question,answer\na,b\nc\nd,e,f\ng,h\n")
    questions, faults = tolerant(tmp_path / "faq.csv")
    assert (questions, faults.count) == (["a", "g"], 2)
    assert "faq.csv:3: expected 2 columns" in faults.kept[0] and "faq.csv:4:" in faults.kept[1]

    (tmp_path / "talk.txt").write_text("User: a\nBot: b\n\nUser: c\nBot: d\n")
    assert tolerant(tmp_path / "talk.txt")[0] == ["a", "c"]

    def said(role: str, text: str) -> str:
        return f"<|im_start|>{role}\n{text}<|im_end|>\n"

    sound = said("user", "a") + said("assistant", "b") + "\n"
    broken = said("user", "c") + "stray\n" + said("assistant", "d") + "\n"
    other = said("user", "e") + said("oracle", "f") + "\n"
    (tmp_path / "chatml").write_text(sound + broken + other + sound.replace("a<", "g<"))
    questions, faults = tolerant(tmp_path / "chatml")
    assert questions == ["a", "g"]
    assert [fault.split(":")[-2] for fault in faults.kept] == ["9", "15"] or faults.count == 2
    assert "got 'stray'" in faults.kept[0] and "got 'oracle'" in faults.kept[1]


def test_documents_with_a_marker_in_them_are_named_and_the_others_read(tmp_path: Path) -> None:
    (tmp_path / "t.txt").write_text("one\n===\ntwo <|endoftext|>\n===\nthree")
    faults = Faults()
    reading = read(Source(tmp_path / "t.txt"), Report(), separator="===", faults=faults)
    assert [str(record.content).strip() for record in reading.records] == ["one", "three"]
    assert "t.txt:3: found <|endoftext|>" in faults.kept[0]


@given(
    text=st.lists(st.sampled_from(["a", "b c", "\n", "\r\n", "\r", "==", "=", " "]), max_size=40).map("".join),
    separator=st.sampled_from([None, "==", "=\n="]),
    piece=st.integers(1, 9),
)
def test_a_text_that_is_streamed_is_cut_as_the_whole_would_be(
    tmp_path_factory: pytest.TempPathFactory, text: str, separator: str | None, piece: int
) -> None:
    path = tmp_path_factory.mktemp("text") / "t"
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpt2chat.formats.sources.PIECE", piece)
        found = list(Source(path).documents(separator))
        plain = text.replace("\r\n", "\n")
        assert [part for _, part, _ in found] == (plain.split(separator) if separator else [plain])
        at = 0
        for line, part, _ in found:
            assert line == 1 + plain.count("\n", 0, at)
            at += len(part) + len(separator or "")
        patch.setattr("gpt2chat.formats.sources.LONGEST_TEXT", 5)
        parts = [part for _, part, _ in Source(path).documents(None)]
        assert "".join(parts).replace("\r\n", "\n") == plain and max(map(len, parts)) <= 5


def test_many_kinds_of_findings_are_bounded() -> None:
    report = Report()
    for number in range(MOST_KINDS + 50):
        report.add(f"kind {number}", f"place {number}")
    assert len(report.found) == MOST_KINDS + 1
    assert sum(report.counts.values()) == MOST_KINDS + 50


# -- what is used of the bytes -------------------------------------------------------------------------------------

NAME = st.sampled_from(["user", "bot", "id", "source", "note", "system"])
VALUE = st.text(st.characters(codec="utf-8", exclude_categories=["Cs", "Cc", "Zs", "Zl", "Zp"]), min_size=1, max_size=9)


@given(rows=st.lists(st.dictionaries(NAME, VALUE | st.just("") | st.integers(), min_size=1), min_size=1, max_size=8))
def test_every_byte_of_content_is_used_or_named(
    tmp_path_factory: pytest.TempPathFactory, rows: list[dict[str, Any]]
) -> None:
    rows = [{"user": "u", "bot": "b"}, *rows]
    path = tmp_path_factory.mktemp("bytes") / "rows.jsonl"
    path.write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    report, faults = Report(), Faults()
    records = list(read(Source(path), report, faults=faults).records)
    used = {int(record.place.rpartition(" ")[2]): record.content for record in records}
    for number, row in enumerate(rows, 1):
        place = f"{path}:{number}: record {number}"
        if number in used:
            texts = [message.content for message in used[number]]  # type: ignore[union-attr]
            left = [row.get(key) or None for key in ("system", "user", "bot")]
            assert texts == [text for text in left if text is not None]
            for key in row.keys() - {"system", "user", "bot"}:
                assert place in report.found[f"records with the key {key!r}, which is not used"]
        else:
            assert any(fault.startswith(f"{place}:") for fault in faults.kept) or any(
                place in places for kind, places in report.found.items() if "left out" in kind
            )


def test_keys_of_messages_that_are_not_used_are_named(tmp_path: Path) -> None:
    row = {"messages": [{"role": "user", "content": "a", "name": "Ann"}, {"role": "assistant", "content": "b"}]}
    (tmp_path / "m.jsonl").write_text(json.dumps(row))
    report = Report()
    assert len(list(read(Source(tmp_path / "m.jsonl"), report).records)) == 1
    assert report.lines() == ["1 messages with the key 'name', which is not used: m.jsonl:1: record 1"]


# -- repeats -------------------------------------------------------------------------------------------------------


@given(values=st.lists(st.integers(0, 40).map(lambda n: n * 0x9E37_79B9_7F4A_7C15 % 2**64), max_size=120))
def test_repeats_are_counted_exactly_also_beyond_what_is_kept(values: list[int]) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(likeness, "KEPT", 7)
        patch.setattr(likeness, "PIECE", 5)
        repeats = Repeats()
        known = sum(repeats.add(value) for value in values)
        assert known + repeats.late() == len(values) - len(set(values))


@pytest.mark.parametrize(
    ("one", "other", "alike"),
    [
        ("What is it?", "what  is it", True),
        ("“Quoted” — yes…", '"quoted" - yes', True),
        ("Straße", "STRASSE", True),
        ("one two", "one too", False),
        ("café", "cafe", False),
        ("C3", "C4", False),
    ],
)
def test_texts_are_alike_up_to_case_marks_and_blanks(one: str, other: str, alike: bool) -> None:
    assert (likeness.likeness(one) == likeness.likeness(other)) is alike


@given(st.lists(st.text(st.sampled_from("aB1_ -.\x1e\0“é\ud800"), max_size=6), max_size=6))
def test_texts_together_have_the_likeness_of_each(texts: list[str]) -> None:
    assert likeness.likenesses([text.casefold() for text in texts]) == [likeness.likeness(text) for text in texts]


def test_texts_of_nearly_the_same_words_are_found_and_others_are_not() -> None:
    rng = random.Random(0)
    words = [f"word{number}" for number in range(500)]
    texts = [[rng.choice(words) for _ in range(30)] for _ in range(400)]
    near = [[*text[:12], "changed", *text[13:]] for text in texts[:100]]
    far = [[w if i % 3 else rng.choice(words) for i, w in enumerate(text)] for text in texts[100:200]]
    found = NearRepeats()
    for number, text in enumerate([*texts, *near, *far]):
        found.add(" ".join(text), str(number))
    pairs = dict(found.found())
    assert all(pairs.get(str(400 + number), str(number)) == str(number) for number in range(100))
    assert len(pairs) >= 95 and all(400 <= int(later) < 500 for later in pairs)


def test_texts_are_nearly_the_same_from_four_fifths_of_their_pairs_of_words_on() -> None:
    rng = random.Random(1)
    for changed, near in ((10, True), (14, False)):  # of 201 pairs 191 or 187 are shared at most: 0.83 and 0.76
        found = NearRepeats()
        for number in range(40):
            text = [f"w{rng.randrange(10**6)}" for _ in range(202)]
            other = [f"v{i}" if i % 14 == 7 and i // 14 < changed else word for i, word in enumerate(text)]
            found.add(" ".join(text), f"a{number}")
            found.add(" ".join(other), f"b{number}")
        pairs = dict(found.found())
        assert pairs == ({f"b{number}": f"a{number}" for number in range(40)} if near else {}), (changed, len(pairs))


def test_texts_that_drift_are_found_by_the_one_before() -> None:
    rng, found, text = random.Random(2), NearRepeats(), [f"w{number}" for number in range(60)]
    for step in range(200):
        found.add(" ".join(text), str(step))
        for change in range(2):
            text[rng.randrange(60)] = f"v{step}n{change}"
    assert len(list(found.found())) > 190


def test_late_repeats_are_counted_apart_from_those_that_only_look_alike(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(likeness, "KEPT", 2)
    rows = [{"user": f"question {n}", "bot": "b"} for n in range(6)]
    more = [rows[4], rows[5], rows[5], {"user": "Question 3!", "bot": "B"}]
    (place / "rows.jsonl").write_text("\n".join(map(json.dumps, [*rows, *more])))
    check = Check(TEMPLATES["chat"])
    check.add(Source(place / "rows.jsonl"))
    check.finish()
    assert check.report.counts["records further on that repeat another one"] == 3
    assert check.report.counts["records further on that differ from another one only in case, marks or blanks"] == 1


def test_the_context_ends_before_the_first_learnt_token_or_behind_it(place: Path, tokenizer: Tokenizer) -> None:
    message = [Message("user", "a question of some length"), Message("assistant", "yes")]
    first = list(render(message, TEMPLATES["chat"], tokenizer).loss_mask).index(True)
    (place / "rows.jsonl").write_text(json.dumps({"user": message[0].content, "bot": "yes"}))
    for limit, unlearnt in ((first, 1), (first + 1, 0)):
        check = Check(TEMPLATES["chat"], max_tokens=limit)
        check.add(Source(place / "rows.jsonl"))
        assert check.report.counts[f"conversations with no answer within {limit} tokens"] == unlearnt


def test_check_notes_what_is_nearly_the_same_and_what_has_two_answers(place: Path) -> None:
    long = "We are open from nine to five on every day of the week but Sunday"
    rows = [
        {"user": "When are you open?", "bot": f"{long}."},
        {"user": "When are you open?", "bot": f"{long}s."},
        {"user": "Where?", "bot": "Here."},
        {"user": "where", "bot": "There."},
    ]
    (place / "faq.json").write_text(json.dumps(rows))
    (place / "held.json").write_text(json.dumps([{"user": "Where??", "bot": "Nowhere."}, rows[0]]))
    result = invoke("data", "check", "faq.json", "--heldout", "held.json", "--json")
    notes = json.loads(result.stdout)["notes"]
    assert notes["records that are nearly an earlier one"]["places"] == [
        "faq.json:1: record 2 (as faq.json:1: record 1)"
    ]
    assert notes["questions that were answered otherwise before; a model learns to waver"]["count"] == 2
    assert notes["held-out questions that are in the training data too"]["count"] == 1
    assert notes["held-out records that are in the training data too"]["count"] == 1


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("Mail a.b+c@example.org now", "e-mail"),
        ("sk-proj1234567890abcdefgh", "key or password"),
        ("ghp_abcdefghijklmnopqrstuvwxyz", "key or password"),
        ("AKIAABCDEFGHIJKLMNOP", "key or password"),
        ("PASSWORD = hunter2", "key or password"),
        ("api_key: 12345", "key or password"),
        ("-----BEGIN RSA PRIVATE KEY-----", "key or password"),
        ("cafÃ©", "wrong encoding"),
        ("donâ€™t", "wrong encoding"),
        ("a\x1b[31mred", "control characters"),
        ("a task-oriented, risk-averse, secret ãnd @ once: the password", None),
        ("Ångström, naïve, ÄÖÜ, São Paulo, 10 °C", None),
    ],
)
def test_oddities_are_found_in_a_crowd_and_nothing_else_is(text: str, kind: str | None, tmp_path: Path) -> None:
    rows = [{"user": f"question {number}", "bot": "ordinary"} for number in range(600)]
    rows[300]["bot"] = text
    (tmp_path / "rows.jsonl").write_text("\n".join(map(json.dumps, rows)))
    check = Check(TEMPLATES["chat"])
    check.add(Source(tmp_path / "rows.jsonl"))
    found = {kind: places for kind, places in check.report.found.items() if "repeat an" not in kind}
    if kind is None:
        assert not found
    else:
        [(said, places)] = found.items()
        assert kind in said and places == [f"{tmp_path}/rows.jsonl:301: record 301"]


# -- mending -------------------------------------------------------------------------------------------------------


@given(text=st.text(st.characters(codec="cp1252", exclude_categories=["Cc"]), min_size=1, max_size=30))
def test_utf8_read_as_cp1252_is_undone(text: str) -> None:
    try:
        misread = "".join(char if char.isascii() else char.encode("utf-8").decode("cp1252") for char in text)
    except UnicodeDecodeError:  # a byte that cp1252 leaves open
        return
    if not misread.strip() or not text.strip():
        return
    [record] = mended([Record("p", misread)], Report())
    if CERTAIN.search(misread):
        assert record.content == text or any(char in "ÂÃÅÆËâð" for char in text)  # a text about misread characters
    else:
        assert record.content == misread


def test_mending_leaves_no_blanks_at_the_ends_and_knows_what_cp1252_leaves_open() -> None:
    messages = (Message("user", "cafÃ© Ã\x81 \x1f"), Message("assistant", "\x00 yes\x7f"))
    (record,) = mended([Record("x:1", messages)], Report())
    assert [message.content for message in record.content] == ["café Á", "yes"]


def test_control_characters_are_all_but_tabs_and_line_ends() -> None:
    found = {code for code in range(0x80) if CONTROL.match(chr(code))}
    assert found == {*range(0x20), 0x7F} - {9, 10, 13}


@pytest.mark.parametrize("capital", [chr(code) for code in range(0xC0, 0xE0)])
@pytest.mark.parametrize("mark", ["”", "’", "»", "–", "—", "…", "\u00a0!", "“", "«"])
def test_a_capital_before_a_mark_is_no_wrong_encoding(capital: str, mark: str) -> None:
    [record] = mended([Record("p", f"“LIBERT{capital}{mark} et voilà")], Report())
    assert record.content == f"“LIBERT{capital}{mark} et voilà"


@pytest.mark.parametrize(
    "text", ["Ångström naïve São Paulo ÄÖÜ ß", "“Quoted” — ‘so’ … €5", "日本語 😀", "ÀÉ ÃO ÂNGULO"]
)
def test_sound_text_is_left_alone(text: str) -> None:
    report = Report()
    [record] = mended([Record("p", text)], report)
    assert record.content == text and not report.found


def test_fix_writes_what_check_then_finds_no_fault_with(place: Path) -> None:
    lines = [
        '{"user": "Hi", "bot": "Hello."}',
        '{"user": "Hi", "bot": "Hello."}',
        '{"user": "CafÃ©?", "bot": "Yes\\u0007."}',
        '{"user": "Half", "bot": "x\\ud83d"}',
        '{"user": "\\u0001", "bot": "nothing"}',
        '{"user": "Broken", "bot": "a"',
        '{"user": "Wrong", "bot": 7}',
        '{"user": "Weight", "bot": "me@example.org"}',
    ]
    (place / "faq.jsonl").write_bytes("\n".join(lines).encode() + b'\n{"user": "caf\xe9", "bot": "ok"}\n')
    result = invoke("data", "check", "faq.jsonl", "--fix", "fixed.jsonl")
    assert result.exit_code == 1
    said = result.stdout
    for line in (
        "fixed.jsonl: 5 records written",
        "mended: 1 lines that are not UTF-8, read as cp1252",
        "mended: 1 records whose wrong encoding was undone (Ã© is é again): faq.jsonl:3",
        "mended: 2 records whose control characters were removed: faq.jsonl:3: record 3, faq.jsonl:5: record 5",
        "mended: 1 records whose halves of characters were removed: faq.jsonl:4",
        "mended: 1 records with nothing but control characters on one side, left out: faq.jsonl:5",
        "left: 1 records that hold an e-mail address, which a model may repeat: fixed.jsonl:4",
    ):
        assert line in said, line
    assert [
        [message["content"] for message in json.loads(line)["messages"]]
        for line in (place / "fixed.jsonl").read_text("utf-8").splitlines()
    ] == [["Hi", "Hello."], ["Café?", "Yes."], ["Half", "x"], ["Weight", "me@example.org"], ["café", "ok"]]
    assert invoke("data", "check", "fixed.jsonl").exit_code == 0


def test_fix_refuses_to_write_over_what_it_reads_and_writes_nothing_of_nothing(place: Path) -> None:
    (place / "faq.jsonl").write_text('{"user": "a", "bot": 7}\n')
    result = invoke("data", "check", "faq.jsonl", "--fix", "faq.jsonl")
    assert result.exit_code == 2 and "would be overwritten" in result.stderr
    result = invoke("data", "check", "faq.jsonl", "--fix", "out.jsonl")
    assert result.exit_code == 1 and "nothing can be used" in result.stderr
    assert [path.name for path in place.iterdir()] == ["faq.jsonl"]


def test_fix_of_texts_writes_texts(place: Path) -> None:
    (place / "a.md").write_text("# One\ntext\x07\n")
    (place / "b.md").write_text("# Two\ntext\n")
    assert invoke("data", "check", "a.md", "b.md", "--fix", "out.jsonl").exit_code == 0
    rows = [json.loads(line) for line in (place / "out.jsonl").read_text().splitlines()]
    assert rows == [{"text": "# One\ntext"}, {"text": "# Two\ntext"}]


# -- figures -------------------------------------------------------------------------------------------------------


def test_check_reads_standard_input_and_packed_files_and_estimates_a_run(place: Path) -> None:
    data = "\n".join(map(json.dumps, PAIRS)).encode()
    (place / "rows.gz").write_bytes(gzip.compress(data))
    found = json.loads(invoke("data", "check", "-", "--json", stdin=data).stdout)
    assert found["files"] == ["standard input: pairs (user/bot) in JSON, 6 records"]
    assert found["tokens"] == json.loads(invoke("data", "check", "rows.gz", "--json").stdout)["tokens"]
    assert (found["epochs"], found["steps"], found["model"]) == (130, 130, "demo")
    larger = json.loads(invoke("data", "check", "rows.gz", "--model", "gpt2-xl", "--json").stdout)
    assert larger["minutes"] > found["minutes"]


def test_the_share_that_is_cut_is_that_of_the_tokens_beyond_the_length(place: Path) -> None:
    (place / "long.json").write_text(json.dumps([{"user": "a", "bot": "word " * 100}, {"user": "b", "bot": "c"}]))
    found = json.loads(invoke("data", "check", "long.json", "--max_length", "50", "--json").stdout)
    assert found["too_long"] == 1
    assert found["cut_share"] == pytest.approx((found["longest"] - 50) / found["tokens"], abs=1e-4)


@given(st.lists(st.integers(1, 50), min_size=1), st.floats(0, 1))
def test_a_percentile_is_that_of_the_sorted_values(values: list[int], share: float) -> None:
    from collections import Counter

    found = percentile(Counter(values), share)
    assert found in values
    assert (
        sum(value < found for value in values) <= share * len(values) <= sum(value <= found for value in values) + 1e-9
    )


def test_stats_count_what_is_there(place: Path, tokenizer: Tokenizer) -> None:
    rows = [
        {"messages": [{"role": "user", "content": "one two"}, {"role": "assistant", "content": "yes"}]},
        {
            "messages": [
                {"role": "system", "content": "be kind"},
                {"role": "user", "content": "three"},
                {"role": "assistant", "content": "yes"},
                {"role": "user", "content": "Two more words"},
                {"role": "assistant", "content": "no", "weight": 0},
            ]
        },
    ]
    (place / "m.json").write_text(json.dumps(rows))
    found = json.loads(invoke("data", "stats", "m.json", "--json").stdout)
    assert (found["conversations"], found["user_messages"], found["system_messages"]) == (2, 3, 1)
    assert (found["words"], found["different_words"]) == (11, 9)
    assert found["lengths"]["words per question"] == {"median": 2, "of_ten_nine_below": 3, "longest": 3}
    assert found["common_answers"] == [["yes", 2]]
    check = json.loads(invoke("data", "check", "m.json", "--json").stdout)
    assert (found["tokens"], found["learnt_tokens"]) == (check["tokens"], check["learnt_tokens"])
    assert "2 times the answer 'yes'" in invoke("data", "stats", "m.json").stdout


def test_a_summary_does_not_grow_with_the_number_of_answers(
    tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt2chat.summary.MOST_KNOWN", 10)
    summary = Summary(tokenizer)
    for number in range(50):
        pair = (Message("user", f"q{number}"), Message("assistant", f"a{number}"))
        summary.add(Record("p", pair), render(pair, TEMPLATES["chat"], tokenizer))
    assert len(summary.answers) == 10 and len(summary.words) <= 12
    assert summary.lines()[2].startswith("100 words, at least 10 different")


# -- what people bring ---------------------------------------------------------------------------------------------

PAIRS_CSV = "question,answer\n" + "".join(f"question {n},answer {n}\n" for n in range(5))


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (
            b"PK\x03\x04" + b"a" * 50,
            "expected text, found a zip file, perhaps of Excel or Word: unpack it, or save it as CSV (UTF-8)",
        ),
        (b"%PDF-1.7\n...", "expected text, found a PDF: save it as text"),
        ("Frage und Antwort ".encode("utf-16-le"), "found what looks like utf-16-le: pass --encoding utf-16-le"),
        ("Frage und Antwort ".encode("utf-16-be"), "found what looks like utf-16-be: pass --encoding utf-16-be"),
        (b'question,answer\n"a,b\nc,d\n', "a quote that opens in this row is not closed"),
        (b'{"user": "a", "bot": "b\n', "a string goes on over the end of the line: is it cut off, or a quote missing?"),
        (b'{"user": "a", "bot": "b', "the file ends within a string: it is cut off, or a quote is missing"),
        (b'{"user": "a", "bot"\n{"user": "c", "bot": "d"}', "the record that begins in line 1 does not end"),
        ('{“user”: "a", "bot": "b"}'.encode(), "JSON takes straight double quotes"),
    ],
)
def test_what_people_bring_by_mistake_is_told_apart(data: bytes, said: str, place: Path) -> None:
    (place / "x.csv" if b"question," in data else place / "x.jsonl").write_bytes(data)
    result = invoke("data", "check", ".", "--show", "0")
    assert result.exit_code == 1
    assert said in result.stdout


def test_a_byte_order_mark_outweighs_the_encoding_and_utf8_read_otherwise_is_noted(place: Path) -> None:
    (place / "marked.csv").write_text(PAIRS_CSV.replace("question 0", "Größe"), "utf-16")
    (place / "plain.csv").write_text(PAIRS_CSV.replace("question 0", "Höhe"), "utf-8")
    (place / "old.csv").write_text(PAIRS_CSV.replace("question 0", "Länge"), "cp1252")
    result = invoke("data", "sample", ".", "-n", "20", "--encoding", "cp1252")
    assert "user: Größe" in result.stdout and "user: Länge" in result.stdout
    assert "note: 1 files that are UTF-8, read as cp1252 as asked: plain.csv" in result.stderr


def test_the_line_that_excel_writes_first_is_passed_over(place: Path) -> None:
    (place / "faq.csv").write_text("sep=;\n" + PAIRS_CSV.replace(",", ";"))
    assert tolerant(place / "faq.csv")[0] == [f"question {n}" for n in range(5)]


def test_fields_keep_their_line_ends_and_rows_their_lines(place: Path) -> None:
    (place / "t.csv").write_bytes(b'user,bot\r\n"a\r\nb",c\r\n"d\ne\rf",g\r\nh,"i\r\n')
    faults = Faults()
    records = list(read(Source(place / "t.csv"), Report(), faults=faults).records)
    assert [record.content[0].content for record in records] == ["a\r\nb", "d\ne\rf"]
    assert [record.place for record in records] == [f"{place}/t.csv:2: record 1", f"{place}/t.csv:4: record 2"]
    assert "t.csv:7: not a valid table: a quote that opens in this row is not closed" in faults.kept[0]


@given(st.lists(st.sampled_from(["a", "bc", "\n", "\r", "\r\n", "é"])), st.integers(1, 5))
def test_lines_are_the_same_whatever_the_pieces(
    tmp_path_factory: pytest.TempPathFactory, parts: list[str], size: int
) -> None:
    path, text = tmp_path_factory.mktemp("lines") / "t", "".join(parts)
    path.write_bytes(text.encode())
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("gpt2chat.formats.sources.PIECE", size)
        lines = list(Source(path).whole_lines())
    assert "".join(lines) == text
    assert [line.rstrip("\r\n") for line in lines] == re.sub("\r\n?", "\n", text).removesuffix("\n").split("\n")[
        : len(lines)
    ]
    assert all(line.endswith(("\r", "\n")) for line in lines[:-1])


def test_a_long_line_without_an_end_is_read_at_once(place: Path) -> None:
    (place / "t.csv").write_text('user,bot\nhello,"' + "word " * 600_000 + '"')
    (record,) = read(Source(place / "t.csv"), Report()).records
    assert len(record.content[1].content) == 5 * 600_000 - 1


def test_an_encoding_that_was_passed_is_no_fault(place: Path) -> None:
    (place / "t.csv").write_bytes("user,bot\nGrüß dich,Schön\n".encode("cp1252"))
    result = invoke("data", "check", "t.csv", "--encoding", "cp1252", "--json")
    assert result.exit_code == 0 and json.loads(result.stdout)["notes"] == {}
    for name in ("utf-16", "punycode", "ascii"):
        (place / "u.csv").write_text("user,bot\nGrüß dich,Schön\n", "utf-8")
        result = invoke("data", "check", "u.csv", "--encoding", name)
        assert result.exit_code in (1, 2) and result.exception.__class__ is SystemExit
        assert "cp1252 would" not in result.stdout


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-be"])
def test_what_stands_before_a_fault_is_read_in_its_byte_order(encoding: str, place: Path) -> None:
    rows = "\ufeff" + "".join(json.dumps({"user": f"question {n}", "bot": f"answer {n}"}) + "\n" for n in range(20_000))
    half = "\ud800".encode(encoding, "surrogatepass")
    (place / "t.jsonl").write_bytes(rows.encode(encoding) + half + "a".encode(encoding))
    questions, faults = tolerant(place / "t.jsonl")
    assert len(questions) == 20_000 and faults.count == 1
    assert f"t.jsonl:20001: expected {encoding.upper()}" in faults.kept[0] and "cp1252" not in faults.kept[0]


def test_repeats_are_not_counted_among_the_tokens(place: Path) -> None:
    (place / "rows.jsonl").write_text("\n".join([json.dumps(PAIRS[0])] * 5 + [json.dumps(PAIRS[1])]))
    figures = json.loads(invoke("data", "check", "rows.jsonl", "--json").stdout)
    (place / "once.jsonl").write_text("\n".join(map(json.dumps, PAIRS[:2])))
    once = json.loads(invoke("data", "check", "once.jsonl", "--json").stdout)
    assert figures["notes"]["records that repeat an earlier one"]["count"] == 4
    for name in ("conversations", "tokens", "learnt_tokens", "steps"):
        assert figures[name] == once[name]


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("t.dat", b"sep=;\r\nquestion;answer\r\nHi there;Hello you\r\n"),
        ("t.csv", b"\n\r\nuser,bot\nHi there,Hello you\n"),
    ],
)
def test_what_stands_before_a_header_is_passed_over(name: str, data: bytes, place: Path) -> None:
    (place / name).write_bytes(data)
    (record,) = read(Source(place / name), Report()).records
    assert [message.content for message in record.content] == ["Hi there", "Hello you"]


def test_a_table_of_one_column_is_known_by_both_its_names(place: Path) -> None:
    for name, texts in (("t.csv", ["one, or", "two"]), ("t.txt", ['text\n"one, or"\ntwo'])):
        (place / name).write_text('text\n"one, or"\ntwo\n')
        assert [record.content for record in read(Source(place / name), Report()).records] == texts


def test_a_pattern_takes_folders_as_the_shell_does(place: Path) -> None:
    (place / "d" / "deep").mkdir(parents=True)
    for name in ("d/a.txt", "d/deep/b.txt"):
        (place / name).write_text("text")
    assert [str(source.path) for source in expand(["d/*"])] == ["d/a.txt", "d/deep/b.txt"]
    assert [str(source.path) for source in expand(["d/**"])] == ["d/a.txt", "d/deep/b.txt"]


def test_a_folder_that_cannot_be_opened_and_an_empty_file_are_named(
    place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("a", "closed"):
        (place / "d" / name).mkdir(parents=True)
        (place / "d" / name / "t.txt").write_text("text")
    (place / "d" / "empty.md").touch()
    scan = os.scandir

    def closed(path: str) -> Any:
        if str(path).endswith("closed"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr("os.scandir", closed)
    report = Report()
    assert [str(source.path) for source in expand(["d"], report=report)] == ["d/a/t.txt"]
    assert report.lines() == [
        "1 empty files of folders, left out: empty.md",
        "1 folders that cannot be opened, left out: closed",
    ]


@pytest.mark.parametrize(
    ("lines", "names"),
    [
        (["[12.03.24, 10:15] Anna: hi", "[12.03.24, 10:16] Ben: yes"] * 2, ("Anna", "Ben")),
        (["12/3/24, 9:01 PM - Anna B.: hi", "12/3/24, 9:02 PM - Ben: yes"] * 2, ("Anna B", "Ben")),
        (["Q: what?", "A: that", "", "Q: when?", "A: then"], ("Q", "A")),
        (["Note: a text", "It goes on.", "And on.", "See: below"], ()),
        (["a" * 100_000, "- " * 50_000], ()),
    ],
)
def test_a_talk_under_other_names_is_noticed(lines: list[str], names: tuple[str, ...], place: Path) -> None:
    assert sorted(speakers_of(lines)) == sorted(names)
    (place / "talk.txt").write_text("\n".join(lines))
    said = invoke("train", "--model", "demo", "--conversation_file", "talk.txt").stderr
    assert ("if it is a talk" in said) == bool(names)


def test_a_transcript_begins_anew_behind_a_question_without_an_answer(place: Path) -> None:
    (place / "t.txt").write_text("User: a\n\nSystem: s\n\nUser: c\nBot: d\n")
    report = Report()
    records = list(read(Source(place / "t.txt"), report).records)
    assert [[message.content for message in record.content] for record in records] == [["s", "c", "d"]]
    assert report.lines() == ["1 records without an answer to learn, left out: t.txt:1"]


def test_what_would_steer_a_terminal_is_written_out(place: Path) -> None:
    steering = "\x1b]0:title\x07 \x9b31m \r \x00"
    (place / "t.jsonl").write_text(json.dumps({"user": f"hi {steering} there", "bot": "yes", steering: 1}))
    (place / "t.csv").write_text(f"a{steering},b\n1,2\n", newline="")
    for command in (["check"], ["sample"], ["check", "t.csv"], ["sample", "t.csv"]):
        result = invoke("data", command[0], command[-1] if command[1:] else "t.jsonl")
        assert not set(result.stdout + result.stderr) & set("\x1b\x07\x9b\r\x00")
        assert "\\x1b]0:title\\x07" in result.stdout + result.stderr


def test_a_terminated_command_leaves_nothing_half_written(place: Path) -> None:
    script = (
        "import os, signal, sys\n"
        "from gpt2chat.cli import main\n"
        "from gpt2chat.formats import writers\n"
        "row = writers._row\n"
        "writers._row = lambda *a: (os.kill(os.getpid(), signal.SIGTERM), row(*a))[1]\n"
        "main(['data', 'convert', 'pairs.jsonl', 'out.jsonl', '--to', 'messages'])\n"
    )
    (place / "pairs.jsonl").write_text("\n".join(map(json.dumps, PAIRS)))
    ended = spawn(["-c", script], place)
    assert ended.returncode == 128 + 15 and ended.stderr.strip() == "interrupted"
    assert [path.name for path in place.iterdir()] == ["pairs.jsonl"]


def test_what_stands_before_a_cut_is_read(place: Path) -> None:
    rng = random.Random(0)
    rows = [json.dumps({"user": f"question {n} {rng.random()}", "bot": "answer"}) for n in range(2000)]
    packed = gzip.compress("\n".join(rows).encode())
    (place / "cut.jsonl.gz").write_bytes(packed[: len(packed) // 2])
    found = json.loads(invoke("data", "check", "cut.jsonl.gz", "--json").stdout)
    assert 800 < found["conversations"] < 1200
    assert "compression is damaged or cut short" in found["errors"][-1]


def test_texts_in_which_people_speak_are_noted(place: Path) -> None:
    (place / "talk.txt").write_text("Chat export 2025\n\n" + "User: Hi\nBot: Hello\n\n" * 3)
    result = invoke("data", "check", "talk.txt")
    assert "lines that begin with User: or Bot:; --format transcript reads them so: talk.txt" in result.stdout
    assert json.loads(invoke("data", "check", "talk.txt", "--format", "transcript", "--json").stdout)["conversations"]


@pytest.mark.parametrize(
    "command",
    [
        "convert faq.csv faq.csv --to csv",
        "convert . faq.csv --to csv",
        "convert f*.csv faq.csv --to csv",
        "convert faq.csv link.csv --to csv",
        "split faq.csv --train faq.csv",
        "split faq.csv --heldout ./faq.csv",
        "split faq.csv --train a.jsonl --heldout a.jsonl",
        "check faq.csv --fix faq.csv",
        "check faq.csv --fix out.csv",
    ],
)
def test_nothing_is_written_over_what_is_read(command: str, place: Path) -> None:
    (place / "faq.csv").write_text(PAIRS_CSV)
    (place / "link.csv").symlink_to("faq.csv")
    result = invoke("data", *command.split())
    assert result.exit_code == 2, result.output
    assert (place / "faq.csv").read_text() == PAIRS_CSV
    assert sorted(path.name for path in place.iterdir()) == ["faq.csv", "link.csv"]


def test_a_folder_of_both_kinds_is_mended_and_split_by_its_conversations(place: Path) -> None:
    (place / "mix").mkdir()
    (place / "mix" / "faq.csv").write_text(PAIRS_CSV)
    (place / "mix" / "note.md").write_text("# A text")
    result = invoke("data", "check", "mix", "--fix", "out.jsonl")
    assert "records of another kind than the first, left out: check them by themselves: note.md:1" in result.stdout
    assert len((place / "out.jsonl").read_text().splitlines()) == 5
    assert invoke("data", "split", "mix").exit_code == 0


def test_the_length_that_is_checked_is_that_of_the_model(place: Path) -> None:
    (place / "long.json").write_text(json.dumps([{"user": "a", "bot": "word " * 600}]))
    assert json.loads(invoke("data", "check", "long.json", "--json").stdout)["too_long"] == 1
    assert json.loads(invoke("data", "check", "long.json", "--model", "gpt2", "--json").stdout)["too_long"] == 0


def test_a_list_in_one_line_goes_on_behind_a_fault(place: Path) -> None:
    rows = [json.dumps({"user": f"q{n}", "bot": f"a{n}"}) for n in range(50)]
    (place / "one.json").write_text("[" + ", ".join(rows).replace("}, {", "} {", 1) + "]")
    questions, faults = tolerant(place / "one.json")
    assert questions == [f"q{n}" for n in range(50)] and faults.count == 1
    rows[7] = '{"user": "x", "bot": NaN}'
    (place / "two.json").write_text("[" + ", ".join(rows) + "]")
    questions, faults = tolerant(place / "two.json")
    assert questions == [f"q{n}" for n in range(50) if n != 7] and faults.count == 1


def test_a_missing_comma_loses_no_record(place: Path) -> None:
    (place / "p.json").write_text('[\n{"user": "a", "bot": "b"}\n{"user": "c", "bot": "d"}\n]')
    questions, faults = tolerant(place / "p.json")
    assert questions == ["a", "c"] and "expected a comma between two records" in faults.kept[0]


def test_chatml_in_one_line_and_with_something_behind_an_end(place: Path) -> None:
    def said(role: str, text: str) -> str:
        return f"<|im_start|>{role}\n{text}<|im_end|>"

    (place / "c.txt").write_text("".join(said(*each) for each in [("user", "a"), ("assistant", "b")] * 2))
    [record] = read(Source(place / "c.txt"), Report()).records
    assert [message.content for message in record.content] == ["a", "b", "a", "b"]  # type: ignore[union-attr]
    (place / "c.txt").write_text(said("user", "a") + " tail\n" + said("assistant", "b"))
    assert "got ' tail'" in tolerant(place / "c.txt")[1].kept[0]
    (place / "c.txt").write_text("<|im_start|>user\na\n" + said("assistant", "b"))
    assert "c.txt:3: expected <|im_end|>" in tolerant(place / "c.txt")[1].kept[0]


def test_records_that_differ_in_their_parts_or_in_what_is_learnt_are_no_repeats(place: Path) -> None:
    rows = [
        {"messages": [{"role": "user", "content": a}, {"role": "assistant", "content": b}]}
        for a, b in [("a", "b\nc"), ("a\nb", "c")]
    ]
    rows.append(
        {"messages": [*rows[0]["messages"], {"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]}
    )
    muted = json.loads(json.dumps(rows[2]))
    muted["messages"][1]["weight"] = 0
    (place / "r.json").write_text(json.dumps([*rows, muted]))
    invoke("data", "check", "r.json", "--fix", "out.jsonl")
    assert len((place / "out.jsonl").read_text().splitlines()) == 4


def test_what_mending_would_turn_into_a_marker_is_left_out(place: Path) -> None:
    (place / "e.jsonl").write_text('{"user": "a", "bot": "<|endof\\u0001text|> hey"}\n{"user": "c", "bot": "d"}')
    result = invoke("data", "check", "e.jsonl", "--fix", "out.jsonl")
    assert "records that would hold <|endoftext|>, left out: e.jsonl:1" in result.stdout
    assert invoke("data", "check", "out.jsonl").exit_code == 0


def test_a_pipe_is_read_whole_and_standard_input_once(place: Path) -> None:
    rows = "\n".join(json.dumps({"user": f"q{n}", "bot": "answer " * 20}) for n in range(9000))
    script = f"{sys.executable} -m gpt2chat data stats <(cat big.jsonl) --json"
    (place / "big.jsonl").write_text(rows)
    result = subprocess.run(["bash", "-c", script], capture_output=True, text=True, env=environment(), check=True)
    assert json.loads(result.stdout)["conversations"] == 9000
    assert invoke("data", "check", "-", "-", stdin="{}").exit_code == 2


def test_old_line_ends_and_odd_names_of_encodings(place: Path) -> None:
    (place / "t.txt").write_bytes(b"User: a\rBot: b\r\rUser: c\rBot: d\r")
    assert tolerant(place / "t.txt")[0] == ["a", "c"]
    for name in ("rot13", "base64", "undefined", "nonsense"):
        result = invoke("data", "check", "t.txt", "--encoding", name)
        assert result.exit_code in (1, 2) and "is not known" in result.output + result.stderr


def test_halves_of_characters_are_printed_without_a_traceback(place: Path) -> None:
    (place / "h.jsonl").write_text('{"user": "a", "bot": "\\ud800 b"}\n{"user": [["\\ud800"]], "bot": "x"}')
    for command in ("check h.jsonl", "check h.jsonl --json", "sample h.jsonl", "stats h.jsonl --json"):
        assert invoke("data", *command.split()).exit_code in (0, 1)
    ended = spawn(["-m", "gpt2chat", "data", "sample", "h.jsonl"], place, PYTHONIOENCODING="ascii")
    assert "Traceback" not in ended.stderr and "h.jsonl:2: record 2: user: expected text" in ended.stderr


def test_a_text_that_begins_like_json_is_a_text_where_one_is_asked_for(place: Path) -> None:
    (place / "wiki.md").write_text("[[Home]] is where it begins.\n")
    reading = read(Source(place / "wiki.md"), Report(), as_text=True)
    assert [record.content for record in reading.records] == ["[[Home]] is where it begins."]
