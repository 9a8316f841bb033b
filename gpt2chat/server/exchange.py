"""One request on its way to its response: answers are written down as they come, and accounted for at the end."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import AsyncGenerator, Sequence
from typing import Any

from starlette.responses import JSONResponse, Response
from starlette.types import Receive

from gpt2chat.server.answers import Answering, Piece, merged
from gpt2chat.server.faults import ApiError, own_fault
from gpt2chat.server.guard import describe
from gpt2chat.server.protocol import StreamOptions
from gpt2chat.server.replies import EventStream, unless_left
from gpt2chat.server.service import Service
from gpt2chat.server.shapes import ChatShape
from gpt2chat.server.wire import DONE, event, usage

log = logging.getLogger("gpt2chat.server")


class Exchange:
    """Answers to one request, and how they are written. `asked` are the questions, for the chat log."""

    def __init__(
        self,
        service: Service,
        answers: Sequence[Answering],
        shape: ChatShape,
        asked: Sequence[str],
    ) -> None:
        self._service, self._answers, self._shape, self._asked = service, answers, shape, asked
        self._pieces, self._texts = merged(answers), [list[str]() for _ in answers]
        self._closed = False

    async def respond(self, receive: Receive, options: StreamOptions | None, streamed: bool) -> Response:
        """Return the response; a stream begins when its first piece is there. Raises ApiError and ClientLeft."""
        headers = {"x-gpt2chat-dropped-turns": str(self._shape.extra["dropped_turns"])}
        try:
            if streamed:
                first = await unless_left(receive, anext(self._pieces))
                return EventStream(self._events(first, options or StreamOptions()), headers, self.close)
            pieces = await unless_left(receive, self._all())
            whole = self._shape.whole(pieces, self._answers)
        except BaseException:
            self.close()
            raise
        self.close()
        return JSONResponse(whole, headers=headers)

    async def _all(self) -> list[Piece]:
        async with contextlib.aclosing(self._pieces) as pieces:
            return [self._noted(piece) async for piece in pieces]

    def _noted(self, piece: Piece) -> Piece:
        if self._service.chat_log:
            self._texts[piece.index].append(piece.text)
        return piece

    async def _events(self, first: Piece, options: StreamOptions) -> AsyncGenerator[tuple[bytes, bool], None]:
        """Yield the events of a stream, and whether more follow. Whatever goes wrong is the last of them."""
        shape, tells = self._shape, bool(options.include_usage)
        always = bool(options.continuous_usage_stats)

        def chunk(data: dict[str, Any]) -> bytes:
            if always and "usage" not in data:
                data["usage"] = usage(self._answers, shape.prompts)
            elif tells:
                data.setdefault("usage", None)
            return event(data)

        chunks, left = shape.opening(len(self._answers)), len(self._answers)
        try:
            async with contextlib.aclosing(self._pieces) as pieces:
                piece: Piece | None = first
                while piece is not None:
                    chunks += shape.piece(self._noted(piece))
                    left -= piece.finish_reason is not None
                    if chunks and left:
                        yield b"".join(map(chunk, chunks)), True
                        chunks = []
                    piece = await anext(pieces, None)
            closing = [shape.usage(self._answers)] if tells else []
            end = DONE if shape.ends_with_done else b""
            yield b"".join(map(chunk, [*chunks, *closing, *shape.closing()])) + end, False
        except ApiError as error:
            yield event(error.body()), False
        except Exception as error:
            log.error("an answer failed: %s", describe(error))  # not its text, which may quote what was said
            yield event(own_fault().body()), False

    def close(self) -> None:
        """End what has not ended, and take down what it took."""
        if self._closed:
            return
        self._closed = True
        self._service.leave(self._answers)
        took, first = usage(self._answers, self._shape.prompts), self._answers[0]
        seconds, new = max(answer.seconds for answer in self._answers), took["completion_tokens"]
        log.info(
            "%s: %d + %d tokens in %.2f s, %.0f tokens/s, %s",
            self._shape.head.id[-8:],
            took["prompt_tokens"],
            new,
            seconds,
            new / seconds,
            first.finish_reason or "left",
        )
        if self._service.chat_log:
            each = len(self._answers) // len(self._asked)
            for number, (answer, text) in enumerate(zip(self._answers, self._texts, strict=True)):
                asked = self._asked[number // each]
                self._service.chat_log.write(asked, "".join(text), answer.seconds, answer.stream.new_tokens)
