"""A question has one finite unit vector however it is asked for, by numpy alone, and the one that was trained."""

from __future__ import annotations

import importlib.util
import random
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest
from helpers_cli import ROOT, spawn
from hypothesis import example, given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from gpt2chat.encoder import FILE, MOST_WORDS, TOGETHER, QuestionEncoder, Vectors, _wide, encoder, narrow, runs, words
from gpt2chat.matching import EVIDENCE

QUESTIONS = [
    "When do you open?",
    "how late is the shop open",
    "Where is my parcel?",
    "Wo ist mein Paket?",
    "店は何時に開きますか",
    "🦉🦉",
    "",
    "?!",
    "\ud800",
    "qwxzj vvkq",
]
ANY = st.text(st.characters(), max_size=40)  # half characters too
LONG = ["a " * 5000, "a" * 10_000, "猫" * 10_000, "🦉 " * 5000, "\ud800" * 10_000, "?" * 10_000, "\0" * 10_000]


def alike(one: str, other: str) -> float:
    a, b = encoder().encode([one, other])
    return float(a @ b)


# -- a vector ------------------------------------------------------------------------------------------------------


@given(texts=st.lists(ANY, max_size=5))
@example(texts=LONG)
@example(texts=["", " ", "\n", "\u200b", "’", "İ", "ß", "a’b", "don't", "--", "0"])
def test_any_text_has_a_finite_vector_of_length_one(texts: list[str]) -> None:
    found = encoder().encode(texts)
    assert found.dtype == np.float32
    assert found.shape == (len(texts), encoder().encode(["a"]).shape[1])
    assert np.isfinite(found).all()
    assert np.linalg.norm(found, axis=1) == pytest.approx(np.ones(len(texts)), abs=1e-5)


@given(texts=st.lists(st.one_of(ANY, st.sampled_from(QUESTIONS)), min_size=1, max_size=6), at=st.integers(0, 5))
def test_company_makes_no_difference(texts: list[str], at: int) -> None:
    alone = encoder().encode([texts[at % len(texts)]])[0]
    assert encoder().encode(texts)[at % len(texts)] == pytest.approx(alone, abs=1e-5)


def test_nor_does_a_batch_that_is_cut() -> None:
    many = [f"Where is parcel {number}?" for number in range(TOGETHER + 3)]
    found = encoder().encode(many)
    for at in (0, TOGETHER - 1, TOGETHER, TOGETHER + 2):
        assert found[at] == pytest.approx(encoder().encode([many[at]])[0], abs=1e-5)


def test_no_question_has_no_vector() -> None:
    assert encoder().encode([]).shape == (0, encoder().encode(["a"]).shape[1])
    assert encoder().word_vectors([]).shape[0] == encoder().rarity([]).shape[0] == 0


def test_a_vector_is_the_same_each_time_and_in_each_copy() -> None:
    again = QuestionEncoder.load()
    for _ in range(2):
        assert np.array_equal(again.encode(QUESTIONS), encoder().encode(QUESTIONS))


def test_case_blanks_and_the_order_of_words_make_no_difference() -> None:
    for other in ("WHEN do YOU open?", "  when  do\tyou\nopen ?", "? open you do When"):
        assert alike("When do you open?", other) == pytest.approx(1, abs=1e-5)
    assert alike("what’s new", "What's new") == pytest.approx(1, abs=1e-5)


def test_only_the_first_words_of_a_long_question_are_read() -> None:
    long = " ".join(f"word{number}" for number in range(MOST_WORDS))
    assert words(long + " and more") == words(long) == long.split()
    assert alike(long, long + " and more") == pytest.approx(1, abs=1e-5)


# -- what it means -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "same", "other"),
    [
        ("When do you open?", "What are your opening hours?", "Where is my parcel?"),
        ("Where is my parcel?", "My package has not arrived", "Can I pay by card?"),
        ("Can I pay by card?", "Do you take credit cards?", "When do you open?"),
        ("How do I reset my password?", "I forgot my password", "How do I bake bread?"),
        ("Can I pay by card?", "Can I pya by crad?", "When do you open?"),  # misspelt
    ],
)
def test_the_same_in_other_words_is_nearer(question: str, same: str, other: str) -> None:
    assert alike(question, same) > alike(question, other) + 0.1


