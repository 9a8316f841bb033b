"""The commands of a chat: their names, what they do, and when a line without a slash is one."""

from __future__ import annotations

import dataclasses
import difflib
import os
import shlex
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from gpt2chat.cli.chat import teaching
from gpt2chat.cli.chat.screen import explained, statistics
from gpt2chat.errors import counted

if TYPE_CHECKING:
    from gpt2chat.cli.chat.loop import Talk

REGEN_TEMPERATURE = 0.8  # when answers are greedy, and asking again would bring the same one
SHOWN_TOKENS = 40  # of an answer, by /why
WEIGHTS = (".pt", ".pth", ".bin", ".safetensors")
NOTHING = ("none", "off", '""', "''")


@dataclass(frozen=True)
class Command:
    """A command: its names, the first one shown; what may follow it; what it does; which words alone mean it."""

    names: tuple[str, ...]
    argument: str
    words: str
    run: Callable[[Talk, str], None]
    bare: tuple[str, ...] = ()
    files: tuple[str, ...] | None = None  # how names of files end that it takes; an empty end is any


def _seed(text: str) -> int | None:
    return None if text in NOTHING else int(text)


DRAWING: dict[str, Callable[[str], Any]] = {
    "temperature": float,
    "top_k": int,
    "top_p": float,
    "min_p": float,
    "repetition_penalty": float,
    "max_new_tokens": int,
    "seed": _seed,
}
SHORT = {"temp": "temperature", "max_tokens": "max_new_tokens"}
SETTINGS = (*DRAWING, *SHORT, "stop", "system", "template", "length", "topic")


# -- the conversation ----------------------------------------------------------------------------------------------


def _new(talk: Talk, argument: str) -> None:
    talk.bot.reset()
    talk.screen.say("A new conversation.")


def _regenerate(talk: Talk, argument: str) -> None:
    options: dict[str, Any] = {}
    generation = talk.bot.generation
    talk.asked_again += 1
    if generation.temperature == 0:
        options["temperature"] = REGEN_TEMPERATURE
    if generation.seed is not None:  # the same seed would bring the same answer
        options["seed"] = (generation.seed + talk.asked_again) % 2**63
    reply = talk.bot.regenerate(**options)
    if generation.temperature == 0:
        talk.screen.dim(f"[drawn at temperature {REGEN_TEMPERATURE}: at 0 the answer would be the same]")
    talk.answer(reply)


def _undo(talk: Talk, argument: str) -> None:
    question = talk.bot.undo()
    left = sum(message.role == "user" for message in talk.bot.messages)
    talk.screen.say(f"Taken back: {question.content!r}; {counted(left, 'turn')} left.")


def _edit(talk: Talk, argument: str) -> None:
    text = argument or talk.read("Edit: ", default=talk.bot.last_question.content)
    if text.strip():
        talk.answer(talk.bot.edit(text))


def _editor(talk: Talk, argument: str) -> None:
    try:
        text = click.edit(argument or None)
    except click.ClickException as error:
        talk.screen.say(f"{error.format_message()}: set EDITOR to the command of an editor")
        return
    if text and text.strip():
        talk.screen.say(text.strip())
        talk.ask(text.strip())
    else:
        talk.screen.say("Nothing was written.")


def _save(talk: Talk, argument: str) -> None:
    from gpt2chat import chats
    from gpt2chat.conversation import Message

    path = Path(_file(argument, "/save chat.json"))
    system = [Message("system", talk.bot.system)] if talk.bot.system else []
    if not any(message.content for message in talk.bot.messages):
        talk.screen.say("Nothing was said yet; nothing was saved.")
        return
    chats.save([*system, *talk.bot.messages], path, talk.model)
    talk.screen.say(f"Saved {path}: it can be loaded (/load) and trained on (--conversation_file).")


def _load(talk: Talk, argument: str) -> None:
    from gpt2chat import chats

    path = Path(_file(argument, "/load chat.json"))
    messages = chats.load(path)
    talk.bot.reset()
    talk.bot.system = next((m.content for m in messages if m.role == "system"), talk.bot.system)
    talk.bot.messages = [message for message in messages if message.role != "system"]
    talk.screen.say(f"Loaded {counted(len(talk.bot.messages), 'message')} from {path}; the conversation goes on:")
    for message in talk.bot.messages[-2:]:
        talk.screen.say(f"  {'Bot' if message.role == 'assistant' else 'You'}: {message.content}")


