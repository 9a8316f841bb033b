"""`train(...)` is a generator: it takes one optimizer step, yields a `Step`, and leaves everything else to its caller.

Progress bars, saving, early stopping and Ctrl-C belong to whoever iterates. The batch of step n, and the random
numbers of its dropout, depend on the seed and n alone; so a run that is resumed from its weights, its optimizer state
and the number of its last step goes on exactly as if it had never stopped; one with an open end needs its `Pace` too.
"""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from gpt2chat.conversation import Example
from gpt2chat.data import Dataset, collate, epoch_batches, epoch_rows, pack
from gpt2chat.distillation import Distillation
from gpt2chat.errors import ConfigError, TrainingError
from gpt2chat.hardware import autocast
from gpt2chat.loss import Batch, summed_loss
from gpt2chat.model import GPT2, GPT2Config

MAX_SKIPPED = 5  # steps in a row whose gradients are not finite before training gives up
LEAST_SHARE = 0.1  # of the peak rate, where a run ends
SEVERAL = 3  # looks in a row at what was learnt that an open run takes as its end
OPEN_WARMUP = 10  # steps of a run with an open end, of which no share is known
FADING = 0.2  # share of the most steps in which the rate of an open run goes down, should the end not come before


@dataclass(frozen=True)
class TrainConfig:
    """How a model is trained. Raises ConfigError for values out of range.

    epochs: passes over the data; `steps`, if given, counts optimizer steps instead. open_end: these are the most, and
    a `Pace` says when it is enough. begin: the step from which the rate follows its schedule, above 0 where a run that
    had ended was given more steps.
    batch_size: rows per optimizer step, of row_tokens ids each.
    accumulate: parts a step's rows are computed in; the update is the same, the memory smaller.
    learning_rate: its peak, after a linear warm-up over `warmup` of all steps; then a cosine to a tenth of it.
    weight_decay: applies to matrices only. clip: largest gradient norm. join, apart: see `data.collate`.
    """

    epochs: int = 1
    batch_size: int = 4
    accumulate: int = 1
    learning_rate: float = 5e-5
    warmup: float = 0.05
    weight_decay: float = 0.01
    clip: float = 1.0
    row_tokens: int = 256
    join: float = 0.9
    apart: float = 0.0
    seed: int = 0
    steps: int | None = None
    open_end: bool = False
    begin: int = 0

    def __post_init__(self) -> None:
        for name in ("epochs", "batch_size", "accumulate", "row_tokens"):
            _check_whole(name, getattr(self, name), 100_000)
        if self.steps is not None:
            _check_whole("steps", self.steps, 10_000_000)
        limits = {"learning_rate": 10.0, "warmup": 1.0, "weight_decay": 10.0, "clip": 1e9, "join": 1.0, "apart": 1.0}
        for name, high in limits.items():
            value = getattr(self, name)
            positive = name in ("learning_rate", "clip")
            number = type(value) in (int, float)
            if not number or not 0 <= value <= high or (positive and value == 0):
                low = "a number above 0" if positive else "a number from 0"
                raise ConfigError(f"{name}: expected {low} to {high:g}, got {value!r}")
        if type(self.seed) is not int or not 0 <= self.seed < 2**63:
            raise ConfigError(f"seed: expected a whole number from 0 to 2^63 - 1, got {self.seed!r}")
        if self.accumulate > self.batch_size:
            raise ConfigError(f"accumulate: expected at most batch_size ({self.batch_size}), got {self.accumulate}")


def _check_whole(name: str, value: object, high: int) -> None:
    if type(value) is not int or not 1 <= value <= high:
        raise ConfigError(f"{name}: expected a whole number from 1 to {high:,}, got {value!r}")


