"""What the user told earlier in a conversation, found when it is asked for, and said back.

The sentence that is most like the question is taken, with "you" for "I": "Where do I live?" after "I live in Ulm now."
is answered with "You said that you live in Ulm now." What asks for a thing and what tells it are often unlike ("How
old am I?", "I turned nine"), so ways to tell it may be given; they stand between the two.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from gpt2chat.matching import Matcher

SENTENCE = re.compile(r"(?<!\bMr\.)(?<!\bDr\.)(?<!\bMs\.)(?<!\bSt\.)(?<!\bMrs\.)(?<!\b[A-Z]\.)(?<=[.!?])\s+|\n+")
CLAUSE = re.compile(rf"{SENTENCE.pattern}|,? and (?=(?:i|i'm|my|we|our)\b)", re.I)
ME = re.compile(r"\b(?:i|me|my|mine|i'm|im|i've|we|us|our|ours|we're)\b", re.I)
YOU = re.compile(r"\b(?:you|your|yours|you're|u|ur)\b", re.I)
REQUEST = re.compile(
    r"\b(?:(?:do|can|could|would|will) (?:you|u) (?:still |please )?(?:know|remember|recall|tell me|say|guess)"
    r"|(?:you|u) (?:still )?(?:know|remember)|(?:did i|i) (?:say|said|tell you|told you|mention|mentioned))\b"
    r"|\bremind me\b|^(?:please )?tell me\b",
    re.I,
)
ADVICE = re.compile(r"\b(?:should|could|can|may|must|would|shall) (?:i|we)\b|\bhow (?:do|to|can)\b|\bhelp\b", re.I)
MENDED = re.compile(
    r"^(?:oh[, ]+)?(?:no[, ]+wait|no[, ]+(?:it|that|i mean)\b|no, \w+[.!]?$|sorry, i m|wait\b|i mean\b|actually\b)",
    re.I,
)
POINTING = re.compile(r"^(?:he|she|they|it|that|this|those|these|there)\b", re.I)
ASKING = re.compile(
    r"\?\s*$|^(?:so |and |but |ok |okay |now |hey |oh |please )*(?:what|whats|what's|who|whose|whom|where|when|which"
    r"|how|why|do|does|did|am|is|are|was|were|can|could|will|would|should|say|tell me)\b[^.!]*$",
    re.I,
)
LEAD = re.compile(
    r"^(?:(?:oh|ah|well|so|yes|yeah|no|and|but|ok|okay|actually|by the way|anyway|guess what|good \w+)[,!.:-]+\s*"
    r"|(?:hi|hello|hey)\b(?! \w+ is\b)[,!.:-]*\s*)+",
    re.I,
)
OWNED = re.compile(r"\b(?:my|our)\s+(?:favou?rite\s+|best\s+|old\s+|new\s+|little\s+|big\s+)?([a-z]+)", re.I)
ONE_S_OWN = {"name", "age", "job", "work", "birthday", "hobby", "hobbies", "town", "city", "home", "living", "self"}
NAME = re.compile(r"\bmy (?:\w+ )?name\b|\bwho am i\b|\bam i called\b", re.I)
NAMED = re.compile(
    r"(?i:\b(?:nick|sur)?name[ds]?\b|\bcall(?:s|ed)?\b|^(?:hi|hello|hey|good \w+)\b.*\b(?:i am|i'm|im|it's|this is)\b)"
    r"|\b(?i:i am|i'm|im|it's|it is|this is) [^\W\d_a-z]"
)
OF_SELF = re.compile(r"\b(?:am i|i am|i'm)\b", re.I)
LONGEST, MOST = 200, 40  # characters of a sentence that is said back, sentences that are looked at
NEARLY = 0.1  # likeness below the best within which the last sentence counts, as it may mend the others; twice as much
BEGINS = 3  # for one that has its first words
VAGUE = 0.2  # what a sentence loses whose first word points back
SWAPPED = {
    "i": "you", "me": "you", "my": "your", "mine": "yours", "myself": "yourself", "i'm": "you're", "im": "you're",
    "i've": "you've", "ive": "you've", "i'll": "you'll", "i'd": "you'd", "am": "are", "i was": "you were",
    "i wasn't": "you weren't", "i am": "you are", "your": "my", "yours": "mine", "yourself": "myself",
    "you're": "I'm", "you've": "I've", "you'll": "I'll", "you are": "I am", "you were": "I was", "you have": "I have",
    "you": "me", "we": "you", "us": "you", "our": "your", "ours": "yours", "we're": "you're", "we've": "you've",
    "we'll": "you'll", "we'd": "you'd", "ourselves": "yourselves",
}  # fmt: skip
WORD = re.compile(r"\bi (?:was|am|wasn't)\b|\byou (?:are|were|have)\b|[\w']+", re.I)
FIRST = re.compile(r"\b(?:i|i'm|im|i've|ive|i'll|i'd|my|we|our|we're)\b", re.I)
LOWER = re.compile(r"^(?:i|my|we|our|the|a|an|his|her|their|in|on|at|today|next|last)\b(?!')", re.I)


def person(text: str) -> int:
    """Return 1 for a text that speaks of "you" alone, -1 of "me" or "us" alone, else 0; "do you know" counts not."""
    text = REQUEST.sub("", text)
    return int(bool(YOU.search(text))) - int(bool(ME.search(text)))


def asked_back(message: str) -> str:
    """Return the sentence of a message that may ask for something its writer told before, or nothing."""
    for part in reversed(SENTENCE.split(message.strip())):
        if ASKING.search(part):
            return "" if YOU.search(REQUEST.sub("", part)) or ADVICE.search(part) else part
    return ""


def told_before(message: str, earlier: Sequence[str], tells: Sequence[str] = ()) -> tuple[str, float]:
    """Return the earlier sentence that answers a message best, and how like it is to it and to ways to tell it."""
    sentences, turns = list[str](), list[int]()
    for turn, said in enumerate(earlier):
        for part in CLAUSE.split(said.replace("’", "'").strip()):
            if part and len(part) <= LONGEST and not ASKING.search(part):
                sentences, turns = [*sentences[-MOST:], part], [*turns[-MOST:], turn]
    if not sentences:
        return "", 0.0
    matcher = Matcher((sentence, str(at)) for at, sentence in enumerate(sentences))
    likeness = matcher.likeness(REQUEST.sub("", message))
    if tells:
        likeness = (likeness + np.max([matcher.likeness(tell) for tell in tells], axis=0)) / 2
    likeness = likeness - [VAGUE * bool(POINTING.match(sentence)) for sentence in sentences]
    likeness = np.where([_other_owner(message, sentence) for sentence in sentences], -1.0, likeness)
    first = _begin(sentences[int(likeness.argmax())])
    near = np.array([NEARLY * (1 + (_begin(sentence) == first)) for sentence in sentences])
    best = int(np.flatnonzero(likeness >= likeness.max() - near)[-1])
    mended = [each for at, each in enumerate(sentences) if 0 <= turns[at] - turns[best] <= 1 and MENDED.match(each)]
    return " ... ".join([sentences[best], *mended[-1:]]), float(np.clip(likeness[best], 0, 1))


def _other_owner(message: str, sentence: str) -> bool:
    """Whether a question is for something of the user that a sentence does not name, or the other way round."""
    if NAME.search(message) and not NAMED.search(sentence):
        return True
    asked, told = ({word.lower() for word in OWNED.findall(text)} for text in (message, sentence))
    if wanted := asked - ONE_S_OWN:
        return not any(_alike(each, word) for each in wanted for word in WORD.findall(sentence.lower()))
    return bool(asked or OF_SELF.search(message)) and bool(told - ONE_S_OWN) and not told & asked


def _begin(sentence: str) -> list[str]:
    return WORD.findall(sentence.lower())[:BEGINS]


def _alike(one: str, other: str) -> bool:
    """Whether two words are the same but for an ending."""
    return one[:5] == other[:5] and abs(len(one) - len(other)) <= 3


def quoted(sentence: str) -> str:
    """Return a sentence of the user as the bot says it back; as it is where it does not speak of its writer."""
    said = LEAD.sub("", sentence).strip().rstrip(".!?, ") or sentence.strip()
    if not FIRST.search(said):
        return f'You said: "{said}"'
    turned = WORD.sub(lambda word: SWAPPED.get(word[0].lower(), word[0]), said)
    return f"You said that {turned[:1].lower() + turned[1:] if LOWER.match(said) else turned}."
