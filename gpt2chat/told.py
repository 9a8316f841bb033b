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

SENTENCE = re.compile(r"(?<=[.!?])\s+")
ME = re.compile(r"\b(?:i|me|my|mine|i'm|im|i've|we|us|our|ours|we're)\b", re.I)
YOU = re.compile(r"\b(?:you|your|yours|you're|u|ur)\b", re.I)
REQUEST = re.compile(
    r"\b(?:(?:do|can|could|would|will) (?:you|u) (?:still |please )?(?:know|remember|recall|tell me|say|guess)"
    r"|(?:you|u) (?:still )?(?:know|remember)|(?:did i|i) (?:say|said|tell you|told you|mention|mentioned))\b"
    r"|\bremind me\b|^(?:please )?tell me\b",
    re.I,
)
ADVICE = re.compile(r"\b(?:should|could|can|may|must|would|shall) (?:i|we)\b|\bhow (?:do|to|can)\b|\bhelp\b", re.I)
MENDED = re.compile(r"^(?:oh[, ]+)?(?:no[, ]|sorry|wait|i mean|actually|that was wrong|correction)", re.I)
POINTING = re.compile(r"^(?:he|she|they|it|that|this|those|these|there)\b", re.I)
ASKING = re.compile(
    r"\?\s*$|^(?:so |and |but |ok |okay |now |hey |oh )*(?:what|whats|what's|who|whose|whom|where|when|which|how|why"
    r"|do|does|did|am|is|are|was|were|can|could|will|would|should|say|tell me|remember)\b",
    re.I,
)
LEAD = re.compile(
    r"^(?:(?:hi|hello|hey|oh|ah|well|so|yes|yeah|no|and|but|ok|okay|actually|by the way|anyway|guess what|good \w+)\b"
    r"[\s,!.:-]*)+",
    re.I,
)
RECENT = 0.02  # what a later sentence has before an earlier one, as it may mend it
VAGUE = 0.15  # what a sentence loses whose first word points back
SWAPPED = {
    "i": "you", "me": "you", "my": "your", "mine": "yours", "myself": "yourself", "i'm": "you're", "im": "you're",
    "i've": "you've", "ive": "you've", "i'll": "you'll", "i'd": "you'd", "am": "are",
    "you": "I", "your": "my", "yours": "mine", "you're": "I'm", "i was": "you were", "i am": "you are",
}  # fmt: skip
WORD = re.compile(r"\bi (?:was|am)\b|[\w']+", re.I)
LOWER = re.compile(
    r"^(?:i|my|we|our|the|a|an|he|she|it|they|this|that|there|his|her|their|one|in|on|at|today|next)\b", re.I
)


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
    sentences = [part for said in earlier for part in SENTENCE.split(said.strip()) if part and not ASKING.search(part)]
    if not sentences:
        return "", 0.0
    matcher = Matcher((sentence, str(at)) for at, sentence in enumerate(sentences))
    likeness = matcher.likeness(REQUEST.sub("", message))
    if tells:
        likeness = (likeness + np.max([matcher.likeness(tell) for tell in tells], axis=0)) / 2
    vague = np.array([bool(POINTING.match(sentence)) for sentence in sentences])
    best = int((likeness + RECENT * np.arange(len(sentences)) - VAGUE * vague).argmax())
    mended = [each for each in sentences[best + 1 :] if MENDED.match(each)]
    return " ... ".join([sentences[best], *mended[-1:]]), float(np.clip(likeness[best], 0, 1))


def quoted(sentence: str) -> str:
    """Return a sentence of the user as the bot says it back."""
    said = LEAD.sub("", sentence).strip().rstrip(".!?, ")
    turned = WORD.sub(lambda word: SWAPPED.get(word[0].lower(), word[0]), said)
    if LOWER.match(said):
        turned = turned[:1].lower() + turned[1:]
    return f"You said that {turned}."
