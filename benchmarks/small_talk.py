"""Let a model answer the conversations of `small_talk.txt`, and ask it for the facts of `told_facts.txt`.

    python benchmarks/small_talk.py --model demo > transcripts.txt

Transcripts go to standard output, to be judged by people; the last line, as JSON, says the share of facts that were
used. Answers are greedy unless --temperature says otherwise.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from pathlib import Path

HERE = Path(__file__).resolve().parent
sys.path.insert(0, str(HERE.parent))

from gpt2chat.chatbot import GPT2Chatbot  # noqa: E402


def blocks(path: Path) -> Iterator[list[str]]:
    """Yield the lines between empty ones, without comments."""
    for block in path.read_text("utf-8").split("\n\n"):
        if lines := [line.strip() for line in block.splitlines() if line.strip() and not line.startswith("#")]:
            yield lines


def talk(bot: GPT2Chatbot, turns: list[str], temperature: float) -> str:
    """Print a conversation and return its last answer."""
    bot.reset()
    answer = ""
    for turn in turns:
        answer = bot.chat(turn, temperature=temperature, max_tokens=60, seed=0).strip()
        print(f"User: {turn}\nBot: {answer}")
    print()
    return answer


def main() -> None:
    """Talk, then count."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--temperature", type=float, default=0.0)
    given = parser.parse_args()
    bot = GPT2Chatbot(notice=lambda line: None)
    bot.open(given.model)
    for turns in blocks(HERE / "small_talk.txt"):
        talk(bot, turns, given.temperature)
    used, asked = 0, 0
    for *turns, wanted in blocks(HERE / "told_facts.txt"):
        answer = talk(bot, turns, given.temperature).lower()
        used += any(word.strip().lower() in answer for word in wanted.removeprefix("=").split("|"))
        asked += 1
    row = {"bench": "small_talk", "model": given.model, "temperature": given.temperature}
    print(json.dumps(row | {"facts": asked, "used": round(used / max(1, asked), 4)}))


if __name__ == "__main__":
    main()
