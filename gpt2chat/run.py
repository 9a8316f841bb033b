"""A training run on disk: best and last checkpoint, validation, sample answers, metrics, early stopping.

`training.train` takes the steps; a `Run` keeps what must survive them. It prints nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import hashlib
import json
import math
import os
import random
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpt2chat import archive, checkpoint
from gpt2chat.checkpoint import Checkpoint
from gpt2chat.conversation import Example, Message, render_prompt
from gpt2chat.errors import CheckpointError, ConfigError, DataError, DiskFullError
from gpt2chat.files import append_line, atomic_writer, json_line
from gpt2chat.generation import Decoder, stream_answer
from gpt2chat.model import GPT2
from gpt2chat.sampling import GenerationConfig
from gpt2chat.shelf import step_file, steps_of
from gpt2chat.tokenizer import Tokenizer
from gpt2chat.training import Step, mean_loss

SAVE_SECONDS = 600.0  # how often the state to resume from is written
HISTORY_ROWS = 2000  # a checkpoint keeps at most so many steps of its history
VALIDATION_TOKENS = 65536  # a validation looks at no more than this


@dataclass(frozen=True)
class RunFiles:
    """The files of a run: the checkpoint to use, and beside it what resuming and judging need."""

    best: Path

    def beside(self, ending: str) -> Path:
        """Return a sibling: `trained_model.pt` -> `trained_model.<ending>`."""
        return self.best.with_name(f"{self.best.name.removesuffix('.pt')}.{ending}")

    def step(self, number: int) -> Path:
        """Return the file that keeps one step: `model.pt` -> `model_000200.pt`."""
        return step_file(self.best, number)

    @property
    def last(self) -> Path:
        """Weights, optimizer and position of the last step."""
        return self.beside("last.pt")

    @property
    def metrics(self) -> Path:
        """One JSON object per step."""
        return self.beside("metrics.jsonl")

    @property
    def curve(self) -> Path:
        """The loss curve as SVG."""
        return self.beside("loss.svg")

    @property
    def samples(self) -> Path:
        """The answers to the probe questions during training."""
        return self.beside("samples.jsonl")


@dataclass(frozen=True)
class Evaluation:
    """What a look at the model during training gave."""

    step: int
    validation_loss: float | None
    improved: bool
    answers: list[tuple[str, str]]


class Run:
    """Holds a run's model, optimizer and files; `finished_early` tells that validation stopped improving.

    When the disk is full, `wait_for_room` is asked whether to try again; by default the DiskFullError is raised.
    """

    def __init__(
        self,
        model: GPT2,
        optimizer: torch.optim.Optimizer,
        base: Checkpoint,
        files: RunFiles,
        validation: Sequence[Example] = (),
        probes: Sequence[str] = (),
        row_tokens: int = 256,
        dtype: torch.dtype = torch.float32,
        patience: int = 0,
        settings: dict[str, Any] | None = None,
    ) -> None:
        self.model, self.optimizer, self.base, self.files = model, optimizer, base, files
        self.validation = _sample(validation, VALIDATION_TOKENS)
        self.row_tokens, self.dtype, self.patience = row_tokens, dtype, patience
        self.settings = settings or {}
        self.tokenizer = Tokenizer.gpt2()
        self.probes = list(dict.fromkeys(map(self._probe, probes)))
        self.history: list[dict[str, Any]] = []
        self.number = 0
        self.best: float | None = None
        self.waited = 0
        self.evaluated = -1
        self.finished = False
        self.wait_for_room: Callable[[DiskFullError], bool] = lambda error: False
        self._saved = time.monotonic()

    def _probe(self, question: str) -> str:
        """Return the question; raises ConfigError now rather than in the middle of training."""
        if not question.strip() or question != question.encode("utf-8", "replace").decode("utf-8"):
            raise ConfigError(f"probe: expected text in UTF-8, got {question!r}")
        tokens = len(render_prompt([Message("user", question)], self.base.template, self.tokenizer))
        if tokens >= self.model.config.n_ctx:
            raise ConfigError(f"probe: expected under {self.model.config.n_ctx} tokens, got {tokens}")
        return question

    @property
    def finished_early(self) -> bool:
        """Whether `patience` validations in a row brought nothing."""
        return self.patience > 0 and self.waited >= self.patience

    def restore(self, training: dict[str, Any], history: list[dict[str, Any]]) -> None:
        """Take up optimizer, position and record of an interrupted run; raises CheckpointError."""
        try:
            self.optimizer.load_state_dict(training["optimizer"])
            self.number, self.evaluated = int(training["step"]), int(training["evaluated"])
            self.best, self.waited = training["best"], int(training["waited"])
            self.finished = bool(training["finished"])
        except (KeyError, ValueError, TypeError) as error:
            raise CheckpointError(f"{self.files.last}: its training state does not fit this model: {error}") from error
        self._check_optimizer()
        self.history = [row for row in history if self._stands(row)]
        for path in (self.files.metrics, self.files.samples):
            if path.exists():
                rows = [row for row in _rows(path) if self._stands(row)]
                self._write(_write_text, path, "".join(map(json_line, rows)))

    def _check_optimizer(self) -> None:
        """Compare the moments with the weights they belong to; raises CheckpointError."""
        parameters = [parameter for group in self.optimizer.param_groups for parameter in group["params"]]
        for parameter in parameters if self.number else []:
            state = self.optimizer.state.get(parameter, {})
            moments = [state.get("exp_avg"), state.get("exp_avg_sq")]
            fitting = all(isinstance(moment, torch.Tensor) and moment.shape == parameter.shape for moment in moments)
            if not fitting or not all(torch.isfinite(moment).all() for moment in moments):
                raise CheckpointError(f"{self.files.last}: its optimizer state does not fit this model; train afresh")

    def _stands(self, row: dict[str, Any]) -> bool:
        """Whether a row belongs to what the restored state has behind it; the rest will be done again."""
        return bool(row["step"] <= (self.number if "loss" in row else self.evaluated))

    def begin(self) -> None:
        """Start afresh: an earlier run's metrics, samples and steps under the same name are replaced."""
        self._write(_write_text, self.files.metrics, "")
        for path in (self.files.samples, *steps_of(self.files.best)):
            path.unlink(missing_ok=True)

    def record(self, step: Step) -> None:
        """Keep a step's figures, and now and then the state to resume from."""
        if not self.history:
            self.begin()
        self.number = step.number
        row = {"step": step.number, "loss": _finite(step.loss), "learning_rate": step.learning_rate}
        row |= {"gradient_norm": _finite(step.gradient_norm), "tokens": step.tokens}
        row |= {"tokens_per_second": round(step.tokens / step.seconds, 1), "skipped": step.skipped}
        self._keep(row)
        if time.monotonic() - self._saved > SAVE_SECONDS:
            self.save_last()

    def _keep(self, row: dict[str, Any]) -> None:
        self.history.append(row)
        if len(self.history) > HISTORY_ROWS:  # every other step; validations stay
            self.history = [row for i, row in enumerate(self.history) if i % 2 == 0 or "loss" not in row]
        self._write(append_line, self.files.metrics, row)

    def _write(self, write: Callable[..., None], *arguments: Any) -> None:
        while True:
            try:
                return write(*arguments)
            except DiskFullError as error:
                if not self.wait_for_room(error):
                    raise

    def evaluate(self) -> Evaluation:
        """Validate, answer the probe questions, and keep the weights when they are the best so far."""
        loss, improved = None, False
        if self.validation:
            loss = mean_loss(self.model, self.validation, self.row_tokens, self.tokenizer.end_id, self.dtype)
            improved = math.isfinite(loss) and (self.best is None or loss < self.best)
        answers = [(question, self._answer(question)) for question in self.probes]
        if improved:  # on the disk first: what is noted as best is there, whatever interrupts
            self.save_best(loss)
            self.best, self.waited = loss, 0
        elif loss is not None and loss != self.best:
            self.waited += 1
        self.evaluated = self.number
        if loss is not None:
            self._keep({"step": self.number, "validation_loss": _finite(loss)})
        for question, answer in answers:
            row = {"step": self.number, "question": question, "answer": answer}
            self._write(append_line, self.files.samples, row)
        return Evaluation(self.number, loss, improved, answers)

    def _answer(self, question: str) -> str:
        """Answer greedily, so that two moments of training can be compared."""
        self.model.eval()
        config = GenerationConfig(temperature=0, max_new_tokens=60)
        asked = [Message("user", question)]
        return "".join(stream_answer(Decoder(self.model), asked, self.base.template, self.tokenizer, config))

    def _checkpoint(self, training: dict[str, Any] | None, validation_loss: float | None) -> Checkpoint:
        about = {**(self.settings.get("about") or self.base.about), "step": self.number}
        if validation_loss is not None:
            about["validation_loss"] = validation_loss
        return dataclasses.replace(
            self.base, weights=self.model.state_dict(), about=about, history=list(self.history), training=training
        )

    def save_best(self, validation_loss: float | None = None) -> None:
        """Write the checkpoint that is for use: no optimizer state."""
        self._write(checkpoint.save, self._checkpoint(None, validation_loss), self.files.best)

    def save_step(self) -> None:
        """Keep the weights as they are now, beside those of other steps."""
        self._write(checkpoint.save, self._checkpoint(None, None), self.files.step(self.number))

    def save_last(self, finished: bool = False) -> None:
        """Write everything that resuming needs; `finished` says that nothing is left to do."""
        training = {
            "optimizer": self.optimizer.state_dict(),
            "step": self.number,
            "evaluated": self.evaluated,
            "best": self.best,
            "waited": self.waited,
            "finished": finished,
            "settings": {name: value for name, value in self.settings.items() if name != "about"},
        }
        self._write(checkpoint.save, self._checkpoint(training, self.best), self.files.last)
        self._saved = time.monotonic()

    def finish(self) -> None:
        """Write the final files: the checkpoint for use unless validation chose an earlier one, and the last state."""
        if self.best is None:
            self.save_best()
        self.save_last(finished=True)


