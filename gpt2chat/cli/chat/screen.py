"""What a chat shows: answers on stdout, everything else on stderr."""

from __future__ import annotations

import contextlib
import json
import math
import re
import shutil
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import click

from gpt2chat.cli.terminal import Interrupted, Signals, say, visible
from gpt2chat.errors import counted

if TYPE_CHECKING:
    from gpt2chat.chatbot import GPT2Chatbot
    from gpt2chat.explanation import TokenScore
    from gpt2chat.reply import Answer, StreamingReply, Usage

MOST_NARROW = 30  # columns that words need beside a name
NARROW = 60  # columns below which lines of figures are kept short
UNLIKELY = math.log(0.001)  # below which no other token is shown
ALTERNATIVES = 4  # beside the token that was said


class Screen:
    """Writes for a terminal, for a pipe, or as one line of JSON per answer.

    `plain` leaves out colours and the line of figures behind each answer.
    """

    def __init__(self, interactive: bool, as_json: bool = False, plain: bool = False) -> None:
        self.interactive, self.as_json, self.plain = interactive, as_json, plain

    @property
    def width(self) -> int:
        """Columns of the terminal now."""
        return shutil.get_terminal_size().columns

    def say(self, text: str) -> None:
        """Print what is not an answer, its lines folded to the terminal."""
        for line in text.split("\n"):
            shown = visible(line)
            say(fold(shown, self.width) if self.interactive else shown)

    def say_pair(self, name: str, words: str) -> None:
        """Print a name and what belongs to it, in columns; where there is little room, below each other."""
        words = visible(words)
        if not self.interactive:
            say(f"{name}{words}")
            return
        indent = len(name) if self.width - len(name) >= MOST_NARROW else 4
        if indent < len(name) or not name.endswith(" "):
            say(name.rstrip())
            name = " " * indent
        say(fold(f"{name}{words}", self.width, indent))

    def show_command(self, command: str) -> None:
        """Print what can be copied to a shell: in one line, however long."""
        say(f"  {command}")

    def dim(self, text: str) -> None:
        """Print what matters less."""
        for line in text.splitlines():
            shown = fold(line, self.width) if self.interactive else line
            say(shown if self.plain else click.style(shown, dim=True))

    def answer(self, reply: StreamingReply, context: int) -> None:
        """Print an answer while it is written; Ctrl-C ends it, and what was said stays.

        Without a terminal the interrupt goes on to end the program.
        """
        if self.interactive:
            click.echo("Bot: " if self.plain else click.style("Bot: ", bold=True), nl=False)
        with Signals(), _without_echo():
            try:
                self._pieces(reply)
            except Interrupted:
                with contextlib.suppress(Interrupted):  # asked for twice, it is one wish
                    reply.stop()
                click.echo(nl=not self.as_json)
                if not self.interactive:
                    raise
                self.dim("[stopped; what was said stays. /regen asks again, /undo takes it back]")
                return
        if self.interactive and not self.plain:
            self.dim(figures(reply.answer, context, self.width))

    def no_answer(self, error: Exception) -> None:
        """Print what stands for an answer that could not be given, where each question has its line."""
        if self.as_json:
            click.echo(json.dumps({"answer": None, "error": str(error)}, ensure_ascii=False))
        elif not self.interactive:
            click.echo()

    def _pieces(self, reply: StreamingReply) -> None:
        if self.as_json:
            for _ in reply:
                pass
            click.echo(json.dumps(as_row(reply.answer), ensure_ascii=False))
            return
        wrap = Wrap(len("Bot: ")) if self.interactive and not self.plain else None
        terminal = sys.stdout.isatty()
        try:
            for piece in reply:
                shown = visible(piece) if terminal else piece
                click.echo(wrap.push(shown, self.width) if wrap else shown, nl=False)
                sys.stdout.flush()
        finally:
            click.echo(wrap.flush(self.width) if wrap else "", nl=False)
        click.echo()


@contextlib.contextmanager
def _without_echo() -> Iterator[None]:
    """Keep what is typed meanwhile off the screen; the next prompt shows it."""
    try:
        import termios

        before = termios.tcgetattr(sys.stdin)
    except (ImportError, OSError, ValueError, TypeError, termios.error):  # no terminal, or one of another kind
        yield
        return
    quiet = [*before[:3], before[3] & ~termios.ECHO, *before[4:]]
    try:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, quiet)
        yield
    finally:
        termios.tcsetattr(sys.stdin, termios.TCSADRAIN, before)


class Wrap:
    """Breaks a stream of text between words where the terminal ends; a word comes out when it is complete."""

    def __init__(self, column: int) -> None:
        """Begin in a column of the terminal."""
        self._column, self._word = column, ""

    def push(self, text: str, width: int) -> str:
        """Take more text; return what can be shown of it in a terminal of `width` columns."""
        out = []
        for char in text:
            self._word += char
            if char.isspace() or columns(char) > 1 or columns(self._word) >= width:
                out.append(self.flush(width))
        return "".join(out)

    def flush(self, width: int) -> str:
        """Return the word that was held back, on the next line if it does not fit on this one."""
        word, self._word = self._word, ""
        begins = self._column > 0 and bool(word.strip()) and self._column + columns(word.rstrip()) > width
        column = 0 if begins else self._column
        if column + columns(word.rstrip("\n")) > width:  # the blank behind it is where the line ends
            word = word.rstrip(" ")
        self._column = 0 if word.endswith("\n") else column + columns(word)
        return ("\n" if begins else "") + word


