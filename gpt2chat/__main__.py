"""`python -m gpt2chat` is the `gpt2chat` command."""

from gpt2chat.cli import main

main(prog_name="gpt2chat")
