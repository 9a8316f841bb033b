"""Messages, templates, and their one rendering to token ids and loss mask.

Training, chat and HTTP all render here, so they cannot drift apart. A conversation renders turn by turn and the turns'
ids are simply joined: `render(a + b) == render(a) + render(b)` whenever `a` ends with an answer.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields

from gpt2chat.errors import ConfigError, ContextError, DataError
from gpt2chat.tokenizer import END_OF_TEXT, Tokenizer

ROLES = ("system", "user", "assistant")


@dataclass(frozen=True)
class Message:
    """One utterance: who speaks (`system`, `user` or `assistant`) and what is said."""

    role: str
    content: str
    trained: bool = True  # whether an answer is learnt where it stands in training data

    def __post_init__(self) -> None:
        if self.role not in ROLES:
            raise DataError(f"role: expected one of {', '.join(ROLES)}, got {self.role!r}")


Conversation = Sequence[Message]


@dataclass(frozen=True)
class Example:
    """Token ids of one document, and for each id whether it is a training target."""

    ids: Sequence[int]
    loss_mask: Sequence[bool]
    joinable: bool = False  # a single exchange, which may follow another one in the same conversation


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

    def affixes(self, role: str) -> tuple[str, str]:
        """Return the text before and after a message of `role`."""
        return getattr(self, f"{role}_prefix"), getattr(self, f"{role}_suffix")

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
    """Collects text and control ids; text between two flushes is encoded as one string."""

    def __init__(self, tokenizer: Tokenizer) -> None:
        self.tokenizer = tokenizer
        self.ids: list[int] = []
        self.loss_mask: list[bool] = []
        self._text = ""

    def text(self, text: str) -> None:
        self._text += text

    def markup(self, affix: str, trained: bool = False) -> None:
        if END_OF_TEXT not in affix:
            self._text += affix
            return
        first, *rest = affix.split(END_OF_TEXT)
        self._text += first
        for part in rest:
            self.flush(trained)
            self._append([self.tokenizer.end_id], trained)
            self._text += part

    def flush(self, trained: bool = False) -> None:
        if self._text:
            self._append(self.tokenizer.encode(self._text), trained)
            self._text = ""

    def _append(self, ids: list[int], trained: bool) -> None:
        self.ids += ids
        self.loss_mask += [trained] * len(ids)


def _write(writer: _Writer, message: Message, template: Template) -> None:
    prefix, suffix = template.affixes(message.role)
    writer.markup(prefix)
    if message.role != "assistant":
        writer.text(message.content)
        writer.markup(suffix)
        if message.role == "system":
            writer.flush()
        return
    writer.flush()
    writer.text(template.lead + message.content)
    writer.flush(message.trained)
    end, _, rest = suffix.partition(END_OF_TEXT)
    writer.markup(suffix.removesuffix(rest), message.trained)
    writer.text(rest)
    writer.flush(message.trained and not template.trainable)


def render(conversation: Conversation, template: Template, tokenizer: Tokenizer) -> Example:
    """Render a finished conversation; the targets are the answers and their end tokens."""
    writer = _Writer(tokenizer)
    for message in conversation:
        _write(writer, message, template)
    writer.flush()
    single = [message.role for message in conversation] == ["user", "assistant"]
    return Example(writer.ids, writer.loss_mask, joinable=single)


def render_prompt(conversation: Conversation, template: Template, tokenizer: Tokenizer) -> list[int]:
    """Render a conversation that waits for an answer: a prefix of what `render` gives once the answer is there."""
    writer = _Writer(tokenizer)
    for message in conversation:
        _write(writer, message, template)
    writer.markup(template.assistant_prefix)
    writer.flush()
    return writer.ids


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
