"""Fine-tuning speed at 124M against a plain transformers loop: dense text, and chat pairs of realistic length.

Both use bfloat16 autocast, AdamW and clipping at 1.0. The peer is written as its documentation shows: pairs are padded
to the longest of a batch, logits are computed everywhere. Useful tokens are those that are not padding.
"""

from __future__ import annotations

import argparse
import json
import math
import random
import resource
import statistics
import time
from collections.abc import Iterator

import torch
from common import VOCABULARY, interleave, random_ids, report

BATCH, LENGTH = 4, 256


def pair_lengths(count: int) -> list[int]:
    """Token counts of chat pairs: log-normal around 60, at most 256."""
    rng = random.Random(1)
    return [max(8, min(LENGTH, int(rng.lognormvariate(math.log(60), 0.6)))) for _ in range(count)]


def ours(data: str, steps: int) -> Iterator[tuple[int, float]]:
    """Yield (useful tokens, seconds) of each step of the product's own loop."""
    from gpt2chat import pretrained
    from gpt2chat.conversation import Example
    from gpt2chat.data import Dataset
    from gpt2chat.hardware import MemoryValve, pick_device, pick_dtype, tune_allocator
    from gpt2chat.training import TrainConfig, make_optimizer, train

    tune_allocator()
    if data == "text":
        texts = [Example(random_ids(LENGTH, s), [True] * LENGTH) for s in range(steps * BATCH)]
        dataset = Dataset(texts=texts)
    else:
        lengths = pair_lengths(steps * 24)
        pairs = [Example(random_ids(n, s), [i >= n // 2 for i in range(n)], True) for s, n in enumerate(lengths)]
        dataset = Dataset(pairs)
    model = pretrained.fresh("124M").build_model()
    config = TrainConfig(batch_size=BATCH, row_tokens=LENGTH, learning_rate=1e-5)
    dtype = pick_dtype("auto", pick_device("cpu"))
    valve = MemoryValve()
    began = time.perf_counter()
    for step in train(model, dataset, config, make_optimizer(model, config), VOCABULARY - 1, dtype):
        valve.step()
        now = time.perf_counter()
        yield step.tokens, now - began
        began = now
        if step.number == steps:
            return


def theirs(data: str, steps: int, dropout: bool) -> Iterator[tuple[int, float]]:
    """Yield (useful tokens, seconds) of each step of a plain transformers loop."""
    from transformers import GPT2Config, GPT2LMHeadModel

    off = {} if dropout else {"resid_pdrop": 0.0, "embd_pdrop": 0.0, "attn_pdrop": 0.0}
    model = GPT2LMHeadModel(GPT2Config(**off)).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-5)
    lengths = pair_lengths(steps * BATCH)
    for step in range(steps):
        sizes = [LENGTH] * BATCH if data == "text" else lengths[step * BATCH : (step + 1) * BATCH]
        ids = torch.full((BATCH, max(sizes)), VOCABULARY - 1)
        labels = torch.full_like(ids, -100)
        attention = torch.zeros_like(ids)
        for row, size in enumerate(sizes):
            ids[row, :size] = torch.tensor(random_ids(size, step * BATCH + row))
            answer = 0 if data == "text" else size // 2
            labels[row, answer:size] = ids[row, answer:size]
            attention[row, :size] = 1
        began = time.perf_counter()
        with torch.autocast("cpu", torch.bfloat16):
            loss = model(input_ids=ids, attention_mask=attention, labels=labels).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        yield sum(sizes), time.perf_counter() - began


def worker(variant: str, data: str, steps: int) -> None:
    """Measure one variant, without its first two steps, and print one JSON line."""
    source = ours(data, steps) if variant == "ours" else theirs(data, steps, variant == "transformers")
    rows = list(source)[2:]
    if data == "text":
        speed = statistics.median(tokens / seconds for tokens, seconds in rows)
    else:  # steps differ in length: all tokens by all seconds
        speed = sum(tokens for tokens, _ in rows) / sum(seconds for _, seconds in rows)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"tokens_per_second": round(speed, 1), "peak_rss_mb": round(peak)}))


def main() -> None:
    """Compare; or, with --worker, measure one variant."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--worker", nargs=2, metavar=("VARIANT", "DATA"))
    parser.add_argument("--steps", type=int, default=10)
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    if arguments.worker:
        worker(*arguments.worker, arguments.steps)
        return
    for data in ("text", "pairs"):
        names = ("ours", "transformers", "transformers without dropout")
        medians = interleave(__file__, {name: (name, data) for name in names}, arguments.rounds)
        report(f"train 124M, {data}, batch {BATCH} x {LENGTH}", medians, "tokens_per_second", "ours")


if __name__ == "__main__":
    main()
