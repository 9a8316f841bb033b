"""`train --dry_run`: what a run would do and need, from the data as it is and three steps that are thrown away."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator
from typing import TYPE_CHECKING

from gpt2chat.cli.schedule import step_tokens
from gpt2chat.cli.terminal import in_words
from gpt2chat.estimate import largest_part, training_memory
from gpt2chat.hardware import peak_bytes, tune_allocator
from gpt2chat.model import parameter_count
from gpt2chat.training import count_steps

if TYPE_CHECKING:
    from gpt2chat.cli.plan import Plan
    from gpt2chat.training import TrainConfig

TIMED = 3  # steps
FORWARD = 1 / 3  # share of a training step that a look at as many held-out tokens takes


def lines(plan: Plan) -> Iterator[str]:
    """Yield what is known before, then take the steps and yield what they showed."""
    data, run = plan.dataset, plan.run
    parameters = parameter_count(run.model.config)
    ids = sum(len(example.ids) for example in data.examples)
    learnt = sum(example.learnt for example in data.examples)
    yield f"parameters: {parameters / 1e6:.1f} million"
    yield f"tokens: {ids} in one pass, {learnt} of them learnt"
    until = "until the answers come back, at most " if plan.config.open_end else ""
    yield f"steps: {until}{plan.total} of up to {plan.config.batch_size} rows of {plan.config.row_tokens} tokens"
    yield f"disk: {16 * parameters / 1e6:.0f} MB for the checkpoint and the state to resume from"
    yield f"memory: {_memory(plan, plan.config)} MB at the peak, by formula"
    yield from _timed(plan)
    yield from _smaller(plan)


def _memory(plan: Plan, config: TrainConfig) -> int:
    rows, width, targets = largest_part(plan.dataset, config)
    needed = training_memory(plan.run.model.config, rows, width, targets, plan.dtype, config.accumulate)
    return round(needed / 1e6)


def _timed(plan: Plan) -> Iterator[str]:
    """Take steps and yield what the whole run would take; nothing of them is kept."""
    tune_allocator()
    steps = list(itertools.islice(plan.steps(), TIMED))
    if not steps:
        yield "nothing is left to train"
        return
    timed = steps[1:] or steps  # the first one warms up
    rate = sum(step.tokens for step in timed) / sum(step.seconds for step in timed)
    left = plan.total - plan.run.number
    read = left * step_tokens(plan.dataset, plan.config)
    if plan.run.validation:
        read += FORWARD * left / plan.eval_every * sum(len(example.ids) for example in plan.run.validation)
    if plan.run.quiz:
        read += FORWARD * (left / plan.check_every if plan.config.open_end else 1) * plan.run.quiz.tokens
    each = ", ".join(f"{step.seconds:.2f}" for step in steps)
    most = "until the answers come back, at most" if plan.config.open_end else "about"
    yield f"time: {most} {in_words(read / rate)} ({len(steps)} steps took {each} s; {rate:.0f} tokens per second)"
    peak = peak_bytes(plan.run.model.device)
    if peak:
        yield f"memory in these steps: {peak / 1e6:.0f} MB at the peak, measured"


def _smaller(plan: Plan) -> Iterator[str]:
    """Yield what other sizes of a step would change."""
    config = plan.config
    if config.batch_size > config.accumulate:
        parts = dataclasses.replace(config, accumulate=config.batch_size)
        if _memory(plan, parts) < _memory(plan, config):
            yield f"--accumulate {parts.accumulate}: {_memory(plan, parts)} MB, the same result in a little more time"
    for size in (config.batch_size // 2, config.batch_size * 2):
        if size:
            other = dataclasses.replace(config, batch_size=size, accumulate=min(config.accumulate, size))
            steps = "" if config.steps else f", {sum(count_steps(plan.dataset, other))} steps"
            yield f"--batch_size {size}: {_memory(plan, other)} MB{steps}"
