"""How turns look as text, which marks of them are tokens of their own, and the built-in ways to write a chat."""

from __future__ import annotations

import difflib
import json
import os
import re
from collections.abc import Mapping
from dataclasses import MISSING, dataclass, fields
from functools import lru_cache
from pathlib import Path

from gpt2chat.errors import ConfigError
from gpt2chat.tokenizer import END_OF_TEXT, MOST_ADDED, Tokenizer

MESSAGE = "${MESSAGE}"  # stands for the content in files of NanoLLM's form
NANO_FIELDS = ("system", "first", "user", "bot", "stop", "system_prompt", "name", "added")
# What a file of our own fields may leave out; the other affixes are then empty.
USUAL = {"system_suffix": "\n\n", "user_suffix": "\n", "assistant_suffix": END_OF_TEXT}


@dataclass(frozen=True)
class Template:
    """How turns look as text. Control tokens are spelled in affixes; in a message the same letters are just text.

    Control tokens are `<|endoftext|>`, number 0, and those in `added`, numbers 1 and up, whose ids follow GPT-2's own.
    `first_user_prefix` is that of a user's turn right after a system message (None: the usual one); `lead` opens every
    answer and is cut from what the reader sees; `stop` strings end an answer. Raises ConfigError for marks in `added`
    that cannot be told apart.
    """

    name: str
    system_prefix: str
    system_suffix: str
    user_prefix: str
    user_suffix: str
    assistant_prefix: str
    assistant_suffix: str
    lead: str = ""
    stop: tuple[str, ...] = ()
    first_user_prefix: str | None = None
    added: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        marks = {END_OF_TEXT, *self.added}
        if len(marks) <= len(self.added) or "" in marks or len(self.added) > MOST_ADDED:
            raise ConfigError(
                f"template: expected up to {MOST_ADDED} different marks other than {END_OF_TEXT} in 'added', "
                f"got {list(self.added)!r}"
            )

    @property
    def trainable(self) -> bool:
        """Whether an answer ends with a control token, so that a model can learn to stop."""
        return any(isinstance(part, int) for part in self.cut(self.assistant_suffix)[:1])

    def cut(self, affix: str) -> tuple[str | int, ...]:
        """Cut an affix into texts and the numbers of control tokens; an empty one has no parts."""
        return _cut(affix, self.added)

    def ids_needed(self, tokenizer: Tokenizer) -> int:
        """Return how many ids a model must have for the added tokens; 0 where there are none."""
        return tokenizer.vocab_size + len(self.added) if self.added else 0

    def check_ids(self, vocab_size: int, tokenizer: Tokenizer) -> None:
        """Raise ConfigError unless a model with `vocab_size` ids has those of the added tokens."""
        needed = self.ids_needed(tokenizer)
        if vocab_size < needed:
            name = self.name if self.name in TEMPLATES else "FILE"
            raise ConfigError(
                f"template: {self.name} writes {', '.join(self.added)} as tokens of their own, for which a model needs "
                f"{needed} ids; this one has {vocab_size}: train it first: gpt2chat train --template {name}"
            )

    def to_dict(self) -> dict[str, object]:
        """Return plain data for a checkpoint."""
        found = {field.name: getattr(self, field.name) for field in fields(self)}
        return {name: list(value) if isinstance(value, tuple) else value for name, value in found.items()}

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Template:
        """Rebuild a template from `to_dict`, also of older versions, which had fewer fields.

        Raises ConfigError when a field is missing, unknown or of another type.
        """
        required = {field.name for field in fields(cls) if field.default is MISSING}
        names = {field.name for field in fields(cls)}
        if not required <= set(data) <= names:
            raise ConfigError(f"template: expected the fields {sorted(names)}, got {sorted(map(str, data))}")
        for name, value in data.items():
            _check(name, value)
        lists = {name: tuple(value) for name, value in data.items() if isinstance(value, (list, tuple))}
        return cls(**{**data, **lists})  # type: ignore[arg-type]


def _check(name: str, value: object) -> None:
    """Raise ConfigError unless a field has the type it must have."""
    if name in ("stop", "added"):
        if not isinstance(value, (list, tuple)) or not all(isinstance(text, str) for text in value):
            raise ConfigError(f"template: expected a list of texts in {name!r}, got {value!r}")
    elif not isinstance(value, str) and not (name == "first_user_prefix" and value is None):
        raise ConfigError(f"template: expected text in {name!r}, got {value!r}")


@lru_cache(maxsize=1024)
def _cut(affix: str, added: tuple[str, ...]) -> tuple[str | int, ...]:
    numbers = {mark: number for number, mark in enumerate((END_OF_TEXT, *added))}
    longest_first = sorted(numbers, key=len, reverse=True)
    parts = re.split(f"({'|'.join(map(re.escape, longest_first))})", affix)
    return tuple(numbers.get(part, part) for part in parts if part)


