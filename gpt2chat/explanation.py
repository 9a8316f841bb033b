"""Why an answer came out: how likely the model found each of its tokens, and what it would have said instead."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from gpt2chat.generation import Decoder
from gpt2chat.likelihood import likelihoods
from gpt2chat.tokenizer import Tokenizer


@dataclass(frozen=True)
class TokenScore:
    """One token of an answer as the model saw it: natural logarithms of its own probabilities, before any filter.

    `rank` is 1 for the likeliest token; `alternatives` are the likeliest tokens (text, logprob), best first, which may
    hold this one. Bytes of a text that are only a part of a character are written as escapes, like \\xf0; ids that a
    template adds by their number.
    """

    token: int
    text: str
    logprob: float
    rank: int
    alternatives: tuple[tuple[str, float], ...]


def explain(decoder: Decoder, prompt: Sequence[int], answer: Sequence[int], top: int = 5) -> list[TokenScore]:
    """Score each token of an answer to a prompt, with the `top` likeliest at its place.

    The decoder's cache is used and brought to prompt and answer, so that later answers are those they would have been.
    Raises ContextError when prompt and answer do not fit into the context.
    """
    spell, scores = Speller(), list[TokenScore]()
    for rows in decoder.read(prompt, answer):
        ids = answer[len(scores) : len(scores) + len(rows)]
        for token, (logprob, rank, best) in zip(ids, likelihoods(rows.float().cpu().numpy(), ids, top), strict=True):
            alternatives = tuple((spell.text(other), value) for other, value in best)
            scores.append(TokenScore(token, spell.text(token), logprob, rank, alternatives))
    return scores


class Speller:
    """Spells single tokens: bytes of a text that are only a part of a character as escapes, like \\xf0."""

    def __init__(self) -> None:
        self._encoding = Tokenizer.gpt2().encoding

    def text(self, token: int) -> str:
        """Return the text of a token, or the number of one that a template added."""
        if token >= self._encoding.n_vocab:
            return f"<token {token}>"
        return self.bytes(token).decode("utf-8", "backslashreplace")

    def bytes(self, token: int) -> bytes:
        """Return the bytes of a token, none for one that a template added."""
        return self._encoding.decode_single_token_bytes(token) if token < self._encoding.n_vocab else b""
