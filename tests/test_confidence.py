"""Confidence ranks answers by what speaks for them, the curve is that of pairs no fit has seen, and receipts hold."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_cli import invoke
from hypothesis import given
from hypothesis import strategies as st

from gpt2chat import checkpoint, confidence, packs
from gpt2chat.chatbot import GPT2Chatbot
from gpt2chat.checkpoint import Checkpoint
from gpt2chat.confidence import (
    EVIDENCE,
    Calibration,
    Case,
    Judge,
    at_coverage,
    calibrate,
    fitted,
    load_calibration,
    out_of_fold,
    pick,
    receipt_path,
    risk_coverage,
)
from gpt2chat.conversation import TEMPLATES
from gpt2chat.errors import CheckpointError, ConfigError, DataError
from gpt2chat.model import GPT2, GPT2Config
from gpt2chat.run import RunFiles
from gpt2chat.tokenizer import Tokenizer

PAIRS = [("When do you open?", "At nine."), ("Where is my parcel?", "On its way."), ("Can I pay by card?", "Yes.")]
ABOUT = {"model": "bot.pt", "checkpoint": "abc", "runtime": "float32", "data_sha256": "def"}
LOGPROB = st.floats(-30, 0)
JUDGED = st.lists(st.tuples(st.sampled_from([0.1, 0.2, 0.5, 0.9, 0.95]), st.booleans()), min_size=1, max_size=40)


def cases(count: int = 200, seed: int = 0) -> list[Case]:
    """Answers that are right the likelier the more probable they are, and the more so when they were taught."""
    rng, made = np.random.default_rng(seed), []
    for _ in range(count):
        question, answer = PAIRS[rng.integers(3)]
        taught = bool(rng.random() < 0.7)
        logprobs = (-rng.exponential(0.5, rng.integers(1, 6))).tolist()
        right = rng.random() < 1 / (1 + math.exp(-(3 * taught + 2 * min(logprobs) + 0.5)))
        made.append(Case(question + " please", answer if taught else "Perhaps.", logprobs, bool(right)))
    return made


@pytest.fixture(scope="module")
def calibration() -> Calibration:
    return calibrate(Judge(PAIRS), cases(), **ABOUT)


# -- one answer ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("pairs", [PAIRS, []], ids=["taught", "alone"])
@given(logprobs=st.lists(LOGPROB, max_size=8), answer=st.sampled_from(["At nine.", "Yes.", "", "猫"]))
def test_confidence_is_a_share(pairs: list[tuple[str, str]], logprobs: list[float], answer: str) -> None:
    assert 0 <= Judge(pairs).confidence("When do you open?", answer, logprobs) <= 1


@pytest.mark.parametrize("pairs", [PAIRS, []], ids=["taught", "alone"])
@given(logprobs=st.lists(LOGPROB, min_size=1, max_size=8), place=st.integers(0, 7), less=st.floats(0.5, 5))
def test_a_less_likely_token_never_raises_it(
    pairs: list[tuple[str, str]], logprobs: list[float], place: int, less: float
) -> None:
    judge, changed = Judge(pairs), list(logprobs)
    changed[place % len(changed)] -= less
    asked = ("when do you open", "At nine.")
    assert judge.confidence(*asked, changed) <= judge.confidence(*asked, logprobs)


def test_a_taught_answer_to_a_taught_question_is_surest() -> None:
    judge, sure = Judge(PAIRS), [-0.001, -0.01]
    asked = "WHEN do you open"
    found = [judge.confidence(asked, answer, sure) for answer in ("at nine!", "Yes.", "I like cats.")]
    assert found[0] > 0.99 > found[1]
    assert found[0] > judge.confidence("When will the shop open?", "At nine.", sure) > found[1]
    assert found[0] > judge.confidence(asked, "At nine.", [-0.001, -4.0])
    assert judge.confidence(asked, "At nine.", []) < 0.5
    assert judge.confidence(asked, "At nine.", [-math.inf]) < 0.5


def test_the_margin_tells_whose_answer_it_is() -> None:
    judge = Judge([*PAIRS, ("When do you open?", "At ten.")])
    names = dict(zip(EVIDENCE, judge.evidence("When do you open?", "On its way.", [0.0]), strict=True))
    assert names["similarity"] < -4 and names["margin"] < -0.8
    both = judge.evidence("When do you open?", "At nine.", [0.0])
    assert both[EVIDENCE.index("margin")] == pytest.approx(0)  # two answers were taught
    assert Judge(PAIRS).evidence("When do you open?", "At nine.", [0.0])[3] > 0.7


# -- the fit -------------------------------------------------------------------------------------------------------


def test_the_fit_is_where_the_penalised_likelihood_is_largest() -> None:
    rng = np.random.default_rng(1)
    evidence = rng.normal(size=(300, 4)) * [1, 5, 0.1, 2] + [0, 3, 0.5, -1]
    right = (rng.random(300) < 1 / (1 + np.exp(-(evidence @ [1.0, -0.5, 3.0, 0.2])))).astype(float)
    weights, count = fitted(evidence, right), right.sum()
    targets = np.where(right > 0, (count + 1) / (count + 2), 1 / (300 - count + 2))

    def loss(w: np.ndarray) -> float:
        sums = w[0] + evidence @ w[1:]
        ridge = 0.5 * confidence.RIDGE * ((w[1:] * evidence.std(0)) ** 2).sum()
        return float((np.logaddexp(0, sums) - targets * sums).sum() + ridge)

    for place in range(5):
        for change in (-1e-3, 1e-3):
            moved = weights.copy()
            moved[place] += change
            assert loss(moved) > loss(weights)


@pytest.mark.parametrize("kind", ["parted", "constant", "all right"])
def test_the_fit_stays_finite_where_plain_regression_does_not(kind: str) -> None:
    evidence = np.repeat(np.arange(40.0)[:, None], 4, 1) if kind != "constant" else np.ones((40, 4))
    right = np.ones(40) if kind == "all right" else (np.arange(40) >= 20).astype(float)
    weights = fitted(evidence, right)
    assert np.isfinite(weights).all()
    shares = 1 / (1 + np.exp(-(weights[0] + evidence @ weights[1:])))
    assert ((shares > 0) & (shares < 1)).all()
    if kind == "parted":
        assert shares[:20].max() < 0.5 < shares[20:].min()
    else:
        assert shares == pytest.approx(np.full(40, 0.5 if kind == "constant" else 41 / 42), abs=1e-6)


def test_no_pair_has_a_say_in_its_own_confidence() -> None:
    """Whether it was right changes neither its own confidence nor that of the others in its fold."""
    rng = np.random.default_rng(2)
    evidence, right = rng.normal(size=(60, 4)), (rng.random(60) < 0.6).astype(float)
    whole = out_of_fold(evidence, right, folds=60)
    for place in range(0, 60, 7):
        others = np.arange(60) != place
        weights = fitted(evidence[others], right[others])
        assert whole[place] == pytest.approx(1 / (1 + math.exp(-(weights[0] + evidence[place] @ weights[1:]))))


def test_noise_promises_nothing() -> None:
    """With 4 figures that mean nothing and 60 pairs, a fit judged by itself would promise much."""
    gains, fooled = [], []
    for seed in range(20):
        rng = np.random.default_rng(seed)
        evidence, right = rng.normal(size=(60, 4)), rng.permutation(60) < 30
        weights = fitted(evidence, right.astype(float))
        for found, judged in ((gains, out_of_fold(evidence, right.astype(float))), (fooled, evidence @ weights[1:])):
            found.append(at_coverage(risk_coverage(judged.tolist(), right.tolist()), 0.5).precision - 0.5)
    assert np.mean(gains) < 0.03
    assert np.mean(fooled) > 0.06


# -- the curve -----------------------------------------------------------------------------------------------------


@given(judged=JUDGED)
def test_the_curve_counts_what_each_threshold_lets_through(judged: list[tuple[float, bool]]) -> None:
    confidences, right = [c for c, _ in judged], [r for _, r in judged]
    curve = risk_coverage(confidences, right)
    assert [point.threshold for point in curve] == sorted(set(confidences), reverse=True)
    for point in curve:
        given_ = [r for c, r in judged if c >= point.threshold]
        assert point.coverage == pytest.approx(len(given_) / len(judged))
        assert point.precision == pytest.approx(sum(given_) / len(given_))
    assert curve[-1].coverage == 1


@given(judged=JUDGED, share=st.floats(0.01, 1))
def test_the_threshold_is_the_best_that_keeps_what_was_asked(judged: list[tuple[float, bool]], share: float) -> None:
    curve = risk_coverage([c for c, _ in judged], [r for _, r in judged])
    chosen = pick(curve, coverage=share)
    assert chosen.coverage >= share - 1e-9
    assert all(point.coverage < share for point in curve if point.threshold > chosen.threshold)
    if any(point.precision >= share for point in curve):
        chosen = pick(curve, precision=share)
        assert chosen.precision >= share
        assert all(point.precision < share for point in curve if point.coverage > chosen.coverage)
    else:
        with pytest.raises(ConfigError, match="precision: expected at most"):
            pick(curve, precision=share)


def test_no_answers_have_no_curve() -> None:
    assert risk_coverage([], []) == []


# -- calibration ---------------------------------------------------------------------------------------------------


def test_it_learns_what_speaks_for_an_answer(calibration: Calibration) -> None:
    fresh, judge = cases(400, seed=1), Judge(PAIRS, calibration)
    found = [judge.confidence(case.question, case.answer, case.logprobs) for case in fresh]
    right = [case.right for case in fresh]
    curve = risk_coverage(found, right)
    assert at_coverage(curve, 0.5).precision > curve[-1].precision + 0.1
    assert np.mean(found) == pytest.approx(np.mean(right), abs=0.06)
    assert at_coverage(calibration.curve, 0.5).precision == pytest.approx(at_coverage(curve, 0.5).precision, abs=0.12)


def test_a_calibration_says_what_it_is_of(calibration: Calibration) -> None:
    made = cases()
    assert (calibration.pairs, calibration.right) == (200, sum(case.right for case in made))
    assert (calibration.taught, calibration.known, calibration.model) == (3, 0, "bot.pt")
    assert 0 < calibration.coverage <= 1 and calibration.decided_rightly >= 0.5
    assert calibration.curve[-1].coverage == 1 and len(calibration.curve) <= confidence.CURVE_POINTS
    known = calibrate(Judge(PAIRS), [dataclasses.replace(made[0], question="when do YOU open"), *made[1:]], **ABOUT)
    assert known.known == 1


@pytest.mark.parametrize(
    ("made", "said"),
    [
        (cases(29), "at least 30 held-out pairs, found 29"),
        ([dataclasses.replace(case, right=True) for case in cases(40)], "all are right"),
        ([dataclasses.replace(case, right=False) for case in cases(40)], "all are wrong"),
    ],
    ids=["few", "right", "wrong"],
)
def test_what_nothing_can_be_learnt_from_is_named(made: Sequence[Case], said: str) -> None:
    with pytest.raises(DataError, match=said):
        calibrate(Judge(PAIRS), made, **ABOUT)


def test_one_wrong_answer_is_enough() -> None:
    made = [dataclasses.replace(case, right=i > 0) for i, case in enumerate(cases(30))]
    assert calibrate(Judge(PAIRS), made, **ABOUT).right == 29


def test_it_comes_back_from_its_file(calibration: Calibration, tmp_path: Path) -> None:
    path = tmp_path / "bot.pt"
    assert load_calibration(path) is None
    assert receipt_path(path) == RunFiles(path).beside("confidence.json")
    calibration.save(receipt_path(path))
    assert load_calibration(path) == load_calibration(tmp_path / "bot.confidence.json") == calibration


DAMAGE: dict[str, dict[str, Any]] = {
    "another form": {"format": "x"},
    "a missing field": {"curve": None},
    "one weight": {"weights": [1.0]},
    "a weight of text": {"weights": ["1", 0, 0, 0, 0]},
    "an infinite weight": {"weights": [math.inf, 0, 0, 0, 0]},
    "a threshold beyond 1": {"threshold": 1.5},
    "a threshold of no number": {"threshold": math.nan},
    "a true coverage": {"coverage": True},
    "a point of two": {"curve": [{"coverage": 1, "precision": 1}]},
    "a point below 0": {"curve": [{"coverage": -1, "precision": 1, "threshold": 0}]},
    "more right than there are": {"right": 1000},
    "a model of no name": {"model": 3},
    "another field": {"more": 1},
}


@pytest.mark.parametrize("changed", DAMAGE.values(), ids=DAMAGE.keys())
def test_a_receipt_of_another_form_is_refused(
    calibration: Calibration, changed: dict[str, Any], tmp_path: Path
) -> None:
    path = tmp_path / "bot.confidence.json"
    path.write_text(json.dumps({**calibration.to_dict(), **changed}), "utf-8")
    with pytest.raises(CheckpointError, match=r"bot\.confidence\.json: .*eval --calibrate"):
        load_calibration(path)


@pytest.mark.parametrize("content", [b"", b"{", b"[]", b"\xff", b"[" * 100_000])
def test_a_broken_receipt_is_refused(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "bot.confidence.json"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match=r"bot\.confidence\.json: "):
        load_calibration(path)


def test_one_of_another_model_is_told(calibration: Calibration) -> None:
    assert calibration.misfit("abc", PAIRS) is None
    assert calibration.misfit(None, PAIRS) is None
    assert "other weights" in (calibration.misfit("abd", PAIRS) or "")
    assert "3 taught pairs, not these 2" in (calibration.misfit("abc", PAIRS[:2]) or "")
    assert (calibration.misfit("abc", PAIRS, grounded=True) or "").endswith("--calibrate --grounded")


def test_of_grounded_answers_only_the_threshold_is_chosen() -> None:
    rng = np.random.default_rng(0)
    sure = rng.random(200).tolist()
    made = [Case("What?", "At nine.", (), bool(rng.random() < each), each) for each in sure]
    found = calibrate(Judge(PAIRS), made, **ABOUT)
    assert found.grounded
    assert found.threshold in sure
    assert 0.4 < found.threshold < 0.6  # where right and wrong are equally likely
    assert Calibration.from_dict(found.to_dict()) == found
    older = {name: value for name, value in found.to_dict().items() if name != "grounded"}
    assert not Calibration.from_dict(older).grounded


# -- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def bot(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says Yes. to everything: each id asks for the next of a chain, whatever came before."""
    folder, tokenizer = tmp_path_factory.mktemp("bot"), Tokenizer.gpt2()
    config = GPT2Config(n_layer=1, n_head=1, n_embd=64, n_ctx=128, vocab_size=50257, tie_word_embeddings=False)
    model = GPT2(config).init_weights(0)
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            if "c_proj" in name or name in ("wpe.weight", "lm_head.weight"):
                weight.zero_()
        chain = [*tokenizer.encode("Bot:")[-1:], *tokenizer.encode(" Yes."), tokenizer.end_id]
        for before, after in itertools.pairwise(chain):
            model.lm_head.weight[after] = model.ln_f(model.wte.weight[before])
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    taught = [(f"Is {n} a number?", "Yes.") for n in range(24)]
    (folder / "pairs.json").write_text(json.dumps([{"user": user, "bot": bot} for user, bot in taught]), "utf-8")
    held = [{"user": f"Is {n + 90} a number?", "bot": "Yes."} for n in range(24)]
    held += [{"user": f"Who ate the soup of {n} giants?", "bot": "No."} for n in range(12)]
    (folder / "held.json").write_text(json.dumps(held), "utf-8")
    checkpoint.save(Checkpoint(config, weights, TEMPLATES["chat"], taught=taught), folder / "bot.pt")
    return folder / "bot.pt"


