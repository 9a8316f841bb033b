"""Fine-tune a GPT-2 on text files and conversations: `python train_chatbot.py --help`."""

from gpt2chat.cli.train import train_command as main

if __name__ == "__main__":
    main(prog_name="train_chatbot.py")
