"""Which taught answer a question asks for, and how sure that is: retrieval over the questions that a model was taught.

Three likenesses are added: of meaning (`encoder`), of words one by one, each with the nearest word of the other
question (a soft form of TF-IDF), and of spelling (TF-IDF of words and of runs of characters). All phrasings of an
answer speak for it, by a kernel ridge regression (Saunders et al. 1998) on meaning and spelling. How sure a match is
comes from a logistic regression on what the likenesses look like; it was fitted to questions of other domains by
`recipes/question_encoder`, so nothing has to be measured for a new set.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cache, cached_property
from pathlib import Path

import numpy as np

from gpt2chat.conversation import Message, exchanges
from gpt2chat.encoder import QuestionEncoder, Vectors, encoder, words
from gpt2chat.taught import Numbers, Pair, Places, Taught, fold, latest, merged, same

OUTSIDE = Path(__file__).with_name("assets") / "outside.txt"
CANDIDATES = 5  # answers that are looked at closely
NEAR = 0.3  # cosine from which on two words have something in common
CLOSER = 256  # phrasings that are compared word by word, those that look most alike otherwise
CROWD = 3  # phrasings of an answer, and questions of the list of general ones, that are looked at together
REFUSED = 0.9  # share of the general questions that a threshold must refuse
LOCAL = 16  # answers that are weighed against each other by all their phrasings
MEANING, POWER, RIDGE = 0.5, 1.5, 0.3  # share of the kernel, the rest is spelling; and how little a phrasing is trusted
EVIDENCE = 18  # figures that speak for a match
SAID, MEANT = 0.25, 0.2  # of what stands in the answer, and of its meaning, beside the likeness of the questions
TELLING = 4  # words from which on an answer has a meaning that a question can ask for
MOST_SAID = 200  # words of an answer that are read
NO_RIVAL = 0.5  # what the best other answer scores at least, also where there is none
MANY = 8  # phrasings per answer from which on a model finds the answer better than the nearest of them does
READ = 0.4  # confidence from which on a question is read as the taught one
SEEN = 100  # questions that tell in which language was taught
SPELT = 0.03  # and of one that only spelling can tell, which the model itself would hardly understand
PLAIN = 0.95  # confidence of a match from which on the model is not asked
UNLIKELY = 0.01  # and below which it is not either
LIKELIER = 1.0  # weight of a nat that the model finds an answer likelier, where it knows many ways to ask
LONGEST = 1000  # characters of a question that the model is asked about
REMEMBERED = 4096  # questions whose phrasing is
SURE = 0.6  # how sure a match must be at least


@dataclass(frozen=True)
class Match:
    """A taught answer that a question may ask for: the nearest of its phrasings, and two figures from 0 to 1.

    `similarity` is that of the two questions, 1 for the same words; `confidence` how likely the answer is right.
    """

    question: str
    answer: str
    similarity: float
    confidence: float


class Matcher:
    """Finds the taught answer that a question asks for."""

    def __init__(
        self, pairs: Iterable[Pair], questions: QuestionEncoder | None = None, trained: int | None = None
    ) -> None:
        """Take questions and answers; those with one answer are phrasings of one question.

        Of the pairs the model has learnt the first `trained`, all by default.
        """
        self.pairs = [(question.strip(), answer.strip()) for question, answer in pairs]
        self._encoder = questions or encoder()
        self.answers = list(dict.fromkeys(answer for _, answer in self.pairs))
        number = {answer: at for at, answer in enumerate(self.answers)}
        self._owner = np.array([number[answer] for _, answer in self.pairs], np.int64)
        self._exact: dict[str, dict[int, int]] = {}  # a question -> its answers, each with the first pair
        for at, (question, _) in enumerate(self.pairs):
            for form in _forms(question):
                self._exact.setdefault(form, {}).setdefault(int(self._owner[at]), at)
        asked = [question for question, _ in self.pairs]
        self._vectors = self._encode(asked)
        long = [len(words(answer)) >= TELLING for answer in self.answers]
        self._meant = self._encode(self.answers) * np.array(long, bool)[:, None]
        self._words = _Words(asked, self._encoder)
        self._said = _Said(self.answers)
        self.spelling = Taught(self.pairs)
        self._trained = len(self.pairs) if trained is None else trained
        self._read: dict[str, tuple[str, bool]] = {}
        self._looked_at = "", self._encode([""])[0]  # one question is looked at several times
        self._decided: dict[str, str] = {}

    def __len__(self) -> int:
        return len(self.pairs)

    @cached_property
    def threshold(self) -> float:
        """How sure a match must be to be taken: likelier than not, and so sure that general questions get no answer."""
        if not self.pairs:
            return SURE
        asked = [question for question in outside() if not self._same(question)]
        sure = sorted(self.match(question)[0].confidence for question in asked)
        return min(1.0, max(SURE, sure[int(REFUSED * len(sure))] + 1e-6)) if sure else SURE

    def match(self, question: str, most: int = CANDIDATES) -> list[Match]:
        """Return the likeliest answers, the best first; none where nothing was taught."""
        if not self.pairs:
            return []
        likeness = self.likenesses(question)
        rows, evidence = self.evidence(question, likeness, most)
        read, exact = self.reads(question), self._same(question)
        sure = self._encoder.confidence(evidence, read) * any(map(str.isalnum, question))
        found = [Match(*self.pairs[row], 1.0, 1.0) for row in exact.values()]
        for row, confidence in zip(rows, sure, strict=True):
            if int(self._owner[row]) not in exact:
                alike = float(np.clip(likeness[0 if read else 2][row], 0, 1))
                found.append(Match(*self.pairs[row], alike, 0.0 if exact else float(confidence)))
        return found[:most]

    def _same(self, question: str) -> dict[int, int]:
        """Return the answers that were taught to a question as it is written, or but for case and marks, if any were.

        What differs in other marks from several questions, as C differs from C++ and C#, is none of them.
        """
        whole, cased, written, words = (self._exact.get(form, {}) for form in _forms(question))
        return whole or cased or written or (words if len(words) == 1 else {})

    def depends(self, question: str) -> bool:
        """Whether a question was taught with several answers, so that what was said before tells which is meant."""
        return len(self._same(question)) > 1

    @cached_property
    def _foreign(self) -> bool:
        """Whether most of what was taught is in a language that the encoder cannot read."""
        read = self._encoder.reads([question for question, _ in self.pairs[:SEEN]])
        return 2 * int(read.sum()) < len(read)

    @cached_property
    def has_many(self) -> bool:
        """Whether so many ways to ask for most answers were taught that the model has a say in what is asked for."""
        return bool(self.pairs) and float(np.median(np.bincount(self._owner))) >= MANY

    def phrased(self, question: str) -> str:
        """Return the taught phrasing of a question that asks for a taught answer; any other as it is."""
        if not self.has_many:
            return self._understood(question)[0]
        self.undecided(question)  # what is plain
        return self._decided.get(question, question)

    def undecided(self, question: str) -> Sequence[Match]:
        """Return the answers among which the model has a say before `phrased` knows a question; none if it has not."""
        if not self.has_many or question in self._decided or len(question) > LONGEST:
            return []
        matches = likely(self.match(question))
        if matches[0].confidence >= READ and len(matches) > 1:
            return matches
        self.decide(question, matches[:1])
        return []

    def decide(self, question: str, matches: Sequence[Match], logprobs: Sequence[float] = (0.0,)) -> None:
        """Note how `phrased` reads a question, given how likely the model finds each answer as a whole."""
        if len(self._decided) >= REMEMBERED:
            self._decided.clear()
        best = max(range(len(matches)), key=lambda at: _odds(matches[at].confidence) + LIKELIER * logprobs[at])
        sure = matches[0].confidence >= READ
        self._decided[question] = (self._taught(matches[best]) if sure else None) or question

    def learnt(self, question: str) -> bool:
        """Whether a question asks for an answer that the model has learnt."""
        return self._understood(question)[1]

    def shown(self, question: str, least: float) -> Match | None:
        """Return the pair, shown and not learnt, that a question asks for, word for word or at least so surely."""
        learnt = set(self.pairs[: self._trained])
        for at, match in enumerate(self.match(question)):
            if (match.question, match.answer) not in learnt and match.confidence >= (1.0 if at else least):
                return match
        return None

    def _understood(self, question: str) -> tuple[str, bool]:
        """Return a question as the model has learnt it, or as it is, and which of the two."""
        if question not in self._read:
            if len(self._read) >= REMEMBERED:
                self._read.clear()
            best = next(iter(self.match(question, 2)), None)
            least = SPELT if self._foreign and not self.reads(question) else READ
            taught = self._taught(best) if best and best.confidence >= least else None
            found = (question if taught is None else taught, taught is not None)
            self._read[question] = found
            return found
        return self._read.get(question) or self._understood(question)

    def _taught(self, match: Match) -> str | None:
        """Return the question of a match as the model has learnt it, or another with its answer."""
        learnt = self.pairs[: self._trained]
        if (match.question, match.answer) in learnt:
            return match.question
        return next((question for question, answer in learnt if answer == match.answer), None)

    def likenesses(self, question: str) -> Numbers:
        """Return how like a question is to each taught one: of meaning, word by word, and of spelling; (3, N)."""
        meaning = (self._vectors @ self._vector(question)).astype(np.float64)
        spelling, word_by_word = self.spelling.similarities(question), np.zeros(len(self.pairs))
        rows = np.argsort(-(meaning + spelling), kind="stable")[:CLOSER]
        word_by_word[rows] = self._words.likeness(question, rows)
        return np.stack([meaning, word_by_word, spelling])

    def _encode(self, questions: Sequence[str]) -> Vectors:
        """Return vectors of questions, zeros where the encoder can read none of it: there only spelling counts."""
        return self._encoder.encode(questions) * self._encoder.reads(questions)[:, None]

    def _vector(self, question: str) -> Vectors:
        """Return the vector of a question, made once for all that look at it."""
        last, vector = self._looked_at
        if last != question:
            vector = self._encode([question])[0]
            self._looked_at = question, vector
        return vector

    def reads(self, question: str) -> bool:
        """Whether the encoder can read a question; what it cannot is compared by spelling."""
        return bool(self._encoder.reads([question])[0])

    def uncovered(self, question: str, row: int) -> tuple[float, float]:
        """Return how much the weightiest word of each of the two questions has nothing like it in the other."""
        return self._words.uncovered(question, row)

    def likeness(self, question: str) -> Numbers:
        """Return how like a question is to each taught one, all three together, (N,); 1 for the same words."""
        return np.asarray(
            self._encoder.mixed(self.likenesses(question)) / self._encoder.mixed(np.ones((3, 1))), np.float64
        )

    def evidence(self, question: str, likeness: Numbers, most: int = CANDIDATES) -> tuple[list[int], Numbers]:
        """Return the best answers, each by its nearest phrasing, and what speaks for each, (answers, EVIDENCE)."""
        score = self._encoder.mixed(likeness)
        best, mean = self._by_answer(score)
        total = best + mean
        spelt, weights = self._words.weighed(question)
        said, vector = self._said.shares(spelt, weights), self._vector(question)
        meant = (self._meant @ vector).astype(np.float64)
        support = self._support(likeness, best, total) + SAID * said + MEANT * meant
        order = np.argsort(-support, kind="stable")[:most]
        general = np.sort(_general(self._encoder) @ vector)[-CROWD:].mean()
        rows, evidence = list[int](), list[list[float]]()
        for answer in order:
            own = np.flatnonzero(self._owner == answer)
            row = int(own[score[own].argmax()])
            rival = np.delete(total, answer).max(initial=NO_RIVAL)
            against = np.delete(support, answer).max(initial=0.0)
            rows.append(row)
            near = np.maximum(self._words.nearest(question, row), self._said.holds(spelt, answer))
            evidence.append(
                [
                    total[answer],
                    total[answer] - rival,
                    *likeness[:, row],
                    *self._words.uncovered(question, row),
                    general,
                    likeness[0].mean(),
                    np.log1p(len(words(question))),
                    np.log1p(len(self.answers)),
                    np.log(len(own)),
                    support[answer],
                    support[answer] - against,
                    said[answer],
                    meant[answer],
                    float((weights * (1 - near)).max()),
                    float(weights @ near / max(1e-9, weights.sum())),
                ]
            )
        return rows, np.array(evidence)

    def _support(self, likeness: Numbers, best: Numbers, total: Numbers) -> Numbers:
        """Return what a ridge regression on the phrasings of the likeliest answers gives each, from about 0 to 1.

        Of an unlikely answer, and where each has one phrasing, it is what that regression gives a single phrasing.
        """
        support = _kernel(best / self._encoder.mixed(np.ones((3, 1)))) / (1 + RIDGE)
        if len(self.pairs) == len(self.answers):
            return support
        answers = np.argsort(-total, kind="stable")[:LOCAL]
        rows = np.flatnonzero(np.isin(self._owner, answers))
        like = MEANING * likeness[0, rows] + (1 - MEANING) * likeness[2, rows]
        near = np.argsort(-like, kind="stable")[:CLOSER]
        rows, like = rows[near], like[near]
        vectors = self._vectors[rows]
        among = _kernel(MEANING * (vectors @ vectors.T) + (1 - MEANING) * self.spelling.among(rows))
        np.fill_diagonal(among, 1 + RIDGE)
        shares = np.linalg.solve(among, _kernel(like))
        support[answers] = (shares[:, None] * (self._owner[rows][:, None] == answers)).sum(0)
        return support

    def _by_answer(self, score: Numbers) -> tuple[Numbers, Numbers]:
        """Return the best score of each answer's phrasings, and the mean of the best few."""
        best = np.full(len(self.answers), -1.0)
        np.maximum.at(best, self._owner, score)
        order = np.lexsort((-score, self._owner))
        owner = self._owner[order]
        first = np.searchsorted(owner, np.arange(len(self.answers)))
        place = np.arange(len(owner)) - first[owner]
        few = place < CROWD
        sums = np.bincount(owner[few], score[order][few], len(self.answers))
        return best, sums / np.maximum(1, np.bincount(owner[few], minlength=len(self.answers)))


