"""`gpt2chat train` (= `python train_chatbot.py`): files in, one `.pt` out."""

from __future__ import annotations

import contextlib
import os
import shlex
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpt2chat.cli.config import config_option, is_given
from gpt2chat.cli.options import ModelName, device_options
from gpt2chat.cli.terminal import SETTINGS, Interrupted, RoomWait, Signals, program, reports_errors, say

if TYPE_CHECKING:
    from gpt2chat.cli.plan import Plan
    from gpt2chat.cli.progress import Progress

FILE = click.Path(path_type=Path)


class NewFile(click.Path):
    """A path to write to; `folder/` does not pass for a file name."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the path."""
        if str(value).endswith(("/", os.sep)):
            self.fail(f"expected a file name, got the folder {str(value)!r}", param, ctx)
        return super().convert(value, param, ctx)


@click.command("train", context_settings=SETTINGS)
@config_option
@click.option(
    "--model",
    type=ModelName(),
    default="gpt2-small (124M)",
    help="A released size, demo, a folder, a hub repository, a .pt.",
)
@click.option("--text_file", type=FILE, multiple=True, help="Text to learn: file, folder or pattern; repeatable.")
@click.option("--conversation_file", type=FILE, multiple=True, help='{"user": ..., "bot": ...} and other forms; same.')
@click.option("--data", type=FILE, multiple=True, help="Either kind, told apart by its content; - is standard input.")
@click.option("--format", help="What the files are, if it is not seen: pairs, messages, text …")
@click.option("--encoding", help="Of the files.  [default: UTF-8, or what a byte-order mark says]")
@click.option(
    "--save_path", type=NewFile(path_type=Path), default="trained_model.pt", help="Where the checkpoint goes."
)
@click.option("-g", "--model_tag", help="Name of the run, kept with its steps in runs/, in place of --save_path.")
@click.option("--save_every", type=int, default=0, help="Also keep the weights after every so many steps; 0 does not.")
@click.option("--interactive", is_flag=True, help="Afterwards load the saved file and chat with it.")
@click.option(
    "--resume",
    type=ModelName(()),
    is_flag=False,
    flag_value="auto",
    metavar="[LAST.PT]",
    help="Go on with an interrupted run, or with any for more --epochs or --steps.",
)
@click.option("--epochs", type=int, help="Passes over the data.  [default: until the answers come back]")
@click.option("--steps", type=int, help="Optimizer steps, in place of --epochs.")
@click.option("--batch_size", type=int, help="Rows per optimizer step.  [default: 4; of few pairs fewer]")
@click.option("--accumulate", type=int, default=1, help="Compute a step in so many parts: less memory, same result.")
@click.option("--learning_rate", "--lr", type=float, help="Peak rate.  [default: by the model's size]")
@click.option("--weight_decay", type=float, default=0.01, help="Applies to matrices only.")
@click.option("--dropout", type=float, default=0.0, help="Share of activations dropped.")
@click.option("--max_length", type=int, help="Longest example in tokens.  [default: context; 256 for text]")
@click.option("--too_long", type=click.Choice(["error", "skip", "cut"]), default="error", help="Longer conversations.")
@click.option("--text_separator", help="Cut a text file into documents at this string.")
@click.option("--text_share", type=float, help="With both kinds of data: share of the tokens that is text.")
@click.option("--join", type=float, default=0.9, help="How often a single pair goes on the conversation before it.")
@click.option(
    "--template",
    "--chat_template",
    help="How turns are written: a name or a .json file.  [default: the model's own, or chat]",
)
@click.option("--rehearse", is_flag=True, help="Learn again, beside the data, the pairs that the model was taught.")
@click.option("--val_fraction", type=float, help="Share held out to validate.  [default: 0.05 of large data, else 0]")
@click.option("--eval_every", type=int, help="Steps between validations.  [default: a tenth of the run]")
@click.option(
    "--distillation", type=float, default=2.0, help="Weight that holds small talk while few pairs are taught."
)
@click.option("--keep_state", is_flag=True, help="Keep the state to resume from though all answers come back.")
@click.option("--patience", type=int, default=0, help="Stop after so many validations without progress; 0 never.")
@click.option("--probe", multiple=True, help="A question to answer at every validation.")
@click.option("--seed", type=int, default=0, help="Same seed, same model.")
@click.option("--dry_run", is_flag=True, help="Say what it would do and need; three timed steps, nothing is written.")
@device_options("auto", "auto, float32 or bfloat16.")
@click.pass_context
@reports_errors
def train_command(context: click.Context, /, **options: Any) -> None:
    """Fine-tune a GPT-2 on text files, conversations or both, and save one .pt file.

    Only the bot's words are trained in conversations, every word in texts.

    \b
    Examples:
      python train_chatbot.py --model demo --conversation_file data/conversations.json --interactive
      python train_chatbot.py --model "gpt2-small (124M)" --text_file your_text_file.txt --epochs 1
    """
    from gpt2chat.cli.plan import make_plan
    from gpt2chat.errors import ConfigError

    nothing = (
        not any(options[name] for name in ("text_file", "conversation_file", "data")) and options["resume"] is None
    )
    if options["dry_run"] and options["interactive"]:
        raise ConfigError("dry_run: nothing is trained that --interactive could talk to; pass one of the two")
    if nothing and not options["interactive"]:
        raise ConfigError("train: expected --text_file, --conversation_file or --data (or --resume), got none")
    if options["model_tag"] and is_given(context, "save_path"):
        raise ConfigError("save_path: --model_tag chooses the place of a run; pass one of the two")
    path = options["save_path"]
    if not nothing:
        if options["resume"] is not None:
            options = _resumed_options(context, options)
        plan = make_plan(options)
        path = plan.run.files.best
        if options["dry_run"]:
            _say_only(plan)
        else:
            _train(plan, context)
    if options["interactive"]:
        without_training = nothing and (is_given(context, "model") or not path.exists())
        _chat(options["model"] if without_training else str(path), options["device"])


