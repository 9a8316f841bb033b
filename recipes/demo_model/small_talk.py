"""Choose the exchanges of `data/` that can be said in any conversation, and write them to `assets/small_talk.txt`.

Rows of questions and answers, and the beginnings of dialogues, stand for themselves. What is said later in a dialogue
is taken where neither the message nor the answer leans on what came before: no word that points back, and nothing in
the answer that is like a word said earlier. What can be answered from the conversation alone is taken without an
answer: there the model writes.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import click
from generate import SLOT, read_blocks, read_words
from prepare import Unit, rows, written

from gpt2chat.encoder import encoder, words
from gpt2chat.small_talk import FILE, Group, written_out
from gpt2chat.told import ASKING, person

HERE = Path(__file__).parent
LONGEST = 110  # characters of a message that others may resemble
ALIKE = 0.4  # cosine from which on a word of an answer leans on one that was said before
RARE = 0.35  # rarity from which on a word has something to say
POINTING = re.compile(
    r"\b(?:he|she|they|him|her|them|his|their|it|its|that|this|these|those|one|ones|there|then|both|either|same"
    r"|again|still|yet|too|also|instead|first|second|last|next|other|another|more)\b|^(?:and|but|so|or|because|with)\b"
    r"|^what (?:can|should|must|do) (?:i|we) do\W*$",
    re.I,
)
OTHERS = re.compile(r"\b(?:he|him|his|she|her|they|them|their)\b", re.I)
NAME = re.compile(r"(?<![.!?:\"] )(?<!^)\b(?!I\b|I'|Pip\b)[A-Z][a-z]+")
KINDS = 4  # words of a list that a question for what was told is asked with
NEVER = "You haven't told me that yet. What is it?"
# promises that a server does not keep, and what is true of a first message alone
UNFIT = re.compile(
    r"\b(?:your|own) computer\b.*\bsend|send nothing|\bOnly to you\b|secret is|\bfive million\b"
    r"|haven't said anything yet|only just started|just begun|this very question|\bNot yet, but you can\b"
    r"|\bfirst (?:thing|message|question|words?)\b",
    re.I,
)
UNTOLD = re.compile(
    r"\btold me\b|\btell me your\b|n't know (?:you yet|it\b|that\b|your)|n't know (?:where|what|who|how old|when) you",
    re.I,
)

Exchange = tuple[str, str]


def telling(text: str) -> set[str]:
    """Return the words of a text that have something to say."""
    spelt = sorted(set(words(text)))
    return {word for word, rare in zip(spelt, encoder().rarity(spelt), strict=True) if rare >= RARE and word.isalpha()}


def leans(message: str, answer: str, before: set[str]) -> bool:
    """Whether an exchange leans on what was said before it."""
    if POINTING.search(message) or len(message) > LONGEST or not telling(message):
        return True
    if set(NAME.findall(answer)) - set(message.split()) or OTHERS.search(answer) and len(telling(message)) < 2:
        return True
    own, earlier = sorted(telling(answer) - telling(message)), sorted(before - telling(message))
    if not own or not earlier:
        return False
    vectors = encoder().word_vectors
    return bool((vectors(own) @ vectors(earlier).T).max() >= ALIKE)


def units(pattern: str, read: Callable[..., Iterator[Unit]]) -> Iterator[Unit]:
    """Yield the conversations in files of `data/`."""
    for path in sorted((HERE / "data").glob(f"{pattern}.txt")):
        yield from read(path.read_text("utf-8"), lambda unit: [])


def exchanges() -> Iterator[Exchange]:
    """Yield what can be said in any conversation, the most general first."""
    for name in ("talk-*", "[!t]*"):
        for question, answer in units(f"answers/{name}", rows):
            yield question.content, answer.content
    for dialogue in units("dialogues/*", written):
        before = set[str]()
        for at in range(0, len(dialogue) - 1, 2):
            message, answer = dialogue[at].content, dialogue[at + 1].content
            if not before and len(message) <= LONGEST or before and not leans(message, answer, before):
                yield message, answer
            before |= telling(message) | telling(answer)


def told() -> Iterator[Group]:
    """Yield questions for what the user told, with ways to tell it and answers to a user who did not."""
    lists = read_words(HERE / "data" / "patterns" / "words.txt")
    for block in read_blocks(HERE / "data" / "patterns" / "facts.txt"):
        asked = [filled(line, lists, at) for line in block.of("?") for at in range(KINDS)]
        never = tuple(line for line in block.of("-") if not SLOT.search(line))
        yield Group(
            tuple(dict.fromkeys(asked)), never or (NEVER,), tuple(filled(line, lists) for line in block.of("<"))
        )


def filled(line: str, lists: dict[str, list[str]], at: int = 0) -> str:
    """Return a line of patterns with a word of each list that it names."""
    return SLOT.sub(lambda slot: lists[slot[1]][at], line)


@click.command()
@click.option("--out", type=click.Path(path_type=Path), default=FILE, show_default=False, help="Where they go.")
def main(out: Path) -> None:
    """Write the replies; run from anywhere."""
    facts, asked = list(told()), dict[str, list[str]]()
    for message, answer in exchanges():
        untold = person(message) < 0 and ASKING.search(message) and UNTOLD.search(answer)
        if not untold and not UNFIT.search(answer):
            asked.setdefault(answer, []).append(message)
    groups = [Group(tuple(dict.fromkeys(messages)), (answer,)) for answer, messages in asked.items()]
    out.write_text(written_out([*groups, *facts]), "utf-8")
    count = sum(len(group.asked) for group in [*groups, *facts])
    print(f"{count:,} messages, {out.stat().st_size / 1e6:.2f} MB", file=sys.stderr)


if __name__ == "__main__":
    main()