@dataclass
class Pace:
    """How a run with an open end goes on: the share of its peak rate, and whether it has reached its end.

    Whoever iterates lets it `follow` what was found between two steps. Its fields are all that resuming such a run
    needs beside weights, optimizer state and position.
    """

    share: float = 1.0
    complete: int = 0  # looks in a row that found everything learnt
    done: bool = False

    def follow(self, learnt: float, surely: bool) -> None:
        """Slow down as the share of what is learnt grows; end when all is learnt `surely`, or in several looks."""
        self.share = min(self.share, max(LEAST_SHARE, 1 - learnt))
        self.complete = self.complete + 1 if learnt == 1 else 0
        self.done = surely or self.complete >= SEVERAL


@dataclass(frozen=True)
class Step:
    """What one optimizer step did. `loss` is in nats per supervised token; `tokens` counts the ids of real text.

    `skipped` tells that its gradients were not finite and the weights were left alone.
    """

    number: int
    total: int
    loss: float
    learning_rate: float
    gradient_norm: float
    tokens: int
    targets: int
    seconds: float
    skipped: bool = False


def default_learning_rate(config: GPT2Config) -> float:
    """Return a peak rate that suits the size: 5e-5 from 768 wide on, more for smaller models (1e-3 at 256)."""
    return min(1e-3, 5e-5 * max(1.0, 768 / config.n_embd) ** 2.75)


