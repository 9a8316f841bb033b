"""How many taught answers come back after a run with the defaults, after how many steps and seconds.

    python benchmarks/teach.py --data shop.json --count 1,5,20 --seeds 0,1,2
    python benchmarks/teach.py --data pairs.json.xz --count 1000 -- --learning_rate 5e-4

Trains on the first so many pairs of a file, asks all of them with the weights that chat uses (int8), and prints one
JSON line per run. What follows `--` goes to `gpt2chat train`. CPU seconds are those of training and its checks, on all
cores.
"""

from __future__ import annotations

import argparse
import json
import lzma
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any


def read(path: Path) -> list[Any]:
    """Return the pairs of a JSON file, compressed or not."""
    data = lzma.decompress(path.read_bytes()) if path.suffix == ".xz" else path.read_bytes()
    return json.loads(data)


def run(*words: str) -> str:
    """Run `gpt2chat` in a process of its own; return what it prints as a result."""
    command = [sys.executable, "-m", "gpt2chat", *words]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout


def taught(pairs: list[Any], model: str, seed: int, words: list[str]) -> dict[str, Any]:
    """Train on pairs and ask them; return the figures."""
    with tempfile.TemporaryDirectory() as name:
        data, saved = Path(name) / "pairs.json", Path(name) / "model.pt"
        data.write_text(json.dumps(pairs, ensure_ascii=False), "utf-8")
        began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
        place = ("--conversation_file", str(data), "--save_path", str(saved))
        run("train", "--model", model, *place, "--seed", str(seed), *words)
        after, seconds = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter() - began
        rows = [json.loads(line) for line in saved.with_suffix(".metrics.jsonl").read_text("utf-8").splitlines()]
        losses = [row["loss"] for row in rows if row.get("loss") is not None]
        said = [row for row in rows if "recall" in row][-1:]
        scores = json.loads(run("eval", str(saved), *place[:2], "--quantize", "int8", "--json"))["conversations"]
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    row = {"steps": len(losses), "seconds": round(seconds), "cpu_seconds": round(cpu), "loss": round(losses[-1], 3)}
    row |= {"recalled": [said[0]["recalled"], said[0]["pairs"]]} if said else {}
    return row | {"exact_int8": scores["exact"], "in_a_row_int8": scores["in_a_row"]["exact"]}


def main() -> None:
    """Train once for each number of pairs and each seed; print one JSON line each."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, action="append", required=True)
    parser.add_argument("--model", default="demo")
    parser.add_argument("--count", default="", help="Numbers of pairs, with commas.  [default: all]")
    parser.add_argument("--seeds", default="0", help="Seeds, with commas.")
    parser.add_argument("train", nargs="*", metavar="-- OPTION", help="Options of gpt2chat train.")
    arguments = parser.parse_args()
    for data in arguments.data:
        pairs = read(data)
        for count in [int(count) for count in arguments.count.split(",") if count] or [len(pairs)]:
            for seed in map(int, arguments.seeds.split(",")):
                row = taught(pairs[:count], arguments.model, seed, arguments.train)
                print(
                    json.dumps({"bench": "teach", "data": data.name, "pairs": count, "seed": seed, **row}), flush=True
                )


if __name__ == "__main__":
    main()
