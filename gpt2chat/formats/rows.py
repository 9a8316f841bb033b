"""The kinds of rows that people keep conversations and texts in -> messages or text.

A kind is known by the keys of a file's first row. user/bot is our own form; `messages` OpenAI's; `conversations` that
of ShareGPT; instruction/input/output Alpaca's; prompt/completion that of completion fine-tuning.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from gpt2chat.conversation import Message
from gpt2chat.errors import DataError
from gpt2chat.records import Record, Report
from gpt2chat.tokenizer import END_OF_TEXT, LONE_SURROGATE

Messages = tuple[Message, ...]
Content = Messages | str
SPEAKERS = {
    "user": "user",
    "human": "user",
    "customer": "user",
    "assistant": "assistant",
    "bot": "assistant",
    "gpt": "assistant",
    "chatgpt": "assistant",
    "agent": "assistant",
    "system": "system",
    "developer": "system",
}
# Names of the two sides of a pair, in rows and in the header of a table.
PAIRS = (("user", "bot"), ("question", "answer"), ("prompt", "completion"), ("prompt", "response"), ("input", "output"))


@dataclass(frozen=True)
class Kind:
    """A kind of rows: its name, the keys that tell it, a line that shows it, and how a row becomes content."""

    name: str
    keys: tuple[str, ...]
    shape: str
    read: Callable[[Mapping[str, Any]], Content]
    used: tuple[str, ...] = ()
    item: frozenset[str] = frozenset()  # the keys that are used of the messages in a row

    @cached_property
    def needed(self) -> frozenset[str]:
        """The keys without which a row is not of this kind."""
        return frozenset(self.keys)

    @cached_property
    def known(self) -> frozenset[str]:
        """The keys of a row that are used, or tell where it comes from."""
        return frozenset((*self.keys, *self.used, "provenance"))

    def fits(self, keys: Iterable[str]) -> bool:
        """Whether rows with these keys are of this kind."""
        return self.needed.issubset(keys)


def _text(row: Mapping[str, Any], key: str, optional: bool = False) -> str:
    value = row.get(key)
    if optional and value in (None, ""):
        return ""
    if not isinstance(value, str):
        raise DataError(f"{key}: expected text, got {_shown(value)}")
    return value


def _system(row: Mapping[str, Any]) -> list[Message]:
    """Return the system prompt that stands beside the turns of a row, if there is one."""
    system = _text(row, "system", optional=True)
    return [Message("system", system.strip())] if system else []


def _pair(user: str, bot: str) -> Callable[[Mapping[str, Any]], Content]:
    def read(row: Mapping[str, Any]) -> Content:
        if isinstance(row.get(user), list):
            raise DataError(f"{user}: expected text or a list of texts, got {_shown(row[user])}")
        return (*_system(row), Message("user", _text(row, user).strip()), Message("assistant", _text(row, bot).strip()))

    return read


def _messages(row: Mapping[str, Any]) -> Content:
    return tuple([_message(item, number, "role", "content") for number, item in _items(row, "messages")])


def _sharegpt(row: Mapping[str, Any]) -> Content:
    items = _items(row, "conversations")
    return (*_system(row), *[_message(item, number, *_sharegpt_keys(item)) for number, item in items])


def _sharegpt_keys(item: Any) -> tuple[str, str]:
    """Return the keys of who speaks and what: some programs write those of OpenAI here."""
    return (
        ("role", "content") if isinstance(item, dict) and "role" in item and "from" not in item else ("from", "value")
    )


def _alpaca(row: Mapping[str, Any]) -> Content:
    messages = []
    if system := _text(row, "system", optional=True).strip():
        messages.append(Message("system", system))
    for number, turn in _items(row, "history") if row.get("history") else ():
        if not isinstance(turn, list) or len(turn) != 2 or not all(isinstance(text, str) for text in turn):
            raise DataError(f"history {number}: expected [question, answer], got {_shown(turn)}")
        messages += [Message("user", turn[0].strip()), Message("assistant", turn[1].strip())]
    parts = [_text(row, "instruction").strip(), _text(row, "input", optional=True).strip()]
    question = "\n".join(part for part in parts if part)
    return (*messages, Message("user", question), Message("assistant", _text(row, "output").strip()))


def _items(row: Mapping[str, Any], key: str) -> Iterable[tuple[int, Any]]:
    items = row.get(key)
    if not isinstance(items, list):
        raise DataError(f"{key}: expected a list, got {_shown(items)}")
    return enumerate(items, 1)


def _message(item: Any, number: int, role: str, content: str) -> Message:
    """Read one message; a weight of 0 keeps an answer out of the loss."""
    says, who = (item.get(content), item.get(role)) if type(item) is dict else (None, None)
    if type(says) is list:
        says = _parts(says)
    if type(says) is not str or type(who) is not str:
        raise DataError(f'message {number}: expected {{"{role}": str, "{content}": str}}, got {_shown(item)}')
    speaker = SPEAKERS.get(who) or SPEAKERS.get(who.lower())
    if speaker is None:
        raise DataError(f"message {number}: {role}: expected user, assistant or system, got {who!r}")
    if "weight" not in item:
        return Message(speaker, says.strip())
    weight = item["weight"]
    if weight not in (0, 1):
        raise DataError(f"message {number}: weight: expected 0 or 1, got {_shown(weight)}")
    return Message(speaker, says.strip(), bool(weight))


def _parts(parts: list[Any]) -> str | None:
    """Return the text of OpenAI's content parts; None where one is no text."""
    texts = [part.get("text") for part in parts if isinstance(part, dict) and part.get("type") == "text"]
    whole = len(texts) == len(parts) and all(isinstance(text, str) for text in texts)
    return "".join(map(str, texts)) if whole else None


