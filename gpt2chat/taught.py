"""The questions and answers a model was taught: what is kept of them, and which is nearest to a new question.

Nearness is the cosine of TF-IDF vectors (Salton and Buckley 1988) over words and over runs of characters.
"""

from __future__ import annotations

import unicodedata
import zlib
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

Pair = tuple[str, str]  # a question and its answer
MOST_BYTES = 2_000_000  # of the text that a checkpoint keeps
RUNS = (3, 4)  # characters that are looked at together
WORD_SHARE = 0.5  # of the likeness; the rest is that of runs of characters
BREAK = "\n"  # between two texts; no folded text holds it
FACTOR = np.uint64(0x9E3779B97F4A7C15)
Keys = npt.NDArray[np.uint64]
Places = npt.NDArray[np.int64]
Numbers = npt.NDArray[np.float64]
QUOTES = str.maketrans("’‘“”", "''\"\"", "\ufe0e\ufe0f")  # and how an emoji is drawn
ENDS = " .,;:!?…¿¡。？！"
# of ASCII: letters and digits in lower case, all else a blank
PLAIN = {code: chr(code).lower() if chr(code).isalnum() else " " for code in range(128)}


def merged(before: Sequence[Pair], learnt: Iterable[Pair]) -> list[Pair]:
    """Return different pairs: of `before` those whose question, however written, was not taught anew; those learnt."""
    new = dict.fromkeys(learnt)
    questions = {same(question) for question, _ in new}
    return [*dict.fromkeys(pair for pair in before if same(pair[0]) not in questions), *new]


def latest(pairs: Iterable[Pair]) -> list[Pair]:
    """Return the last pair of each question, however it is written."""
    return list({same(question): (question, answer) for question, answer in pairs}.values())


def sampled(pairs: Sequence[Pair], most: int) -> list[Pair]:
    """Return all pairs, or as many as have `most` bytes of text, evenly from beginning to end."""
    sizes = np.cumsum([sum(len(text.encode("utf-8", "replace")) for text in pair) for pair in pairs])
    if not len(sizes) or sizes[-1] <= most:
        return list(pairs)
    kept, used, before = list[Pair](), 0, 0
    for pair, size in zip(pairs, sizes.tolist(), strict=True):
        if used + size - before <= most / int(sizes[-1]) * size:
            kept.append(pair)
            used += size - before
        before = size
    return kept


@dataclass(frozen=True)
class Nearest:
    """The taught pair whose question is most like another one; `similarity` is 1 for the same words, 0 for none."""

    question: str
    answer: str
    similarity: float


class Taught:
    """Finds the nearest of taught questions; case, marks and blanks make no difference."""

    def __init__(self, pairs: Iterable[Pair]) -> None:
        self.pairs = list(pairs)
        questions = [fold(question) for question, _ in self.pairs]
        self._words, self._runs = _Index(*_words(questions), len(questions)), _Index(*_runs(questions), len(questions))

    def __len__(self) -> int:
        return len(self.pairs)

    def similarities(self, question: str) -> Numbers:
        """Return how like each taught question is, from 0 to 1."""
        folded = [fold(question)]
        words, runs = self._words.cosines(_words(folded)[0]), self._runs.cosines(_runs(folded)[0])
        return np.clip(WORD_SHARE * words + (1 - WORD_SHARE) * runs, 0.0, 1.0)

    def among(self, rows: Places) -> Numbers:
        """Return how like some of the taught questions are to each other, (rows, rows)."""
        words, runs = self._words.among(rows), self._runs.among(rows)
        return np.clip(WORD_SHARE * words + (1 - WORD_SHARE) * runs, 0.0, 1.0)

    def nearest(self, question: str) -> Nearest:
        """Return the nearest taught pair, the first of equals; without any, a similarity of 0 to nothing."""
        if not self.pairs:
            return Nearest("", "", 0.0)
        similarities = self.similarities(question)
        best = int(similarities.argmax())
        return Nearest(*self.pairs[best], float(similarities[best]))


def same(question: str, cased: bool = False) -> str:
    """Return what two questions share that differ in case, blanks, quotes and the marks at their ends alone."""
    text = unicodedata.normalize("NFKC", question).translate(QUOTES)
    text = text if cased else text.casefold()
    return " ".join(text.split()).strip(ENDS) or " ".join(text.split())


def fold(text: str) -> str:
    """Return words without case and marks, a blank between two; a text of nothing but marks keeps them."""
    if text.isascii():
        words = text.translate(PLAIN).split()
    else:
        text = unicodedata.normalize("NFKC", text).casefold()
        words = "".join(
            char if char.isalnum() or unicodedata.category(char)[0] == "M" else " " for char in text
        ).split()
    return " ".join(words or text.split())


