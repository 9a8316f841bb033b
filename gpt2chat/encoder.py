"""`QuestionEncoder`: a question -> a vector, near those of questions that ask for the same thing.

A bag of words: each word is a row of a table plus the mean of the rows of its runs of characters, so that a misspelt
or unknown word has a vector too; the weighted sum goes through one hidden layer. `recipes/question_encoder` trains it
by contrast on groups of questions with one meaning. It is as large as a picture, needs numpy alone, and knows English.
"""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

FILE = Path(__file__).with_name("assets") / "encoder.safetensors"
WORD = re.compile(r"[^\W_]+(?:'[a-z]+)?|[^\s\w]|_")
LETTER = re.compile(r"\b([a-z])-(?=[a-z]{2})")  # e-bike, t-shirt, x-ray
SHORT = {"u": "you", "ur": "your", "r": "are", "pls": "please", "plz": "please", "thx": "thanks", "thanx": "thanks"}
SHORT |= {
    "b4": "before",
    "cuz": "because",
    "tmrw": "tomorrow",
    "msg": "message",
    "pic": "picture",
    "info": "information",
}
SHORT |= {whole.replace("'", ""): whole for whole in ("what's", "where's", "when's", "who's", "how's", "that's", "i'm")}
SHORT |= {whole.replace("'", ""): whole for whole in ("don't", "can't", "doesn't", "isn't", "won't", "didn't", "i've")}
RUNS = (3, 4)  # characters of a word that have a row together
MOST_WORDS = 40  # of a question that are read
TOGETHER = 1024  # questions that are encoded at once
EPSILON = 1e-5

Vectors = npt.NDArray[np.float32]


