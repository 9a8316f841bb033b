"""Teach a model most pairs of a file, and see how much better its answers are where it is sure of them.

    python benchmarks/confidence.py --data pairs.json --model demo -- --epochs 8 --batch_size 8 --learning_rate 6e-4

What follows `--` goes to train_chatbot.py. The questions held out are chosen by seed before anything is trained; the
confidence in each comes from a fit to nine tenths of the others ("table": of all questions the share that is answered,
the share of these answers that is right to the letter, and the confidence they need). "taught_alone" is what the
nearest taught question's answer would score. With --checkpoint a model trained by an earlier run on the same split is
taken as it is.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT), str(Path(__file__).resolve().parent)]

from exact_reply import options, split, train  # noqa: E402

from gpt2chat.taught import Taught  # noqa: E402


def calibrated(saved: Path, heldout: Path, receipt: Path, words: list[str]) -> dict[str, Any]:
    """Measure with `gpt2chat eval --calibrate`; return its JSON."""
    command = [sys.executable, "-m", "gpt2chat", "eval", str(saved), "--conversation_file", str(heldout), "--json"]
    command += ["--calibrate", "--receipt", str(receipt), "--show", "0", *words]
    result = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, cwd=ROOT)
    return dict(json.loads(result.stdout))


def nearest_score(pairs: Path, heldout: Path) -> float:
    """Return the share of held-out questions whose nearest taught question has the right answer."""
    taught = Taught((row["user"], row["bot"]) for row in json.loads(pairs.read_text("utf-8")))
    rows = json.loads(heldout.read_text("utf-8"))
    return sum(taught.nearest(row["user"]).answer == row["bot"] for row in rows) / len(rows)


def main() -> None:
    """Split, train, calibrate; print one JSON line."""
    parser = options(__doc__)
    parser.add_argument("--checkpoint", type=Path, help="Train nothing, measure this.")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        pairs, heldout = split(arguments.data, folder, arguments.fraction, arguments.seed)
        saved = (arguments.checkpoint or arguments.keep or folder / "model.pt").resolve()
        seconds = 0.0 if arguments.checkpoint else train(arguments.model, pairs, saved, arguments.train)
        older = ["--taught", str(pairs)] if arguments.checkpoint else []
        result = calibrated(saved, heldout, folder / "model.confidence.json", older)
        found = result["confidence"]
        row = {"bench": "confidence", "model": arguments.model, "options": arguments.train}
        row |= {"train_seconds": round(seconds), "heldout": found["pairs"], "known": found["known"]}
        row |= {"exact": result["conversations"]["exact"], "taught_alone": round(nearest_score(pairs, heldout), 4)}
        at = {entry["coverage"]: entry["precision"] for entry in found["table"]}
        row |= {"gain_at_90": round(at[0.9] - at[1.0], 4), "table": found["table"], "weights": found["weights"]}
        print(json.dumps(row))


if __name__ == "__main__":
    main()
