"""Groups of questions with one meaning: written for this project, and intents of public data sets."""

from __future__ import annotations

import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).parent
WRITTEN = HERE.parent / "demo_model" / "data" / "questions"


@dataclass(frozen=True)
class Group:
    """Questions that one answer serves, of a domain in which other questions have other answers."""

    domain: str
    questions: tuple[str, ...]
    answer: str = ""


@dataclass(frozen=True)
class Faq:
    """What a small firm has in its list of questions, and questions of its customers that no answer fits."""

    groups: tuple[Group, ...]
    outside: tuple[str, ...]


def written() -> list[Group]:
    """Read the groups of questions that the demo's data holds."""
    return [g for path in sorted(WRITTEN.glob("*.txt")) for g in grouped(path.read_text("utf-8").splitlines())]


def grouped(lines: Sequence[str]) -> list[Group]:
    """Read `# domain`, `! answer` and the questions below it; an empty line ends a group."""
    groups, domain, answer, asked = list[Group](), "", "", list[str]()
    for line in [*lines, ""]:
        if line.startswith("# "):
            domain = line[2:].strip()
        elif line.startswith("! "):
            answer = line[2:].strip()
        elif line.strip():
            asked.append(line.strip())
        elif asked:
            groups.append(Group(domain, tuple(asked), answer))
            asked = []
    return groups


def faqs() -> list[Faq]:
    """Read lists of questions as firms have them: groups, and lines `? question` that none of the answers fits."""
    found = list[Faq]()
    for path in sorted((HERE / "faqs").glob("*.txt")):
        lines = path.read_text("utf-8").splitlines()
        groups = grouped([line for line in lines if not line.startswith("? ")])
        found.append(Faq(tuple(groups), tuple(line[2:].strip() for line in lines if line.startswith("? "))))
    return found


def intents(datasets: Path, name: str) -> list[Group]:
    """Read the intents of `clinc` or `hwu64`."""
    content = json.loads((datasets / "intents" / f"{name}.json").read_text("utf-8"))
    return [Group(name, tuple(asked)) for _, asked in sorted(content["intents"].items())]


def out_of_scope(datasets: Path) -> list[str]:
    """Return questions that no intent of CLINC150 fits."""
    return list(json.loads((datasets / "intents" / "clinc.json").read_text("utf-8"))["out_of_scope"])


def small_talk(datasets: Path) -> list[Group]:
    """Return the questions of personality-chat that have one reply, without those that `exact_reply.py` judges by."""
    rows = json.loads((datasets / "personality-chat" / "train.json").read_text("utf-8"))
    random.Random(0).shuffle(rows)
    replies: dict[str, list[str]] = {}
    for row in rows[round(len(rows) / 10) :]:
        replies.setdefault(row["bot"], []).append(row["user"])
    return [Group("small talk", tuple(asked)) for asked in replies.values() if len(asked) > 3]


def concepts() -> list[Group]:
    """Return words and phrases of one concept: `true synonyms | what hints at it`."""
    groups = list[Group]()
    for path in sorted((HERE / "words").glob("*.txt")):
        for line in path.read_text("utf-8").splitlines():
            entries = [entry.strip() for side in line.split("|") for entry in side.split(",")]
            if len(entries) > 2 and not line.startswith("#"):
                groups.append(Group("words", tuple(entries)))
    return groups


def near_misses() -> dict[str, list[tuple[str, str, str]]]:
    """Read, by domain: a question, one that asks for the same in other words, and one that asks for something else."""
    found: dict[str, list[tuple[str, str, str]]] = {}
    for path in sorted((HERE / "near_misses").glob("*.txt")):
        domain = ""
        for line in path.read_text("utf-8").splitlines():
            if line.startswith("# "):
                domain = line[2:].strip()
            elif line.strip():
                asked, same, other = (part.strip() for part in line.split("|"))
                found.setdefault(domain, []).append((asked, same, other))
    return found


def parted(groups: Sequence[Group], share: float, seed: int) -> tuple[list[Group], list[Group]]:
    """Return groups to learn and groups to judge: whole domains of the written ones, single intents of the others."""
    rng = random.Random(seed)
    domains = sorted({group.domain for group in groups})
    apart = set(rng.sample(domains, max(1, round(share * len(domains))))) if len(domains) > 3 else set()
    single = set() if apart else set(rng.sample(range(len(groups)), round(share * len(groups))))
    judged = [group for at, group in enumerate(groups) if group.domain in apart or at in single]
    return [group for group in groups if group not in judged], judged
