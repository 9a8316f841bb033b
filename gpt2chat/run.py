"""A training run on disk: best and last checkpoint, validation, sample answers, metrics, early stopping.

`training.train` takes the steps; a `Run` keeps what must survive them. It prints nothing.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import random
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gpt2chat import checkpoint
from gpt2chat.checkpoint import Checkpoint
from gpt2chat.conversation import Example, Message, render_prompt
from gpt2chat.distillation import Distillation
from gpt2chat.errors import CheckpointError, ConfigError, DiskFullError
from gpt2chat.files import append_line, atomic_writer, json_line
from gpt2chat.generation import Decoder, stream_answer
from gpt2chat.model import GPT2
from gpt2chat.recall import Quiz, Recall
from gpt2chat.run_files import RunFiles as RunFiles
from gpt2chat.run_files import check_replaceable as check_replaceable
from gpt2chat.run_files import check_room as check_room
from gpt2chat.run_files import check_writable as check_writable
from gpt2chat.run_files import hash_file as hash_file
from gpt2chat.sampling import GenerationConfig
from gpt2chat.shelf import steps_of
from gpt2chat.tokenizer import Tokenizer
from gpt2chat.training import Pace, Step, mean_loss

SAVE_SECONDS = 600.0  # how often the state to resume from is written
HISTORY_ROWS = 2000  # a checkpoint keeps at most so many steps of its history
VALIDATION_TOKENS = 65536  # a validation looks at no more than this
SMALL_STATE = 64e6  # bytes of a state to resume from that is kept whatever the run's end
TURNS = 3  # validations in a row without progress after which validation has turned
GENERAL = 0.2  # share of the held-out answers that must have come back before validation can end an open run


@dataclass(frozen=True)
class Evaluation:
    """What a look at the model during training gave."""

    step: int
    validation_loss: float | None
    improved: bool
    answers: list[tuple[str, str]]


class Run:
    """Holds a run's model, optimizer and files; `finished_early` tells that validation stopped improving.

    `quiz` asks for the taught answers, and `pace` follows what it finds where the run's end is open. `chooses` says
    whether validation chooses the weights for use. A finished run whose answers all come back keeps no state to resume
    from unless that is small or `keep_state` is set.

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
        quiz: Quiz | None = None,
        chooses: bool = True,
        keep_state: bool = False,
        distillation: Distillation | None = None,
    ) -> None:
        self.model, self.optimizer, self.base, self.files = model, optimizer, base, files
        self.validation = _sample(validation, VALIDATION_TOKENS)
        self.quiz, self.chooses, self.keep_state, self.distillation = quiz, chooses, keep_state, distillation
        self.row_tokens, self.dtype, self.patience = row_tokens, dtype, patience
        self.settings = settings or {}
        self.tokenizer = Tokenizer.gpt2()
        self.probes = list(dict.fromkeys(map(self._probe, probes)))
        self.history: list[dict[str, Any]] = []
        self.number, self.evaluated, self.checked = 0, -1, -1
        self.best: float | None = None
        self.best_held, self.waited = 0.0, 0
        self.pace = Pace()
        self.recall: Recall | None = None
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
        turned = not self.chooses and self.best_held >= GENERAL and self.waited >= TURNS
        return turned or (self.patience > 0 and self.waited >= self.patience)

    def restore(self, training: dict[str, Any], history: list[dict[str, Any]]) -> None:
        """Take up optimizer, position and record of an interrupted run; raises CheckpointError."""
        try:
            self.optimizer.load_state_dict(training["optimizer"])
            self.number, self.evaluated = int(training["step"]), int(training["evaluated"])
            self.best, self.waited = training["best"], int(training["waited"])
            self.finished = bool(training["finished"])
            self.checked, self.best_held = int(training.get("checked", -1)), float(training.get("best_held", 0.0))
            self.chooses, self.pace = bool(training.get("chooses", True)), Pace(**training.get("pace", {}))
            self.recall = None if training.get("recall") is None else Recall(*training["recall"])
            self.distillation = Distillation.restored(training.get("distillation"))
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
        behind = self.number if "loss" in row else self.checked if "recall" in row else self.evaluated
        return bool(row["step"] <= behind)

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

    def check(self, dtype: torch.dtype | None = None) -> Recall:
        """Count the taught answers that come back; an open run slows down as they do, and ends when all surely do."""
        assert self.quiz is not None
        recall = self.quiz.ask(self.model, dtype or self.dtype)
        first, self.recall = self.checked != self.number, recall
        if first:
            self.pace.follow(recall.recalled / recall.checked, recall.surely)
            self.checked = self.number
            self._keep({"step": self.number, **recall.to_dict()})
        return recall

    def evaluate(self) -> Evaluation:
        """Validate, answer the probe questions, and keep the weights when they are the best so far."""
        loss, improved = None, False
        if self.validation:
            loss = mean_loss(self.model, self.validation, self.row_tokens, self.tokenizer.end_id, self.dtype)
            improved = math.isfinite(loss) and (self.best is None or loss < self.best)
        if loss is not None and not self.chooses:
            held = self._held_recall()
            improved, self.best_held = improved or held > self.best_held, max(self.best_held, held)
        answers = [(question, self._answer(question)) for question in self.probes]
        if improved:  # on the disk first: what is noted as best is there, whatever interrupts
            if self.chooses:
                self.save_best(loss)
            self.best, self.waited = loss if self.best is None or loss is None else min(loss, self.best), 0
        elif loss is not None and (loss != self.best or not self.chooses):
            self.waited += 1
        self.evaluated = self.number
        if loss is not None:
            self._keep({"step": self.number, "validation_loss": _finite(loss)})
        for question, answer in answers:
            row = {"step": self.number, "question": question, "answer": answer}
            self._write(append_line, self.files.samples, row)
        return Evaluation(self.number, loss, improved, answers)

    def _held_recall(self) -> float:
        """Return the share of held-out answers that come back though they were not taught."""
        quiz = Quiz(self.validation, self.tokenizer.end_id, self.row_tokens)
        found = quiz.ask(self.model, self.dtype) if quiz else None
        return found.recalled / found.checked if found else 0.0

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
        if self.recall is not None and self.checked == self.number:
            about["recall"] = self.recall.to_dict()
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
            "checked": self.checked,
            "best": self.best,
            "best_held": self.best_held,
            "chooses": self.chooses,
            "waited": self.waited,
            "pace": dataclasses.asdict(self.pace),
            "recall": None if self.recall is None else list(dataclasses.astuple(self.recall)),
            "finished": finished,
            "distillation": None if self.distillation is None else self.distillation.stored(),
            "settings": {name: value for name, value in self.settings.items() if name != "about"},
        }
        self._write(checkpoint.save, self._checkpoint(training, self.best), self.files.last)
        self._saved = time.monotonic()

    @property
    def keeps_last(self) -> bool:
        """Whether the state to resume from outlives the run: it is small, asked for, or there is more to learn."""
        small = 12 * sum(parameter.numel() for parameter in self.model.parameters()) <= SMALL_STATE
        return small or self.keep_state or self.recall is None or not self.recall.whole

    def finish(self) -> None:
        """Write the final files: the checkpoint for use unless validation chose an earlier one, and the last state."""
        if self.quiz:
            self.check(torch.float32)
        chosen = self.chooses and self.best is not None
        if chosen and self.quiz:
            self._ask_best(self.quiz)
        elif not chosen:
            self.save_best(self.best)
        if self.keeps_last:
            self.save_last(finished=True)
        else:
            self.files.last.unlink(missing_ok=True)

    def _ask_best(self, quiz: Quiz) -> None:
        """Count what the weights that validation chose answer, and note it in their file."""
        loaded = checkpoint.load(self.files.best)
        self.recall = quiz.ask(loaded.build_model(torch.float32, self.model.device))
        about = {**loaded.about, "recall": self.recall.to_dict()}
        self._write(checkpoint.save, dataclasses.replace(loaded, about=about), self.files.best)


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