class _Index:
    """Which texts hold a feature, and with which weight: features in order, each with its run of texts."""

    def __init__(self, keys: Keys, texts: Places, count: int) -> None:
        """Take the features of `count` texts: a key for each occurrence, and the text it is in."""
        self._count = count
        order = np.lexsort((texts, keys))
        keys, texts = keys[order], texts[order]
        first = np.ones(len(keys), bool)
        first[1:] = (keys[1:] != keys[:-1]) | (texts[1:] != texts[:-1])
        starts = np.flatnonzero(first)
        often = np.diff(starts, append=len(keys))
        keys, self._texts = keys[starts], texts[starts]
        self._keys, self._starts, found = np.unique(keys, return_index=True, return_counts=True)
        self._ends = self._starts + found
        self._rare = _rarity(found, count)
        weights = (1 + np.log(often)) * np.repeat(self._rare, found)
        norms = np.sqrt(np.bincount(self._texts, weights**2, minlength=count))
        self._weights = weights / norms[self._texts]

    @cached_property
    def _by_text(self) -> tuple[Places, Places, Places]:
        """The places of the texts' features, one text after the other, where each begins, and the features' numbers."""
        order = np.argsort(self._texts, kind="stable")
        begins = np.searchsorted(self._texts[order], np.arange(self._count + 1))
        return order, begins, np.repeat(np.arange(len(self._keys)), self._ends - self._starts)

    def among(self, texts: Places) -> Numbers:
        """Return the cosines of some of the texts to each other, (texts, texts)."""
        order, begins, numbers = self._by_text
        places = [order[begins[text] : begins[text + 1]] for text in texts.tolist()]
        inside = np.concatenate([np.zeros(0, np.int64), *places])
        rows = np.repeat(np.arange(len(places)), [len(each) for each in places])
        features, columns = np.unique(numbers[inside], return_inverse=True)
        dense = np.zeros((len(places), len(features)), np.float32)
        dense[rows, columns] = self._weights[inside]
        return (dense @ dense.T).astype(np.float64)

    def cosines(self, keys: Keys) -> Numbers:
        """Return the cosine of a text with these features to each text of the index."""
        keys, often = np.unique(keys, return_counts=True)
        if not len(keys) or not len(self._keys):
            return np.zeros(self._count)
        places = np.minimum(np.searchsorted(self._keys, keys), len(self._keys) - 1)
        known = self._keys[places] == keys
        weights = (1 + np.log(often)) * np.where(known, self._rare[places], _rarity(np.zeros(1), self._count))
        weights /= np.sqrt((weights**2).sum())
        places, weights = places[known], weights[known]
        starts, lengths = self._starts[places], self._ends[places] - self._starts[places]
        inside = np.arange(lengths.sum()) + np.repeat(starts - np.cumsum(lengths) + lengths, lengths)
        shares = self._weights[inside] * np.repeat(weights, lengths)
        return np.bincount(self._texts[inside], shares, self._count).astype(np.float64)


def _rarity(found: npt.NDArray[np.generic], count: int) -> Numbers:
    """Return the weight of features that so many of `count` texts hold."""
    return np.log((1 + count) / (1 + found.astype(np.float64))) + 1


def _words(folded: Sequence[str]) -> tuple[Keys, Places]:
    """Return a key for each word of each text, and the text's number."""
    split = [text.split(" ") if text else [] for text in folded]
    keys = [zlib.crc32(word.encode("utf-8", "surrogatepass")) for words in split for word in words]
    return np.array(keys, np.uint64), np.repeat(np.arange(len(split)), [len(words) for words in split])


def _runs(folded: Sequence[str]) -> tuple[Keys, Places]:
    """Return a key for each run of characters of each text, blanks at its ends included, and the text's number."""
    together = "".join(f"{BREAK} {text} " if text else BREAK for text in folded) + BREAK
    codes = np.frombuffer(together.encode("utf-32-le", "surrogatepass"), np.uint32).astype(np.uint64)
    breaks = codes == ord(BREAK)
    owner = np.cumsum(breaks) - 1
    keys, texts = [np.zeros(0, np.uint64)], [np.zeros(0, np.int64)]
    for size in RUNS:
        count = max(0, len(codes) - size + 1)
        key, within = np.full(count, size, np.uint64), np.ones(count, bool)
        for place in range(size):
            key = (key ^ codes[place : place + count]) * FACTOR
            key ^= key >> np.uint64(29)
            within &= ~breaks[place : place + count]
        keys.append(key[within])
        texts.append(owner[:count][within])
    return np.concatenate(keys), np.concatenate(texts)
