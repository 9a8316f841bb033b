"""What the server sends, as types: for its description, which clients and tests are generated from."""

from __future__ import annotations

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field


class Sent(BaseModel):
    """An object with these fields and no others."""

    model_config = ConfigDict(extra="forbid")


class Fault(Sent):
    """What went wrong, as OpenAI's API words it."""

    message: str
    type: Literal[
        "invalid_request_error",
        "authentication_error",
        "permission_error",
        "not_found_error",
        "rate_limit_error",
        "server_error",
    ]
    param: str | None
    code: str | None


class ErrorObject(Sent):
    """The body of an answer with a status of 400 or above; `detail` is for nanochat's clients."""

    error: Fault
    detail: str = ""


class CachedTokens(Sent):
    """How many tokens of the prompt were there from earlier requests."""

    cached_tokens: int = Field(ge=0)


class Usage(Sent):
    """What answers took."""

    prompt_tokens: int = Field(ge=0)
    completion_tokens: int = Field(ge=0)
    total_tokens: int = Field(ge=0)
    prompt_tokens_details: CachedTokens | None = None


class Notes(Sent):
    """What OpenAI's API has no place for: turns of the conversation that left to make it fit the context."""

    dropped_turns: int = Field(ge=0)
    confidence: float | None = None  # of the answer, where the operator wants a fallback for unsure ones
    fallback: bool | None = None  # whether that was given


class Likely(Sent):
    """A token and how likely it was; its text alone may be half a character, its bytes never are wrong."""

    token: str
    bytes: list[int]
    logprob: float = Field(le=0)


class TokenScore(Likely):
    """A token of an answer."""

    top_logprobs: list[Likely]


class ChatScores(Sent):
    """Log-probabilities of a chat's answer."""

    content: list[TokenScore]
    refusal: None


class Said(Sent):
    """An answer."""

    role: Literal["assistant"]
    content: str
    refusal: None


class ChatChoice(Sent):
    """One of the answers to a chat."""

    index: int = Field(ge=0)
    message: Said
    logprobs: ChatScores | None
    finish_reason: Literal["stop", "length"]


class ChatCompletion(Sent):
    """The answers to a chat."""

    id: str
    object: Literal["chat.completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[ChatChoice] = Field(min_length=1)
    usage: Usage
    gpt2chat: Notes


class TextScores(Sent):
    """Log-probabilities of a text: all lists have an entry for each token."""

    tokens: list[str]
    token_logprobs: list[float | None]
    top_logprobs: list[dict[str, float] | None] | None
    text_offset: list[int]


class TextChoice(Sent):
    """One of the texts."""

    index: int = Field(ge=0)
    text: str
    logprobs: TextScores | None
    finish_reason: Literal["stop", "length"]


class TextCompletion(Sent):
    """How texts go on."""

    id: str
    object: Literal["text_completion"]
    created: int
    model: str
    system_fingerprint: str
    choices: list[TextChoice] = Field(min_length=1)
    usage: Usage
    gpt2chat: Notes


class Explanation(Sent):
    """How likely the model found each token of an answer."""

    tokens: list[TokenScore]


class Saved(Sent):
    """A judgement that was kept."""

    saved: Literal[True]


class ServedModel(Sent):
    """A model that is served."""

    id: str
    object: Literal["model"]
    created: int
    owned_by: str


class ServedModels(Sent):
    """All of them."""

    object: Literal["list"]
    data: list[ServedModel]


class Health(Sent):
    """Whether it lives, and whether the model is there."""

    status: Literal["ok"]
    ready: bool
    num_gpus: int
    available_workers: int


class Worker(Sent):
    """One worker."""

    gpu_id: int
    device: str


class Statistics(Sent):
    """Figures of the workers and of their engines."""

    total_workers: int
    available_workers: int
    busy_workers: int
    workers: list[Worker]
    engine: dict[str, float] | None


class PageSettings(Sent):
    """What the page should know."""

    model: str
    description: str
    context_length: int
    trained_length: int | None
    version: str
    title: str
    suggestions: list[str]
    defaults: dict[str, float | str]
    feedback: bool
    limits: dict[str, float]
