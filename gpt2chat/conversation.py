"""Messages, templates, and their one rendering to token ids and loss mask.

Training, chat and HTTP all render here, so they cannot drift apart. A conversation renders turn by turn and the turns'
ids are simply joined: `render(a + b) == render(a) + render(b)` whenever `a` ends with an answer.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import NamedTuple

import numpy as np

from gpt2chat.errors import ConfigError, ContextError, DataError
from gpt2chat.tokenizer import END_OF_TEXT, Tokenizer

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One utterance: who speaks (`system`, `user` or `assistant`) and what is said."""

    role: str
    content: str
    trained: bool = True  # whether an answer is learnt where it stands in training data

    def __init__(self, role: str, content: str, trained: bool = True) -> None:
        """Takes a third of the time of a frozen dataclass's own, of which a file of a gigabyte would need minutes."""
        if role not in ROLES:
            raise DataError(f"role: expected one of {', '.join(ROLES)}, got {role!r}")
        fields = self.__dict__
        fields["role"], fields["content"], fields["trained"] = role, content, trained


Conversation = Sequence[Message]


@dataclass(slots=True)
class Example:
    """Token ids of one document, and for each id whether it is a training target."""

    ids: Sequence[int]
    loss_mask: Sequence[bool] | Sequence[int]
    joinable: bool = False  # a single exchange, which may follow another one in the same conversation

    @property
    def learnt(self) -> int:
        """How many of the ids are training targets."""
        return bytes(self.loss_mask).count(1)


class Size(NamedTuple):
    """How many ids a document has, how many of them are training targets, and how many stand before the first one."""

    ids: int
    learnt: int
    before: int