def make_optimizer(model: GPT2, config: TrainConfig) -> torch.optim.AdamW:
    """Return AdamW (Loshchilov and Hutter 2019) whose decay reaches matrices only; frozen parameters stay out."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.dim() >= 2], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.dim() < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=config.learning_rate, betas=(0.9, 0.95), fused=True)


def learning_rate(step: int, total: int, config: TrainConfig, share: float = 1.0) -> float:
    """Return the rate of step `step` (from 0) of `total`.

    A linear warm-up, then a cosine to a tenth of the peak. With an open end the rate stays at `share` of the peak, and
    goes down to a tenth in the last fifth of the most steps.
    """
    step, total = step - config.begin, total - config.begin
    if config.open_end:
        left = LEAST_SHARE + (1 - LEAST_SHARE) * min(1.0, (total - step) / max(1.0, FADING * total))
        return config.learning_rate * min(1.0, (step + 1) / min(OPEN_WARMUP, total)) * min(share, left)
    warmup = math.ceil(config.warmup * total)
    if step < warmup:
        return config.learning_rate * (step + 1) / warmup
    done = (step - warmup) / max(1, total - warmup)
    return config.learning_rate * (LEAST_SHARE + (1 - LEAST_SHARE) * 0.5 * (1 + math.cos(math.pi * done)))


def count_steps(dataset: Dataset, config: TrainConfig) -> list[int]:
    """Return the number of optimizer steps of each epoch."""
    rows = [len(epoch_rows(dataset, epoch, config.row_tokens, config.seed)) for epoch in range(config.epochs)]
    return [-(-count // config.batch_size) for count in rows]


def total_steps(dataset: Dataset, config: TrainConfig) -> int:
    """Return the number of optimizer steps of a run, the most where its end is open."""
    return config.steps or sum(count_steps(dataset, config))


def train(
    model: GPT2,
    dataset: Dataset,
    config: TrainConfig,
    optimizer: torch.optim.Optimizer,
    pad_id: int,
    dtype: torch.dtype = torch.float32,
    start: int = 0,
    pace: Pace | None = None,
    distillation: Distillation | None = None,
) -> Iterator[Step]:
    """Train `model` in place from step `start` on, yielding after each optimizer step.

    The loss of a step is the sum over its supervised tokens divided by their number, however many parts it is
    computed in. With an open end it goes on until `pace` is done; `distillation` is added to what is made small. Raises
    TrainingError when nothing can be learned or gradients stay non-finite.
    """
    if not any(any(example.loss_mask[1:]) for example in dataset.examples):
        raise TrainingError("there is no token to learn from: every example is empty or fully masked")
    total, skipped, pace = total_steps(dataset, config), 0, pace or Pace()
    for number, batch in enumerate(itertools.islice(_batches(dataset, config, pad_id), total)):
        if number < start:
            continue
        if config.open_end and pace.done:
            return
        rate = learning_rate(number, total, config, pace.share)
        step = _take_step(model, batch, config, optimizer, dtype, number, total, rate, distillation)
        skipped = skipped + 1 if step.skipped else 0
        if skipped >= MAX_SKIPPED:
            raise TrainingError(
                f"step {step.number}: gradients were not finite {skipped} times in a row: "
                "lower --learning_rate, or use --dtype float32; the weights are those before"
            )
        yield step


def _batches(dataset: Dataset, config: TrainConfig, pad_id: int) -> Iterator[Batch]:
    """Yield the batches of one epoch after the other, without an end."""
    for epoch in itertools.count():
        yield from epoch_batches(
            dataset,
            epoch,
            config.row_tokens,
            config.batch_size,
            config.seed,
            config.join,
            pad_id,
            config.apart,
        )


def _take_step(
    model: GPT2,
    batch: Batch,
    config: TrainConfig,
    optimizer: torch.optim.Optimizer,
    dtype: torch.dtype,
    number: int,
    total: int,
    rate: float,
    distillation: Distillation | None = None,
) -> Step:
    began = time.perf_counter()
    model.train()
    torch.manual_seed((config.seed * 1_000_003 + number) % 2**63)  # dropout of this step
    for group in optimizer.param_groups:
        group["lr"] = rate
    targets, loss = batch.targets, 0.0
    for part in _parts(batch, config.accumulate):
        if part.targets:
            with autocast(model.device, dtype):
                mean = summed_loss(model, part.to(model.device)) / max(1, targets)
            mean.backward()
            loss += mean.item()
    if distillation is not None:
        with autocast(model.device, dtype):
            held = distillation.loss(model, number)
        held.backward()
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    norm = _clip([p for p in parameters if p.grad is not None], config.clip)
    healthy = math.isfinite(norm) and math.isfinite(loss)
    if healthy and targets:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    seconds = time.perf_counter() - began
    return Step(number + 1, total, loss, rate, norm, batch.tokens, targets, seconds, skipped=not healthy)


def _clip(parameters: list[torch.nn.Parameter], limit: float) -> float:
    """Scale the gradients down to `limit` where they are larger; return their norm before."""
    norm = torch.nn.utils.get_total_norm([p.grad for p in parameters if p.grad is not None])
    if norm > limit:
        torch.nn.utils.clip_grads_with_norm_(parameters, limit, norm)
    return float(norm)


def _parts(batch: Batch, count: int) -> Iterator[Batch]:
    """Cut a batch into at most `count` parts of whole rows."""
    rows = batch.input_ids.size(0)
    size = -(-rows // count)
    for start in range(0, rows, size):
        cut = slice(start, start + size)
        mask = None if batch.mask is None else batch.mask[cut]
        yield Batch(batch.input_ids[cut], batch.labels[cut], batch.positions[cut], mask, tokens=0)


@torch.no_grad()
def mean_loss(
    model: GPT2, examples: Sequence[Example], row_tokens: int, pad_id: int, dtype: torch.dtype = torch.float32
) -> float:
    """Return the loss in nats per supervised token over `examples`, each seen alone."""
    model.eval()
    lengths = [len(example.ids) for example in examples]
    size = max([row_tokens, *lengths])
    rows = pack(lengths, range(len(examples)), size)
    total, targets = 0.0, 0
    for start in range(0, len(rows), 4):
        batch = collate([[examples[i] for i in row] for row in rows[start : start + 4]], pad_id, limit=size)
        if batch.targets:
            with autocast(model.device, dtype):
                total += summed_loss(model, batch.to(model.device)).item()
            targets += batch.targets
    if not targets:
        raise TrainingError("validation: there is no supervised token in it")
    return total / targets
