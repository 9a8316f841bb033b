"""The commands: what they write, what they say and where, and that an interrupted run loses nothing."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
import time
import xml.etree.ElementTree as ET
from collections.abc import Sequence
from pathlib import Path
from unittest.mock import Mock

import pytest
from click.testing import Result
from helpers_cli import (
    ROOT,
    TEXT,
    contents,
    environment,
    invoke,
    pairs,
    rows,
    same_weights,
    save_tiny,
    signals_in_step,
    spawn,
)

from gpt2chat import checkpoint, files
from gpt2chat.chatbot import GPT2Chatbot
from gpt2chat.cli import main
from gpt2chat.cli.progress import Progress
from gpt2chat.sampling import GenerationConfig
from gpt2chat.tokenizer import Tokenizer
from gpt2chat.training import Step

COMMANDS = ([], ["train"], ["chat"], ["eval"], ["inspect"])
GREEDY = ("--temperature", "0", "--max_new_tokens", "12")


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("model") / "tiny.pt")


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The folder a user works in: six pairs, a text, and both scripts."""
    (tmp_path / "pairs.json").write_text(pairs(6), "utf-8")
    (tmp_path / "text.txt").write_text(TEXT, "utf-8")
    for script in ("train_chatbot.py", "gpt_generate.py"):
        shutil.copy(ROOT / script, tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def train(tiny: Path, *options: object, stdin: str | None = None) -> Result:
    given = [str(option) for option in options]
    data = [] if {"--text_file", "--conversation_file", "--resume"} & set(given) else ["--conversation_file=pairs.json"]
    model = [] if "--resume" in given else ["--model", tiny]
    result = invoke("train", *model, *data, *given, stdin=stdin)
    assert result.stdout == "" or "--interactive" in given
    return result


def answer(path: Path, *questions: str, tokens: int = 12) -> list[str]:
    """What the Python interface answers, greedily, in one conversation."""
    bot = GPT2Chatbot(generation=GenerationConfig(temperature=0, max_new_tokens=tokens), device="cpu")
    bot.load_model(path)
    return [bot.chat(question) for question in questions]


# -- help and spelling ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0] if command else "gpt2chat")
def test_help_shows_examples(command: list[str]) -> None:
    for flag in ("--help", "-h"):
        result = invoke(*command, flag)
        assert result.exit_code == 0
        _, _, after = result.stdout.partition("Examples:\n")
        examples = [line.strip() for line in after.split("\n\n")[0].splitlines()]
        assert len(examples) >= 2
        assert all(line.startswith(("python ", "gpt2chat ")) for line in examples)


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command[0] if command else "gpt2chat")
def test_the_examples_in_the_help_name_options_that_exist(command: list[str]) -> None:
    _, _, after = invoke(*command, "--help").stdout.partition("Examples:\n")
    for line in after.split("\n\n")[0].splitlines():
        words = shlex.split(line)
        name = "train" if words[0] == "python" else words[1]
        known = {option for parameter in main.commands[name].params for option in parameter.opts}
        assert {word for word in words if word.startswith("-")} <= known


@pytest.mark.parametrize("script", ["train_chatbot.py", "gpt_generate.py"])
def test_the_scripts_show_their_own_name_in_the_help(script: str, place: Path) -> None:
    result = spawn([script, "--help"], place)
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"Usage: {script} ")


@pytest.mark.parametrize("command", COMMANDS[1:], ids=lambda command: command[0])
def test_hyphens_and_underscores_spell_the_same_option(command: list[str]) -> None:
    parameters = [p for p in main.commands[command[0]].params if any("_" in option for option in p.opts)]
    for option in (option for p in parameters for option in p.opts if option.startswith("--")):
        flag = next(p for p in parameters if option in p.opts).is_flag
        for spelling in (option, option.replace("_", "-")):
            words = [spelling] if flag else [spelling, "1"]
            assert "No such option" not in invoke(*command, *words, "--help").output
    assert "No such option" in invoke(*command, "--no_such_thing", "1").output


def test_a_run_with_hyphens_is_the_run_with_underscores(tiny: Path, place: Path) -> None:
    common = ("--model", tiny, "--epochs", "2")
    first = invoke("train", *common, "--conversation_file", "pairs.json", "--save_path", "a.pt", "--batch_size", "2")
    other = invoke("train", *common, "--conversation-file", "pairs.json", "--save-path", "b.pt", "--batch-size", "2")
    assert (first.exit_code, other.exit_code) == (0, 0)
    assert same_weights(place / "a.pt", place / "b.pt")


# -- train ---------------------------------------------------------------------------------------------------------


