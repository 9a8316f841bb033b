"""What is measured is what a chat says, a threshold that does worse is not saved, and /why tells what was found."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click
import numpy as np
import pytest
import torch
from click.testing import Result
from helpers_cli import invoke
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2chat import checkpoint, quality
from gpt2chat.chatbot import GPT2Chatbot
from gpt2chat.checkpoint import Checkpoint
from gpt2chat.cli.chat.loop import Talk
from gpt2chat.cli.chat.screen import Screen
from gpt2chat.cli.chatted import read_questions
from gpt2chat.confidence import (
    Case,
    Judge,
    as_it_is,
    calibrate,
    load_calibration,
    out_of_fold,
    receipt_path,
)
from gpt2chat.conversation import TEMPLATES
from gpt2chat.errors import DataError
from gpt2chat.matching import outside
from gpt2chat.model import GPT2, GPT2Config
from gpt2chat.quality import Share, left_out, measure
from gpt2chat.sampling import GenerationConfig
from gpt2chat.tokenizer import Tokenizer

SHOP = [
    ("When do you open?", "At nine."),
    ("When do you close?", "At six."),
    ("Where is my parcel?", "On its way."),
    ("Can I pay by card?", "Yes."),
    ("Do you sell gift vouchers?", "Yes."),
    ("opening hours", "At nine."),
]
UNSURE = "Please ask at the till."
GREEDY = GenerationConfig(temperature=0, max_new_tokens=8)
ABOUT = {"model": "bot.pt", "checkpoint": "abc", "runtime": "float32", "data_sha256": "def"}
PHRASED = st.lists(
    st.tuples(st.sampled_from("abcdefghij"), st.sampled_from("xyz")), min_size=1, max_size=20, unique=True
)


@pytest.fixture(scope="module")
def yes(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that says Yes. to everything, and was taught the answers of a shop."""
    path, tokenizer = tmp_path_factory.mktemp("yes") / "bot.pt", Tokenizer.gpt2()
    config = GPT2Config(n_layer=1, n_head=1, n_embd=64, n_ctx=128, vocab_size=50257, tie_word_embeddings=False)
    model = GPT2(config).init_weights(0)
    with torch.no_grad():
        for name, weight in model.state_dict().items():
            if "c_proj" in name or name in ("wpe.weight", "lm_head.weight"):
                weight.zero_()
        chain = [*tokenizer.encode("Bot:")[-1:], *tokenizer.encode(" Yes."), tokenizer.end_id]
        for before, after in itertools.pairwise(chain):
            model.lm_head.weight[after] = model.ln_f(model.wte.weight[before])
    weights = {name: tensor.detach() for name, tensor in model.state_dict().items()}
    about = {"base": "tiny", "faq": True}
    checkpoint.save(Checkpoint(config, weights, TEMPLATES["chat"], taught=SHOP, about=about), path)
    return path


@pytest.fixture(scope="module")
def loaded(yes: Path) -> Checkpoint:
    return checkpoint.load(yes)


def bot_of(loaded: Checkpoint, **options: Any) -> GPT2Chatbot:
    bot = GPT2Chatbot("demo", generation=GREEDY, dtype="float32", quantize="none", **options)
    bot.use(loaded)
    return bot


# -- what comes back -----------------------------------------------------------------------------------------------


def test_a_grounded_bot_knows_what_it_was_taught_and_blends_nothing(loaded: Checkpoint) -> None:
    bot = bot_of(loaded, grounded=True, fallback=UNSURE)
    found = measure(bot, [(question.upper(), answer) for question, answer in SHOP])
    assert found.to_dict() == {
        "questions": 6,
        "right": 1.0,
        "given": 1.0,
        "right_of_given": 1.0,
        "blends": 0.0,
        "word_list": 1.0,
    }
    assert bot.messages == []


def test_figures_are_counted_from_what_was_said(loaded: Checkpoint) -> None:
    """It says Yes. to all of it, and that is right for two of six, and no taught answer where none has it."""
    bot = bot_of(loaded, match=False)
    found = measure(bot, SHOP)
    assert (found.right, found.given, found.right_of_given) == (Share(2, 6), Share(6, 6), Share(2, 6))
    assert (found.blends, found.word_list) == (Share(0, 6), Share(6, 6))
    other = bot_of(dataclasses.replace(loaded, taught=SHOP[:3]), match=False)
    assert measure(other, SHOP).blends == Share(6, 6)