def _resumed_options(context: click.Context, given: dict[str, Any]) -> dict[str, Any]:
    """Return the options of the interrupted run; a contradicting one, given now, is an error."""
    from gpt2chat import checkpoint
    from gpt2chat.cli.plan import OWN_EACH_TIME
    from gpt2chat.errors import CheckpointError, ConfigError
    from gpt2chat.run import RunFiles, stored_settings

    path = Path(given["resume"]) if given["resume"] != "auto" else _last(given)
    best = path.with_name(path.name.replace(".last.pt", ".pt"))
    if not path.exists() and best.is_file():
        raise CheckpointError(
            f"{path}: no such file: a run whose answers all come back keeps it only with --keep_state; "
            f"train on from its weights with --model {shlex.quote(str(best))} --rehearse"
        )
    loaded = checkpoint.load(path)
    if loaded.training is None:
        beside = RunFiles(path).last
        hint = f": pass {beside}" if beside.exists() else ""
        raise CheckpointError(f"{path}: expected a .last.pt with training state, found one that is for use{hint}")
    stored = _converted(context, stored_settings(loaded.training, path)["options"], given, path)
    longer = [name for name in ("epochs", "steps") if is_given(context, name)]
    for name, value in given.items():
        if (
            is_given(context, name)
            and name not in (*OWN_EACH_TIME, *longer, "keep_state")
            and value != stored.get(name)
        ):
            raise ConfigError(f"{name}: {_first(stored.get(name))}, got {value!r}: leave it out, or train afresh")
    if longer:
        stored |= {"epochs": given["epochs"], "steps": given["steps"]}
    stored["keep_state"] = stored.get("keep_state") or given["keep_state"]
    if path.name.endswith(".last.pt"):  # the run's files stay together, also when they were moved
        stored["save_path"] = path.with_name(path.name.removesuffix(".last.pt") + ".pt")
    return {**stored, **{name: given[name] for name in OWN_EACH_TIME}, "resume": path}


def _first(value: Any) -> str:
    """Say with what the first run worked."""
    return f"the run that is resumed was given {value!r}" if value not in (None, ()) else "the first run left it open"


def _last(given: dict[str, Any]) -> Path:
    """Return the state to resume from when it is not named."""
    from gpt2chat import shelf
    from gpt2chat.run import RunFiles

    return shelf.last_of(given["model_tag"]) if given["model_tag"] else RunFiles(given["save_path"]).last


def _converted(context: click.Context, stored: dict[str, Any], given: dict[str, Any], path: Path) -> dict[str, Any]:
    """Return stored options as the command line would have parsed them; one that is younger than the file is added."""
    from gpt2chat.errors import CheckpointError

    converted = dict(given)
    for param in context.command.params:
        if param.name in stored:
            try:
                converted[param.name] = param.type_cast_value(context, stored[param.name])
            except (click.BadParameter, TypeError) as error:
                raise CheckpointError(f"{path}: its option {param.name} is damaged: {error}") from error
    return converted


def _say_only(plan: Plan) -> None:
    from gpt2chat.cli import dry_run

    for line in plan.lines[:-1]:
        say(line)
    for line in dry_run.lines(plan):
        click.echo(line)


def _train(plan: Plan, context: click.Context) -> None:
    from gpt2chat import shelf
    from gpt2chat.cli import outcome
    from gpt2chat.errors import GPT2ChatError

    for line in plan.lines:
        say(line)
    if plan.run.finished:
        last = f"{plan.run.files.last} is at its last step, {plan.run.number}: nothing is left to train"
        say(f"{last}. More epochs: `{outcome.more(plan)}`")
        return
    with Signals() as signals:
        plan.run.wait_for_room = RoomWait(signals)
        try:
            _loop(plan, signals)
            plan.run.finish()
            shelf.keep_step(plan.run.files.best)
        except (Interrupted, GPT2ChatError) as reason:
            _save_unfinished(plan, signals, context, reason)
            raise
    _summary(plan, context.params["interactive"])