def test_training_writes_its_files_and_says_what_it_chose(
    tiny: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("gpt2chat.estimate.MOST_STEPS", 30)
    monkeypatch.setattr("gpt2chat.estimate.MOST_PASSES", 2)
    before = contents(place)
    result = train(tiny)
    assert result.exit_code == 0
    names = {"trained_model.pt", "trained_model.last.pt", "trained_model.metrics.jsonl", "trained_model.loss.svg"}
    assert contents(place).keys() - before.keys() == names
    assert {name: data for name, data in contents(place).items() if name in before} == before

    metrics = rows(place / "trained_model.metrics.jsonl")
    steps = int(re.search(r"at most (\d+) steps \(about", result.stderr)[1])  # type: ignore[index]
    metrics = [row for row in metrics if "loss" in row]
    assert [row["step"] for row in metrics] == list(range(1, steps + 1))
    assert metrics[-1]["loss"] < metrics[0]["loss"]
    svg = ET.fromstring((place / "trained_model.loss.svg").read_text("utf-8"))
    assert svg.tag == "{http://www.w3.org/2000/svg}svg"
    assert len(svg.findall("{http://www.w3.org/2000/svg}polyline")) == 1

    use, last = checkpoint.load(place / "trained_model.pt"), checkpoint.load(place / "trained_model.last.pt")
    assert (use.training, use.template.name) == (None, "chat")
    assert last.training is not None and last.training["step"] == steps
    until = "epochs: until the taught answers come back, at most 30 steps (--epochs or --steps sets a number)"
    assert until in result.stderr
    assert re.search(r"^learning rate: 1\.0e-03, .*--learning_rate changes it", result.stderr, re.M)
    assert re.search(r"^saved trained_model\.pt \(7 MB\)$", result.stderr, re.M)
    assert all(name in result.stderr for name in names)
    assert "\r" not in result.stderr and "\x1b" not in result.stderr


def test_choices_the_user_made_are_not_announced(tiny: Path, place: Path) -> None:
    result = train(tiny, "--epochs", "2", "--learning_rate", "0.001")
    assert result.exit_code == 0
    assert "epochs: " not in result.stderr
    assert "--learning_rate changes it" not in result.stderr
    assert [row.get("recall") for row in rows(place / "trained_model.metrics.jsonl")] == [None, None, 0.0]


def test_a_run_of_one_step_succeeds(tiny: Path, place: Path) -> None:
    result = train(tiny, "--epochs", "1")
    assert result.exit_code == 0
    assert (place / "trained_model.pt").exists()


def test_the_same_seed_gives_the_same_model_and_another_seed_another(tiny: Path, place: Path) -> None:
    for name, seed in (("a", 1), ("b", 1), ("c", 2)):
        options = ("--epochs", 2, "--dropout", 0.2, "--seed", seed, "--save_path", f"{name}.pt")
        assert train(tiny, *options).exit_code == 0
    assert same_weights(place / "a.pt", place / "b.pt")
    assert not same_weights(place / "a.pt", place / "c.pt")


def test_text_and_conversations_in_one_run_state_their_mix(tiny: Path, place: Path) -> None:
    both = ("--text_file", "text.txt", "--conversation_file", "pairs.json", "--epochs", "1", "--max_length", "48")
    shares = []
    for more in ((), ("--text_share", "0.5")):
        result = train(tiny, *both, *more)
        assert result.exit_code == 0
        stated = re.search(r"^mix: (\d+)% of the tokens are text, (\d+)% conversation", result.stderr, re.M)
        assert stated, result.stderr
        assert int(stated[1]) + int(stated[2]) == 100
        assert re.search(r"^6 conversations of \d+ tokens", result.stderr, re.M)
        assert re.search(r"^\d+ text blocks of \d+ tokens", result.stderr, re.M)
        shares.append(int(stated[1]))
    assert shares[0] > 80
    assert 35 <= shares[1] <= 65


def test_pairs_that_repeat_those_of_another_file_are_used_once_and_named(tiny: Path, place: Path) -> None:
    (place / "more.json").write_text(pairs(8), "utf-8")
    files = ("--conversation_file", "pairs.json", "--conversation_file", "more.json")
    result = train(tiny, *files, "--epochs", "1")
    assert result.exit_code == 0
    assert re.search(r"^8 conversations of", result.stderr, re.M)
    assert re.search(
        r"^note: 6 conversations that repeat an earlier one, .*: more\.json:1: record 1,", result.stderr, re.M
    )


@pytest.mark.parametrize(("count", "few"), [(9, True), (10, False)])
def test_fewer_than_ten_conversations_are_warned_about(count: int, few: bool, tiny: Path, place: Path) -> None:
    (place / "pairs.json").write_text(pairs(count), "utf-8")
    result = train(tiny, "--epochs", "1")
    assert result.exit_code == 0
    assert ("warning: fewer than ten conversations" in result.stderr) == few


def test_auto_trains_in_bfloat16_where_the_hardware_has_it(
    tiny: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cpu._is_avx512_bf16_supported", lambda: True)
    for name in ("auto", "bfloat16", "float32"):
        chosen = () if name == "auto" else ("--dtype", name)
        result = train(tiny, "--epochs", "1", "--device", "cpu", "--save_path", f"{name}.pt", *chosen)
        assert result.exit_code == 0
        assert f"steps on cpu in {'bfloat16' if name == 'auto' else name}, saving" in result.stderr
    assert same_weights(place / "auto.pt", place / "bfloat16.pt")
    assert not same_weights(place / "auto.pt", place / "float32.pt")


def test_without_a_terminal_a_line_tells_the_time_left(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]
    monkeypatch.setattr("gpt2chat.cli.progress.time", Mock(monotonic=lambda: now[0]))
    with Progress(total=15, done=10) as progress:
        for number, now[0] in ((11, 3.0), (12, 6.0), (13, 15.0), (15, 20.0)):
            progress.step(Step(number, 15, 2.0, 1e-3, 1.0, tokens=50, targets=30, seconds=3.0))
    assert re.findall(r"^step (\d+)/15  loss 2\.000, .* tok/s, (\d+) s left$", capsys.readouterr().err, re.M) == [
        ("11", "12"),
        ("13", "10"),
        ("15", "0"),
    ]


def test_validation_is_reported_and_the_best_is_kept(tiny: Path, place: Path) -> None:
    (place / "pairs.json").write_text(pairs(12), "utf-8")
    run = ("--val_fraction", "0.25", "--epochs", "16", "--eval_every", "2", "--learning_rate", "0.05")
    result = train(tiny, *run)
    assert result.exit_code == 0
    assert "9 conversations of" in result.stderr and "3 held out to validate" in result.stderr
    metrics = rows(place / "trained_model.metrics.jsonl")
    losses = {row["step"]: row["validation_loss"] for row in metrics if "validation_loss" in row}
    said = re.findall(r"^step (\d+)  validation loss ([\d.]+)(, the best so far)?$", result.stderr, re.M)
    assert [int(step) for step, _, _ in said] == sorted(losses)
    assert [float(loss) for _, loss, _ in said] == [pytest.approx(loss, abs=6e-4) for loss in losses.values()]
    best = min(losses, key=lambda step: losses[step])
    assert best != max(losses)  # else this run shows nothing
    assert [int(step) for step, _, better in said if better][-1] == best
    kept = checkpoint.load(place / "trained_model.pt")
    assert (kept.about["step"], round(kept.about["validation_loss"], 5)) == (best, losses[best])
    assert not same_weights(place / "trained_model.pt", place / "trained_model.last.pt")
    assert f"best validation loss {losses[best]:.3f}" in result.stderr


def test_a_share_that_was_asked_for_is_held_out_of_few_pairs_too(tiny: Path, place: Path) -> None:
    result = train(tiny, "--val_fraction", "0.34", "--epochs", "2")
    assert result.exit_code == 0
    assert "4 conversations of" in result.stderr and "2 held out to validate" in result.stderr


def test_early_stopping_ends_the_run_with_the_best(tiny: Path, place: Path) -> None:
    (place / "pairs.json").write_text(pairs(12), "utf-8")
    run = ("--val_fraction", "0.25", "--epochs", "40", "--eval_every", "1", "--learning_rate", "0.1", "--patience", "3")
    result = train(tiny, *run)
    assert result.exit_code == 0
    assert "stopped early: 3 validations in a row brought no progress" in result.stderr
    losses = [row["validation_loss"] for row in rows(place / "trained_model.metrics.jsonl") if "validation_loss" in row]
    assert len(losses) < 40
    assert min(losses[-3:]) >= min(losses) == losses[-4]


def test_probes_are_answered_during_training(tiny: Path, place: Path) -> None:
    result = train(tiny, "--probe", "What is number 1?", "--probe", "Who?", "--epochs", "3", "--eval_every", "2")
    assert result.exit_code == 0
    samples = rows(place / "trained_model.samples.jsonl")
    asked = [(2, "What is number 1?"), (2, "Who?"), (3, "What is number 1?"), (3, "Who?")]
    assert [(row["step"], row["question"]) for row in samples] == asked
    assert re.findall(r"^step (\d+)  (.+\?)  ->  ", result.stderr, re.M) == [(str(step), q) for step, q in asked]
    assert "trained_model.samples.jsonl" in result.stderr


def test_the_earlier_run_of_the_same_name_is_replaced(tiny: Path, place: Path) -> None:
    assert train(tiny, "--epochs", "5", "--probe", "Who?").exit_code == 0
    assert train(tiny, "--epochs", "2").exit_code == 0
    assert [row["step"] for row in rows(place / "trained_model.metrics.jsonl") if "loss" in row] == [1, 2]
    assert not (place / "trained_model.samples.jsonl").exists()


def test_accumulation_changes_the_memory_and_not_the_model(tiny: Path, place: Path) -> None:
    common = ("--epochs", "3", "--batch_size", "4", "--max_length", "24", "--dtype", "float32")
    for name, parts in (("one", 1), ("four", 4)):
        assert train(tiny, *common, "--accumulate", parts, "--save_path", f"{name}.pt").exit_code == 0
    one, four = (checkpoint.load(place / f"{name}.pt").weights for name in ("one", "four"))
    assert all((one[name] - four[name]).abs().max() < 1e-4 for name in one)


# -- training, then chatting ---------------------------------------------------------------------------------------


def test_interactive_chats_with_the_file_that_was_saved(tiny: Path, place: Path) -> None:
    result = train(tiny, "--epochs", "3", "--interactive", stdin="What is number 2?\nexit\nnever read\n")
    assert result.exit_code == 0
    assert re.search(r"^trained_model\.pt, trained from tiny: .* M parameters", result.stderr, re.M)
    assert result.stdout == answer(place / "trained_model.pt", "What is number 2?", tokens=256)[0] + "\n"


def test_interactive_without_files_chats_with_the_model_that_is_named(tiny: Path, place: Path) -> None:
    before = contents(place)
    result = invoke("train", "--model", tiny, "--interactive", stdin="Hello\n")
    assert result.exit_code == 0
    assert result.stdout == answer(tiny, "Hello", tokens=256)[0] + "\n"
    assert contents(place) == before


def test_interactive_without_files_obeys_a_named_model_when_an_earlier_one_is_there(tiny: Path, place: Path) -> None:
    save_tiny(place / "trained_model.pt", seed=5)
    result = invoke("train", "--model", tiny, "--interactive", stdin="Hello\n")
    assert result.exit_code == 0
    named, earlier = (answer(path, "Hello", tokens=256)[0] for path in (tiny, place / "trained_model.pt"))
    assert named != earlier
    assert result.stdout == named + "\n"


def test_interactive_alone_chats_with_what_was_trained_here(place: Path) -> None:
    save_tiny(place / "trained_model.pt", seed=5)
    result = invoke("train", "--interactive", stdin="Hello\n")
    assert result.exit_code == 0
    assert result.stdout == answer(place / "trained_model.pt", "Hello", tokens=256)[0] + "\n"


# -- chat ----------------------------------------------------------------------------------------------------------


def test_a_pipe_gets_the_answers_and_nothing_else(tiny: Path, place: Path) -> None:
    lines = ["Hello", "", "/nonsense", "help", "/help", "And you?", "reset", "Hello", "exit", "never read"]
    result = spawn(["gpt_generate.py", str(tiny), *GREEDY], place, stdin="\n".join(lines) + "\n")
    assert result.returncode == 0
    assert result.stdout.splitlines() == [*answer(tiny, "Hello", "And you?"), *answer(tiny, "Hello")]
    assert "1.6 M parameters" in result.stderr
    assert "/nonsense is not a command" in result.stderr
    assert result.stderr.count("start a new conversation") == 2
    assert "A new conversation." in result.stderr
    assert "\r" not in result.stderr and "\x1b" not in result.stderr + result.stdout


@pytest.mark.parametrize("word", ["reset", "clear", "/reset", "/clear", "/new", "RESET"])
def test_a_reset_forgets_the_conversation(word: str, tiny: Path, place: Path) -> None:
    result = invoke("chat", tiny, *GREEDY, stdin=f"Hello\n{word}\nHello\n")
    assert result.stdout.splitlines() == answer(tiny, "Hello") * 2


@pytest.mark.parametrize("word", ["exit", "quit", "/exit", "/quit", "/bye", "Exit"])
def test_a_leaving_word_ends_the_chat(word: str, tiny: Path, place: Path) -> None:
    result = invoke("chat", tiny, stdin=f"{word}\nHello\n")
    assert (result.exit_code, result.stdout) == (0, "")


@pytest.mark.parametrize("line", ["/foo", "/resetall now", "/", "/temperatur 1"])
def test_an_unknown_command_is_not_sent_to_the_model(line: str, tiny: Path, place: Path) -> None:
    result = invoke("chat", tiny, stdin=f"{line}\n")
    assert (result.exit_code, result.stdout) == (0, "")
    assert f"{line.split()[0]} is not a command" in result.stderr


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("/temp 0.3", "temperature: 0.3"),
        ("temp 0", "temperature: 0"),
        ("/temp", "/set temp: expected a value"),
        ("/topic", "/set topic: expected a value"),
        ("top_p 0.9", "top_p: 0.9"),
        ("/TOP_K 5", "top_k: 5"),
        ("length brief", "length: brief"),
        ("/topic cooking at home", "topic: cooking at home"),
        ("/temp hot", "temperature: expected a number, got 'hot'"),
        ("/top_p 2", "top_p: expected a number above 0, at most 1, got 2.0"),
        ("/length endless", "expected one of brief, conversational, normal, detailed"),
    ],
)
def test_a_command_with_a_value_is_carried_out_and_not_sent(line: str, said: str, tiny: Path, place: Path) -> None:
    result = invoke("chat", tiny, stdin=f"{line}\n")
    assert (result.exit_code, result.stdout) == (0, "")
    assert said in result.stderr


