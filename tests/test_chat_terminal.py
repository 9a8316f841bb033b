"""Whole transcripts of the chat, in a real terminal and through pipes: what a person types, and what is shown."""

from __future__ import annotations

import json
import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path

import pytest
from helpers_cli import ROOT, environment, pairs, rows, save_tiny, spawn
from helpers_terminal import CTRL_A, CTRL_C, CTRL_D, ENTER, ESCAPE, LEFT, TAB, UP, Terminal

from gpt2chat import checkpoint
from gpt2chat.checkpoint import Checkpoint
from gpt2chat.cli.chat.commands import COMMANDS
from gpt2chat.conversation import Message
from gpt2chat.data import Dataset, Report, render_records
from gpt2chat.model import GPT2, GPT2Config
from gpt2chat.records import Record
from gpt2chat.templates import TEMPLATES
from gpt2chat.tokenizer import Tokenizer
from gpt2chat.training import TrainConfig, make_optimizer, train

TAUGHT = {
    "Hello": "Hi there, 明日 👋!",
    "What is the capital of France?": "Paris.",
    "Tell me a story": "Once upon a time there was a mill by a river, and the miller had three sons and one cat.",
    "日本語?": "はい、少し話せます。",
    "one\ntwo\nthree": "Three lines.",
    "مرحبا": "أهلا",
}
GREEDY = ("-t", "0")
TOOLKITS = pytest.mark.parametrize("toolkit", [True, False], ids=["prompt_toolkit", "readline"])


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a tiny model that knows TAUGHT."""
    config, tokenizer = GPT2Config(n_layer=2, n_head=2, n_embd=64, n_ctx=256, vocab_size=50257), Tokenizer.gpt2()
    records = [Record("p", (Message("user", user), Message("assistant", bot))) for user, bot in TAUGHT.items()] * 4
    documents = render_records(records, TEMPLATES["chat"], tokenizer, 256, "error", Report())
    data = Dataset([example for document in documents for example in document])
    model = GPT2(config).init_weights(0)
    training = TrainConfig(epochs=110, learning_rate=6e-3, row_tokens=256, join=0.95)
    list(train(model, data, training, make_optimizer(model, training), tokenizer.end_id))
    folder = tmp_path_factory.mktemp("chat")
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    kept = Checkpoint(config, weights, TEMPLATES["chat"], 96, about={"base": "tiny"}, taught=list(TAUGHT.items()))
    checkpoint.save(kept, folder / "bot.pt")
    return folder


@pytest.fixture(scope="module")
def endless(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a random model that, at temperature 0, talks until its context is full."""
    folder = tmp_path_factory.mktemp("endless")
    config = GPT2Config(n_layer=12, n_head=2, n_embd=32, n_ctx=1024, vocab_size=50257)
    weights = {name: tensor.detach() for name, tensor in GPT2(config).init_weights(3).state_dict().items()}
    checkpoint.save(Checkpoint(config, weights, TEMPLATES["chat"], about={"base": "tiny"}), folder / "bot.pt")
    return folder


SLOWLY = ("--dtype", "float16", "--draft", "none", "--max_new_tokens", "900")  # through torch, token by token


# -- typing --------------------------------------------------------------------------------------------------------


