"""`gpt2chat bench`: how fast a model answers here."""

from __future__ import annotations

import json
import time
from typing import TYPE_CHECKING, Any

import click

from gpt2chat.cli.options import Decorator, ModelName, chosen, compile_option, device_options, quantize_option, stacked
from gpt2chat.cli.terminal import SETTINGS, reports_errors

if TYPE_CHECKING:
    from gpt2chat.runtime import Runtime


@click.group("bench", context_settings=SETTINGS)
def bench_command() -> None:
    """Measure how fast a model answers on this machine.

    Each command prints one line: tokens per second of decoding and of prefill, time from the program's start to the
    first token, memory, and the share of what the speed of this machine's memory allows.

    \b
    Examples:
      gpt2chat bench decode --model demo
      gpt2chat bench prefill --model 124M --random_weights --quantize int8 --json
      gpt2chat bench batch --model demo --streams 1,8,32
    """


def _options(prompt: int, new: int) -> Decorator:
    return stacked(
        click.option("--model", type=ModelName(), default="demo", help="A .pt file or a model's name."),
        click.option("--random_weights", is_flag=True, help="A released size with random weights: nothing is fetched."),
        click.option(
            "--prompt_tokens", type=click.IntRange(1), help=f"Default: {prompt}, or what the context has room for."
        ),
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
    _run("decode", 32, **options)


@bench_command.command("prefill", context_settings=SETTINGS)
@_options(512, 1)
@reports_errors
def prefill_command(**options: Any) -> None:
    """Measure how fast a long prompt is read."""
    _run("prefill", 512, **options)


@bench_command.command("batch", context_settings=SETTINGS)
@click.option("--streams", default="1,8,16,32", show_default=True, help="How many answers at once, one line each.")
@_options(32, 64)
@reports_errors
def batch_command(streams: str, model: str, as_json: bool, **o: Any) -> None:
    """Measure many answers at once: tokens per second of all together."""
    from gpt2chat.benchmark import measure_batch
    from gpt2chat.errors import ConfigError

    counts = [int(count) if count.strip().isdecimal() else 0 for count in streams.split(",")]
    if not all(counts):
        raise ConfigError(f"streams: expected numbers from 1 on such as 1,8,16, got {streams!r}")
    runtime, load_s = _loaded(model, **o)
    prompt_tokens = _room(runtime, 32, **o)
    for count in counts:
        found = measure_batch(model, runtime, count, prompt_tokens, o["new_tokens"], o["repeat"], load_s)
        if as_json:
            click.echo(json.dumps(found.to_dict()))
            continue
        click.echo(
            f"{found.model} ({found.size}), {found.runtime}, {count} at once: decode {found.decode_tok_s:.0f} "
            f"tokens/s, prefill {found.prefill_tok_s:.0f} tokens/s, first tokens after {found.first_token_s:.2f} s"
        )


def _loaded(model: str, random_weights: bool, **o: Any) -> tuple[Runtime, float]:
    """Return what runs a model, and how many seconds it took to load."""
    from gpt2chat import pretrained
    from gpt2chat.decoding import open_model, runtime_of
    from gpt2chat.errors import ConfigError
    from gpt2chat.model import MODEL_SIZES

    choice = chosen(**o)
    if random_weights and pretrained.canonical_name(model) not in MODEL_SIZES:
        raise ConfigError(f"random_weights: expected a released size such as 124M, got {model!r}")
    fresh = pretrained.fresh(model) if random_weights else None
    loading = time.perf_counter()
    runtime = runtime_of(fresh, choice) if fresh else open_model(model, choice, pretrained.load)[1]
    return runtime, time.perf_counter() - loading


def _room(runtime: Runtime, default: int, prompt_tokens: int | None, new_tokens: int, **_: Any) -> int:
    """Return how long prompts are."""
    return prompt_tokens or max(1, min(default, runtime.config.n_ctx - new_tokens))


def _run(bench: str, default: int, model: str, as_json: bool, **o: Any) -> None:
    began = time.perf_counter()
    from gpt2chat.benchmark import measure

    runtime, load_s = _loaded(model, **o)
    prompt_tokens = _room(runtime, default, **o)
    found = measure(bench, model, runtime, prompt_tokens, o["new_tokens"], o["repeat"], began, load_s)
    if as_json:
        click.echo(json.dumps(found.to_dict()))
        return
    decoded = f"decode {found.decode_tok_s:.0f} tokens/s ({found.of_limit:.0%} of what memory allows), "
    click.echo(
        f"{found.model} ({found.size}), {found.runtime}: {decoded if found.new_tokens > 1 else ''}"
        f"prefill {found.prefill_tok_s:.0f} tokens/s, first token after {found.first_token_s:.2f} s, {found.rss_mb} MB"
    )
