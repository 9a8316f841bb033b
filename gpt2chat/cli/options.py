"""Options that several commands share."""

from __future__ import annotations

import contextlib
import functools
import os
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

    from gpt2chat.decoding import Choice
    from gpt2chat.formats import Source
    from gpt2chat.records import Report

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]
WAY_OUT = "; gpt2chat data check names all faults, --fix mends"  # behind a fault that ended the reading

MODELS = ("demo", "gpt2-small", "gpt2-medium", "gpt2-large", "gpt2-xl")  # what a shell offers; no blanks to quote


class ModelName(click.types.StringParamType):
    """A model's name or place; a shell completes names, `.pt` files and folders. Nothing is looked up here."""

    name = "model"

    def __init__(self, words: tuple[str, ...] = MODELS, places: bool = True) -> None:
        """Offer `words`, and what is on the disk if `places`."""
        self.words, self.places = words, places

    def shell_complete(self, ctx: click.Context, param: click.Parameter, incomplete: str) -> list[CompletionItem]:
        """Return what begins with what was typed; for a lone folder also what is in it, so that typing goes on."""
        from click.shell_completion import CompletionItem

        found = [word for word in self.words if word.lower().startswith(incomplete.lower())]
        if self.places:
            here = _places(incomplete)
            found += here + (_places(here[0]) if not found and len(here) == 1 and here[0].endswith("/") else [])
        return [CompletionItem(value) for value in found]


def _places(typed: str) -> list[str]:
    """Return the `.pt` files and folders that go on with a path as it was typed; hidden ones only when asked for."""
    folder, begin = os.path.split(typed)
    found = []
    with contextlib.suppress(OSError, ValueError), os.scandir(os.path.expanduser(folder) or ".") as entries:
        for entry in entries:
            shown = entry.name.startswith(begin) and (begin.startswith(".") or not entry.name.startswith("."))
            if shown and (entry.is_dir() or entry.name.endswith(".pt")):
                found.append(os.path.join(folder, entry.name) + ("/" if entry.is_dir() else ""))
    return sorted(found)


def sources(places: Iterable[Path], encoding: str | None, report: Report) -> list[Source]:
    """Return the files of places: files, folders, patterns, and `-` for standard input.

    What else is in a folder is noted in `report`.
    """
    from gpt2chat.errors import ConfigError
    from gpt2chat.formats import Source, expand

    found: list[Source] = []
    places = list(places)
    if places.count(Path("-")) > 1:
        raise ConfigError("-: standard input can be read once, got it twice")
    for place in places:
        if once := kept_once(place):
            found.append(Source(once[0], encoding, once[1]))
        else:
            found += expand([place], encoding, report)
    return found


def kept_once(place: Path) -> tuple[Path, str] | None:
    """Return a copy and the name of what can be read only once: `-` for standard input, or a pipe; else None."""
    from gpt2chat.cli.terminal import kept_input

    if str(place) == "-":
        return kept_input(None), "standard input"
    try:
        piped = place.exists() and not place.is_file() and not place.is_dir()
    except (OSError, ValueError):  # no name of a file
        return None
    return (kept_input(place), str(place)) if piped else None


def generation_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options of `GenerationConfig`."""
    options = [
        click.option(
            "-t", "--temperature", "--temp", type=float, default=0.6, help="0 always takes the likeliest token."
        ),
        click.option("-k", "--top_k", type=int, default=50, help="Draw from the k likeliest tokens; 0 is all."),
        click.option("--top_p", type=float, default=1.0, help="Draw from the likeliest tokens that reach p."),
        click.option("--min_p", type=float, default=0.0, help="Drop tokens less than min_p as likely as the first."),
        click.option("--repetition_penalty", type=float, default=1.0, help="Above 1: repeat less."),
        click.option("--max_new_tokens", "--max_tokens", type=int, default=256, help="Longest answer, in tokens."),
        click.option("--seed", type=int, help="Same seed, same answers; without it each answer is new."),
    ]
    return stacked(*options)(function)


def stacked(*options: Decorator) -> Decorator:
    """Return what adds several options, which the help then shows in this order."""
    return lambda function: functools.reduce(lambda wrapped, option: option(wrapped), reversed(options), function)


GENERATION_NAMES = (
    "temperature",
    "top_k",
    "top_p",
    "min_p",
    "repetition_penalty",
    "max_new_tokens",
    "seed",
)


def quantize_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --quantize."""
    words = "int8, int4 or none: keep weights in fewer bits; auto takes int8 where it is fastest and as good."
    return click.option("--quantize", default="auto", help=words)(function)


def compile_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --compile."""
    words = "Send torch's steps through torch.compile: half a minute once, for devices without the native decoder."
    return click.option("--compile", is_flag=True, help=words)(function)


def draft_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add --draft."""
    words = "Guess ahead: lookup (what followed the same words before), none, or a smaller model."
    offered = ModelName(("auto", "lookup", "none", *MODELS))
    return click.option("--draft", type=offered, default="auto", help=words)(function)


def device_options(dtype: str = "auto", kinds: str = "auto, float32, bfloat16 or float16.") -> Decorator:
    """Add --device and --dtype, whose default is `dtype`."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        function = click.option("-d", "--dtype", default=dtype, help=kinds)(function)
        return click.option("--device", "--device_type", default="auto", help="auto, cpu, cuda or mps.")(function)

    return decorate


def answering_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add all that says how answers are drawn, and what computes them."""
    options = (generation_options, device_options(), quantize_option, draft_option, compile_option)
    return stacked(*options)(function)


def doubt_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add what is said where the model does not know, and how answers stick to what was taught."""
    sure = "How sure it must be, 0 to 1.  [default: as calibrated, else what suits most models]"
    grounded = (
        "Taught answers only, word for word, or the fallback.  [default: with --fallback, if pairs were all it learnt]"
    )
    options = (
        click.option("--fallback", help="Say this in place of an answer that the model is not sure of."),
        click.option("--confidence", type=click.FloatRange(0, 1), help=sure),
        click.option("--grounded/--no_grounded", default=None, help=grounded),
        match_option,
    )
    return stacked(*options)(function)


def match_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add what reads a question as it was taught."""
    words = "Read a question for a taught answer in other words as it was taught."
    return click.option("--match/--no_match", default=True, show_default=True, help=words)(function)


def check_doubt(options: Mapping[str, Any]) -> None:
    """Refuse a threshold for nothing and a fallback that says nothing; raises ConfigError."""
    from gpt2chat.errors import ConfigError

    if options["fallback"] is not None and not options["fallback"].strip():
        raise ConfigError(
            f'fallback: expected what is said instead, as in --fallback "Please ask us.", got {options["fallback"]!r}'
        )
    if options["confidence"] is not None and options["fallback"] is None and not options["grounded"]:
        raise ConfigError("confidence: expected --fallback or --grounded beside it, got neither")


def chosen(device: str, dtype: str, quantize: str, compile: bool = False, **_: Any) -> Choice:
    """Return what these options choose; what takes long or is missing is said as a note."""
    from gpt2chat.cli.terminal import say
    from gpt2chat.decoding import choose

    return choose(device, dtype, quantize, lambda line: say(f"note: {line}"), compile)
