"""What comes back of what was taught, asked as a user would: each question in a fresh chat, with the bot's settings.

Beside each figure stands that of a word list: the answer of the taught question with the nearest spelling (TF-IDF).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gpt2chat.chatbot import GPT2Chatbot
from gpt2chat.matching import Matcher
from gpt2chat.taught import Pair, Taught

FOLDS = 5  # parts that are left out in turn of questions with several phrasings
MOST_LEFT_OUT = 500  # questions that are asked of the others


@dataclass(frozen=True)
class Share:
    """So many of so many."""

    count: int
    of: int

    @property
    def value(self) -> float:
        """The share, 0 of nothing."""
        return round(self.count / self.of, 4) if self.of else 0.0


@dataclass(frozen=True)
class Quality:
    """How questions were answered.

    `right` of all; `given` are those not declined; `right_of_given`; `blends` are answers given that are no taught
    answer; `word_list` what the nearest spelling gets right. For questions from outside, which have no answer, `right`
    counts those declined.
    """

    right: Share
    given: Share
    right_of_given: Share
    blends: Share
    word_list: Share

    def to_dict(self) -> dict[str, float | int]:
        """Return plain data for JSON."""
        shares = {name: share.value for name, share in vars(self).items()}
        return {"questions": self.right.of, **shares}


def measure(
    bot: GPT2Chatbot,
    questions: Sequence[tuple[str, str | None]],
    progress: Callable[[Iterable[Any]], Iterable[Any]] = iter,
) -> Quality:
    """Ask questions, each with its right answer, or None where the bot should decline."""
    taught = bot.checkpoint.taught
    known, words = {answer.strip() for _, answer in taught}, Taught(taught)
    right = given = given_right = blends = listed = 0
    for question, answer in progress(questions):
        bot.reset()
        said = bot.chat(question, temperature=0).strip()
        declined = bot.answer is not None and bot.answer.replaced
        good = declined if answer is None else not declined and said == answer.strip()
        right += good
        given += not declined
        given_right += good and not declined
        blends += not declined and said not in known
        listed += answer is not None and words.nearest(question).answer.strip() == answer.strip()
    bot.reset()
    count = len(questions)
    return Quality(
        right=Share(right, count),
        given=Share(given, count),
        right_of_given=Share(given_right, given),
        blends=Share(blends, given),
        word_list=Share(listed, count),
    )


def left_out(pairs: Sequence[Pair], seed: int = 0) -> tuple[Share, Share] | None:
    """Return how many phrasings find the answer of the others, by matching and by a word list; None without any.

    A fifth of them is left out at a time, of the answers that have several.
    """
    by_answer: dict[str, list[Pair]] = {}
    for pair in pairs:
        by_answer.setdefault(pair[1].strip(), []).append(pair)
    several = [group for group in by_answer.values() if len(group) > 1]
    if not several:
        return None
    rng, right, listed, asked = random.Random(seed), 0, 0, 0
    folds: list[list[Pair]] = [[] for _ in range(FOLDS)]
    for group in several:
        for at, pair in enumerate(rng.sample(group, len(group))[1:]):  # one stays in any case
            folds[at % FOLDS].append(pair)
    for fold in folds:
        some = rng.sample(fold, min(len(fold), MOST_LEFT_OUT // FOLDS))
        gone = set(some)
        rest = [pair for pair in pairs if pair not in gone]
        matcher = Matcher(rest)
        for question, answer in some:
            asked += 1
            right += matcher.match(question, 1)[0].answer == answer.strip()
            listed += matcher.spelling.nearest(question).answer == answer.strip()
    return Share(right, asked), Share(listed, asked)