def as_row(answer: Answer) -> dict[str, Any]:
    """Return an answer and what it took, for JSON."""
    usage = answer.usage
    row: dict[str, Any] = {"answer": answer.text, "finish_reason": answer.finish_reason}
    row |= {name: getattr(usage, name) for name in ("prompt_tokens", "cached_tokens", "new_tokens")}
    row |= {name: round(getattr(usage, name), 4) for name in ("first_token_s", "seconds")}
    if answer.confidence is not None:
        row |= {"confidence": round(answer.confidence, 4), "fallback": answer.replaced}
    return row


def figures(answer: Answer, size: int, width: int) -> str:
    """Return the line behind an answer: tokens, speed, time to the first, context, cached."""
    usage = answer.usage
    speed = f"{usage.tokens_per_second:.0f} tokens/sec"
    context = f"{usage.prompt_tokens + usage.new_tokens}/{size}"
    if width < NARROW:
        return f"[{usage.new_tokens} tokens, {context}]"
    parts = [f"{usage.new_tokens} tokens", speed, f"first after {usage.first_token_s:.2f}s", f"context {context}"]
    if usage.cached_tokens:
        parts.append(f"{usage.cached_tokens} cached")
    if usage.drafted_tokens:
        parts.append(f"{usage.accepted_tokens} of {usage.drafted_tokens} guesses taken")
    if answer.confidence is not None:
        parts.append(f"confidence {answer.confidence:.2f}{' (fallback given)' if answer.replaced else ''}")
    if answer.finish_reason == "length":
        parts.append("cut at its longest: /set max_new_tokens")
    return f"[{', '.join(parts)}]"


def statistics(bot: GPT2Chatbot, answers: int, total: Usage) -> list[str]:
    """Return the figures of the last answer and of the chat."""
    decoder, answer = bot.decoder, bot.answer
    size = decoder.runtime.config.n_ctx
    turns = sum(message.role == "user" for message in bot.messages)
    lines = [f"conversation: {counted(turns, 'turn')}; context: {len(decoder.ids)}/{size} tokens in the cache"]
    if answer is not None:
        usage = answer.usage
        lines.append(
            f"last answer: {usage.cached_tokens} of {usage.prompt_tokens} prompt tokens came from the cache, "
            f"{usage.new_tokens} new at {usage.tokens_per_second:.0f} tokens/sec, "
            f"the first after {usage.first_token_s:.2f} s; end: {answer.finish_reason}"
        )
    if answers:
        lines.append(
            f"this chat: {counted(answers, 'answer')}, {total.new_tokens} tokens in {total.seconds:.1f} s; "
            f"{total.cached_tokens} of {total.prompt_tokens} prompt tokens came from the cache"
        )
    if total.drafted_tokens:
        lines.append(f"guesses: {total.accepted_tokens} of {total.drafted_tokens} taken")
    return [*lines, f"computed by: {decoder.runtime.description}"]


def say_folded(text: str) -> None:
    """Print a line, folded where standard error is a terminal."""
    shown = visible(text)
    say(fold(shown, shutil.get_terminal_size().columns) if sys.stderr.isatty() else shown)


def columns(text: str) -> int:
    """Return how many columns of a terminal text takes: two for wide characters, none for marks on others."""
    wide = sum(unicodedata.east_asian_width(char) in "WF" for char in text)
    none = sum(unicodedata.combining(char) > 0 or unicodedata.category(char) in ("Mn", "Me", "Cf") for char in text)
    return len(text) + wide - none


def padded(text: str, width: int) -> str:
    """Return text with blanks up to so many columns."""
    return text + " " * max(0, width - columns(text))


def fold(line: str, width: int, indent: int | None = None) -> str:
    """Return a line broken between words where the terminal ends.

    What follows is indented by `indent`, or as the line is.
    """
    if columns(line) < width:
        return line
    indent = len(line) - len(line.lstrip()) if indent is None else indent
    begins, lines, current = " " * min(indent, width // 2), list[str](), ""
    for part in re.findall(r"\s*\S+", line):
        if current and columns(current + part) >= width:
            lines.append(current)
            current, part = begins, part.lstrip()
        while columns(current + part) >= width:  # longer than a line
            cut = next(n for n in range(len(part)) if columns(current + part[: n + 1]) >= width) or 1
            lines.append(current + part[:cut])
            current, part = begins, part[cut:]
        current += part
    return "\n".join([*lines, current])


def explained(scores: Sequence[TokenScore], width: int) -> list[str]:
    """Return a table: each token of an answer, how likely the model found it, and what else it might have said."""
    said = [_spelled(score.text) for score in scores]
    widest = min(20, max(map(columns, said), default=0))
    lines = []
    for score, text in zip(scores, said, strict=True):
        others = [
            f"{_spelled(other)} {_percent(logprob)}" for other, logprob in score.alternatives if other != score.text
        ]
        rank = "" if score.rank == 1 else f" #{score.rank}"
        line = f"{padded(text, widest)} {_percent(score.logprob):>5}{rank:4} {'instead: ' if others else ''}"
        for other in others[:ALTERNATIVES]:
            if columns(line) + columns(other) + 2 < width:
                line += f"{other}  "
        lines.append(line.rstrip())
    return lines


def _spelled(text: str) -> str:
    """Return a token so that blanks and what steers the terminal can be seen."""
    return visible(text.replace("\n", "⏎").replace("\t", "⇥").replace(" ", "·"))


def _percent(logprob: float) -> str:
    share = 100 * math.exp(logprob)
    return f"{share:.0f}%" if share >= 1 or share < 0.05 else f"{share:.1f}%"
