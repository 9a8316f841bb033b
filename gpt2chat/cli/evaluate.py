"""`gpt2chat eval`: what a checkpoint knows."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpt2chat.cli.calibrate import calibrated, calibration_options, check_count, check_options, table
from gpt2chat.cli.chatted import chatted
from gpt2chat.cli.chatted import table as chat_table
from gpt2chat.cli.options import ModelName, check_doubt, chosen, device_options, doubt_options, sources
from gpt2chat.cli.terminal import SETTINGS, reports_errors, say

if TYPE_CHECKING:
    from gpt2chat.checkpoint import Checkpoint
    from gpt2chat.conversation import Message
    from gpt2chat.evaluation import Reply
    from gpt2chat.runtime import Runtime

IN_A_ROW = 200  # so many questions are also asked in one conversation
FILE = click.Path(path_type=Path)


@click.command("eval", context_settings=SETTINGS)
@click.argument("checkpoint", type=ModelName())
@click.option("--conversation_file", type=FILE, multiple=True, help="Pairs to answer and to score.")
@click.option("--text_file", type=FILE, multiple=True, help="Text to score.")
@click.option("--format", help="What the files are, if it is not seen.")
@click.option("--encoding", help="Of the files.  [default: UTF-8, or what a byte-order mark says]")
@click.option("--limit", type=click.IntRange(1), help="Only the first so many pairs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--show", type=click.IntRange(0), default=3, help="Print so many wrong answers.")
@click.option("--paraphrases", type=FILE, multiple=True, help="Taught questions in other words, with their answers.")
@click.option("--outside", type=FILE, multiple=True, help="Questions to decline: a JSON list or lines of text.")
@doubt_options
@calibration_options
@device_options("float32")
@click.option("--quantize", default="none", help="int8 or int4: also say what rounding the weights changes.")
@reports_errors
def evaluate_command(
    checkpoint: str, conversation_file: tuple[Path, ...], text_file: tuple[Path, ...], **o: Any
) -> None:
    """Measure CHECKPOINT (a .pt file or a model's name): perplexity on text, exact answers on pairs.

    Answers are greedy. Perplexity is per token and per UTF-8 byte, with a sliding window of the whole context. With
    --quantize (or --dtype bfloat16) its change against float32 is given, and the tokens per second of the answers.

    \b
    Examples:
      gpt2chat eval trained_model.pt --conversation_file data/conversations.json
      gpt2chat eval demo --text_file data/guide.txt --quantize int8
      gpt2chat eval trained_model.pt --conversation_file heldout.json --calibrate
      gpt2chat eval faq.pt --paraphrases asked.json --outside other.txt --grounded
    """
    from gpt2chat import pretrained
    from gpt2chat.decoding import choose, runtime_of
    from gpt2chat.errors import ConfigError

    asked = any((conversation_file, text_file, o["paraphrases"], o["outside"]))
    if not asked:
        raise ConfigError("eval: expected --conversation_file, --text_file, --paraphrases or --outside, got none")
    check_doubt(o)
    check_options(checkpoint, conversation_file, **o)
    loaded, choice = pretrained.load(checkpoint), chosen(**o)
    runtime = runtime_of(loaded, choice)
    result: dict[str, Any] = {"checkpoint": checkpoint, "runtime": runtime.description}
    if text_file:
        texts = _read_texts(text_file, o["encoding"])
        result["text"] = _text(runtime, texts)
    if conversation_file:
        conversations = _read(conversation_file, loaded, **o)
        result["conversations"], replies = _conversations(runtime, loaded, conversations, o["show"])
    if o["paraphrases"] or o["outside"]:
        result["chat"] = chatted(checkpoint, **o)
    if o["calibrate"]:
        result["confidence"] = calibrated(checkpoint, loaded, runtime, conversations, replies, **o)
    if choice.form != "float32":
        exact = runtime_of(loaded, choose(o["device"], "float32", "none"))
        if text_file:
            _compare(result["text"], _text(exact, texts))
        if conversation_file:
            _compare(result["conversations"]["answers"], _answers(exact, loaded, conversations))
    click.echo(json.dumps(result) if o["as_json"] else _table(result))


def _compare(found: dict[str, float], exact: dict[str, float]) -> None:
    """Add how much more perplexity there is than in float32."""
    found["change"] = round(found["perplexity_per_token"] / exact["perplexity_per_token"] - 1, 6)


def _answers(runtime: Runtime, loaded: Checkpoint, conversations: list[tuple[Message, ...]]) -> dict[str, float]:
    from gpt2chat.evaluation import answer_perplexity
    from gpt2chat.tokenizer import Tokenizer

    return answer_perplexity(runtime, Tokenizer.gpt2(), loaded.template, conversations).to_dict()


def _read_texts(files: tuple[Path, ...], encoding: str | None) -> list[str]:
    from gpt2chat.errors import DataError
    from gpt2chat.records import Report

    texts = {source.name: source.text() for source in sources(files, encoding, Report())}
    for name, text in texts.items():
        if not text.strip():
            raise DataError(f"{name}: expected text, found none")
    return list(texts.values())


def _text(runtime: Runtime, texts: list[str]) -> dict[str, float]:
    from gpt2chat.evaluation import Perplexity, text_perplexity
    from gpt2chat.tokenizer import Tokenizer

    parts = [text_perplexity(runtime, Tokenizer.gpt2(), text) for text in texts]
    total = Perplexity(sum(p.nats for p in parts), sum(p.tokens for p in parts), sum(p.bytes for p in parts))
    return total.to_dict()


def _conversations(
    runtime: Runtime, loaded: Checkpoint, conversations: list[tuple[Message, ...]], show: int
) -> tuple[dict[str, Any], list[Reply]]:
    """Return the figures of a model's answers, and the answers."""
    from tqdm import tqdm

    from gpt2chat.evaluation import replies, replies_in_a_row
    from gpt2chat.tokenizer import Tokenizer

    tokenizer, template, n_ctx = Tokenizer.gpt2(), loaded.template, loaded.config.n_ctx
    answers, began = replies(runtime, tokenizer, template, conversations), time.perf_counter()
    found = list(tqdm(answers, total=len(conversations), desc="answers", unit="q", disable=None, leave=False))
    seconds = time.perf_counter() - began
    wrong = [reply for reply in found if not reply.exact]
    for reply in wrong[:show]:
        say(f"asked {reply.question!r}, expected {reply.expected!r}, got {reply.answer!r}")
    asked = random.Random(0).sample(conversations, min(IN_A_ROW, len(conversations)))
    rows = replies_in_a_row(runtime, tokenizer, template, asked, loaded.trained_length or n_ctx)
    later = list(tqdm(rows, total=len(asked), desc="in a row", unit="q", disable=None, leave=False))
    figures = {
        "pairs": len(found),
        "exact": round(1 - len(wrong) / len(found), 4),
        "stopped": round(sum(reply.stopped for reply in found) / len(found), 4),
        "in_a_row": {"pairs": len(later), "exact": round(sum(reply.exact for reply in later) / len(later), 4)},
        "answers": _answers(runtime, loaded, conversations),
        "tokens_per_second": round(sum(reply.tokens for reply in found) / seconds, 1),
    }
    return figures, found


def _read(files: tuple[Path, ...], loaded: Checkpoint, **o: Any) -> list[tuple[Message, ...]]:
    """Read the conversations to score; raises ContextError for one that the model cannot hold."""
    from gpt2chat.conversation import render
    from gpt2chat.errors import ContextError
    from gpt2chat.formats import read_conversations
    from gpt2chat.records import Report
    from gpt2chat.tokenizer import Tokenizer

    template, n_ctx = loaded.template, loaded.config.n_ctx
    report, conversations = Report(), []
    records = read_conversations(sources(files, o["encoding"], report), report, o["format"])[: o["limit"]]
    for line in report.lines():
        say(f"note: {line}")
    for record in records:
        messages = record.content if isinstance(record.content, tuple) else ()
        tokens = len(render(messages, template, Tokenizer.gpt2()).ids)
        if tokens > n_ctx:
            raise ContextError(f"{record.place}: has {tokens} tokens, the context holds {n_ctx}: shorten it")
        conversations.append(messages)
    if o["calibrate"]:
        check_count(len(conversations))
    return conversations


def _table(result: dict[str, Any]) -> str:
    lines = [f"{result['checkpoint']}: {result['runtime']}"]
    if text := result.get("text"):
        lines.append(f"  text      {text['tokens']} tokens, {_perplexity(text)}")
    if pairs := result.get("conversations"):
        lines.append(f"  answers   {pairs['answers']['tokens']} tokens, {_perplexity(pairs['answers'])}")
        alone = "greedy answers of the model alone equal the taught ones"
        lines.append(f"  exact     {pairs['exact']:.1%} of {pairs['pairs']} {alone}")
        row = pairs["in_a_row"]
        in_one = "asked one after the other in one conversation, without matching"
        lines.append(f"  in a row  {row['exact']:.1%} of {row['pairs']} {in_one}")
        lines.append(f"  speed     {pairs['tokens_per_second']:.0f} tokens per second, questions included")
        lines.append(f"  stopped   {pairs['stopped']:.1%} ended by themselves")
    if chat := result.get("chat"):
        lines += chat_table(chat)
    return "\n".join(lines + (table(result["confidence"]) if "confidence" in result else []))


def _perplexity(figures: dict[str, float]) -> str:
    change = f", {figures['change']:+.2%} against float32" if "change" in figures else ""
    each = f"{figures['perplexity_per_token']:.2f} per token, {figures['perplexity_per_byte']:.3f} per byte"
    return f"perplexity {each}{change}"
