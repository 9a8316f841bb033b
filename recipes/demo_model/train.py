"""Train the demo model on the prepared corpus; stop and start it at any time.

The long run keeps one rate, so that it can go on for as long as there is time. A closing run branches off from it: its
rate falls to nothing, on a mix of what the model is for (warm-up, stable, decay: Hu et al. 2024, arXiv:2404.06395).

The embedding has all 50,257 rows of GPT-2's vocabulary, but a full softmax over them would take most of the time.
The loss is a sampled softmax (Jean et al. 2015, arXiv:1412.2007): the most frequent ids of the corpus are always
scored, and of the rest the batch's own targets and a random sample, whose scores are raised by log(1 / sampled share)
so that the sum estimates the full one. So every row is trained as input, as target and as "not this one".
"""

from __future__ import annotations

import json
import math
import os
import sys
import time
from pathlib import Path

import click
import numpy as np
import torch
import torch.nn.functional as F

from gpt2chat import pretrained
from gpt2chat.hardware import autocast, pick_device, pick_dtype, tune_allocator
from gpt2chat.model import GPT2, GPT2Config

CONFIG = GPT2Config(n_layer=6, n_head=4, n_embd=256, n_ctx=512)
ROWS, RATE, WARMUP, DECAY = 4, 8e-4, 100, 0.1
FREQUENT, SAMPLED = 4096, 512
SAVE_SECONDS = 180


class Corpus:
    """Documents joined into rows of `n_ctx` tokens; `batch(n)` is a pure function of n."""

    def __init__(self, stem: Path) -> None:
        self.ids = np.memmap(stem.with_suffix(".bin"), np.uint16, "r")
        self.starts = np.fromfile(stem.with_suffix(".idx"), np.int64)
        self.rows = (len(self.ids) - 1) // CONFIG.n_ctx

    def batch(self, number: int, rows: int = ROWS) -> tuple[torch.Tensor, ...]:
        """Return ids, targets, positions (rows, T) and the block-diagonal causal mask (rows, 1, T, T)."""
        T = CONFIG.n_ctx
        chosen = [(number * rows + r) % self.rows for r in range(rows)]
        spans = np.array([r * T + np.arange(T) for r in chosen])  # (rows, T)
        document = np.searchsorted(self.starts, spans, side="right") - 1
        begin = np.maximum(self.starts[document], spans[:, :1])
        targets = self.ids[spans + 1].astype(np.int64)
        targets[self.starts[document + 1] == spans + 1] = -100  # the next document cannot be foretold
        segment = torch.from_numpy(document)
        mask = (segment[:, None, :, None] == segment[:, None, None, :]) & torch.ones(T, T, dtype=torch.bool).tril()
        ids = torch.from_numpy(self.ids[spans].astype(np.int64))
        return ids, torch.from_numpy(targets), torch.from_numpy(spans - begin), mask