def _finite(value: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return round(value, 5) if math.isfinite(value) else None


def _rows(path: Path) -> Iterator[dict[str, Any]]:
    """Read JSON lines; a last line that a killed run left half-written is passed over."""
    for line in path.read_text("utf-8").splitlines():
        with contextlib.suppress(json.JSONDecodeError):
            yield json.loads(line)


def _sample(examples: Sequence[Example], limit: int) -> list[Example]:
    """Return examples of about `limit` ids in all, evenly of every kind and the same ones each time."""
    if sum(len(example.ids) for example in examples) <= limit:
        return list(examples)
    kept, total = [], 0
    for example in random.Random(0).sample(examples, len(examples)):
        if total >= limit:
            break
        kept.append(example)
        total += len(example.ids)
    return kept


def _write_text(path: Path, text: str) -> None:
    with atomic_writer(path) as file:
        file.write(text.encode("utf-8"))


def stored_settings(training: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return the settings of an interrupted run; raises CheckpointError when its state is incomplete."""
    settings = training.get("settings")
    if not isinstance(settings, dict) or not {"options", "data_sha256", "config"} <= set(settings):
        raise CheckpointError(f"{path}: its training state is incomplete; train afresh")
    return settings


def check_room(files: RunFiles, parameters: int) -> None:
    """Compare the free disk space with what a run writes; raises DiskFullError before any work is lost."""
    best, last = 4 * parameters, 3 * 4 * parameters  # weights; weights and AdamW's two moments
    there = sum(path.stat().st_size for path in (files.best, files.last) if path.is_file())
    needed = best + last + max(best, last) - min(there, best + last)  # a new file is written beside its predecessor
    free = shutil.disk_usage(files.best.parent).free
    if free < needed:
        raise DiskFullError(
            f"{files.best.parent}: expected {needed / 1e6:.1f} MB free for the checkpoints of this model, found "
            f"{free / 1e6:.1f} MB: free some, or pass another --save_path"
        )


def check_replaceable(files: RunFiles) -> None:
    """Refuse to write over what is no checkpoint; raises CheckpointError."""
    for path in (files.best, files.last):
        if os.path.isfile(path) and os.path.getsize(path) and not archive.is_checkpoint(path):
            raise CheckpointError(f"{path}: is no checkpoint of gpt2chat and would be overwritten: pass another name")
        if os.path.exists(path) and not os.path.isfile(path):
            found = "a folder" if path.is_dir() else "a device or pipe"
            raise CheckpointError(f"{path}: expected a file name for the checkpoint, found {found}")


def check_writable(files: RunFiles) -> None:
    """Try to write beside the checkpoint before any work is done; raises CheckpointError."""
    probe = files.beside("writable")
    try:
        with atomic_writer(probe) as file:
            file.write(b"")
        probe.unlink()
    except OSError as error:
        raise CheckpointError(f"{files.best}: cannot be written: {error.strerror}") from error
    except CheckpointError as error:
        raise CheckpointError(str(error).replace(str(probe), str(files.best))) from error


def hash_file(path: Path) -> str:
    """Return the SHA-256 of a data file."""
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read: {error.strerror}") from error