def test_a_set_temperature_and_length_hold_for_the_answers_that_follow(tiny: Path, place: Path) -> None:
    lines = invoke("chat", tiny, "--seed", "1", stdin="/temp 0\nHello\n/new\n/length brief\nHello\n").stdout
    greedy = invoke("chat", tiny, "-t", "0", stdin="Hello\n").stdout
    short = invoke("chat", tiny, "-t", "0", "--max_tokens", "30", stdin="Hello\n").stdout
    assert lines == greedy + short


@pytest.mark.parametrize(
    "line",
    [
        "length matters",
        "temp is high today",
        "topic one",
        "top_p of what",
        "reset my password",
        "Please help",
        "What does exit mean?",
    ],
)
def test_a_message_that_contains_a_command_is_a_message(line: str, tiny: Path, place: Path) -> None:
    result = invoke("chat", tiny, *GREEDY, stdin=f"{line}\n")
    assert result.stdout.splitlines() == answer(tiny, line)


def test_two_slashes_begin_a_message_with_one(tiny: Path, place: Path) -> None:
    result = invoke("chat", tiny, *GREEDY, stdin="//help me\n")
    assert result.stdout.splitlines() == answer(tiny, "/help me")


def test_a_prompt_on_the_command_line_or_from_a_pipe_is_answered_once(tiny: Path, place: Path) -> None:
    expected = answer(tiny, "What do you like?")[0] + "\n"
    given = invoke("chat", tiny, "-p", "What do you like?", *GREEDY, stdin="never read\n")
    piped = invoke("chat", tiny, "-p", "-", *GREEDY, stdin="What do you like?\n")
    assert (given.exit_code, piped.exit_code) == (0, 0)
    assert given.stdout == piped.stdout == expected


