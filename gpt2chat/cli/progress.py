"""Progress of training: a bar in a terminal, plain lines elsewhere."""

from __future__ import annotations

import sys
import time
from collections import deque
from typing import TYPE_CHECKING

from tqdm import tqdm

from gpt2chat.cli.terminal import PLAIN_SECONDS, say

if TYPE_CHECKING:
    from gpt2chat.recall import Recall
    from gpt2chat.run import Evaluation
    from gpt2chat.training import Step

SHOWN_STEPS = 5


class Progress:
    """Draws steps and evaluations; use as a context manager."""

    def __init__(self, total: int, done: int = 0, open_end: bool = False) -> None:
        self._total, self._done, self._open = total, done, open_end
        self._tty = sys.stderr.isatty()
        self._validation = self._recall = ""
        self._losses: deque[float] = deque(maxlen=SHOWN_STEPS)
        self._began = self._last = time.monotonic()
        self._tokens = 0

    def __enter__(self) -> Progress:
        self._bar = tqdm(
            total=self._total, initial=self._done, unit="step", disable=not self._tty, dynamic_ncols=True, leave=False
        )
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.close()

    def step(self, step: Step) -> None:
        """Draw one step; the shown loss is the mean of the last few."""
        if step.skipped:
            self.note(f"step {step.number}: gradients were not finite, the weights were left alone")
        else:
            self._losses.append(step.loss)
        self._tokens += step.tokens
        spent = time.monotonic() - self._began
        rate = self._tokens / spent
        loss = sum(self._losses) / len(self._losses) if self._losses else step.loss
        shown = f"loss {loss:.3f}{self._validation}{self._recall}, lr {step.learning_rate:.1e}, {rate:.0f} tok/s"
        self._bar.set_postfix_str(shown, refresh=False)
        self._bar.update()
        now = time.monotonic()
        if not self._tty and (now - self._last > PLAIN_SECONDS or step.number in (self._done + 1, step.total)):
            self._last = now
            left = spent / (step.number - self._done) * (step.total - step.number)
            at_most = "at most " if self._open else ""
            self.note(f"step {step.number}/{step.total}  {shown}, {at_most}{left:.0f} s left")

    def evaluation(self, evaluation: Evaluation) -> None:
        """Draw a validation and the answers to the probe questions."""
        if evaluation.validation_loss is not None:
            self._validation = f", val {evaluation.validation_loss:.3f}"
            better = ", the best so far" if evaluation.improved else ""
            self.note(f"step {evaluation.step}  validation loss {evaluation.validation_loss:.3f}{better}")
        for question, answer in evaluation.answers:
            self.note(f"step {evaluation.step}  {question}  ->  {answer.strip()}")

    def recall(self, recall: Recall) -> None:
        """Show from the next step on how many answers come back."""
        self._recall = f", {recall.recalled:,} of {recall.checked:,} come back"

    def note(self, line: str) -> None:
        """Print a line without breaking the bar."""
        if self._tty:
            self._bar.write(line, file=sys.stderr)
        else:
            say(line)