def test_questions_from_outside_are_right_when_declined(loaded: Checkpoint) -> None:
    asked = [(question, None) for question in outside()]
    found = measure(bot_of(loaded, grounded=True), asked)
    assert found.right.count + found.given.count == found.right.of == len(outside())
    assert found.right.value >= 0.9
    assert found.right_of_given.count == found.word_list.count == found.blends.count == 0
    free = measure(bot_of(loaded), asked[:5])
    assert (free.right, free.given) == (Share(0, 5), Share(5, 5))


def test_each_question_is_asked_in_a_fresh_chat_and_progress_is_told(loaded: Checkpoint) -> None:
    bot, seen = bot_of(loaded, match=False), list[int]()

    def watched(items: Any) -> Any:
        for item in items:
            yield item
            seen.append(len(bot.messages))

    measure(bot, SHOP, watched)
    assert seen == [2] * 6


def test_of_nothing_there_is_no_share(loaded: Checkpoint) -> None:
    found = measure(bot_of(loaded), [])
    assert set(found.to_dict().values()) == {0}
    assert Share(1, 3).value == 0.3333 and Share(0, 0).value == 0


@settings(max_examples=25)
@given(pairs=PHRASED, seed=st.integers(0, 3))
def test_all_phrasings_but_one_of_each_answer_are_left_out_once(pairs: list[tuple[str, str]], seed: int) -> None:
    answers = [answer for _, answer in pairs]
    expected = sum(answers.count(answer) - 1 for answer in set(answers))
    found = left_out(pairs, seed)
    if expected == 0:
        assert found is None
    else:
        assert found and found == left_out(pairs, seed)
        assert all(share.of == expected and 0 <= share.count <= expected for share in found)


def test_what_is_left_out_finds_the_other_phrasings() -> None:
    pairs = [(way.format(thing), thing) for thing in ("parcel", "invoice") for way in ("{}", "my {}", "the {}!")]
    found = left_out(pairs)
    assert found == (Share(4, 4), Share(4, 4))
    assert left_out([("a", "b"), ("c", "d")]) is None and left_out([]) is None


def test_of_many_phrasings_some_are_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(quality, "MOST_LEFT_OUT", 50)
    rng = random.Random(0)
    pairs = [(f"question {rng.random()} about {at % 4}", f"answer {at % 4}") for at in range(100)]
    found = left_out(pairs)
    assert found and found[0].of == found[1].of == 50


# -- the command ---------------------------------------------------------------------------------------------------


