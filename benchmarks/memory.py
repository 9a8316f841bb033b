"""Peak memory of training: what `train --dry_run` says by formula against what its steps take.

    python benchmarks/memory.py [--models demo,124M,355M]

Prints one JSON object per run, with the ratio of the two. Random weights stand for the released ones.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path

RUNS = (
    "--text_file text.txt --batch_size 1",
    "--text_file text.txt",
    "--text_file text.txt --max_length 512",
    "--text_file text.txt --max_length 512 --accumulate 4",
    "--conversation_file pairs.json",
    "--conversation_file pairs.json --batch_size 2",
    "--conversation_file pairs.json --dropout 0.1",
    "--text_file text.txt --batch_size 2 --dtype float32",
)


def write_data(folder: Path) -> None:
    """Write a text and pairs of many different words."""
    words = [f"{a}{b}" for a in "bdfgklmnprst" for b in ("a", "el", "in", "or", "um", "atic", "ing", "ous")]
    said = [" ".join(words[(7 * n + 13 * i + n * i) % len(words)] for i in range(12)) for n in range(1500)]
    (folder / "text.txt").write_text(".\n".join(said))
    pairs = [{"user": f"{n}: {said[n]}?", "bot": f"{said[-n]}."} for n in range(700)]
    (folder / "pairs.json").write_text(json.dumps(pairs))


def measure(model: str, options: str, folder: Path) -> dict[str, object]:
    """Run three steps in a process of its own."""
    command = [sys.executable, "-m", "gpt2chat", "train", "--dry_run", "--model", model, *options.split()]
    said = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stdout
    formula = int(re.search(r"^memory: (\d+) MB", said, re.M)[1])  # type: ignore[index]
    measured = int(re.search(r"^memory in these steps: (\d+) MB", said, re.M)[1])  # type: ignore[index]
    ratio = round(formula / measured, 3)
    return {"model": model, "options": options, "formula_mb": formula, "measured_mb": measured, "ratio": ratio}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--models", default="demo,124M,355M")
    with tempfile.TemporaryDirectory() as folder:
        write_data(Path(folder))
        for model in parser.parse_args().models.split(","):
            for options in RUNS:
                print(json.dumps(measure(model, options, Path(folder))), flush=True)


if __name__ == "__main__":
    main()
