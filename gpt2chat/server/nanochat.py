"""nanochat's `POST /chat/completions`: its limits, its words, and what its chunks hold besides OpenAI's fields.

Limits and texts are those of nanochat's scripts/chat_web.py, in its order. Two things differ: `system` is taken, and an
answer that came out empty does not end a chat.
"""

from __future__ import annotations

from pydantic import Field

from gpt2chat.server.faults import ApiError
from gpt2chat.server.protocol import Said, Sampling, parse

MESSAGES, CHARACTERS, ALL_CHARACTERS, TEMPERATURE, TOP_K, TOKENS = 500, 8000, 32000, 2.0, 200, 4096
LIMITS = {
    "messages": MESSAGES,
    "characters": CHARACTERS,
    "total_characters": ALL_CHARACTERS,
    "max_tokens": TOKENS,
    "top_k": TOP_K,
    "temperature": TEMPERATURE,
}


class LooseMessage(Said):
    """A message whose role is checked later, with nanochat's words."""


class LooseRequest(Sampling):
    """The body as it comes; what has a limit of nanochat's is checked by `_check`."""

    messages: list[LooseMessage]
    temperature: float | None = None
    top_k: int | None = None
    max_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: int | None = Field(None, ge=0, le=20)


def parse_nanochat(body: bytes) -> LooseRequest:
    """Read a request; raises ApiError 400 with nanochat's words."""
    wanted = parse(LooseRequest, body)
    _check(wanted)
    return wanted


def _check(wanted: LooseRequest) -> None:
    total = 0
    if not wanted.messages:
        raise ApiError(400, "At least one message is required", param="messages")
    if len(wanted.messages) > MESSAGES:
        raise ApiError(400, f"Too many messages. Maximum {MESSAGES} messages allowed per request", param="messages")
    for i, message in enumerate(wanted.messages):
        if not message.content and message.role != "assistant":
            raise ApiError(400, f"Message {i} has empty content", param="messages")
        if len(message.content) > CHARACTERS:
            words = f"Message {i} is too long. Maximum {CHARACTERS} characters allowed per message"
            raise ApiError(400, words, param="messages")
        total += len(message.content)
    if total > ALL_CHARACTERS:
        words = f"Total conversation is too long. Maximum {ALL_CHARACTERS} characters allowed"
        raise ApiError(400, words, param="messages")
    for i, message in enumerate(wanted.messages):
        if message.role not in ("user", "assistant", "system"):
            words = f"Message {i} has invalid role. Must be 'user', 'assistant', or 'system'"
            raise ApiError(400, words, param="messages")
    if wanted.temperature is not None and not 0 <= wanted.temperature <= TEMPERATURE:
        raise ApiError(400, f"Temperature must be between 0.0 and {TEMPERATURE}", param="temperature")
    if wanted.top_k is not None and not 0 <= wanted.top_k <= TOP_K:
        raise ApiError(400, f"top_k must be between 0 and {TOP_K}", param="top_k")
    if wanted.max_tokens is not None and not 1 <= wanted.max_tokens <= TOKENS:
        raise ApiError(400, f"max_tokens must be between 1 and {TOKENS}", param="max_tokens")
