"""The model behind the server: messages -> what the engine is asked, who waits, and how it all ends."""

from __future__ import annotations

import asyncio
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from gpt2chat import confidence, pretrained
from gpt2chat.chats import Feedback
from gpt2chat.checkpoint import Checkpoint
from gpt2chat.conversation import Message, fit_context, render_prompt, turns
from gpt2chat.engine import Engine
from gpt2chat.errors import ConfigError, ContextError, EngineFull
from gpt2chat.fleet import Fleet
from gpt2chat.grounding import FALLBACK, Grounding, is_faq, longest
from gpt2chat.matching import Matcher, as_taught, asks_taught, matcher_of
from gpt2chat.sampling import GenerationConfig
from gpt2chat.server import nanochat
from gpt2chat.server.answers import Answering, Judge, Pace, Question
from gpt2chat.server.chatlog import ChatLog
from gpt2chat.server.faults import ApiError
from gpt2chat.server.limits import Limits
from gpt2chat.server.metrics import Figures
from gpt2chat.small_talk import Reply, has_small_talk, small_talk, written
from gpt2chat.streams import Scores
from gpt2chat.templates import Template
from gpt2chat.tokenizer import Tokenizer
from gpt2chat.version import __version__

log = logging.getLogger("gpt2chat.server")
MOST_FEEDBACK = 100 << 20  # bytes of a file: visitors must not fill the disk
SUGGESTED = 3  # questions on the empty page
LONG = 16_000  # characters from which on reading a conversation would hold up others
LONGEST_TOKEN = 128  # characters; a message with more of them per token of the context cannot fit
ALIAS = "gpt2chat"  # a name by which the model is served besides its own


@dataclass(frozen=True)
class Settings:
    """What the operator decided. `template` and `examples` are used besides those of the checkpoint."""

    model: str
    generation: GenerationConfig = field(default_factory=GenerationConfig)
    system: str | None = None
    template: Template | None = None
    examples: Sequence[Message] = ()
    max_length: int | None = None  # of a prompt, in tokens
    feedback: Path | None = None
    chat_log: Path | None = None
    title: str = "gpt2chat"
    suggestions: tuple[str, ...] = ()  # on the empty page; without them some questions that the model was taught
    fallback: str | None = None  # what is said in place of an answer that is not sure enough
    threshold: float | None = None  # how sure that is; None: as it was measured
    grounded: bool | None = None  # whether answers are the taught ones word for word; None: as the chat decides
    match: bool = True  # whether a question that asks for a taught answer in other words is read as it was taught
    limits: Limits = field(default_factory=Limits)