@pytest.fixture
def place(yes: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the model, questions in other words, and questions from outside."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "bot.pt").write_bytes(yes.read_bytes())
    rows = [{"user": ["When do you OPEN", "opening times"], "bot": "At nine."}, {"user": "Take cards?", "bot": "Yes."}]
    (tmp_path / "asked.json").write_text(json.dumps(rows), "utf-8")
    (tmp_path / "other.txt").write_text("\n".join(outside()[:10]) + "\n\n", "utf-8")
    return tmp_path


def evaluate(*options: object, code: int = 0) -> Result:
    result = invoke("eval", "bot.pt", *options)
    assert result.exit_code == code, result.stderr
    return result


def error(result: Result) -> str:
    [line] = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    assert "Traceback" not in result.stderr
    return line


FIGURES = {"questions", "right", "given", "right_of_given", "blends", "word_list"}


def test_figures_as_json(place: Path) -> None:
    found = json.loads(evaluate("--paraphrases", "asked.json", "--outside", "other.txt", "--grounded", "--json").stdout)
    assert set(found) == {"checkpoint", "runtime", "chat"}
    chat = found["chat"]
    assert set(chat) == {"grounded", "fallback", "match", "threshold", "paraphrases", "outside", "left_out"}
    assert (chat["grounded"], chat["fallback"], chat["match"]) == (True, None, True)
    assert 0.5 <= chat["threshold"] <= 1
    assert set(chat["paraphrases"]) == FIGURES
    assert set(chat["outside"]) == {"questions", "right", "given", "blends"}
    assert (chat["paraphrases"]["questions"], chat["outside"]["questions"]) == (3, 10)
    assert chat["paraphrases"]["right"] >= 0.6667 and chat["paraphrases"]["blends"] == 0
    assert chat["outside"]["right"] >= 0.9
    assert chat["left_out"]["questions"] == 2


def test_figures_are_those_of_the_bot(place: Path, loaded: Checkpoint) -> None:
    asked = [("When do you OPEN", "At nine."), ("opening times", "At nine."), ("Take cards?", "Yes.")]
    for options, settings_ in (
        (["--grounded"], {"grounded": True}),
        (["--fallback", UNSURE], {"fallback": UNSURE}),
        (["--fallback", UNSURE, "--no_grounded"], {"fallback": UNSURE, "grounded": False}),
        (["--no_match"], {"match": False}),
    ):
        found = json.loads(evaluate("--paraphrases", "asked.json", "--json", *options).stdout)["chat"]
        bot = bot_of(loaded, **settings_)  # type: ignore[arg-type]
        assert found["paraphrases"] == measure(bot, asked).to_dict()
        assert (found["grounded"], found["fallback"], found["match"]) == (bot.grounded, bot.fallback, bot.match)
        assert found.get("threshold") == (round(bot.threshold, 4) if options != ["--no_match"] else None)


def test_figures_as_a_table(place: Path) -> None:
    shown = evaluate("--paraphrases", "asked.json", "--outside", "other.txt", "--fallback", UNSURE).stdout
    assert "in other words" in shown and "of 3 right (word list" in shown
    assert "answered, " in shown and "of the answers given are no taught answer" in shown
    assert "of 10 declined" in shown and "left out" in shown
    shown = evaluate("--paraphrases", "asked.json").stdout
    assert "answered" not in shown and "declined" not in shown


def test_it_goes_together_with_the_other_figures(place: Path) -> None:
    found = evaluate("--paraphrases", "asked.json", "--conversation_file", "asked.json", "--json", "--show", 0)
    assert {"chat", "conversations"} <= set(json.loads(found.stdout))


def test_a_model_of_no_phrasings_has_nothing_to_leave_out(place: Path, loaded: Checkpoint) -> None:
    checkpoint.save(dataclasses.replace(loaded, taught=SHOP[:3]), place / "bot.pt")
    found = json.loads(evaluate("--outside", "other.txt", "--grounded", "--json").stdout)["chat"]
    assert "left_out" not in found and "paraphrases" not in found


def test_a_model_that_keeps_nothing_declines_all(place: Path, loaded: Checkpoint) -> None:
    checkpoint.save(dataclasses.replace(loaded, taught=[]), place / "bot.pt")
    found = json.loads(evaluate("--outside", "other.txt", "--paraphrases", "asked.json", "--grounded", "--json").stdout)
    assert found["chat"]["outside"]["right"] == 1
    assert found["chat"]["paraphrases"]["right"] == found["chat"]["paraphrases"]["given"] == 0


WRITTEN: dict[str, Callable[[list[str]], str]] = {
    "lines": "\n".join,
    "lines with a mark": lambda asked: "\ufeff" + "\r\n".join(asked) + "\r\n\r\n",
    "a list": json.dumps,
    "records": lambda asked: json.dumps([{"user": question, "bot": "no"} for question in asked]),
    "json lines": lambda asked: "\n".join(json.dumps({"user": question}) for question in asked),
}


@pytest.mark.parametrize("form", WRITTEN)
def test_questions_in_every_form(tmp_path: Path, form: str) -> None:
    asked = ["Who wrote Hamlet?", "猫はどこですか", '"quoted"', "42?"]
    path = tmp_path / "asked"
    path.write_bytes(WRITTEN[form](asked).encode())
    assert read_questions(path) == asked


@pytest.mark.parametrize("text", ["42", '"Who wrote Hamlet?"'])
def test_one_line_that_happens_to_be_json_is_a_question(tmp_path: Path, text: str) -> None:
    (tmp_path / "asked").write_text(text)
    assert read_questions(tmp_path / "asked") == [text.strip('"')]


BAD = {
    "missing": None,
    "empty": b"",
    "blank": b" \n\n",
    "an empty list": b"[]",
    "numbers": b"[1, 2]",
    "records without questions": b'[{"bot": "a"}]',
    "an empty record": b"{}",
    "another encoding": "Für wen?".encode("latin-1"),
    "deep": b"[" * 100_000,
}


@pytest.mark.parametrize("kind", BAD)
def test_bad_questions_are_one_line(place: Path, kind: str) -> None:
    if (content := BAD[kind]) is not None:
        (place / "bad.txt").write_bytes(content)
    if kind == "deep":
        with pytest.raises(DataError, match=r"bad\.txt"):
            read_questions(place / "bad.txt")
    assert "bad.txt" in error(evaluate("--outside", "bad.txt", code=1))


def test_a_folder_of_questions_is_one_line(place: Path) -> None:
    assert str(place) in error(evaluate("--outside", place, code=1))


@pytest.mark.parametrize(
    "content", ["", "[]", '[{"user": [], "bot": "a"}]', '[{"user": "a"}]', '{"user": 1, "bot": "b"}']
)
def test_bad_paraphrases_are_one_line(place: Path, content: str) -> None:
    (place / "bad.json").write_text(content)
    assert "bad.json" in error(evaluate("--paraphrases", "bad.json", code=1))


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ([], "expected --conversation_file, --text_file, --paraphrases or --outside"),
        (["--outside", "other.txt", "--confidence", "0.5"], "confidence: expected --fallback or --grounded"),
        (["--outside", "other.txt", "--calibrate"], "conversation_file"),
    ],
)
def test_settings_that_cannot_be_are_one_line(place: Path, options: list[str], said: str) -> None:
    assert said in error(evaluate(*options, code=2))


