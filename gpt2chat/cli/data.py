"""`gpt2chat data`: look at training data before it is learnt, and write it in other forms."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpt2chat.cli.terminal import RUNTIME_ERROR, SETTINGS, reports_errors, say

if TYPE_CHECKING:
    from gpt2chat.checking import Check
    from gpt2chat.records import Record

FILE = click.Path(path_type=Path)


@click.group("data", context_settings=SETTINGS)
def data_command() -> None:
    """Check, convert and look at training data.

    \b
    Examples:
      gpt2chat data check data/conversations.json
      gpt2chat data convert faq.csv pairs.json --to pairs
    """


def _records(places: tuple[Path, ...], as_text: bool = False, **o: Any) -> Iterator[Record]:
    """Yield the records of all places; what was found odd is said at the end."""
    from gpt2chat.formats import expand, read
    from gpt2chat.records import Report

    report = Report()
    for source in expand(places, o.get("encoding")):
        yield from read(source, report, o.get("format"), o.get("text_separator"), as_text).records
    for line in report.lines():
        say(f"note: {line}")


@data_command.command("check", context_settings=SETTINGS)
@click.argument("places", nargs=-1, required=True, type=FILE)
@click.option("--format", help="What the files are, if it is not seen.")
@click.option("--encoding", help="Of the files.  [default: UTF-8, or what a byte-order mark says]")
@click.option("--template", default="chat", help="How turns are written, for counting tokens.")
@click.option("--max_length", type=click.IntRange(8), default=1024, help="Tokens of the model's context.")
@click.option("--heldout", type=FILE, multiple=True, help="Data to judge with, which should not be in PLACES.")
@click.option("--show", type=click.IntRange(0), default=3, help="Print so many examples, the learnt part in brackets.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@reports_errors
def check_command(places: tuple[Path, ...], **o: Any) -> None:
    """Read all of PLACES and say what a training run would make of it; exit code 1 when something is wrong.

    \b
    Examples:
      gpt2chat data check data/conversations.json
      gpt2chat data check "faq/**/*.csv" --json
    """
    from gpt2chat.checking import Check
    from gpt2chat.conversation import template_named
    from gpt2chat.formats import expand

    check = Check(template_named(o["template"]), o["max_length"], o["show"])
    for source in expand(places, o["encoding"]):
        check.add(source, o["format"])
    for source in expand(o["heldout"], o["encoding"]):
        check.compare(source, o["format"])
    if o["as_json"]:
        click.echo(json.dumps(check.to_dict(), ensure_ascii=False))
    else:
        _print(check)
    if check.faults:
        raise SystemExit(RUNTIME_ERROR)


def _print(check: Check) -> None:
    figures = check.to_dict()
    for line in check.found:
        click.echo(line)
    for fault in check.faults:
        click.echo(click.style("error: ", fg="red") + fault)
    for line in check.report.lines():
        click.echo(f"note: {line}")
    for example in check.examples:
        click.echo(f"example: {example}")
    kinds = f"{figures['conversations']} conversations, {figures['texts']} texts"
    click.echo(f"{kinds}, {figures['tokens']} tokens, of which {figures['learnt_tokens']} are learnt")
    if check.lengths:
        click.echo(f"tokens per record: median {figures['median']}, longest {figures['longest']}")
        for line in check.histogram():
            click.echo(line)
        if figures["too_long"]:
            click.echo(f"{figures['too_long']} records are longer than {check.max_tokens} tokens")


@data_command.command("convert", context_settings=SETTINGS)
@click.argument("source", type=FILE)
@click.argument("target", type=FILE)
@click.option("--to", required=True, help="pairs, messages, sharegpt, alpaca, csv or text.")
@click.option("--format", help="What SOURCE is, if it is not seen.")
@click.option("--encoding", help="Of SOURCE.  [default: UTF-8, or what a byte-order mark says]")
@click.option("--text_separator", help="Cut a text into documents at this string.")
@reports_errors
def convert_command(source: Path, target: Path, to: str, **o: Any) -> None:
    """Write SOURCE (a file, folder or pattern) to TARGET in another form: JSON lines, or a list if it ends in .json.

    \b
    Examples:
      gpt2chat data convert faq.csv pairs.json --to pairs
      gpt2chat data convert dialogs.jsonl.xz sharegpt.json --to sharegpt
    """
    from gpt2chat.formats.writers import write

    count = write(_records((source,), as_text=to == "text", **o), target, to)
    say(f"wrote {count} records to {target}")


@data_command.command("split", context_settings=SETTINGS)
@click.argument("places", nargs=-1, required=True, type=FILE)
@click.option("--fraction", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.1, help="Held out.")
@click.option("--seed", type=int, default=0, help="Same seed, same split.")
@click.option("--train", type=FILE, default="train.jsonl", help="Where the rest goes.")
@click.option("--heldout", type=FILE, default="heldout.jsonl", help="Where the held-out records go.")
@reports_errors
def split_command(places: tuple[Path, ...], fraction: float, seed: int, train: Path, heldout: Path) -> None:
    """Hold out a FRACTION of the conversations in PLACES to judge with; equal questions stay on one side.

    \b
    Examples:
      gpt2chat data split data/conversations.json --fraction 0.2
      gpt2chat data split faq.csv --train faq_train.jsonl --heldout faq_heldout.jsonl
    """
    from gpt2chat.checking import split_by_question
    from gpt2chat.formats.writers import write

    kept, held = split_by_question(list(_records(places)), fraction, seed)
    for records, path in ((kept, train), (held, heldout)):
        say(f"wrote {write(records, path, 'messages')} records to {path}")


@data_command.command("sample", context_settings=SETTINGS)
@click.argument("places", nargs=-1, required=True, type=FILE)
@click.option("-n", "--count", type=click.IntRange(1), default=5, help="How many.")
@click.option("--seed", type=int, default=0, help="Same seed, same records.")
@reports_errors
def sample_command(places: tuple[Path, ...], count: int, seed: int) -> None:
    """Print COUNT records of PLACES, drawn evenly in one pass.

    \b
    Examples:
      gpt2chat data sample data/conversations.json
      gpt2chat data sample "dialogs/*.jsonl.xz" -n 20 --seed 1
    """
    from gpt2chat.checking import draw

    for record in draw(_records(places), count, seed):
        click.echo(click.style(record.place, dim=True))
        if isinstance(record.content, str):
            click.echo(record.content)
        else:
            for message in record.content:
                click.echo(f"{message.role}: {message.content}")
        click.echo()
