"""What readers make of files: records with their place, and a report of what was left out or found odd."""

from __future__ import annotations

import os
from dataclasses import dataclass, field

from gpt2chat.conversation import Message


@dataclass(frozen=True)
class Record:
    """One document of a file: a conversation (messages) or a text (str), and where it stands."""

    place: str
    content: tuple[Message, ...] | str


@dataclass
class Report:
    """What reading and rendering left out or found odd: kind -> places."""

    found: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, place: str) -> None:
        """Note one more finding."""
        self.found.setdefault(kind, []).append(place)

    def lines(self) -> list[str]:
        """Return one line per kind, with its count and up to five places."""
        return [
            f"{len(places)} {kind}: {', '.join(map(os.path.basename, places[:5]))}{', …' if len(places) > 5 else ''}"
            for kind, places in self.found.items()
        ]
