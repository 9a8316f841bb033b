"""`gpt2chat completion`: what lets a shell complete commands, options and models."""

from __future__ import annotations

import os
import re
import sys
from pathlib import PurePath
from typing import Any

import click
from click.shell_completion import (
    BashComplete,
    CompletionItem,
    FishComplete,
    ShellComplete,
    ZshComplete,
    add_completion_class,
)

from gpt2chat.cli.terminal import SETTINGS, reports_errors, say

SHELLS = ("bash", "zsh", "fish")
PROGRAM, VARIABLE = "gpt2chat", "_GPT2CHAT_COMPLETE"
INSTALL = {
    "bash": "gpt2chat completion bash > ~/.gpt2chat-complete.bash && echo '. ~/.gpt2chat-complete.bash' >> ~/.bashrc",
    "zsh": "gpt2chat completion zsh > ~/.gpt2chat-complete.zsh && "
    "echo 'autoload -Uz compinit && compinit && . ~/.gpt2chat-complete.zsh' >> ~/.zshrc",
    "fish": "gpt2chat completion fish > ~/.config/fish/completions/gpt2chat.fish",
}
SPECIAL = re.compile(r"[^\w@%+=:,./~-]")  # what bash would not take as part of one word


class _Complete(ShellComplete):
    """Completes `--text-f` as well as `--text_f`, in the spelling that was begun, and values behind `--model=`."""

    def get_completions(self, args: list[str], incomplete: str) -> list[CompletionItem[str]]:
        """Return what click offers for the spelling with underscores, spelled as it was typed."""
        before = [_underscored(arg) for arg in args if arg != "="]  # bash makes it a word of its own
        items = super().get_completions(before, _underscored(incomplete))
        name, equals, _ = incomplete.partition("=")
        if name.startswith("--"):
            for item in items:
                if equals and item.type == "plain":
                    item.value = f"{name}={item.value}"
                elif not equals and "-" in name[2:]:
                    item.value = item.value.replace("_", "-")
        return items


def _underscored(word: str) -> str:
    name, equals, value = word.partition("=")
    return f"--{name[2:].replace('-', '_')}{equals}{value}" if name.startswith("--") else word


class _Bash(_Complete, BashComplete):
    """Bash puts what it is given on the line as it stands, so that names with blanks are quoted here."""

    def format_completion(self, item: CompletionItem[Any]) -> str:
        """Return the line that the script reads, which takes one level of backslashes away."""
        return f"{item.type}," + SPECIAL.sub(lambda found: rf"\\{found[0]}", item.value)


class _Zsh(_Complete, ZshComplete):
    pass


class _Fish(_Complete, FishComplete):
    """The script for fish cuts lines at commas, which descriptions have."""

    def format_completion(self, item: CompletionItem[Any]) -> str:
        """Return the line that the script reads."""
        help_text = item.help and item.help.replace(",", ";")
        return super().format_completion(CompletionItem(item.value, item.type, help_text))


COMPLETERS: dict[str, type[ShellComplete]] = {"bash": _Bash, "zsh": _Zsh, "fish": _Fish}
for shell_name, completer in COMPLETERS.items():
    add_completion_class(completer, shell_name)


@click.command("completion", context_settings=SETTINGS)
@click.argument("shell", required=False, type=click.Choice(SHELLS))
@click.pass_context
@reports_errors
def completion_command(context: click.Context, shell: str | None) -> None:
    """Print the script that completes commands, options and models in SHELL; default: the shell in use.

    \b
    Examples:
      eval "$(gpt2chat completion bash)"
      gpt2chat completion fish > ~/.config/fish/completions/gpt2chat.fish
    """
    shell = shell or _own_shell()
    completer = COMPLETERS[shell](context.find_root().command, {}, PROGRAM, VARIABLE)
    click.echo(completer.source())
    if sys.stderr.isatty():
        say(f"To have it in every new {shell}:\n  {INSTALL[shell]}")


def _own_shell() -> str:
    """Return the name of the user's shell; raises ConfigError for one that is not known."""
    from gpt2chat.errors import ConfigError

    named = os.environ.get("SHELL", "")
    name = PurePath(named).name.removesuffix(".exe")
    if name not in SHELLS:
        found = f"SHELL is {named!r}" if named else "SHELL is not set"
        raise ConfigError(f"completion: expected one of {', '.join(SHELLS)}, found none: {found}")
    return name
