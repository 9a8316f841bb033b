"""Teach a model most pairs of a file and count how many held-out questions get exactly the right reply.

    python benchmarks/exact_reply.py --data pairs.json --model demo -- --epochs 8 --batch_size 8 --learning_rate 6e-4

"chat" is the share that a chat answers so, "exact" that of the model alone, as `gpt2chat eval` counts it. Beside the
fresh questions, 200 are asked one after the other in one conversation ("in_a_row").

What follows `--` goes to train_chatbot.py. The questions held out are chosen by seed before anything is trained.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from gpt2chat.chatbot import GPT2Chatbot  # noqa: E402

IN_A_ROW = 200


def split(data: Path, folder: Path, fraction: float, seed: int) -> tuple[Path, Path]:
    """Write train.json and heldout.json; return their paths."""
    pairs = json.loads(data.read_text("utf-8"))
    random.Random(seed).shuffle(pairs)
    held = round(fraction * len(pairs))
    paths = folder / "train.json", folder / "heldout.json"
    for path, rows in zip(paths, (pairs[held:], pairs[:held]), strict=True):
        path.write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
    return paths


def majority(train: Path, heldout: Path) -> float:
    """Return the score of always giving the most frequent reply."""
    reply, _ = Counter(row["bot"] for row in json.loads(train.read_text("utf-8"))).most_common(1)[0]
    rows = json.loads(heldout.read_text("utf-8"))
    return sum(row["bot"] == reply for row in rows) / len(rows)


def chatted(saved: Path, heldout: Path, in_a_row: int | None = None) -> float:
    """Return the share of right replies of a chat, to all questions, each in a new one, or to some in a row in one."""
    bot, right = GPT2Chatbot(str(saved)), 0
    rows = json.loads(heldout.read_text("utf-8"))[:in_a_row]
    for row in rows:
        right += bot.chat(row["user"], temperature=0).strip() == row["bot"].strip()
        if in_a_row is None:
            bot.reset()
    return round(right / len(rows), 4)


def options(description: str | None) -> argparse.ArgumentParser:
    """Return what reads the options of this benchmark, which confidence.py takes too."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--fraction", type=float, default=0.1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--keep", type=Path, help="Copy the checkpoint here.")
    parser.add_argument("train", nargs="*", metavar="-- OPTION", help="Options of train_chatbot.py.")
    return parser


def train(model: str, pairs: Path, saved: Path, words: list[str]) -> float:
    """Train with train_chatbot.py; return the seconds it took."""
    began = time.perf_counter()
    command = [sys.executable, str(ROOT / "train_chatbot.py"), "--model", model, "--save_path", str(saved)]
    subprocess.run([*command, "--conversation_file", str(pairs), *words], check=True)
    return time.perf_counter() - began


def main() -> None:
    """Split, train, evaluate; print one JSON line."""
    arguments = options(__doc__).parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs, heldout = split(arguments.data, folder, arguments.fraction, arguments.seed)
        saved = arguments.keep or folder / "model.pt"
        seconds = train(arguments.model, pairs, saved, arguments.train)
        command = [sys.executable, "-m", "gpt2chat", "eval", str(saved), "--conversation_file", str(heldout), "--json"]
        result = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
        scores = result["conversations"]
        row = {"bench": "exact_reply", "model": arguments.model, "options": arguments.train}
        row |= {"train_seconds": round(seconds), "heldout": scores["pairs"], "exact": scores["exact"]}
        row |= {"chat": chatted(saved, heldout), "chat_in_a_row": chatted(saved, heldout, IN_A_ROW)}
        row |= {"in_a_row": scores["in_a_row"]["exact"], "stopped": scores["stopped"]}
        row |= {"majority": round(majority(pairs, heldout), 4)}
        print(json.dumps(row))


if __name__ == "__main__":
    main()
