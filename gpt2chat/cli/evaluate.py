"""`gpt2chat eval`: what a checkpoint knows."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpt2chat.cli.options import device_options, sources
from gpt2chat.cli.terminal import SETTINGS, reports_errors, say

if TYPE_CHECKING:
    from gpt2chat.checkpoint import Checkpoint
    from gpt2chat.conversation import Message
    from gpt2chat.model import GPT2

IN_A_ROW = 200  # so many questions are also asked in one conversation
FILE = click.Path(path_type=Path)


@click.command("eval", context_settings=SETTINGS)
@click.argument("checkpoint")
@click.option("--conversation_file", type=FILE, multiple=True, help="Pairs to answer and to score.")
@click.option("--text_file", type=FILE, multiple=True, help="Text to score.")
@click.option("--format", help="What the files are, if it is not seen.")
@click.option("--encoding", help="Of the files.  [default: UTF-8, or what a byte-order mark says]")
@click.option("--limit", type=click.IntRange(1), help="Only the first so many pairs.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--show", type=click.IntRange(0), default=3, help="Print so many wrong answers.")
@device_options("float32")
@reports_errors
def evaluate_command(
    checkpoint: str, conversation_file: tuple[Path, ...], text_file: tuple[Path, ...], **o: Any
) -> None:
    """Measure CHECKPOINT (a .pt file or a model's name): perplexity on text, exact answers on pairs.

    Answers are greedy. Perplexity is per token and per UTF-8 byte, with a sliding window of the whole context.

    \b
    Examples:
      gpt2chat eval trained_model.pt --conversation_file data/conversations.json
      gpt2chat eval demo --text_file data/guide.txt --json
    """
    from gpt2chat import pretrained
    from gpt2chat.errors import ConfigError
    from gpt2chat.hardware import pick_device, pick_dtype

    if not conversation_file and not text_file:
        raise ConfigError("eval: expected --conversation_file or --text_file, got neither")
    loaded = pretrained.load(checkpoint)
    device = pick_device(o["device"])
    model = loaded.build_model(pick_dtype(o["dtype"], device), device)
    result: dict[str, Any] = {"checkpoint": checkpoint}
    if text_file:
        result["text"] = _text(model, text_file, o["encoding"])
    if conversation_file:
        conversations = _read(conversation_file, loaded, **o)
        result["conversations"] = _conversations(model, loaded, conversations, o["show"])
    click.echo(json.dumps(result) if o["as_json"] else _table(result))


def _text(model: Any, files: tuple[Path, ...], encoding: str | None) -> dict[str, float]:
    from gpt2chat.errors import DataError
    from gpt2chat.evaluation import Perplexity, text_perplexity
    from gpt2chat.records import Report
    from gpt2chat.tokenizer import Tokenizer

    tokenizer = Tokenizer.gpt2()
    texts = {source.name: source.text() for source in sources(files, encoding, Report())}
    for name, text in texts.items():
        if not text.strip():
            raise DataError(f"{name}: expected text, found none")
    parts = [text_perplexity(model, tokenizer, text) for text in texts.values()]
    total = Perplexity(sum(p.nats for p in parts), sum(p.tokens for p in parts), sum(p.bytes for p in parts))
    return total.to_dict()


def _conversations(
    model: GPT2, loaded: Checkpoint, conversations: list[tuple[Message, ...]], show: int
) -> dict[str, Any]:
    from tqdm import tqdm

    from gpt2chat.evaluation import answer_perplexity, replies, replies_in_a_row
    from gpt2chat.tokenizer import Tokenizer

    tokenizer, template, n_ctx = Tokenizer.gpt2(), loaded.template, loaded.config.n_ctx
    answers = replies(model, tokenizer, template, conversations)
    found = list(tqdm(answers, total=len(conversations), desc="answers", unit="q", disable=None, leave=False))
    wrong = [reply for reply in found if not reply.exact]
    for reply in wrong[:show]:
        say(f"asked {reply.question!r}, expected {reply.expected!r}, got {reply.answer!r}")
    asked = random.Random(0).sample(conversations, min(IN_A_ROW, len(conversations)))
    rows = replies_in_a_row(model, tokenizer, template, asked, loaded.trained_length or n_ctx)
    later = list(tqdm(rows, total=len(asked), desc="in a row", unit="q", disable=None, leave=False))
    return {
        "pairs": len(found),
        "exact": round(1 - len(wrong) / len(found), 4),
        "stopped": round(sum(reply.stopped for reply in found) / len(found), 4),
        "in_a_row": {"pairs": len(later), "exact": round(sum(reply.exact for reply in later) / len(later), 4)},
        "answers": answer_perplexity(model, tokenizer, template, conversations).to_dict(),
    }


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
    return conversations


def _table(result: dict[str, Any]) -> str:
    lines = [result["checkpoint"]]
    if text := result.get("text"):
        lines.append(f"  text      {text['tokens']} tokens, {_perplexity(text)}")
    if pairs := result.get("conversations"):
        lines.append(f"  answers   {pairs['answers']['tokens']} tokens, {_perplexity(pairs['answers'])}")
        lines.append(f"  exact     {pairs['exact']:.1%} of {pairs['pairs']} greedy answers equal the taught ones")
        row = pairs["in_a_row"]
        lines.append(f"  in a row  {row['exact']:.1%} of {row['pairs']} asked one after the other in one conversation")
        lines.append(f"  stopped   {pairs['stopped']:.1%} ended by themselves")
    return "\n".join(lines)


def _perplexity(figures: dict[str, float]) -> str:
    return f"perplexity {figures['perplexity_per_token']:.2f} per token, {figures['perplexity_per_byte']:.3f} per byte"