# -- thresholds ----------------------------------------------------------------------------------------------------


def cases(seed: int, noise: float) -> list[Case]:
    rng, made = np.random.default_rng(seed), []
    for _ in range(80):
        question, answer = SHOP[rng.integers(6)]
        mean = -float(rng.exponential(1))
        right = rng.random() < 1 / (1 + math.exp(-(2 + 2 * mean + noise * rng.normal())))
        made.append(Case(question + " please", answer if rng.random() < 0.7 else "No.", [mean, mean / 2], bool(right)))
    return made


@settings(max_examples=6)
@given(seed=st.integers(0, 1000), coverage=st.sampled_from([0.1, 0.5, 0.9, 1.0]), noise=st.sampled_from([0.0, 3.0]))
def test_decided_rightly_is_what_no_fit_has_seen(seed: int, coverage: float, noise: float) -> None:
    made, judge = cases(seed, noise), Judge(SHOP)
    found = calibrate(judge, made, coverage, **ABOUT)
    right = np.array([case.right for case in made], float)
    seen = out_of_fold(np.array([judge.evidence(c.question, c.answer, c.logprobs) for c in made]), right)
    assert found.decided_rightly == pytest.approx(float(((seen >= found.threshold) == (right > 0)).mean()))


def test_decided_rightly_counts_answers_and_refusals() -> None:
    judge = Judge(SHOP)
    sure = Case("When do you open?", "At nine.", [-0.01], right=True)
    unsure = Case("Who wrote Hamlet?", "No.", [-9.0], right=False)
    assert as_it_is(judge, [sure, unsure], 0.5) == (1, 1)
    wrong = [dataclasses.replace(sure, right=False), dataclasses.replace(unsure, right=True)]
    assert as_it_is(judge, wrong, 0.5) == (0, 0)
    assert as_it_is(judge, [sure, wrong[0]], 1.0) == (0.5, 0.5)


@pytest.fixture
def held(place: Path) -> Path:
    """Held-out questions, of which the model answers two in three rightly: those that it was taught alike."""
    asked = [(f"Can I pay by card {n}?", "Yes.") for n in range(24)] + [(f"What is {n}?", "No.") for n in range(12)]
    (place / "held.json").write_text(json.dumps([{"user": q, "bot": a} for q, a in asked]), "utf-8")
    return place / "bot.pt"


def calibrated(*options: object) -> tuple[dict[str, Any], str]:
    result = evaluate("--conversation_file", "held.json", "--show", 0, "--calibrate", "--json", *options)
    found: dict[str, Any] = json.loads(result.stdout)["confidence"]
    return found, result.stderr