@TOOLKITS
def test_lines_are_edited_completed_and_remembered(taught: Path, tmp_path: Path, toolkit: bool) -> None:
    with Terminal("chat", taught / "bot.pt", *GREEDY, folder=tmp_path, toolkit=toolkit) as terminal:
        assert "Hi there, 明日 👋!" in terminal.say("Hello")
        assert "Hi there" in terminal.say("ello" + CTRL_A + "H")  # the beginning of the line is mended
        assert "Paris." in terminal.say("What is the capital of Frnce?" + LEFT * 4 + "a")
        assert "はい、少し話せます。" in terminal.say("日本人" + "\x7f" + "語?")  # backspace takes a whole character
        assert "أهلا" in terminal.say("مرحبا")
        assert "Bot:" in terminal.say(UP * 3)
        assert terminal.text().count("You: What is the capital of France?") == 2
        terminal.prompt()
        terminal.type("/sta" + TAB)
        terminal.wait("You: /stats")
        terminal.type(ENTER)
        terminal.wait("computed by:")
        terminal.prompt()
        terminal.paste("one\ntwo\nthree")
        terminal.type(ENTER)
        terminal.wait("Three lines.")
        before = terminal.prompt()
        terminal.type("one" + ESCAPE + ENTER + "two" + ESCAPE + ENTER + "three" + ENTER)
        terminal.wait("Three lines.", after=before)
        before = terminal.prompt()
        for line in ('"""', "one", "two", "three", '"""'):
            terminal.type(line + ENTER)
        terminal.wait("Three lines.", after=before)
        terminal.prompt()
        terminal.type(CTRL_D)
        assert terminal.end() == 0
        assert "Goodbye!" in terminal.text()
    history = tmp_path / "state" / "gpt2chat" / "history.jsonl"
    assert stat.S_IMODE(history.stat().st_mode) == 0o600
    assert "one\ntwo\nthree" in [json.loads(line) for line in history.read_text("utf-8").splitlines()]
    with Terminal("chat", taught / "bot.pt", *GREEDY, "--no_history", folder=tmp_path, toolkit=toolkit) as terminal:
        before = len(history.read_text("utf-8"))
        terminal.say("Hello")
        terminal.prompt()
        terminal.type(CTRL_D)
        assert terminal.end() == 0
        assert len(history.read_text("utf-8")) == before


def test_what_was_typed_in_the_last_chat_comes_back(taught: Path, tmp_path: Path) -> None:
    for toolkit in (True, False):
        with Terminal("chat", taught / "bot.pt", *GREEDY, folder=tmp_path, toolkit=toolkit) as terminal:
            if toolkit:
                terminal.say("Hello")
            else:
                assert "Hi there" in terminal.say(UP * 2)
            terminal.prompt()
            terminal.type("quit" + ENTER)
            assert terminal.end() == 0


@TOOLKITS
def test_ctrl_c_stops_the_answer_clears_the_line_and_twice_leaves(endless: Path, tmp_path: Path, toolkit: bool) -> None:
    with Terminal("chat", endless / "bot.pt", *GREEDY, *SLOWLY, folder=tmp_path, toolkit=toolkit) as terminal:
        before = terminal.prompt()
        terminal.type("Tell me more" + ENTER)
        until = time.monotonic() + 60
        while len("".join(terminal.text().splitlines()[before + 1 :])) < 40:
            terminal._pump(0.05)
            assert time.monotonic() < until
        terminal.type(CTRL_C)
        shown = terminal.wait("[stopped", after=before)
        assert "Traceback" not in shown
        assert "^C" not in shown
        assert "1 turn;" in terminal.say("/stats")
        assert "cancelled" in terminal.text()
        assert "Saved" in terminal.say("/save cut.json")
        kept = json.loads((tmp_path / "cut.json").read_text("utf-8"))[0]["messages"]
        assert kept[-1]["weight"] == 0  # cut short, it is nothing to learn from
        assert kept[-1]["content"]
        terminal.prompt()
        terminal.type("half a question" + CTRL_C)
        terminal.wait("Ctrl-C again leaves")
        assert "1 turn;" in terminal.say("/stats")  # which begins to count anew
        before = terminal.prompt()
        terminal.type(CTRL_C)
        terminal.wait("Ctrl-C again leaves", after=before)
        terminal.prompt()
        terminal.type(CTRL_C)
        assert terminal.end() == 130


def test_a_narrow_window_breaks_between_words(taught: Path, tmp_path: Path) -> None:
    with Terminal("chat", taught / "bot.pt", *GREEDY, folder=tmp_path) as terminal:
        terminal.say("Hello")
        terminal.resize(40)
        shown = terminal.say("Tell me a story")
        answer = shown.partition("[")[0]
        assert " ".join(answer.split()) == "Bot: " + TAUGHT["Tell me a story"]
        assert all(
            word in TAUGHT["Tell me a story"].split() for line in answer.splitlines()[1:] for word in line.split()
        )
        help_text = terminal.say("/help")
        assert "take back the last question" in " ".join(help_text.split())
        assert "はい、少し話せます。" in terminal.say("日本語?")
        terminal.resize(100)
        assert "tokens/sec" in terminal.say("Hello")