def evaluate(bot: Path, *options: object, held: str = "held.json") -> Any:
    return invoke("eval", bot, "--conversation_file", bot.with_name(held), "--show", 0, *options)


def test_the_command_writes_a_receipt_and_shows_the_curve(bot: Path, tmp_path: Path) -> None:
    result = evaluate(bot, "--calibrate", "--coverage", 0.5)
    assert result.exit_code == 0, result.stderr
    found = load_calibration(bot)
    assert found is not None
    assert (found.pairs, found.right, found.taught) == (36, 24, 24)
    assert found.coverage >= 0.5
    assert found.misfit(packs.identity(bot), checkpoint.load(bot).taught) is None
    assert f"saved {bot.with_name('bot.confidence.json')}" in result.stderr
    assert [
        line.split()[0] for line in result.stdout.splitlines() if line.strip().startswith(("1", "9", "8", "7", "5"))
    ]
    assert "100%" in result.stdout and f"{found.threshold:.3f}" in result.stdout
    judge = Judge(checkpoint.load(bot).taught, found)
    assert 0 <= judge.confidence("Is 5 even?", "Yes.", [-0.1]) <= 1

    other = tmp_path / "mine.json"
    printed = json.loads(evaluate(bot, "--calibrate", "--json", "--precision", 0.3, "--receipt", other).stdout)
    assert printed["confidence"]["receipt"] == str(other)
    assert [row["coverage"] for row in printed["confidence"]["table"]] == [1.0, 0.95, 0.9, 0.8, 0.7, 0.5]
    assert load_calibration(other) == Calibration.from_dict(json.loads(other.read_text("utf-8")))
    assert printed["confidence"]["coverage"] == 1.0  # two of three are right, so all may be answered