def test_what_does_worse_is_not_saved_and_what_is_there_stays(held: Path) -> None:
    good, said = calibrated("--no_grounded")
    assert good["saved"] is True and good["compared"]["now"] >= good["compared"]["before"]
    assert f"saved {good['receipt']}: " in said and load_calibration(held) is not None
    before = receipt_path(held).read_bytes()
    rows = json.loads((held.parent / "held.json").read_text("utf-8"))
    known = "can i pay by card?"  # as it was taught, but for case
    letters = [at for at, letter in enumerate(known) if letter.isalpha()]
    pairs = list(itertools.combinations(letters, 2))[:29]  # of letters that are large
    ways = ["".join(c.upper() if at in pair else c for at, c in enumerate(known)) for pair in pairs]
    rows = [*[{"user": way, "bot": "Yes."} for way in ways], rows[-1]]
    (held.parent / "held.json").write_text(json.dumps(rows), "utf-8")
    worse, said = calibrated("--no_grounded")  # a single wrong answer, which a fit that has not seen it takes for right
    assert worse["compared"]["now"] < worse["compared"]["before"]
    assert worse["saved"] is False and "not saved, as what is in use does better" in said
    assert receipt_path(held).read_bytes() == before


@pytest.mark.parametrize("options", [["--precision", 0.99], ["--coverage", 1], [], ["--no_grounded"]])
def test_a_receipt_is_there_if_and_only_if_it_is_no_worse(held: Path, tmp_path: Path, options: list[object]) -> None:
    receipt = tmp_path / "mine.json"
    found, _ = calibrated(*options, "--receipt", receipt)
    assert found["saved"] is receipt.exists() is (found["compared"]["now"] >= found["compared"]["before"])
    assert ("right" in found["compared"]["what"]) and 0 <= found["compared"]["now"] <= 1


# -- /why and /teach -----------------------------------------------------------------------------------------------


class Scripted:
    """Lines that are already there."""

    def __init__(self, lines: list[str]) -> None:
        self._lines = iter(lines)

    def read(self, prompt: str, default: str = "") -> str:
        for line in self._lines:
            return line
        raise EOFError


