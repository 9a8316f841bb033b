"""A file of prompts -> their answers, in order, many at a time."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from collections import deque
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gpt2chat.checkpoint import Checkpoint
from gpt2chat.conversation import Message, fit_context, render_prompt
from gpt2chat.engine import Engine
from gpt2chat.errors import ConfigError, ContextError, DataError
from gpt2chat.generation import stream_text
from gpt2chat.grounding import is_faq
from gpt2chat.matching import Matcher, as_taught, asks_taught
from gpt2chat.sampling import GenerationConfig
from gpt2chat.streams import Stream
from gpt2chat.templates import Template
from gpt2chat.tokenizer import Tokenizer

ASKED = ("prompt", "user", "messages")  # of which a row has one
NAMES = ("id", "custom_id")
OPTIONS = {field.name: field.name for field in dataclasses.fields(GenerationConfig)} | {"max_tokens": "max_new_tokens"}
BEGIN = b'{"id": '  # of the line of an answer
ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Job:
    """One row: what is asked of which model, and how."""

    id: str | int
    ids: list[int]
    config: GenerationConfig
    stop: tuple[str, ...]
    lead: str
    model: str

    @property
    def key(self) -> str:
        """Return a checksum that tells it apart from any other question, model or way to answer."""
        what = (self.id, self.ids, self.config, self.stop, self.model)
        return hashlib.sha256(repr(what).encode()).hexdigest()[:12]


@dataclass(frozen=True)
class Setting:
    """What all rows share: the model's facts, how conversations are written, how answers are drawn.

    `model` tells the weights apart from any others. Raises ConfigError when the model lacks ids of the template.
    """

    loaded: Checkpoint
    template: Template
    config: GenerationConfig
    model: str
    tokenizer: Tokenizer = dataclasses.field(default_factory=Tokenizer.gpt2)
    matcher: Matcher | None = None  # reads a question for a taught answer in other words as it was taught

    def __post_init__(self) -> None:
        self.template.check_ids(self.loaded.config.vocab_size, self.tokenizer)


def jobs(path: Path, name: str, setting: Setting) -> Iterator[Job]:
    """Yield the rows of a JSON Lines file; raises DataError naming the line of a fault.

    A row has `prompt` (text to go on with), `user` (a message) or `messages` (a conversation), and may have an `id`,
    `stop` strings and the options of GenerationConfig. Row n is drawn with the seed of `setting` plus n.
    """
    try:
        with path.open(encoding="utf-8-sig") as file:
            count = 0
            for number, line in enumerate(file, 1):
                if line.strip():
                    yield _job(line, count, f"{name}:{number}", setting)
                    count += 1
    except OSError as error:
        raise DataError(f"{name}: cannot be read: {error.strerror or error}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{name}: expected UTF-8, got the byte {error.object[error.start]:#04x}") from error


def _job(line: str, number: int, place: str, setting: Setting) -> Job:
    try:
        row = json.loads(line)
    except (ValueError, RecursionError) as error:
        raise DataError(f"{place}: expected one JSON object per line: {error}") from error
    if not isinstance(row, dict):
        raise DataError(f"{place}: expected a JSON object such as {{'prompt': '…'}}, got {_short(row)}")
    known = {*ASKED, *NAMES, *OPTIONS, "stop"}
    if unknown := sorted(set(row) - known):
        raise DataError(f"{place}: {unknown[0]!r}: expected only {', '.join(sorted(known))}")
    asked = [name for name in ASKED if name in row]
    if len(asked) != 1:
        raise DataError(f"{place}: expected one of {', '.join(ASKED)}, got {' and '.join(asked) or 'none'}")
    try:
        config = _config(row, number, setting.config)
        config.check_ids(setting.loaded.config.vocab_size)
        ids, template, config = _asked(row[asked[0]], asked[0], config, setting)
    except (ConfigError, ContextError, DataError) as error:
        raise DataError(f"{place}: {error}") from error
    names = [row[name] for name in NAMES if name in row]
    if names and type(names[0]) not in (str, int):
        raise DataError(f"{place}: id: expected a text or a whole number, got {_short(names[0])}")
    stop = _stops(row.get("stop", ()), place)
    own = (template.stop, template.lead) if template else ((), "")
    return Job(names[0] if names else number, ids, config, (*own[0], *stop), own[1], setting.model)


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"


def _config(row: Mapping[str, Any], number: int, config: GenerationConfig) -> GenerationConfig:
    given = {OPTIONS[name]: value for name, value in row.items() if name in OPTIONS}
    if config.seed is not None:
        given.setdefault("seed", (config.seed + number) % 2**63)
    return dataclasses.replace(config, **given)


def _asked(
    value: object, kind: str, config: GenerationConfig, setting: Setting
) -> tuple[list[int], Template | None, GenerationConfig]:
    """Return a prompt's ids, the template they are written in, and how it is answered, as a chat would."""
    n_ctx = setting.loaded.config.n_ctx
    if kind == "prompt":
        if not isinstance(value, str) or not value:
            raise DataError(f"prompt: expected text, got {_short(value)}")
        ids = setting.tokenizer.encode(value)
        if len(ids) >= n_ctx:
            raise ContextError(f"prompt: expected at most {n_ctx - 1} tokens, got {len(ids)}")
        return ids, None, config
    messages = [Message("user", _content(value, "user"))] if kind == "user" else _messages(value)
    pinned = [m for m in messages if m.role == "system"] + list(setting.loaded.examples)
    live = [m for m in messages if m.role != "system"]
    length, room = setting.loaded.trained_length or n_ctx, config.max_new_tokens
    kept, _ = fit_context(pinned, live, setting.template, setting.tokenizer, length, n_ctx, room)
    if setting.matcher:
        faq = is_faq(setting.loaded.about)
        if faq and asks_taught(kept, setting.matcher):
            config = dataclasses.replace(config, temperature=0.0)  # there is one right answer
        kept = as_taught(kept, setting.matcher, faq)
    return render_prompt(kept, setting.template, setting.tokenizer), setting.template, config


