"""A session with an FAQ: teach it, ask in other words and from outside, correct three answers, retrain, ask again.

    python benchmarks/faq.py --taught taught.json --paraphrases asked.json --outside other.json

Everything goes through the command line as a user types it; one JSON line after each step. `grounded` and `free` are
what `gpt2chat eval` says with and without --grounded.
"""

from __future__ import annotations

import argparse
import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
TAUGHT_IN_CHAT = 3


def gpt2chat(*words: str, typed: str | None = None) -> str:
    """Run a command and return what it printed; raises CalledProcessError with what it said."""
    command = [sys.executable, "-m", "gpt2chat", *words]
    return subprocess.run(command, input=typed, capture_output=True, text=True, check=True, cwd=ROOT).stdout


def figures(model: Path, paraphrases: Path, outside: Path) -> dict[str, Any]:
    """Ask all of it, grounded and in the model's own words."""
    files = ("eval", str(model), "--paraphrases", str(paraphrases), "--outside", str(outside), "--json")
    grounded = json.loads(gpt2chat(*files, "--grounded"))["chat"]
    free = json.loads(gpt2chat(*files, "--no_grounded"))["chat"]
    return {"grounded": grounded, "free": free["paraphrases"]}


def wrong_ones(model: Path, rows: list[dict[str, str]]) -> list[dict[str, str]]:
    """Return the first questions in other words that are answered wrongly."""
    asked = "".join(f"/new\n{row['user']}\n" for row in rows)
    said = [
        json.loads(line)["answer"].strip()
        for line in _answers(gpt2chat("chat", str(model), "--json", "-t", "0", typed=asked))
    ]
    return [row for row, answer in zip(rows, said, strict=True) if answer != row["bot"]][:TAUGHT_IN_CHAT]


def _answers(printed: str) -> list[str]:
    return [line for line in printed.splitlines() if line.startswith("{") and '"answer"' in line]


def main() -> None:
    """Run the session."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("taught", "paraphrases", "outside"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    parser.add_argument("--model", default="demo")
    given = parser.parse_args()
    paraphrases, outside = given.paraphrases.resolve(), given.outside.resolve()
    with tempfile.TemporaryDirectory() as folder:
        model, began = Path(folder) / "bot.pt", time.perf_counter()
        gpt2chat(
            "train",
            "--model",
            given.model,
            "--conversation_file",
            str(given.taught.resolve()),
            "--save_path",
            str(model),
        )
        print(
            json.dumps(
                {"step": "taught", "seconds": round(time.perf_counter() - began)} | figures(model, paraphrases, outside)
            )
        )
        wrong = wrong_ones(model, json.loads(paraphrases.read_text("utf-8")))
        lines = "".join(f"/new\n{row['user']}\n/teach {row['bot']}\n" for row in wrong)
        began = time.perf_counter()
        gpt2chat("chat", str(model), "-t", "0", typed=f"{lines}/retrain\n")
        again = model.with_name("bot-2.pt")
        row = {
            "step": "retrained",
            "corrected": [row["user"] for row in wrong],
            "seconds": round(time.perf_counter() - began),
        }
        print(json.dumps(row | figures(again, paraphrases, outside)))


if __name__ == "__main__":
    main()