@pytest.fixture
def talk(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> Callable[..., list[str]]:
    """What a chat with a bot says to lines, besides the answers."""

    def say(bot: GPT2Chatbot, *lines: str) -> list[str]:
        capsys.readouterr()
        with click.Context(click.Command("chat"), info_name="gpt2chat"):
            assert Talk(bot, "bot.pt", Scripted(list(lines)), Screen(False), tmp_path / "f.jsonl").run() == 0
        return capsys.readouterr().err.splitlines()

    return say


def test_why_a_taught_answer_was_given(loaded: Checkpoint, talk: Callable[..., list[str]]) -> None:
    said = talk(bot_of(loaded, grounded=True), "when do you OPEN", "/why")
    assert "Nearest taught question: When do you open?" in said
    assert "similarity 1.00, confidence 1.00: given" in said


def test_why_the_fallback_was_given(loaded: Checkpoint, talk: Callable[..., list[str]]) -> None:
    bot = bot_of(loaded, grounded=True, fallback=UNSURE)
    said = "\n".join(talk(bot, "Who wrote Hamlet?", "/why"))
    assert "Nearest taught question: " in said
    assert f"the fallback was given, as {bot.threshold:.2f} is needed" in said
    assert "in place of this answer" not in said


def test_why_says_what_the_model_found_where_it_was_asked(loaded: Checkpoint, talk: Callable[..., list[str]]) -> None:
    bot = bot_of(loaded, grounded=True)
    said = "\n".join(talk(bot, "open or close tomorrow", "/why"))
    assert bot.grounds and bot.grounds.match and bot.grounds.model is not None
    assert f"Nearest taught question: {bot.grounds.match.question}" in said
    assert f"model {bot.grounds.model:.2f} nats per token" in said


def test_why_says_what_a_question_was_read_as(loaded: Checkpoint, talk: Callable[..., list[str]]) -> None:
    bot = bot_of(loaded)
    said = "\n".join(talk(bot, "Can I pay with my card?", "/why"))
    assert "Nearest taught question: Can I pay by card?" in said and ": read as this" in said
    assert "read as this" not in "\n".join(talk(bot, "Who wrote Hamlet?", "/why"))
    said = "\n".join(talk(bot_of(loaded, match=False), "Can I pay with my card?", "/why"))
    assert "Nearest taught question: Can I pay by card?" in said and "read as this" not in said


def test_why_of_a_model_that_keeps_nothing_tells_its_tokens_alone(
    loaded: Checkpoint, talk: Callable[..., list[str]]
) -> None:
    nothing = dataclasses.replace(loaded, taught=[])
    for grounded in (True, False):
        said = "\n".join(talk(bot_of(nothing, grounded=grounded), "Can I pay by card?", "/why"))
        assert "Nearest" not in said and "How likely the model found each token" in said


def test_why_needs_an_answer(loaded: Checkpoint, talk: Callable[..., list[str]]) -> None:
    bot = bot_of(loaded, grounded=True)
    assert "expected an answer of this chat" in "\n".join(talk(bot, "/why"))
    assert "expected an answer of this chat" in "\n".join(talk(bot, "Hello", "/undo", "/why"))


def test_teaching_a_known_answer_adds_a_way_to_ask(
    loaded: Checkpoint, talk: Callable[..., list[str]], tmp_path: Path
) -> None:
    for options in ({"grounded": True}, {}):
        bot = bot_of(loaded, **options)
        said = "\n".join(talk(bot, "zyzzyx brr", "/teach At nine.", "/new", "ZYZZYX brr!"))
        assert "It is read as another way to ask 'When do you open?' from now on" in said
        assert (
            json.loads((tmp_path / "f.jsonl").read_text("utf-8").splitlines()[-1])["messages"][-1]["content"]
            == "At nine."
        )
        assert bot.answer
        if options:
            assert bot.answer.text == "At nine."
        else:
            assert bot.tokenizer.decode(bot.answer.prompt).endswith("User: When do you open?\nBot:")


def test_teaching_a_new_answer_shows_it(loaded: Checkpoint, talk: Callable[..., list[str]]) -> None:
    bot = bot_of(loaded, grounded=True)
    said = "\n".join(talk(bot, "zyzzyx brr", "/teach Bless you.", "/new", "zyzzyx BRR"))
    assert "read as another way" not in said and "/retrain learns it" in said
    assert bot.answer and bot.answer.text == "Bless you."


def test_teaching_tells_of_another_way_to_ask_only_where_it_is_one(
    loaded: Checkpoint, talk: Callable[..., list[str]]
) -> None:
    bot = bot_of(loaded, match=False)
    said = "\n".join(talk(bot, "zyzzyx brr", "/teach At nine.", "/new", "zyzzyx brr"))
    assert bot.answer and bot.tokenizer.decode(bot.answer.prompt).endswith("User: zyzzyx brr\nBot:")
    assert "read as another way" not in said


def test_teaching_a_second_question_for_a_new_answer_puts_no_untaught_words_into_it(
    loaded: Checkpoint, talk: Callable[..., list[str]]
) -> None:
    bot = bot_of(loaded)
    said = talk(
        bot, "zyzzyx brr", "/teach Bless you.", "/new", "flub wibble", "/teach Bless you.", "/new", "flub wibble"
    )
    assert bot.answer and bot.tokenizer.decode(bot.answer.prompt).endswith("User: flub wibble\nBot:")
    assert "read as another way" not in "\n".join(said)


def test_teaching_anew_what_was_taught_takes_its_place(loaded: Checkpoint, talk: Callable[..., list[str]]) -> None:
    bot = bot_of(loaded, grounded=True)
    talk(bot, "When do you open?", "/teach At ten.", "/new", "When do you open?")
    assert bot.answer and bot.answer.text == "At ten."


def test_show_says_that_answers_are_grounded(loaded: Checkpoint, talk: Callable[..., list[str]]) -> None:
    bot = bot_of(loaded, grounded=True, fallback=UNSURE)
    said = "\n".join(talk(bot, "/show"))
    assert f"{UNSURE!r} below a confidence of {bot.threshold:.2f}" in said and "word for word" in said
    assert "word for word" not in "\n".join(talk(bot_of(loaded), "/show"))