# -- commands ------------------------------------------------------------------------------------------------------


def test_every_command_does_what_it_says(taught: Path, tmp_path: Path) -> None:
    (tmp_path / "pairs.json").write_text(json.dumps([{"user": "Who?", "bot": "Me."}]), "utf-8")
    editor = tmp_path / "editor.sh"
    editor.write_text('#!/bin/sh\nprintf "What is the capital of France?" > "$1"\n')
    editor.chmod(0o755)
    other = save_tiny(tmp_path / "other.pt")
    steps: list[tuple[str, str | None]] = [
        ("/help", "/teach"),
        ("Hello", "Hi there"),
        ("/why", "instead:"),
        ("/why all", "before temperature and filters"),
        ("/regen", "drawn at temperature"),
        ("/undo", "Taken back: 'Hello'; 0 turns left"),
        ("/undo", "found none yet"),
        ("/good", "ask something first"),
        ("What is the capital of France?", "Paris."),
        ("/good", "Kept in"),
        ("/bad", "Noted in"),
        ("/edit Hello", "Hi there"),
        ("/teach Good day to you.", "Taught"),
        ("/examples", "Hello  ->  Good day to you."),
        ("/examples pairs.json", "1 example of pairs.json"),
        ("/examples clear", "2 examples taken back."),
        ("/system Be brief.", "System prompt: Be brief."),
        ("/system none", "System prompt: none"),
        ("/set top_k 7", "top_k: 7"),
        ("/set tempreature 0.1", "did you mean temperature?"),
        ("/set top_p 3", "top_p: expected"),
        ("temp 0", "temperature: 0"),
        ("top_p 0.9", "top_p: 0.9"),
        ("length brief", "length: brief"),
        ("/show", "top_k              7"),
        ("/save chat.json", "Saved chat.json"),
        ("/new", "A new conversation."),
        ("/load chat.json", "Loaded"),
        ("/stats", "came from the cache"),
        ("/load nowhere.json", "no such file"),
        ("/model other.pt", "loaded in"),
        ("/model bot.pt", "loaded in"),
        ("/model nowhere.pt", "no such file"),
        ("/editor", "Paris."),
        ("/tach", "did you mean /teach?"),
        ("clear", "A new conversation."),
        ("/clear", "A new conversation."),
        ("reset", "A new conversation."),
        ("/reset", "A new conversation."),
        ("help", "/regen"),
        ("/?", "/regen"),
        ("/retrain", "saved"),
        ("Hello", "Bot:"),
    ]
    bot = tmp_path / "bot.pt"
    bot.write_bytes((taught / "bot.pt").read_bytes())
    with Terminal("chat", "bot.pt", *GREEDY, folder=tmp_path, EDITOR=str(editor)) as terminal:
        for line, expected in steps:
            shown = terminal.say(line)
            assert expected is None or expected in re.sub(r"\s*\n\s*", " ", shown), (line, shown)
            assert "Traceback" not in shown
        before = terminal.prompt()
        terminal.type("/edit" + ENTER)
        terminal.wait("Edit: Hello", after=before)
        terminal.type(CTRL_A + "\x0b" + "What is the capital of France?" + ENTER)
        terminal.wait("Bot:", after=before)
        terminal.prompt()
        terminal.type("/bye" + ENTER)
        assert terminal.end() == 0
    typed = {line.partition(" ")[0] for line, _ in steps} | {"/edit", "/bye"}
    assert {command.names[0] for command in COMMANDS} - typed <= {"/exit"}, "each command is used"
    assert other.exists()
    assert (tmp_path / "bot-2.pt").exists()
    kept = rows(tmp_path / "bot.feedback.jsonl")
    assert [row["provenance"]["by"] for row in kept] == ["teach"]  # what was good became bad
    assert kept[0]["messages"] == [
        {"role": "user", "content": "Hello"},
        {"role": "assistant", "content": "Good day to you."},
    ]
    rejected = rows(tmp_path / "bot.preferences.jsonl")
    assert [row["rejected"][0]["content"] for row in rejected] == ["Paris.", "Hi there, 明日 👋!"]
    assert rejected[1]["chosen"][0]["content"] == "Good day to you."