def test_the_same_seed_gives_the_same_answer(tiny: Path, place: Path) -> None:
    drawn = [
        invoke("chat", tiny, "-p", "Hi", "-t", "5", "-k", "0", "--max_tokens", "9", "--seed", seed).stdout
        for seed in (1, 1, 2)
    ]
    assert drawn[0] == drawn[1] != drawn[2]


def test_a_message_that_does_not_fit_ends_its_answer_and_not_the_chat(tiny: Path, place: Path) -> None:
    result = invoke("chat", tiny, *GREEDY, stdin="word " * 300 + "\nHello\n")
    assert result.exit_code == 0
    assert "the message has" in result.stderr
    assert result.stdout.splitlines() == ["", *answer(tiny, "Hello")]  # a line for each question


def test_without_a_checkpoint_the_one_in_this_folder_is_used_and_said(place: Path) -> None:
    save_tiny(place / "trained_model.pt", seed=5)
    result = invoke("chat", "-p", "Hello", *GREEDY)
    assert result.stderr.startswith("using trained_model.pt, your newest model here (gpt2chat ls shows all)\n")
    assert result.stdout.splitlines() == answer(place / "trained_model.pt", "Hello")


def test_without_any_checkpoint_the_demo_model_is_used_and_said(place: Path) -> None:
    result = invoke("chat", "-p", "Hello", *GREEDY)
    assert result.exit_code == 0
    assert result.stderr.startswith("using demo, the built-in model: no checkpoint of your own is here")
    assert result.stdout.strip()


