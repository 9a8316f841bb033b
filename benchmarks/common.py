"""What the benchmarks share: workers in their own processes, interleaved; one JSON line per measurement."""

from __future__ import annotations

import json
import random
import statistics
import subprocess
import sys
from pathlib import Path

VOCABULARY = 50257


def random_ids(count: int, seed: int) -> list[int]:
    """Return ids that no cache has seen; random weights make speed independent of the text."""
    rng = random.Random(seed)
    return [rng.randrange(VOCABULARY - 1) for _ in range(count)]


def run_worker(script: str, *arguments: str) -> dict[str, float]:
    """Run one measurement in a fresh process, as a user would start it; return its JSON line."""
    command = [sys.executable, str(Path(script).resolve()), "--worker", *arguments]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return json.loads(out.splitlines()[-1])


def interleave(script: str, variants: dict[str, tuple[str, ...]], rounds: int) -> dict[str, dict[str, float]]:
    """Run all variants in turn, `rounds` times; return each one's medians."""
    results: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
    for number in range(rounds):
        for name, arguments in variants.items():
            results[name].append(run_worker(script, *arguments))
            print(f"round {number + 1}: {name}: {results[name][-1]}", file=sys.stderr)
    return {name: {k: statistics.median(row[k] for row in rows) for k in rows[0]} for name, rows in results.items()}


def report(bench: str, medians: dict[str, dict[str, float]], key: str, ours: str) -> None:
    """Print one JSON line per variant, with the ratio of ours to it."""
    for name, figures in medians.items():
        print(
            json.dumps({"bench": bench, "variant": name, **figures, "ours_over_it": medians[ours][key] / figures[key]})
        )
