"""Talk to a fine-tuned GPT-2: `python gpt_generate.py --help`, or `from gpt_generate import GPT2Chatbot`."""

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from gpt2chat import GPT2Chatbot

__all__ = ["GPT2Chatbot", "main"]


def main() -> None:
    """Run the chat command."""
    try:
        from gpt2chat.cli.chat import chat_command
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error.name} is not installed for {sys.executable}: README.md shows how to install gpt2chat")
    chat_command(prog_name="gpt_generate.py")


def __getattr__(name: str) -> object:
    if name != "GPT2Chatbot":
        raise AttributeError(f"module 'gpt_generate' has no attribute {name!r}")
    from gpt2chat import GPT2Chatbot

    return GPT2Chatbot


if __name__ == "__main__":
    main()
