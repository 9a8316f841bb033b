"""`gpt2chat data`: look at training data before it is learnt, and write it in other forms."""

from __future__ import annotations

import glob
import itertools
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpt2chat.cli.options import WAY_OUT, ModelName, sources
from gpt2chat.cli.terminal import (
    RUNTIME_ERROR,
    SETTINGS,
    in_words,
    reports_errors,
    say,
    shortened,
    tolerate_any_text,
    visible,
)
from gpt2chat.errors import counted

if TYPE_CHECKING:
    from gpt2chat.checking import Check
    from gpt2chat.formats import Source
    from gpt2chat.model import GPT2Config
    from gpt2chat.records import Record, Report

FILE = click.Path(path_type=Path)


@click.group("data", context_settings=SETTINGS)
def data_command() -> None:
    """Check, convert and look at training data.

    \b
    Examples:
      gpt2chat data check data/conversations.json
      gpt2chat data convert faq.csv pairs.json --to pairs
    """
    tolerate_any_text()


def _records(places: tuple[Path, ...], only: str | None = None, **o: Any) -> Iterator[Record]:
    """Return the records of all places, or of `only` one kind; what was found odd is said at the end."""
    from gpt2chat.records import Report

    report = Report()
    return _read_all(sources(places, o.get("encoding"), report), only, report, **o)


def _read_all(found: list[Source], only: str | None, report: Report, **o: Any) -> Iterator[Record]:
    from gpt2chat.errors import DataError
    from gpt2chat.formats import read

    for source in found:
        reading = read(source, report, o.get("format"), o.get("text_separator"), as_text=only == "texts")
        if not (source.in_folder and reading.is_left_out(only, report)):
            try:
                yield from reading.records
            except DataError as error:
                raise DataError(f"{error}{WAY_OUT}") from None
    for line in report.lines():
        say(f"note: {visible(line)}")