# ChatML's marks, which are tokens of their own in `chatml` and plain text in `nous-obsidian`.
START, END = "<|im_start|>", "<|im_end|>"


def _marked(
    name: str,
    system: str,
    user: str,
    bot: str,
    end: str = END_OF_TEXT,
    lead: str = "",
    stop: tuple[str, ...] = (),
    first_user_prefix: str | None = None,
    added: tuple[str, ...] = (),
) -> Template:
    """Return a template whose turns are given as texts with one MESSAGE; `end` stands behind an answer."""
    (s, system_end), (u, user_end), (b, bot_end) = (text.split(MESSAGE) for text in (system, user, bot))
    return Template(name, s, system_end, u, user_end, b, bot_end + end, lead, stop, first_user_prefix, added)


TEMPLATES = {
    template.name: template
    for template in (
        Template("chat", "System: ", "\n", "User: ", "\n", "Bot:", END_OF_TEXT, " ", ("\nUser:",)),
        # For base weights that were never taught to chat: newline-separated, ended by the next "User:".
        Template("few-shot", "", "\n\n", "User: ", "\n", "Bot:", "\n", " ", ("\nUser:",)),
        _marked(
            "alpaca",
            "${MESSAGE}\n\n",
            "### Instruction:\n${MESSAGE}\n\n",
            "### Response:\n${MESSAGE}",
            END_OF_TEXT + "\n\n",
            stop=("\n### Instruction:",),
        ),
        # No marks at all: the answer goes on with the text.
        Template("text", "", "\n\n", "", "", "", END_OF_TEXT),
        # microsoft/DialoGPT: turns without names, each ended by the end token.
        Template("dialogpt", "", END_OF_TEXT, "", END_OF_TEXT, "", END_OF_TEXT),
        _marked(
            "chatml",
            f"{START}system\n${{MESSAGE}}{END}\n",
            f"{START}user\n${{MESSAGE}}{END}\n",
            f"{START}assistant\n${{MESSAGE}}",
            END + "\n",
            added=(START, END),
        ),
        # Where the original writes <s> there is nothing here, and GPT-2's end token for </s>.
        _marked(
            "llama-2",
            "[INST] <<SYS>>\n${MESSAGE}\n<</SYS>>\n\n",
            "[INST] ${MESSAGE} [/INST]",
            "${MESSAGE}",
            END_OF_TEXT,
            lead=" ",
            stop=("[INST]",),
            first_user_prefix="",
        ),
        _marked(
            "vicuna-v0",
            "${MESSAGE}\n\n",
            "### Human: ${MESSAGE}\n",
            "### Assistant:${MESSAGE}",
            END_OF_TEXT,
            lead=" ",
            stop=("\n### Human:",),
        ),
        _marked(
            "vicuna-v1",
            "${MESSAGE}\n\n",
            "USER: ${MESSAGE}\n",
            "ASSISTANT:${MESSAGE}",
            END_OF_TEXT,
            lead=" ",
            stop=("\nUSER:",),
        ),
        _marked(
            "stablelm-zephyr",
            f"<|system|>\n${{MESSAGE}}{END_OF_TEXT}\n",
            f"<|user|>\n${{MESSAGE}}{END_OF_TEXT}\n",
            "<|assistant|>\n${MESSAGE}",
            END_OF_TEXT + "\n",
        ),
        _marked(
            "sheared-llama",
            "${MESSAGE}\n\n",
            "### Input:\n${MESSAGE}\n\n",
            "### Response:${MESSAGE}",
            END_OF_TEXT,
            stop=("\n### Input:",),
        ),
        _marked(
            "nous-obsidian",
            f"{START}system\n${{MESSAGE}}\n###\n",
            f"{START}user\n${{MESSAGE}}\n###\n",
            f"{START}assistant\n${{MESSAGE}}",
            END_OF_TEXT,
            stop=("\n###",),
        ),
        _marked(
            "phi-2-chat",
            "${MESSAGE}\n\n",
            "Alice: ${MESSAGE}\n",
            "Bob:${MESSAGE}",
            END_OF_TEXT + "\n",
            lead=" ",
            stop=("\nAlice:",),
        ),
        _marked(
            "phi-2-instruct",
            "${MESSAGE}\n\n",
            "Instruct: ${MESSAGE}\n",
            "Output:${MESSAGE}",
            END_OF_TEXT + "\n",
            lead=" ",
            stop=("\nInstruct:",),
        ),
        # The end token alone ends an answer, where the original writes <end_of_turn> and a newline.
        _marked(
            "gemma",
            "${MESSAGE}\n\n",
            "<start_of_turn>user\n${MESSAGE}<end_of_turn>\n",
            "<start_of_turn>model\n${MESSAGE}",
            END_OF_TEXT,
            stop=("<end_of_turn>",),
        ),
    )
}
ALIASES = {"chat-ml": "chatml"}