@pytest.mark.parametrize("encoding", ["ascii", "cp1252"])
def test_a_pipe_that_cannot_hold_a_character_gets_the_rest(encoding: str, tiny: Path, place: Path) -> None:
    assert not answer(tiny, "Hello", tokens=40)[0].isascii()  # else this shows nothing
    command = [sys.executable, "-m", "gpt2chat", "chat", str(tiny), "-p", "Hello", "-t", "0", "--max_tokens", "40"]
    result = subprocess.run(command, cwd=place, env=environment(PYTHONIOENCODING=encoding), capture_output=True)
    assert b"Traceback" not in result.stderr
    assert result.returncode == 0


@pytest.mark.parametrize("command", [["chat"], ["inspect"]], ids=lambda command: command[0])
def test_a_reader_that_leaves_is_not_an_error(command: list[str], tiny: Path, place: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "-m", "gpt2chat", *command, str(tiny)],
        cwd=place,
        env=environment(),
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert child.stdout and child.stdin and child.stderr
    child.stdout.close()
    child.stdin.write(b"Hello\nHello\n")
    child.stdin.close()
    said = child.stderr.read().decode()
    child.stderr.close()
    assert child.wait(timeout=60) == 0
    assert "Traceback" not in said and "Broken" not in said and "Exception" not in said


