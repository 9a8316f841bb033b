"""What readers make of files: records with their place, and a report of what was left out or found odd."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field

from gpt2chat.conversation import Message

MOST_PLACES = 1000  # of each kind that are kept; all are counted


@dataclass(frozen=True)
class Record:
    """One document of a file: a conversation (messages) or a text (str), and where it stands."""

    place: str
    content: tuple[Message, ...] | str


@dataclass
class Report:
    """What reading and rendering left out or found odd: kind -> its count, and its first places."""

    found: dict[str, list[str]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, place: str) -> None:
        """Note one more finding."""
        self.counts[kind] += 1
        places = self.found.setdefault(kind, [])
        if len(places) < MOST_PLACES:
            places.append(place)

    def lines(self) -> list[str]:
        """Return one line per kind, with its count and up to five places."""
        return [
            f"{self.counts[kind]} {kind}: {', '.join(map(os.path.basename, places[:5]))}{', …' if places[5:] else ''}"
            for kind, places in self.found.items()
        ]