class _Words:
    """Likeness word by word: how much of each question's weight has a word of like meaning in the other."""

    def __init__(self, questions: Sequence[str], questions_encoder: QuestionEncoder) -> None:
        self._encoder = questions_encoder
        split = [words(question) or [""] for question in questions]
        self._numbers = {word: at for at, word in enumerate(dict.fromkeys(word for each in split for word in each))}
        known, found = list(self._numbers), np.zeros(len(self._numbers))
        for each in split:
            found[[self._numbers[word] for word in set(each)]] += 1
        self._rare = np.log((1 + len(split)) / (1 + found)) + 1
        self._usual = np.log(1 + len(split)) + 1  # of a word that no question holds
        self._weights = self._rare * questions_encoder.rarity(known) / self._usual
        self._vectors = questions_encoder.word_vectors(known) * questions_encoder.knows(known)[:, None]
        longest = max(map(len, split), default=1)
        self._places = np.zeros((len(split), longest), np.int64)
        self._there = np.zeros((len(split), longest))
        for row, each in enumerate(split):
            self._places[row, : len(each)] = [self._numbers[word] for word in each]
            self._there[row, : len(each)] = 1
        self._last = "", self._look("")  # one question is looked at several times

    def likeness(self, question: str, rows: Places) -> Numbers:
        """Return the harmonic mean of the covered shares of both questions, for some of the ones here."""
        weights, near = self._near(question)
        covered = (near[:, self._places[rows]] * self._there[rows]).max(2)  # (words asked, questions)
        asked_share = weights @ covered / max(1e-9, weights.sum())
        own = self._weights[self._places[rows]] * self._there[rows]
        own_share = (own * near.max(0)[self._places[rows]]).sum(1) / np.maximum(1e-9, own.sum(1))
        return np.asarray(2 * asked_share * own_share / (asked_share + own_share + 1e-9), np.float64)

    def uncovered(self, question: str, row: int) -> tuple[float, float]:
        """Return the weightiest word of a question that the one here has nothing like, and the other way round."""
        weights, near = self._near(question)
        places = self._places[row][self._there[row] > 0]
        near = near[:, places]
        return float((weights * (1 - near.max(1))).max()), float((self._weights[places] * (1 - near.max(0))).max())

    def weighed(self, question: str) -> tuple[list[str], Numbers]:
        """Return the words of a question and how much each weighs."""
        return words(question) or [""], self._near(question)[0]

    def nearest(self, question: str, row: int) -> Numbers:
        """Return how near each word of a question is to the nearest one of a question here."""
        return np.asarray(self._near(question)[1][:, self._places[row][self._there[row] > 0]].max(1), np.float64)

    def _near(self, question: str) -> tuple[Numbers, Numbers]:
        """Return the weights of a question's words, and how near each is to each word known here, (asked, known)."""
        last, found = self._last
        return found if last == question else self._look(question)

    def _look(self, question: str) -> tuple[Numbers, Numbers]:
        asked = words(question) or [""]
        rare = [self._rare[self._numbers[word]] if word in self._numbers else self._usual for word in asked]
        near = (self._encoder.word_vectors(asked) @ self._vectors.T).astype(np.float64)
        near[near < NEAR] = 0
        near[~self._encoder.knows(asked)] = 0
        for row, word in enumerate(asked):
            if word in self._numbers:
                near[row, self._numbers[word]] = 1
        found = np.array(rare) * self._encoder.rarity(asked) / self._usual, near
        self._last = question, found
        return found


