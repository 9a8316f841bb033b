"""`ChatModel` and `ChatHistory`: a chat that its caller leads turn by turn, with the members that NanoLLM's have.

    model = ChatModel.from_pretrained("trained_model.pt")
    chat = ChatHistory(model, system_prompt="You are a helpful assistant.")
    chat.append("user", "Hello")
    prompt, position = chat.embed_chat()
    reply = model.generate(prompt, kv_cache=chat.kv_cache, stop_tokens=chat.template.stop)
    chat.append("bot", reply)

An "embedding" is a sequence of token ids here: GPT-2's first layer turns them into vectors.
"""

from __future__ import annotations

import html
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from gpt2chat import pretrained
from gpt2chat.checkpoint import Checkpoint
from gpt2chat.conversation import Message, fit, render, render_prompt
from gpt2chat.decoding import choose, draft_for, open_model
from gpt2chat.errors import ConfigError, ContextError
from gpt2chat.generation import Decoder
from gpt2chat.reply import StreamingReply, Told
from gpt2chat.runtime import Runtime, rewind
from gpt2chat.sampling import GenerationConfig
from gpt2chat.templates import Template, template_given
from gpt2chat.tokenizer import Tokenizer

APIS = ("auto", "torch", "hf")
QUANTIZATION = {"q4f16_ft": "int4", "q4f16_1": "int4", "q8f16_0": "int8"}  # what is nearest to MLC's names
ROLES = {"user": "user", "bot": "assistant", "assistant": "assistant", "system": "system"}
NO_MEDIA = "GPT-2 reads text only"
ANSWER = 128  # tokens, where nothing else is said


class Embedding(list[int]):
    """Ids that an answer follows, and what the template opens that answer with, which its reader does not see."""

    def __init__(self, ids: Iterable[int], lead: str) -> None:
        super().__init__(ids)
        self.lead = lead


class ChatCache:
    """Keys and values of a chat, between its turns; `len` is how many tokens they are of."""

    def __init__(self, decoder: Decoder) -> None:
        self.decoder = decoder

    def __len__(self) -> int:
        return min(self.decoder.cache.length, len(self.decoder.ids))

    @property
    def num_tokens(self) -> int:
        """How many tokens it holds."""
        return len(self)

    @property
    def ids(self) -> list[int]:
        """The tokens it holds."""
        return self.decoder.ids[: len(self)]

    def keep(self, ids: Sequence[int]) -> int:
        """Forget all but the common beginning with `ids`; return how many of them are left, not the last one."""
        same = rewind(self.decoder.cache, self.decoder.ids, ids)
        self.decoder.forget(same)
        return same

    def pop(self, count: int) -> None:
        """Forget the last `count` tokens."""
        self.remove(len(self) - count)

    def remove(self, start: int, stop: int | None = None) -> None:
        """Forget the tokens from `start` on; what follows `stop` goes too, for it was computed with them in sight."""
        self.decoder.forget(min(max(0, start), len(self)))