def test_misspelt_words_are_nearer_to_the_right_ones_than_others_are() -> None:
    right = ["delivery", "password", "parcel", "opening", "refund"]
    wrong = encoder().word_vectors(["delivry", "pasword", "parcell", "openning", "refnud"])
    near = encoder().word_vectors(right) @ wrong.T
    assert np.trace(near) / 5 > (near.sum() - np.trace(near)) / 20
    assert np.linalg.norm(wrong, axis=1) == pytest.approx(np.ones(5), abs=1e-5)


@given(spelt=st.lists(ANY, max_size=6))
def test_words_of_any_kind_have_vectors_and_a_rarity(spelt: list[str]) -> None:
    vectors, rarity = encoder().word_vectors(spelt), encoder().rarity(spelt)
    assert np.isfinite(vectors).all()
    assert (np.linalg.norm(vectors, axis=1) <= 1 + 1e-5).all()  # a mark that has no row has none
    assert len(rarity) == len(spelt)
    assert ((rarity >= 0) & (rarity <= 1)).all()


def test_usual_words_are_not_rare() -> None:
    the, parcel, unknown = encoder().rarity(["the", "parcel", "qwxzjv"])
    assert the < parcel < unknown == 1


@given(st.lists(st.lists(st.floats(-1e6, 1e6), min_size=EVIDENCE, max_size=EVIDENCE), min_size=1, max_size=4))
def test_a_confidence_is_a_share(evidence: list[list[float]]) -> None:
    found = encoder().confidence(np.array(evidence))
    assert found.shape == (len(evidence),)
    assert ((found > 0) & (found <= 1)).all()


# -- words and runs ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "found"),
    [
        ("Where's MY parcel?", ["where's", "my", "parcel", "?"]),
        ("it’s 10:30", ["it's", "10", ":", "30"]),
        ("'quoted'", ["'", "quoted", "'"]),
        ("猫は?", ["猫は", "?"]),
        ("naïve Größe_1", ["naïve", "größe", "_", "1"]),
        ("Где моя посылка?", ["где", "моя", "посылка", "?"]),
        ("🦉", ["🦉"]),
        (" \n\t", []),
    ],
)
def test_words_and_marks(question: str, found: list[str]) -> None:
    assert words(question) == found


@given(text=ANY)
def test_no_word_is_blank_and_words_of_words_are_the_same(text: str) -> None:
    found = words(text)
    assert len(found) <= MOST_WORDS and all(word.strip() for word in found)
    assert words(" ".join(found)) == found


@given(word=st.text(st.characters(), max_size=12))
def test_a_word_has_as_many_runs_as_its_length_says(word: str) -> None:
    expected = 0 if len(word) <= 2 else len(word) + (len(word) - 1)  # of three and of four, between both ends
    assert len(list(runs(word))) == expected
    assert list(runs(word)) == list(runs(word))


# -- few bits ------------------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**31), rows=st.integers(1, 5), half=st.integers(1, 8), size=st.sampled_from([0, 1e-6, 1, 1e6])
)
def test_narrow_and_wide_are_there_and_back_within_half_a_step(seed: int, rows: int, half: int, size: float) -> None:
    table = (np.random.default_rng(seed).normal(size=(rows, 2 * half)) * size).astype(np.float32)
    codes, scale = narrow(table)
    assert codes.dtype == np.uint8 and codes.shape == (rows, half) and scale.shape == (rows, 1)
    again = _wide(codes, scale)
    assert (np.abs(again - table) <= scale * 0.5001).all()
    assert np.abs(again).max(1) == pytest.approx(np.abs(table).max(1), rel=1e-4, abs=1e-11)  # the largest stays
    twice, same = narrow(again)
    assert np.array_equal(twice, codes) or size == 0
    assert same == pytest.approx(scale, rel=1e-4)


def test_every_code_comes_back() -> None:
    codes = np.arange(256, dtype=np.uint8)[None]
    wide = _wide(codes, np.ones((1, 1), np.float32))
    assert set(wide.ravel().tolist()) == set(range(-8, 8))
    assert wide[0, :4].tolist() == [-8, -8, -7, -8]  # the even place is in the low half


# -- the file ------------------------------------------------------------------------------------------------------


