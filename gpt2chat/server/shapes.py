"""Three ways to write an answer down: OpenAI's chats, nanochat's, and OpenAI's texts; as a stream or as a whole."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from gpt2chat.server.answers import Answering, Piece, Placed, joined
from gpt2chat.server.wire import Head, Scores, usage


class ChatShape:
    """OpenAI's chat completions. `scored` answers come with log-probabilities; `extra` is told once per response."""

    kind = "chat.completion"
    ends_with_done = True

    def __init__(self, model: str, scored: bool, extra: dict[str, Any], prompts: int = 1) -> None:
        self.head, self.prompts = Head(self.kind, model), prompts
        self._scores, self.extra = Scores() if scored else None, extra
        self.workers = [0]  # which of them gives each answer

    def opening(self, count: int) -> list[dict[str, Any]]:
        """Return the chunks that begin a stream of so many answers."""
        delta = {"role": "assistant", "content": ""}
        chunks = [self._chunk([self._choice(index, {"delta": delta}, (), None)]) for index in range(count)]
        chunks[0]["gpt2chat"] = self.extra
        return chunks

    def piece(self, piece: Piece) -> list[dict[str, Any]]:
        """Return the chunks of a piece: text, and the reason of an end for itself."""
        chunks = []
        if piece.text or piece.tokens:
            chunks.append(
                self._chunk([self._choice(piece.index, {"delta": {"content": piece.text}}, piece.tokens, None)])
            )
        if piece.finish_reason:
            chunks.append(self._chunk([self._choice(piece.index, {"delta": {}}, (), piece.finish_reason)]))
        return chunks

    def usage(self, answers: Sequence[Answering]) -> dict[str, Any]:
        """Return the chunk that tells what it took."""
        return {**self._chunk([]), "usage": usage(answers, self.prompts)}

    def closing(self) -> list[dict[str, Any]]:
        """Return the chunks behind everything else."""
        return []

    def whole(self, pieces: Iterable[Piece], answers: Sequence[Answering]) -> dict[str, Any]:
        """Return the object of a response that is not streamed."""
        choices = []
        for answer in joined(pieces, len(answers)):
            message = {"role": "assistant", "content": answer.text, "refusal": None}
            choices.append(self._choice(answer.index, {"message": message}, answer.tokens, answer.finish_reason))
        return self._body(choices, usage(answers, self.prompts))

    def _body(self, choices: list[dict[str, Any]], took: dict[str, Any]) -> dict[str, Any]:
        return {**self.head.envelope(choices, chunk=False), "usage": took, "gpt2chat": self.extra}

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        return self.head.envelope(choices, chunk=True)

    def _choice(self, index: int, said: dict[str, Any], tokens: Sequence[Placed], reason: str | None) -> dict[str, Any]:
        scores = self._scores.chat(tokens) if self._scores and (tokens or "message" in said) else None
        return {"index": index, **said, "logprobs": scores, "finish_reason": reason}


class NanochatShape(ChatShape):
    """The same with nanochat's `token`, `gpu` and `done` beside it; a stream ends with the chunk with `done`."""

    ends_with_done = False

    def __init__(self, model: str, scored: bool, extra: dict[str, Any], prompts: int = 1) -> None:
        super().__init__(model, scored, extra, prompts)
        self._ends = list[dict[str, Any]]()

    def piece(self, piece: Piece) -> list[dict[str, Any]]:
        """Return the chunk of a piece; the end is kept for the end."""
        chunks = super().piece(piece)
        if piece.finish_reason:
            self._ends.append(chunks.pop())
        return chunks

    def closing(self) -> list[dict[str, Any]]:
        """Return the ends of all answers, with `done` in the last one."""
        return [*self._ends[:-1], *({**end, "done": True} for end in self._ends[-1:])]

    def _chunk(self, choices: list[dict[str, Any]]) -> dict[str, Any]:
        delta = choices[0]["delta"] if choices else {}
        gpu = self.workers[choices[0]["index"]] if choices else self.workers[0]
        return {**super()._chunk(choices), "token": delta.get("content", ""), "gpu": gpu}


@dataclass(frozen=True)
class Echo:
    """A prompt that is repeated before its answer, with its tokens where they are scored."""

    text: str
    tokens: Sequence[Placed] = ()


class TextShape(ChatShape):
    """OpenAI's completions of texts: `each` answers to every prompt, behind its echo if there are echoes."""

    kind = "text_completion"

    def __init__(
        self, model: str, scored: bool, extra: dict[str, Any], prompts: int, each: int, echoes: Sequence[Echo]
    ) -> None:
        super().__init__(model, scored, extra, prompts)
        self._each, self._echoes = each, echoes

    def opening(self, count: int) -> list[dict[str, Any]]:
        """Return the chunks that begin a stream: prompts that are repeated, if any."""
        echoes = [(index, self._echo(index)) for index in range(count)] if self._echoes else []
        return [self._chunk([self._text(index, echo.text, echo.tokens, None)]) for index, echo in echoes]

    def piece(self, piece: Piece) -> list[dict[str, Any]]:
        """Return the chunk of a piece."""
        if not (piece.text or piece.tokens or piece.finish_reason):
            return []
        moved = self._moved(piece)
        return [self._chunk([self._text(piece.index, piece.text, moved, piece.finish_reason)])]

    def whole(self, pieces: Iterable[Piece], answers: Sequence[Answering]) -> dict[str, Any]:
        """Return the object of a response that is not streamed."""
        choices = []
        for answer in joined(pieces, len(answers)):
            echo, moved = self._echo(answer.index), self._moved(answer)
            text, tokens = echo.text + answer.text, [*echo.tokens, *moved]
            choices.append(self._text(answer.index, text, tokens, answer.finish_reason))
        return self._body(choices, usage(answers, self.prompts))

    def echoed(self, prompt_tokens: int) -> dict[str, Any]:
        """Return the object of a response that only repeats prompts."""
        echoes = [self._echo(index) for index in range(self.prompts * self._each)]
        choices = [self._text(index, echo.text, echo.tokens, "length") for index, echo in enumerate(echoes)]
        took = {"prompt_tokens": prompt_tokens, "completion_tokens": 0, "total_tokens": prompt_tokens}
        return self._body(choices, took)

    def _echo(self, index: int) -> Echo:
        return self._echoes[index // self._each] if self._echoes else Echo("")

    def _moved(self, piece: Piece) -> list[Placed]:
        """Return the tokens of an answer where they stand behind its echo."""
        before = len(self._echo(piece.index).text)
        return [Placed(each.drawn, each.place + before) for each in piece.tokens]

    def _text(self, index: int, text: str, tokens: Sequence[Placed], reason: str | None) -> dict[str, Any]:
        scores = self._scores.text(tokens) if self._scores else None
        return {"index": index, "text": text, "logprobs": scores, "finish_reason": reason}