class ChatModel:
    """A model that writes on from token ids, given what is cached of them."""

    def __init__(self, loaded: Checkpoint, runtime: Runtime, draft: str = "auto") -> None:
        self.checkpoint, self.runtime, self.config = loaded, runtime, loaded.config
        self.tokenizer = Tokenizer.gpt2()
        self._draft = draft

    @classmethod
    def from_pretrained(
        cls,
        model: str | os.PathLike[str],
        api: str = "auto",
        quantization: str | None = None,
        dtype: str = "auto",
        device: str = "auto",
        draft: str = "auto",
        **_: Any,
    ) -> ChatModel:
        """Open a model's name or place. `quantization` is int8, int4, none, or the name MLC has for one of these.

        Other options of NanoLLM (api_token, max_context_len …) mean nothing here and are taken without effect. Raises
        ConfigError for an `api` that is another program (mlc, awq), and for vision models.
        """
        if api not in APIS:
            raise ConfigError(f"api: expected one of {', '.join(APIS)}, got {api!r}: gpt2chat computes by itself")
        if "vision_api" in _ or "vision_model" in _:
            raise ConfigError(f"vision_model: {NO_MEDIA}")
        choice = choose(device, dtype, QUANTIZATION.get(quantization or "auto", quantization or "auto"))
        return cls(*open_model(os.fspath(model), choice, pretrained.load), draft)

    def embed_text(self, text: str) -> list[int]:
        """Return the ids of a text; its markers are text."""
        return self.tokenizer.encode(text)

    def generate(
        self,
        inputs: str | Sequence[int],
        streaming: bool = True,
        max_new_tokens: int = ANSWER,
        do_sample: bool = False,
        temperature: float = 0.7,
        top_p: float = 0.95,
        top_k: int = 0,
        repetition_penalty: float = 1.0,
        seed: int | None = None,
        stop_tokens: Iterable[str | int] | str | int | None = None,
        kv_cache: ChatCache | None = None,
    ) -> StreamingReply:
        """Write on from text or ids, behind what `kv_cache` holds; without `streaming` the reply is there to its end.

        Without `do_sample` the likeliest token is taken. `stop_tokens`, texts or ids, end the answer, as the end token
        does. The reply's `kv_cache` is for the next turn, whenever this one ends.
        """
        cache = self._new_cache() if kv_cache is None else kv_cache
        prompt = [*cache.ids, *(self.embed_text(inputs) if isinstance(inputs, str) else inputs)]
        words, stops = self._stops(stop_tokens)
        drawn: dict[str, Any] = {
            "temperature": temperature if do_sample else 0,
            "top_k": top_k,
            "top_p": top_p,
            "seed": seed,
        }
        config = GenerationConfig(repetition_penalty=repetition_penalty, max_new_tokens=max_new_tokens, **drawn)

        def begin() -> tuple[Iterator[int], Told]:
            return cache.decoder.generate(prompt, config, stops), cache.decoder

        text, lead = self.tokenizer.stream_decoder(), inputs.lead if isinstance(inputs, Embedding) else ""
        reply = StreamingReply(prompt, begin, text, words, lead, kv_cache=cache)
        if not streaming:
            reply.wait()
        return reply

    def _new_cache(self) -> ChatCache:
        return ChatCache(Decoder(self.runtime, draft_for(self._draft, self.runtime)))

    def _stops(self, given: Iterable[str | int] | str | int | None) -> tuple[list[str], frozenset[int]]:
        """Return the texts and the ids that end an answer."""
        stops: list[str | int] = [given] if isinstance(given, (str, int)) else list(given or ())
        if wrong := [stop for stop in stops if not isinstance(stop, (str, int))]:
            raise ConfigError(f"stop_tokens: expected texts and ids, got {wrong[0]!r}")
        ids = self.tokenizer.stop_ids
        return [s for s in stops if isinstance(s, str)], ids | {s for s in stops if isinstance(s, int)}


class ChatMessage:
    """One message of a `ChatHistory`. Its `text` can be changed at any time, also while it is written."""

    def __init__(self, role: str, text: str, history: ChatHistory) -> None:
        if role not in ROLES:
            raise ConfigError(f"role: expected one of {', '.join(ROLES)}, got {role!r}")
        self.role, self.text, self._history = "bot" if role == "assistant" else role, text, history

    def __repr__(self) -> str:
        return f"ChatMessage({self.role!r}, {self.text!r})"

    @property
    def content(self) -> str:
        """The text."""
        return self.text

    @content.setter
    def content(self, text: str) -> None:
        """Change the text."""
        self.text = text

    @property
    def type(self) -> str:
        """Always "text"."""
        return "text"

    @property
    def start_token(self) -> int:
        """Where the message begins in the chat's ids."""
        return self._history.length_before(self)

    @property
    def num_tokens(self) -> int:
        """How many ids the message takes with its marks."""
        return self._history.length_before(self, after=1) - self.start_token

    @property
    def cached(self) -> bool:
        """Whether all its keys and values are in the chat's cache."""
        cache = self._history.kv_cache
        return cache is not None and self.start_token + self.num_tokens <= len(cache)

    def as_message(self) -> Message:
        """Return it as the rest of this package takes it."""
        return Message(ROLES[self.role], self.text)


