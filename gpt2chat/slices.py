"""How much of a prompt is read in one step, so that answers beside it do not stall."""

from __future__ import annotations

from gpt2chat.runtime import ROWS


class Slice:
    """How many rows of prompts a step takes beside answers, so that it takes about 2.2 times as long as without.

    The time of a step is taken for a constant and a part for each row, both learnt from the last hundred steps or so.
    """

    LEAST, MOST, FIRST, KEPT = 8, ROWS, 16, 0.98

    def __init__(self) -> None:
        self._weight = self._rows = self._seconds = self._squares = self._products = 0.0

    def note(self, rows: int, seconds: float) -> None:
        """Learn from a step of so many rows."""
        fixed, each = self._line()
        if each:
            seconds = min(seconds, 2 * (fixed + each * rows))  # another program's doing
        self._weight = self.KEPT * self._weight + 1
        self._rows = self.KEPT * self._rows + rows
        self._seconds = self.KEPT * self._seconds + seconds
        self._squares = self.KEPT * self._squares + rows * rows
        self._products = self.KEPT * self._products + rows * seconds

    def _line(self) -> tuple[float, float]:
        """Return the constant and the part for each row, 0 where it is not known."""
        spread = self._weight * self._squares - self._rows**2
        if spread <= 16 * self._weight**2:  # all steps were alike
            return 0.0, 0.0
        each = (self._weight * self._products - self._rows * self._seconds) / spread
        fixed = (self._seconds - each * self._rows) / self._weight
        return (fixed, each) if each > 0 and fixed > 0 else (0.0, 0.0)

    def rows(self, answering: int) -> int:
        """Return how many rows of prompts to read beside so many of answers."""
        fixed, each = self._line()
        if not answering:
            return self.MOST
        if not each:
            return self.FIRST
        return max(self.LEAST, min(self.MOST, int(1.2 * (fixed / each + answering)) // self.LEAST * self.LEAST))