def test_a_grounded_bot_goes_by_what_was_measured_for_it(bot: Path, tmp_path: Path) -> None:
    loaded = checkpoint.load(bot)
    pairs = [(f"Where is the {what}?", f"Behind the {what}.") for what in ("cinema", "garden", "bakery", "station")]
    faq = tmp_path / "faq.pt"
    checkpoint.save(dataclasses.replace(loaded, taught=pairs, about={"faq": True}), faq)
    ways = ("Tell me where the {} is", "where is that {}", "the {}, where is it", "Where do I find the {}?", "{} where")
    held = [{"user": way.format(a.split()[-1][:-1]), "bot": a} for _, a in pairs for way in ways]
    held += [{"user": f"Who ate the soup of {n} giants?", "bot": "No."} for n in range(12)]
    faq.with_name("held.json").write_text(json.dumps(held), "utf-8")
    before = GPT2Chatbot(str(faq), fallback="No idea.").threshold

    asked = ("--calibrate", "--coverage", 0.5, "--json")
    result = evaluate(faq, *asked)
    assert result.exit_code == 0, result.stderr
    assert "judging taught answers word for word" in result.stderr
    said = json.loads(result.stdout)["confidence"]
    assert (said["grounded"], said["right"]) == (True, 20)  # the model itself says Yes. to everything
    bot_after = GPT2Chatbot(str(faq), fallback="No idea.")
    bot_after.open(str(faq))
    assert bot_after.threshold == said["threshold"] != before
    answers = [bot_after.chat(row["user"]) for row in held]
    given = [answer for answer in answers if answer != "No idea."]
    assert len(given) == round(said["coverage"] * len(held)) and "Behind the bakery." in given
    own = GPT2Chatbot(str(faq), fallback="No idea.", grounded=False, notice=(remarks := []).append)
    own.open(str(faq))
    assert "measured for grounded answers" in remarks[0]