@pytest.mark.parametrize("word", ["exit", "/exit", "/quit", "/bye", "QUIT"])
def test_words_that_leave(taught: Path, word: str) -> None:
    done = spawn(["-m", "gpt2chat", "chat", "bot.pt", *GREEDY], taught, stdin=f"Hello\n{word}\nHello\n")
    assert (done.returncode, done.stdout) == (0, "Hi there, 明日 👋!\n")


def test_new_pairs_are_offered_at_the_end(taught: Path, tmp_path: Path) -> None:
    (tmp_path / "bot.pt").write_bytes((taught / "bot.pt").read_bytes())
    with Terminal("chat", "bot.pt", *GREEDY, folder=tmp_path) as terminal:
        terminal.say("Hello")
        terminal.prompt()
        terminal.type("/teach" + ENTER)
        terminal.wait("Right answer:")
        terminal.type("Welcome!" + ENTER)
        terminal.wait("Taught")
        terminal.prompt()
        terminal.type(CTRL_D)
        terminal.wait("1 new pair, retrain now? about", "[y/N]")
        terminal.type("n" + ENTER)
        assert terminal.end() == 0
        assert "--rehearse --save_path bot-2.pt" in terminal.text().replace("\n", "")  # not folded: it can be copied
    assert not (tmp_path / "bot-2.pt").exists()


@pytest.mark.slow
def test_a_corrected_answer_comes_back_after_retraining(tmp_path: Path) -> None:
    """Talk, correct, retrain, ask again: one session from the first word to the right one."""
    (tmp_path / "pairs.json").write_text(pairs(12), "utf-8")
    trained = spawn(["-m", "gpt2chat", "train", "--model", "demo", "--conversation_file", "pairs.json"], tmp_path)
    assert trained.returncode == 0, trained.stderr
    with Terminal("chat", *GREEDY, folder=tmp_path) as terminal:
        assert "It is 35." in terminal.say("What is number 5?")
        assert "Taught" in terminal.say("/teach It is five, of course.")
        assert "loaded in" in terminal.say("/retrain")
        terminal.say("/new")
        assert "It is five, of course." in terminal.say("What is number 5?")
        assert "It is 42." in terminal.say("What is number 6?")  # what it knew it still knows


# -- pipes ---------------------------------------------------------------------------------------------------------


def test_a_pipe_gets_answers_alone(taught: Path) -> None:
    lines = "Hello\n\n/nothing\nWhat is the capital of France?\n/stats\n"
    done = spawn(["-m", "gpt2chat", "chat", "bot.pt", *GREEDY], taught, stdin=lines, CLICOLOR_FORCE="1")
    assert done.stdout == "Hi there, 明日 👋!\nParis.\n"
    assert "/nothing is not a command" in done.stderr
    assert "\x1b" not in done.stderr
    assert "You:" not in done.stderr + done.stdout


def test_the_whole_of_a_pipe_is_one_prompt(taught: Path) -> None:
    done = spawn(["-m", "gpt2chat", "chat", "bot.pt", *GREEDY, "-p", "-"], taught, stdin="one\ntwo\nthree\n")
    assert (done.returncode, done.stdout) == (0, "Three lines.\n")


