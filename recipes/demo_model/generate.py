"""Conversations made from the patterns in `data/patterns/`: facts told and asked back, small talk, small sums.

What combinatorics can teach a small model (to copy a name that it has never seen, to tell what was told from what was
not) is made here; what it cannot is written by hand in `data/dialogues/`. A conversation is a function of its seed.
"""

from __future__ import annotations

import random
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from gpt2chat.conversation import Message

Messages = tuple[Message, ...]
SLOT = re.compile(r"\{(\w+)(?::my=your)?\}")
VOWELS = list("aaeeiou")
ONSETS = [*"bdfghjklmnprstvwyz", "ch", "gl", "kr", "sh", "st", "tr"]
MADE_UP = 0.25  # of the names: words that no list holds, so that a model must copy rather than remember
NAMES = ("person", "pet")


@dataclass
class Block:
    """What can be said about one thing, in the order of a conversation; see the head of each file of patterns."""

    name: str
    lines: dict[str, list[str]] = field(default_factory=dict)

    def of(self, mark: str) -> list[str]:
        """Return the lines behind a mark."""
        return self.lines.get(mark, [])

    def slots(self) -> list[str]:
        """Return the lists of words that its first words name."""
        return sorted({slot for line in self.of("<") for slot in SLOT.findall(line)})


def read_words(path: Path) -> dict[str, list[str]]:
    """Read `name: word, word` lines."""
    rows = (line.split(":", 1) for line in path.read_text("utf-8").splitlines() if line and not line.startswith("#"))
    return {name: [word.strip() for word in words.split(",")] for name, words in rows}


def read_blocks(path: Path) -> list[Block]:
    """Read blocks of marked lines: `= name`, then `< …`, `> …` and so on."""
    blocks = list[Block]()
    for line in path.read_text("utf-8").splitlines():
        mark, _, text = line.partition(" ")
        if mark == "=":
            blocks.append(Block(text))
        elif text and mark != "#" and blocks:
            blocks[-1].lines.setdefault(mark, []).append(text)
    return blocks


