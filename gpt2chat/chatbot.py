"""`GPT2Chatbot`: a model, a template and a conversation behind `chat`."""

from __future__ import annotations

import dataclasses
import logging
import os
import weakref
from collections.abc import Callable, Iterator, Sequence

from gpt2chat import checkpoint, pretrained
from gpt2chat.checkpoint import Checkpoint
from gpt2chat.confidence import UNMEASURED, Judge, judge_of
from gpt2chat.conversation import Conversation, Message, exchanges, fit_context, render_prompt, without
from gpt2chat.decoding import Choice, choose, draft_for, open_model, runtime_of
from gpt2chat.engine import Engine
from gpt2chat.errors import ConfigError
from gpt2chat.explanation import explain
from gpt2chat.formats.rows import pairs_to_messages
from gpt2chat.generation import Decoder
from gpt2chat.grounding import FALLBACK, Grounded, Grounding, is_faq, longest, settle, spoken
from gpt2chat.matching import Matcher, as_taught, asks_taught, matcher_of
from gpt2chat.model import MODEL_SIZES
from gpt2chat.reply import Answer, Given, StreamingReply, Told
from gpt2chat.runtime import Runtime
from gpt2chat.sampling import GenerationConfig
from gpt2chat.small_talk import Reply, written
from gpt2chat.taught import Pair
from gpt2chat.templates import Template, template_named
from gpt2chat.tokenizer import Tokenizer

RESPONSE_TOKENS = {"brief": 30, "conversational": 50, "normal": 60, "detailed": 120}