class QuestionEncoder:
    """Turns questions into unit vectors (N, dimension), whose dot product says how alike their meanings are."""

    def __init__(self, tensors: dict[str, npt.NDArray[np.generic]]) -> None:
        """Take the tensors of the file: tables as int4 with a scale per row, the layer in float32."""
        self._words = _wide(tensors["words"], tensors["words.scale"])
        self._runs = _wide(tensors["runs"], tensors["runs.scale"])
        self._weights = np.exp(tensors["weights"].astype(np.float32))
        self._layer = {
            name: tensors[name].astype(np.float32) for name in ("skip", "into", "into.bias", "out", "out.bias")
        }
        self._rarity = np.append(tensors["rarity"].astype(np.float64), 1.0)
        self._mix, self._sure = tensors["mix"].astype(np.float64), tensors["sure"].astype(np.float64)
        spelt = tensors["spelling"].tobytes().decode("utf-8").split("\n")
        self._rows = {word: row for row, word in enumerate(spelt, 1)}  # row 0: a word that has none

    @classmethod
    def load(cls, path: Path = FILE) -> QuestionEncoder:
        """Read an encoder, by default the one that comes with the package."""
        return cls(load_file(path))

    def encode(self, questions: Sequence[str]) -> Vectors:
        """Return a unit vector for each question, (N, dimension)."""
        split = [words(question) or [""] for question in questions]
        known = {word: number for number, word in enumerate(dict.fromkeys(word for each in split for word in each))}
        weights = self._weights[[self._rows.get(word, 0) for word in known]]
        vectors = self._vectors(list(known)) * weights[:, None]
        parts = [np.zeros((0, len(self._layer["skip"])), np.float32)]
        for at in range(0, len(split), TOGETHER):
            some = split[at : at + TOGETHER]
            places = np.array([known[word] for each in some for word in each], np.int64)
            begins = np.cumsum([0, *(len(each) for each in some[:-1])])
            sums = np.add.reduceat(vectors[places], begins)
            scale = np.sqrt(np.add.reduceat(weights[places], begins) + 1e-6)
            parts.append(self._map(np.asarray(sums / scale[:, None], np.float32)))
        return np.concatenate(parts)

    def word_vectors(self, spelt: Sequence[str]) -> Vectors:
        """Return a unit vector for each word, (N, width)."""
        vectors = self._vectors(spelt)
        return np.asarray(vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9), np.float32)

    def rarity(self, spelt: Sequence[str]) -> npt.NDArray[np.float64]:
        """Return how rare each word is in English, from near 0 for the most usual to 1 for one that has no row."""
        return self._rarity[[self._rows.get(word, 0) - 1 for word in spelt]]

    def reads(self, questions: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Return whether each question is English as far as that can be told: half of its words have a row, (N,)."""
        return np.array([self._reads(words(question)) for question in questions], bool)

    def knows(self, spelt: Sequence[str]) -> npt.NDArray[np.bool_]:
        """Return whether each word says anything: one or two characters without a row, as of another script, do not."""
        return np.array([word in self._rows or len(word) > 2 for word in spelt], bool)

    def _reads(self, spelt: Sequence[str]) -> bool:
        spelt = [word for word in spelt if word.isalpha()] or spelt
        return 2 * sum(word in self._rows for word in spelt) >= max(1, len(spelt))

    def mixed(self, likeness: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
        """Return the sum of the three likenesses (3, N) of `matching`, each with the weight that served best."""
        return self._mix @ likeness

    def confidence(self, evidence: npt.NDArray[np.float64], read: bool = True) -> npt.NDArray[np.float64]:
        """Return how likely each answer is right, (N,), given the evidence (N, K) of `matching`.

        Where the question is not `read`, spelling is all that there is to go by.
        """
        weights = self._sure[0 if read else 1]
        sums = weights[0] + evidence @ weights[1:]
        return np.asarray(1 / (1 + np.exp(-np.clip(sums, -50, 50))), np.float64)

    def _vectors(self, spelt: Sequence[str]) -> Vectors:
        rows = np.array([self._rows.get(word, 0) for word in spelt], np.int64)
        if not len(rows):
            return np.zeros((0, self._words.shape[1]), np.float32)
        return np.asarray(self._words[rows] + self._spelling(spelt), np.float32)

    def _spelling(self, spelt: Sequence[str]) -> Vectors:
        """Return the means of the rows of words' runs of characters, ends marked; 0 for words of one or two."""
        numbers = [list(runs(word)) for word in spelt]
        sizes = np.array([len(each) for each in numbers], np.int64)
        found = np.zeros((len(spelt), self._runs.shape[1]), np.float32)
        if sizes.any():
            rows = np.array([number for each in numbers for number in each], np.int64) % (len(self._runs) - 1) + 1
            begins = np.cumsum(sizes) - sizes
            long = sizes > 0
            found[long] = np.add.reduceat(self._runs[rows], begins[long]) / sizes[long, None]
        return found

    def _map(self, sums: Vectors) -> Vectors:
        """Layer norm, a hidden layer beside a straight way, and length 1."""
        centred = sums - sums.mean(1, keepdims=True)
        normal = centred / np.sqrt((centred**2).mean(1, keepdims=True) + EPSILON)
        layer = self._layer
        hidden = _gelu(normal @ layer["into"].T + layer["into.bias"])
        mapped = normal @ layer["skip"].T + hidden @ layer["out"].T + layer["out.bias"]
        return np.asarray(mapped / np.maximum(np.linalg.norm(mapped, axis=1, keepdims=True), 1e-12), np.float32)


@cache
def encoder() -> QuestionEncoder:
    """Return the encoder that comes with the package, read once."""
    return QuestionEncoder.load()


def words(text: str, most: int = MOST_WORDS) -> list[str]:
    """Return the words and marks of a text in lower case, the first ones of a long one; short forms written out."""
    plain = LETTER.sub(r"\1", text.lower().replace("’", "'"))
    return [SHORT.get(word, word) for word in WORD.findall(plain)[:most]]


def runs(word: str) -> Iterable[int]:
    """Yield a number for each run of characters of a word, its ends marked; none for words of one or two."""
    marked = f"<{word}>"
    for size in RUNS if len(word) > 2 else ():
        for at in range(len(marked) - size + 1):
            yield zlib.crc32(marked[at : at + size].encode("utf-8", "surrogatepass"))


def narrow(table: Vectors) -> tuple[npt.NDArray[np.uint8], Vectors]:
    """Return rows as int4, two numbers in a byte, the even places in its low half, with the scale of each row."""
    scale = np.maximum(np.abs(table).max(1, keepdims=True), 1e-12) / 7
    codes = (np.rint(table / scale).astype(np.int8) + 8).astype(np.uint8)
    return codes[:, 0::2] | (codes[:, 1::2] << 4), scale.astype(np.float32)


def _wide(codes: npt.NDArray[np.generic], scale: npt.NDArray[np.generic]) -> Vectors:
    """Return the rows that `narrow` made narrow."""
    table = np.empty((codes.shape[0], 2 * codes.shape[1]), np.float32)
    numbers = codes.astype(np.uint8)
    table[:, 0::2], table[:, 1::2] = numbers & 15, numbers >> 4
    return (table - 8) * scale.astype(np.float32)


def _gelu(x: Vectors) -> Vectors:
    """The tanh form of GELU, as numpy has no erf."""
    return np.asarray(0.5 * x * (1 + np.tanh(0.7978845608 * (x + 0.044715 * x**3))), np.float32)
