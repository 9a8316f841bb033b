"""What a training run will need, before it runs: memory by formula, steps and minutes."""

from __future__ import annotations

import math
import statistics
import time
from dataclasses import dataclass

import torch

from gpt2chat.data import Dataset, epoch_rows
from gpt2chat.hardware import pick_dtype
from gpt2chat.model import GPT2Config, parameter_count
from gpt2chat.training import TrainConfig

TEXT_BLOCK = 256  # ids per row of text when --max_length does not say ...
CONVERSATION_ROW = 512  # ... and of conversations: single pairs are joined up to this length
ENOUGH_STEPS = 50  # epochs of texts are chosen to reach this many optimizer steps ...
MOST_EPOCHS = 10  # ... but no more passes than this
MOST_STEPS, MOST_PASSES = 600, 60  # of a run that ends when the taught answers come back: the larger of both
LIKELY_STEPS, LIKELY_PASSES = 130, 15  # after which they mostly do
FILLED = 0.95  # of a row, as documents come
EFFICIENCY = 0.2  # of training, measured on the demo model


@dataclass(frozen=True)
class _Bytes:
    """What training keeps, in bytes: fitted to 24 measured runs of three sizes; benchmarks/memory.py repeats them."""

    weight: int  # of a parameter while the loss is computed: itself, two moments, a copy in another type
    score: int  # of each score of the vocabulary at each target
    activation: int  # of each number of a token's state in each layer, kept for the way back
    returning: int  # ... of which so much is still there when the gradients are
    embedding: int  # of each number of the embedding, whose gradient comes from both ends
    base: int  # of the interpreter with torch and what it loads to compute


KEPT = {
    torch.float32: _Bytes(12, 9, 12, 50, 5, 437_000_000),
    torch.bfloat16: _Bytes(14, 4, 24, 27, 7, 450_000_000),
}
GRADIENT = 4  # bytes of a parameter's gradient
DROPPED, ATTENDED = 18, 15  # bytes that dropout keeps of each activation, and of each pair of tokens in each head


def training_memory(config: GPT2Config, rows: int, width: int, targets: int, dtype: torch.dtype, parts: int = 1) -> int:
    """Return the peak memory in bytes of a process that trains on the CPU, within a tenth.

    `rows` of `width` tokens, padding included, are the largest part that is computed at once, `targets` are those to
    learn in it; `parts` are what a step is computed in. The peak is where the loss is computed, or where all gradients
    are there.
    """
    kept, parameters = KEPT[dtype], parameter_count(config)
    states = rows * width * config.n_embd * config.n_layer
    dropped = DROPPED * states + ATTENDED * rows * width**2 * config.n_head * config.n_layer
    loss = kept.score * -(-targets // 64) * 64 * config.vocab_size + kept.activation * states
    embedding = kept.embedding * config.vocab_size * config.n_embd
    gradients = GRADIENT * parameters + embedding
    # From the second part on the gradients are there when the next loss is computed.
    peak = loss + gradients if parts > 1 else max(loss, gradients + kept.returning * states)
    return kept.base + kept.weight * parameters + peak + (dropped if config.dropout else 0)


def largest_part(dataset: Dataset, config: TrainConfig) -> tuple[int, int, int]:
    """Return rows, their width in tokens and the most targets of the largest part of the first epoch's steps."""
    examples = dataset.examples
    packed = epoch_rows(dataset, 0, config.row_tokens, config.seed)
    ids = [sum(len(examples[i].ids) for i in row) for row in packed]
    learnt = [sum(sum(examples[i].loss_mask[1:]) for i in row) for row in packed]
    rows = width = targets = 0
    for start in range(0, len(packed), config.batch_size):
        stop = min(start + config.batch_size, len(packed))
        widest = min(config.row_tokens, -(-max(ids[start:stop]) // 64) * 64)
        size = -(-(stop - start) // config.accumulate)
        if size * widest > rows * width:
            rows, width = size, widest
        targets = max(targets, *(sum(learnt[at : min(at + size, stop)]) for at in range(start, stop, size)))
    return rows, width, targets


def default_epochs(steps: int) -> int:
    """Return how many passes of `steps` optimizer steps suit texts."""
    return min(MOST_EPOCHS, max(1, -(-ENOUGH_STEPS // steps)))


def most_steps(steps: int) -> int:
    """Return after how many steps, of which a pass has `steps`, a run ends though not all answers come back."""
    return max(MOST_STEPS, MOST_PASSES * steps)


def rough_run(config: GPT2Config, kind: str, tokens: int) -> tuple[int, int, float]:
    """Return epochs, steps and about how many seconds a run with the usual options takes on the CPU.

    `kind` is "conversations" or "texts", `tokens` those of one pass. Conversations end when their answers come back,
    which small and usual ones have done by then.
    """
    row = min(config.n_ctx, CONVERSATION_ROW if kind == "conversations" else TEXT_BLOCK)
    rows = math.ceil(tokens / (FILLED * row))
    if kind == "conversations":
        steps = -(-rows // max(1, min(TrainConfig.batch_size, rows // 4)))
        epochs = max(LIKELY_PASSES, round(LIKELY_STEPS / steps))
    else:
        steps = max(1, -(-rows // TrainConfig.batch_size))
        epochs = default_epochs(steps)
    dtype = pick_dtype("auto", torch.device("cpu"))
    return epochs, epochs * steps, epochs * tokens / rough_speed(config, dtype)


def rough_speed(config: GPT2Config, dtype: torch.dtype) -> float:
    """Return about how many tokens per second this machine's CPU would train on, from a few matrix products.

    Each token takes six floating-point operations per weight, forward and back (Kaplan et al. 2020), and training
    reaches EFFICIENCY of what products alone do.
    """
    a, b = torch.ones(1024, 768, dtype=dtype), torch.ones(768, 3072, dtype=dtype)
    seconds = []
    for _ in range(8):
        began = time.perf_counter()
        torch.mm(a, b)
        seconds.append(time.perf_counter() - began)
    rate = 2 * 1024 * 768 * 3072 / statistics.median(seconds)
    return EFFICIENCY * rate / (6 * parameter_count(config))
