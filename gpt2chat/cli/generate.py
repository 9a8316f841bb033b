"""`gpt2chat generate`: text that goes on, and answers to a whole file."""

from __future__ import annotations

import contextlib
import json
import sys
import time
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import click

from gpt2chat.cli.options import GENERATION_NAMES, ModelName, answering_options, chosen, kept_once, match_option
from gpt2chat.cli.terminal import (
    PLAIN_SECONDS,
    SETTINGS,
    Interrupted,
    Signals,
    reports_errors,
    say,
    tolerate_any_text,
    write_pieces,
)

if TYPE_CHECKING:
    from gpt2chat.engine import Engine
    from gpt2chat.offline import Job, Setting


@click.command("generate", context_settings=SETTINGS)
@click.argument("text", required=False)
@click.option("--batch", type=click.Path(path_type=Path), help="JSON Lines of prompts; - is standard input.")
@click.option("--out", help="Where the answers go; default: beside FILE.jsonl, FILE.answers.jsonl. - prints them.")
@click.option("--model", type=ModelName(), default="demo", help="A .pt file or a model's name.")
@click.option(
    "--template", "--chat_template", help="How conversations are written; default: what the checkpoint was taught."
)
@click.option("--streams", type=click.IntRange(1), default=16, help="How many answers are computed at once.")
@answering_options
@match_option
@reports_errors
def generate_command(text: str | None, batch: Path | None, **options: Any) -> None:
    """Go on with TEXT, or answer a file of prompts.

    Each line of the file is {"prompt": text to go on with}, {"user": a message} or {"messages": a conversation}, and
    may have an "id", "stop" strings and options such as "temperature". Answers come in order, one JSON object per
    line. A run that was interrupted goes on where it was when it is started again in the same way.

    \b
    Examples:
      gpt2chat generate "Once upon a time" --model gpt2-small
      gpt2chat generate --batch questions.jsonl --model trained_model.pt --seed 1
    """
    from gpt2chat.errors import ConfigError

    tolerate_any_text()
    if (text is None) == (batch is None):
        raise ConfigError("generate: expected TEXT or --batch FILE, got " + ("none" if text is None else "both"))
    setting, engine = _opened(**options)
    with engine, Signals():
        if text is not None:
            _go_on(sys.stdin.read() if text == "-" else text, setting, engine)
        elif batch is not None:
            _answer_all(batch, options["out"], setting, engine)


def _opened(**o: Any) -> tuple[Setting, Engine]:
    """Return what all answers share, and the engine."""
    from gpt2chat import packs, pretrained
    from gpt2chat.decoding import open_model
    from gpt2chat.engine import Engine
    from gpt2chat.grounding import longest
    from gpt2chat.matching import matcher_of
    from gpt2chat.offline import Setting
    from gpt2chat.sampling import GenerationConfig
    from gpt2chat.templates import template_named

    config = GenerationConfig(**{name: o[name] for name in GENERATION_NAMES})
    template = template_named(o["template"]) if o["template"] else None
    loaded, runtime = open_model(o["model"], chosen(**o), pretrained.load)
    say(f"{pretrained.describe(loaded)}; {runtime.description}")
    path = pretrained.checkpoint_file(o["model"])
    model = f"{path and packs.identity(path) or o['model']} {runtime.form}"
    engine = Engine(runtime, streams=o["streams"], waiting=2 * o["streams"], draft=o["draft"])
    config = config.with_room(min(longest(loaded.taught), loaded.config.n_ctx))
    matcher = matcher_of(loaded.taught, loaded.examples) if o["match"] else None
    return Setting(loaded, template or loaded.template, config, model, matcher=matcher), engine


def _go_on(text: str, setting: Setting, engine: Engine) -> None:
    from gpt2chat.generation import stream_text

    tokenizer = setting.tokenizer
    stream = engine.submit(tokenizer.encode(text), setting.config, stop=tokenizer.stop_ids)
    write_pieces(stream_text(stream, tokenizer.stream_decoder(), ()))


def _answer_all(batch: Path, out: str | None, setting: Setting, engine: Engine) -> None:
    """Answer the rows that have no answer yet."""
    from gpt2chat.errors import DataError
    from gpt2chat.offline import answers, done_before, jobs

    piped = str(batch) == "-"
    path, name = kept_once(batch) or (batch, str(batch))

    def rows() -> Iterator[Job]:
        return jobs(path, name, setting)

    total = sum(1 for _ in rows())  # a fault is told before anything is computed
    target = None if out == "-" or (out is None and piped) else Path(out) if out else _beside(batch)
    if not total:
        raise DataError(f"{name}: has no rows")
    if target and target.exists() and path.exists() and target.samefile(path):
        raise DataError(f"{target}: holds the questions: give another --out")
    done, size = done_before(target, rows()) if target else (0, 0)
    if done:
        say(f"{target}: {done} of {total} were answered before")
    began, written = time.monotonic(), done
    with _sink(target, size) as sink, _Bar(total, done) as bar:
        try:
            for answer in answers(engine, islice(rows(), done, None), setting.tokenizer):
                sink.write(json.dumps(answer, ensure_ascii=False).encode("utf-8", "replace") + b"\n")
                sink.flush()
                written += 1
                bar.step(written)
        except (Interrupted, KeyboardInterrupt):
            if target:
                say(f"{written} of {total} answered; the same command goes on")
            raise
    stats, seconds = engine.stats(), time.monotonic() - began
    say(f"{total - done} answers, {stats.new_tokens} tokens in {seconds:.1f} s" + (f": {target}" if target else ""))


def _beside(batch: Path) -> Path:
    return batch.with_name(f"{batch.stem}.answers.jsonl")


@contextlib.contextmanager
def _sink(target: Path | None, size: int) -> Iterator[BinaryIO]:
    """Open where answers go, behind the first `size` bytes; raises DataError when it cannot be written."""
    from gpt2chat.errors import DataError

    if target is None:
        yield sys.stdout.buffer
        return
    try:
        with target.open("r+b" if target.is_file() else "wb") as file:
            if target.is_file():
                file.truncate(size)
                file.seek(size)
            yield file
    except OSError as error:
        raise DataError(f"{target}: cannot be written: {error.strerror or error}; the same command goes on") from error


class _Bar:
    """Progress: a bar in a terminal, a line now and then elsewhere."""

    def __init__(self, total: int, done: int) -> None:
        self._total, self._done = total, done
        self._last = time.monotonic()

    def __enter__(self) -> _Bar:
        from tqdm import tqdm

        quiet = not sys.stderr.isatty()
        self._bar = tqdm(total=self._total, initial=self._done, unit="answer", disable=quiet, dynamic_ncols=True)
        self._quiet = quiet
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def step(self, done: int) -> None:
        """Count one more."""
        self._bar.update()
        if self._quiet and time.monotonic() - self._last > PLAIN_SECONDS:
            self._last = time.monotonic()
            say(f"{done} of {self._total} answered")
