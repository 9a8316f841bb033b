"""`gpt2chat chat` (= `python gpt_generate.py`): talk to a checkpoint."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpt2chat.cli.choosing import named, source_options
from gpt2chat.cli.config import is_given
from gpt2chat.cli.options import GENERATION_NAMES, ModelName, answering_options, check_doubt, doubt_options
from gpt2chat.cli.terminal import SETTINGS, colourless, reports_errors, say, tolerate_any_text

if TYPE_CHECKING:
    from gpt2chat.chatbot import GPT2Chatbot
    from gpt2chat.cli.chat.screen import Screen

FILE = click.Path(path_type=Path)


@click.command("chat", context_settings=SETTINGS)
@click.argument("checkpoint", required=False, type=ModelName())
@click.option("-p", "--prompt", help="Answer this and leave; - reads it from standard input.")
@source_options
@click.option("--system", help="What the bot is told before the conversation.")
@click.option("--chat_template", "--template", "template", help="How turns are written.  [default: as it was taught]")
@click.option("--examples", type=FILE, multiple=True, help="Pairs to show the model without training.")
@click.option("--stop", multiple=True, help="End an answer before this text; repeatable.")
@answering_options
@doubt_options
@click.option("--feedback", type=FILE, help="Where /good and /teach keep answers.  [default: beside the checkpoint]")
@click.option("--json", "as_json", is_flag=True, help="Print each answer as one line of JSON, with what it took.")
@click.option("--plain", is_flag=True, help="No colours, no figures, nothing drawn again: for screen readers.")
@click.option("--no_color", is_flag=True, help="No colours; NO_COLOR does the same.")
@click.option("--no_history", is_flag=True, help="Keep nothing of what is typed for the next chat.")
@reports_errors
def chat_command(checkpoint: str | None, prompt: str | None, **options: Any) -> None:
    """Talk to CHECKPOINT, a .pt file or a model's name: in a terminal, or line by line from a pipe.

    Without CHECKPOINT: the newest of your own here and in runs/, else the demo model. /help lists the
    commands of the chat.

    \b
    Examples:
      gpt2chat chat trained_model.pt
      gpt2chat chat demo -p "What do you like?" --temperature 0
      gpt2chat chat -g d8 -s 200
    """
    from gpt2chat.cli.chat.screen import Screen
    from gpt2chat.cli.chat.teaching import feedback_for, taught_before

    check_doubt(options)
    tolerate_any_text()
    colourless(options["no_color"] or options["plain"])
    interactive = prompt is None and sys.stdin.isatty() and sys.stdout.isatty() and not options["as_json"]
    screen = Screen(interactive, options["as_json"], options["plain"])
    bot = _bot(options, screen)
    name = open_model(bot, checkpoint, options["source"], options["model_tag"], options["step"])
    _prepare(bot, options)
    if taught := taught_before(bot, feedback_for(name, options["feedback"])):
        say(taught)
    if prompt is not None:
        screen.answer(bot.stream(sys.stdin.read() if prompt == "-" else prompt), bot.decoder.runtime.config.n_ctx)
    else:
        talk(bot, name, screen, options["feedback"], history=not options["no_history"])


def _bot(options: dict[str, Any], screen: Screen) -> GPT2Chatbot:
    from gpt2chat.chatbot import GPT2Chatbot
    from gpt2chat.sampling import GenerationConfig

    computing = {name: options[name] for name in ("device", "dtype", "quantize", "draft", "compile")}
    return GPT2Chatbot(
        "demo",
        generation=GenerationConfig(**{name: options[name] for name in GENERATION_NAMES}),
        system=options["system"],
        template=options["template"],
        fallback=options["fallback"],
        confidence=options["confidence"],
        grounded=options["grounded"],
        match=options["match"],
        stop=[text.replace("\\n", "\n") for text in options["stop"]],
        notice=lambda line: screen.say(f"note: {line}"),
        **computing,
    )


def _prepare(bot: GPT2Chatbot, options: dict[str, Any]) -> None:
    """Bring what needs the model to be there."""
    from gpt2chat.cli.chat.teaching import examples_shown, read_pairs

    for path in options["examples"]:
        say(examples_shown(bot, bot.add_custom_examples(read_pairs(path)), path))
    if bot.grounded:
        say(
            "grounded: answers are the taught ones, word for word, or the fallback (--no_grounded lets the model write)"
        )
    elif bot.fallback is not None:
        say(f"answers below a confidence of {bot.threshold:.2f} are replaced by the fallback")
    if options["draft"] not in ("auto", "lookup", "none"):
        say(f"{options['draft']} guesses ahead, which changes no answer")
    n_ctx, given = bot.decoder.runtime.config.n_ctx, is_given(click.get_current_context(), "max_new_tokens")
    if given and bot.generation.max_new_tokens > n_ctx:
        say(f"note: --max_new_tokens {bot.generation.max_new_tokens} is more than the context of {n_ctx} tokens holds")


def open_model(
    bot: GPT2Chatbot, name: str | None, source: str | None = None, tag: str | None = None, step: int | None = None
) -> str:
    """Load what the user named, or the newest own checkpoint that fits, or the demo; say which, and return it."""
    from gpt2chat import pretrained
    from gpt2chat.cli.chat.screen import say_folded
    from gpt2chat.errors import ConfigError

    if name is not None and " " in name and not pretrained.is_known(name) and not Path(name).exists():
        raise ConfigError(f"checkpoint: expected a model, got {name!r}: to ask that, pass it with -p")
    name = named(name, source, tag, step)
    bot.open(name)
    say_folded(f"{pretrained.describe(bot.checkpoint)}; {bot.decoder.runtime.description}")
    drawn = "greedy" if bot.generation.temperature == 0 else "drawn"
    say(f"answers are {drawn} (temperature {bot.generation.temperature:g})")
    return name


def talk(
    bot: GPT2Chatbot, name: str, screen: Screen | None = None, feedback: Path | None = None, history: bool = True
) -> None:
    """Read messages until the end of input; answers go to stdout, everything else to stderr."""
    from gpt2chat.cli.chat.commands import completions
    from gpt2chat.cli.chat.lines import open_lines
    from gpt2chat.cli.chat.loop import Talk
    from gpt2chat.cli.chat.screen import Screen

    screen = screen or Screen(sys.stdin.isatty() and sys.stdout.isatty())
    lines = open_lines(screen.interactive, history, completions, screen.plain)
    if screen.interactive:
        say("Type a message; /help shows the commands, Ctrl-D or exit leaves.")
    if code := Talk(bot, name, lines, screen, feedback).run():
        sys.exit(code)
