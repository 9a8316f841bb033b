"""Options -> everything a run needs, with the choices the user left open, each said in one line."""

from __future__ import annotations

import dataclasses
import platform
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from gpt2chat import checkpoint, pretrained, shelf
from gpt2chat.checkpoint import Checkpoint
from gpt2chat.cli.inputs import is_faq, read_inputs, rehearse, source_of, taught_by
from gpt2chat.cli.schedule import ROWS, check_interval, gets_more, most_time, schedule
from gpt2chat.cli.terminal import shortened
from gpt2chat.conversation import Example, render
from gpt2chat.data import Dataset, render_records, split
from gpt2chat.decoding import choose, runtime_of
from gpt2chat.distillation import OWN, Distillation, row_length
from gpt2chat.engine import Engine
from gpt2chat.errors import CheckpointError, ConfigError, DataError, counted
from gpt2chat.estimate import CONVERSATION_ROW, TEXT_BLOCK
from gpt2chat.formats import Library
from gpt2chat.hardware import pick_device, pick_dtype
from gpt2chat.model import GPT2, MODEL_SIZES
from gpt2chat.recall import Quiz
from gpt2chat.records import Record, Report
from gpt2chat.run import TURNS, Run, RunFiles, check_room, stored_settings
from gpt2chat.sampling import GenerationConfig
from gpt2chat.small_talk import small_talk
from gpt2chat.templates import TEMPLATES, Template, template_named
from gpt2chat.tokenizer import END_OF_TEXT, Tokenizer
from gpt2chat.training import Step, TrainConfig, count_steps, make_optimizer, total_steps, train
from gpt2chat.version import __version__

FEW = 64  # answers up to which teaching them is held to what the model said before; more would cost too much time
TALKS = 400  # conversations of small talk that are long enough for what is noted of them
LARGE = 1000  # so many conversations or text blocks are enough to hold some out unasked
# options that an interrupted run does not pass on
OWN_EACH_TIME = ("resume", "interactive", "device", "dry_run")


@dataclass
class Plan:
    """A run, its data and its configuration; `lines` tell the user what was chosen."""

    run: Run
    dataset: Dataset
    config: TrainConfig
    dtype: torch.dtype
    total: int
    eval_every: int
    check_every: int = 0
    save_every: int = 0
    lines: list[str] = field(default_factory=list)

    def due(self, step: int) -> bool:
        """Whether the model is evaluated after `step`."""
        return bool(self.run.validation or self.run.probes) and (step % self.eval_every == 0 or step == self.total)

    def asks(self, step: int) -> bool:
        """Whether what comes back is checked after `step`; it is at the end of every run."""
        return self.config.open_end and step % self.check_every == 0

    def kept(self, step: int) -> bool:
        """Whether the weights after `step` are kept in a file of their own."""
        return self.save_every > 0 and step % self.save_every == 0

    def steps(self) -> Iterator[Step]:
        """The remaining optimizer steps."""
        run = self.run
        end_id, start, pace = run.tokenizer.end_id, run.number, run.pace
        keep = run.distillation
        return train(run.model, self.dataset, self.config, run.optimizer, end_id, self.dtype, start, pace, keep)


@dataclass
class _Data:
    dataset: Dataset
    validation: list[Example]
    row_tokens: int
    lines: list[str]
    learnt: list[Record]  # the conversations that are learnt whole


def make_plan(options: dict[str, Any]) -> Plan:
    """Read data and model, choose what was left open, and check all of it before the first step."""
    _check(options)
    report = Report()
    files, library, hashes = read_inputs(options, report)
    base = _base(options)
    rehearsed = rehearse(options, base, library, hashes) if options["rehearse"] else []
    base = _with_template(options, base, bool(library.conversations))
    if not options["dry_run"] and (gets_more(options, base) or not (base.training or {}).get("finished")):
        check_room(files, base.count())
    data = _prepare(options, base, library, report)
    if options["patience"] and not data.validation:
        raise ConfigError("patience: nothing is held out to validate on: pass --val_fraction 0.1 or more data")
    if data.dataset.conversations:
        base = dataclasses.replace(base, trained_length=data.row_tokens)
    faq = is_faq(library, base)
    base = dataclasses.replace(base, taught=taught_by(options, base, data.learnt, data.lines))
    quiz = Quiz(data.dataset.conversations, Tokenizer.gpt2().end_id, data.row_tokens)
    config, lines = schedule(options, base, data.dataset, data.row_tokens, quiz, faq)
    device = pick_device(options["device"])
    dtype = pick_dtype(options["dtype"], device)
    about = _about(options, files, base, hashes, dtype) | {"source": source_of(library), "faq": faq}
    settings = _settings(options, hashes, config) | {"about": about, "rehearsed": [list(pair) for pair in rehearsed]}
    run = _run(options, base, files, config, data, dtype, settings, quiz)
    total, check = total_steps(data.dataset, config), check_interval(data.dataset, config, quiz)
    if not 0 <= run.number <= total:
        raise CheckpointError(f"{options['resume']}: expected a step from 0 to {total}, found {run.number}")
    notes = [f"note: {line}" for line in (*report.lines(), *_run_notes(options, files, run, data))]
    lines = [pretrained.describe(base), *data.lines, *notes, *lines, _training_line(run, data, config, total, dtype)]
    every = options["eval_every"] or _eval_interval(data.dataset, config, total, check)
    return Plan(run, data.dataset, config, dtype, total, every, check, options["save_every"], lines)