def _plain_text(row: Mapping[str, Any]) -> Content:
    return _text(row, "text").strip("\n")


MESSAGE = frozenset({"weight"})
KINDS = (
    Kind(
        "messages",
        ("messages",),
        '{"messages": [{"role": "user", "content": ...}, ...]}',
        _messages,
        (),
        MESSAGE | {"role", "content"},
    ),
    Kind(
        "sharegpt",
        ("conversations",),
        '{"conversations": [{"from": "human", "value": ...}, ...]}',
        _sharegpt,
        ("system",),
        MESSAGE | {"from", "value", "role", "content"},
    ),
    Kind(
        "alpaca",
        ("instruction", "output"),
        '{"instruction": ..., "input": ..., "output": ...}',
        _alpaca,
        ("input", "system", "history"),
    ),
    *(Kind("pairs", pair, f'{{"{pair[0]}": str, "{pair[1]}": str}}', _pair(*pair), ("system",)) for pair in PAIRS),
    Kind("text", ("text",), '{"text": ...}', _plain_text),
)


PAIR = next(kind for kind in KINDS if kind.name == "pairs")


def kind_of(keys: Iterable[str], place: str, wanted: str | None = None) -> Kind:
    """Return the kind of rows with these keys; raises DataError with the kinds there are."""
    keys = list(keys)
    for kind in KINDS:
        if kind.fits(keys) and wanted in (None, kind.name):
            return kind
    kinds = [kind for kind in KINDS if wanted in (None, kind.name)]
    if any(kind.fits(key.lower() for key in keys) for kind in kinds):
        raise DataError(f"{place}: expected keys in lower case, got {', '.join(map(repr, keys))}: rename them")
    shapes = " or ".join(dict.fromkeys(kind.shape for kind in kinds[:5]))
    raise DataError(f"{place}: expected {shapes}, got the keys {', '.join(map(repr, keys)) or 'of an empty record'}")


def phrasings(row: Any, kind: Kind, place: str) -> Iterator[tuple[str, Any]]:
    """Yield place and row for each way in which the question of a pair is asked: `"user": ["…", "…"]`."""
    asked = row.get(kind.keys[0]) if kind.name == "pairs" and isinstance(row, dict) else None
    if not isinstance(asked, list) or not asked or not all(isinstance(text, str) for text in asked):
        yield place, row  # which is refused below where it is no text
        return
    for number, text in enumerate(asked, 1):
        yield f"{place}, phrasing {number}", {**row, kind.keys[0]: text}


def read_row(row: Any, kind: Kind, place: str, report: Report) -> Record | None:
    """Read one row; None, with a note, where a side has no text. Raises DataError with the place."""
    if not isinstance(row, dict) or not kind.fits(row):
        raise DataError(f"{place}: expected {kind.shape}, got {_shown(row)}")
    try:
        content = kind.read(row)
    except DataError as error:
        raise DataError(f"{place}: {error}") from None
    for key in sorted(row.keys() - kind.known) if not kind.known.issuperset(row) else ():
        report.add(f"records with the key {key!r}, which is not used", place)
    for item in row[kind.keys[0]] if kind.item else ():
        for key in sorted(item.keys() - kind.item) if len(item) > 2 else ():
            report.add(f"messages with the key {key!r}, which is not used", place)
    return checked(content, place, report)


def checked(content: Content, place: str, report: Report) -> Record | None:
    """Refuse what cannot be learnt and name what is left out."""
    texts = [content] if isinstance(content, str) else [message.content for message in content]
    together = "\n".join(texts)
    if END_OF_TEXT in together:
        raise DataError(f"{place}: found {END_OF_TEXT}, which gpt2chat adds by itself: remove it")
    if "\0" in together:
        report.add("records with NUL characters, learnt as they are", place)
    if not together.isascii() and LONE_SURROGATE.search(together):
        report.add("records with half of a character (a lone surrogate), learnt as U+FFFD", place)
    if not isinstance(content, str):
        if not any(message.role == "assistant" and message.trained for message in content):
            report.add("records without an answer to learn, left out", place)
            return None
        if content[-1].role != "assistant":
            report.add("records that end with a question; it is not used", place)
            last = max(i for i, message in enumerate(content) if message.role == "assistant")
            content = content[: last + 1]
    if not all(texts) or not texts:
        report.add("records without text on one side, left out", place)
        return None
    return Record(place, content)


def pairs_to_messages(pairs: object) -> list[Message]:
    """Turn `[{"user", "bot"}]` given in Python into messages; raises DataError naming the index."""
    if not isinstance(pairs, Sequence) or isinstance(pairs, (str, bytes)):
        raise DataError(f'examples: expected a list of {{"user": str, "bot": str}}, got {type(pairs).__name__}')
    messages: list[Message] = []
    asked = (each for index, pair in enumerate(pairs) for each in phrasings(pair, PAIR, f"example {index}"))
    for place, pair in asked:
        record = read_row(pair, PAIR, place, Report())
        if record is None or isinstance(record.content, str):
            raise DataError(f"{place}: expected text on both sides, got {pair!r}")
        messages += record.content
    return messages


def _shown(value: Any) -> str:
    shown = json.dumps(value, ensure_ascii=False, default=repr)
    return shown if len(shown) <= 80 else shown[:77] + "..."