@pytest.mark.parametrize("until", [b"tiny: ", b"step 1/"], ids=["before training", "in training"])
def test_training_whose_reader_leaves_does_not_pretend_to_have_finished(until: bytes, tiny: Path, place: Path) -> None:
    child = subprocess.Popen(
        [sys.executable, "train_chatbot.py", "--model", str(tiny), "--conversation_file", "pairs.json", "--epochs=40"],
        cwd=place,
        env=environment(PYTHONUNBUFFERED="1"),  # as in many containers
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    assert child.stdout
    while not child.stdout.readline().startswith(until):
        assert child.poll() is None
    child.stdout.close()
    assert (child.wait(timeout=60) == 0) == (place / "trained_model.pt").exists()


# -- eval and inspect ----------------------------------------------------------------------------------------------


def test_eval_prints_one_json_object(tiny: Path, place: Path) -> None:
    data = ("--conversation_file", "pairs.json", "--text_file", "text.txt", "--limit", "2")
    result = invoke("eval", tiny, *data, "--json")
    assert result.exit_code == 0
    assert result.stdout.count("\n") == 1
    found = json.loads(result.stdout)
    figures = {"perplexity_per_token", "perplexity_per_byte", "bits_per_byte", "nats", "tokens", "bytes"}
    assert found.keys() == {"checkpoint", "runtime", "text", "conversations"}
    assert found["checkpoint"] == str(tiny)
    assert found["text"].keys() == found["conversations"]["answers"].keys() == figures
    assert found["text"]["bytes"] == len(TEXT.encode())
    assert found["text"]["tokens"] == len(Tokenizer.gpt2().encode(TEXT))
    assert found["conversations"].keys() == {"pairs", "exact", "in_a_row", "stopped", "answers", "tokens_per_second"}
    assert (found["conversations"]["pairs"], found["conversations"]["exact"]) == (2, 0.0)
    assert result.stderr.count("asked ") == 2


def test_eval_prints_a_table_for_people(tiny: Path, place: Path) -> None:
    result = invoke("eval", tiny, "--conversation_file", "pairs.json", "--limit", "1", "--show", "0")
    assert result.exit_code == 0
    assert re.search(r"^  exact +0\.0% of 1 greedy answers", result.stdout, re.M)
    assert "text " not in result.stdout
    assert result.stderr == ""


def test_inspect_tells_the_same_to_people_and_to_programs(tiny: Path, place: Path) -> None:
    assert train(tiny, "--epochs", "2").exit_code == 0
    for name, resumable in (("trained_model.pt", False), ("trained_model.last.pt", True)):
        found = json.loads(invoke("inspect", name, "--json").stdout)
        assert found.keys() == {"model", "config", "template", "examples", "steps", "can_resume", "taught", "about"}
        assert (found["template"], found["steps"], found["can_resume"]) == ("chat", 2, resumable)
        assert found["config"]["n_ctx"] == 128
        assert list(found["about"]["data_sha256"]) == ["pairs.json"]
        lines = invoke("inspect", name).stdout.splitlines()
        assert [line.split()[0] for line in lines] == list(found)
        assert f"steps      {found['steps']}" in lines


# -- resume --------------------------------------------------------------------------------------------------------

LONG = ("--epochs", "80", "--dropout", "0.1", "--val_fraction", "0.2", "--eval_every", "25", "--dtype", "float32")


def start_long_run(tiny: Path, folder: Path) -> subprocess.Popen[bytes]:
    (folder / "pairs.json").write_text(pairs(12), "utf-8")
    shutil.copy(ROOT / "train_chatbot.py", folder)
    command = ["train_chatbot.py", "--model", str(tiny), "--conversation_file", "pairs.json", *LONG]
    with (folder / "log.txt").open("wb") as log:
        return subprocess.Popen([sys.executable, *command], cwd=folder, env=environment(), stderr=log)


@pytest.fixture(scope="module")
def uninterrupted(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the long run that nothing disturbed."""
    folder = tmp_path_factory.mktemp("whole")
    assert start_long_run(tiny, folder).wait(timeout=120) == 0
    return folder


@pytest.mark.slow
@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)], ids=["SIGINT", "SIGTERM"])
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    number: int, code: int, tiny: Path, tmp_path: Path, uninterrupted: Path
) -> None:
    child = start_long_run(tiny, tmp_path)
    metrics = tmp_path / "trained_model.metrics.jsonl"
    while child.poll() is None and (not metrics.exists() or metrics.read_bytes().count(b"\n") < 10):
        time.sleep(0.02)
    child.send_signal(number)
    assert child.wait(timeout=60) == code
    said = (tmp_path / "log.txt").read_text("utf-8")
    assert "Traceback" not in said
    stopped = re.search(r"^saved after step (\d+) of (\d+)\. Go on with:\n  (.+)$", said, re.M)
    assert stopped, said
    assert int(stopped[1]) < int(stopped[2]) == 80

    typed = subprocess.run(stopped[3], shell=True, cwd=tmp_path, env=environment(), capture_output=True, text=True)
    assert typed.returncode == 0, typed.stderr
    for name in ("trained_model.pt", "trained_model.last.pt"):
        assert same_weights(tmp_path / name, uninterrupted / name)
    records = [
        [{key: row[key] for key in row if key != "tokens_per_second"} for row in rows(folder / metrics.name)]
        for folder in (tmp_path, uninterrupted)
    ]
    assert records[0] == records[1]


def test_eval_reads_data_as_training_does(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "t.csv").write_bytes("Frage,user,bot\n1,Grüß dich,Schön\n".encode("cp1252"))
    (tmp_path / "t.txt").write_bytes("Grüß dich".encode("cp1252"))
    options = ["--conversation_file", tmp_path / "t.csv", "--text_file", tmp_path / "t.txt", "--json"]
    result = invoke("eval", str(tiny), *map(str, options))
    assert result.exit_code == 1 and "--encoding cp1252 would read it" in result.stderr
    result = invoke("eval", str(tiny), *map(str, options), "--encoding", "cp1252", "--format", "pairs")
    assert result.exit_code == 0 and json.loads(result.stdout)["conversations"]["pairs"] == 1


SHORT = ("--epochs", "6", "--dropout", "0.1")


def interrupted_at(step: int, *signals: int, tiny: Path, options: Sequence[object]) -> Result:
    with signals_in_step(step, *signals):
        result = train(tiny, *options)
    assert result.exit_code == 128 + signals[0]
    return result


def printed_command(result: Result) -> list[str]:
    line = result.stderr.partition("Go on with:\n")[2].splitlines()
    assert line, result.stderr
    return shlex.split(line[0])


@pytest.mark.parametrize("name", ["bot.pt", "my first bot.pt", "it's $HOME.pt"])
def test_the_printed_command_resumes_whatever_the_file_is_called(name: str, tiny: Path, place: Path) -> None:
    program, command, *rest = printed_command(
        interrupted_at(2, signal.SIGINT, tiny=tiny, options=[*SHORT, "--save_path", name])
    )
    assert (program, command) == ("gpt2chat", "train")
    assert invoke("train", *rest).exit_code == 0
    assert train(tiny, *SHORT, "--save_path", "whole.pt").exit_code == 0
    assert same_weights(place / name, place / "whole.pt")


def test_a_run_interrupted_in_its_last_step_is_finished_by_resuming(tiny: Path, place: Path) -> None:
    interrupted_at(6, signal.SIGINT, tiny=tiny, options=SHORT)
    assert train(tiny, "--resume").exit_code == 0
    assert (place / "trained_model.pt").exists()
    assert train(tiny, *SHORT, "--save_path", "whole.pt").exit_code == 0
    assert same_weights(place / "trained_model.pt", place / "whole.pt")


def test_a_second_interrupt_that_leaves_at_once_spoils_nothing(tiny: Path, place: Path) -> None:
    assert train(tiny, *SHORT, "--save_path", "whole.pt").exit_code == 0
    result = interrupted_at(3, signal.SIGINT, signal.SIGINT, tiny=tiny, options=SHORT)
    program, command, *rest = printed_command(result)
    assert invoke("train", *rest).exit_code == 0
    assert same_weights(place / "trained_model.pt", place / "whole.pt")


def test_an_interrupt_while_the_best_is_being_written_does_not_lose_it(
    tiny: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "pairs.json").write_text(pairs(12), "utf-8")
    options = ("--epochs", "4", "--val_fraction", "0.25", "--eval_every", "2", "--patience", "1")
    assert train(tiny, *options, "--save_path", "whole.pt").exit_code == 0
    save, calls = checkpoint.save, []

    def interrupted_save(loaded: checkpoint.Checkpoint, path: Path) -> None:
        calls.append(path.name)
        if len(calls) == 1:
            signal.raise_signal(signal.SIGINT)
        save(loaded, path)

    monkeypatch.setattr(checkpoint, "save", interrupted_save)
    assert train(tiny, *options).exit_code == 130
    assert calls == ["trained_model.pt", "trained_model.last.pt"]
    assert train(tiny, "--resume").exit_code == 0
    assert same_weights(place / "trained_model.pt", place / "whole.pt")


@pytest.mark.parametrize("options", [(), ("--val_fraction", "0.25", "--eval_every", "2")], ids=["last", "best"])
@pytest.mark.parametrize("number", [1, 4, 19])
def test_an_interrupt_in_the_middle_of_writing_loses_nothing(
    number: int, options: tuple[str, ...], tiny: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "pairs.json").write_text(pairs(12), "utf-8")
    options = ("--epochs", "4", *options)
    assert train(tiny, *options, "--save_path", "whole.pt").exit_code == 0
    write, calls = files._KeepsFirstError.write, []

    def interrupted_write(self: files._KeepsFirstError, data: bytes) -> int:
        calls.extend([1] if len(data) else [])  # a run that tries whether it may write writes nothing
        if len(data) and len(calls) == number:
            signal.raise_signal(signal.SIGINT)
        return write(self, data)

    monkeypatch.setattr(files._KeepsFirstError, "write", interrupted_write)
    monkeypatch.setattr("gpt2chat.run._write_text", lambda path, text: path.write_text(text, "utf-8"))
    result = train(tiny, *options)
    assert (result.exit_code, "Go on with" in result.stderr) == (130, True)
    assert not list(place.glob(".*tmp*"))
    assert train(tiny, "--resume").exit_code == 0
    assert same_weights(place / "trained_model.pt", place / "whole.pt")


@pytest.fixture
def stopped(tiny: Path, place: Path) -> Path:
    """A folder with a run that was interrupted after its second step."""
    interrupted_at(2, signal.SIGINT, tiny=tiny, options=SHORT)
    return place


def refused(result: Result, code: int, *words: str) -> None:
    assert result.exit_code == code
    errors = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert all(word in errors[0] for word in words), errors[0]


def test_resuming_with_changed_data_is_refused(tiny: Path, stopped: Path) -> None:
    text = (stopped / "pairs.json").read_text("utf-8")
    (stopped / "pairs.json").write_text(text.replace("It is 7.", "It is 8."), "utf-8")
    before = contents(stopped)
    refused(train(tiny, "--resume"), 1, "pairs.json has changed")
    assert contents(stopped) == before
    (stopped / "pairs.json").write_text(text, "utf-8")
    assert train(tiny, "--resume").exit_code == 0


@pytest.mark.parametrize(
    ("flag", "value"),
    [
        ("--batch_size", "2"),
        ("--learning_rate", "0.5"),
        ("--seed", "3"),
        ("--model", "demo"),
        ("--text_file", "text.txt"),
        ("--dropout", "0.2"),
        ("--dtype", "float32"),
    ],
)
def test_resuming_with_a_contradicting_option_is_refused(flag: str, value: str, tiny: Path, stopped: Path) -> None:
    before = contents(stopped)
    refused(train(tiny, "--resume", "trained_model.last.pt", flag, value), 2, flag[2:], value)
    assert contents(stopped) == before


def test_resuming_with_the_same_options_again_is_fine(tiny: Path, stopped: Path) -> None:
    result = invoke("train", "--model", tiny, "--conversation_file", "pairs.json", *SHORT, "--resume")
    assert result.exit_code == 0
    assert len([row for row in rows(stopped / "trained_model.metrics.jsonl") if "loss" in row]) == 6


def test_resuming_a_finished_run_says_that_nothing_is_left(tiny: Path, place: Path) -> None:
    assert train(tiny, "--epochs", "2").exit_code == 0
    before = contents(place)
    result = train(tiny, "--resume")
    assert result.exit_code == 0
    assert "trained_model.last.pt is at its last step, 2: nothing is left to train" in result.stderr
    assert contents(place) == before


def test_resuming_from_what_is_no_training_state_is_refused(tiny: Path, stopped: Path) -> None:
    refused(train(tiny, "--resume", tiny), 1, "expected a .last.pt")
    refused(train(tiny, "--resume", "missing.last.pt"), 1, "missing.last.pt: no such file")


def test_interactive_with_a_model_that_is_missing_is_one_line(place: Path) -> None:
    refused(invoke("train", "--interactive", "--model", "missing.pt", stdin="Hello\n"), 1, "missing.pt: no such file")
