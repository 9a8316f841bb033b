"""From talking to training: answers that are approved, rejected or corrected, and a model that learns them."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2chat.cli.terminal import in_words, program
from gpt2chat.errors import counted

if TYPE_CHECKING:
    from gpt2chat.chatbot import GPT2Chatbot
    from gpt2chat.chats import Feedback
    from gpt2chat.cli.chat.loop import Talk
    from gpt2chat.conversation import Message


def feedback_for(name: str, path: Path | None) -> Feedback:
    """Return where approved and taught answers of a model go: beside its file, or in this folder."""
    from gpt2chat.chats import Feedback
    from gpt2chat.run import RunFiles

    own = Path(name)
    beside = RunFiles(own).beside("feedback.jsonl") if own.suffix == ".pt" else Path("feedback.jsonl")
    return Feedback(path or beside, name)


def read_pairs(path: Path) -> list[dict[str, str]]:
    """Return the pairs of a file of conversations, of any kind that training takes; raises DataError."""
    from gpt2chat.cli.options import sources
    from gpt2chat.errors import DataError
    from gpt2chat.formats import read_conversations
    from gpt2chat.records import Report

    report, pairs = Report(), []
    for record in read_conversations(sources([path], None, report), report):
        messages = record.content if isinstance(record.content, tuple) else ()
        turns = [message for message in messages if message.role != "system"]
        if [message.role for message in turns] != ["user", "assistant"] * (len(turns) // 2):
            raise DataError(f"{record.place}: expected questions and answers in turn")
        pairs += [{"user": q.content, "bot": a.content} for q, a in zip(turns[::2], turns[1::2], strict=True)]
    return pairs


def examples_shown(bot: GPT2Chatbot, count: int, path: Path) -> str:
    """Say that pairs were added which the model is shown, and how many of all there is room for."""
    there, fitting = len(bot.examples) // 2, bot.examples_fitting()
    room = f"; of {there} the last {fitting} fit into its context" if fitting < there else ""
    return f"{counted(count, 'example')} of {path} added, to be shown to the model before the conversation{room}"


def taught_before(bot: GPT2Chatbot, feedback: Feedback) -> str | None:
    """Give what was taught in earlier chats with this model and is not learnt yet; return a line that says so."""
    learnt = set(bot.checkpoint.taught)
    pairs = [pair for pair in feedback.taught() if pair not in learnt]
    if not pairs or not _gives(bot):
        return None
    bot.give([{"user": question, "bot": answer} for question, answer in pairs])
    return f"given as answers, as you taught them before: {counted(len(pairs), 'pair')} of {feedback.path}"


def _judged(talk: Talk) -> list[Message]:
    """Return the conversation up to the answer that is judged; raises ConfigError when there is none."""
    from gpt2chat.conversation import Message
    from gpt2chat.errors import ConfigError

    messages = talk.bot.messages
    if [message.role for message in messages[-2:]] != ["user", "assistant"]:
        raise ConfigError("expected an answer to judge, found none yet: ask something first")
    return [*([Message("system", talk.bot.system)] if talk.bot.system else []), *messages]


def good(talk: Talk, argument: str) -> None:
    """Keep the last answer as one to learn."""
    from gpt2chat.conversation import Message
    from gpt2chat.errors import ConfigError
    from gpt2chat.grounding import is_faq

    messages = _judged(talk)
    if not messages[-1].content.strip():
        raise ConfigError("/good: expected an answer with words, found an empty one: /teach gives the right one")
    if is_faq(talk.bot.checkpoint.about):  # which is taught single questions and answers, and stays so
        messages = [*(message for message in messages[:-2] if message.role == "system"), *messages[-2:]]
    talk.feedback.approve(messages)
    talk.bot.messages[-1] = Message("assistant", messages[-1].content)
    talk.screen.say(f"Kept in {talk.feedback.path}.")


def bad(talk: Talk, argument: str) -> None:
    """Keep the last answer as one not to learn, neither from this chat nor from others."""
    from gpt2chat.conversation import Message

    *_, question, answer = messages = _judged(talk)
    talk.feedback.reject(messages)
    talk.bot.drop_custom_example(question.content, answer.content)
    talk.bot.messages[-1] = Message("assistant", answer.content, trained=False)
    talk.screen.say(f"Noted in {talk.feedback.preferences}. /teach gives the right answer, /regen asks again.")


def teach(talk: Talk, argument: str) -> None:
    """Store the right answer as a pair, put it in the place of what was said, and show it to the model from now on."""
    from gpt2chat.errors import ConfigError

    *_, question, answer = messages = _judged(talk)
    if not argument and not talk.screen.interactive:
        raise ConfigError("/teach: expected the right answer behind it, as in /teach Under the mat, got none")
    right = argument or talk.read("Right answer: ")
    if not right:
        talk.screen.say("Nothing was taught.")
        return
    talk.feedback.teach(messages, right)
    talk.bot.correct(right)
    talk.bot.drop_custom_example(question.content, answer.content)
    known = next((asked for asked, said in talk.bot.matcher.pairs if said == right.strip()), None)
    talk.bot.add_custom_examples([{"user": question.content, "bot": right}])
    if not talk.bot.grounded:
        read = talk.bot.matcher.phrased(question.content) if talk.bot.match else question.content
        known = read if read != question.content else None
    shown = f"{'It is given' if _gives(talk.bot) else 'The model is shown it'} from now on"
    shown = shown if known is None else f"It is read as another way to ask {known!r} from now on"
    talk.screen.say(f"Taught, and kept in {talk.feedback.path}. {shown}; /retrain learns it, /bad takes it back.")


def _gives(bot: GPT2Chatbot) -> bool:
    """Whether a bot gives what was taught in the chat word for word."""
    return bot.grounded or bot.match


def offer(talk: Talk) -> None:
    """At the end, ask whether to learn what was taught; without a terminal say how to."""
    if not talk.feedback.pairs or not talk.screen.interactive:
        remind(talk)
        return
    try:
        answer = talk.lines.read(f"{_new_pairs(talk)}, retrain now? about {in_words(_seconds(talk))} [y/N] ")
    except (EOFError, KeyboardInterrupt):
        answer = ""
    if answer.strip().lower() in ("y", "yes"):
        talk.handle("/retrain")
    else:
        remind(talk)


def remind(talk: Talk) -> None:
    """Say where the pairs of this chat are, and what learns them, if there are any."""
    if talk.feedback.pairs:
        talk.screen.say(f"{_new_pairs(talk)} in {talk.feedback.path}, to be learnt with:")
        talk.screen.show_command(_command(_arguments(talk)))


def _new_pairs(talk: Talk) -> str:
    return counted(talk.feedback.pairs, "new pair")


def retrain(talk: Talk, argument: str) -> None:
    """Train the model on what was approved and taught, beside what it knows already, and go on with the result."""
    from gpt2chat import shelf
    from gpt2chat.cli.train import train_command
    from gpt2chat.errors import ConfigError

    if not talk.feedback.path.exists():
        raise ConfigError(f"/retrain: expected answers in {talk.feedback.path}, found none: /good and /teach keep them")
    arguments = _arguments(talk)
    talk.screen.show_command(f"{_command(arguments)}    # about {in_words(_seconds(talk))}")
    try:
        train_command.main(arguments, prog_name=program("train"), standalone_mode=False)
    except SystemExit as end:
        if end.code:
            talk.screen.say("The chat goes on with the model as it was.")
            return
    talk.feedback.pairs = 0
    talk.bot.clear_custom_examples()
    talk.change_model(str(shelf.tagged("sft", arguments[-1]) if arguments[-2] == "--model_tag" else arguments[-1]))


def _arguments(talk: Talk) -> list[str]:
    """Return the options of `train` that learn what was taught: from this model, beside what it was taught before."""
    from gpt2chat import shelf

    own = Path(talk.model)
    arguments = ["--model", talk.model, "--conversation_file", str(talk.feedback.path)]
    if talk.bot.checkpoint.taught:
        arguments.append("--rehearse")
    tag = shelf.tag_of(own)
    if tag and shelf.TAG.fullmatch(tag):
        return [*arguments, "--model_tag", _next(tag, lambda name: shelf.tagged("sft", name).exists())]
    path = own if own.suffix == ".pt" else Path("trained_model.pt")
    name = _next(path.stem, lambda name: path.with_name(f"{name}.pt").exists())
    return [*arguments, "--save_path", str(path.with_name(f"{name}.pt"))]


def _next(name: str, taken: Callable[[str], bool]) -> str:
    """Return a name that is free: `bot`, or `bot-2` if that is taken, and so on."""
    stem, _, number = name.rpartition("-")
    base, count = (stem, int(number)) if stem and number.isdigit() else (name, 1)
    while taken(name):
        count += 1
        name = f"{base}-{count}"
    return name


def _command(arguments: list[str]) -> str:
    return f"{program('train')} {shlex.join(arguments)}"


def _seconds(talk: Talk) -> float:
    """Return about how long learning will take here."""
    from gpt2chat.conversation import Message, render
    from gpt2chat.estimate import rough_run

    bot = talk.bot
    known: list[Any] = [(Message("user", q), Message("assistant", a)) for q, a in bot.checkpoint.taught]
    new = [(Message("user", "x" * 60), Message("assistant", "x" * 120))] * talk.feedback.pairs
    tokens = sum(len(render(pair, bot.template, bot.tokenizer).ids) for pair in [*known, *new])
    return rough_run(bot.checkpoint.config, "conversations", max(1, tokens))[2]
