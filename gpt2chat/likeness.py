"""What makes two texts the same, or nearly: digests that ignore case and marks, and MinHash over pairs of words."""

from __future__ import annotations

import tempfile
import zlib
from array import array
from collections.abc import Iterator, Sequence
from typing import IO

import numpy as np

from gpt2chat.conversation import Message

NO_WORD = bytes(byte for byte in range(128) if not (chr(byte).isalnum() or chr(byte) == "_"))
SPACED = bytes.maketrans(NO_WORD, b" " * len(NO_WORD))
MARKS = [mark.encode() for mark in "‘’“”„«»–—…¿¡、。，！？\u00a0"]
BETWEEN = "\x1e"  # texts that are looked at together
MASK = (1 << 64) - 1
KEPT = 1 << 18  # digests that are kept at hand; more go to a temporary file
PIECE = 1 << 19  # digests that are written to it, and compared, at a time
BANDS, ROWS = 8, 4  # of a MinHash: texts that share 80 % of their pairs of words meet in one of the bands at 98 %
NEAR = 0.8  # share of the pairs of words, of those of both texts, from which on two are nearly the same


def digest(content: Sequence[Message] | str) -> int:
    """Return 64 bits that tell texts or conversations apart within this process."""
    if isinstance(content, str):
        return hash(content) & MASK
    return hash(tuple([(message.role, message.content, message.trained) for message in content])) & MASK


def likeness(text: str) -> int:
    """Return a digest that texts share which differ only in case, marks and blanks."""
    return likenesses([text.casefold()])[0]


def likenesses(folded: Sequence[str]) -> list[int]:
    """Return the `likeness` of texts of which the case is folded already."""
    together = BETWEEN.join(folded)
    if together.count(BETWEEN) >= len(folded) > 0:
        return likenesses([text.replace(BETWEEN, "") for text in folded])
    data = together.encode("utf-8", "replace").translate(None, NO_WORD.replace(BETWEEN.encode(), b""))
    parts = _replace_marks(data, b"").split(BETWEEN.encode())
    return [hash(part) & MASK for part in parts] if folded else []


def _replace_marks(data: bytes, by: bytes) -> bytes:
    for mark in MARKS if not data.isascii() else ():
        data = data.replace(mark, by)
    return data


