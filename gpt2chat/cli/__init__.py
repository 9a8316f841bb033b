"""The command line: parse, call the package, print. Nothing heavy is imported before a command runs."""

from __future__ import annotations

import gc

import click

from gpt2chat.cli.bench import bench_command
from gpt2chat.cli.chat import chat_command
from gpt2chat.cli.completion import completion_command
from gpt2chat.cli.data import data_command
from gpt2chat.cli.doctor import doctor_command
from gpt2chat.cli.evaluate import evaluate_command
from gpt2chat.cli.generate import generate_command
from gpt2chat.cli.inspect import inspect_command
from gpt2chat.cli.list import list_command
from gpt2chat.cli.new import new_command
from gpt2chat.cli.serve import serve_command
from gpt2chat.cli.terminal import SETTINGS
from gpt2chat.cli.train import train_command
from gpt2chat.version import __version__


@click.group(context_settings=SETTINGS)
@click.version_option(__version__, prog_name="gpt2chat")
def main() -> None:
    """Teach a GPT-2 your texts and answers on the machine you have, and talk to it.

    \b
    Examples:
      gpt2chat train --model demo --conversation_file data/conversations.json
      gpt2chat chat trained_model.pt
    """
    gc.set_threshold(50_000)  # records come and go by the million, none in cycles: a tenth of the time less


COMMANDS = (
    new_command,
    train_command,
    chat_command,
    serve_command,
    generate_command,
    evaluate_command,
    inspect_command,
    list_command,
    data_command,
    bench_command,
    doctor_command,
    completion_command,
)
for command in COMMANDS:
    main.add_command(command)
