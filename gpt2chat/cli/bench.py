"""`gpt2chat bench`: how fast a model answers here."""

from __future__ import annotations

import json
import time
from typing import Any

import click

from gpt2chat.cli.options import Decorator, compile_option, device_options, quantize_option, stacked
from gpt2chat.cli.terminal import SETTINGS, reports_errors, say


@click.group("bench", context_settings=SETTINGS)
def bench_command() -> None:
    """Measure how fast a model answers on this machine.

    Each command prints one line: tokens per second of decoding and of prefill, time from the program's start to the
    first token, memory, and the share of what the speed of this machine's memory allows.

    \b
    Examples:
      gpt2chat bench decode --model demo
      gpt2chat bench prefill --model 124M --random_weights --quantize int8 --json
    """


def _options(prompt: int, new: int) -> Decorator:
    return stacked(
        click.option("--model", default="demo", help="A .pt file or a model's name."),
        click.option("--random_weights", is_flag=True, help="A released size with random weights: nothing is fetched."),
        click.option("--prompt_tokens", type=click.IntRange(1), default=prompt, show_default=True),
        click.option("--new_tokens", type=click.IntRange(1), default=new, show_default=True),
        click.option("--repeat", type=click.IntRange(1), default=5, show_default=True, help="Medians of so many runs."),
        device_options(),
        quantize_option,
        compile_option,
        click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    )


@bench_command.command("decode", context_settings=SETTINGS)
@_options(32, 128)
@reports_errors
def decode_command(**options: Any) -> None:
    """Measure one answer at a time behind a short prompt."""
    _run("decode", **options)


@bench_command.command("prefill", context_settings=SETTINGS)
@_options(512, 1)
@reports_errors
def prefill_command(**options: Any) -> None:
    """Measure how fast a long prompt is read."""
    _run("prefill", **options)


def _run(bench: str, model: str, random_weights: bool, as_json: bool, **o: Any) -> None:
    began = time.perf_counter()
    from gpt2chat import pretrained
    from gpt2chat.benchmark import measure
    from gpt2chat.decoding import choose, open_model, runtime_of
    from gpt2chat.errors import ConfigError
    from gpt2chat.model import MODEL_SIZES

    choice = choose(o["device"], o["dtype"], o["quantize"], lambda line: say(f"note: {line}"), o["compile"])
    if random_weights and pretrained.canonical_name(model) not in MODEL_SIZES:
        raise ConfigError(f"random_weights: expected a released size such as 124M, got {model!r}")
    fresh = pretrained.fresh(model) if random_weights else None
    loading = time.perf_counter()
    runtime = runtime_of(fresh, choice) if fresh else open_model(model, choice, pretrained.load)[1]
    del fresh
    load_s = time.perf_counter() - loading
    found = measure(bench, model, runtime, o["prompt_tokens"], o["new_tokens"], o["repeat"], began, load_s)
    if as_json:
        click.echo(json.dumps(found.to_dict()))
        return
    decoded = f"decode {found.decode_tok_s:.0f} tokens/s ({found.of_limit:.0%} of what memory allows), "
    click.echo(
        f"{found.model} ({found.size}), {found.runtime}: {decoded if found.new_tokens > 1 else ''}"
        f"prefill {found.prefill_tok_s:.0f} tokens/s, first token after {found.first_token_s:.2f} s, {found.rss_mb} MB"
    )
