"""Fine-tune a GPT-2 on text files and conversations: `python train_chatbot.py --help`."""

import sys


def main() -> None:
    """Run the train command."""
    try:
        from gpt2chat.cli.train import train_command
    except ModuleNotFoundError as error:
        sys.exit(f"error: {error.name} is not installed for {sys.executable}: README.md shows how to install gpt2chat")
    train_command(prog_name="train_chatbot.py")


if __name__ == "__main__":
    main()
