"""What readers make of files: records with their place, and a report of what was left out or found odd."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass, field

from gpt2chat.conversation import Message

MOST_KINDS = 200  # of findings that are told apart
MOST_PLACES = 1000  # of each kind that are kept; all are counted


@dataclass(slots=True)
class Record:
    """One document of a file: a conversation (messages) or a text (str), and where it stands."""

    place: str
    content: tuple[Message, ...] | str


@dataclass
class Faults:
    """What was refused where reading goes on behind a fault: all are counted, the first are kept."""

    kept: list[str] = field(default_factory=list)
    count: int = 0
    mended: int = 0
    groups: Counter[str] = field(default_factory=Counter)

    def add(self, fault: object, mended: bool = False, group: str | None = None) -> None:
        """Note one more; `mended` says that what it is about is used all the same. Of a `group` the first is kept."""
        self.count += 1
        self.mended += mended
        if group is not None:
            self.groups[group] += 1
        if len(self.kept) < MOST_PLACES and (group is None or self.groups[group] == 1):
            self.kept.append(str(fault))

    def lines(self) -> list[str]:
        """Return what was kept, and how many more there are."""
        more = [f"{count - 1} more {group}" for group, count in self.groups.items() if count > 1]
        rest = self.count - len(self.kept) - sum(count - 1 for count in self.groups.values())
        return [*self.kept, *more, *([f"{rest} more of other kinds"] if rest else [])]


@dataclass
class Report:
    """What reading and rendering left out or found odd: kind -> its count, and its first places."""

    found: dict[str, list[str]] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)

    def add(self, kind: str, place: str) -> None:
        """Note one more finding."""
        if kind not in self.found and len(self.found) >= MOST_KINDS:
            kind = "more findings, of too many kinds to list"
        self.counts[kind] += 1
        places = self.found.setdefault(kind, [])
        if len(places) < MOST_PLACES:
            places.append(place)

    def note(self, kind: str, count: int) -> None:
        """Set a count of findings whose places are not known."""
        self.counts[kind] = count
        self.found[kind] = []

    def lines(self) -> list[str]:
        """Return one line per kind, with its count and up to five places."""
        lines, folder = [], _common_folder({place for places in self.found.values() for place in places})
        for kind, places in self.found.items():
            shown = ", ".join([place.removeprefix(folder).lstrip(os.sep) for place in places[:5]])
            lines.append(f"{self.counts[kind]} {kind}{': ' if places else ''}{shown}{', …' if places[5:] else ''}")
        return lines


def _common_folder(places: set[str]) -> str:
    """Return the folder that all places are in, so that what is shown behind it tells them apart."""
    try:
        return os.path.commonpath({os.path.dirname(place) for place in places})
    except ValueError:  # of places from the root and from here, or of none
        return ""
