"""Small talk from written conversations: what was written for a message like this one, where something was.

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
from gpt2chat.told import ASKING, asked_back, person, quoted, told_before

FILE = Path(__file__).with_name("assets") / "small_talk.txt"
LEAST = 0.54  # likeness from which on a written answer is given
ASKED, PART = 0.03, 0.16  # what the likeness of a message's last question, and of another part of it, is lowered by
ABOUT = 0.45  # and where one speaks of "you" alone and the other of "me" alone
KIND = 0.1  # and where one asks and the other does not
TELLING = 0.2  # and where one tells of himself and the other is about the world
NEAR = 0.05  # likeness below the best at which an answer is as good
CANDIDATES = 24  # answers that are looked at
SHORT = 4  # characters of a part of a message that is not looked at by itself
LEAVING = re.compile(
    r"\b(?:bye|goodbye|good night|see (?:you|ya)|talk to you (?:soon|later))\b"
    r"|\b(?:gotta|have to|must|should) (?:go|leave)\b",
    re.I,
)
PIECE = re.compile(r"(?<=[.!?,])\s+")
NUMBER = re.compile(
    r"\d+|\b(?:zero|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|twenty|hundred|thousand)\b"
)
PARTS = 6  # of a message that are looked at
OWN_WORD = 0.35  # weight of a word of one message that has nothing like it in the other
SHOWN = 0.8  # confidence from which on a shown pair goes before anything written
RARE = 0.35  # rarity from which on a word has something to say
SAME = 0.97  # likeness from which on a message is one that an answer was written for
TOLD, SURELY_TOLD = 0.24, 0.43  # likeness of what was told to a question for it; to one that need not be for it

DANGER = re.compile(
    r"\bsuicid|\bkill(?:ing)? (?:my|your|him|her|them)\w*|\bkms\b|\bself[- ]?harm"
    r"|\b(?:hurt|cut|harm|starv)(?:ting|ing)? my ?self"
    r"|\b(?:want|going|feel like|about) (?:to )?jump(?:ing)? (?:off|from|in front)"
    r"|\bend(?:ing)? (?:it all|my life)|\bwant to die|\bwanna die|\bbetter off dead|\bmiss me if|\boverdos"
    r"|\btoo many (?:\w+ )?(?:pills?|tablets?)|\b(?:no reason|don'?t want|do not want) to (?:live|be alive)\b"
    r"|\bunconscious|\b(?:is|was|got|been|i'm|am|ate|drank|swallowed) (?:\w+ )?poison|\bpoisoned\b"
    r"|\bswallowed (?!my pride)|\bbleed|\bcan'?t breathe|\bheart attack|\bsmell gas"
    r"|\b(?:house|home|kitchen|flat|car|hair|clothes|pan|room|i'?m|am|is) (?:is |are )?on fire\b(?! tonight)"
    r"|\brape|\babus|\b(?:hits?|beats?|punch(?:es)?|kicks?|chok(?:es?|ing)|strangl\w+|slaps?|threatens?"
    r"|hitting|beating|punching|kicking) (?:me|my (?:child|kid|son|daughter|wife|mum|mom))\b"
    r"|\b(?:took|taken|swallowed) (?:\d+|all|too many|a (?:lot|bottle|pack|box)|the whole)\b"
    r".*(?:pill|tablet|cetamol|profen|aspirin|box|pack|bottle)"
    r"|\b(?:not|isn't|isnt|stopped|cant|cannot) breath|\bchest (?:hurts|pain)|\bpain in (?:my|the) chest"
    r"|\boff myself\b|\bunalive|\bfollowing me\b|\bwill sterben\b"
    r"|\b(?:hurt|kill|stab|shoot) (?:him|her|someone"
    r"|my (?:sister|brother|wife|husband|mother|father|mum|mom|dad|child|kid|son|daughter|boss))\b"
    r"|\bis missing|\bemergency|\bburned my(?:self| (?:hand|arm|face|leg|finger|skin))",
    re.I,
)
IN_DANGER = (
    "That is serious, and I am only a small program. If anybody is in danger, please call the emergency number now. "
    "If you feel bad, please talk to a person you trust, or to a crisis line."
)
GRAVE = re.compile(
    r"\bdie[ds]?\b|\bdying\b(?! (?:to|for)\b)|\bdead\b|\bdeath|\bfuneral|\bcancer|\bcoma\b|\bmiscarriage|\bdepress"
    r"|\bpregnan|\bantidep|\bmedic|\bpills?\b|\bdose|\bdrugs?\b|\bvaccin|\bbleach|\bammonia"
    r"|\b(?:pick|wild|forest|found|eat this|magic) ?mushroom|\braw (?:meat|chicken|egg)|\bsea ?water"
    r"|\b(?:buy|have|own|carry|shoot|brought) (?:a |my |the )?gun\b(?! in\b)|\bbomb"
    r"|\bjews?\b|\bjewish|\bmuslim|\bblack people|\bi'?m black|\bwhite people|\bimmigrants?\b|\bgays?\b|\bracis|\bnazi"
    r"|\b(?:the|at|in|a|civil|world) war\b|\bdivorc|\bburn(?:ed|t) (?:down|by)|\bgo die|\ba tick\b",
    re.I,
)
UNTOLD = re.compile(  # says who was not told a thing
    r"n't (?:said|told|mentioned|know)\b|\bno idea\b|\bnot told\b|\btell me\b|\bwasn't there\b", re.I
)
TOO_GRAVE = (
    "I'm sorry, that is too grave for a small program like me. "
    "Please talk about it with somebody who knows, or whom you trust."
)


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
    told: bool = False  # said back to the user, who said `question`


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
    def _worldly(self) -> Numbers:
        """Whether each message is about neither of both and stands beside one that asks, (N,)."""
        asks = {id(group): any(map(ASKING.search, group.asked)) for _, _, group in self.rows}
        return np.array([asks[id(group)] for _, _, group in self.rows], np.float64) * (self._persons == 0)

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
        message = messages[-1].content
        if grave := self._grave(message):
            return grave
        found = self.nearest(message)
        if back := self._told(message, [m.content for m in messages[:-1] if m.role == "user"], found):
            return back
        if not found:
            return None
        said = {each.content.strip() for each in messages if each.role == "assistant"}
        near = [reply for reply in found if reply.similarity >= found[0].similarity - NEAR]
        fresh = [reply for reply in near if reply.answer not in said]
        if not fresh:
            return None
        return fresh[0] if temperature == 0 else random.Random(seed).choice(fresh)

    def nearest(self, message: str, most: int = CANDIDATES) -> list[Reply]:
        """Return the likeliest answers, the best first, by the whole message or a part of it; none below `LEAST`."""
        if same := self._exact.get(fold(message)):
            return [self._reply(at, 1.0) for at in same[:most]]
        if not self.rows or encoder().rarity(words(message)).min(initial=1.0) == 1:
            return []  # there is no word that is known
        for some in _tiers(message):
            best: dict[int, float] = {}
            for part, less in some:
                likeness, spelt = self._likeness(part) - less, set(words(part))
                for at in map(int, np.argsort(-likeness, kind="stable")[:most]):
                    if likeness[at] > best.get(at, 0.0) and self._fits(at, part, spelt):
                        best[at] = float(min(1.0, likeness[at]))
            if max(best.values(), default=0.0) >= LEAST:
                order = sorted(best, key=lambda at: (-best[at], at))[:most]
                return [self._reply(at, best[at]) for at in order if best[at] >= LEAST]
        return []

    def _reply(self, at: int, similarity: float) -> Reply:
        asked, answer, group = self.rows[at]
        return Reply(asked, answer, similarity, group.tells)

    def _likeness(self, text: str) -> Numbers:
        """Return how like a text is to each message, (N,); 1 for the same words."""
        whose, asks = person(text), bool(ASKING.search(text))
        likeness = self._matcher.likeness(text) - ABOUT * (self._persons * whose < 0)
        if whose < 0 and not asks:  # what somebody tells of himself is no question about the world
            likeness = likeness - TELLING * self._worldly
        return likeness - KIND * (self._asking != asks)

    def _grave(self, message: str) -> Reply | None:
        """Return the answer to a message of which any part is about death or danger, or a subject for no small talk."""
        if self._exact.get(fold(message)):
            return None
        for pattern, answer in ((DANGER, IN_DANGER), (GRAVE, TOO_GRAVE)):
            if found := pattern.search(message):
                return Reply(found[0], answer, 1.0)
        return None

    def _fits(self, at: int, text: str, spelt: set[str]) -> bool:
        """Whether a message and the text at hand have the same numbers, and neither a telling word all of its own.

        Nor may the answer take up a word of its message that the text has not.
        """
        asked, answer, _ = self.rows[at]
        if max(self._matcher.uncovered(text, at)) > OWN_WORD:
            return False
        if set(NUMBER.findall(asked.lower())) != {word for word in spelt if NUMBER.fullmatch(word)}:
            return False
        taken = sorted((set(words(asked)) & set(words(answer))) - spelt)
        rare = encoder().rarity(taken)
        return not any(each >= RARE and any(map(str.isalnum, word)) for word, each in zip(taken, rare, strict=True))

    def _told(self, message: str, earlier: Sequence[str], found: Sequence[Reply]) -> Reply | None:
        """Return what the user told earlier, if that is what a message asks for."""
        best = found[0] if found else Reply("", "", 0.0)
        fact = next((each for each in found if each.tells and each.similarity == best.similarity), None)
        asked = message if fact else asked_back(message)
        if not asked:
            return None
        sentence, likeness = told_before(asked, earlier, fact.tells if fact else ())
        own = fact is not None or person(asked) < 0
        least, most = (TOLD, SAME) if own else (SURELY_TOLD, max(LEAST, likeness))
        denied = own and (likeness >= SURELY_TOLD or UNTOLD.search(best.answer))
        if likeness < least or (not fact and best.similarity > most and not denied):
            return None
        return Reply(sentence, quoted(sentence), likeness, told=True)


def _tiers(message: str) -> list[list[tuple[str, float]]]:
    """Return the parts of a message in the order in which they are to be answered, and by how much each is less like.

    First all of it and what it asks or takes leave with; then its other sentences; then its shortest pieces.
    """
    parts = [part for part in PIECE.split(message.strip()) if len(fold(part)) >= SHORT][:PARTS]
    first = [part for part in parts if LEAVING.search(part)] or [part for part in parts if part.endswith("?")][-1:]
    longer = [part for part in parts if part not in first and len(part.split()) > 2]
    rest = [part for part in parts if part not in (*first, *longer)]
    whole = [(message.strip(), 0.0), *((part, ASKED) for part in first)]
    return [whole, [(part, PART) for part in longer], [(part, PART) for part in rest]]


def has_small_talk(about: Mapping[str, Any]) -> bool:
    """Whether a checkpoint, by what it says about itself, gives written answers."""
    return about.get("small_talk") is True


def written(
    about: Mapping[str, Any],
    messages: Sequence[Message],
    generation: GenerationConfig,
    shown: Matcher | None = None,
    system: bool = False,
) -> Reply | None:
    """Return the answer to the last message that need not be written by the model, or none.

    One is that of a pair that it was `shown` and has not learnt; of an FAQ also where it is asked for in other words.
    The others are small talk, if a checkpoint says `about` itself that it has such, and no `system` prompt how to talk.
    """
    if not messages or messages[-1].role != "user":
        return None
    asked = messages[-1].content
    if shown and (pair := shown.shown(asked, READ if about.get("faq") is True else 1.0)):
        return Reply(pair.question, pair.answer, pair.similarity)
    told_how = system or any(each.role == "system" and each.content for each in messages)
    if not has_small_talk(about) or told_how:
        return None
    found = small_talk().find(messages, generation.temperature, generation.seed)
    near = shown.match(asked, 1) if shown and found else []
    nearer = found and near and near[0].confidence >= READ and near[0].similarity >= found.similarity
    return None if nearer or (near and near[0].confidence >= SHOWN) else found


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