def test_an_older_model_is_given_what_it_was_taught(bot: Path, tmp_path: Path) -> None:
    old = tmp_path / "old.pt"
    checkpoint.save(dataclasses.replace(checkpoint.load(bot), taught=[]), old)
    for name in ("held.json", "pairs.json"):
        (tmp_path / name).write_bytes(bot.with_name(name).read_bytes())
    assert "keeps no taught questions" in evaluate(old, "--calibrate").stderr
    assert evaluate(old, "--calibrate", "--taught", tmp_path / "pairs.json").exit_code == 0
    found = load_calibration(old)
    assert found is not None and found.taught == 24
    assert "not these 0" in (found.misfit(packs.identity(old), []) or "")


def test_questions_that_were_taught_are_noted(bot: Path, tmp_path: Path) -> None:
    mixed = json.loads(bot.with_name("held.json").read_text("utf-8"))[10:30]
    mixed += json.loads(bot.with_name("pairs.json").read_text("utf-8"))[:12]
    bot.with_name("mixed.json").write_text(json.dumps(mixed), "utf-8")
    result = evaluate(bot, "--calibrate", "--receipt", tmp_path / "r.json", held="mixed.json")
    assert "12 of the 32 questions were taught" in result.stderr


@pytest.mark.parametrize(
    ("options", "code", "said"),
    [
        (["--coverage", "0.9"], 2, "coverage: belongs to --calibrate"),
        (["--receipt", "x.json"], 2, "receipt: belongs to --calibrate"),
        (["--calibrate", "--coverage", "0.9", "--precision", "0.9"], 2, "expected one of the two"),
        (["--calibrate", "--receipt", "x.txt"], 2, "ends in .json"),
        (["--calibrate", "--receipt", "HELD"], 2, "holds something else"),
        (["--calibrate", "--receipt", "FOLDER"], 2, "holds something else"),
        (["--calibrate", "--limit", "29", "--receipt", "NEW"], 1, "at least 30 held-out pairs, found 29"),
    ],
)
def test_what_cannot_be_is_one_line(bot: Path, tmp_path: Path, options: list[str], code: int, said: str) -> None:
    (tmp_path / "folder.json").mkdir()
    places = {"HELD": bot.with_name("held.json"), "FOLDER": tmp_path / "folder.json", "NEW": tmp_path / "new.json"}
    before = bot.with_name("held.json").read_bytes()
    result = evaluate(bot, *[places.get(option, option) for option in options])
    assert result.exit_code == code, result.stderr
    assert said in result.stderr.splitlines()[-1]
    assert bot.with_name("held.json").read_bytes() == before
    assert not places["NEW"].exists()


def test_the_demo_needs_a_place_for_its_receipt(bot: Path) -> None:
    result = invoke("eval", "demo", "--conversation_file", bot.with_name("held.json"), "--calibrate")
    assert result.exit_code == 2
    assert "pass --receipt" in result.stderr
    assert "conversation_file" in invoke("eval", "demo", "--text_file", bot, "--calibrate").stderr
