"""`gpt2chat chat` (= `python gpt_generate.py`): talk to a checkpoint."""

from __future__ import annotations

import contextlib
import dataclasses
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpt2chat.cli.options import GENERATION_NAMES, answering_options
from gpt2chat.cli.terminal import (
    SETTINGS,
    Interrupted,
    Signals,
    reports_errors,
    say,
    tolerate_any_text,
    write_pieces,
)

if TYPE_CHECKING:
    from gpt2chat.chatbot import GPT2Chatbot

LEAVE = ("exit", "quit", "/exit", "/quit", "/bye")
ANEW = ("reset", "clear", "/reset", "/clear", "/new")
DRAWING: dict[str, tuple[str, Callable[[str], Any]]] = {
    "temp": ("temperature", float),
    "temperature": ("temperature", float),
    "top_p": ("top_p", float),
    "top_k": ("top_k", int),
}
HELP = """Type a message and press Enter.
  /new, /reset, reset, clear   start a new conversation
  /temp 0.7, /top_p 0.9, /top_k 40
                               draw answers differently; temp 0 always takes the likeliest token
  /length brief|conversational|normal|detailed
                               bound the answers to come
  /topic cooking, /topic none  tell the model what the conversation is about
  /help, help                  show this
  /exit, exit, quit, Ctrl-D    leave
/temp, /top_p, /top_k and /length also work without the slash. Ctrl-C stops an answer."""


@click.command("chat", context_settings=SETTINGS)
@click.argument("checkpoint", required=False)
@click.option("-p", "--prompt", help="Answer this and leave; - reads it from standard input.")
@click.option("--system", help="What the bot is told before the conversation.")
@click.option("--template", "--chat_template", help="How turns are written; default: what the checkpoint was taught.")
@answering_options
@reports_errors
def chat_command(checkpoint: str | None, prompt: str | None, **options: Any) -> None:
    """Talk to CHECKPOINT, a .pt file or a model's name: in a terminal, or line by line from a pipe.

    Without CHECKPOINT: trained_model.pt if it is here, else the demo model.

    \b
    Examples:
      gpt2chat chat trained_model.pt
      gpt2chat chat demo -p "What do you like?" --temperature 0
    """
    from gpt2chat.chatbot import GPT2Chatbot
    from gpt2chat.sampling import GenerationConfig

    tolerate_any_text()
    generation = GenerationConfig(**{name: options[name] for name in GENERATION_NAMES})
    bot = GPT2Chatbot(
        "demo",
        generation=generation,
        system=options["system"],
        template=options["template"],
        device=options["device"],
        dtype=options["dtype"],
        quantize=options["quantize"],
        draft=options["draft"],
        compile=options["compile"],
        notice=lambda line: say(f"note: {line}"),
    )
    open_model(bot, checkpoint)
    if prompt is not None:
        _answer_once(bot, sys.stdin.read() if prompt == "-" else prompt)
    else:
        talk(bot)


def open_model(bot: GPT2Chatbot, name: str | None) -> None:
    """Load what the user named, or the checkpoint in this folder, or the demo; say which."""
    from gpt2chat import pretrained

    own = "trained_model.pt"
    if name is None:
        name, why = (own, "it is in this folder") if Path(own).exists() else ("demo", f"no {own} is here")
        say(f"using {name}: {why}")
    bot.open(name)
    say(f"{pretrained.describe(bot.checkpoint)}; {bot.decoder.runtime.description}")
    drawn = "greedy" if bot.generation.temperature == 0 else "drawn"
    say(f"answers are {drawn} (temperature {bot.generation.temperature:g})")


def _answer_once(bot: GPT2Chatbot, prompt: str) -> None:
    with Signals():
        try:
            write_pieces(bot.stream(prompt))
        except Interrupted:
            click.echo()  # ends the line that was begun
            raise


def talk(bot: GPT2Chatbot) -> None:
    """Read messages until the end of input; answers go to stdout, everything else to stderr."""
    interactive = sys.stdin.isatty() and sys.stdout.isatty()
    if interactive:
        with contextlib.suppress(ImportError):  # not on Windows, whose console edits lines by itself
            import readline  # noqa: F401 - line editing for input()

        say("Type a message; /help shows the commands, Ctrl-D or exit leaves.")
    while True:
        line = _read(interactive)
        if line is None or line.lower() in LEAVE:
            break
        if not line:
            continue
        if line.lower() in ANEW:
            bot.reset()
            say("A new conversation.")
        elif line.lower() in ("help", "/help"):
            say(HELP)
        elif _set(bot, line):
            pass
        elif line.startswith("/"):
            say(f"{line.split()[0]} is not a command; /help shows them. Nothing was sent to the model.")
        else:
            _turn(bot, line, interactive)
    if interactive:
        say("Goodbye!")


def _set(bot: GPT2Chatbot, line: str) -> bool:
    """Carry out a command with a value, `/temp 0.7` or `temp 0.7`; tell whether the line is one.

    Without a slash only what parses exactly is a command, so that "length matters" is a message.
    """
    from gpt2chat.chatbot import RESPONSE_TOKENS
    from gpt2chat.errors import ConfigError

    name, _, value = line.removeprefix("/").partition(" ")
    name, value = name.lower(), value.strip()
    try:
        if name in DRAWING and value:
            option, kind = DRAWING[name]
            bot.generation = dataclasses.replace(bot.generation, **{option: kind(value)})
        elif name == "length" and (value in RESPONSE_TOKENS or line.startswith("/")):
            bot.set_response_length(value)
        elif name == "topic" and line.startswith("/") and value:
            bot.set_topic(value)
        else:
            return False
    except (ConfigError, ValueError) as error:
        if line.startswith("/"):
            say(str(error))
        return line.startswith("/")
    say(f"{name}: {value}")
    return True


def _read(interactive: bool) -> str | None:
    """Return the next line, stripped; None at the end of input."""
    if not interactive:
        line = sys.stdin.readline()
        return line.strip() if line else None
    while True:
        try:
            return input("You: ").strip()
        except EOFError:
            say()
            return None
        except KeyboardInterrupt:
            say("\nCtrl-D or exit leaves.")


def _turn(bot: GPT2Chatbot, line: str, interactive: bool) -> None:
    """Answer one message. A context that cannot hold it, or Ctrl-C, ends the answer, not the chat."""
    from gpt2chat.errors import ContextError

    if interactive:
        click.echo(click.style("Bot: ", bold=True), nl=False)
    stream = bot.stream(line)
    began = time.perf_counter()
    with Signals():
        try:
            write_pieces(stream)
        except ContextError as error:
            say(f"\n{error}")
            return
        except Interrupted as interrupt:
            stream.close()
            say(" [stopped]")
            if not interactive:
                raise interrupt
            return
    if interactive:
        seconds = time.perf_counter() - began
        decoder = bot.decoder
        tokens = len(decoder.ids) - decoder.prompt_tokens
        used = f"{len(decoder.ids)}/{decoder.runtime.config.n_ctx}"
        guessed = (
            f", {decoder.accepted_tokens} of {decoder.drafted_tokens} guesses taken" if decoder.drafted_tokens else ""
        )
        line = f"[{tokens} tokens in {seconds:.2f}s ({tokens / seconds:.0f} tokens/sec){guessed}, context {used}]"
        say(click.style(line, dim=True))
