"""What OpenAI's clients may send, checked: JSON -> typed requests, or an error that names the field.

Contract: https://platform.openai.com/docs/api-reference, with the extras of vLLM (`top_k`, `min_p`,
`repetition_penalty`, `ignore_eos`, `continuous_usage_stats`). Fields that are not known here are left alone.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from gpt2chat.conversation import Message
from gpt2chat.sampling import GenerationConfig
from gpt2chat.server.faults import ApiError

MOST_ANSWERS, MOST_STOPS, STOP_LENGTH, MOST_BIASED, MOST_LOGPROBS, MOST_MESSAGES = 8, 4, 64, 300, 20, 500
MOST_TOKENS = 1 << 20  # what may be asked for; the context bounds what is given
ROLES = {"system": "system", "developer": "system", "user": "user", "assistant": "assistant"}
MOST_PROMPTS = 128  # answers of one request for texts
SHOWN = 60  # characters of a wrong value in its error

# fields of OpenAI's API that a GPT-2 has no answer to, and the values that mean nothing
NOT_SERVED: dict[str, tuple[Any, ...]] = {
    "tools": (None, []),
    "functions": (None, []),
    "tool_choice": (None, "none", "auto"),
    "function_call": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
    "audio": (None,),
    "suffix": (None, ""),
    "web_search_options": (None,),
}


def whole(value: Any) -> Any:
    """Return 8 for 8.0, which is the same number in JSON; other values as they are."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


class Model(BaseModel):
    """Numbers are numbers, texts are texts: nothing is converted, unknown fields are ignored."""

    model_config = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False, frozen=True)

    @field_validator("*", mode="before")
    @classmethod
    def _whole(cls, value: Any) -> Any:
        return whole(value)


class StreamOptions(Model):
    """What a stream tells besides text."""

    include_usage: bool | None = None
    continuous_usage_stats: bool | None = None


class Sampling(Model):
    """What requests for chats and for texts have in common; None is the server's own setting."""

    model: str | None = None
    temperature: float | None = Field(None, ge=0, le=2)
    top_p: float | None = Field(None, gt=0, le=1)
    top_k: int | None = Field(None, ge=-1, le=1 << 20)
    min_p: float | None = Field(None, ge=0, le=1)
    repetition_penalty: float | None = Field(None, ge=0.01, le=100)
    frequency_penalty: float | None = Field(None, ge=-2, le=2)
    presence_penalty: float | None = Field(None, ge=-2, le=2)
    logit_bias: dict[str, float] | None = None
    seed: int | None = Field(None, ge=-(2**63), lt=2**63)
    n: int | None = Field(None, ge=1, le=MOST_ANSWERS)
    stop: str | list[str] | None = None
    stream: bool | None = None
    stream_options: StreamOptions | None = None
    user: str | None = None
    ignore_eos: bool | None = None  # for measurements: go on to max_tokens

    @model_validator(mode="before")
    @classmethod
    def _served(cls, data: Any) -> Any:
        if isinstance(data, dict):
            for name, idle in NOT_SERVED.items():
                if name in data and data[name] not in idle:
                    raise ValueError(f"{name}: this model cannot do that; leave it out")
        return data

    @field_validator("stop", mode="before")
    @classmethod
    def _stops(cls, value: Any) -> Any:
        stops = [value] if isinstance(value, str) else value
        if stops is None:
            return None
        if not isinstance(stops, list) or not all(isinstance(stop, str) for stop in stops):
            raise ValueError("expected a text or a list of texts")
        if len(stops) > MOST_STOPS or any(len(stop) > STOP_LENGTH for stop in stops):
            raise ValueError(f"expected at most {MOST_STOPS} texts of at most {STOP_LENGTH} characters")
        return [stop for stop in stops if stop]

    @field_validator("logit_bias", mode="before")
    @classmethod
    def _biases(cls, value: Any) -> Any:
        if value is None:
            return None
        if not isinstance(value, dict) or len(value) > MOST_BIASED:
            raise ValueError(f"expected at most {MOST_BIASED} token ids, each with a number from -100 to 100")
        for token, bias in value.items():
            number = isinstance(bias, (int, float)) and not isinstance(bias, bool) and -100 <= bias <= 100
            if not (token.isascii() and token.isdigit() and len(token) <= 9) or not number:
                raise ValueError("expected token ids, each with a number from -100 to 100")
        return value

    def stops(self) -> tuple[str, ...]:
        """Return the stop strings."""
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())

    def generation(self, default: GenerationConfig, max_new_tokens: int | None) -> GenerationConfig:
        """Return how to draw: what the request says, else the server's settings."""
        given = {
            "temperature": self.temperature,
            "top_p": self.top_p,
            "top_k": None if self.top_k is None else max(0, self.top_k),
            "min_p": self.min_p,
            "repetition_penalty": self.repetition_penalty,
            "frequency_penalty": self.frequency_penalty,
            "presence_penalty": self.presence_penalty,
            "logit_bias": {int(token): bias for token, bias in (self.logit_bias or {}).items()} or None,
            "seed": None if self.seed is None else self.seed % 2**63,
            "max_new_tokens": max_new_tokens,
        }
        return replaced(default, given)


def replaced(default: GenerationConfig, given: dict[str, Any]) -> GenerationConfig:
    """Return settings with those that are given in place of their defaults."""
    return dataclasses.replace(default, **{name: value for name, value in given.items() if value is not None})