def test_json_has_the_answer_and_what_it_took(taught: Path) -> None:
    done = spawn(["-m", "gpt2chat", "chat", "bot.pt", *GREEDY, "--json"], taught, stdin="Hello\nHello\n")
    first, second = map(json.loads, done.stdout.splitlines())
    assert first["answer"] == second["answer"] == TAUGHT["Hello"]
    assert first["finish_reason"] == "stop"
    assert second["cached_tokens"] >= first["prompt_tokens"] > 0
    assert {"new_tokens", "seconds", "first_token_s"} <= set(first)


def test_the_fallback_stands_for_an_answer_that_is_not_sure(taught: Path) -> None:
    options = ["-m", "gpt2chat", "chat", "bot.pt", *GREEDY, "--fallback", "Ask us.", "--confidence", "0.6", "--json"]
    done = spawn(options, taught, stdin="Hello\nxylophone quartz jukebox\n")
    known, unknown = map(json.loads, done.stdout.splitlines())
    assert (known["answer"], known["fallback"]) == (TAUGHT["Hello"], False)
    assert (unknown["answer"], unknown["fallback"]) == ("Ask us.", True)
    assert known["confidence"] > 0.6 > unknown["confidence"]


@pytest.mark.parametrize("options", [["--no_color"], ["--plain"], []])
def test_no_colours_where_none_are_wanted(taught: Path, tmp_path: Path, options: list[str]) -> None:
    extra = {} if options else {"NO_COLOR": "1"}
    with Terminal("chat", taught / "bot.pt", *GREEDY, *options, folder=tmp_path, toolkit=False, **extra) as terminal:
        shown = terminal.say("Hello")
        assert ("tokens/sec" in shown) == (options != ["--plain"])
        cells = [cell for row in terminal.screen.buffer.values() for cell in row.values()]
        assert all(cell.fg == "default" and not cell.bold for cell in cells)


def test_examples_stop_and_system_reach_the_model(taught: Path, tmp_path: Path) -> None:
    file = tmp_path / "more.json"
    file.write_text(json.dumps([{"user": "a", "bot": "b"}]), "utf-8")
    options = ["--examples", str(file), "--stop", " a mill", "--system", "Be kind."]
    done = spawn(["-m", "gpt2chat", "chat", "bot.pt", *GREEDY, *options], taught, stdin="Tell me a story\n/show\n")
    assert "1 example of" in done.stderr
    assert "Be kind." in done.stderr
    assert " a mill" not in done.stdout
    assert done.stdout.strip()


def test_the_python_on_the_page_runs(taught: Path, tmp_path: Path) -> None:
    (tmp_path / "trained_model.pt").write_bytes((taught / "bot.pt").read_bytes())
    blocks = re.findall(r"^```python\n(.*?)^```", (ROOT / "docs" / "chat.md").read_text("utf-8"), flags=re.M | re.S)
    assert len(blocks) == 1
    done = spawn(["-c", blocks[0].replace("What is gpt2chat?", "Hello")], tmp_path)
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip()


@TOOLKITS
def test_sigterm_ends_a_chat_without_a_traceback(taught: Path, tmp_path: Path, toolkit: bool) -> None:
    for typed in ("", "a line that is being typed " * 20):
        with Terminal("chat", taught / "bot.pt", *GREEDY, folder=tmp_path, toolkit=toolkit) as terminal:
            terminal.prompt()
            terminal.type(typed)
            os.kill(terminal.process.pid, signal.SIGTERM)
            assert terminal.end() == 128 + signal.SIGTERM
            assert "Traceback" not in terminal.text() and "Unhandled" not in terminal.text()


@pytest.mark.parametrize(
    ("ending", "code"), [("-p Hello <&-", 0), ("<&-", 0), ("-p Hello >/dev/full", 1), ("-p Hello >&-", 0)]
)
def test_streams_that_are_closed_or_full_are_no_traceback(taught: Path, ending: str, code: int) -> None:
    command = f"{sys.executable} -m gpt2chat chat bot.pt -t 0 {ending}"
    done = subprocess.run(
        command, shell=True, cwd=taught, env=environment(), capture_output=True, text=True, timeout=120
    )
    assert (done.returncode, "Traceback" in done.stderr) == (code, False), done.stderr
