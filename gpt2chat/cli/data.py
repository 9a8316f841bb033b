"""`gpt2chat data`: look at training data before it is learnt, and write it in other forms."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpt2chat.cli.terminal import RUNTIME_ERROR, SETTINGS, reports_errors, say

if TYPE_CHECKING:
    from gpt2chat.checking import Check

FILE = click.Path(path_type=Path)


@click.group("data", context_settings=SETTINGS)
def data_command() -> None:
    """Check, convert and look at training data.

    \b
    Examples:
      gpt2chat data check data/conversations.json
      gpt2chat data convert faq.csv pairs.json --to pairs
    """


@data_command.command("check", context_settings=SETTINGS)
@click.argument("places", nargs=-1, required=True, type=FILE)
@click.option("--format", help="What the files are, if it is not seen.")
@click.option("--encoding", help="Of the files.  [default: UTF-8, or what a byte-order mark says]")
@click.option("--template", default="chat", help="How turns are written, for counting tokens.")
@click.option("--max_length", type=click.IntRange(8), default=1024, help="Tokens of the model's context.")
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
    from gpt2chat.formats import expand, read
    from gpt2chat.formats.writers import write
    from gpt2chat.records import Report

    report = Report()
    sources = expand([source], o["encoding"])
    readings = (read(each, report, o["format"], o["text_separator"], as_text=to == "text") for each in sources)
    count = write((record for reading in readings for record in reading.records), target, to)
    for line in report.lines():
        say(f"note: {line}")
    say(f"wrote {count} records to {target}")