def _file(argument: str, example: str) -> str:
    from gpt2chat.errors import ConfigError

    whole = os.path.expanduser(argument)
    if argument and "\0" not in argument and len(argument) < 250 and os.path.exists(whole):
        return whole  # also with blanks, as Tab writes it
    try:
        parts = shlex.split(argument)
    except ValueError:  # a quote that is not closed
        parts = []
    if len(parts) != 1 or not parts[0] or "\0" in parts[0]:
        raise ConfigError(f"expected the name of one file, as in {example}, got {argument or 'none'}")
    return os.path.expanduser(parts[0])


# -- what answers, and how -----------------------------------------------------------------------------------------


def _set(talk: Talk, argument: str) -> None:
    from gpt2chat.errors import ConfigError

    name, _, value = argument.partition(" ")
    name, value = name.lower().replace("-", "_"), value.strip()
    if not name:
        _show(talk, "")
    elif name not in SETTINGS:
        near = difflib.get_close_matches(name, SETTINGS, n=1)
        raise ConfigError(f"/set: expected one of {', '.join(SETTINGS)}, got {name!r}{_meant(near)}")
    elif not value:
        raise ConfigError(f"/set {name}: expected a value, as in /set temperature 0.7")
    else:
        name = SHORT.get(name, name)
        set_option(talk, name, value)
        talk.screen.say(f"{name}: {value}")


def set_option(talk: Talk, name: str, value: str) -> None:
    """Change how answers are drawn; raises ConfigError for a value that cannot be."""
    from gpt2chat.errors import ConfigError

    bot = talk.bot
    if name == "length":
        bot.set_response_length(value)
    elif name == "topic":
        bot.set_topic(value)
    elif name == "system":
        bot.system = None if value in NOTHING else value
    elif name == "stop":
        bot.stop = () if value in NOTHING else (value.replace("\\n", "\n"),)
    elif name == "template":
        bot.set_template(value)
    else:
        try:
            number = DRAWING[name](value)
        except ValueError:
            kind = "a number" if DRAWING[name] is float else "a whole number"
            raise ConfigError(f"{name}: expected {kind}, got {value!r}") from None
        bot.generation = dataclasses.replace(bot.generation, **{name: number})