class Repeats:
    """Finds what occurs again among any number of digests, in constant memory.

    The first quarter of a million are kept at hand. What comes after and is not among them goes to a temporary file,
    where repeats can only be counted, at the end.
    """

    def __init__(self) -> None:
        self._seen: set[int] = set()
        self._late = array("Q")
        self._file: IO[bytes] | None = None

    def __contains__(self, found: int) -> bool:
        return found in self._seen

    def __bool__(self) -> bool:
        return bool(self._seen)

    @property
    def beyond(self) -> int:
        """How many are no longer at hand."""
        return len(self._late) + (self._file.tell() // 8 if self._file else 0)

    @property
    def overflowed(self) -> bool:
        """Whether some are no longer at hand."""
        return len(self._seen) >= KEPT

    def add(self, found: int) -> bool:
        """Take a digest; return whether it is known to be a repeat."""
        if found in self._seen:
            return True
        if len(self._seen) < KEPT:
            self._seen.add(found)
            return False
        self._late.append(found)
        if len(self._late) >= PIECE:
            self._file = self._file or tempfile.TemporaryFile()  # noqa: SIM115 - closed by `late`
            self._late.tofile(self._file)
            del self._late[:]
        return False

    def late(self) -> int:
        """Return how many repeats there are among those that were not at hand, and forget those."""
        total = sum(len(piece) for piece in self._pieces())
        parts = -(-total // PIECE)
        repeats = 0
        for part in range(parts):  # of the range of digests, so that equal ones meet
            shift = np.uint64(32)
            found = [piece[(piece >> shift) * parts >> shift == part] for piece in self._pieces()]
            own = np.sort(np.concatenate(found))
            repeats += int(np.count_nonzero(own[1:] == own[:-1]))
        if self._file is not None:
            self._file.close()
        self._file, self._late = None, array("Q")
        return repeats

    def _pieces(self) -> Iterator[np.ndarray]:
        if self._file is not None:
            self._file.flush()
            self._file.seek(0)
            while data := self._file.read(8 * PIECE):
                yield np.frombuffer(data, np.uint64)
        if self._late:
            yield np.array(self._late, np.uint64)


class NearRepeats:
    """Finds texts of nearly the same words (MinHash with bands: Broder 1997), among a limited number of them."""

    MOST = 2_000_000  # words

    def __init__(self) -> None:
        self._places: list[str] = []
        self._words, self._lengths = array("I"), array("I")

    @property
    def full(self) -> bool:
        """Whether no more texts are taken."""
        return len(self._words) >= self.MOST

    def __len__(self) -> int:
        return len(self._places)

    def add(self, folded: str, place: str) -> None:
        """Take a text whose case is folded, and that repeats no earlier one exactly."""
        if self.full:
            return
        words = _replace_marks(folded.encode("utf-8", "replace").translate(SPACED), b" ").split()
        if len(words) < 4:  # one pair in common, or what looks like one, is no likeness
            return
        self._places.append(place)
        self._lengths.append(len(words))
        self._words.extend(map(zlib.crc32, words))

    def found(self) -> Iterator[tuple[str, str]]:
        """Yield the places of each text that is nearly an earlier one, and of that one, in the order of the texts."""
        if len(self) < 2:
            return
        grams, starts = self._pairs()
        ends = np.append(starts[1:], len(grams))
        like: dict[int, int] = {}
        for first, second in self._candidates(grams, starts):
            if second not in like:
                one, other = (grams[starts[i] : ends[i]] for i in (first, second))
                shared = len(np.intersect1d(one, other, assume_unique=True))
                if shared >= NEAR * (len(one) + len(other) - shared):
                    like[second] = first
        for second in sorted(like):
            yield self._places[second], self._places[like[second]]

    def _pairs(self) -> tuple[np.ndarray, np.ndarray]:
        """Return the hashes of each text's pairs of neighbouring words, each once and in order; and its start."""
        words, texts = np.array(self._words), np.arange(len(self), dtype=np.uint64) << np.uint64(32)
        pairs = np.repeat(texts, self._lengths)
        inside = pairs[1:] == pairs[:-1]
        pairs[1:] |= words[:-1] * np.uint32(0x9E37_79B1) + words[1:]
        ordered = pairs[1:][inside]
        ordered.sort()
        ordered = ordered[np.append(True, ordered[1:] != ordered[:-1])]
        starts = np.searchsorted(ordered, texts)
        return ordered.astype(np.uint32), starts

    def _candidates(self, grams: np.ndarray, starts: np.ndarray) -> Iterator[tuple[int, int]]:
        """Yield pairs of texts, the earlier one first, whose hashes of the least pair agree throughout a band."""
        rng = np.random.default_rng(0)
        for _ in range(BANDS):
            keys = np.zeros(len(starts), np.uint64)
            for _ in range(ROWS):
                factor, offset = rng.integers(1, 1 << 63, 2, np.uint64) | np.uint64(1)
                least = np.minimum.reduceat((grams * factor + offset) >> np.uint64(32), starts)
                keys = (keys ^ least) * np.uint64(0x9E37_79B9_7F4A_7C15)
            order = np.argsort(keys, kind="stable")
            same = np.flatnonzero(keys[order][1:] == keys[order][:-1])
            first = -1
            for at in same.tolist():  # of texts with the same key, each meets the first and the one before it
                if not (at and keys[order[at]] == keys[order[at - 1]]):
                    first = at
                yield int(order[first]), int(order[at + 1])
                yield int(order[at]), int(order[at + 1])