class _Said:
    """Which words of a question stand in the answers: many a question is worded as its answer is."""

    def __init__(self, answers: Sequence[str]) -> None:
        found: dict[str, list[int]] = {}
        for at, answer in enumerate(answers):
            for form in {_form(word) for word in words(answer, MOST_SAID) if word.isalnum()}:
                found.setdefault(form, []).append(at)
        self._holding = {form: np.array(places, np.int64) for form, places in found.items()}
        self._count = len(answers)

    def shares(self, spelt: Sequence[str], weights: Numbers) -> Numbers:
        """Return the share of a question's weight that stands in each answer, (answers,)."""
        shares = np.zeros(self._count)
        for word, weight in zip(spelt, weights / max(1e-9, weights.sum()), strict=True):
            places = self._holding.get(_form(word))
            if places is not None:
                shares[places] += weight
        return shares

    def holds(self, spelt: Sequence[str], answer: int) -> Numbers:
        """Return 1 for each word that stands in an answer, else 0."""
        return np.array([answer in self._holding.get(_form(word), ()) for word in spelt], np.float64)


def likely(matches: Sequence[Match]) -> Sequence[Match]:
    """Return those of the best matches among which the model has a say: one alone is plain without it."""
    if matches and matches[0].confidence >= PLAIN:
        return [match for match in matches if match.confidence == 1] or matches[:1]
    return [match for at, match in enumerate(matches) if at == 0 or match.confidence >= UNLIKELY]