def template_named(name: str) -> Template:
    """Return a built-in template, or the one in a JSON file; raises ConfigError with the names there are."""
    built_in = TEMPLATES.get(ALIASES.get(name, name))
    if built_in is not None:
        return built_in
    if name.endswith(".json") or os.path.isfile(name):
        return read_template(Path(name))
    names = [*TEMPLATES, *ALIASES]
    near = difflib.get_close_matches(name, names, n=1)
    meant = f"; did you mean {near[0]}?" if near else ""
    raise ConfigError(f"template: expected one of {', '.join(names)}, or a .json file, got {name!r}{meant}")


def template_given(given: object) -> Template:
    """Return a template, or the one of a name, a JSON file or fields; raises ConfigError."""
    if isinstance(given, Template):
        return given
    if isinstance(given, Mapping):
        return template_from(given, "chat_template")
    if isinstance(given, (str, os.PathLike)):
        return template_named(os.fspath(given))
    raise ConfigError(f"chat_template: expected a name, a JSON file or fields, got {type(given).__name__}")


def read_template(path: Path) -> Template:
    """Read a template of our own fields, some of which may be missing, or of NanoLLM's form.

    Raises ConfigError with the place, what was expected and what was found.
    """
    try:
        data = json.loads(path.read_text("utf-8-sig"))
    except (OSError, UnicodeDecodeError) as error:
        reason = (error.strerror or error) if isinstance(error, OSError) else f"expected UTF-8: {error.reason}"
        raise ConfigError(f"template: {path}: cannot be read: {reason}") from error
    except (ValueError, RecursionError) as error:
        raise ConfigError(f"template: {path}: expected JSON: {error}") from error
    if not isinstance(data, dict) or not data:
        raise ConfigError(f"template: {path}: expected a JSON object with fields, found {_short(data)}")
    try:
        return template_from(data, path.stem)
    except ConfigError as error:
        raise ConfigError(f"template: {path}: {str(error).removeprefix('template: ')}") from error


def template_from(data: Mapping[str, object], name: str) -> Template:
    """Return the template that our own fields say, of which some may be missing, or fields of NanoLLM's form.

    Raises ConfigError with what was expected and found.
    """
    own = [field.name for field in fields(Template)]
    nano = any(field in data and field not in own for field in NANO_FIELDS)
    if unknown := [field for field in data if field not in (NANO_FIELDS if nano else own)]:
        expected = f"only {', '.join(NANO_FIELDS)}" if nano else f"{', '.join(own)}, or {', '.join(NANO_FIELDS)}"
        raise ConfigError(f"expected {expected}, found {unknown[0]!r}")
    if isinstance(data.get("stop"), str):
        data = {**data, "stop": [data["stop"]]}
    affixes = _affixes(data) if nano else {}
    kept = {field: value for field, value in data.items() if field in own}
    empty = {field.name: "" for field in fields(Template) if field.default is MISSING}
    return Template.from_dict({**empty, **USUAL, "name": name, **affixes, **kept})


def _affixes(data: Mapping[str, object]) -> dict[str, object]:
    """Return our fields for those of NanoLLM; its `system_prompt` is told apart from faults, and not kept."""
    if not isinstance(data.get("system_prompt", ""), str):
        raise ConfigError(f"expected text in 'system_prompt', found {_short(data['system_prompt'])}")
    system = _around(data, "system") if "system" in data else ("", "\n\n")
    user, bot = _around(data, "user"), _around(data, "bot")
    prefix = bot[0].removesuffix(" ")  # a blank goes with the word behind it, as in GPT-2's vocabulary
    found: dict[str, object] = {"system_prefix": system[0], "system_suffix": system[1]}
    found |= {"user_prefix": user[0], "user_suffix": user[1]}
    found |= {"assistant_prefix": prefix, "lead": bot[0][len(prefix) :], "assistant_suffix": bot[1]}
    if "first" in data:
        first = _around(data, "first")
        if first[1] != user[1]:
            raise ConfigError(f"expected 'first' to end as 'user' does, with {user[1]!r}, found {first[1]!r}")
        found["first_user_prefix"] = first[0]
    return found


def _around(data: Mapping[str, object], field: str) -> tuple[str, str]:
    """Return what stands before and behind the message; Llama's marks become GPT-2's."""
    text = data.get(field)
    if not isinstance(text, str) or text.count(MESSAGE) != 1:
        found = _short(text) if field in data else "none"
        raise ConfigError(f"expected text with one {MESSAGE} in {field!r}, found {found}")
    before, _, behind = text.replace("<s>", "").replace("</s>", END_OF_TEXT).partition(MESSAGE)
    return before, behind


def _short(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 60 else f"{text[:57]}…"
