"""Word vectors from plain text: singular vectors of positive pointwise mutual information (Levy and Goldberg 2014)."""

from __future__ import annotations

import json
import lzma
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import scipy.sparse as sparse

from gpt2chat.encoder import words

WINDOW = 5  # words on either side, the near ones counting more
PART = 2_000_000  # words that are counted at once
TEXTS = ("text/classic-books.txt.xz", "text/wikinews-en.txt.xz", "text/tinystories-sample.txt.xz")
TALKS = ("self-dialogue-corpus", "topical-chat", "taskmaster-4")
PAIRS = ("llms-from-scratch-instructions", "chatterbot-corpus-english", "tinytalks", "personality-chat")


def texts(datasets: Path, written: Path) -> Iterator[str]:
    """Yield paragraphs, conversations and pairs of the public data sets, and what was written for this project."""
    for name in TEXTS:
        text = lzma.decompress((datasets / name).read_bytes()).decode("utf-8")
        yield from re.split(r"\n\s*\n|<\|endoftext\|>", text[: len(text) // 3] if "books" in name else text)
    for name in TALKS:
        for path in sorted((datasets / name).glob("*.jsonl.xz")):
            for line in lzma.decompress(path.read_bytes()).decode("utf-8").splitlines():
                yield " . ".join(message["content"] for message in json.loads(line)["messages"])
    for name in PAIRS:
        for path in sorted((datasets / name).glob("*.json")):
            yield from (f"{row['user']} . {row['bot']}" for row in json.loads(path.read_text("utf-8")))
    for path in sorted(written.glob("*/*.txt")):
        yield from path.read_text("utf-8").split("\n\n")


def word_vectors(documents: Iterator[str], size: int, width: int) -> tuple[list[str], np.ndarray, np.ndarray]:
    """Return the most frequent words, their counts, and a unit vector for each, (size, width)."""
    split = [words_of(text) for text in documents]
    counts = Counter(word for each in split for word in each)
    spelt = [word for word, _ in counts.most_common(size)]
    number = {word: at for at, word in enumerate(spelt)}
    together, part, length = sparse.csr_matrix((size, size), dtype=np.float32), list[list[int]](), 0
    for each in [*split, None]:
        if each is not None:
            part.append([*(number.get(word, -1) for word in each), -2])
            length += len(each)
        if length > PART or each is None:
            together = together + _counted(np.concatenate([np.array(row) for row in part]), size)
            part, length = [], 0
    vectors = _singular(_information(together + together.T), width)
    vectors /= np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-9)
    return spelt, np.array([counts[word] for word in spelt]), vectors.astype(np.float32)


def words_of(text: str) -> list[str]:
    """Return all words of a text that may be longer than a question."""
    return [word for line in re.split(r"(?<=[.!?;])\s|\n", text) for word in words(line)]


def _counted(numbers: np.ndarray, size: int) -> sparse.csr_matrix:
    """Return how often words stand near each other in documents that end with -2."""
    document, total = np.cumsum(numbers == -2), sparse.csr_matrix((size, size), dtype=np.float32)
    for apart in range(1, WINDOW + 1):
        left, right = numbers[:-apart], numbers[apart:]
        near = (left >= 0) & (right >= 0) & (document[:-apart] == document[apart:])
        share = np.full(int(near.sum()), 1 / apart, np.float32)
        total = total + sparse.coo_matrix((share, (left[near], right[near])), shape=(size, size)).tocsr()
    return total


def _information(together: sparse.csr_matrix) -> sparse.csr_matrix:
    """Return the positive part of the pointwise mutual information, contexts smoothed by the power 0.75."""
    sums = np.asarray(together.sum(1)).ravel()
    contexts, entries = sums**0.75, together.tocoo()
    expected = sums[entries.row] * contexts[entries.col] / contexts.sum()
    information = np.log(np.maximum(1e-9, entries.data / expected))
    kept = information > 0
    place = entries.row[kept], entries.col[kept]
    return sparse.csr_matrix((information[kept], place), shape=together.shape, dtype=np.float32)


def _singular(matrix: sparse.csr_matrix, width: int) -> np.ndarray:
    """Return left singular vectors times the root of their values (Halko et al. 2011)."""
    basis = np.random.default_rng(0).standard_normal((matrix.shape[0], width + 20)).astype(np.float32)
    for _ in range(3):
        basis, _ = np.linalg.qr(matrix @ (matrix.T @ basis))
    left, values, _ = np.linalg.svd((matrix.T @ basis).T, full_matrices=False)
    return (basis @ left[:, :width]) * values[:width] ** 0.5
