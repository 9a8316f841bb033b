"""The errors a user can fix.

Each message names the place, what was expected, what was found and, where it helps, the next command to try.
The command line turns them into one line and a non-zero exit code; every other exception keeps its traceback. Beside
them stands how a number is said with its noun.
"""


class GPT2ChatError(Exception):
    """Base of all errors that the user can mend."""


class ConfigError(GPT2ChatError, ValueError):
    """A setting is out of range or two settings contradict each other."""


class DataError(GPT2ChatError, ValueError):
    """A training or evaluation file cannot be used as it is."""


class CheckpointError(GPT2ChatError):
    """A `.pt` file is damaged, foreign or of another format version."""


class DiskFullError(CheckpointError):
    """A file of a run could not be written for want of room; what was there before is unchanged."""


class WeightsError(GPT2ChatError):
    """Released weights are missing, incomplete or of another architecture."""


class ContextError(GPT2ChatError, ValueError):
    """A prompt does not fit into the model's context."""


class ModelError(GPT2ChatError, ArithmeticError):
    """A model's numbers are too large to compute with."""


class TrainingError(GPT2ChatError):
    """Training cannot go on (non-finite gradients, nothing to learn from)."""


class EngineFull(GPT2ChatError):
    """As many requests wait as may; the same request can be answered later."""


def counted(count: int, noun: str) -> str:
    """Return a number with its noun: 1 turn, 2 turns."""
    return f"{count} {noun}{'' if count == 1 else 's'}"