class GPT2Chatbot:
    """Talks with one model and remembers the conversation, for one thread: many share a model through an `Engine`.

    Nothing is read or fetched by the constructor: the weights of `model_name` (default: gpt2-small) load at the first
    answer, unless `load_model` came first. `notice` receives one-line remarks (earlier turns dropped, another size in
    the file); by default they go to the log as warnings.

    With a `fallback` no answer is given that the model is not sure of: below `confidence`, from 0 to 1, the fallback
    text is. By default that is what `gpt2chat eval --calibrate` chose and left beside the checkpoint, else what suits
    most models.

    `grounded` answers are the taught ones word for word, or the fallback. By default (None) they are where there is a
    fallback and the model was taught questions and answers alone. Otherwise the model answers in its own words; with
    `match` a question that asks for a taught answer in other words is read as it was taught.
    """

    def __init__(
        self,
        model_name: str | None = None,
        *,
        generation: GenerationConfig | None = None,
        system: str | None = None,
        template: str | None = None,
        device: str = "auto",
        dtype: str = "auto",
        quantize: str = "auto",
        draft: str = "auto",
        compile: bool = False,
        stop: Sequence[str] = (),
        fallback: str | None = None,
        confidence: float | None = None,
        grounded: bool | None = None,
        match: bool = True,
        notice: Callable[[str], None] | None = None,
    ) -> None:
        number = isinstance(confidence, (int, float)) and not isinstance(confidence, bool)
        if confidence is not None and not (number and 0 <= confidence <= 1):
            raise ConfigError(f"confidence: expected a number from 0 to 1, got {confidence!r}")
        if fallback is not None and not (isinstance(fallback, str) and fallback.strip()):
            raise ConfigError(f"fallback: expected what is said instead, got {fallback!r}")
        if grounded not in (None, True, False) or match not in (True, False):
            raise ConfigError(f"grounded, match: expected True or False, got {grounded!r}, {match!r}")
        if not isinstance(model_name, (str, type(None))):
            raise ConfigError(f"model_name: expected a name, got {model_name!r}")
        self.model_name = model_name or pretrained.DEFAULT_MODEL
        self._expected = MODEL_SIZES.get(pretrained.canonical_name(model_name or ""))
        self.generation, self.system, self.stop = generation or GenerationConfig(), system, tuple(stop)
        self._room = GenerationConfig.max_new_tokens  # the longest answer, unless another length was asked for
        self.fallback, self._confidence, self._grounded = fallback, confidence, grounded
        self.match = match
        self.grounds: Grounded | None = None  # of the last answer, where it was grounded
        self.reply: Reply | None = None  # the written answer that was the last one, if it was
        self._judge: Judge | None = None
        self._matcher: Matcher | None = None  # of what was taught and of this object's examples
        self.messages: list[Message] = []
        self.answer: Answer | None = None  # the last one, with its tokens and what it took
        self.tokenizer = Tokenizer.gpt2()
        self._template = template_named(template) if template else None
        self._device, self._dtype, self._quantize = device, dtype, quantize
        self._draft, self._compile = draft, compile
        self._notice = notice or logging.getLogger(__name__).warning
        self._examples: list[Message] = []  # of this object, kept over load_model
        self._answers: list[Message] = []  # that are given and not shown to the model
        self._loaded: Checkpoint | None = None
        self._decoder: Decoder | None = None
        self._engine: Engine | None = None  # answers instead of the decoder
        self._told_dropped = False
        self._stream: weakref.ref[StreamingReply] | None = None

    # -- the model ---------------------------------------------------------------------------------------------

    def load_model(self, path: str | os.PathLike[str]) -> None:
        """Use the checkpoint at `path`, a `.pt` file, or a built-in name; the conversation starts anew.

        Custom examples stay. Raises CheckpointError; the model in use stays when the file cannot be read.
        """
        name = os.fspath(path)
        self._open(name, pretrained.load if pretrained.is_known(name) else checkpoint.load)
        self.reset()

    def open(self, name: str) -> None:
        """Use any model that `--model` takes; raises WeightsError, CheckpointError or ConfigError."""
        self._open(name, pretrained.load)
        self.reset()

    def use(self, loaded: Checkpoint, engine: Engine | None = None) -> None:
        """Talk with a checkpoint that is in memory; the conversation starts anew.

        With an `engine` of the same model, answers come through it: many chatbots can share one. A fallback
        they have only for grounded answers, as else the model is asked twice; raises ConfigError.
        """
        if engine and self.fallback is not None and not self._grounded:
            raise ConfigError("fallback: expected grounded=True, or a bot with a model of its own, got a shared engine")
        runtime = engine.runtime if engine else runtime_of(loaded, self._choice())
        self._adopt(dataclasses.replace(loaded, weights={}), runtime, engine)
        self.reset()

    def _choice(self) -> Choice:
        return choose(self._device, self._dtype, self._quantize, self._notice, self._compile)

    def _open(self, name: str, read: Callable[[str], Checkpoint]) -> None:
        loaded, runtime = open_model(name, self._choice(), read)
        doubts, grounded = self.fallback is not None or bool(self._grounded), self._grounds(loaded)
        judge = judge_of(name, loaded.taught, self._notice, grounded) if doubts else None
        self._adopt(loaded, runtime)
        self._judge = judge

    @property
    def threshold(self) -> float:
        """How sure an answer must be to be given: as asked for, else as measured, else as matching has it."""
        if self._confidence is not None:
            return self._confidence
        if self.grounded and not (self._judge and self._judge.calibration):
            return self.matcher.threshold
        return self._judge.threshold if self._judge else UNMEASURED

    @property
    def grounded(self) -> bool:
        """Whether answers are the taught ones word for word, or the fallback."""
        return self._grounds(self.checkpoint)

    def _grounds(self, loaded: Checkpoint) -> bool:
        """Whether the answers of a model are grounded."""
        if self._grounded is not None:
            return self._grounded
        return self.fallback is not None and is_faq(loaded.about)

    @property
    def matcher(self) -> Matcher:
        """What finds the taught answer that a question asks for, among those of the model and of this object."""
        if self._matcher is None:
            self._matcher = matcher_of(self.checkpoint.taught, [*self._answers, *self._examples])
        return self._matcher

    def _adopt(self, loaded: Checkpoint, runtime: Runtime, engine: Engine | None = None) -> None:
        if self._loaded is None and self._expected not in (None, loaded.config):
            self._notice(f"the file holds another size than {self.model_name}; using {pretrained.describe(loaded)}")
        (self._template or loaded.template).check_ids(runtime.config.vocab_size, self.tokenizer)
        self._judge = self._matcher = None
        self._make_room(loaded.taught, runtime.config.n_ctx)
        self._decoder, self._loaded, self._engine = Decoder(runtime, draft_for(self._draft, runtime)), loaded, engine

    def _make_room(self, pairs: Sequence[Pair], most: int | None = None) -> None:
        """Let answers be as long as the longest of these, unless a length was asked for."""
        if self.generation.max_new_tokens == self._room and pairs:
            tokens = longest(pairs) if most is None else min(longest(pairs), most)
            self._room = max(tokens, self._room)
            self.generation = dataclasses.replace(self.generation, max_new_tokens=self._room)

    def _ready(self) -> tuple[Checkpoint, Decoder]:
        if self._loaded is None:
            self._open(self.model_name, pretrained.load)
        if self._loaded is None or self._decoder is None:
            raise RuntimeError("no model after loading")
        return self._loaded, self._decoder

    @property
    def template(self) -> Template:
        """The template in use: the one asked for, else the checkpoint's."""
        return self._template or self._ready()[0].template

    @property
    def checkpoint(self) -> Checkpoint:
        """What is known of the model in use; its weights belong to the decoder."""
        return self._ready()[0]

    @property
    def decoder(self) -> Decoder:
        """The decoder, with the statistics of the last answer."""
        return self._ready()[1]

    # -- the conversation --------------------------------------------------------------------------------------

    def add_custom_examples(self, examples: Sequence[object]) -> int:
        """Show `[{"user": ..., "bot": ...}]` to the model before the conversation, without training.

        They survive `reset` and leave last when the context is full. Returns how many were added; raises DataError
        naming the index of a bad entry, and then adds none.
        """
        messages = pairs_to_messages(examples)
        self._examples += messages
        self._matcher = None
        self._make_room(exchanges(messages))
        return len(messages) // 2

    def give(self, pairs: Sequence[object]) -> None:
        """Answer questions with `[{"user": ..., "bot": ...}]`, which the model is not shown; raises DataError."""
        messages = pairs_to_messages(pairs)
        self._answers += messages
        self._matcher = None
        self._make_room(exchanges(messages))

    @property
    def examples(self) -> list[Message]:
        """What is shown to the model before the conversation: the checkpoint's examples, then this object's own."""
        return [*self.checkpoint.examples, *self._examples]

    def examples_fitting(self) -> int:
        """Return how many of the examples, the last ones, the model is shown before a short question."""
        kept, _ = self._fit([Message("user", "?")], self.generation)
        return (len(kept) - (self.system is not None)) // 2

    def drop_custom_example(self, user: str, bot: str) -> None:
        """Take back one pair that `add_custom_examples` or `give` added, if one did."""
        self._examples, self._answers = (without(shown, user, bot) for shown in (self._examples, self._answers))
        self._matcher = None

    def clear_custom_examples(self) -> None:
        """Take back what `add_custom_examples` and `give` added."""
        self._examples, self._answers, self._matcher = [], [], None

    def set_template(self, name: str | None) -> None:
        """Write turns as another template does; None takes the checkpoint's. Raises ConfigError."""
        template = template_named(name) if name else None
        if template and self._decoder:
            template.check_ids(self._decoder.runtime.config.vocab_size, self.tokenizer)
        self._template, self._matcher = template, None

    def reset(self) -> None:
        """Forget the conversation; the system prompt and custom examples stay."""
        self._end_stream()
        self.messages, self.answer, self.reply = [], None, None
        self._told_dropped = False

    def reset_conversation(self) -> str:
        """Forget the conversation as `reset` does, and say so."""
        self.reset()
        return "Conversation history has been reset."

    def set_response_length(self, length: str) -> None:
        """Bound the answers to come: "brief", "conversational", "normal" or "detailed"; raises ConfigError."""
        if length not in RESPONSE_TOKENS:
            raise ConfigError(f"response length: expected one of {', '.join(RESPONSE_TOKENS)}, got {length!r}")
        self.generation = dataclasses.replace(self.generation, max_new_tokens=RESPONSE_TOKENS[length])

    def set_topic(self, topic: str | None) -> None:
        """Tell the model before the conversation what it is about; None or "none" takes that back."""
        self.system = None if topic in (None, "none") else f"The conversation is about {topic}."

    def chat(
        self,
        text: str,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        **options: object,
    ) -> str:
        """Answer `text` and remember both; the options are those of `GenerationConfig`, for this answer alone."""
        return "".join(self.stream(text, max_tokens, temperature, top_p, **options))

    def stream(
        self,
        text: str,
        max_tokens: int | None = None,
        temperature: float | None = None,
        top_p: float | None = None,
        **options: object,
    ) -> StreamingReply:
        """Answer piece by piece. Both turns are remembered at the end, also when the reader stops early.

        An answer that was cut short is remembered as one that is not learnt from (`Message.trained`).
        """
        options |= {"temperature": temperature, "top_p": top_p}
        if max_tokens is not None:
            options["max_new_tokens"] = max_tokens
        return self._ask(Message("user", _text(text)), self._generation(options))

    def regenerate(self, **options: object) -> StreamingReply:
        """Answer the last question again, in place of the answer it got; raises ConfigError when there is none.

        As with `edit`, what was said before stays until the new answer ends.
        """
        self._end_stream()
        return self.edit(self.last_question.content, **options)

    def edit(self, text: str, **options: object) -> StreamingReply:
        """Ask `text` in place of the last question, whose answer is taken back; raises ConfigError for want of one."""
        question, generation = Message("user", _text(text)), self._generation(options)
        self._end_stream()
        return self._ask(question, generation, self._last_question())

    def undo(self) -> Message:
        """Take back the last question and its answer; return the question. Raises ConfigError when there is none."""
        self._end_stream()
        at = self._last_question()
        question = self.messages[at]
        del self.messages[at:]
        self.answer = None
        return question

    def correct(self, text: str) -> Message:
        """Let the last answer have been `text`, and return the question to it; raises ConfigError for want of one."""
        self._end_stream()
        at = self._last_question()
        self.messages[at + 1 :] = [Message("assistant", _text(text))]
        self.answer = None
        return self.messages[at]

    @property
    def last_question(self) -> Message:
        """The last message of the user; raises ConfigError when there is none."""
        return self.messages[self._last_question()]

    def _last_question(self) -> int:
        """Return where the last message of the user is."""
        at = max((at for at, message in enumerate(self.messages) if message.role == "user"), default=None)
        if at is None:
            raise ConfigError("conversation: expected a question to go back to, found none yet")
        return at

    def _ask(self, question: Message, generation: GenerationConfig, instead: int | None = None) -> StreamingReply:
        """Answer a question behind the conversation, or `instead` of what was said from that message on."""
        self._end_stream()

        def remember(answer: Answer) -> None:
            if self.grounded and self.grounds:
                answer.confidence, answer.replaced = self.grounds.confidence, not self.grounds.given
            whole = answer.finish_reason != "cancelled"
            if instead is not None:
                del self.messages[instead:]
            self.messages += [question, Message("assistant", answer.text, whole)]
            self.answer = answer

        reply = self._reply([*self.messages[:instead], question], generation, remember, self._doubting(question))
        self._stream = weakref.ref(reply)
        return reply

    def _doubting(self, question: Message) -> Callable[[Answer], str | None] | None:
        """Return what gives the fallback in place of an answer that is not sure enough."""
        if self.fallback is None or self.grounded:
            return None
        decoder = self.decoder
        judge = self._judge = self._judge or judge_of(None, self.checkpoint.taught, self._notice)

        def doubt(answer: Answer) -> str | None:
            if self.reply:  # was taught in the chat, and is given as it is
                answer.confidence = 1.0
                return None
            logprobs = [score.logprob for score in explain(decoder, answer.prompt, answer.tokens, top=0)]
            answer.confidence = judge.confidence(question.content, answer.text, logprobs)
            return self.fallback if answer.confidence < self.threshold else None

        return doubt

    def _end_stream(self) -> None:
        """Close a stream that is open, also one that another thread reads: there is one conversation and one cache."""
        stream = self._stream() if self._stream is not None else None
        if stream is not None:
            stream.close()

    def complete(self, messages: Conversation, generation: GenerationConfig | None = None) -> StreamingReply:
        """Answer a conversation given as a whole; remembers nothing. Its system messages replace `system`."""
        return self._reply(messages, generation or self.generation)

    def _reply(
        self,
        messages: Conversation,
        generation: GenerationConfig,
        at_end: Callable[[Answer], None] = lambda answer: None,
        judge: Callable[[Answer], str | None] | None = None,
    ) -> StreamingReply:
        decoder, template = self.decoder, self.template
        faq = self.match and not self.grounded and is_faq(self.checkpoint.about)
        if faq and asks_taught(messages, self.matcher):
            generation = dataclasses.replace(generation, temperature=0.0)  # there is one right answer
        kept = self._fitted(messages, generation)
        prompt = render_prompt(kept if self.grounded else self._as_taught(kept), template, self.tokenizer)

        def begin() -> tuple[Iterator[int], Told]:
            if self.grounded:
                return self._ground(prompt, messages, generation)
            self.reply = self._written(messages, generation)
            if self.reply:
                return self._given(self.tokenizer.encode(template.lead + self.reply.answer), prompt, generation)
            if self._engine:
                stream = self._engine.submit(prompt, generation, stop=self.tokenizer.stop_ids)
                return stream, stream
            return decoder.generate(prompt, generation, self.tokenizer.stop_ids), decoder

        text, stop = self.tokenizer.stream_decoder(), (*template.stop, *self.stop)
        return StreamingReply(prompt, begin, text, stop, template.lead, at_end, judge, decoder.cache)

    def _as_taught(self, messages: Conversation) -> Conversation:
        """Return messages in which questions for a taught answer are asked as they were taught."""
        if not self.match:
            return messages
        for message in messages:
            if self.matcher.has_many and message.role == "user":
                alone = render_prompt([message], self.template, self.tokenizer)
                settle(self.matcher, message.content, alone, self.template.lead, self._engine or self.decoder)
        return as_taught(messages, self.matcher, is_faq(self.checkpoint.about))

    def _ground(
        self, prompt: Sequence[int], messages: Conversation, generation: GenerationConfig
    ) -> tuple[Iterator[int], Told]:
        """Choose a taught answer, or the fallback; return its ids."""
        grounding = Grounding(self.matcher, FALLBACK if self.fallback is None else self.fallback, self.threshold)
        source = self._engine or self.decoder
        asked = prompt
        if not self.matcher.depends(messages[-1].content):
            alone, _ = self._fit([m for m in messages[:-1] if m.role == "system"] + [messages[-1]], generation)
            asked = render_prompt(alone, self.template, self.tokenizer)
        self.grounds, ids = spoken(grounding, messages[-1].content, asked, self.template.lead, source)
        return self._given(ids, prompt, generation)

    def _written(self, messages: Conversation, generation: GenerationConfig) -> Reply | None:
        """Return the answer that the model need not write, if there is one."""
        if not self.match:
            return None
        shown = self.matcher if self._examples or self._answers else None
        talks = self.fallback is None  # where small talk would be in place of the fallback
        about = self.checkpoint.about if talks else {**self.checkpoint.about, "small_talk": False}
        return written(about, messages, generation, shown, bool(self.system))

    def _given(
        self, ids: Sequence[int], prompt: Sequence[int], generation: GenerationConfig
    ) -> tuple[Iterator[int], Told]:
        """Return ids as an answer, as many as may be; the model needs no room for them."""
        most = generation.max_new_tokens
        return iter(ids[:most]), Given(len(prompt), "stop" if len(ids) <= most else "length")

    def _fitted(self, messages: Conversation, generation: GenerationConfig) -> Conversation:
        """Return what the model sees of a conversation; what it no longer sees is told once."""
        kept, dropped = self._fit(messages, generation)
        if dropped and not self._told_dropped:
            self._told_dropped = True
            n_ctx, length = self.decoder.runtime.config.n_ctx, self.checkpoint.trained_length
            full = f"the {length} tokens of conversation it was taught are full"
            full = full if length and length < n_ctx else f"the context of {n_ctx} tokens is full"
            self._notice(f"{full}: the model no longer sees the oldest turns, or not all examples")
        return kept

    def _fit(self, messages: Conversation, generation: GenerationConfig) -> tuple[Conversation, int]:
        """Return system prompt, examples and turns that fit, and how many examples and turns do not."""
        loaded, decoder = self._ready()
        system = [message for message in messages if message.role == "system"]
        if not system and self.system:
            system = [Message("system", self.system)]
        live = [message for message in messages if message.role != "system"]
        n_ctx, room = decoder.runtime.config.n_ctx, generation.max_new_tokens
        length = loaded.trained_length or n_ctx
        return fit_context([*system, *self.examples], live, self.template, self.tokenizer, length, n_ctx, room)

    def _generation(self, options: dict[str, object]) -> GenerationConfig:
        known = {field.name for field in dataclasses.fields(GenerationConfig)}
        given = {name: value for name, value in options.items() if value is not None}
        if unknown := sorted(set(given) - known):
            raise ConfigError(f"{unknown[0]}: expected one of {', '.join(sorted(known))}")
        return dataclasses.replace(self.generation, **given)  # type: ignore[arg-type]


def _text(text: object) -> str:
    if not isinstance(text, str) or not text.strip():
        raise ConfigError(f"message: expected text, got {text!r}")
    return text.strip()