def _save_unfinished(plan: Plan, signals: Signals, context: click.Context, reason: BaseException) -> None:
    """Keep what a run that ends early has learnt, and say where it is."""
    from gpt2chat.errors import GPT2ChatError, TrainingError

    run = plan.run
    run.wait_for_room = lambda error: False
    if not run.number:
        if isinstance(reason, Interrupted):
            say("nothing was trained yet")
        return
    try:
        with contextlib.suppress(Interrupted), signals.critical():  # asked for twice, it is still one wish
            run.save_last()
    except GPT2ChatError as error:
        say(f"step {run.number} could not be saved: {error}")
        if run.best is not None:
            say(f"{run.files.best} holds the best weights so far, of validation loss {run.best:.3f}")
        return
    if isinstance(reason, TrainingError):  # going on would end in the same way
        say(f"the weights after step {run.number} of {plan.total} are in {run.files.last}")
    else:
        say(f"saved after step {run.number} of {plan.total}. Go on with:")
        interactive = " --interactive" if context.params["interactive"] else ""
        say(f"  {program('train')} --resume {shlex.quote(str(run.files.last))}{interactive}")


def _loop(plan: Plan, signals: Signals) -> None:
    """Step by step: train, record, draw; evaluate now and then."""
    from gpt2chat.cli.progress import Progress
    from gpt2chat.hardware import MemoryValve, tune_allocator

    tune_allocator()
    run, steps, valve = plan.run, plan.steps(), MemoryValve()
    with Progress(plan.total, run.number, plan.config.open_end) as progress:
        _look(plan, progress, run.number, signals)
        while not run.finished_early:
            with signals.critical():
                step = next(steps, None)
                if step is None:
                    break
                run.record(step)
            valve.step()
            progress.step(step)
            if plan.kept(step.number):
                run.save_step()
            _look(plan, progress, step.number, signals)
        if plan.config.open_end and (run.validation or run.probes) and run.evaluated != run.number:
            progress.evaluation(run.evaluate())
        if run.finished_early:
            progress.note(f"stopped early: {run.patience} validations in a row brought no progress")


def _look(plan: Plan, progress: Progress, number: int, signals: Signals) -> None:
    """Evaluate and check what comes back where that is due; a run that was interrupted before makes up for it."""
    run = plan.run
    if number and plan.due(number) and run.evaluated != number:
        progress.evaluation(run.evaluate())
    if number and plan.asks(number) and run.checked != number:
        with signals.critical():  # the pace and the step that it was set at are kept together
            progress.recall(run.check())


def _summary(plan: Plan, interactive: bool) -> None:
    from gpt2chat.cli import curve, outcome
    from gpt2chat.files import atomic_writer

    run = plan.run
    train, validation = curve.series(run.history)
    if len(train) > 1:
        say("loss")
        for line in curve.braille(train):
            say(line)
        with atomic_writer(run.files.curve) as file:
            file.write(curve.svg(train, validation).encode())
    best = "" if run.best is None or not run.chooses else f", best validation loss {run.best:.3f}"
    say(f"saved {run.files.best} ({run.files.best.stat().st_size / 1e6:.0f} MB{best})")
    beside = (run.files.last, run.files.metrics, run.files.curve, run.files.samples)
    sizes = [f"{path.name} ({path.stat().st_size / 1e6:.0f} MB)" for path in beside[:1] if path.exists()]
    say(f"beside it: {', '.join([*sizes, *[path.name for path in beside[1:] if path.exists()]])}")
    if len(train) > 1 and train[-1][1] > train[0][1]:
        say(f"warning: the loss rose from {train[0][1]:.3f} to {train[-1][1]:.3f}: lower --learning_rate")
    for line in outcome.lines(plan):
        say(line)
    if not interactive:
        say(f"talk to it: {program('chat')} {shlex.quote(str(run.files.best))}")
        say(f"or in the browser: gpt2chat serve {shlex.quote(str(run.files.best))}")
        if not plan.dataset.conversations:
            say("it has only seen text: with --template text it goes on with what you type")


def _chat(name: str, device: str) -> None:
    """Open the chat on a model's name, or on the saved file as it is on the disk, which proves that it is good."""
    from gpt2chat.chatbot import GPT2Chatbot
    from gpt2chat.cli.chat import open_model, talk
    from gpt2chat.sampling import GenerationConfig

    began = time.perf_counter()
    greedy = GenerationConfig(temperature=0.0)
    bot = GPT2Chatbot(name, generation=greedy, device=device, notice=lambda line: say(f"note: {line}"))
    open_model(bot, name)
    say(f"loaded in {time.perf_counter() - began:.1f} s")
    talk(bot, name)