class SampledLoss:
    """Mean cross entropy over the frequent ids, the batch's rare targets and a sample of the other rare ids."""

    def __init__(self, counts: np.ndarray) -> None:
        order = np.argsort(-counts, kind="stable")
        self.frequent = torch.from_numpy(np.sort(order[:FREQUENT]))
        self.rare = torch.from_numpy(np.sort(order[FREQUENT:]))
        self.column = torch.full((len(counts),), -1)
        self.column[self.frequent] = torch.arange(FREQUENT)

    def __call__(self, model: GPT2, hidden: torch.Tensor, targets: torch.Tensor, seed: int) -> torch.Tensor:
        hidden, targets = hidden.flatten(0, 1), targets.flatten()
        supervised = targets != -100
        own = targets[supervised & (self.column[targets] < 0)].unique()[: SAMPLED // 2]
        draw = torch.randperm(len(self.rare), generator=torch.Generator().manual_seed(seed))[: 2 * SAMPLED]
        others = self.rare[draw]
        others = others[~torch.isin(others, own)][: SAMPLED - len(own)]
        column = self.column.clone()
        column[own] = FREQUENT + torch.arange(len(own))
        rows = model.wte.weight[torch.cat((self.frequent, own, others))]
        scores = F.linear(hidden, rows).float()  # always (rows * T, FREQUENT + SAMPLED): memory is reused
        scores[:, FREQUENT + len(own) :] += math.log((len(self.rare) - len(own)) / len(others))
        known = supervised & (column[targets] >= 0)
        return F.cross_entropy(scores, torch.where(known, column[targets], -100))


def rate(step: int, closing: int, closed: int) -> float:
    """Linear warm-up and then one rate; in a closing run of `closing` steps, of which `closed` are done, down to 0."""
    return RATE * min(1.0, (step + closed + 1) / WARMUP) * (1 - closed / closing if closing else 1.0)


@torch.no_grad()
def heldout_loss(model: GPT2, corpus: Corpus, dtype: torch.dtype, batches: int) -> float:
    """Mean loss per token over all 50,257 ids on the first `batches` batches of the held-out documents."""
    total, count = 0.0, 0
    for number in range(min(batches, corpus.rows // ROWS)):
        ids, targets, positions, mask = corpus.batch(number)
        with autocast(model.device, dtype):
            hidden = model.hidden_states(ids, positions=positions, mask=mask)[targets != -100]
            for part, wanted in zip(hidden.split(512), targets[targets != -100].split(512), strict=True):
                total += F.cross_entropy(model.logits(part).float(), wanted, reduction="sum").item()
                count += len(wanted)
    return total / count


def save(path: Path, state: dict[str, object]) -> None:
    """Replace the file as a whole, so that a stop at any moment leaves a complete one."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("wb") as file:
        torch.save(state, file)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)


def optimizer_for(model: GPT2) -> torch.optim.AdamW:
    """AdamW; only the linear weights decay, so that rows of rare words are not forgotten between two sightings."""
    linear = [p for name, p in model.named_parameters() if p.dim() == 2 and not name.startswith("wt")]
    rest = [p for name, p in model.named_parameters() if p.dim() == 1 or name.startswith("wt")]
    groups = [{"params": linear, "weight_decay": DECAY}, {"params": rest, "weight_decay": 0.0}]
    return torch.optim.AdamW(groups, lr=RATE, betas=(0.9, 0.95), fused=True)


def begin(out: Path, model: GPT2, optimizer: torch.optim.Optimizer, weights: str | None, branch: Path | None) -> dict:
    """Take up the state in `out`, else that of the run branched off from, else weights to begin with, else none."""
    source = out if out.exists() else branch
    if source is not None:
        state = torch.load(source, weights_only=True)
        model.load_state_dict(state.pop("model"))
        optimizer.load_state_dict(state.pop("optimizer"))
        return state
    if weights is not None:
        model.load_state_dict(pretrained.load(weights).build_model(torch.float32, torch.device("cpu")).state_dict())
    return {"step": 0, "closed": 0, "seconds": 0.0}


@click.command()
@click.option("--corpus", type=click.Path(path_type=Path), required=True, help="Folder written by prepare.py.")
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Training state; continued if it is there.")
@click.option("--begin_with", help="A model whose weights a new run begins with: demo, or a .pt.")
@click.option("--branch", type=click.Path(exists=True, path_type=Path), help="State of the long run to close.")
@click.option("--steps", default=75_000, show_default=True, help="Steps of 2,048 tokens of the long run.")
@click.option("--closing", default=0, show_default=True, help="Steps of a closing run, in place of the long one.")
@click.option("--stop_after", type=float, help="Stop after so many seconds, to go on later.")
def main(
    corpus: Path,
    out: Path,
    begin_with: str | None,
    branch: Path | None,
    steps: int,
    closing: int,
    stop_after: float | None,
) -> None:
    """Train, saving every few minutes; run the same command again to go on."""
    tune_allocator()
    device = pick_device("cpu")
    dtype = pick_dtype("auto", device)
    data, heldout = Corpus(corpus / ("closing" if closing else "train")), Corpus(corpus / "heldout")
    loss_of = SampledLoss(np.bincount(Corpus(corpus / "train").ids, minlength=CONFIG.vocab_size))
    model = GPT2(CONFIG).init_weights(seed=0)
    optimizer = optimizer_for(model)
    state = begin(out, model, optimizer, begin_with, branch)
    seconds, began, saved = state["seconds"], time.monotonic(), time.monotonic()
    running: list[float] = []

    def keep() -> None:
        state["seconds"] = seconds + time.monotonic() - began
        save(out, {**state, "model": model.state_dict(), "optimizer": optimizer.state_dict()})

    def left() -> bool:
        return state["closed"] < closing if closing else state["step"] < steps

    while left() and (stop_after is None or time.monotonic() - began < stop_after):
        number = state["closed"] if closing else state["step"]
        ids, targets, positions, mask = data.batch(number)
        for group in optimizer.param_groups:
            group["lr"] = rate(state["step"], closing, state["closed"])
        with autocast(device, dtype):
            loss = loss_of(model, model.hidden_states(ids, positions=positions, mask=mask), targets, seed=number)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        running.append(loss.item())
        state["closed" if closing else "step"] += 1
        if (number + 1) % 50 == 0 or not left():
            row = {"step": state["step"], "closed": state["closed"], "loss": round(float(np.mean(running)), 4)}
            row |= {"seconds": round(seconds + time.monotonic() - began)}
            if (number + 1) % 500 == 0 or not left():
                row["heldout"] = round(heldout_loss(model, heldout, dtype, 8), 4)
            print(json.dumps(row), file=sys.stderr, flush=True)
            running.clear()
        if time.monotonic() - saved > SAVE_SECONDS:
            saved = time.monotonic()
            keep()
    keep()


if __name__ == "__main__":
    main()