def _training_line(run: Run, data: _Data, config: TrainConfig, total: int, dtype: torch.dtype) -> str:
    """Say how many steps there are and where they go; of an open end the most, and about how long these take."""
    device, most = run.model.device, ""
    if config.open_end and device.type == "cpu":
        beside = run.distillation.ids.size(1) if run.distillation else 0
        most = f" (about {most_time(data.dataset, config, run.model.config, dtype, beside)})"
    number = f"until the answers come back, at most {total} steps{most}," if config.open_end else f"{total} steps"
    return f"training {number} on {device.type} in {str(dtype).removeprefix('torch.')}, saving to {run.files.best}"


def _eval_interval(dataset: Dataset, config: TrainConfig, total: int, check: int) -> int:
    """Return the steps between validations: a tenth of a run, or a pass where its end is open."""
    if not config.open_end:
        return max(1, total // 10)
    return max(check, count_steps(dataset, dataclasses.replace(config, epochs=1))[0])


def _base(options: dict[str, Any]) -> Checkpoint:
    """Return what is trained; a dry run does not download the weights of a released size, whose shape is enough."""
    if options["resume"]:
        return checkpoint.load(options["resume"])
    name = pretrained.canonical_name(options["model"])
    return pretrained.fresh(name) if options["dry_run"] and name in MODEL_SIZES else pretrained.load(options["model"])


def _check(options: dict[str, Any]) -> None:
    """Check what needs neither data nor model."""
    if not 0 <= options["distillation"] <= 100:
        raise ConfigError(f"distillation: expected 0 to 100, got {options['distillation']!r}")
    if options["epochs"] is not None and options["steps"] is not None:
        raise ConfigError("steps: --epochs says how long the run goes on already; pass one of the two")
    TrainConfig(
        epochs=1 if options["epochs"] is None else options["epochs"],
        steps=options["steps"],
        batch_size=ROWS if options["batch_size"] is None else options["batch_size"],
        accumulate=options["accumulate"],
        learning_rate=5e-5 if options["learning_rate"] is None else options["learning_rate"],
        weight_decay=options["weight_decay"],
        join=options["join"],
    )
    if not options["save_path"].name:
        raise ConfigError(f"save_path: expected a file name, got {str(options['save_path'])!r}")
    for name in ("val_fraction", "text_share", "dropout"):
        value = options[name]
        if value is not None and not 0 <= value < 1:
            raise ConfigError(f"{name}: expected a number from 0 to below 1, got {value!r}")
    for name, low in (("max_length", 8), ("eval_every", 1), ("patience", 0), ("seed", 0), ("save_every", 0)):
        value = options[name]
        if value is not None and value < low:
            raise ConfigError(f"{name}: expected a whole number of {low} or more, got {value!r}")
    if options["text_share"] is not None and not (
        options["data"] or (options["text_file"] and options["conversation_file"])
    ):
        raise ConfigError("text_share: expected both --text_file and --conversation_file, got one of them")
    if options["template"] and not options["resume"]:
        _template(options["template"], TEMPLATES["chat"], True)
    if options["patience"] and options["val_fraction"] == 0:
        raise ConfigError("patience: expected a --val_fraction above 0, got 0: there is nothing to validate on")


def _with_template(options: dict[str, Any], base: Checkpoint, conversations: bool) -> Checkpoint:
    """Return the model with the template it will be taught, and rows for the tokens that this adds."""
    if options["resume"]:  # the file of a template may have changed since
        return base
    template = _template(options["template"], base.template, conversations)
    return dataclasses.replace(base, template=template).with_ids(template.ids_needed(Tokenizer.gpt2()))


def _template(name: str | None, own: Template, conversations: bool) -> Template:
    """Return the template asked for, else the model's own; conversations need one whose answers end."""
    if name is None:
        return own if own.trainable or not conversations else TEMPLATES["chat"]
    template = template_named(name)
    if not template.trainable:
        raise ConfigError(
            f"template: {name} has no control token such as {END_OF_TEXT} right behind an answer, so that a model "
            "would not learn to stop; it is for untrained ones: use chat"
        )
    return template


def _prepare(options: dict[str, Any], base: Checkpoint, library: Library, report: Report) -> _Data:
    """Render, hold out, mix; the row is as long as the longest conversation needs, and no longer than the context."""
    n_ctx, tokenizer = base.config.n_ctx, Tokenizer.gpt2()
    limit = options["max_length"] or n_ctx
    if limit > n_ctx:
        raise ConfigError(f"max_length: expected at most {n_ctx}, this model's context, got {limit}")
    block = min(options["max_length"] or TEXT_BLOCK, n_ctx)
    whole = list[Record | None]()
    conversations = render_records(
        library.conversations, base.template, tokenizer, limit, options["too_long"], report, whole
    )
    blocks = render_records(library.texts, base.template, tokenizer, block, "error", report)
    if not conversations and not blocks:
        raise DataError("nothing is left to learn from: " + "; ".join(report.lines()))
    lines = shortened(library.found)
    kept_pairs, held_pairs = _hold_out("conversation", conversations, options, lines)
    held = set(map(id, held_pairs))
    learnt = [r for [example], r in zip(conversations, whole, strict=True) if r is not None and id(example) not in held]
    kept_texts, held_texts = _hold_out("text block", blocks, options, lines)
    dataset = Dataset(kept_pairs, kept_texts, text_share=options["text_share"])
    if not dataset.examples:
        raise ConfigError("val_fraction: nothing is left to train on; hold out less")
    longest = max(len(example.ids) for example in dataset.examples)
    wanted = max(options["max_length"] or CONVERSATION_ROW if conversations else block, block if blocks else 0)
    row = min(n_ctx, max(wanted, -(-longest // 64) * 64))
    return _Data(dataset, [*held_pairs, *held_texts], row, lines + _mix_lines(dataset), learnt)


def _hold_out(
    kind: str, documents: list[list[Example]], options: dict[str, Any], lines: list[str]
) -> tuple[list[Example], list[Example]]:
    """Split off what validates: as much as asked for, else a twentieth of large data and nothing of small."""
    fraction = options["val_fraction"]
    if fraction is None:
        fraction = 0.05 if sum(map(len, documents)) >= LARGE else 0.0
    kept, held = split(documents, fraction, options["seed"])
    if documents:
        out = f"{sum(map(len, held))} held out to validate" if held else "none held out"
        ids = sum(len(example.ids) for document in kept for example in document)
        lines.append(f"{counted(sum(map(len, kept)), kind)} of {ids} tokens, {out}")
    return [example for document in kept for example in document], [e for document in held for e in document]


def _mix_lines(dataset: Dataset) -> list[str]:
    if not dataset.conversations or not dataset.texts:
        return []
    pairs, texts = (sum(len(example.ids) for example in part) for part in (dataset.conversations, dataset.texts))
    share = texts / (pairs + texts) if dataset.text_share is None else dataset.text_share
    return [f"mix: {share:.0%} of the tokens are text, {1 - share:.0%} conversation (--text_share changes it)"]


def _run_notes(options: dict[str, Any], files: RunFiles, run: Run, data: _Data) -> Iterator[str]:
    """Yield what else the user should know before the first step."""
    if added := run.base.template.added:
        yield f"{', '.join(added)} are tokens of their own, for which the vocabulary has {len(added)} more"
    steps = shelf.steps_of(files.best)
    replaced = [path.name for path in (files.best, files.last, *steps[:1]) if path.exists()]
    if len(steps) > 1:
        replaced[-1] = f"{len(steps)} kept steps"
    if replaced and not options["resume"]:
        yield f"{' and '.join(replaced)} of an earlier run will be replaced"
    if len(run.validation) < len(data.validation):
        yield f"each validation looks at {len(run.validation)} of the {len(data.validation)} held out, the same ones"


def _settings(options: dict[str, Any], hashes: dict[str, str], config: TrainConfig) -> dict[str, Any]:
    """Return what a checkpoint stores of a run, as plain data."""
    plain = {name: _plain(value) for name, value in options.items() if name not in OWN_EACH_TIME}
    return {"options": plain, "data_sha256": hashes, "config": dataclasses.asdict(config)}


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(entry) for entry in value]
    return value.as_posix() if isinstance(value, Path) else value


def _about(
    options: dict[str, Any], files: RunFiles, base: Checkpoint, hashes: dict[str, str], dtype: torch.dtype
) -> dict[str, Any]:
    return {
        "name": base.about["name"] if options["resume"] else _name(files.best, base),
        "from": base.about["from"] if options["resume"] else {k: v for k, v in base.about.items() if k != "from"},
        "data_sha256": {Path(name).name: digest for name, digest in hashes.items()},
        "gpt2chat": __version__,
        "torch": str(torch.__version__),
        "python": platform.python_version(),
        "threads": torch.get_num_threads(),
        "dtype": str(dtype),
    }


def _name(path: Path, base: Checkpoint) -> str:
    own = path.parent.name if path.name == shelf.BEST else path.name
    return f"{own}, trained from {pretrained.name_of(base)}"


def _run(
    options: dict[str, Any],
    base: Checkpoint,
    files: RunFiles,
    config: TrainConfig,
    data: _Data,
    dtype: torch.dtype,
    settings: dict[str, Any],
    quiz: Quiz,
) -> Run:
    device, asked = pick_device(options["device"]), bool(options["val_fraction"])
    model = _trainable(base, options["dropout"], device)
    run = Run(
        model,
        make_optimizer(model, config),
        dataclasses.replace(base, weights={}, history=[], training=None),
        files,
        validation=data.validation,
        probes=options["probe"],
        row_tokens=config.row_tokens,
        dtype=dtype,
        patience=options["patience"] or (TURNS if asked and config.open_end else 0),
        settings=settings,
        quiz=quiz or None,
        chooses=asked or bool(options["patience"]) or not config.open_end,
        keep_state=options["keep_state"],
        distillation=_distillation(options, base, model, config, quiz),
    )
    if options["resume"]:
        if base.training is None:
            raise CheckpointError(f"{options['resume']}: holds no training state")
        path = Path(options["resume"])
        _same(stored_settings(base.training, path), settings, path)
        run.restore(base.training, base.history)
        if gets_more(options, base):
            run.finished, run.waited = False, 0
    return run


def _distillation(
    options: dict[str, Any], base: Checkpoint, model: GPT2, config: TrainConfig, quiz: Quiz
) -> Distillation | None:
    """Note what the model says in small talk, which few answers would else overwrite; not where the end is given."""
    few = config.open_end and quiz and quiz.taught <= FEW
    talks_already = base.about.get("name") == "demo" or base.taught or base.trained_length is not None
    if not few or not talks_already or not options["distillation"] or options["dry_run"] or options["resume"]:
        return None
    tokenizer = Tokenizer.gpt2()
    talks = [render(talk, base.template, tokenizer).ids for talk in small_talk().conversations(TALKS)]
    with Engine(runtime_of(base, choose(options["device"], "float32", "auto")), streams=32) as engine:
        own = drawn(engine, talks)
    return Distillation.taken(model, talks, options["distillation"], own)


def drawn(engine: Engine, documents: Sequence[Sequence[int]]) -> list[list[int]]:
    """Return rows that a model writes behind single tokens of documents, at a temperature of 1."""
    rng, length = random.Random(0), row_length(engine.runtime.config)
    starts = [rng.choice(rng.choice(documents)) for _ in range(OWN)]
    config = GenerationConfig(max_new_tokens=length - 1, temperature=1.0, top_k=0, top_p=1.0)
    streams = [engine.submit([start], dataclasses.replace(config, seed=at)) for at, start in enumerate(starts)]
    return [[start, *stream] for start, stream in zip(starts, streams, strict=True)]


def _trainable(base: Checkpoint, dropout: float, device: torch.device) -> GPT2:
    """Build the network for training; dropout belongs to the run, so the checkpoint's config keeps its own."""
    with_dropout = dataclasses.replace(base, config=dataclasses.replace(base.config, dropout=dropout))
    return with_dropout.build_model(torch.float32, device)


def _same(stored: dict[str, Any], now: dict[str, Any], path: Path) -> None:
    """Compare what the interrupted run used with what is here; raises CheckpointError naming the difference."""
    for name, digest in stored["data_sha256"].items():
        if now["data_sha256"].get(name) != digest:
            raise CheckpointError(f"{path}: {name} has changed since that run: bring the same file, or train afresh")
