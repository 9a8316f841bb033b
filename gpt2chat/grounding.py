"""Grounded answers: one of the taught answers word for word, or the fallback; never a blend of two.

The likeliest answers by what was asked (`matching`) are scored by the model: how likely it finds each behind the
question alone, so that a running chat is judged as a fresh one. Both figures together choose the answer, and say how
sure it is; below the threshold the fallback is given.
"""

from __future__ import annotations

import heapq
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from gpt2chat.engine import Engine
from gpt2chat.explanation import explain
from gpt2chat.generation import Decoder
from gpt2chat.matching import Match, Matcher, likely
from gpt2chat.taught import Pair
from gpt2chat.tokenizer import Tokenizer

FALLBACK = "I'm sorry, I don't know that."
CHOICE, SURENESS = 3.0, 0.25  # weights of a nat per token that the model finds an answer likelier than the others
LONGEST = 20  # answers, by characters, among which that of most tokens is
MOST_NATS = 4.0  # a difference beyond this says no more

Likelihood = Callable[[str], float]  # an answer -> mean log-probability of its tokens


@dataclass(frozen=True)
class Grounded:
    """What is answered and why: the best match with both figures, and `text`, the fallback where it was not sure.

    `model` is the mean log-probability of the answer's tokens, None where the model was not asked.
    """

    text: str
    match: Match | None
    confidence: float
    given: bool
    model: float | None = None


class Grounding:
    """Chooses one of the taught answers, or the fallback below `threshold` (None: as matching has it)."""

    def __init__(
        self, pairs: Iterable[Pair] | Matcher, fallback: str = FALLBACK, threshold: float | None = None
    ) -> None:
        self.matcher = pairs if isinstance(pairs, Matcher) else Matcher(pairs)
        self.fallback, self._threshold = fallback, threshold

    @property
    def threshold(self) -> float:
        """How sure an answer must be to be given."""
        return self.matcher.threshold if self._threshold is None else self._threshold

    def answer(self, question: str, likelihood: Likelihood) -> Grounded:
        """Return what is answered to a question; `likelihood` is asked only where the question leaves it open."""
        matches = self.candidates(question)
        return self.decide(matches, [likelihood(match.answer) for match in matches] if len(matches) > 1 else None)

    def decide(self, matches: Sequence[Match], logprobs: Sequence[float] | None) -> Grounded:
        """Return what is answered, given the candidates and how likely the model finds each, if it was asked."""
        if not matches:
            return Grounded(self.fallback, None, 0.0, given=False)
        best, sure = 0, matches[0].confidence
        if logprobs:
            best = max(range(len(matches)), key=lambda at: _weighed(matches, logprobs, at, CHOICE))
            sure = _weighed(matches, logprobs, best, SURENESS)
        given = sure >= self.threshold
        text = matches[best].answer if given else self.fallback
        return Grounded(text, matches[best], sure, given, logprobs[best] if logprobs else None)

    def candidates(self, question: str) -> Sequence[Match]:
        """Return the answers that the model is asked about; one alone is plain without it."""
        return likely(self.matcher.match(question))


def spoken(
    grounding: Grounding, question: str, prompt: Sequence[int], lead: str, source: Decoder | Engine
) -> tuple[Grounded, list[int]]:
    """Answer a question behind a prompt; return what was chosen, and its ids. The lead stands before an answer."""
    encode = Tokenizer.gpt2().encode

    def likelihood(answer: str) -> float:
        found = logprobs(source, prompt, encode(lead + answer))
        return sum(found) / max(1, len(found))

    chosen = grounding.answer(question, likelihood)
    return chosen, encode(lead + chosen.text)


def settle(matcher: Matcher, question: str, prompt: Sequence[int], lead: str, source: Decoder | Engine) -> None:
    """Let the model have its say in how `matcher` reads a question, asked alone in `prompt`."""
    if matches := matcher.undecided(question):
        tokenizer = Tokenizer.gpt2()
        answers = ([*tokenizer.encode(lead + match.answer), tokenizer.end_id] for match in matches)
        matcher.decide(question, matches, [sum(logprobs(source, prompt, answer)) for answer in answers])


def logprobs(source: Decoder | Engine, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
    """Return how likely a model finds each id of an answer to a prompt, as far as there is room for them."""
    answer = answer[: source.runtime.config.n_ctx - len(prompt)]
    if isinstance(source, Decoder):
        return [score.logprob for score in explain(source, prompt, answer, top=0)]
    return [drawn.logprob or 0.0 for drawn in source.score([*prompt, *answer], len(prompt), top=0)]


def longest(taught: Iterable[Pair]) -> int:
    """Return how many tokens the longest taught answer has, its end included."""
    answers = heapq.nlargest(LONGEST, {answer for _, answer in taught}, key=len)
    return 1 + max((len(ids) for ids in map(Tokenizer.gpt2().encode, answers)), default=0)


def is_faq(about: Mapping[str, Any]) -> bool:
    """Whether a checkpoint, by what it says about itself, was taught single questions and answers alone."""
    return about.get("faq") is True


def _weighed(matches: Sequence[Match], logprobs: Sequence[float], at: int, weight: float) -> float:
    """Return the confidence in a match that counts how much likelier the model finds its answer than any other."""
    other = max((logprob for place, logprob in enumerate(logprobs) if place != at), default=logprobs[at])
    nats = max(-MOST_NATS, min(MOST_NATS, logprobs[at] - other))
    odds = matches[at].confidence / max(1e-9, 1 - matches[at].confidence) * math.exp(weight * nats)
    return odds / (1 + odds)