def _show(talk: Talk, argument: str) -> None:
    from gpt2chat import pretrained
    from gpt2chat.grounding import FALLBACK

    bot = talk.bot
    rows = [("model", pretrained.describe(bot.checkpoint)), ("computed by", bot.decoder.runtime.description)]
    drawn = {name: getattr(bot.generation, name) for name in DRAWING}
    rows += [(name, "none" if value is None else str(value)) for name, value in drawn.items()]
    rows += [
        ("stop", ", ".join(map(repr, bot.stop)) or "none"),
        ("template", bot.template.name),
        ("system", bot.system or "none"),
    ]
    rows += [("examples", str(len(bot.examples) // 2)), ("feedback", str(talk.feedback.path))]
    if bot.grounded or bot.fallback is not None:
        fallback = bot.fallback if bot.fallback is not None else FALLBACK
        rows.append(("fallback", f"{fallback!r} below a confidence of {bot.threshold:.2f}"))
    if bot.grounded:
        rows.append(("grounded", "answers are the taught ones, word for word"))
    for name, value in rows:
        talk.screen.say_pair(f"{name:18} ", value)


def _system(talk: Talk, argument: str) -> None:
    if argument:
        talk.bot.system = None if argument in NOTHING else argument
    talk.screen.say(f"System prompt: {talk.bot.system or 'none'}")


def _examples(talk: Talk, argument: str) -> None:
    if argument.lower() in ("clear", "none"):
        before = len(talk.bot.examples)
        talk.bot.clear_custom_examples()
        talk.screen.say(f"{counted((before - len(talk.bot.examples)) // 2, 'example')} taken back.")
        return
    if argument:
        path = Path(_file(argument, "/examples pairs.json"))
        count = talk.bot.add_custom_examples(teaching.read_pairs(path))
        talk.screen.say(teaching.examples_shown(talk.bot, count, path))
        return
    examples = talk.bot.examples
    for question, answer in zip(examples[::2], examples[1::2], strict=True):
        talk.screen.say(f"  {question.content}  ->  {answer.content}")
    if not examples:
        talk.screen.say("No examples; /examples FILE shows pairs to the model without training.")


def _model(talk: Talk, argument: str) -> None:
    if not argument:
        _show(talk, "")
        return
    talk.change_model(_file(argument, "/model trained_model.pt"))


# -- what happened -------------------------------------------------------------------------------------------------


def _why(talk: Talk, argument: str) -> None:
    from gpt2chat.errors import ConfigError
    from gpt2chat.explanation import explain

    answer = talk.bot.answer
    if answer is None or not answer.tokens:
        raise ConfigError("/why: expected an answer of this chat to look at, found none yet")
    for line in _grounds(talk):
        talk.screen.say(line)
    if answer.replaced and not talk.bot.grounded:
        talk.screen.say(f"The fallback was given (confidence {answer.confidence or 0:.2f}) in place of this answer:")
    scores = explain(talk.bot.decoder, answer.prompt, answer.tokens)
    shown = scores if argument == "all" else scores[:SHOWN_TOKENS]
    for line in explained(shown, talk.screen.width):
        talk.screen.dim(line)
    if len(shown) < len(scores):
        talk.screen.say(f"… and {len(scores) - len(shown)} tokens more: /why all")
    talk.screen.say(
        "How likely the model found each token, before temperature and filters; # is its rank, if not the first."
    )


def _grounds(talk: Talk) -> Iterator[str]:
    """Yield the taught question that is nearest to the last one, and what it meant for the answer."""
    bot = talk.bot
    grounded = bot.grounds if bot.grounded else None
    if grounded and grounded.match:
        model = "" if grounded.model is None else f", model {grounded.model:.2f} nats per token"
        given = "given" if grounded.given else f"the fallback was given, as {bot.threshold:.2f} is needed"
        yield f"Nearest taught question: {grounded.match.question}"
        yield f"similarity {grounded.match.similarity:.2f}{model}, confidence {grounded.confidence:.2f}: {given}"
    elif bot.reply:
        yield f"{'You said' if bot.reply.told else 'This answer was written for'}: {bot.reply.question}"
        yield f"similarity {bot.reply.similarity:.2f}; --no_match lets the model write"
    elif bot.checkpoint.taught and (matches := bot.matcher.match(bot.last_question.content, 1)):
        match = matches[0]
        read = bot.match and bot.matcher.phrased(bot.last_question.content) == match.question
        yield f"Nearest taught question: {match.question}"
        yield f"similarity {match.similarity:.2f}, confidence {match.confidence:.2f}{': read as this' if read else ''}"


def _stats(talk: Talk, argument: str) -> None:
    for line in statistics(talk.bot, talk.answers, talk.total):
        talk.screen.say(line)


def _help(talk: Talk, argument: str) -> None:
    talk.screen.say('Type a message and press Enter. Alt-Enter or pasting makes several lines, as does """ … """.')
    for command in COMMANDS:
        names = ", ".join((*command.names, *command.bare[:2]))
        talk.screen.say_pair(f"  {f'{names} {command.argument}':31} ", command.words)
    talk.screen.say("temp 0.7, top_p 0.9 and length brief work without a slash. Ctrl-C stops an answer.")


def _exit(talk: Talk, argument: str) -> None:
    talk.leaving = True


COMMANDS: tuple[Command, ...] = (
    Command(("/new", "/clear", "/reset"), "", "start a new conversation", _new, ("clear", "reset")),
    Command(("/regen",), "", "answer the last question again", _regenerate),
    Command(("/undo",), "", "take back the last question and its answer", _undo),
    Command(("/edit",), "[TEXT]", "change the last question and ask again", _edit),
    Command(("/editor",), "", "write a message in $EDITOR", _editor),
    Command(("/system",), "[TEXT]", "what the model is told beforehand; none takes it back", _system),
    Command(("/set",), "NAME VALUE", "temperature, top_k, top_p, min_p, seed, max_new_tokens …", _set),
    Command(("/show",), "", "model and settings", _show),
    Command(("/save",), "FILE", "keep the chat as JSON that can be trained on", _save, files=("",)),
    Command(("/load",), "FILE", "go on with a saved chat", _load, files=(".json", ".jsonl")),
    Command(("/examples",), "[FILE]", "show pairs to the model without training; clear", _examples, files=("",)),
    Command(("/model",), "FILE", "talk to another model, in the same conversation", _model, files=WEIGHTS),
    Command(("/why",), "[all]", "how likely each token was, and what else it might have been", _why),
    Command(("/stats",), "", "tokens, speed, and how much came from the cache", _stats),
    Command(("/good",), "", "keep the last answer as one to learn", teaching.good),
    Command(("/bad",), "", "keep the last answer as one not to learn", teaching.bad),
    Command(("/teach",), "[ANSWER]", "give the right answer to the last question", teaching.teach),
    Command(("/retrain",), "", "train on what was approved and taught, and go on", teaching.retrain),
    Command(("/help", "/?"), "", "show this", _help, ("help",)),
    Command(("/exit", "/quit", "/bye"), "", "leave; so does Ctrl-D", _exit, ("exit", "quit")),
)
BY_NAME = {name: command for command in COMMANDS for name in command.names}
BY_WORD = {word: command for command in COMMANDS for word in command.bare}


def handle(talk: Talk, line: str) -> bool:
    """Carry out a line that is a command; return False for a message.

    A word without a slash is one only when it stands alone, or is a setting with a value that parses: "length brief"
    is, "length matters" is a message.
    """
    name, _, argument = line.partition(" ")
    name, argument = name.lower(), argument.strip()
    if line.lower() in BY_WORD:
        BY_WORD[line.lower()].run(talk, "")
    elif name in BY_NAME:
        BY_NAME[name].run(talk, argument)
    elif name.startswith("/") and SHORT.get(name[1:], name[1:]) in SETTINGS:
        _set(talk, line[1:])
    elif name.startswith("/"):
        near = difflib.get_close_matches(name, BY_NAME, n=1) if len(name) > 2 else []
        talk.screen.say(f"{name} is not a command{_meant(near)}; /help shows them. Nothing was sent to the model.")
    else:
        return "\n" not in line and _is_setting(talk, name, argument)
    return True


def _meant(near: Sequence[str]) -> str:
    return f"; did you mean {near[0]}?" if near else ""


def _is_setting(talk: Talk, name: str, value: str) -> bool:
    from gpt2chat.errors import ConfigError

    name = SHORT.get(name, name)
    if name not in ("temperature", "top_p", "top_k", "length") or not value:
        return False
    try:
        set_option(talk, name, value)
    except ConfigError:
        return False
    talk.screen.say(f"{name}: {value}")
    return True


def completions(before: str) -> tuple[int, list[str]]:
    """Return where the word before the cursor begins and what it may become: commands, settings, files."""
    name, blank, rest = before.partition(" ")
    if not before.startswith("/") or "\n" in before:
        return len(before), []
    if not blank:
        return 0, [known for known in BY_NAME if known.startswith(name)]
    start = len(before) - len(rest.lstrip())
    word = rest.lstrip()
    command = BY_NAME.get(name)
    if name == "/set" and " " not in word:
        return start, [known for known in SETTINGS if known.startswith(word)]
    if command is not None and command.files:
        return start, [path for path in _paths(word) if path.endswith((os.sep, *command.files))]
    return len(before), []


def _paths(word: str) -> list[str]:
    folder, name = os.path.split(word)
    try:
        found = sorted(os.listdir(os.path.expanduser(folder) or "."))
    except OSError:
        return []
    shown = [entry for entry in found if entry.startswith(name) and (name.startswith(".") or entry[0] != ".")]
    paths = [os.path.join(folder, entry) for entry in shown]
    return [f"{path}/" if os.path.isdir(os.path.expanduser(path)) else path for path in paths]