def test_the_encoder_of_the_package_is_read_once_and_small() -> None:
    assert encoder() is encoder()
    assert FILE.stat().st_size < 2_500_000


def test_a_file_of_ones_own_is_read(tmp_path: Path) -> None:
    path = tmp_path / "mine.safetensors"
    save_file(load_file(FILE), path)
    assert np.array_equal(QuestionEncoder.load(path).encode(QUESTIONS), encoder().encode(QUESTIONS))


def test_it_needs_numpy_alone(tmp_path: Path) -> None:
    code = (
        "import sys; from gpt2chat.encoder import encoder; assert len(encoder().encode(['Hello'])) == 1;"
        "print(*sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'scipy', 'click', 'numpy'}))"
    )
    done = spawn(["-c", code], tmp_path)
    assert done.stdout.split() == ["numpy"], done.stderr


# -- as it was trained ---------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def recipe() -> Iterator[ModuleType]:
    """The recipe that trains the encoder, with its neighbours; gone again at the end."""
    for name in ("scipy", "click", "torch"):
        pytest.importorskip(name)
    folder, before = ROOT / "recipes" / "question_encoder", set(sys.modules)
    sys.path.insert(0, str(folder))
    try:
        spec = importlib.util.spec_from_file_location("question_encoder_train", folder / "train.py")
        assert spec and spec.loader
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
        yield module
    finally:
        sys.path.remove(str(folder))
        for name in ("groups", "vectors"):
            if name not in before:
                sys.modules.pop(name, None)


def small(recipe: ModuleType) -> tuple[list[str], Vectors]:
    spelt = sorted({word for question in QUESTIONS[:4] for word in words(question)})
    vectors = np.random.default_rng(0).normal(size=(len(spelt), recipe.WIDTH)).astype(np.float32)
    return spelt, vectors / np.linalg.norm(vectors, axis=1, keepdims=True)


def exported(recipe: ModuleType, network: object, count: int) -> QuestionEncoder:
    blank = np.zeros(1 + recipe.matching.EVIDENCE, np.float32)
    return QuestionEncoder(network.export(np.linspace(0, 1, count), blank))  # type: ignore[attr-defined]


def test_the_network_that_learns_is_the_encoder_that_is_written(recipe: ModuleType) -> None:
    """They differ by rounding alone, and with numbers that int4 and float16 hold not at all."""
    import torch

    spelt, vectors = small(recipe)
    torch.manual_seed(0)
    network = recipe.Network(spelt, vectors)
    with torch.no_grad():
        network.weights.weight.normal_(std=0.3)
        network.into.bias.normal_(std=0.1)
        network.out.bias.normal_(std=0.1)
    asked = [*QUESTIONS, *LONG]
    made = exported(recipe, network, len(spelt))
    with torch.no_grad():
        rounded = network(asked).numpy()
    cosines = (rounded * made.encode(asked)).sum(1)
    assert cosines.min() > 0.97 and np.median(cosines) > 0.98
    with torch.no_grad():
        for table in (network.words, network.runs):
            table.weight.copy_(torch.from_numpy(_wide(*narrow(table.weight.numpy()))))
        for layer in (network.skip, network.into, network.out, network.weights):
            for parameter in layer.parameters():
                parameter.copy_(parameter.half().float())
        exact = network(asked).numpy()
    assert exported(recipe, network, len(spelt)).encode(asked) == pytest.approx(exact, abs=2e-3)


def test_training_draws_one_meaning_together(recipe: ModuleType) -> None:
    spelt, vectors = small(recipe)
    groups = [
        recipe.Group("shop", ["When do you open?", "how late is the shop open"]),
        recipe.Group("post", ["Where is my parcel?", "Wo ist mein Paket?"]),
    ]
    random_state = random.getstate()
    network = recipe.Network(spelt, vectors)
    before = exported(recipe, network, len(spelt)).encode(QUESTIONS[:4])
    recipe.train(network, groups, steps=30)
    after = exported(recipe, network, len(spelt)).encode(QUESTIONS[:4])
    random.setstate(random_state)
    for one, other in ((0, 1), (2, 3)):
        assert after[one] @ after[other] > before[one] @ before[other]
    assert after[0] @ after[1] > after[0] @ after[2]
