"""The last lines of training: how many of the taught answers come back, what to do about the others, what was kept."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING

from gpt2chat.cli.terminal import program

if TYPE_CHECKING:
    from gpt2chat.cli.plan import Plan
    from gpt2chat.taught import Pair

MEASURED = 2000  # taught pairs up to which it is quickly found out how well they are told apart
LAST_LOSSES = 5  # steps whose mean is the loss that is said


def lines(plan: Plan) -> Iterator[str]:
    """Yield what came back, with the command that goes on where not all did, and whether the state was kept."""
    run = plan.run
    if run.recall is not None and run.recall.whole:
        yield f"{run.recall.words()} taught answers come back"
    elif run.recall is not None and _is_older(plan):
        kept = "validation kept the weights of an earlier step: --val_fraction 0 teaches all pairs until they come back"
        yield f"{run.recall.words()} taught answers come back, {_loss(plan)}; {kept}"
    elif run.recall is not None:
        yield f"{run.recall.words()} taught answers come back, {_loss(plan)}: go on with `{more(plan)}`"
    if run.recall is not None and 1 < len(run.base.taught) <= MEASURED:
        yield from _understood(run.base.taught)
    if not run.keeps_last:
        size = 12 * sum(parameter.numel() for parameter in run.model.parameters()) / 1e6
        yield f"{run.files.last.name} ({size:.0f} MB, to go on from) was not kept: --keep_state keeps it"


def _understood(taught: Sequence[Pair]) -> Iterator[str]:
    """Yield how well the taught questions are told apart, as far as they themselves show it."""
    from gpt2chat.matching import Matcher, outside
    from gpt2chat.quality import left_out

    matcher = Matcher(taught)
    sure = [matcher.match(question, 1)[0].confidence for question in outside()]
    others = [each for each in sure if each < 1]  # that were not taught themselves
    general = f"{sum(each < matcher.threshold for each in others)} of {len(others)} questions about other things"
    yield f'a chat with --fallback "Please ask us." declines {general}'
    if found := left_out(taught):
        right, words = found
        asked = f"{right.of} phrasings, asked as if they had not been taught"
        yield f"of {asked}, {right.count} find their answer (by a word list {words.count})"


def more(plan: Plan) -> str:
    """Return the command that gives a run twice as many epochs as it has taken, or steps where it was given these."""
    from gpt2chat.cli.schedule import passes

    run, config = plan.run, plan.config
    if config.steps and not config.open_end:
        number = f"--steps {2 * run.number}"
    else:
        number = f"--epochs {2 * passes(plan.dataset, config, run.number)}"
    return f"{program('train')} --resume {shlex.quote(str(run.files.last))} {number}"


def _is_older(plan: Plan) -> bool:
    """Whether the weights for use are not those of the last step."""
    row = [row for row in plan.run.history if row.get("validation_loss") is not None]
    best = min(row, key=lambda found: found["validation_loss"], default=None)
    return plan.run.chooses and best is not None and best["step"] != plan.run.number


def _loss(plan: Plan) -> str:
    losses = [row["loss"] for row in plan.run.history if row.get("loss") is not None][-LAST_LOSSES:]
    return f"loss {sum(losses) / max(1, len(losses)):.2g}" if losses else "no loss"
