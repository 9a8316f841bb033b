"""A grounded answer is one of the taught ones word for word, or the fallback, whatever the model says."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from helpers_cli import invoke, save_tiny, weights_of
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2chat import checkpoint
from gpt2chat.chatbot import GPT2Chatbot
from gpt2chat.checkpoint import Checkpoint
from gpt2chat.cli import inputs
from gpt2chat.conversation import TEMPLATES, Message
from gpt2chat.data import Dataset, Report, render_records
from gpt2chat.decoding import choose, runtime_of
from gpt2chat.engine import Engine
from gpt2chat.errors import ConfigError
from gpt2chat.explanation import explain
from gpt2chat.formats import Library, Source
from gpt2chat.generation import Decoder
from gpt2chat.grounding import FALLBACK, Grounded, Grounding, is_faq, longest, spoken
from gpt2chat.matching import PLAIN, UNLIKELY, Match, Matcher, outside
from gpt2chat.model import GPT2, GPT2Config
from gpt2chat.records import Record
from gpt2chat.sampling import GenerationConfig
from gpt2chat.tokenizer import Tokenizer
from gpt2chat.training import TrainConfig, make_optimizer
from gpt2chat.training import train as train_model

SHOP = [
    ("When do you open?", "At nine."),
    ("When do you close?", "At six, 明日 👋 too."),
    ("Where is my parcel?", "On its way."),
    ("Can I pay by card?", "Yes,\nall cards are taken."),
    ("Do you sell gift vouchers?", "At the till."),
    ("opening hours", "At nine."),
]
ANSWERS = {answer for _, answer in SHOP}
UNSURE = "Please ask at the till."
OPEN = "open or close tomorrow"  # asks for more than one of them
QUESTIONS = [*(question for question, _ in SHOP), OPEN, "card or voucher?", "Who wrote Hamlet?", "猫", "\ud800", "?"]
SHARE = st.floats(0, 1)
LOGPROB = st.floats(-1e6, 0)
MATCHES = st.lists(st.builds(Match, st.text(), st.text(), SHARE, SHARE), max_size=5, unique_by=lambda m: m.answer)


@pytest.fixture(scope="module")
def grounding() -> Grounding:
    return Grounding(SHOP, UNSURE)


@pytest.fixture(scope="module")
def loaded(tiny_model: GPT2) -> Checkpoint:
    """A tiny model that was never taught a word, which says that it knows the answers of a shop."""
    weights = {name: tensor.detach() for name, tensor in tiny_model.state_dict().items()}
    return Checkpoint(tiny_model.config, weights, TEMPLATES["chat"], taught=SHOP, about={"base": "tiny", "faq": True})


@pytest.fixture(scope="module")
def taught(tiny_config: GPT2Config, tokenizer: Tokenizer) -> Checkpoint:
    """A tiny model that was taught the answers."""
    records = [Record("p", (Message("user", q), Message("assistant", a))) for q, a in SHOP]
    documents = render_records(records, TEMPLATES["chat"], tokenizer, 128, "error", Report())
    data = Dataset([each for document in documents for each in document])
    config = TrainConfig(epochs=80, learning_rate=1e-2, row_tokens=128)
    model = GPT2(tiny_config).init_weights(0)
    list(train_model(model, data, config, make_optimizer(model, config), tokenizer.end_id))
    return Checkpoint(tiny_config, weights_of(model), TEMPLATES["chat"], taught=SHOP, about={"base": "tiny"})


@pytest.fixture(scope="module")
def engine(loaded: Checkpoint) -> Iterator[Engine]:
    with Engine(runtime_of(loaded, choose("cpu", "float32", "none")), streams=8) as running:
        yield running


@pytest.fixture(scope="module")
def both(loaded: Checkpoint, engine: Engine) -> list[GPT2Chatbot]:
    """A bot with a model of its own, and one that shares an engine."""
    return [bot_of(loaded), bot_of(loaded, engine)]


def bot_of(loaded: Checkpoint, engine: Engine | None = None, **options: Any) -> GPT2Chatbot:
    options = {"grounded": True, "fallback": UNSURE, "device": "cpu", "dtype": "float32", "quantize": "none"} | options
    bot = GPT2Chatbot("demo", **options)
    bot.use(loaded, engine)
    return bot


# -- what is chosen ------------------------------------------------------------------------------------------------


@settings(max_examples=100)
@given(question=st.one_of(st.sampled_from(QUESTIONS), st.text(st.characters(), max_size=20)), said=st.data())
def test_whatever_the_model_says_the_text_is_a_taught_answer_or_the_fallback(question: str, said: Any) -> None:
    asked = list[str]()

    def likelihood(answer: str) -> float:
        asked.append(answer)
        return float(said.draw(LOGPROB))

    found = Grounding(SHARED, UNSURE).answer(question, likelihood)
    assert found.text in ANSWERS | {UNSURE}
    assert set(asked) <= ANSWERS and len(set(asked)) == len(asked)
    assert 0 <= found.confidence <= 1
    assert found.given == (found.text != UNSURE) == (found.confidence >= SHARED.threshold)
    assert found.match and (not found.given or found.text == found.match.answer)
    assert (found.model is None) == (not asked)


SHARED = Matcher(SHOP)


@given(matches=MATCHES, threshold=SHARE, said=st.data())
def test_any_figures_are_decided_by_the_threshold_alone(matches: list[Match], threshold: float, said: Any) -> None:
    logprobs = said.draw(st.none() | st.lists(LOGPROB, min_size=len(matches), max_size=len(matches)))
    found = Grounding(SHARED, UNSURE, threshold).decide(matches, logprobs)
    assert 0 <= found.confidence <= 1
    assert found.given == (bool(matches) and found.confidence >= threshold)
    assert found.text == (found.match.answer if found.given and found.match else UNSURE)
    assert found.match is None if not matches else found.match in matches


@given(question=st.sampled_from(QUESTIONS), logprobs=st.lists(LOGPROB, min_size=5, max_size=5))
def test_at_confidence_0_there_is_no_fallback(question: str, logprobs: list[float]) -> None:
    left = iter(logprobs)
    found = Grounding(SHARED, UNSURE, 0.0).answer(question, lambda answer: next(left))
    assert found.given and found.text in ANSWERS


@given(logprobs=st.lists(LOGPROB, min_size=5, max_size=5), question=st.sampled_from([OPEN, *outside()[:20]]))
def test_at_confidence_1_only_the_words_of_a_taught_question_get_an_answer(
    logprobs: list[float], question: str
) -> None:
    strict, left = Grounding(SHARED, UNSURE, 1.0), iter(logprobs)
    assert strict.answer(question, lambda answer: next(left)).text == UNSURE
    for taught, answer in SHOP:
        assert strict.answer(taught.upper(), lambda answer: -9.0).text == answer


def test_the_model_is_asked_only_where_the_question_leaves_it_open(grounding: Grounding) -> None:
    def never(answer: str) -> float:
        raise AssertionError(answer)

    for question, answer in SHOP:
        found = grounding.answer(question, never)
        assert (found.text, found.confidence, found.model) == (answer, 1.0, None)
    asked = list[str]()
    grounding.answer(OPEN, lambda answer: asked.append(answer) or -1.0)  # type: ignore[func-returns-value]
    assert len(asked) > 1
    assert {match.answer for match in grounding.candidates(OPEN)} == set(asked)


def test_candidates_are_the_likely_ones_and_always_the_first(grounding: Grounding) -> None:
    for question in (*QUESTIONS, *outside()):
        matches, found = grounding.matcher.match(question), grounding.candidates(question)
        assert found[0] == matches[0]
        assert all(match.confidence >= UNLIKELY for match in found[1:])
        assert len(found) == 1 or matches[0].confidence < PLAIN


@given(one=SHARE, other=SHARE, logprobs=st.tuples(LOGPROB, LOGPROB), more=st.floats(0, 50))
def test_what_the_model_finds_likelier_is_never_less_sure(
    one: float, other: float, logprobs: tuple[float, float], more: float
) -> None:
    matches = [Match("a?", "a", 0.5, one), Match("b?", "b", 0.5, other)]
    decide = Grounding(SHARED, UNSURE, 0.0).decide
    before, after = decide(matches, logprobs), decide(matches, (logprobs[0] + more, logprobs[1]))
    if before.text == "a":
        assert after.text == "a" and after.confidence >= before.confidence - 1e-12


def test_a_model_that_tells_them_apart_decides_between_two_alike() -> None:
    matches = [Match("a?", "a", 0.5, 0.6), Match("b?", "b", 0.5, 0.5)]
    decide = Grounding(SHARED, UNSURE, 0.5).decide
    assert decide(matches, [-1.0, -1.0]).text == decide(matches, None).text == "a"
    assert decide(matches, [-3.0, -1.0]).text == "b"
    assert decide(matches, [-3.0, -1.0]).model == -1.0
    assert decide(matches, [-3.0, -1.0]).confidence > 0.5


def test_one_candidate_of_which_the_model_was_asked_is_decided_by_its_match() -> None:
    only = Match("a?", "a", 0.5, 0.7)
    assert Grounding(SHARED, UNSURE, 0.5).decide([only], [-1.0]).text == "a"


def test_without_anything_taught_the_fallback_is_all_there_is() -> None:
    for threshold in (None, 0.0, 1.0):
        found = Grounding([], UNSURE, threshold).answer("When do you open?", lambda answer: 0.0)
        assert found == Grounded(UNSURE, None, 0.0, given=False)


def test_the_threshold_is_that_of_matching_unless_it_is_given() -> None:
    assert Grounding(SHARED).threshold == SHARED.threshold
    assert Grounding(SHARED, threshold=0.0).threshold == 0
    assert Grounding(SHARED).fallback == FALLBACK and Grounding(SHARED).matcher is SHARED


def test_a_threshold_that_was_found_declines_most_general_questions(grounding: Grounding) -> None:
    declined = [not grounding.answer(question, lambda answer: -2.0).given for question in outside()]
    assert sum(declined) >= 0.9 * len(declined)


def test_a_bot_that_was_taught_general_questions_gives_their_answers() -> None:
    taught = [(question, f"answer {at}") for at, question in enumerate(outside())]
    grounding = Grounding(taught, UNSURE)
    given_ = [grounding.answer(question, lambda answer: -1.0).text == answer for question, answer in taught]
    assert all(given_)


@pytest.mark.parametrize(
    ("about", "found"), [({"faq": True}, True), ({"faq": False}, False), ({}, False), ({"faq": 1}, False)]
)
def test_only_what_says_so_is_a_faq(about: dict[str, Any], found: bool) -> None:
    assert is_faq(about) is found


# -- what the model has a say in -----------------------------------------------------------------------------------


@pytest.mark.parametrize("through", ["decoder", "engine"])
def test_the_likelihood_is_that_of_the_answers_tokens(
    loaded: Checkpoint, engine: Engine, grounding: Grounding, through: str, tokenizer: Tokenizer
) -> None:
    decoder = Decoder(engine.runtime)
    prompt, source = tokenizer.encode("User: open or close\nBot:"), decoder if through == "decoder" else engine
    found, ids = spoken(grounding, OPEN, prompt, " ", source)
    assert ids == tokenizer.encode(" " + found.text)
    assert found.match and found.model is not None
    own = [score.logprob for score in explain(decoder, prompt, tokenizer.encode(" " + found.match.answer), top=0)]
    assert found.model == pytest.approx(sum(own) / len(own), abs=1e-5)


@pytest.mark.parametrize("through", ["decoder", "engine"])
def test_a_full_context_leaves_room_for_some_of_an_answer_only(
    engine: Engine, grounding: Grounding, through: str
) -> None:
    for left in (1, 2):
        prompt = [5] * (engine.runtime.config.n_ctx - left)
        source = Decoder(engine.runtime) if through == "decoder" else engine
        found, _ = spoken(grounding, OPEN, prompt, "", source)
        assert found.text in ANSWERS | {UNSURE} and found.model is not None and math.isfinite(found.model)


# -- a bot ---------------------------------------------------------------------------------------------------------


def everywhere(bots: list[GPT2Chatbot], question: str) -> tuple[str, bool]:
    """What all bots say to a question in a fresh chat, whole and in pieces, which is one and the same."""
    found = set[tuple[str, bool]]()
    for bot in bots:
        bot.reset()
        for text in (bot.chat(question), "".join(bot.regenerate()), bot.regenerate().wait()):
            assert bot.answer and bot.answer.text == text == bot.messages[-1].content
            found.add((text, bot.answer.replaced))
    assert len(found) == 1, found
    return found.pop()


def test_a_question_has_one_answer_on_every_way(both: list[GPT2Chatbot]) -> None:
    texts = set()
    for question in QUESTIONS:
        text, replaced = everywhere(both, question)
        assert text in ANSWERS | {UNSURE} and replaced == (text == UNSURE)
        texts.add(text)
    for question, answer in SHOP:
        assert everywhere(both, question.upper()) == (answer, False)
    assert texts == {*ANSWERS, UNSURE}


@pytest.mark.parametrize("options", [{"temperature": 0.0}, {"temperature": 2.0, "seed": 5}, {"top_k": 1, "min_p": 0.9}])
def test_how_answers_are_drawn_makes_no_difference(loaded: Checkpoint, options: dict[str, Any]) -> None:
    bot = bot_of(loaded)
    for question in (OPEN, *QUESTIONS[:3]):
        bot.reset()
        plain = bot.chat(question)
        assert bot.regenerate(**options).wait() == plain


def test_a_running_chat_gives_what_a_fresh_one_does(loaded: Checkpoint, both: list[GPT2Chatbot]) -> None:
    running, (_, fresh) = bot_of(loaded), both
    for question in (*QUESTIONS[:6], "Who wrote Hamlet?", *QUESTIONS[:6]):
        fresh.reset()
        assert running.chat(question) == fresh.chat(question)
        if question in dict(SHOP):
            assert running.answer and running.answer.confidence == 1
    assert len(running.messages) == 26


def test_a_running_chat_is_judged_as_a_fresh_one(taught: Checkpoint) -> None:
    """By a model that has learnt something, whose say depends on what it is shown."""
    running, fresh = bot_of(taught), bot_of(taught)
    running.chat("When do you open?")
    running.chat("Where is my parcel?")
    found = []
    words = ("open", "close", "parcel", "card", "voucher", "hours", "where")
    for question in map(" ".join, itertools.permutations(words, 2)):
        fresh.reset()
        found.append((question, running.chat(question) == fresh.chat(question)))
        running.undo()
        assert running.grounds and fresh.grounds and running.grounds.match and fresh.grounds.match
    assert [question for question, same in found if not same] == []


def test_a_running_chat_is_the_same_through_an_engine(both: list[GPT2Chatbot]) -> None:
    own, shared = both
    for bot in both:
        bot.reset()
    for question in (OPEN, "card or voucher?", "parcel?", OPEN):
        assert own.chat(question) == shared.chat(question)
        assert own.grounds and shared.grounds
        assert own.grounds.confidence == pytest.approx(shared.grounds.confidence, abs=1e-5)
        assert own.grounds.match == shared.grounds.match


def test_confidence_0_and_1(loaded: Checkpoint, engine: Engine) -> None:
    free = [bot_of(loaded, shared, confidence=0.0) for shared in (None, engine)]
    strict = [bot_of(loaded, shared, confidence=1.0) for shared in (None, engine)]
    for question in outside()[:12]:
        text, replaced = everywhere(free, question)
        assert text in ANSWERS and not replaced
        assert everywhere(strict, question) == (UNSURE, True)
    assert everywhere(strict, "when do you open") == ("At nine.", False)


def test_an_answer_in_pieces_counts_and_ends_by_itself(both: list[GPT2Chatbot]) -> None:
    for bot in both:
        for question, answer in SHOP:
            bot.reset()
            reply = bot.stream(question)
            pieces = list(reply)
            assert "".join(pieces) == answer and len(pieces) > 1 and all(pieces)
            assert "\ufffd" not in "".join(pieces)
            ids = bot.tokenizer.encode(bot.template.lead + answer)
            assert (reply.tokens, reply.finish_reason) == (ids, "stop")
            assert reply.usage.new_tokens == len(ids)
            assert reply.usage.prompt_tokens == len(reply.answer.prompt) > 0
            assert reply.usage.seconds >= reply.usage.first_token_s > 0


@pytest.mark.parametrize("most", [1, 2, 3])
def test_a_bound_cuts_and_says_so(both: list[GPT2Chatbot], most: int) -> None:
    for bot in both:
        bot.reset()
        text = bot.chat("Can I pay by card?", max_tokens=most)
        assert text and SHOP[3][1].startswith(text) and text != SHOP[3][1]
        assert bot.answer and bot.answer.finish_reason == "length"
        assert bot.answer.usage.new_tokens == len(bot.answer.tokens) == most


def test_a_bound_that_is_just_enough_cuts_nothing(loaded: Checkpoint) -> None:
    bot = bot_of(loaded)
    count = len(bot.tokenizer.encode(bot.template.lead + "At nine."))
    assert bot.chat("When do you open?", max_tokens=count) == "At nine."
    assert bot.answer and bot.answer.finish_reason == "stop"


def test_a_reader_who_leaves_keeps_what_was_said(loaded: Checkpoint) -> None:
    bot = bot_of(loaded)
    with bot.stream("Can I pay by card?") as reply:
        first = next(reply)
    assert reply.finish_reason == "cancelled"
    assert bot.messages[-1].content == first and not bot.messages[-1].trained
    assert bot.chat("When do you open?") == "At nine."


def test_grounds_say_why(loaded: Checkpoint) -> None:
    bot = bot_of(loaded)
    bot.chat("when do you OPEN")
    assert bot.grounds == Grounded("At nine.", Match(*SHOP[0], 1.0, 1.0), 1.0, given=True)
    bot.chat("Who wrote Hamlet?")
    assert bot.grounds and not bot.grounds.given and bot.answer and bot.answer.confidence == bot.grounds.confidence
    assert bot.grounds.confidence < bot.threshold == bot.matcher.threshold
    assert bot_of(loaded, confidence=0.25).threshold == 0.25


def test_eight_at_once_get_what_each_gets_alone(loaded: Checkpoint, engine: Engine) -> None:
    asked = [*QUESTIONS[:6], OPEN, "card or voucher?"]
    bots = [bot_of(loaded, engine, confidence=0.3) for _ in asked]
    alone = [bot.chat(question) for bot, question in zip(bots, asked, strict=True)]
    assert len(set(alone)) > 3
    with ThreadPoolExecutor(8) as pool:
        for _ in range(3):
            for bot in bots:
                bot.reset()
            assert list(pool.map(lambda bot, question: bot.chat(question), bots, asked)) == alone


@pytest.mark.parametrize("template", sorted(TEMPLATES))
def test_every_template_lets_the_whole_answer_through(loaded: Checkpoint, template: str) -> None:
    """But for what a template stops at, which no answer here holds."""
    if TEMPLATES[template].added:
        pytest.skip("has tokens that this model has not")
    bot = bot_of(loaded, template=template, confidence=0.5)
    for question, answer in SHOP:
        if not any(mark in answer for mark in bot.template.stop):
            bot.reset()
            assert bot.chat(question) == answer


# -- when answers are grounded -------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("about", "fallback", "asked", "found"),
    [
        ({"faq": True}, UNSURE, None, True),
        ({"faq": True}, None, None, False),
        ({"faq": False}, UNSURE, None, False),
        ({}, UNSURE, None, False),
        ({}, None, True, True),
        ({"faq": True}, UNSURE, False, False),
    ],
)
def test_a_faq_with_a_fallback_is_grounded_unless_something_else_is_said(
    loaded: Checkpoint, about: dict[str, Any], fallback: str | None, asked: bool | None, found: bool
) -> None:
    bot = bot_of(
        dataclasses.replace(loaded, about={"base": "tiny", **about}), grounded=asked, fallback=fallback, confidence=0.5
    )
    assert bot.grounded is found
    said = bot.chat("When do you open?", max_tokens=3, temperature=0)
    assert (said == "At nine.") is found
    if found and fallback is None:
        assert bot.chat("Who wrote Hamlet?") == FALLBACK


def test_examples_are_answers_too_and_go_again(loaded: Checkpoint) -> None:
    bot = bot_of(loaded, confidence=0.5)
    asked = "How warm is the greenhouse?"
    assert bot.chat(asked) == UNSURE
    bot.add_custom_examples([{"user": [asked, "Is it warm in the greenhouse?"], "bot": "Very."}])
    assert bot.chat(asked.lower()) == bot.chat("is it warm in the greenhouse") == "Very."
    bot.clear_custom_examples()
    assert bot.chat(asked) == UNSURE


def test_an_example_takes_the_place_of_what_was_taught(loaded: Checkpoint) -> None:
    bot = bot_of(loaded, confidence=0.5)
    bot.add_custom_examples([{"user": "When do you open?", "bot": "At ten."}])
    assert bot.chat("When do you open?") == "At ten."


def test_a_shared_engine_and_a_fallback_go_together_only_where_answers_are_grounded(
    loaded: Checkpoint, engine: Engine
) -> None:
    with pytest.raises(ConfigError, match="expected grounded=True"):
        bot_of(loaded, engine, grounded=None)
    assert bot_of(loaded, engine, grounded=True).chat("When do you open?") == "At nine."


def test_a_model_that_keeps_nothing_gives_the_fallback(loaded: Checkpoint, engine: Engine) -> None:
    nothing = dataclasses.replace(loaded, taught=[])
    for shared in (None, engine):
        bot = bot_of(nothing, shared)
        assert bot.chat("When do you open?") == UNSURE
        assert bot.answer and bot.answer.replaced and bot.answer.confidence == 0


# -- what training notes -------------------------------------------------------------------------------------------


PAIRS = '[{"user": "a", "bot": "b"}, {"user": ["c", "d"], "bot": "e"}]'
TALK = """{"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"},
    {"role": "user", "content": "c"}, {"role": "assistant", "content": "d"}]}"""


@pytest.mark.parametrize(
    ("rows", "before", "faq"),
    [
        ((PAIRS,), {}, True),
        ((PAIRS,), {"taught": SHOP, "about": {"faq": True}}, True),
        ((PAIRS,), {"taught": SHOP, "about": {"faq": False}}, False),
        ((PAIRS,), {"taught": SHOP, "about": {}}, False),
        (('[{"user": "a", "bot": "b", "system": "Be kind."}]',), {}, False),
        ((TALK,), {}, False),
        ((PAIRS, TALK), {}, False),
        (('{"text": "one two three"}',), {}, False),
        ((PAIRS, '{"text": "one two three"}'), {}, False),
    ],
)
def test_only_single_questions_make_a_faq(
    loaded: Checkpoint, tmp_path: Path, rows: tuple[str, ...], before: dict[str, Any], faq: bool
) -> None:
    library = Library(Report())
    for number, text in enumerate(rows):
        path = tmp_path / f"{number}.json"
        path.write_text(text, "utf-8")
        library.add(Source(path))
    base = dataclasses.replace(loaded, **{"taught": [], "about": {"base": "tiny"}} | before)
    assert inputs.is_faq(library, base) is faq


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, str]:
    """A run of one step on pairs alone, and what it said."""
    folder = tmp_path_factory.mktemp("run")
    (folder / "pairs.json").write_text(PAIRS, "utf-8")
    said = train(save_tiny(folder / "tiny.pt"), folder / "pairs.json", folder / "bot.pt")
    return folder / "bot.pt", said


def test_a_run_notes_that_single_questions_were_all(run: tuple[Path, str], tmp_path: Path) -> None:
    path, _ = run
    assert is_faq(checkpoint.load(path).about)
    train(path, path.with_name("pairs.json"), tmp_path / "again.pt", "--rehearse")
    assert is_faq(checkpoint.load(tmp_path / "again.pt").about)
    (tmp_path / "talk.json").write_text(TALK, "utf-8")
    train(path, tmp_path / "talk.json", tmp_path / "talk.pt", "--rehearse")
    assert not is_faq(checkpoint.load(tmp_path / "talk.pt").about)


def test_a_bot_of_a_run_on_pairs_is_grounded_as_soon_as_it_has_a_fallback(run: tuple[Path, str]) -> None:
    bot = GPT2Chatbot(fallback=UNSURE)
    bot.load_model(run[0])
    assert bot.grounded and bot.chat("C") == "e"


def test_the_end_of_a_run_says_how_well_questions_are_told_apart(run: tuple[Path, str]) -> None:
    assert re.search(rf"declines 1\d\d of {len(outside())} questions about other things", run[1])
    assert re.search(
        r"of 1 phrasings, asked as if they had not been taught, [01] find their answer \(by a word list", run[1]
    )


def train(base: Path, rows: Path, saved: Path, *options: object) -> str:
    result = invoke("train", "--model", base, "--data", rows, "--save_path", saved, "--steps", 1, *options)
    assert result.exit_code == 0, result.stderr
    return result.stderr


# -- long answers --------------------------------------------------------------------------------------------------

LONG = " ".join(f"word{n}" for n in range(120))  # more tokens than the tiny context holds


def test_a_taught_answer_is_given_whole_however_long_it_and_the_conversation_are(tmp_path: Path) -> None:
    tiny = checkpoint.load(save_tiny(tmp_path / "tiny.pt"))
    taught = [("Tell me all", LONG), ("When do you open?", "At nine.")]
    checkpoint.save(dataclasses.replace(tiny, taught=taught, about={"faq": True}), tmp_path / "long.pt")
    bot = GPT2Chatbot(fallback=UNSURE, dtype="float32", quantize="none")
    bot.load_model(tmp_path / "long.pt")
    n_ctx = bot.decoder.runtime.config.n_ctx
    assert len(bot.tokenizer.encode(LONG)) > n_ctx // 2
    for _ in range(3):  # the conversation alone fills the context
        assert bot.chat("Tell me all") == LONG
        assert bot.answer and bot.answer.finish_reason == "stop"
    assert bot.chat("Tell me all", max_tokens=3) != LONG
    assert bot.answer.finish_reason == "length"


def test_room_is_made_for_the_longest_taught_answer_unless_a_length_was_asked_for() -> None:
    usual, chosen = GenerationConfig(), GenerationConfig(max_new_tokens=40)
    assert usual.with_room(300).max_new_tokens == 300 and usual.with_room(3) == usual
    assert chosen.with_room(300) == chosen
    assert longest([("a", "one two"), ("b", LONG)]) == 1 + len(Tokenizer.gpt2().encode(LONG))
    assert longest([]) == 1


def test_a_length_that_was_chosen_later_is_kept_when_something_is_taught() -> None:
    bot = GPT2Chatbot()
    bot.add_custom_examples([{"user": "a", "bot": 2 * LONG}])
    assert bot.generation.max_new_tokens == longest([("a", 2 * LONG)]) > 256
    bot.set_response_length("brief")
    bot.add_custom_examples([{"user": "b", "bot": 2 * LONG}])
    assert bot.generation.max_new_tokens == 30