class Generator:
    """Draws conversations from patterns and, between them, from conversations written by hand."""

    def __init__(self, folder: Path, between: Sequence[Messages]) -> None:
        """Read the patterns in a folder; `between` is what is talked about between a fact and the question for it."""
        self.words = read_words(folder / "words.txt")
        self.facts, self.talk = read_blocks(folder / "facts.txt"), read_blocks(folder / "talk.txt")
        self.between = [talk for talk in between if len(talk) <= 6]

    def conversations(self, count: int, seed: int) -> Iterator[Messages]:
        """Yield so many conversations of all sorts."""
        sorts = (self._recalled, self._recalled, self._several, self._corrected, self._untold, self._small_talk)
        sorts += (self._small_talk, self._said, self._sum)
        for number in range(count):
            rng = random.Random(f"{seed} {number}")
            yield rng.choice(sorts)(rng)

    # -- sorts of conversations --------------------------------------------------------------------------------

    def _recalled(self, rng: random.Random) -> Messages:
        """One fact, other talk, and the question for the fact."""
        block = rng.choice(self.facts)
        values = self._values(rng, block)
        gap = self._gap(rng, block.slots())
        return (*self._told(rng, block, values), *gap, *self._asked(rng, block, values))

    def _several(self, rng: random.Random) -> Messages:
        """Some facts one after the other, then questions for some of them in another order."""
        blocks = _different(rng, self.facts, rng.randint(2, 3))
        values = [self._values(rng, block) for block in blocks]
        told = [message for block, own in zip(blocks, values, strict=True) for message in self._told(rng, block, own)]
        order = rng.sample(range(len(blocks)), rng.randint(1, len(blocks)))
        asked = [message for i in order for message in self._asked(rng, blocks[i], values[i])]
        used = [slot for block in blocks for slot in block.slots()]
        return (*told, *(self._gap(rng, used) if rng.random() < 0.5 else ()), *asked)

    def _corrected(self, rng: random.Random) -> Messages:
        """A fact, another value for it, and the question: the later one counts."""
        block = rng.choice([block for block in self.facts if len(block.slots()) == 1])
        (slot,) = block.slots()
        old, new = self._values(rng, block), self._values(rng, block)
        if old[slot] == new[slot]:
            return self._recalled(rng)
        said = rng.choice(("no wait, {}", "sorry, I meant {}", "No, {}.", "oh, I mean {}", "that was wrong, it is {}"))
        ack = rng.choice(
            ("Thank you, {} it is.", "Got it, {}.", "Oh, {}! Thanks for telling me.", "All right, {} then.")
        )
        fixed = _exchange(said.format(new[slot]), ack.format(new[slot]))
        return (*self._told(rng, block, old), *fixed, *self._gap(rng, [slot], 2), *self._asked(rng, block, new))

    def _untold(self, rng: random.Random) -> Messages:
        """A question for what was never told, behind something else that was."""
        told, block = _different(rng, self.facts, 2)
        values = self._values(rng, block)
        before = (
            self._told(rng, told, self._values(rng, told)) if rng.random() < 0.6 else self._gap(rng, block.slots(), 2)
        )
        return (*before, *_exchange(self._say(rng, block.of("?"), values), self._say(rng, block.of("-"), values)))

    def _small_talk(self, rng: random.Random, used: Sequence[str] = ()) -> Messages:
        """One to three subjects, each perhaps gone into; none that fills a slot in use."""
        messages = list[Message]()
        for block in _different(rng, self.talk, rng.randint(1, 3), used):
            values = self._values(rng, block)
            messages += _exchange(self._say(rng, block.of("<"), values), self._say(rng, block.of(">"), values))
            if block.of("<<") and rng.random() < 0.5:
                messages += _exchange(self._say(rng, block.of("<<"), values), self._say(rng, block.of(">>"), values))
        return tuple(messages)

    def _said(self, rng: random.Random) -> Messages:
        """A question for what was said."""
        before = self._small_talk(rng)
        questions = [message.content for message in before if message.role == "user"]
        last = rng.random() < 0.6
        asked = ("what did i just say?", "What did I say?", "repeat what i said", "what were my last words?")
        first = ("what did i say first?", "What was the first thing I said?", "how did we start?")
        words = questions[-1] if last else questions[0]
        return (*before, *_exchange(rng.choice(asked if last else first), f'You said: "{words}"'))

    def _sum(self, rng: random.Random) -> Messages:
        """One to three small sums."""
        messages = list[Message]()
        for _ in range(rng.randint(1, 3)):
            messages += _exchange(*_small_sum(rng))
        return tuple(messages)

    # -- parts -------------------------------------------------------------------------------------------------

    def _values(self, rng: random.Random, block: Block) -> dict[str, str]:
        """Return a word for every slot of a block; some names are made up."""
        slots = {slot for lines in block.lines.values() for line in lines for slot in SLOT.findall(line)}
        return {slot: self._word(rng, slot) for slot in sorted(slots)}

    def _word(self, rng: random.Random, slot: str) -> str:
        if slot in NAMES and rng.random() < MADE_UP:
            return "".join(rng.choice(ONSETS) + rng.choice(VOWELS) for _ in range(rng.randint(2, 3))).capitalize()
        return rng.choice(self.words[slot])

    def _say(self, rng: random.Random, lines: Sequence[str], values: dict[str, str]) -> str:
        """Fill in a line; it begins with a capital where the line does, or where the bot speaks of a thing first."""
        line = rng.choice(lines)
        text = re.sub(r"\bmy\b", "your", values["plan"]) if "{plan:my=your}" in line else ""
        filled = SLOT.sub(lambda found: text if ":" in found[0] else values[found[1]], line)
        filled = re.sub(r"\b([Aa]) (?=[aeiouAEIOU])", r"\1n ", filled)
        return filled[0].upper() + filled[1:] if line[0] == "{" and line[-1] in ".!?" else filled

    def _told(self, rng: random.Random, block: Block, values: dict[str, str]) -> Messages:
        return _exchange(self._say(rng, block.of("<"), values), self._say(rng, block.of(">"), values))

    def _asked(self, rng: random.Random, block: Block, values: dict[str, str]) -> Messages:
        return _exchange(self._say(rng, block.of("?"), values), self._say(rng, block.of("!"), values))

    def _gap(self, rng: random.Random, used: Sequence[str], most: int = 5) -> Messages:
        """Return none to `most` exchanges about something else."""
        size, messages = rng.randint(0, most), list[Message]()
        while len(messages) < 2 * size:
            talk = rng.choice(self.between) if self.between and rng.random() < 0.7 else self._small_talk(rng, used)
            messages += talk[: 2 * size - len(messages)]
        return tuple(messages)


def _exchange(question: str, answer: str) -> Messages:
    return Message("user", question), Message("assistant", answer)


def _different(rng: random.Random, blocks: Sequence[Block], count: int, besides: Sequence[str] = ()) -> list[Block]:
    """Return blocks of which no two fill the same slot, so that one value cannot be taken for another."""
    chosen, used = list[Block](), set(besides)
    for block in rng.sample(list(blocks), len(blocks)):
        if not used & set(block.slots()):
            chosen.append(block)
            used |= set(block.slots())
        if len(chosen) == count:
            break
    return chosen


def _small_sum(rng: random.Random) -> tuple[str, str]:
    """Return a question for a sum that a child can do, and its answer."""
    a, b = rng.randint(1, 12), rng.randint(1, 12)
    signs = {"plus": a + b, "minus": a, "times": a * b}
    word = rng.choice(list(signs))
    first = a + b if word == "minus" else a
    mark = {"plus": "+", "minus": "-", "times": rng.choice("x*")}[word]
    asked = rng.choice(
        ("What is {} {} {}?", "what's {} {} {}", "{} {} {}", "how much is {} {} {}?", "can you calculate {} {} {}")
    )
    value = signs[word]
    return asked.format(first, rng.choice((word, mark)), b), rng.choice(
        (f"{first} {word} {b} is {value}.", f"That is {value}.")
    )