def as_taught(messages: Sequence[Message], matcher: Matcher, alone: bool = False) -> list[Message]:
    """Return a conversation in which each question for a taught answer is asked as it was taught.

    `alone`: it was taught without a conversation, so nothing but what the system says stands before the last one.
    """
    if alone and asks_taught(messages, matcher):
        messages = [*(m for m in messages[:-1] if m.role == "system"), messages[-1]]
    asked = (m if m.role != "user" else replace(m, content=matcher.phrased(m.content)) for m in messages)
    return list(asked)


def asks_taught(messages: Sequence[Message], matcher: Matcher) -> bool:
    """Whether the last message asks for an answer that the model has learnt."""
    return bool(messages) and messages[-1].role == "user" and matcher.learnt(messages[-1].content)


def matcher_of(taught: Sequence[Pair], shown: Sequence[Message]) -> Matcher:
    """Return what finds the answers that a model was taught and those of the examples that it is shown."""
    pairs = latest(exchanges(shown))
    together = merged(taught, pairs)
    return Matcher(together, trained=len(together) - len(pairs))


@cache
def outside() -> tuple[str, ...]:
    """Return general questions that a set of taught answers will hardly answer."""
    lines = OUTSIDE.read_text("utf-8").splitlines()
    return tuple(line for line in lines if line and not line.startswith("#"))


def _forms(question: str) -> tuple[str, str, str, str]:
    """Return a question as it is, but for the marks at its ends, but for case too, and its words alone, each marked."""
    cased, written = same(question, cased=True), same(question)
    return f"as it is: {question.strip()}", f"cased: {cased}", f"written: {written}", f"words: {fold(question)}"


def _form(word: str) -> str:
    """Return a word without the endings of plurals and genitives."""
    word = word.removesuffix("'s")
    return word[:-1] if len(word) > 3 and word.endswith("s") and not word.endswith("ss") else word


def _odds(confidence: float) -> float:
    """Return the logarithm of the odds."""
    return float(np.log(max(1e-6, confidence) / max(1e-6, 1 - confidence)))


def _kernel(likeness: Numbers) -> Numbers:
    return np.asarray(np.clip(likeness, 0, 1) ** POWER, np.float64)


@cache
def _general(by: QuestionEncoder) -> Vectors:
    return by.encode(outside())