class Said(Model):
    """A message: who speaks, and what is said."""

    role: str
    content: str = ""

    def message(self) -> Message:
        """Return it as the model's side knows it."""
        content = self.content if self.role == "assistant" else self.content.strip()
        return Message(ROLES[self.role], content)


class ChatMessage(Said):
    """One message of a conversation, in any of the forms that OpenAI's API has for text."""

    @field_validator("role")
    @classmethod
    def _role(cls, value: str) -> str:
        if value not in ROLES:
            raise ValueError(f"expected one of {', '.join(ROLES)}")
        return value

    @field_validator("content", mode="before")
    @classmethod
    def _content(cls, value: Any) -> Any:
        """Take a text, nothing, or a list of parts of type text."""
        if value is None:
            return ""
        if not isinstance(value, list):
            return value
        for part in value:
            kind = part.get("type") if isinstance(part, dict) else None
            if kind != "text" or not isinstance(part.get("text"), str):
                raise ValueError(
                    'expected a text, or a list of {"type": "text", "text": …}: this model reads text only'
                )
        return "".join(part["text"] for part in value)


class ChatRequest(Sampling):
    """The body of /v1/chat/completions."""

    messages: list[ChatMessage] = Field(min_length=1, max_length=MOST_MESSAGES)
    max_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    max_completion_tokens: int | None = Field(None, ge=1, le=MOST_TOKENS)
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)

    @model_validator(mode="after")
    def _agrees(self) -> ChatRequest:
        if self.top_logprobs and not self.logprobs:
            raise ValueError("top_logprobs: expected logprobs to be true with it")
        return self


class CompletionRequest(Sampling):
    """The body of /v1/completions."""

    prompt: list[Any] = Field(default_factory=lambda: [""])
    max_tokens: int | None = Field(None, ge=0, le=MOST_TOKENS)
    logprobs: int | None = Field(None, ge=0, le=MOST_LOGPROBS)
    echo: bool | None = None
    best_of: int | None = None

    @field_validator("prompt", mode="before")
    @classmethod
    def _prompts(cls, value: Any) -> Any:
        """Make a list of it: of texts, or of lists of ids."""
        value = _wholes(value)
        several = isinstance(value, list) and not all(_is_id(entry) for entry in value)
        prompts = list(map(_wholes, value)) if several else [value]
        if not all(
            isinstance(one, str) or (isinstance(one, list) and one and all(map(_is_id, one))) for one in prompts
        ):
            raise ValueError("expected a text, a list of token ids, or a list of these")
        return prompts

    @model_validator(mode="after")
    def _agrees(self) -> CompletionRequest:
        if self.best_of not in (None, 1, self.n or 1):
            raise ValueError("best_of: expected the number of answers, n: the best of several is not chosen here")
        if self.max_tokens == 0 and not self.echo:
            raise ValueError("max_tokens: expected 1 or more, or echo with 0 to score the prompt")
        if len(self.prompt) * (self.n or 1) > MOST_PROMPTS:
            raise ValueError(f"prompt: expected at most {MOST_PROMPTS} answers in one request")
        return self


def _wholes(value: Any) -> Any:
    return list(map(whole, value)) if isinstance(value, list) else value


def _is_id(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 0 <= value < 1 << 31


class ExplainRequest(Model):
    """The body of /explain: a conversation that ends with the answer in question."""

    messages: list[ChatMessage] = Field(min_length=2, max_length=MOST_MESSAGES)

    @field_validator("messages")
    @classmethod
    def _ends(cls, value: list[ChatMessage]) -> list[ChatMessage]:
        if value[-1].role != "assistant" or not value[-1].content:
            raise ValueError("expected the answer in question as the last message")
        return value


class FeedbackRequest(ExplainRequest):
    """The body of /feedback: what is thought of the last answer."""

    rating: Literal["good", "bad"]
    instead: str | None = Field(None, max_length=8000)


Body = TypeVar("Body", bound=Model)


def parse(kind: type[Body], body: bytes) -> Body:
    """Read a request; raises ApiError 400 that names the first wrong field, what was expected and what was found."""
    try:
        return kind.model_validate_json(body)
    except ValidationError as error:
        raise refused(error) from None


def refused(error: ValidationError) -> ApiError:
    """Return the first fault of a request in words."""
    first = error.errors(include_url=False, include_context=False)[0]
    words = first["msg"].removeprefix("Value error, ")
    if first["type"] == "json_invalid":
        return ApiError(400, f"the body is not JSON: {words.removeprefix('Invalid JSON: ')}")
    if not first["loc"] and first["type"] == "model_type":
        return ApiError(400, "the body: expected a JSON object")
    place = ".".join(str(step) for step in first["loc"] if not _is_choice(step))
    if not place:
        name, colon, _ = words.partition(": ")
        return ApiError(400, words, param=name if colon and name.replace("_", "").isalpha() else None)
    if first["type"] == "missing":
        return ApiError(400, f"{place}: expected, but it is missing", param=place)
    found = repr(first["input"])
    found = found if len(found) <= SHOWN else f"{found[:SHOWN]}…"
    words = words[:1].lower() + words[1:].replace("Input should be", "expected")
    return ApiError(400, f"{place}: {words.replace('input should be', 'expected')}, got {found}", param=place)


def _is_choice(step: object) -> bool:
    """Whether a step of a place names one of several types that a field may have."""
    return isinstance(step, str) and ("[" in step or step in ("str", "int", "float", "bool"))
