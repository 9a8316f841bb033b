"""How sure an answer is: the model's own probabilities, and what it was taught, weighed by what held-out pairs showed.

The weights are those of a logistic regression. Without held-out pairs they are fixed, and good for a first impression.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gpt2chat import packs, pretrained
from gpt2chat.errors import CheckpointError, ConfigError, DataError
from gpt2chat.files import atomic_writer
from gpt2chat.matching import Match, Matcher
from gpt2chat.run import RunFiles
from gpt2chat.taught import Numbers, Pair, same

__all__ = ["Calibration", "Case", "Judge", "Match", "Matcher", "Point", "calibrate", "load_calibration", "pick"]
EVIDENCE = ("mean", "least", "similarity", "margin")
# A constant, and a weight for each kind of evidence: how sure the match is, and a little of what the model finds. For a
# model that keeps no taught questions only the constant and the first two count.
FIXED = (-1.8, 0.15, 0.3, 0.9, 0.5)
FIXED_ALONE = (-1.2, 0.3, 0.5, 0.0, 0.0)
AS_MATCHED = (0.0, 0.0, 0.0, 1.0, 0.0)  # of a grounded answer: as sure as its match
UNMEASURED = 0.5  # how sure an answer must be when nothing was measured
DOUBT = 0.01  # that stays of a match, however sure
SURE = 1e-4  # a doubt that is as good as none
LEAST_PAIRS, FOLDS, RIDGE = 30, 10, 1.0
CURVE_POINTS = 100  # that a receipt keeps
FORM = "gpt2chat confidence 2"


@dataclass(frozen=True)
class Case:
    """An answer to a held-out question, the log-probability of each of its tokens, and whether it is right.

    `confidence` is how sure a grounded bot was of it, None for an answer in the model's own words.
    """

    question: str
    answer: str
    logprobs: Sequence[float]
    right: bool
    confidence: float | None = None


@dataclass(frozen=True)
class Point:
    """Of all questions the share `coverage` has a confidence of `threshold` or more; `precision` of these are right."""

    coverage: float
    precision: float
    threshold: float


@dataclass(frozen=True)
class Calibration:
    """What held-out pairs showed about a model: weights, threshold, and the curve by which it was chosen.

    `weights` are a constant and one for each of EVIDENCE. The curve is honest: each pair's confidence comes from a fit
    that has not seen it. `right` of the `pairs` were answered exactly; `known` of their questions had been taught.
    `checkpoint` is what `packs.identity` says of the model's file, or None; `taught_sha256` tells its pairs apart.
    `grounded`: the answers were taught ones word for word.
    """

    model: str
    checkpoint: str | None
    runtime: str
    taught: int
    taught_sha256: str
    data_sha256: str
    pairs: int
    right: int
    known: int
    weights: tuple[float, ...]
    threshold: float
    coverage: float
    precision: float
    curve: tuple[Point, ...]
    grounded: bool = False

    @property
    def decided_rightly(self) -> float:
        """The share of the pairs that are answered rightly or declined for a wrong answer, by the honest curve."""
        wrong = 1 - self.right / self.pairs
        return self.coverage * self.precision + wrong - self.coverage * (1 - self.precision)

    def to_dict(self) -> dict[str, Any]:
        """Return plain data for JSON."""
        return {"format": FORM, **asdict(self), "weights": list(self.weights), "curve": list(map(asdict, self.curve))}

    @classmethod
    def from_dict(cls, data: object) -> Calibration:
        """Rebuild from `to_dict`; raises DataError, without the place, for anything else."""
        if not isinstance(data, dict) or data.get("format") != FORM:
            raise DataError(f"expected a calibration ({FORM!r}), found something else")
        data = {"grounded": False, **data}
        types = {field.name: _TYPES[field.name] for field in fields(cls)}
        if set(data) != {"format", *types}:
            raise DataError(f"expected the fields {sorted(types)}, found {sorted(map(str, set(data) - {'format'}))}")
        for name, kinds in types.items():
            if type(data[name]) not in kinds:
                raise DataError(f"{name}: expected {kinds[0].__name__}, found {type(data[name]).__name__}")
        weights = data["weights"]
        if len(weights) != 1 + len(EVIDENCE) or not all(map(_is_number, weights)):
            raise DataError(f"weights: expected {1 + len(EVIDENCE)} numbers, found {weights!r}"[:200])
        if not 0 <= data["right"] <= data["pairs"] or not 0 <= data["known"] <= data["pairs"]:
            raise DataError(f"right and known: expected 0 to {data['pairs']}, the number of pairs")
        for name in ("threshold", "coverage", "precision"):
            _check_share(name, data[name])
        curve = tuple(map(_point, data["curve"]))
        plain = {name: data[name] for name in types}
        return cls(**{**plain, "weights": tuple(weights), "curve": curve})

    def save(self, path: Path) -> None:
        """Write the receipt; raises CheckpointError when it cannot be written."""
        with atomic_writer(path) as file:
            file.write((json.dumps(self.to_dict(), ensure_ascii=False, indent=1) + "\n").encode("utf-8", "replace"))

    def misfit(self, checkpoint: str | None, pairs: Sequence[Pair], grounded: bool = False) -> str | None:
        """Say in one line why this is not of the model with this `packs.identity` and these pairs; None if it is."""
        again = "measure anew with gpt2chat eval CHECKPOINT --conversation_file HELDOUT --calibrate"
        if checkpoint and self.checkpoint and checkpoint != self.checkpoint:
            return f"confidence was measured on other weights than these ({self.model}): {again}"
        if self.taught_sha256 != pairs_sha256(pairs):
            return f"confidence was measured with {self.taught} taught pairs, not these {len(pairs)}: {again}"
        if self.grounded != grounded:
            of = "grounded answers" if self.grounded else "answers in the model's own words"
            return f"confidence was measured for {of}: {again} --{'' if grounded else 'no_'}grounded"
        return None


_NUMBER = (float, int)
_TYPES: Mapping[str, tuple[type, ...]] = {
    **dict.fromkeys(("model", "runtime", "taught_sha256", "data_sha256"), (str,)),
    **dict.fromkeys(("taught", "pairs", "right", "known"), (int,)),
    **dict.fromkeys(("threshold", "coverage", "precision"), _NUMBER),
    **dict.fromkeys(("weights", "curve"), (list,)),
    "checkpoint": (str, type(None)),
    "grounded": (bool,),
}


def _is_number(value: object) -> bool:
    return type(value) in _NUMBER and bool(np.isfinite(value))  # type: ignore[call-overload]


def _check_share(name: str, value: object) -> None:
    if not _is_number(value) or not 0 <= value <= 1:  # type: ignore[operator]
        raise DataError(f"{name}: expected a number from 0 to 1, found {value!r}"[:200])


def _point(entry: object) -> Point:
    names = [field.name for field in fields(Point)]
    if not isinstance(entry, dict) or set(entry) != set(names):
        raise DataError(f"curve: expected points of {', '.join(names)}")
    for name in names:
        _check_share(f"curve: {name}", entry[name])
    return Point(**entry)


def receipt_path(path: Path) -> Path:
    """Return where the calibration of a checkpoint lies: `bot.pt` -> `bot.confidence.json`."""
    return path if path.suffix == ".json" else RunFiles(path).beside("confidence.json")


def load_calibration(path: Path) -> Calibration | None:
    """Read the calibration beside a checkpoint, or a receipt (.json) itself; None where there is none.

    Raises CheckpointError with place and reason for a file of another form.
    """
    path = receipt_path(path)
    try:
        return Calibration.from_dict(json.loads(path.read_text("utf-8")))
    except FileNotFoundError:
        return None
    except (OSError, ValueError, RecursionError) as error:  # DataError is a ValueError
        reason = error.strerror if isinstance(error, OSError) else error
        raise CheckpointError(f"{path}: {reason}: remove it, or write it anew with eval --calibrate") from error


def pairs_sha256(pairs: Iterable[Pair]) -> str:
    """Return what tells taught pairs apart."""
    return hashlib.sha256(json.dumps([list(pair) for pair in pairs]).encode()).hexdigest()


class Judge:
    """Says how likely an answer is right, given what the model was taught."""

    def __init__(self, pairs: Iterable[Pair] | Matcher, calibration: Calibration | None = None) -> None:
        self._pairs = pairs if isinstance(pairs, Matcher) else list(pairs)
        self.calibration = calibration
        fixed = FIXED if len(self._pairs) else FIXED_ALONE
        self.weights = calibration.weights if calibration else fixed

    @cached_property
    def matcher(self) -> Matcher:
        """What finds the taught answers; made when it is first asked."""
        return self._pairs if isinstance(self._pairs, Matcher) else Matcher(self._pairs)

    @property
    def threshold(self) -> float:
        """How sure an answer must be to be given."""
        if self.calibration:
            return self.calibration.threshold
        return self.matcher.threshold if len(self.matcher) else UNMEASURED

    def evidence(self, question: str, answer: str, logprobs: Sequence[float]) -> Numbers:
        """Return the four figures (EVIDENCE) that speak for an answer.

        mean, least: log-odds of the mean log-probability of its tokens, and of the least. similarity: log-odds that the
        question asks for this answer. margin: how much likelier it asks for this one than for any other.
        """
        tokens = np.array(logprobs, np.float64) if len(logprobs) else np.array([-np.inf])
        likely = {same(match.answer): match.confidence for match in reversed(self.matcher.match(question))}
        own = likely.pop(same(answer), 0.0)
        other = max(likely.values(), default=0.0)
        asked = np.log((own + DOUBT) / (1 - own + DOUBT))
        return np.array([_log_odds(tokens.mean()), _log_odds(tokens.min()), asked, own - other])

    def confidence(self, question: str, answer: str, logprobs: Sequence[float]) -> float:
        """Return how likely the answer is right, from 0 to 1; the end token's log-probability is not among `logprobs`.

        An answer of no tokens is judged as one that the model finds impossible.
        """
        return float(_sigmoid(_sums(self.evidence(question, answer, logprobs)[None], np.array(self.weights)))[0])


def judge_of(name: str | None, taught: Sequence[Pair], notice: Callable[[str], None], grounded: bool = False) -> Judge:
    """Return what says how sure an answer of a model is: as it was measured for its file, if it was."""
    path = pretrained.checkpoint_file(name) if name else None
    calibration = load_calibration(path) if path and not pretrained.is_bundled(path) else None
    misfit = calibration.misfit(packs.identity(path), taught, grounded) if calibration and path else None
    if misfit:
        notice(misfit)
    return Judge(taught, None if misfit else calibration)


def _log_odds(logprob: float) -> float:
    """Return log p - log(1 - p), kept between -20 and 9."""
    return max(-20.0, float(logprob - np.log(SURE - np.expm1(min(0.0, logprob)))))


def _sums(evidence: Numbers, weights: Numbers) -> Numbers:
    return np.asarray(weights[0] + evidence @ weights[1:], np.float64)


def _sigmoid(sums: Numbers) -> Numbers:
    return np.asarray(1 / (1 + np.exp(-np.clip(sums, -500, 500))), np.float64)


def fitted(evidence: Numbers, right: Numbers) -> Numbers:
    """Return the weights (1 + K,) of a logistic regression on evidence (N, K) and what was right (N,), 0 or 1.

    Newton's method with a ridge on the weights of the standardised figures. The targets are drawn in a little (Platt
    1999), so that the weights stay finite when the figures part right from wrong, or all are right.
    """
    mean, spread = evidence.mean(0), evidence.std(0)
    spread = np.where(spread > 1e-9, spread, 1.0)
    rows = np.column_stack([np.ones(len(evidence)), (evidence - mean) / spread])
    count = right.sum()
    targets = np.where(right > 0, (count + 1) / (count + 2), 1 / (len(right) - count + 2))
    ridge = np.diag([0.0] + [RIDGE] * evidence.shape[1])
    weights = np.zeros(rows.shape[1])
    for _ in range(100):
        shares = _sigmoid(rows @ weights)
        slope = rows.T @ (targets - shares) - ridge @ weights
        step = np.linalg.solve((rows * (shares * (1 - shares) + 1e-9)[:, None]).T @ rows + ridge, slope)
        step *= min(1.0, 4 / np.abs(step).max(initial=1e-12))
        weights += step
        if np.abs(step).max() < 1e-10:
            break
    scaled = weights[1:] / spread
    return np.concatenate([[weights[0] - scaled @ mean], scaled])


def out_of_fold(evidence: Numbers, right: Numbers, folds: int = FOLDS, seed: int = 0) -> Numbers:
    """Return the confidence (N,) in each case by a fit to the cases of the other folds alone."""
    order = np.random.default_rng(seed).permutation(len(right))
    order = order[np.argsort(right[order], kind="stable")]  # each fold has its share of what was right
    fold_of, found = np.empty(len(right), np.int64), np.empty(len(right))
    fold_of[order] = np.arange(len(right)) % folds
    for number in range(folds):
        mine = fold_of == number
        if mine.any():
            found[mine] = _sigmoid(_sums(evidence[mine], fitted(evidence[~mine], right[~mine])))
    return found


def risk_coverage(confidences: Sequence[float], right: Sequence[bool]) -> list[Point]:
    """Return a point for each different confidence as the threshold, the highest first; the last covers everything."""
    ordered = np.asarray(confidences, np.float64)
    order = np.argsort(-ordered, kind="stable")
    ordered, hits = ordered[order], np.cumsum(np.asarray(right, np.int64)[order])
    last = np.flatnonzero(np.append(ordered[1:] != ordered[:-1], True)) if len(ordered) else np.zeros(0, np.int64)
    counts = last + 1
    table = zip(counts / max(1, len(ordered)), hits[last] / counts, ordered[last], strict=True)
    return [Point(float(coverage), float(precision), float(threshold)) for coverage, precision, threshold in table]


def at_coverage(curve: Sequence[Point], coverage: float) -> Point:
    """Return the point of the highest threshold that still covers so much."""
    return next(point for point in curve if point.coverage >= coverage - 1e-9)


def pick(curve: Sequence[Point], coverage: float | None = None, precision: float | None = None) -> Point:
    """Choose a threshold: the highest that covers `coverage`, or the lowest whose answers reach `precision`.

    With neither: that by which most questions are rightly answered or declined, of equals the lowest.

    Raises ConfigError when no threshold reaches that.
    """
    if precision is None and coverage is None:
        return max(reversed(curve), key=lambda point: point.coverage * (2 * point.precision - 1))
    if precision is None:
        return at_coverage(curve, coverage or 0.0)
    reaching = [point for point in curve if point.precision >= precision]
    if not reaching:
        best = max(curve, key=lambda point: (point.precision, point.coverage))
        raise ConfigError(
            f"precision: expected at most {best.precision:.4f}, reached for {best.coverage:.0%} of the questions, "
            f"got {precision:g}"
        )
    return reaching[-1]


def as_it_is(judge: Judge, cases: Sequence[Case], coverage: float) -> tuple[float, float]:
    """Return how well a judge does on cases: the share rightly given or declined, and the precision at a coverage."""
    sure = [_confidence(judge, case) for case in cases]
    right = sum((sure[at] >= judge.threshold) == case.right for at, case in enumerate(cases)) / max(1, len(cases))
    return right, at_coverage(risk_coverage(sure, [case.right for case in cases]), coverage).precision


def _confidence(judge: Judge, case: Case) -> float:
    if case.confidence is not None:
        return case.confidence
    return judge.confidence(case.question, case.answer, case.logprobs)


def calibrate(
    judge: Judge, cases: Sequence[Case], coverage: float | None = None, precision: float | None = None, **about: Any
) -> Calibration:
    """Fit the weights to held-out cases and choose a threshold; `about` fills in the fields that name model and data.

    For grounded answers, whose confidence stands, only the threshold is chosen.

    Raises DataError for cases that nothing can be learnt from.
    """
    count, wrong = len(cases), sum(not case.right for case in cases)
    if count < LEAST_PAIRS:
        raise DataError(f"calibrate: expected at least {LEAST_PAIRS} held-out pairs, found {count}: hold out more")
    if wrong in (0, count):
        found = "all are right: pass harder ones" if not wrong else "all are wrong: train the model on more like these"
        raise DataError(
            f"calibrate: expected right and wrong answers among the {count} held-out pairs, found that {found}"
        )
    grounded = all(case.confidence is not None for case in cases)
    weights, sure = AS_MATCHED, [case.confidence or 0.0 for case in cases]
    if not grounded:
        evidence = np.array([judge.evidence(case.question, case.answer, case.logprobs) for case in cases])
        right = np.array([case.right for case in cases], np.float64)
        weights, sure = tuple(fitted(evidence, right).tolist()), out_of_fold(evidence, right).tolist()
    curve = risk_coverage(sure, [case.right for case in cases])
    chosen = pick(curve, coverage, precision)
    steps = dict.fromkeys(at_coverage(curve, (i + 1) / CURVE_POINTS) for i in range(CURVE_POINTS))
    questions = {same(question) for question, _ in judge.matcher.pairs}
    return Calibration(
        **about,
        taught=len(judge.matcher),
        taught_sha256=pairs_sha256(judge.matcher.pairs),
        pairs=count,
        right=count - wrong,
        known=sum(same(case.question) in questions for case in cases),
        weights=weights,
        threshold=chosen.threshold,
        coverage=chosen.coverage,
        precision=chosen.precision,
        curve=tuple(steps),
        grounded=grounded,
    )
