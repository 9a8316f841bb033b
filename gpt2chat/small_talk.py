"""Small talk from written conversations: what a person wrote for a message like this one, where somebody did.

A model of a few megabytes writes poor small talk, and chooses well among answers written for it (response retrieval:
Ji, Lu and Li 2014, arXiv:1408.6988; with a model that writes where nothing fits: Qiu et al. 2017, AliMe Chat).
`assets/small_talk.txt` holds messages with answers that fit whatever was said before; `recipes/demo_model` chose them.
A question for what the user told earlier is answered with that (`told`).
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np

from gpt2chat.conversation import Message
from gpt2chat.encoder import encoder, words
from gpt2chat.matching import READ, Matcher
from gpt2chat.sampling import GenerationConfig
from gpt2chat.taught import Numbers, fold
from gpt2chat.told import ASKING, SENTENCE, asked_back, person, quoted, told_before

FILE = Path(__file__).with_name("assets") / "small_talk.txt"
LEAST = 0.62  # likeness from which on a written answer is given
ASKED, PART = 0.02, 0.12  # what the likeness of a message's last question, and of another part of it, is lowered by
ABOUT = 0.35  # and where one speaks of "you" alone and the other of "me" alone
KIND = 0.08  # and where one asks and the other does not
NEAR = 0.04  # likeness below the best at which an answer is as good
CANDIDATES = 24  # answers that are looked at
SHORT = 4  # characters of a part of a message that is not looked at by itself
NUMBER = re.compile(r"\d+")
RARE = 0.35  # rarity from which on a word has something to say
SAME = 0.97  # likeness from which on a message is one that an answer was written for
TOLD, SURELY_TOLD = 0.4, 0.55  # likeness of what was told to a question for it; to one that need not be for it


@dataclass(frozen=True)
class Group:
    """Messages that have the same answers; where they ask for what the user told, ways to tell it.

    The answers to those are for a user who did not tell it.
    """

    asked: tuple[str, ...]
    answers: tuple[str, ...]
    tells: tuple[str, ...] = ()


@dataclass(frozen=True)
class Reply:
    """A written answer, the message that it was written for, and how like that is to the one at hand, from 0 to 1."""

    question: str
    answer: str
    similarity: float
    tells: tuple[str, ...] = ()


class SmallTalk:
    """Finds written answers to messages."""

    def __init__(self, groups: Iterable[Group]) -> None:
        groups = list(groups)
        self.rows = [(asked, answer, group) for group in groups for asked in group.asked for answer in group.answers]

    @cached_property
    def _matcher(self) -> Matcher:
        return Matcher((asked, answer) for asked, answer, _ in self.rows)

    @cached_property
    def _exact(self) -> dict[str, list[int]]:
        """Where each message is, however it is written."""
        places: dict[str, list[int]] = {}
        for at, (asked, _, _) in enumerate(self.rows):
            places.setdefault(fold(asked), []).append(at)
        return places

    @cached_property
    def _asking(self) -> Numbers:
        """Whether each message asks something, (N,)."""
        return np.array([bool(ASKING.search(asked)) for asked, _, _ in self.rows], np.float64)

    @cached_property
    def _persons(self) -> Numbers:
        """Whom each message is about, (N,): see `person`."""
        return np.array([person(asked) for asked, _, _ in self.rows], np.float64)

    def conversations(self, count: int, seed: int = 0) -> Iterator[tuple[Message, ...]]:
        """Yield conversations of one to four exchanges, drawn by the seed."""
        rng = random.Random(seed)
        for _ in range(count):
            drawn = rng.sample(self.rows, min(len(self.rows), rng.randint(1, 4)))
            yield tuple(m for asked, answer, _ in drawn for m in (Message("user", asked), Message("assistant", answer)))

    def find(self, messages: Sequence[Message], temperature: float = 0.0, seed: int | None = None) -> Reply | None:
        """Return a written answer to the last message that was not given before; None where the model is to write.

        At a temperature of 0 the likeliest; else, by the seed, any that is about as good.
        """
        if not messages or messages[-1].role != "user":
            return None
        message, found = messages[-1].content, self.nearest(messages[-1].content)
        if back := self._told(message, [m.content for m in messages[:-1] if m.role == "user"], found):
            return back
        if not found or found[0].similarity < LEAST:
            return None
        said = {each.content.strip() for each in messages if each.role == "assistant"}
        near = [reply for reply in found if reply.similarity >= max(LEAST, found[0].similarity - NEAR)]
        fresh = [reply for reply in near if reply.answer not in said]
        if not fresh:
            return None
        return fresh[0] if temperature == 0 else random.Random(seed).choice(fresh)

    def nearest(self, message: str, most: int = CANDIDATES) -> list[Reply]:
        """Return the likeliest answers, the best first, by the whole message or one of its sentences."""
        if same := self._exact.get(fold(message)):
            return [self._reply(at, 1.0) for at in same[:most]]
        if not self.rows or encoder().rarity(words(message)).min(initial=1.0) == 1:
            return []  # there is no word that is known
        likeness = self._likeness(message)
        parts = [part for part in SENTENCE.split(message.strip()) if len(fold(part)) >= SHORT]
        asked = max((at for at, part in enumerate(parts) if part.endswith("?")), default=None)
        for at, part in enumerate(parts) if len(parts) > 1 else ():
            likeness = np.maximum(likeness, self._likeness(part) - (ASKED if at == asked else PART))
        order = np.argsort(-likeness, kind="stable")[:most]
        spelt = set(words(message))
        return [self._reply(int(at), float(np.clip(likeness[at], 0, 1))) for at in order if self._fits(at, spelt)]

    def _reply(self, at: int, similarity: float) -> Reply:
        asked, answer, group = self.rows[at]
        return Reply(asked, answer, similarity, group.tells)

    def _likeness(self, text: str) -> Numbers:
        """Return how like a text is to each message, (N,); 1 for the same words."""
        likeness = self._matcher.likeness(text) - ABOUT * (self._persons * person(text) < 0)
        return likeness - KIND * (self._asking != bool(ASKING.search(text)))

    def _fits(self, at: int, spelt: set[str]) -> bool:
        """Whether an answer takes up no telling word of its message, and no number, but those of the one at hand."""
        asked, answer, _ = self.rows[at]
        if set(NUMBER.findall(asked)) != {word for word in spelt if NUMBER.fullmatch(word)}:
            return False
        taken = sorted((set(words(asked)) & set(words(answer))) - spelt)
        rare = encoder().rarity(taken)
        return not any(each >= RARE and any(map(str.isalnum, word)) for word, each in zip(taken, rare, strict=True))

    def _told(self, message: str, earlier: Sequence[str], found: Sequence[Reply]) -> Reply | None:
        """Return what the user told earlier, if that is what a message asks for."""
        best = found[0] if found else Reply("", "", 0.0)
        fact = best if best.tells and best.similarity >= LEAST else None
        asked = message if fact else asked_back(message)
        if not asked:
            return None
        sentence, likeness = told_before(asked, earlier, fact.tells if fact else ())
        own = fact is not None or person(asked) < 0
        least, most = (TOLD, SAME) if own else (SURELY_TOLD, max(LEAST, likeness))
        if likeness < least or (not fact and best.similarity > most):
            return None
        return Reply(sentence, quoted(sentence), likeness)


def written(
    about: Mapping[str, Any], messages: Sequence[Message], generation: GenerationConfig, shown: Matcher | None = None
) -> Reply | None:
    """Return the written answer to the last message, if a checkpoint says `about` itself that it has such.

    Where the message asks for one of the pairs that the model is `shown`, the model writes.
    """
    if about.get("small_talk") is not True:
        return None
    found = small_talk().find(messages, generation.temperature, generation.seed)
    asked = shown.match(messages[-1].content, 1) if shown and found else []
    nearer = found and asked and asked[0].confidence >= READ and asked[0].similarity >= found.similarity
    return None if nearer else found


@cache
def small_talk() -> SmallTalk:
    """Return those that come with the package, read once."""
    return SmallTalk(read(FILE.read_text("utf-8")))


def read(text: str) -> list[Group]:
    """Read groups of lines: messages (`? `), ways to tell (`< `) and answers (`! `); an empty line between two."""
    groups = list[Group]()
    for block in text.split("\n\n"):
        lines: dict[str, list[str]] = {}
        for line in block.splitlines():
            lines.setdefault(line[:2], []).append(line[2:].strip())
        groups.append(Group(*(tuple(lines.get(mark, ())) for mark in ("? ", "! ", "< "))))
    return [group for group in groups if group.asked and group.answers]


def written_out(groups: Iterable[Group]) -> str:
    """Return what `read` reads."""
    blocks = []
    for group in groups:
        marked = (("? ", group.asked), ("< ", group.tells), ("! ", group.answers))
        blocks.append("\n".join(mark + line for mark, lines in marked for line in lines))
    return "\n\n".join(blocks) + "\n"
