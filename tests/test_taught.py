"""The nearest taught question is that of the TF-IDF cosine, and a run stores what it learnt and nothing else."""

from __future__ import annotations

import json
import math
import signal
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from helpers_cli import invoke, save_tiny, signals_in_step
from hypothesis import example, given
from hypothesis import strategies as st

from gpt2chat import checkpoint
from gpt2chat.conversation import Message
from gpt2chat.data import last_pair
from gpt2chat.records import Record
from gpt2chat.taught import Nearest, Taught, fold, merged, sampled

TEXTS = st.lists(st.text(st.sampled_from("ab cé猫1?'\n")), max_size=6)
PAIR = st.tuples(st.sampled_from("abcd"), st.sampled_from("xyz"))
WORDS = "when where how who open close store price order parcel return cancel pay card bill today help"


# -- the nearest question ------------------------------------------------------------------------------------------


def vector(features: list[str], counts: Counter[str], texts: int) -> dict[str, float]:
    weights = {
        feature: (1 + math.log(often)) * (math.log((1 + texts) / (1 + counts[feature])) + 1)
        for feature, often in Counter(features).items()
    }
    norm = math.sqrt(sum(weight**2 for weight in weights.values()))
    return {feature: weight / norm for feature, weight in weights.items()}


def runs(folded: str) -> list[str]:
    padded = f" {folded} " if folded else ""
    return [padded[i : i + size] for size in (3, 4) for i in range(len(padded) - size + 1)]


@given(texts=TEXTS, question=st.text(st.sampled_from("ab cé猫1?'\n")))
@example(texts=["a b", "a b c", "?"], question="a b")
def test_similarities_are_those_of_the_textbook(texts: list[str], question: str) -> None:
    folded, asked, expected = [fold(text) for text in texts], fold(question), np.zeros(len(texts))
    for cut in (str.split, runs):
        counts = Counter(feature for text in folded for feature in set(cut(text)))
        vectors = [vector(cut(text), counts, len(texts)) for text in folded]
        own = vector(cut(asked), counts, len(texts))
        expected += [0.5 * sum(own.get(f, 0) * weight for f, weight in other.items()) for other in vectors]
    assert Taught([(text, "") for text in texts]).similarities(question) == pytest.approx(expected, abs=1e-9)


@given(st.lists(st.text("ab cé猫", max_size=8), min_size=1, max_size=6), st.data())
def test_taught_questions_are_as_like_each_other_as_when_they_are_asked(texts: list[str], data: st.DataObject) -> None:
    taught = Taught((text, "") for text in texts)
    rows = data.draw(st.lists(st.sampled_from(range(len(texts))), min_size=1, max_size=6))
    expected = [taught.similarities(texts[row])[rows] for row in rows]
    assert taught.among(np.array(rows)) == pytest.approx(np.array(expected), abs=1e-6)


@pytest.mark.parametrize(
    ("taught", "asked"),
    [
        ("When do you open?", "  when DO you... open"),
        ("Où est le café ?", "OÙ EST LE CAFÉ"),
        ("Cafe\u0301!", "CAFÉ"),
        ("Straße", "STRASSE"),
        ("猫はどこですか", "猫はどこですか。"),
        ("किताब कहाँ है?", "किताब कहाँ है"),
        ("\uff34\uff25\uff33\uff34 1", "test 1"),
        ("🦉🦉", "🦉🦉"),
        ("?!", " ?! "),
        ("\ud800 x", "X"),
    ],
)
def test_case_marks_and_forms_of_letters_make_no_difference(taught: str, asked: str) -> None:
    found = Taught([("something else", "no"), (taught, "yes")]).nearest(asked)
    assert (found.question, found.answer, found.similarity) == (taught, "yes", pytest.approx(1.0))


def test_the_nearest_is_the_one_with_most_in_common() -> None:
    taught = Taught([("Where is my parcel?", "a"), ("When do you open?", "b"), ("When do you open?", "c")])
    assert taught.nearest("where's the parcel").answer == "a"
    assert taught.nearest("opening times: when?").answer == "b"
    assert taught.nearest("xyzzy").similarity == 0
    assert 0 < taught.nearest("When do you close?").similarity < 1


def test_without_pairs_nothing_is_near() -> None:
    assert Taught([]).nearest("Hello") == Nearest("", "", 0.0)
    assert Taught([("", "")]).nearest("Hello").similarity == Taught([("a", "b")]).nearest("").similarity == 0


def test_ten_thousand_questions_are_indexed_and_asked_in_no_time() -> None:
    rng = np.random.default_rng(0)
    questions = [" ".join(rng.choice(WORDS.split(), 8)) + f" {i}?" for i in range(10_000)]
    index, ask = [], []
    for _ in range(3):
        began = time.perf_counter()
        taught = Taught([(question, "yes") for question in questions])
        index.append(time.perf_counter() - began)
    for question in questions[::500]:
        began = time.perf_counter()
        assert taught.nearest(question).question == question
        ask.append(time.perf_counter() - began)
    assert min(index) < 1
    assert min(ask) < 0.005


# -- what is kept --------------------------------------------------------------------------------------------------


