"""How long a run goes on and how fast it learns: as the user says, or chosen where that was left open."""

from __future__ import annotations

import dataclasses
import itertools
from pathlib import Path
from typing import Any

import torch

from gpt2chat.checkpoint import Checkpoint
from gpt2chat.cli.terminal import in_words
from gpt2chat.data import Dataset, epoch_rows
from gpt2chat.errors import CheckpointError, ConfigError
from gpt2chat.estimate import default_epochs, most_steps, rough_speed
from gpt2chat.model import GPT2Config
from gpt2chat.recall import Quiz
from gpt2chat.run import stored_settings
from gpt2chat.training import TrainConfig, count_steps, default_learning_rate, total_steps

ROWS = 4  # of a step, where neither the user nor few data say otherwise
APART = 0.4  # of the rows hold pairs on their own where nothing but such is learnt; the others, conversations of them
STEPS_OF_A_PASS = 4  # few data are learnt in smaller steps rather than in fewer of them
CHECK_SHARE = 0.12  # of the time of training that may go into checking what comes back
CHECK_LEAST = 5  # steps between two checks


def schedule(
    options: dict[str, Any], base: Checkpoint, dataset: Dataset, row_tokens: int, quiz: Quiz, faq: bool
) -> tuple[TrainConfig, list[str]]:
    """Return the configuration of a run, and a line for each choice that the user left open.

    `faq` says that the model will have been taught single questions and answers alone.
    """
    if options["resume"]:
        return _continued(options, base, dataset, row_tokens), []
    config = TrainConfig(
        epochs=options["epochs"] or 1,
        steps=options["steps"],
        batch_size=options["batch_size"] or ROWS,
        accumulate=options["accumulate"],
        learning_rate=options["learning_rate"] or default_learning_rate(base.config),
        weight_decay=options["weight_decay"],
        row_tokens=row_tokens,
        join=options["join"],
        seed=options["seed"],
    )
    lines = []
    if options["epochs"] is None and options["steps"] is None:
        config, line = _open(config, options, dataset, quiz, APART if faq else 0.0)
        lines.append(line)
    if options["learning_rate"] is None:
        lines.append(
            f"learning rate: {config.learning_rate:.1e}, for a model of this size (--learning_rate changes it)"
        )
    return config, lines + _warnings(dataset, row_tokens)


def _open(
    config: TrainConfig, options: dict[str, Any], dataset: Dataset, quiz: Quiz, apart: float
) -> tuple[TrainConfig, str]:
    """Leave the end of a run on conversations to what comes back; choose the epochs of texts by their size."""
    if not quiz:
        steps = count_steps(dataset, dataclasses.replace(config, epochs=1))[0]
        epochs = default_epochs(steps)
        line = f"epochs: {epochs}, so that there are about {epochs * steps} steps (--epochs changes it)"
        return dataclasses.replace(config, epochs=epochs), line
    rows = len(epoch_rows(dataset, 0, config.row_tokens, config.seed))
    batch = options["batch_size"] or max(min(ROWS, rows // STEPS_OF_A_PASS), 1, config.accumulate)
    most = most_steps(-(-rows // batch))
    line = f"epochs: until the taught answers come back, at most {most} steps (--epochs or --steps sets a number)"
    return dataclasses.replace(config, batch_size=batch, apart=apart, steps=most, open_end=True), line


def most_time(dataset: Dataset, config: TrainConfig, model: GPT2Config, dtype: torch.dtype, beside: int = 0) -> str:
    """Return in words about how long a run takes at the most on this CPU, with so many ids read beside each step."""
    read = total_steps(dataset, config) * (step_tokens(dataset, config) + beside)
    return in_words(read / rough_speed(model, dtype))


def step_tokens(dataset: Dataset, config: TrainConfig) -> float:
    """Return how many ids a step has on average."""
    order = dataset.epoch(0, config.seed)
    examples = dataset.examples
    steps = count_steps(dataset, dataclasses.replace(config, epochs=1))[0]
    return sum(len(examples[i].ids) for i in order) / steps


def check_interval(dataset: Dataset, config: TrainConfig, quiz: Quiz) -> int:
    """Return after how many steps an open run checks what comes back; a look takes a third of a step's time."""
    return max(CHECK_LEAST, round(quiz.tokens / 3 / (CHECK_SHARE * step_tokens(dataset, config))))


def gets_more(options: dict[str, Any], base: Checkpoint) -> bool:
    """Whether a run that is resumed was given another number of epochs or steps than it had."""
    if not options["resume"] or base.training is None:
        return False
    stored = stored_settings(base.training, Path(options["resume"]))["options"]
    return any(options[name] != stored.get(name) for name in ("epochs", "steps"))


def _continued(options: dict[str, Any], base: Checkpoint, dataset: Dataset, row_tokens: int) -> TrainConfig:
    """Return the configuration of the run that is resumed, with the epochs or steps that it is given now."""
    path, training = Path(options["resume"]), base.training or {}
    stored = stored_settings(training, path)["config"]
    try:
        config, done = TrainConfig(**stored), int(training["step"])
    except (ConfigError, TypeError, KeyError, ValueError) as error:
        raise CheckpointError(f"{path}: its training state is damaged: {error}; train afresh") from error
    if config.row_tokens != row_tokens:
        raise CheckpointError(f"{path}: that run had another row_tokens; it cannot be resumed exactly")
    if not gets_more(options, base):
        return config
    begin = done if config.open_end or training.get("finished") else config.begin
    more = dataclasses.replace(
        config, epochs=options["epochs"] or 1, steps=options["steps"], open_end=False, begin=begin
    )
    if total_steps(dataset, more) <= done:
        given = "steps" if options["steps"] else "epochs"
        had = done if options["steps"] else passes(dataset, config, done)
        raise ConfigError(f"{given}: the run has taken {had} {given} already: pass more than {had}, all together")
    return more


def passes(dataset: Dataset, config: TrainConfig, steps: int) -> int:
    """Return how many epochs the first steps of a run are, a begun one counted whole."""
    taken = 0
    for epoch in itertools.count():
        taken += -(-len(epoch_rows(dataset, epoch, config.row_tokens, config.seed)) // config.batch_size)
        if taken >= steps:
            return epoch + 1
    raise AssertionError("an endless loop has ended")


def _warnings(dataset: Dataset, row_tokens: int) -> list[str]:
    """Return what few data mean for what the model will know."""
    ids = sum(len(example.ids) for example in dataset.examples)
    if dataset.texts and not dataset.conversations and ids < row_tokens:
        return [f"warning: only {ids} tokens to learn from: the model can learn them by heart, but not to talk"]
    if 0 < len(dataset.conversations) < 10 and not dataset.texts:
        return ["warning: fewer than ten conversations; the model will know these and little else"]
    return []
