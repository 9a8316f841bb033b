"""Messages and their one rendering to token ids and loss mask.

Training, chat and HTTP all render here, so they cannot drift apart. A conversation renders turn by turn and the turns'
ids are simply joined: `render(a + b) == render(a) + render(b)` whenever `a` ends with an answer.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from gpt2chat.errors import ContextError, DataError
from gpt2chat.templates import TEMPLATES as TEMPLATES
from gpt2chat.templates import Template as Template
from gpt2chat.templates import template_named as template_named
from gpt2chat.tokenizer import Tokenizer

USUAL_LENGTH = 8  # characters that a token may have before it is worth looking closely
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


class _Writer:
    """Collects the parts of conversations: texts that are encoded apart from each other, and control tokens (None)."""

    def __init__(self, template: Template) -> None:
        self._template, cut = template, template.cut
        first = template.user_prefix if template.first_user_prefix is None else template.first_user_prefix
        self._system = cut(template.system_prefix), cut(template.system_suffix)
        self._user = {prefix: (cut(prefix), cut(template.user_suffix)) for prefix in (template.user_prefix, first)}
        self._answer = cut(template.assistant_prefix)
        ending = cut(template.assistant_suffix)
        learnt = next((n for n, part in enumerate(ending, 1) if isinstance(part, int)), len(ending))
        self._taught, self._rest = ending[:learnt], ending[learnt:]
        self._user_is_text = all(map(_is_text, (part for around in self._user.values() for part in around)))
        self._ends_answers = ending == (0,) and _is_text(self._answer) and not template.added
        self._first_prefix, self._user_prefix = first, template.user_prefix
        self.parts: list[str | None] = []
        self.trained: list[bool] = []
        self.controls: list[int] = []  # the numbers of the control tokens, for a template that adds some
        self._text = ""

    def message(self, message: Message) -> None:
        """Add a message with its marks."""
        role, template, trained = message.role, self._template, message.trained
        if role == "user":
            if self._user_is_text:
                self._text += self._user_prefix + message.content + template.user_suffix
            else:
                before, behind = self._user[self._user_prefix]
                self.markup(before)
                self._text += message.content
                self.markup(behind)
        elif role == "system":
            self.markup(self._system[0])
            self._text += message.content
            self.markup(self._system[1])
            self.flush()
            self._user_prefix = self._first_prefix
            return
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
            self.answer()
            self._text = template.lead + message.content
            self.flush(trained)
            self.markup(self._taught, trained)
            self.flush(trained)
            self.markup(self._rest)
            self.flush()
        self._user_prefix = template.user_prefix

    def answer(self) -> None:
        """Add what stands before an answer."""
        self.markup(self._answer)
        self.flush()

    def markup(self, affix: Sequence[str | int], trained: bool = False) -> None:
        """Add the text and control tokens around a message."""
        for part in affix:
            if isinstance(part, str):
                self._text += part
                continue
            self.flush(trained)
            self.parts.append(None)
            self.trained.append(trained)
            if self._template.added:
                self.controls.append(part)

    def flush(self, trained: bool = False) -> None:
        """End a text; what comes next is encoded by itself."""
        if self._text:
            self.parts.append(self._text)
            self.trained.append(trained)
            self._text = ""

    def end(self) -> None:
        """End a conversation."""
        self.flush()
        self._user_prefix = self._template.user_prefix

    def ids(self, tokenizer: Tokenizer) -> list[list[int]]:
        """Return the ids of each part."""
        controls = iter(self.controls)
        return [
            [tokenizer.end_id + next(controls, 0)] if part is None else tokenizer.encode(part) for part in self.parts
        ]


def _is_text(affix: Sequence[str | int]) -> bool:
    return all(isinstance(part, str) for part in affix)


class _Encoded(NamedTuple):
    """Conversations part by part: the ids of texts; of each part the length, -1 for a control token, and whether it
    is learnt; where the parts of each conversation start; and which control tokens they are, unless all end texts.
    """

    ids: np.ndarray
    lengths: np.ndarray
    trained: np.ndarray
    starts: list[int]
    controls: list[int]


def render(conversation: Conversation, template: Template, tokenizer: Tokenizer) -> Example:
    """Render a finished conversation; the targets are the answers and their end tokens."""
    writer = _Writer(template)
    for message in conversation:
        writer.message(message)
    writer.end()
    ids = writer.ids(tokenizer)
    mask = [trained for part, trained in zip(ids, writer.trained, strict=True) for _ in part]
    return Example([token for part in ids for token in part], mask, _single(conversation))


def _single(conversation: Conversation) -> bool:
    """Whether it is one question and its answer, which may follow another such pair."""
    return len(conversation) == 2 and conversation[0].role == "user" and conversation[1].role == "assistant"


def render_many(conversations: Iterable[Conversation], template: Template, tokenizer: Tokenizer) -> list[Example]:
    """Return what `render` gives for each conversation, in arrays and in less time."""
    conversations = list(conversations)
    encoded, lengths, trained, starts, controls = _encoded_parts(conversations, template, tokenizer)
    is_control = lengths < 0
    lengths = np.abs(lengths)
    together = np.full(lengths.sum(), tokenizer.end_id, np.uint16)
    in_text = ~np.repeat(is_control, lengths)
    together[in_text] = encoded
    if controls:
        together[~in_text] += np.array(controls, np.uint16)
    ids, mask = together.tobytes(), np.repeat(trained, lengths).tobytes()
    borders = np.concatenate([[0], lengths.cumsum()])[starts].tolist()
    return [
        Example(array("H", ids[2 * a : 2 * b]), array("B", mask[a:b]), _single(conversation))
        for a, b, conversation in zip(borders, borders[1:], conversations, strict=False)
    ]


def measure_many(conversations: Iterable[Conversation], template: Template, tokenizer: Tokenizer) -> list[Size]:
    """Return the sizes of what `render` gives for each conversation, in less time still."""
    _, lengths, trained, starts, _ = _encoded_parts(conversations, template, tokenizer)
    lengths = np.abs(lengths)
    before = np.concatenate([[0], lengths.cumsum()])
    learnt = np.concatenate([[0], (lengths * trained).cumsum()])
    answers = np.append(np.flatnonzero(lengths * trained), len(lengths))
    first = np.minimum(before[answers[np.searchsorted(answers, starts[:-1])]], before[starts[1:]]) - before[starts[:-1]]
    return list(map(Size, np.diff(before[starts]).tolist(), np.diff(learnt[starts]).tolist(), first.tolist()))


def _encoded_parts(conversations: Iterable[Conversation], template: Template, tokenizer: Tokenizer) -> _Encoded:
    writer, starts = _Writer(template), [0]
    for conversation in conversations:
        for message in conversation:
            writer.message(message)
        writer.end()
        starts.append(len(writer.parts))
    encoded, lengths = tokenizer.encode_apart([part or "" for part in writer.parts])
    lengths -= np.array([part is None for part in writer.parts], np.int64)
    return _Encoded(encoded, lengths, np.array(writer.trained, np.uint8), starts, writer.controls)


def render_prompt(conversation: Conversation, template: Template, tokenizer: Tokenizer) -> list[int]:
    """Render a conversation that waits for an answer: a prefix of what `render` gives once the answer is there."""
    writer = _Writer(template)
    for message in conversation:
        writer.message(message)
    writer.answer()
    return [token for part in writer.ids(tokenizer) for token in part]


def turns(conversation: Conversation) -> list[list[Message]]:
    """Cut a conversation into turns; each starts with a user message."""
    cut: list[list[Message]] = []
    for message in conversation:
        if message.role == "user" or not cut:
            cut.append([])
        cut[-1].append(message)
    return cut


class _Ruler:
    """Measures turns in ids, as they stand behind other turns or right after a system prompt."""

    def __init__(self, system: Conversation, template: Template, tokenizer: Tokenizer) -> None:
        self._system, self._template, self._tokenizer = system, template, tokenizer

    def length(self, messages: Conversation) -> int:
        """Return how many ids they have behind others."""
        return len(render(messages, self._template, self._tokenizer).ids)

    def opening(self, turn: Conversation) -> int:
        """Return how many ids more, or fewer, a turn has right after the system prompt."""
        if not self._system or self._template.first_user_prefix is None:
            return 0
        return self.length([*self._system, *turn]) - self.length(self._system) - self.length(turn)

    def fitting(self, groups: Iterable[list[list[Message]]], budget: int) -> list[list[list[Message]]]:
        """Drop oldest turns of each group until it fits into what the groups before it leave.

        Turns are measured from the newest on, and no more of them than may fit: a chat can be as long as it likes.
        """
        slack = len(self._tokenizer.encode(self._template.user_prefix)) + 8  # by which a first turn may be shorter
        kept: list[list[list[Message]]] = []
        for group in groups:
            opens = not any(map(len, kept))  # whether the first turn of all is one of these
            first, used, total = len(group), 0, 0
            for at in range(len(group) - 1, -1, -1):
                total += self.length(group[at])
                size = total + (self.opening(group[at]) if opens else 0)
                if size <= budget:
                    first, used = at, size
                elif total > budget + slack:
                    break
            budget -= used
            kept.append(group[first:])
        return kept


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
    whole = [*system, *[message for turn in examples for message in turn], *live]
    likely = sum(len(message.content) for message in whole) <= USUAL_LENGTH * max_tokens
    if likely and len(render_prompt(whole, template, tokenizer)) <= max_tokens:
        return whole, 0
    ruler = _Ruler(system, template, tokenizer)
    tail, budget = len(render_prompt(newest, template, tokenizer)), max_tokens - ruler.length(system)
    if budget < (alone := tail + ruler.opening(newest)):
        if budget <= 0:
            raise ContextError(
                f"the system prompt has {max_tokens - budget} tokens with its markers, the context leaves "
                f"{max_tokens}: shorten it, or lower max_new_tokens"
            )
        beside = f" beside a system prompt of {max_tokens - budget}" if system else ""
        raise ContextError(
            f"the message has {alone} tokens with its markers, the context leaves {budget}{beside}: "
            "shorten it, or lower max_new_tokens"
        )
    kept = ruler.fitting((examples, old), budget - tail)
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


def exchanges(messages: Conversation) -> list[tuple[str, str]]:
    """Return the questions of a conversation that an answer to learn from follows, each with that answer."""
    both = [(asked, said) for asked, said in pairwise(messages) if (asked.role, said.role) == ("user", "assistant")]
    return [(asked.content, said.content) for asked, said in both if said.trained]


def without(messages: Conversation, user: str, bot: str) -> list[Message]:
    """Return messages without a question that has an answer."""
    kept = list[Message]()
    for message in messages:
        if (message.role, message.content) == ("assistant", bot) and kept and kept[-1] == Message("user", user):
            kept.pop()
        else:
            kept.append(message)
    return kept