@given(before=st.lists(PAIR), learnt=st.lists(PAIR))
def test_what_was_taught_before_stays_in_front_unless_it_was_taught_anew(
    before: list[tuple[str, str]], learnt: list[tuple[str, str]]
) -> None:
    found = merged(before, learnt)
    assert len(set(found)) == len(found)
    assert set(learnt) == {pair for pair in found if pair[0] in {question for question, _ in learnt}}
    assert set(found) <= {*before, *learnt}
    assert {question for question, _ in found} == {question for question, _ in (*before, *learnt)}
    assert found[len(found) - len(set(learnt)) :] == list(dict.fromkeys(learnt))
    assert merged(found, learnt) == found


@given(sizes=st.lists(st.integers(0, 50), max_size=60), most=st.integers(1, 400))
def test_a_sample_fits_and_all_is_kept_where_all_fits(sizes: list[int], most: int) -> None:
    pairs = [(str(i), "é" * size) for i, size in enumerate(sizes)]
    total = sum(len(question) + 2 * len(answer) for question, answer in pairs)
    kept = sampled(pairs, most)
    assert sum(len(question) + 2 * len(answer) for question, answer in kept) <= max(most, 0)
    assert [pair for pair in pairs if pair in set(kept)] == kept
    assert kept == pairs or total > most


def test_a_sample_is_even() -> None:
    kept = sampled([(f"{i:04}", "answer") for i in range(1000)], 1000)
    assert len(kept) == 100
    places = np.array([int(question) for question, _ in kept])
    assert np.diff(places, prepend=-1, append=1000).max() <= 11


def test_the_last_question_and_its_answer_are_a_pair() -> None:
    user, bot = Message("user", "b"), Message("assistant", "c")
    assert last_pair(Record("", (Message("user", "a"), bot, user, bot))) == ("b", "c")
    assert last_pair(Record("", (Message("system", "a"), user, bot))) == ("b", "c")
    for content in ("bc", (user,), (), (bot, user), (user, Message("assistant", "c", trained=False))):
        assert last_pair(Record("", content)) is None


# -- training ------------------------------------------------------------------------------------------------------


def rows(first: int, count: int, answer: str = "It is") -> list[tuple[str, str]]:
    return [(f"What is number {n}?", f"{answer} {n * 7}.") for n in range(first, first + count)]


def train(model: Path, saved: Path, pairs: list[tuple[str, str]], *options: object) -> str:
    file = saved.with_suffix(".json")
    file.write_text(json.dumps([{"user": user, "bot": bot} for user, bot in pairs]), "utf-8")
    places = ("--model", model, "--conversation_file", file, "--save_path", saved)
    result = invoke("train", *places, "--batch_size", 2, "--epochs", 1, *options)
    assert result.exit_code == 0, result.stderr
    return result.stderr


def test_a_run_stores_what_it_learnt_and_keeps_what_its_base_had(tmp_path: Path) -> None:
    tiny, first, second = save_tiny(tmp_path / "tiny.pt"), tmp_path / "first.pt", tmp_path / "second.pt"
    train(tiny, first, [*rows(0, 12), *rows(0, 3)])
    assert checkpoint.load(first).taught == checkpoint.load(tmp_path / "first.last.pt").taught == rows(0, 12)
    train(first, second, rows(10, 4, "Now"))
    loaded = checkpoint.load(second)
    assert loaded.taught == [*rows(0, 10), *rows(10, 4, "Now")]
    assert "What is number" not in json.dumps(loaded.about)
    shown = invoke("inspect", second, "--json").stdout
    assert json.loads(shown)["taught"] == 14
    assert "What is number" not in shown


def test_held_out_and_cut_conversations_are_not_stored(tmp_path: Path) -> None:
    tiny, saved = save_tiny(tmp_path / "tiny.pt"), tmp_path / "bot.pt"
    long = ("What?", "word " * 100)
    said = train(tiny, saved, [*rows(0, 20), long], "--val_fraction", 0.25, "--max_length", 64, "--too_long", "cut")
    assert "5 held out" in said
    taught = checkpoint.load(saved).taught
    assert long not in taught
    assert set(taught) < set(rows(0, 20)) and len(taught) in (15, 16)


def test_beyond_the_limit_a_sample_is_kept_and_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2chat.cli.inputs.MOST_BYTES", 300)
    tiny, saved = save_tiny(tmp_path / "tiny.pt"), tmp_path / "bot.pt"
    said = train(tiny, saved, rows(0, 40))
    taught = checkpoint.load(saved).taught
    assert 5 < len(taught) < 15
    assert f"keeps {len(taught)} of 40 taught questions" in said


def test_a_resumed_run_stores_what_the_whole_one_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2chat.cli.inputs.MOST_BYTES", 400)
    tiny, whole, cut = save_tiny(tmp_path / "tiny.pt"), tmp_path / "whole.pt", tmp_path / "cut.pt"
    before = tmp_path / "before.pt"
    train(tiny, before, rows(0, 9))
    train(before, whole, rows(5, 30), "--max_length", 64, "--epochs", 3)
    with signals_in_step(2, signal.SIGINT), pytest.raises(AssertionError, match="Go on with"):
        train(before, cut, rows(5, 30), "--max_length", 64, "--epochs", 3)
    assert invoke("train", "--resume", tmp_path / "cut.last.pt").exit_code == 0
    assert 0 < len(checkpoint.load(whole).taught) < 35
    assert checkpoint.load(cut).taught == checkpoint.load(whole).taught