def _content(value: object, place: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise DataError(f"{place}: expected text, got {_short(value)}")
    return value


def _messages(value: object) -> list[Message]:
    if not isinstance(value, list) or not value:
        raise DataError(f"messages: expected a list of {{'role', 'content'}}, got {_short(value)}")
    messages = []
    for number, message in enumerate(value):
        if not isinstance(message, dict) or message.get("role") not in ROLES:
            raise DataError(f"messages[{number}]: expected a role of {', '.join(ROLES)}, got {_short(message)}")
        messages.append(Message(message["role"], _content(message.get("content"), f"messages[{number}]")))
    if messages[-1].role != "user":
        raise DataError(f"messages: expected the user to have the last word, got {messages[-1].role!r}")
    return messages


def _stops(value: object, place: str) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, (list, tuple)) or not all(isinstance(stop, str) and stop for stop in stops):
        raise DataError(f"{place}: stop: expected a text or a list of texts, got {_short(value)}")
    return tuple(stops)


def answers(engine: Engine, rows: Iterable[Job], tokenizer: Tokenizer) -> Iterator[dict[str, object]]:
    """Yield the answer to each row, in order; the engine always has twice as many of them as it runs at once."""
    waiting: deque[tuple[Job, Stream]] = deque()
    try:
        for job in rows:
            stream = engine.submit(job.ids, job.config, stop=tokenizer.stop_ids, stop_strings=job.stop, lead=job.lead)
            waiting.append((job, stream))
            if len(waiting) >= 2 * engine.streams:
                yield _answer(*waiting.popleft(), tokenizer)
        while waiting:
            yield _answer(*waiting.popleft(), tokenizer)
    finally:
        for _, stream in waiting:
            stream.cancel()


def _answer(job: Job, stream: Stream, tokenizer: Tokenizer) -> dict[str, object]:
    ids = list(stream)
    text = "".join(stream_text(ids, tokenizer.stream_decoder(), job.stop, job.lead))
    return {
        "id": job.id,
        "text": text,
        "finish_reason": stream.finish_reason,
        "prompt_tokens": stream.prompt_tokens,
        "new_tokens": stream.new_tokens,
        "key": job.key,
    }


def done_before(path: Path, rows: Iterable[Job]) -> tuple[int, int]:
    """Return how many rows are answered in a file of an earlier run, and how many bytes of it hold their lines.

    A last line that was cut off does not count. Raises DataError when the file belongs to other rows or options.
    """
    if not path.is_file():
        return 0, 0
    done = size = 0
    with path.open("rb") as file:
        for job in rows:
            line = file.readline()
            if not line.endswith(b"\n"):
                break
            try:
                key = json.loads(line)["key"]
            except (ValueError, TypeError, KeyError):
                key = None
            if key != job.key:
                raise DataError(
                    f"{path}:{done + 1}: is not the answer to row {done + 1} with this model and these options: "
                    "give the same ones, or another --out"
                )
            done, size = done + 1, size + len(line)
        else:
            line = file.readline()
            if line:
                raise DataError(f"{path}:{done + 1}: has more answers than there are rows: give another --out")
        if not line.startswith(BEGIN[: len(line)]):
            raise DataError(f"{path}:{done + 1}: expected an answer that was cut off: give another --out")
    return done, size