@data_command.command("check", context_settings=SETTINGS)
@click.argument("places", nargs=-1, required=True, type=FILE)
@click.option("--fix", type=FILE, help="Write there what can be used, mended where that is certain.")
@click.option("--format", help="What the files are, if it is not seen.")
@click.option("--encoding", help="Of the files.  [default: UTF-8, or what a byte-order mark says]")
@click.option("--template", default="chat", help="How turns are written, for counting tokens.")
@click.option("--max_length", type=click.IntRange(8), help="Longest example in tokens.  [default: --model's context]")
@click.option(
    "--model",
    type=ModelName(places=False),
    default="demo",
    help="For which steps and time are estimated: demo or a released size.",
)
@click.option("--heldout", type=FILE, multiple=True, help="Data to judge with, which should not be in PLACES.")
@click.option("--show", type=click.IntRange(0), default=3, help="Print so many examples, the learnt part in brackets.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@reports_errors
def check_command(places: tuple[Path, ...], **o: Any) -> None:
    """Read all of PLACES and say what a training run would make of it; exit code 1 when something is wrong.

    \b
    Examples:
      gpt2chat data check data/conversations.json
      gpt2chat data check "faq/**/*.csv" --fix mended.jsonl
    """
    from gpt2chat.records import Report

    report = Report()
    found, heldout = (sources(each, o["encoding"], report) for each in (places, o["heldout"]))
    from gpt2chat.checking import Check  # imports torch, for which a wrong path need not wait
    from gpt2chat.templates import template_named

    shape = _shape(o["model"])
    check = Check(template_named(o["template"]), o["max_length"] or shape.n_ctx, o["show"], report)
    fixed = {} if o["fix"] is None else _fix(check, found, heldout, o["fix"], o["format"])
    if o["fix"] is None:
        for source in found:
            check.add(source, o["format"])
    for source in heldout:
        check.compare(source, o["format"])
    check.finish()
    figures = check.to_dict()
    figures |= _forecast(figures, o["model"], shape) | fixed
    if o["as_json"]:
        click.echo(json.dumps(figures, ensure_ascii=False))
    else:
        _print(check, figures)
    if check.faults.count:
        raise SystemExit(RUNTIME_ERROR)


def _shape(name: str) -> GPT2Config:
    from gpt2chat import pretrained
    from gpt2chat.errors import ConfigError
    from gpt2chat.model import MODEL_SIZES

    full = pretrained.canonical_name(name)
    if full in MODEL_SIZES:
        return MODEL_SIZES[full]
    if full == pretrained.DEMO:
        return pretrained.load(full).config
    raise ConfigError(f"model: expected demo or one of {', '.join(MODEL_SIZES)}, got {name!r}")


def _fix(check: Check, found: list[Source], heldout: list[Source], path: Path, wanted: str | None) -> dict[str, Any]:
    """Write what can be used while it is read, read it again, and return what was done and what is left."""
    from gpt2chat.checking import Check
    from gpt2chat.errors import ConfigError, DataError
    from gpt2chat.formats import Source
    from gpt2chat.formats.writers import write
    from gpt2chat.mending import mended
    from gpt2chat.records import Report

    _spare("fix", [path], [source.path for source in (*found, *heldout)])
    if path.suffix.lower() in (".csv", ".tsv"):
        raise ConfigError(
            f"fix: JSON lines are written; name it {path.with_suffix('.jsonl')}, and data convert it then"
        )
    report = Report()
    records = mended((record for source in found for record in check.records(source, wanted)), report)
    first = next(records, None)
    if first is None:
        raise DataError("; ".join(["fix: nothing can be used", *check.faults.kept[:3]]))
    form = "text" if isinstance(first.content, str) else "messages"
    count = write(_of_a_kind(itertools.chain([first], records), form, report), path, form)
    again = Check(check.template, check.max_tokens, show=0)
    again.add(Source(path, "utf-8"), form)
    again.finish()
    return {
        "fixed": str(path),
        "written": count,
        "mended": report.lines(),
        "left": [*again.faults.lines(), *again.report.lines()],
    }


def _of_a_kind(records: Iterator[Record], form: str, report: Report) -> Iterator[Record]:
    """Yield the records that `form` has room for; `report` notes the others."""
    for record in records:
        if isinstance(record.content, str) == (form == "text"):
            yield record
        else:
            report.add("records of another kind than the first, left out: check them by themselves", record.place)


def _spare(option: str, written: Sequence[Path], read: Sequence[Path]) -> None:
    """Refuse to write over what is read, or twice to one place."""
    from gpt2chat.errors import ConfigError

    places = [path.resolve() for path in written]
    named = [*read, *(Path(file) for place in read for file in glob.glob(str(place), recursive=True))]
    inside = {file for place in named for file in (place, *(place.rglob("*") if place.is_dir() else ()))}
    for path, place in zip(written, places, strict=True):
        if place.is_dir():
            raise ConfigError(f"{option}: expected the name of a file, got the folder {path}")
        if place in {file.resolve() for file in inside}:
            raise ConfigError(f"{option}: {path} is what is read and would be overwritten; pass another name")
    if len(set(places)) < len(places):
        raise ConfigError(f"{option}: expected different files, got {written[0]} twice")


def _forecast(figures: dict[str, Any], name: str, shape: GPT2Config) -> dict[str, Any]:
    """Return how many steps a run with the defaults of `train` takes, and about how many minutes."""
    from gpt2chat.estimate import rough_run

    kind = "conversations" if figures["conversations"] else "texts"
    epochs, steps, seconds = rough_run(shape, kind, figures["tokens"])
    return {"model": name, "epochs": epochs, "steps": steps, "minutes": round(seconds / 60, 2)}


def _print(check: Check, figures: dict[str, Any]) -> None:
    for line in shortened(check.found):
        click.echo(visible(line))
    for fault in check.faults.lines():
        click.echo(click.style("error: ", fg="red") + visible(fault))
    for line in check.report.lines():
        click.echo(f"note: {visible(line)}")
    for example in check.examples:
        click.echo(f"example: {visible(example)}")
    kinds = f"{counted(figures['conversations'], 'conversation')}, {counted(figures['texts'], 'text')}"
    click.echo(f"{kinds}, {figures['tokens']} tokens, of which {figures['learnt_tokens']} are learnt")
    if check.lengths:
        click.echo(f"tokens per record: median {figures['median']}, longest {figures['longest']}")
        for line in check.histogram():
            click.echo(line)
        if figures["too_long"]:
            share = f"{figures['cut_share']:.1%} of all tokens"
            what = f"{figures['too_long']} records are longer than {check.max_tokens} tokens, by {share}"
            click.echo(f"{what}: train stops at these, or takes --too_long cut or skip")
        until = ", until the answers come back" if figures["conversations"] else ""
        click.echo(
            f"training {figures['model']}: about {figures['steps']} steps ({figures['epochs']} epochs{until}), "
            f"{in_words(60 * figures['minutes'])} on this CPU; train --dry_run times it"
        )
    if "fixed" in figures:
        written = counted(figures["written"], "record")
        click.echo(f"{figures['fixed']}: {written} written, without repeats and records with errors")
        if check.faults.mended:
            click.echo(f"mended: {check.faults.mended} lines that are not UTF-8, read as cp1252 (see the errors)")
        for kind in ("mended", "left"):
            for line in figures[kind]:
                click.echo(f"{kind}: {visible(line)}")


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

    _spare("target", [target], [source])
    only = "texts" if to == "text" else "conversations"
    count = write(_records((source,), only, **o), target, to)
    say(f"wrote {counted(count, 'record')} to {target}")


@data_command.command("split", context_settings=SETTINGS)
@click.argument("places", nargs=-1, required=True, type=FILE)
@click.option("--fraction", type=click.FloatRange(0, 1, min_open=True, max_open=True), default=0.1, help="Held out.")
@click.option("--seed", type=int, default=0, help="Same seed, same split.")
@click.option("--train", type=FILE, default="train.jsonl", help="Where the rest goes.")
@click.option("--heldout", type=FILE, default="heldout.jsonl", help="Where the held-out records go.")
@click.option("--format", help="What the files are, if it is not seen.")
@click.option("--encoding", help="Of the files.  [default: UTF-8, or what a byte-order mark says]")
@reports_errors
def split_command(places: tuple[Path, ...], fraction: float, seed: int, train: Path, heldout: Path, **o: Any) -> None:
    """Hold out a FRACTION of the conversations in PLACES to judge with; equal questions stay on one side.

    \b
    Examples:
      gpt2chat data split data/conversations.json --fraction 0.2
      gpt2chat data split faq.csv --train faq_train.jsonl --heldout faq_heldout.jsonl
    """
    from gpt2chat.checking import split_by_question
    from gpt2chat.formats.writers import is_list, opened, write_to

    _spare("train and heldout", [train, heldout], places)
    kept, held = split_by_question(list(_records(places, "conversations", **o)), fraction, seed)
    with opened(train) as first, opened(heldout) as second:  # both, or neither
        counts = write_to(first, kept, "messages", is_list(train)), write_to(second, held, "messages", is_list(heldout))
    for count, path in zip(counts, (train, heldout), strict=True):
        say(f"wrote {counted(count, 'record')} to {path}")


@data_command.command("stats", context_settings=SETTINGS)
@click.argument("places", nargs=-1, required=True, type=FILE)
@click.option("--format", help="What the files are, if it is not seen.")
@click.option("--encoding", help="Of the files.  [default: UTF-8, or what a byte-order mark says]")
@click.option("--template", default="chat", help="How turns are written, for counting tokens.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@reports_errors
def stats_command(places: tuple[Path, ...], template: str, as_json: bool, **o: Any) -> None:
    """Print how much there is in PLACES, how long and how varied it is.

    \b
    Examples:
      gpt2chat data stats data/conversations.json
      gpt2chat data stats "dialogs/*.jsonl.xz" --json
    """
    from gpt2chat.data import rendered
    from gpt2chat.summary import Summary
    from gpt2chat.templates import template_named
    from gpt2chat.tokenizer import Tokenizer

    tokenizer = Tokenizer.gpt2()
    summary = Summary(tokenizer)
    for record, example in rendered(_records(places, **o), template_named(template), tokenizer):
        summary.add(record, example)
    if as_json:
        click.echo(json.dumps(summary.to_dict(), ensure_ascii=False))
    else:
        for line in summary.lines():
            click.echo(line)


@data_command.command("sample", context_settings=SETTINGS)
@click.argument("places", nargs=-1, required=True, type=FILE)
@click.option("-n", "--count", type=click.IntRange(1), default=5, help="How many.")
@click.option("--seed", type=int, default=0, help="Same seed, same records.")
@click.option("--format", help="What the files are, if it is not seen.")
@click.option("--encoding", help="Of the files.  [default: UTF-8, or what a byte-order mark says]")
@reports_errors
def sample_command(places: tuple[Path, ...], count: int, seed: int, **o: Any) -> None:
    """Print COUNT records of PLACES, drawn evenly in one pass.

    \b
    Examples:
      gpt2chat data sample data/conversations.json
      gpt2chat data sample "dialogs/*.jsonl.xz" -n 20 --seed 1
    """
    from gpt2chat.checking import draw

    for record in draw(_records(places, **o), count, seed):
        click.echo(click.style(visible(record.place), dim=True))
        if isinstance(record.content, str):
            click.echo(visible(record.content))
        else:
            for message in record.content:
                click.echo(f"{message.role}: {visible(message.content)}")
        click.echo()