@dataclass(frozen=True)
class Template:
    """How turns look as text. `<|endoftext|>` in an affix stands for the end token; in a message it is just text.

    `lead` opens every answer and is cut from what the reader sees; `stop` strings end an answer.
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

    @property
    def trainable(self) -> bool:
        """Whether an answer ends with the end token, so that a model can learn to stop."""
        return self.assistant_suffix.startswith(END_OF_TEXT)

    def to_dict(self) -> dict[str, object]:
        """Return plain data for a checkpoint."""
        return {f.name: list(self.stop) if f.name == "stop" else getattr(self, f.name) for f in fields(self)}

    @classmethod
    def from_dict(cls, data: Mapping[str, object]) -> Template:
        """Rebuild a template from `to_dict`; raises ConfigError when a field is missing, unknown or of another type."""
        names = {f.name for f in fields(cls)}
        if set(data) != names:
            raise ConfigError(f"template: expected the fields {sorted(names)}, got {sorted(data)}")
        stop = data["stop"]
        texts = [data[name] for name in names - {"stop"}]
        if not isinstance(stop, (list, tuple)) or not all(isinstance(text, str) for text in [*texts, *stop]):
            raise ConfigError("template: expected strings in every field and a list of strings in 'stop'")
        return cls(**{**data, "stop": tuple(stop)})  # type: ignore[arg-type]


TEMPLATES = {
    template.name: template
    for template in (
        Template("chat", "System: ", "\n", "User: ", "\n", "Bot:", END_OF_TEXT, " ", ("\nUser:",)),
        # For base weights that were never taught to chat: newline-separated, ended by the next "User:".
        Template("few-shot", "", "\n\n", "User: ", "\n", "Bot:", "\n", " ", ("\nUser:",)),
        Template(
            "alpaca",
            "",
            "\n\n",
            "### Instruction:\n",
            "\n\n",
            "### Response:\n",
            END_OF_TEXT + "\n\n",
            "",
            ("\n### Instruction:",),
        ),
        # No marks at all: the answer goes on with the text.
        Template("text", "", "\n\n", "", "", "", END_OF_TEXT),
        # microsoft/DialoGPT: turns without names, each ended by the end token.
        Template("dialogpt", "", END_OF_TEXT, "", END_OF_TEXT, "", END_OF_TEXT),
    )
}


def template_named(name: str) -> Template:
    """Return a built-in template; raises ConfigError with the names there are."""
    if name not in TEMPLATES:
        raise ConfigError(f"template: expected one of {', '.join(TEMPLATES)}, got {name!r}")
    return TEMPLATES[name]


class _Writer:
    """Collects the parts of conversations: texts that are encoded apart from each other, and end tokens (None)."""

    def __init__(self, template: Template) -> None:
        self._template = template
        self._user_is_text = END_OF_TEXT not in template.user_prefix + template.user_suffix
        self._ends_answers = template.assistant_suffix == END_OF_TEXT and END_OF_TEXT not in template.assistant_prefix
        self.parts: list[str | None] = []
        self.trained: list[bool] = []
        self._text = ""

    def message(self, message: Message) -> None:
        """Add a message with its marks."""
        role, template, trained = message.role, self._template, message.trained
        if role == "user" and self._user_is_text:
            self._text += template.user_prefix + message.content + template.user_suffix
        elif role == "user":
            self.markup(template.user_prefix)
            self._text += message.content
            self.markup(template.user_suffix)
        elif role == "system":
            self.markup(template.system_prefix)
            self._text += message.content
            self.markup(template.system_suffix)
            self.flush()
        elif self._ends_answers:  # what comes below, in half the time
            parts = (self._text + template.assistant_prefix, template.lead + message.content)
            for part, learnt in zip(parts, (False, trained), strict=True):
                if part:
                    self.parts.append(part)
                    self.trained.append(learnt)
            self.parts.append(None)
            self.trained.append(trained)
            self._text = ""
        else:
            self.markup(template.assistant_prefix)
            self.flush()
            self._text = template.lead + message.content
            self.flush(trained)
            ending, end, rest = template.assistant_suffix.partition(END_OF_TEXT)
            self.markup(ending + end, trained)
            self._text += rest
            self.flush(trained and not template.trainable)

    def markup(self, affix: str, trained: bool = False) -> None:
        """Add the text around a message."""
        if END_OF_TEXT not in affix:
            self._text += affix
            return
        first, *rest = affix.split(END_OF_TEXT)
        self._text += first
        for part in rest:
            self.flush(trained)
            self.parts.append(None)
            self.trained.append(trained)
            self._text += part

    def flush(self, trained: bool = False) -> None:
        """End a text; what comes next is encoded by itself."""
        if self._text:
            self.parts.append(self._text)
            self.trained.append(trained)
            self._text = ""

    def ids(self, tokenizer: Tokenizer) -> list[list[int]]:
        """Return the ids of each part."""
        return [[tokenizer.end_id] if part is None else tokenizer.encode(part) for part in self.parts]


def render(conversation: Conversation, template: Template, tokenizer: Tokenizer) -> Example:
    """Render a finished conversation; the targets are the answers and their end tokens."""
    writer = _Writer(template)
    for message in conversation:
        writer.message(message)
    writer.flush()
    ids = writer.ids(tokenizer)
    mask = [trained for part, trained in zip(ids, writer.trained, strict=True) for _ in part]
    return Example([token for part in ids for token in part], mask, _single(conversation))


def _single(conversation: Conversation) -> bool:
    """Whether it is one question and its answer, which may follow another such pair."""
    return len(conversation) == 2 and conversation[0].role == "user" and conversation[1].role == "assistant"


def render_many(conversations: Iterable[Conversation], template: Template, tokenizer: Tokenizer) -> list[Example]:
    """Return what `render` gives for each conversation, in arrays and in less time."""
    conversations = list(conversations)
    encoded, lengths, trained, starts = _encoded_parts(conversations, template, tokenizer)
    is_end = lengths < 0
    lengths = np.abs(lengths)
    together = np.full(lengths.sum(), tokenizer.end_id, np.uint16)
    together[~np.repeat(is_end, lengths)] = encoded
    ids, mask = together.tobytes(), np.repeat(trained, lengths).tobytes()
    borders = np.concatenate([[0], lengths.cumsum()])[starts].tolist()
    return [
        Example(array("H", ids[2 * a : 2 * b]), array("B", mask[a:b]), _single(conversation))
        for a, b, conversation in zip(borders, borders[1:], conversations, strict=False)
    ]


def measure_many(conversations: Iterable[Conversation], template: Template, tokenizer: Tokenizer) -> list[Size]:
    """Return the sizes of what `render` gives for each conversation, in less time still."""
    _, lengths, trained, starts = _encoded_parts(conversations, template, tokenizer)
    lengths = np.abs(lengths)
    before = np.concatenate([[0], lengths.cumsum()])
    learnt = np.concatenate([[0], (lengths * trained).cumsum()])
    answers = np.append(np.flatnonzero(lengths * trained), len(lengths))
    first = np.minimum(before[answers[np.searchsorted(answers, starts[:-1])]], before[starts[1:]]) - before[starts[:-1]]
    return list(map(Size, np.diff(before[starts]).tolist(), np.diff(learnt[starts]).tolist(), first.tolist()))


def _encoded_parts(
    conversations: Iterable[Conversation], template: Template, tokenizer: Tokenizer
) -> tuple[np.ndarray, np.ndarray, np.ndarray, list[int]]:
    """Encode conversations part by part.

    Returns the ids without end tokens; of each part the length, -1 for an end token, and whether it is learnt; and
    where the parts of each conversation start.
    """
    writer, starts = _Writer(template), [0]
    for conversation in conversations:
        for message in conversation:
            writer.message(message)
        writer.flush()
        starts.append(len(writer.parts))
    encoded, lengths = tokenizer.encode_apart([part or "" for part in writer.parts])
    lengths -= np.array([part is None for part in writer.parts], np.int64)
    return encoded, lengths, np.array(writer.trained, np.uint8), starts


def render_prompt(conversation: Conversation, template: Template, tokenizer: Tokenizer) -> list[int]:
    """Render a conversation that waits for an answer: a prefix of what `render` gives once the answer is there."""
    writer = _Writer(template)
    for message in conversation:
        writer.message(message)
    writer.markup(template.assistant_prefix)
    writer.flush()
    return [token for part in writer.ids(tokenizer) for token in part]


def turns(conversation: Conversation) -> list[list[Message]]:
    """Cut a conversation into turns; each starts with a user message."""
    cut: list[list[Message]] = []
    for message in conversation:
        if message.role == "user" or not cut:
            cut.append([])
        cut[-1].append(message)
    return cut


def fit(
    pinned: Conversation, live: Conversation, template: Template, tokenizer: Tokenizer, max_tokens: int
) -> tuple[list[Message], int]:
    """Drop whole oldest turns until the prompt has at most `max_tokens` ids.

    `pinned` (system prompt and custom examples) goes last: examples claim their room before earlier live turns, and
    the system prompt never leaves. Returns the conversation and the number of dropped turns; raises ContextError
    when even the system prompt and the newest turn do not fit.
    """
    system = [message for message in pinned if message.role == "system"]
    examples = turns([message for message in pinned if message.role != "system"])
    *old, newest = turns(live) or [[]]

    def length(messages: Conversation) -> int:
        return len(render(messages, template, tokenizer).ids)

    tail = len(render_prompt(newest, template, tokenizer))
    budget = max_tokens - length(system) - tail
    if budget < 0:
        raise ContextError(
            f"the message has {tail} tokens with its markers, the context leaves {max_tokens - length(system)}: "
            "shorten it, or lower max_new_tokens"
        )
    kept: list[list[list[Message]]] = []
    for group in (examples, old):  # examples claim their room first
        lengths = [length(turn) for turn in group]
        first = 0
        while sum(lengths[first:]) > budget:
            first += 1
        budget -= sum(lengths[first:])
        kept.append(group[first:])
    while True:
        turns_kept = [message for group in kept for turn in group for message in turn]
        fitted = [*system, *turns_kept, *newest]
        # Two questions in a row are encoded together, which can take more ids than apart.
        if not turns_kept or len(render_prompt(fitted, template, tokenizer)) <= max_tokens:
            return fitted, len(examples) + len(old) - sum(map(len, kept))
        (kept[1] or kept[0]).pop(0)


def fit_context(
    pinned: Conversation,
    live: Conversation,
    template: Template,
    tokenizer: Tokenizer,
    length: int,
    n_ctx: int,
    max_new_tokens: int = 256,
) -> tuple[list[Message], int]:
    """Fit a chat into `length` tokens of a context of `n_ctx`, as `fit` does, with room for the answer.

    Up to a quarter is kept free. A newest message that is longer than `length` allows may still fill the context.
    """
    try:
        return fit(pinned, live, template, tokenizer, length - min(max_new_tokens, length // 4))
    except ContextError:
        return fit(pinned, live, template, tokenizer, n_ctx - min(max_new_tokens, n_ctx // 4))