class Service:
    """Asks the engine on behalf of clients. All methods but `open` belong to the event loop."""

    def __init__(self, settings: Settings, workers: int = 1) -> None:
        """Raises ConfigError for files that cannot be written."""
        self.settings, self.workers = settings, workers
        self.tokenizer, self.figures, self.pace = Tokenizer.gpt2(), Figures(self), Pace()
        self.feedback = _feedback(settings.feedback, settings.model) if settings.feedback else None
        self._feedback_lock, self.created = threading.Lock(), int(time.time())
        self.chat_log = ChatLog(settings.chat_log) if settings.chat_log else None
        self.engine: Fleet | None = None
        self._loaded: Checkpoint | None = None
        self._running = set[Answering]()
        self._judge: confidence.Judge | None = None
        self.matcher: Matcher | None = None
        self.grounding: Grounding | None = None
        self.draining = False
        self._turns = asyncio.Lock()

    # -- coming and going --------------------------------------------------------------------------------------

    def open(self, loaded: Checkpoint, engines: Sequence[Engine], name: str | None = None) -> None:
        """Begin to answer, with engines of one checkpoint; raises ConfigError for a template that it cannot take.

        With its `name`, or place, what was measured of its confidence is found.
        """
        template = self.settings.template or loaded.template
        template.check_ids(loaded.config.vocab_size, self.tokenizer)
        self.settings = replace(
            self.settings,
            generation=self.settings.generation.with_room(min(longest(loaded.taught), loaded.config.n_ctx)),
        )
        self._understand(loaded, name)
        if self.settings.match and has_small_talk(loaded.about):
            small_talk().nearest("Are you ready yet?")  # so that nobody waits for it
        self._loaded, self.engine = loaded, Fleet(engines)
        try:
            self._rendered(self._fit([Message("user", "?")], self.settings.generation.max_new_tokens)[0])
        except ContextError as error:
            raise ConfigError(f"system: expected a text that leaves room for questions: {error}") from None

    def _understand(self, loaded: Checkpoint, name: str | None) -> None:
        """Make what finds taught answers, and what says how sure an answer is."""
        settings = self.settings
        grounded = settings.fallback is not None and is_faq(loaded.about)
        grounded = grounded if settings.grounded is None else settings.grounded
        matcher = matcher_of(loaded.taught, settings.examples) or None
        if grounded:
            fallback = FALLBACK if settings.fallback is None else settings.fallback
            measured = confidence.judge_of(name, loaded.taught, log.warning, grounded).calibration
            threshold = measured.threshold if measured and settings.threshold is None else settings.threshold
            self.grounding = Grounding(matcher or Matcher([]), fallback, threshold)
            log.info("grounded: answers are the taught ones, word for word, or the fallback")
        elif settings.fallback is not None:
            self._judge = confidence.judge_of(name, loaded.taught, log.warning)
        if settings.match and not grounded:
            self.matcher = matcher

    @property
    def ready(self) -> bool:
        """Whether the model is there and new requests are taken."""
        return self.engine is not None and not self.draining

    def opened(self) -> tuple[Checkpoint, Fleet]:
        """Return model and engines; raises ApiError 503 before they are there and after the end was announced."""
        if self.draining:
            raise ApiError(503, "the server is shutting down", code="shutting_down", headers={"retry-after": "5"})
        if self._loaded is None or self.engine is None:
            raise ApiError(503, "the model is still loading", code="loading", headers={"retry-after": "1"})
        return self._loaded, self.engine

    def drain(self) -> None:
        """Take no new requests, and end those that have not begun."""
        self.draining = True
        for answering in list(self._running):
            if not answering.stream.started:
                answering.end("shutdown")

    def end_all(self) -> None:
        """End every answer, each with an error that says why."""
        for answering in list(self._running):
            answering.end("shutdown")

    async def turn(self) -> None:
        """Wait for a turn of the event loop in which no other request is prepared, so that /health gets in between."""
        async with self._turns:
            await asyncio.sleep(0)

    # -- questions ---------------------------------------------------------------------------------------------

    @property
    def names(self) -> tuple[str, ...]:
        """The names under which the model is served."""
        return (self.settings.model, ALIAS)

    def check_name(self, name: str | None) -> None:
        """Raise ApiError 404 for a model that is not served here; none at all means this one."""
        if name and name not in self.names:
            shown = name if len(name) <= 60 else f"{name[:60]}…"
            message = f"model {shown.strip()!r} is not served here, expected one of {', '.join(self.names)}"
            raise ApiError(404, message, param="model", code="model_not_found")

    async def prompt(
        self,
        messages: Sequence[Message],
        max_new_tokens: int,
        settle: Callable[[Sequence[Message]], Awaitable[None]] | None = None,
    ) -> tuple[list[int], int]:
        """Return the ids of a chat that waits for an answer, and how many of its turns left to make it fit.

        What is left of it is settled before it is read as it was taught. Raises ApiError 400 when the newest message
        alone does not fit.
        """
        loaded, _ = self.opened()
        most = loaded.config.n_ctx * LONGEST_TOKEN
        if len(messages[-1].content) > most:
            raise too_long(f"the message has {len(messages[-1].content)} characters, {most} cannot fit the context")
        long = sum(len(message.content) for message in messages) > LONG
        try:
            if long:
                kept, dropped = await asyncio.to_thread(self._fit, messages, max_new_tokens)
            else:
                kept, dropped = self._fit(messages, max_new_tokens)
            if settle:
                await settle(kept)
            return await asyncio.to_thread(self._rendered, kept) if long else self._rendered(kept), dropped
        except ContextError as error:
            raise too_long(str(error)) from None

    async def encode(self, text: str) -> list[int]:
        """Return the ids of a text; raises ApiError 400 for one that cannot fit, however it is spelled."""
        most = self.context_length * LONGEST_TOKEN
        if len(text) > most:
            raise too_long(f"the prompt has {len(text)} characters, more than {most} cannot fit the context", "prompt")
        return await asyncio.to_thread(self.tokenizer.encode, text) if len(text) > LONG else self.tokenizer.encode(text)

    def check_prompt(self, ids: Sequence[int], room: bool = True) -> None:
        """Raise ApiError 400 for ids that the model does not have, or too many; `room` leaves one for an answer."""
        loaded, _ = self.opened()
        most = min(loaded.config.n_ctx - room, self.settings.max_length or loaded.config.n_ctx)
        if len(ids) > most:
            raise too_long(f"the prompt has {len(ids)} tokens, at most {most} are taken here", "prompt")
        if max(ids) >= loaded.config.vocab_size:
            last = loaded.config.vocab_size - 1
            raise ApiError(400, f"prompt: expected token ids from 0 to {last}, got {max(ids)}", param="prompt")

    def _fit(self, messages: Sequence[Message], max_new_tokens: int) -> tuple[list[Message], int]:
        """Return system prompt, examples and turns that fit, and how many turns do not; raises ContextError."""
        loaded, _ = self.opened()
        settings, n_ctx = self.settings, loaded.config.n_ctx
        system = [message for message in messages if message.role == "system" and message.content]
        if not system and settings.system:
            system = [Message("system", settings.system)]
        live = [message for message in messages if message.role != "system"]
        examples = [*loaded.examples, *settings.examples]
        length = min(loaded.trained_length or n_ctx, settings.max_length or n_ctx)
        pinned = [*system, *examples]
        kept, _ = fit_context(pinned, live, self.template, self.tokenizer, length, n_ctx, max_new_tokens)
        mine = set(map(id, live))
        shown = [message for message in kept if id(message) in mine]
        return list(kept), len(turns(live)) - len(turns(shown))

    def _rendered(self, messages: Sequence[Message]) -> list[int]:
        """Return the ids of what fits, asked as it was taught; raises ContextError."""
        loaded, _ = self.opened()
        most = self.settings.max_length or loaded.config.n_ctx
        if self.matcher:
            messages = as_taught(messages, self.matcher, is_faq(loaded.about))
        prompt = render_prompt(messages, self.template, self.tokenizer)
        if len(prompt) > most:
            beside = " with its system prompt" if messages[0].role == "system" else ""
            found = f"the message has {len(prompt)} tokens{beside}"
            raise ContextError(f"{found}, at most {self.settings.max_length} are taken here")
        return prompt

    @property
    def template(self) -> Template:
        """How turns are written."""
        return self.settings.template or self.opened()[0].template

    def ask(self, question: Question, count: int = 1, index: int = 0) -> list[Answering]:
        """Ask for answers to one question, numbered from `index`; raises ApiError."""
        _, engine = self.opened()
        limits, answers = self.settings.limits, list[Answering]()
        try:
            streams = engine.submit_many(
                question.prompt,
                question.config,
                count,
                stop=() if question.endless else self.tokenizer.stop_ids,
                stop_strings=question.stop,
                lead=question.lead,
                logprobs=question.logprobs,
                client="" if question.client == "local" else question.client,
                realm=question.client,
            )
        except Exception as error:
            raise self._refused(error) from error
        for number, stream in enumerate(streams, index):
            answers.append(Answering(stream, question, number, self.pace, limits.queue_s, limits.answer_s))
        self._running.update(answers)
        return answers

    async def replies(self, messages: Sequence[Message], generation: GenerationConfig, count: int) -> list[Reply]:
        """Return so many answers that the model need not write, or none if there is none.

        The seed of each is one more than that of the one before, as where the model draws several.
        """
        about, settings = self.opened()[0].about, self.settings
        if settings.fallback is not None:  # which is said in the place of small talk
            about = {**about, "small_talk": False}
        shown, replies = self.matcher if settings.examples else None, list[Reply]()
        if not settings.match or (not shown and not has_small_talk(about)):
            return []
        for number in range(count):
            seed = None if generation.seed is None else (generation.seed + number) % 2**63
            one = replace(generation, seed=seed)
            reply = await asyncio.to_thread(written, about, messages, one, shown, bool(settings.system))
            if reply is None:
                return []
            replies.append(reply)
        return replies

    def drawing(self, messages: Sequence[Message], generation: GenerationConfig) -> GenerationConfig:
        """Return how the answer is drawn: of a taught question of an FAQ not at all, as there is one right answer."""
        faq = self.matcher is not None and is_faq(self.opened()[0].about)
        if faq and self.matcher and asks_taught(messages, self.matcher):
            return replace(generation, temperature=0.0)
        return generation

    def give(self, question: Question, texts: Sequence[str]) -> list[Answering]:
        """Answer a question with these texts, scored behind as much of it as there is room for; raises ApiError."""
        answers, limits = list[Answering](), self.settings.limits
        most = min(question.config.max_new_tokens, self.context_length - 1)
        for number, text in enumerate(texts):
            ids = self.tokenizer.encode(question.lead + text)
            prompt = question.prompt[-max(1, self.context_length - min(most, len(ids))) :]
            stream = self.score([*prompt, *ids[:most]], len(prompt), question.logprobs or 0, question.client)
            answers.append(Answering(stream, question, number, self.pace, limits.queue_s, limits.answer_s))
            answers[-1].given = "stop" if len(ids) <= most else "length"
        self._running.update(answers)
        return answers

    def doubting(self, messages: Sequence[Message], told: dict[str, Any]) -> Judge | None:
        """Return what gives the fallback in place of an answer that is not sure enough; `told` gets how sure it is."""
        if self._judge is None:
            return None
        judge, settings = self._judge, self.settings
        least = judge.threshold if settings.threshold is None else settings.threshold
        asked = [message.content for message in messages if message.role == "user"] or [""]

        def doubt(answer: str, logprobs: Sequence[float]) -> str | None:
            told["confidence"] = round(judge.confidence(asked[-1], answer, logprobs), 4)
            told["fallback"] = told["confidence"] < least
            return settings.fallback if told["fallback"] else None

        return doubt

    def score(self, ids: Sequence[int], start: int, top: int, client: str) -> Scores:
        """Ask how likely the model finds the ids from `start` on; raises ApiError."""
        _, engine = self.opened()
        name, wait = "" if client == "local" else client, self.settings.limits.queue_s
        try:
            return engine.score(ids, start, top, client=name, realm=client, deadline=wait)
        except Exception as error:
            raise self._refused(error) from error

    def _refused(self, error: Exception) -> Exception:
        """Return what a client is told of a request that the engine does not take."""
        if isinstance(error, EngineFull):
            wait = self.figures.wait_s()
            return ApiError(429, str(error), code="queue_full", headers={"retry-after": str(wait)})
        if isinstance(error, ContextError):
            return too_long(str(error))
        if isinstance(error, ConfigError):
            return ApiError(400, str(error))
        return error

    def leave(self, answers: Sequence[Answering]) -> None:
        """End answers, if they have not ended, and count them."""
        self._running.difference_update(answers)
        for answering in answers:
            answering.stream.cancel()
            self.figures.note(answering)

    # -- besides answering -------------------------------------------------------------------------------------

    def judge(self, messages: Sequence[Message], good: bool, instead: str | None) -> None:
        """Keep a judged answer; raises GPT2ChatError when it cannot be written. Called by any thread."""
        assert self.feedback
        with self._feedback_lock:
            for path in (self.feedback.path, self.feedback.preferences):
                if path.exists() and path.stat().st_size > MOST_FEEDBACK:
                    raise ConfigError(f"{path.name} is full: the operator should train on it and move it away")
            if instead and instead.strip():
                self.feedback.teach(messages, instead.strip())
            elif good:
                self.feedback.approve(messages)
            else:
                self.feedback.reject(messages)

    def _suggested(self, loaded: Checkpoint) -> list[str]:
        """Return the operator's suggestions, or short questions from all over what the model was taught."""
        if self.settings.suggestions:
            return list(self.settings.suggestions)
        short = [question for question, _ in loaded.taught if len(question) <= 60]
        return short[:: max(1, len(short) // SUGGESTED)][:SUGGESTED]

    @property
    def context_length(self) -> int:
        """How many tokens prompt and answer may have."""
        return self.opened()[0].config.n_ctx

    def told(self) -> dict[str, object]:
        """Return what the page should know of model and settings."""
        loaded, fleet = self.opened()
        drawing = self.settings.generation
        defaults = {
            "temperature": drawing.temperature,
            "top_k": drawing.top_k,
            "top_p": drawing.top_p,
            "max_tokens": drawing.max_new_tokens,
            "system": self.settings.system or "",
        }
        return {
            "model": self.settings.model,
            "description": f"{pretrained.describe(loaded).partition(': ')[2]}; {fleet.runtime.description}",
            "context_length": loaded.config.n_ctx,
            "trained_length": loaded.trained_length,
            "version": __version__,
            "title": self.settings.title,
            "suggestions": self._suggested(loaded),
            "defaults": defaults,
            "feedback": self.feedback is not None,
            "limits": nanochat.LIMITS,
        }


def _feedback(path: Path, model: str) -> Feedback:
    """Return what keeps judged answers; raises ConfigError for a place that nothing can be written to."""
    if path.is_dir() or not path.parent.is_dir():
        raise ConfigError(f"feedback: expected a file in a folder that is there, got {path}")
    feedback = Feedback(path, model)
    for each in (path, feedback.preferences):  # what people said: for nobody else
        try:
            os.close(os.open(each, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o600))
        except OSError as error:
            raise ConfigError(f"feedback: {each}: cannot be written: {error.strerror}") from error
    return feedback


def too_long(message: str, param: str = "messages") -> ApiError:
    """Return what a client is told of a prompt that does not fit."""
    message = message.replace("max_new_tokens", "max_tokens")  # as requests name it
    param = "prompt" if message.startswith("prompt:") else param
    return ApiError(400, message, param=param, code="context_length_exceeded")


def served_name(name: str) -> str:
    """Return the name under which a model is served: that of its file without the ending, or its own without blanks."""
    known = pretrained.canonical_name(name)
    if pretrained.is_known(name):
        return known.partition(" ")[0]
    path = Path(name)
    return (path.stem if path.suffix else path.name) if path.exists() else name