class ChatHistory:
    """The messages of a chat, and what the model has cached of them."""

    def __init__(
        self,
        model: ChatModel,
        chat_template: str | os.PathLike[str] | Mapping[str, Any] | Template | None = None,
        system_prompt: str | None = None,
        **_: Any,
    ) -> None:
        """Take a model; `chat_template` is a name, a JSON file, or the fields of one. Raises ConfigError."""
        self.model = model
        self.messages: list[ChatMessage] = []
        self.kv_cache: ChatCache | None = None
        self.template = model.checkpoint.template if chat_template is None else template_given(chat_template)
        self.template.check_ids(model.config.vocab_size, model.tokenizer)
        self._system_prompt = system_prompt or ""
        self.reset()

    def __repr__(self) -> str:
        return f"ChatHistory({len(self)} messages, template {self.template.name})"

    # -- messages ------------------------------------------------------------------------------------------------

    def __len__(self) -> int:
        return len(self.messages)

    def __iter__(self) -> Iterator[ChatMessage]:
        return iter(self.messages)

    def __getitem__(self, key: int | slice) -> ChatMessage | list[ChatMessage]:
        return self.messages[key]

    def __delitem__(self, key: int | slice | ChatMessage) -> None:
        del self.messages[self.messages.index(key) if isinstance(key, ChatMessage) else key]

    def append(self, role: str = "user", msg: object = None, **given: Any) -> ChatMessage:
        """Add a message: text, a ChatMessage, or a reply, whose cache the next turn then goes on with.

        `text=` is the same as `msg`. A message that stands in a chat already is copied. Raises ConfigError for images
        and for what is no text.
        """
        if unknown := sorted(set(given) - {"text", "use_cache"}):
            raise ConfigError(f"{unknown[0]}: expected text, got {type(given[unknown[0]]).__name__}: {NO_MEDIA}")
        said = given.get("text", msg)
        if isinstance(said, StreamingReply):
            self.kv_cache = said.kv_cache
            said = said.text
        message = said if isinstance(said, ChatMessage) else ChatMessage(role, _text(said), self)
        if message._history is not self or message in self.messages:
            message = ChatMessage(message.role, message.text, self)
        self.messages.append(message)
        return message

    def pop(self, count: int = 1) -> list[ChatMessage]:
        """Take back the last messages, and return them."""
        if not 0 <= count <= len(self):
            raise ConfigError(f"pop: expected 0 to {len(self)} messages, got {count}")
        taken = self.messages[len(self) - count :]
        del self.messages[len(self) - count :]
        return taken

    def remove(self, start: int, stop: int | None = None) -> None:
        """Take out the messages from `start` to before `stop`, by default the one at `start`; negative ones count back.

        A `stop` of 0 behind a negative `start` is the end.
        """
        size = len(self)
        first = start + size if start < 0 else start
        last = first + 1 if stop is None else stop + size if stop < 0 or (stop == 0 and start < 0) else stop
        if not 0 <= first <= last <= size:
            raise ConfigError(f"remove: expected messages from 0 to {size}, got {start} and {stop}")
        del self.messages[first:last]

    def reset(self, add_system_prompt: bool = True, use_cache: bool = True, wrap_tokens: int | None = None) -> None:
        """Begin anew, with the system prompt if there is one; `wrap_tokens` keeps whole last turns up to so many."""
        kept = self._last_turns(wrap_tokens) if wrap_tokens else []
        self.messages = []
        if not use_cache:
            self.kv_cache = None
        if add_system_prompt:
            self.add_system_prompt()
        self.messages += kept

    def add_system_prompt(self, use_cache: bool = True) -> ChatMessage | None:
        """Add the system prompt as a message, if there is one."""
        return self.append("system", self.system_prompt) if self.system_prompt else None

    @property
    def system_prompt(self) -> str:
        """What the model is told before the chat. Setting another one begins the chat anew."""
        return self._system_prompt

    @system_prompt.setter
    def system_prompt(self, instruction: str | None) -> None:
        """Begin anew with another one."""
        if instruction is not None and instruction != self._system_prompt:
            self._system_prompt = _text(instruction)
            self.reset()

    def turn(self, role: str = "user") -> bool:
        """Return whether it is the turn of `user`, `bot` or `system`."""
        last = self.messages[-1].role if self.messages else None
        if role not in ROLES:
            raise ConfigError(f"role: expected one of {', '.join(ROLES)}, got {role!r}")
        return {"system": last is None, "user": last != "user", "assistant": last == "user"}[ROLES[role]]

    def to_list(self) -> list[dict[str, str]]:
        """Return `[{"role": …, "text": …}]`, plain data."""
        return [{"role": message.role, "text": message.text} for message in self.messages]

    def to_html(self) -> list[dict[str, str]]:
        """Return what `to_list` does, with texts that can stand in a page."""
        shown = [html.escape(message.text).replace("\n", "<br/>") for message in self.messages]
        return [{"role": message.role, "text": text} for message, text in zip(self.messages, shown, strict=True)]

    # -- tokens --------------------------------------------------------------------------------------------------

    def as_messages(self) -> list[Message]:
        """Return the chat as the rest of this package takes it."""
        return [message.as_message() for message in self.messages]

    def _ids(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of messages; behind a question those that begin its answer."""
        waits = bool(messages) and messages[-1].role == "user"
        given = messages, self.template, self.model.tokenizer
        return render_prompt(*given) if waits else list(render(*given).ids)

    @property
    def num_tokens(self) -> int:
        """How many tokens the chat has, with all marks."""
        return len(self._ids(self.as_messages()))

    def length_before(self, message: ChatMessage, after: int = 0) -> int:
        """Return how many ids stand before a message, or so many messages behind it; ConfigError if it was removed."""
        if message not in self.messages:
            raise ConfigError(f"message: expected one of this chat, got {message!r}, which was taken out")
        at = self.messages.index(message)
        return len(render(self.as_messages()[: at + after], self.template, self.model.tokenizer).ids)

    def embed_chat(
        self, use_cache: bool = True, max_tokens: int | None = None, wrap_tokens: int | None = None, **_: Any
    ) -> tuple[Embedding, int]:
        """Return the ids that the model has not seen yet, and how many come before them in its cache.

        Without `use_cache` all ids. A chat of more than `max_tokens` (by default the context less an eighth for the
        answer) loses whole oldest turns, down to `wrap_tokens` where that is given; the system prompt stays. Raises
        ContextError when the last message alone does not fit.
        """
        self._wrap(max_tokens or self.model.config.n_ctx - min(ANSWER, self.model.config.n_ctx // 8), wrap_tokens)
        ids = self._ids(self.as_messages())
        if not use_cache:
            self.kv_cache = None
        same = self.kv_cache.keep(ids) if self.kv_cache is not None else 0
        return Embedding(ids[same:], self.template.lead), same

    def _wrap(self, max_tokens: int, wrap_tokens: int | None) -> None:
        messages = self.as_messages()
        if len(self._ids(messages)) <= max_tokens:
            return
        system = [message for message in messages if message.role == "system"]
        live = [message for message in messages if message.role != "system"]
        try:
            kept, _ = fit(system, live, self.template, self.model.tokenizer, min(max_tokens, wrap_tokens or max_tokens))
        except ContextError:  # the last turn may still have all the room there is
            kept, _ = fit(system, live, self.template, self.model.tokenizer, max_tokens)
        said = [message for message in self.messages if message.role != "system"]
        self.messages = [m for m in self.messages if m.role == "system"] + said[len(said) + len(system) - len(kept) :]

    def _last_turns(self, tokens: int) -> list[ChatMessage]:
        at = self.find_wrap_entry(tokens)
        return [] if at is None else self.messages[at:]

    def find_wrap_entry(self, wrap_tokens: int) -> int | None:
        """Return where the turns begin that together have at most so many tokens, or None."""
        messages = self.as_messages()
        for at, message in enumerate(messages):
            if message.role == "user" and len(self._ids(messages[at:])) <= wrap_tokens:
                return at
        return None


def _text(said: object) -> str:
    if not isinstance(said, str):
        raise ConfigError(f"message: expected text, got {type(said).__name__}: {NO_MEDIA}")
    return said
