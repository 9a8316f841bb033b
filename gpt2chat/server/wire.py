"""Answers -> the JSON objects that OpenAI's and nanochat's clients read. Pure functions of what is given."""

from __future__ import annotations

import json
import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from gpt2chat.explanation import Speller
from gpt2chat.server.answers import Answering, Placed
from gpt2chat.server.names import fresh
from gpt2chat.streams import Drawn
from gpt2chat.version import __version__

DONE = b"data: [DONE]\n\n"


def event(data: dict[str, Any]) -> bytes:
    """Return one event of a stream."""
    return b"data: " + json.dumps(data, ensure_ascii=False, separators=(",", ":")).encode("utf-8", "replace") + b"\n\n"


@dataclass(frozen=True)
class Head:
    """What all objects of one response share."""

    kind: str  # chat.completion or text_completion
    model: str
    id: str = ""
    created: int = field(default_factory=lambda: int(time.time()))

    def __post_init__(self) -> None:
        if not self.id:
            prefix = "chatcmpl" if self.kind.startswith("chat") else "cmpl"
            object.__setattr__(self, "id", fresh(f"{prefix}-"))

    def envelope(self, choices: Sequence[dict[str, Any]], chunk: bool) -> dict[str, Any]:
        """Return the object around choices."""
        kind = "chat.completion.chunk" if chunk and self.kind == "chat.completion" else self.kind
        shared = {"id": self.id, "object": kind, "created": self.created, "model": self.model}
        return {**shared, "system_fingerprint": f"gpt2chat-{__version__}", "choices": list(choices)}


def usage(answers: Iterable[Answering], prompts: int = 1) -> dict[str, Any]:
    """Return what answers took so far; those to one prompt share it."""
    answers = list(answers)
    each = max(1, len(answers) // prompts)
    asked = sum(answer.stream.prompt_tokens for answer in answers[::each])
    cached = sum(answer.stream.cached_tokens for answer in answers[::each])
    new = sum(answer.stream.new_tokens for answer in answers)
    return {
        "prompt_tokens": asked,
        "completion_tokens": new,
        "total_tokens": asked + new,
        "prompt_tokens_details": {"cached_tokens": cached},
    }


def _own(drawn: Drawn) -> list[tuple[int, float]]:
    """Return the likeliest tokens of a place, and the one that stands there as the last if it is none of them."""
    own = drawn.logprob is not None and all(token != drawn.id for token, _ in drawn.top)
    return [*drawn.top, *([(drawn.id, drawn.logprob)] if own and drawn.logprob is not None else [])]


class Scores:
    """Log-probabilities in the two forms of OpenAI's API."""

    def __init__(self) -> None:
        self._speller = Speller()

    def _token(self, token: int, logprob: float, cut: int = 0) -> dict[str, Any]:
        text, spelled = self._speller.text(token), self._speller.bytes(token)
        return {"token": text[cut:], "bytes": list(spelled[cut:]), "logprob": logprob}

    def chat(self, tokens: Sequence[Placed]) -> dict[str, Any]:
        """Return those of a chat's chunk or message."""
        content = [
            {
                **self._token(each.drawn.id, each.drawn.logprob or 0.0, each.cut),
                "top_logprobs": [self._token(*other) for other in each.drawn.top],
            }
            for each in tokens
        ]
        return {"content": content, "refusal": None}

    def text(self, tokens: Sequence[Placed]) -> dict[str, Any]:
        """Return those of a text's chunk or choice; a first token of all, which nothing predicts, has none."""
        spell = self._speller.text
        tops = [{spell(token): value for token, value in _own(each.drawn)} or None for each in tokens]
        return {
            "tokens": [spell(each.drawn.id) for each in tokens],
            "token_logprobs": [each.drawn.logprob for each in tokens],
            "top_logprobs": tops if any(tops) else None,
            "text_offset": [each.place for each in tokens],
        }
