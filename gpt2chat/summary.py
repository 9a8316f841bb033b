"""Data in figures: how many, how long, how varied."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np

from gpt2chat.checking import percentile
from gpt2chat.conversation import Example
from gpt2chat.errors import counted
from gpt2chat.records import Record
from gpt2chat.tokenizer import Tokenizer

MOST_KNOWN = 1 << 18  # different words, and answers, that are told apart
COMMON = 5


class Summary:
    """Counts what there is in records; its memory does not grow with their number."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.counts: Counter[str] = Counter()
        self.lengths: dict[str, Counter[int]] = {}
        self.words: set[str] = set()
        self.answers: Counter[str] = Counter()
        self.used = np.zeros(tokenizer.vocab_size, bool)

    def add(self, record: Record, example: Example) -> None:
        """Count one record and what it is rendered to."""
        content = record.content
        self.counts["tokens"] += len(example.ids)
        self.counts["learnt_tokens"] += example.learnt
        ids = np.asarray(example.ids)
        self.used[ids[ids < len(self.used)]] = True  # not those that the template adds
        self._length("tokens per record", len(example.ids))
        if isinstance(content, str):
            self.counts["texts"] += 1
            self._said(content)
            return
        self.counts["conversations"] += 1
        self._length("messages per conversation", len(content))
        for message in content:
            self.counts[f"{message.role}_messages"] += 1
            words = self._said(message.content)
            if message.role != "system":
                self._length(f"words per {'question' if message.role == 'user' else 'answer'}", words)
            if message.role == "assistant" and (message.content in self.answers or len(self.answers) < MOST_KNOWN):
                self.answers[message.content] += 1

    def _said(self, text: str) -> int:
        words = text.casefold().split()
        self.counts["characters"] += len(text)
        self.counts["words"] += len(words)
        if len(self.words) < MOST_KNOWN:
            self.words.update(words)
        return len(words)

    def _length(self, kind: str, value: int) -> None:
        self.lengths.setdefault(kind, Counter())[value] += 1

    def to_dict(self) -> dict[str, Any]:
        """Return the figures for JSON."""
        shares = {"median": 0.5, "of_ten_nine_below": 0.9, "longest": 1.0}
        return {
            **self.counts,
            "different_words": len(self.words),
            "different_tokens": int(self.used.sum()),
            "lengths": {
                kind: {name: percentile(counts, share) for name, share in shares.items()}
                for kind, counts in self.lengths.items()
            },
            "common_answers": [[answer, count] for answer, count in self.answers.most_common(COMMON) if count > 1],
        }

    def lines(self) -> list[str]:
        """Return the figures in words."""
        counts, said = self.counts, list[str]()
        said.append(f"{counted(counts['conversations'], 'conversation')}, {counted(counts['texts'], 'text')}")
        roles = {"system_messages": "system prompt", "user_messages": "question", "assistant_messages": "answer"}
        if counts["conversations"]:
            said.append(", ".join(counted(counts[role], name) for role, name in roles.items() if counts[role]))
        known = "at least " if len(self.words) >= MOST_KNOWN else ""
        said.append(
            f"{counted(counts['words'], 'word')}, {known}{len(self.words)} different; {counts['characters']} characters"
        )
        each = counts["characters"] / max(1, counts["tokens"])
        said.append(
            f"{counts['tokens']} tokens with marks, {counts['learnt_tokens']} learnt; {each:.1f} characters in each; "
            f"{int(self.used.sum())} of the {len(self.used)} in the vocabulary"
        )
        for kind, values in self.to_dict()["lengths"].items():
            median, most, longest = values.values()
            said.append(f"{kind}: median {median}, nine of ten up to {most}, longest {longest}")
        for answer, count in self.answers.most_common(COMMON):
            if count > 1:
                said.append(f"{count} times the answer {answer[:60]!r}")
        return said
