"""`gpt2chat eval --paraphrases --outside`: how a chat answers what was taught in other words, and what was not."""

from __future__ import annotations

import json
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from gpt2chat.cli.calibrate import pairs_in
from gpt2chat.cli.terminal import say


def chatted(
    name: str, paraphrases: Sequence[Path], outside: Sequence[Path], encoding: str | None, **o: Any
) -> dict[str, Any]:
    """Ask all of it of a bot as `gpt2chat chat` would open it; return the figures."""
    from tqdm import tqdm

    from gpt2chat.chatbot import GPT2Chatbot
    from gpt2chat.quality import left_out, measure

    computing = {key: o[key] for key in ("device", "fallback", "confidence", "grounded", "match")}
    bot = GPT2Chatbot(name, notice=lambda line: say(f"note: {line}"), **computing)
    bot.open(name)
    bar = partial(tqdm, unit="q", disable=None, leave=False)
    found: dict[str, Any] = {"grounded": bot.grounded, "fallback": bot.fallback, "match": bot.match}
    if bot.grounded or bot.fallback is not None:
        found["threshold"] = round(bot.threshold, 4)
    if paraphrases:
        questions: list[tuple[str, str | None]] = [*pairs_in(paraphrases, encoding)]
        found["paraphrases"] = measure(bot, questions, partial(bar, desc="paraphrases")).to_dict()
    if outside:
        asked = [question for path in outside for question in read_questions(path)]
        outcome = measure(bot, [(question, None) for question in asked], partial(bar, desc="outside")).to_dict()
        found["outside"] = {name: outcome[name] for name in ("questions", "right", "given", "blends")}
    if others := left_out(bot.checkpoint.taught):
        found["left_out"] = {"questions": others[0].of, "right": others[0].value, "word_list": others[1].value}
    return found


def read_questions(path: Path) -> list[str]:
    """Read questions: a JSON list of texts, or of records with a `user`, or a text with one in each line."""
    from gpt2chat.errors import DataError

    try:
        text = path.read_text("utf-8-sig")
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "is not UTF-8"
        raise DataError(f"{path}: cannot be read: {reason}") from error
    try:
        content = json.loads(text)
    except RecursionError:
        raise DataError(f"{path}: not valid JSON: nested too deeply") from None
    except ValueError:
        content = [_line(line) for line in text.splitlines()]
    if not isinstance(content, (list, dict, str)):
        content = text.splitlines()
    rows = content if isinstance(content, list) else [content]
    asked = [row.get("user") if isinstance(row, dict) else row for row in rows]
    for at, question in enumerate(asked, 1):
        if not isinstance(question, str):
            raise DataError(f"{path}: question {at}: expected text, got {json.dumps(rows[at - 1])[:80]}")
    found = [question.strip() for question in map(str, asked) if question.strip()]
    if not found:
        raise DataError(f"{path}: expected questions, found none")
    return found


def _line(line: str) -> Any:
    """A line of text, or a record of JSON lines."""
    try:
        row = json.loads(line) if line.lstrip().startswith("{") else line
    except (ValueError, RecursionError):
        return line
    return row


def table(chat: dict[str, Any]) -> list[str]:
    """Return lines that show the figures."""
    lines = list[str]()
    if found := chat.get("paraphrases"):
        words = f"word list {found['word_list']:.1%}"
        lines.append(f"  in other words  {found['right']:.1%} of {found['questions']} right ({words})")
        if "threshold" in chat:
            right = f"{found['right_of_given']:.1%} of these right"
            lines.append(f"                  {found['given']:.1%} answered, {right}")
        lines.append(f"                  {found['blends']:.1%} of the answers given are no taught answer")
    if found := chat.get("outside"):
        lines.append(f"  outside         {found['right']:.1%} of {found['questions']} declined")
    if found := chat.get("left_out"):
        right, words = f"{found['right']:.1%} of {found['questions']}", f"word list {found['word_list']:.1%}"
        lines.append(f"  left out        {right} phrasings, asked as if not taught, find their answer ({words})")
    return lines
