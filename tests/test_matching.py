"""A taught question finds its answer however it is written, and what nobody taught is hardly found at all."""

from __future__ import annotations

import dataclasses
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from helpers_cli import ROOT, invoke
from hypothesis import example, given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file

from gpt2chat import checkpoint, matching
from gpt2chat.chatbot import GPT2Chatbot
from gpt2chat.checkpoint import Checkpoint
from gpt2chat.conversation import TEMPLATES, Message
from gpt2chat.data import Dataset, Report, render_records
from gpt2chat.encoder import FILE, QuestionEncoder, encoder, words
from gpt2chat.matching import (
    CANDIDATES,
    CLOSER,
    EVIDENCE,
    LOCAL,
    LONGEST,
    MANY,
    MEANING,
    MEANT,
    POWER,
    RIDGE,
    SAID,
    SURE,
    UNLIKELY,
    Match,
    Matcher,
    as_taught,
    likely,
    outside,
)
from gpt2chat.model import GPT2, GPT2Config
from gpt2chat.records import Record
from gpt2chat.sampling import GenerationConfig
from gpt2chat.taught import Numbers, Pair, merged
from gpt2chat.tokenizer import Tokenizer
from gpt2chat.training import TrainConfig, make_optimizer, train

SHOP = [
    ("When do you open?", "At nine."),
    ("Where is my parcel?", "On its way."),
    ("Can I pay by card?", "Yes, all cards are taken."),
    ("How do I return an item?", "Send it back within 30 days."),
    ("Do you sell gift vouchers?", "Yes, at the till."),
    ("Where can I park?", "Behind the shop."),
]
SCRIPTS = [
    ("When do you open?", "  when DO you... open"),
    ("Où est le café ?", "OÙ EST LE CAFÉ"),
    ("Cafe\u0301!", "CAFÉ"),
    ("Straße", "STRASSE"),
    ("Когда вы открываетесь?", "КОГДА ВЫ ОТКРЫВАЕТЕСЬ"),
    ("猫はどこですか", "猫はどこですか。"),
    ("이 가게는 몇 시에 여나요?", "이 가게는 몇 시에 여나요"),
    ("किताब कहाँ है?", "किताब कहाँ है"),
    ("متى تفتحون؟", "متى تفتحون"),
    ("\uff34\uff25\uff33\uff34 1", "test 1"),
    ("🦉🦉", "🦉🦉"),
    ("?!", " ?! "),
    ("\ud800 x", "X"),
    ("a " * 5000, "A " * 5000),
]
WORD = st.sampled_from(["where", "when", "open", "parcel", "card", "the", "?", "!", "猫", "é", "🦉", "\ud800", "Ulm"])
ASKED = st.lists(WORD, min_size=1, max_size=6).map(" ".join)
PAIRS = st.lists(st.tuples(ASKED, st.sampled_from("abcd")), min_size=1, max_size=10)
ANY = st.text(st.characters(), max_size=30)


def faq() -> list[Pair]:
    """The questions and answers about this program."""
    rows = json.loads((ROOT / "data" / "conversations.json").read_text("utf-8"))
    return [(row["user"], row["bot"]) for row in rows]


def stations(count: int) -> list[Pair]:
    names = ("Ulm", "Bonn", "Kiel", "Trier", "Mainz", "Essen", "Jena")
    return [(f"Where is the station of {name}?", name) for name in names[:count]]


def given_to(matcher: Matcher, question: str) -> str:
    return matcher.match(question)[0].answer


# -- taught questions ----------------------------------------------------------------------------------------------


def test_a_taught_question_finds_itself_in_every_script_case_and_with_other_marks() -> None:
    matcher = Matcher([(question, f"answer {at}") for at, (question, _) in enumerate(SCRIPTS)])
    for at, (question, other) in enumerate(SCRIPTS):
        for asked in (question, other):
            for most in (1, 2, CANDIDATES):
                best = matcher.match(asked, most)[0]
                assert best == Match(question.strip(), f"answer {at}", 1.0, 1.0)
            assert matcher.phrased(asked) == question.strip()


@settings(max_examples=150)
@given(pairs=PAIRS, at=st.integers(0, 9), most=st.sampled_from([1, 2, CANDIDATES]))
def test_the_words_of_a_phrasing_find_its_answer(pairs: list[Pair], at: int, most: int) -> None:
    question = pairs[at % len(pairs)][0]
    matcher = Matcher(pairs)
    right = {answer for asked, answer in pairs if matching.fold(asked) == matching.fold(question)}
    best = matcher.match(question, most)[0]
    assert best.answer in right
    assert (best.similarity, best.confidence) == (1, 1)


@pytest.mark.parametrize("most", [1, 2, CANDIDATES])
def test_a_phrasing_among_others_unlike_it_does_not_lose_to_near_questions(most: int) -> None:
    """Its answer's other phrasings speak against it, and seven answers have a question that is nearly the same."""
    taught = [("Where is the station?", "Here."), ("xyzzy", "Here."), ("plugh", "Here."), *stations(7)]
    assert Matcher(taught).match("Where is the station?", most)[0] == Match("Where is the station?", "Here.", 1.0, 1.0)


def test_a_taught_question_is_read_as_itself_or_another_way_to_ask_for_its_answer() -> None:
    taught = [("Where is the station?", "Here."), ("xyzzy", "Here."), ("plugh", "Here."), *stations(7)]
    answers, matcher = dict(taught), Matcher(taught)
    for question, answer in taught:
        assert answers[matcher.phrased(question)] == answer


@settings(max_examples=80)
@given(pairs=PAIRS, new=st.tuples(ASKED, st.sampled_from("abcdx")))
@example(pairs=[*stations(7), ("xyzzy", "x"), ("plugh", "x")], new=("Where is the station?", "x"))
def test_a_phrasing_that_is_added_wins_from_then_on(pairs: list[Pair], new: Pair) -> None:
    question, answer = new
    others = [pair for pair in pairs if matching.fold(pair[0]) != matching.fold(question)]
    assert given_to(Matcher([*others, new]), question) == answer


def test_a_question_with_two_answers_has_both_and_no_other_before_them() -> None:
    matcher = Matcher([*SHOP, ("When do you open?", "At ten on Sundays.")])
    for asked in ("When do you open?", "when do you OPEN"):
        first, second, *rest = matcher.match(asked)
        assert {first.answer, second.answer} == {"At nine.", "At ten on Sundays."}
        assert first.confidence == second.confidence == 1
        assert all(match.confidence == 0 for match in rest)


MARKS = ("What is C?", "What is C++?", "What is C#?", "I feel 😀", "I feel 😡", "what time is it", "What time is it?")


def test_questions_that_differ_in_marks_or_case_alone_keep_their_answers() -> None:
    pairs = [(question, f"answer {at}") for at, question in enumerate(MARKS)]
    matcher = Matcher(pairs)
    for question, answer in pairs:
        assert matcher.match(question)[0] == Match(question, answer, 1.0, 1.0)
        assert matcher.phrased(question) == question
    assert matcher.match("what is c++")[0].question == "What is C++?"
    assert matcher.match("“What is C#”")[0].question == "What is C#?"
    assert matcher.match("I FEEL 😡!")[0].question == "I feel 😡"
    assert matcher.match("What is the C--?")[0].confidence < 1  # of which none was taught
    assert merged(pairs, [("What is C--?", "new")]) == [*pairs, ("What is C--?", "new")]
    assert merged(pairs, [("what is c#", "new")]) == [*pairs[:2], *pairs[3:], ("what is c#", "new")]


def test_one_pair_is_enough_and_none_finds_nothing() -> None:
    one, none = Matcher(SHOP[:1]), Matcher([])
    assert one.match("when do you open") == [Match(*SHOP[0], 1.0, 1.0)]
    assert one.match("What time do you open?")[0].answer == "At nine."
    assert one.match("What time do you open?")[0].confidence > one.match("Who wrote Hamlet?")[0].confidence
    assert none.match("When do you open?") == []
    assert none.phrased("When do you open?") == "When do you open?"
    assert (len(none), none.answers, none.threshold) == (0, [], SURE)
    assert len(one) == 1 and SURE <= one.threshold <= 1


@given(question=ANY)
@example(question="")
@example(question="\ud800")
@example(question="word " * 10_000)
@example(question="猫" * 10_000)
def test_any_question_is_matched_and_every_figure_is_a_share(question: str) -> None:
    for taught in (SHOP, SHOP[:1], [("", ""), ("?", "!")], [(q, str(at)) for at, (q, _) in enumerate(SCRIPTS)]):
        found = Matcher(taught).match(question)
        assert 0 < len(found) <= min(CANDIDATES, len(taught))
        assert len({match.answer for match in found}) == len(found)
        for match in found:
            assert 0 <= match.similarity <= 1 and 0 <= match.confidence <= 1
            assert (match.question, match.answer) in [(q.strip(), a.strip()) for q, a in taught]


@settings(max_examples=40)
@given(order=st.permutations(SHOP), asked=st.sampled_from(["opening hours", "Did you send my package?", "take cards?"]))
def test_the_order_of_the_pairs_makes_no_difference(order: list[Pair], asked: str) -> None:
    one, other = Matcher(SHOP).match(asked), Matcher(order).match(asked)
    assert one[0].answer == other[0].answer and one[0].question == other[0].question
    assert one[0].confidence == pytest.approx(other[0].confidence, abs=1e-4)


def test_nor_does_it_for_the_questions_about_this_program() -> None:
    pairs = faq()
    shuffled = random.Random(1).sample(pairs, len(pairs))
    one, other = Matcher(pairs), Matcher(shuffled)
    for question in (
        "how to train it",
        "Does it need a GPU?",
        "where are my models",
        "can it speak German",
        "licence?",
    ):
        assert given_to(one, question) == given_to(other, question)
    assert one.threshold == pytest.approx(other.threshold, abs=1e-4)


def test_all_phrasings_of_an_answer_are_its_own() -> None:
    matcher = Matcher([("When do you open?", "At nine."), ("opening times", " At nine. "), *SHOP[1:]])
    assert len(matcher) == 7 and len(matcher.answers) == 6
    found = matcher.match("what are your opening times")
    assert found[0].answer == "At nine." and found[0].question == "opening times"
    assert [match.answer for match in found].count("At nine.") == 1


@pytest.mark.parametrize(
    ("asked", "answer"),
    [
        ("What are your opening hours?", "At nine."),
        ("Has my package been sent?", "On its way."),
        ("Do you take credit cards?", "Yes, all cards are taken."),
        ("I want to send something back", "Send it back within 30 days."),
        ("Is there parking?", "Behind the shop."),
        ("wher is my parcl", "On its way."),
    ],
)
def test_other_words_find_the_answer(asked: str, answer: str) -> None:
    assert given_to(Matcher(SHOP), asked) == answer


# -- what was never taught -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("taught", ["shop", "one", "program", "phrasings", "other scripts"])
def test_nine_of_ten_general_questions_are_declined(taught: str) -> None:
    sets: dict[str, Sequence[Pair]] = {
        "shop": SHOP,
        "one": SHOP[:1],
        "program": faq(),
        "phrasings": [(asked, answer) for question, answer in SHOP for asked in (question, f"Please: {question}")],
        "other scripts": [(question, str(at)) for at, (question, _) in enumerate(SCRIPTS)],
    }
    matcher = Matcher(sets[taught])
    known = {matching.fold(question) for question, _ in sets[taught]}
    asked = [question for question in outside() if matching.fold(question) not in known]
    declined = [matcher.match(question)[0].confidence < matcher.threshold for question in asked]
    assert sum(declined) >= 0.9 * len(declined)
    assert all(matcher.match(question)[0].confidence >= matcher.threshold for question, _ in sets[taught])


@pytest.mark.parametrize("share", [0.05, 0.5, 1.0])
def test_a_bot_that_was_taught_general_questions_answers_them(share: float) -> None:
    """No threshold is higher than what the words of a taught question reach."""
    taught = [(question, f"answer {at}") for at, question in enumerate(outside())][: int(share * len(outside()))]
    matcher = Matcher(taught)
    assert SURE <= matcher.threshold <= 1
    for question, _ in taught[::10]:
        assert matcher.match(question)[0].confidence >= matcher.threshold


def test_the_list_of_general_questions_holds_each_once_and_nothing_else() -> None:
    assert len(outside()) == len(set(outside())) > 100
    assert all(question.strip() == question and not question.startswith("#") for question in outside())


def test_what_is_known_of_an_encoder_is_not_taken_for_another() -> None:
    """Also where the first one is gone, and the second lies where it was."""
    tensors = load_file(FILE)
    kinds = tensors, {**tensors, "skip": -tensors["skip"]}

    def found(kind: int) -> list[float]:
        matcher = Matcher(SHOP, QuestionEncoder(kinds[kind]))
        return [match.confidence for match in matcher.match("Who is the king of Spain?")]

    first = [found(0), found(1)]
    assert first[0] != first[1]
    for kind in (1, 0, 0, 1, 0):
        assert found(kind) == pytest.approx(first[kind], abs=1e-9)


# -- many ----------------------------------------------------------------------------------------------------------


def many(count: int) -> list[Pair]:
    words = ("order", "parcel", "invoice", "refund", "card", "price", "size", "colour", "repair", "voucher")
    rng = random.Random(0)
    return [(f"What about {rng.choice(words)} {rng.choice(words)} number {at}?", f"answer {at}") for at in range(count)]


def test_looking_closely_at_some_only_keeps_the_winner(monkeypatch: pytest.MonkeyPatch) -> None:
    taught = many(3 * CLOSER)
    matcher = Matcher(taught)
    for at in range(0, len(taught), 61):
        assert matcher.match(taught[at][0])[0] == Match(*taught[at], 1.0, 1.0)
    asked = [question.replace("What about", "Tell me of") for question, _ in taught[::97]]
    short = [matcher.match(question)[0] for question in asked]
    monkeypatch.setattr(matching, "CLOSER", len(taught))
    whole = [matcher.match(question)[0] for question in asked]
    assert [match.answer for match in short] == [match.answer for match in whole]
    assert [match.confidence for match in short] == pytest.approx([match.confidence for match in whole], abs=1e-6)


def test_evidence_is_finite_and_as_much_as_was_fitted() -> None:
    for taught in (SHOP, SHOP[:1], many(400)):
        matcher = Matcher(taught)
        for question in ("", "where is it", "猫", "?"):
            likeness = matcher.likenesses(question)
            assert likeness.shape == (3, len(taught))
            rows, evidence = matcher.evidence(question, likeness)
            assert evidence.shape == (len(rows), EVIDENCE)
            assert np.isfinite(evidence).all()


def test_all_phrasings_speak_for_an_answer_by_a_ridge_regression() -> None:
    taught = [*SHOP, ("opening hours", "At nine."), ("can I send it back", SHOP[3][1]), ("refund", SHOP[3][1])]
    matcher = Matcher(taught)
    assert len(taught) > len(matcher.answers) < LOCAL

    def kernel(question: str) -> Numbers:
        meaning, _, spelling = matcher.likenesses(question)
        return np.asarray(np.clip(MEANING * meaning + (1 - MEANING) * spelling, 0, 1) ** POWER)

    among = np.stack([kernel(question) for question, _ in taught]) + RIDGE * np.eye(len(taught))
    answers = np.array([[answer == each for each in matcher.answers] for _, answer in taught], np.float64)
    fit = np.linalg.solve(among, answers)
    for question in ("When may I come?", "money back please", "when do you open?", "", "猫"):
        expected = kernel(question) @ fit
        rows, evidence = matcher.evidence(question, matcher.likenesses(question), len(taught))
        support, said, meant = evidence[:, 12], evidence[:, 14], evidence[:, 15]
        alone = support - SAID * said - MEANT * meant  # without what the answers themselves say
        given = {taught[row][1]: figure for row, figure in zip(rows, alone, strict=True)}
        assert [given[answer] for answer in matcher.answers] == pytest.approx(expected.tolist(), abs=1e-6)
        assert support.tolist() == sorted(support.tolist(), reverse=True)


def test_a_question_that_is_worded_as_an_answer_finds_it() -> None:
    pairs = [
        ("Where are you?", "At 14 Mill Lane, behind the bakery."),
        ("How can I pay?", "By card or in cash."),
        *SHOP,
    ]
    matcher = Matcher(pairs)
    assert matcher.match("are you near the bakery")[0].answer == pairs[0][1]
    assert matcher.match("do you take cash")[0].answer == pairs[1][1]
    unlike = matcher.match("do you take cheques")[0]
    assert matcher.match("do you take cash")[0].confidence > unlike.confidence


def test_short_forms_and_hyphens_are_no_other_words() -> None:
    assert words("wheres ur e-bike, pls?") == ["where's", "your", "ebike", ",", "please", "?"]
    assert words("do u rent T-shirts") == ["do", "you", "rent", "tshirts"]


# -- read as it was taught -----------------------------------------------------------------------------------------


def test_a_question_in_other_words_is_read_as_it_was_taught_and_any_other_is_left_alone() -> None:
    matcher = Matcher(SHOP)
    assert matcher.phrased("What are your opening hours?") == "When do you open?"
    for question in ("Who painted the Mona Lisa?", "", "猫", "blah blah"):
        assert matcher.phrased(question) == question
    assert matcher.phrased("What are your opening hours?") == "When do you open?"  # remembered


def test_only_what_a_user_asks_is_read_anew() -> None:
    said = [
        Message("system", "What are your opening hours?"),
        Message("user", "What are your opening hours?"),
        Message("assistant", "What are your opening hours?"),
        Message("user", "Who painted the Mona Lisa?"),
    ]
    found = as_taught(said, Matcher(SHOP))
    assert [message.content for message in found[:2]] == ["What are your opening hours?", "When do you open?"]
    assert found[0] is said[0] and found[2] is said[2] and found[3] == said[3]
    assert said[1].content == "What are your opening hours?"  # as it was
    assert as_taught([], Matcher(SHOP)) == []


def test_what_was_taught_alone_is_asked_alone_behind_what_the_system_says() -> None:
    said = [
        Message("system", "Be kind."),
        Message("user", "Who painted the Mona Lisa?"),
        Message("assistant", "Nobody knows."),
        Message("user", "What are your opening hours?"),
    ]
    matcher = Matcher(SHOP)
    found = as_taught(said, matcher, alone=True)
    assert [message.content for message in found] == ["Be kind.", "When do you open?"]
    assert as_taught(said[:-1], matcher, alone=True) == said[:-1]  # an answer that is to go on
    unknown = [*said[:-1], Message("user", "And who is the tallest man?")]
    assert as_taught(unknown, matcher, alone=True) == unknown
    shown = Matcher([*SHOP, ("Is it warm in the greenhouse?", "Very.")], trained=len(SHOP))
    example = [*said[:-1], Message("user", "Is it warm in the greenhouse?")]
    assert as_taught(example, shown, alone=True) == example  # the model knows it from the conversation only
    assert as_taught([], matcher, alone=True) == []


def test_what_the_encoder_cannot_read_is_like_nothing_but_itself() -> None:
    taught = [("مرحبا", "أهلا"), ("日本語?", "はい"), ("Привет", "Здравствуйте"), *SHOP]
    matcher = Matcher(taught)
    for question in ("xylophone quartz jukebox", "🦉", "سلام", "你好"):
        assert np.abs(matcher.likenesses(question)[0][[0, 2]]).max() == 0
        assert matcher.match(question)[0].confidence < matcher.threshold
    for question, answer in taught:
        assert matcher.match(question)[0] == Match(question, answer, 1.0, 1.0)


WAYS = ("{}", "please: {}", "hello, {}", "{} thanks", "tell me: {}", "sorry, {}", "so {}", "ok, {}")
MANY_WAYS = [(way.format(question), answer) for question, answer in SHOP for way in WAYS]


def test_a_model_with_many_phrasings_has_a_say_in_how_a_question_is_read() -> None:
    few = Matcher([*MANY_WAYS[: 2 * MANY], *MANY_WAYS[2 * MANY :: MANY]])  # many ways to ask for two of the answers
    assert len(WAYS) == MANY and Matcher(MANY_WAYS).has_many and not few.has_many and not Matcher([]).has_many
    assert few.undecided("can i pay with a voucher") == []
    matcher = Matcher(MANY_WAYS)
    for question in ("Who painted the Mona Lisa?", "猫", "x " * LONGEST):  # like none, and too long to be asked about
        assert matcher.undecided(question) == [] and matcher.phrased(question) == question
    assert matcher.undecided("When do you open please?") == []  # plain without the model
    assert dict(MANY_WAYS)[matcher.phrased("When do you open please?")] == "At nine."
    asked = "can i pay with a voucher"
    first, second, *_ = matches = matcher.undecided(asked)
    assert {first.answer, second.answer} == {"Yes, at the till.", "Yes, all cards are taken."}
    assert matcher.phrased(asked) == asked  # until the model is heard
    for said in (first, second):
        matcher.decide(asked, matches, [-1.0 if match is said else -9.0 for match in matches])
        assert dict(MANY_WAYS)[matcher.phrased(asked)] == said.answer
    assert matcher.undecided(asked) == []
    assert all(match.confidence >= UNLIKELY for match in matches)  # what it cannot be is not chosen, however short
    close = [-1.0 if match is second else -1.1 for match in matches]
    matcher.decide(asked, matches, close)
    assert dict(MANY_WAYS)[matcher.phrased(asked)] == first.answer


def test_what_was_shown_alone_is_never_put_into_the_question() -> None:
    shown = [("Is it warm in the greenhouse?", "Very."), ("opening hours", "At nine.")]
    matcher = Matcher([*SHOP, *shown], trained=len(SHOP))
    assert given_to(matcher, "How warm is the greenhouse?") == "Very."
    assert matcher.phrased("How warm is the greenhouse?") == "How warm is the greenhouse?"
    assert matcher.phrased("opening hours") == "When do you open?"  # another way to ask for what was taught
    assert matcher.phrased("is it warm in the greenhouse") == "is it warm in the greenhouse"


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(matching, "REMEMBERED", 5)
    matcher = Matcher(SHOP)
    for at in range(23):
        assert matcher.phrased(f"opening hours {at}?") in ("When do you open?", f"opening hours {at}?")
        assert len(matcher._read) <= 5
    matcher = Matcher(MANY_WAYS)
    for at in range(23):
        assert matcher.undecided(f"blah {at}") == [] and len(matcher._decided) <= 5


# -- a bot that matches --------------------------------------------------------------------------------------------

GREEDY = GenerationConfig(temperature=0, max_new_tokens=16)
OTHER_WORDS = [("What are your opening hours?", "At nine."), ("Has my package been sent?", "On its way.")]


@pytest.fixture(scope="module")
def learnt() -> Checkpoint:
    """A tiny model that was taught the answers of a shop."""
    tokenizer = Tokenizer.gpt2()
    records = [Record("p", (Message("user", q), Message("assistant", a))) for q, a in SHOP]
    documents = render_records(records, TEMPLATES["chat"], tokenizer, 128, "error", Report())
    data = Dataset([each for document in documents for each in document])
    config = TrainConfig(epochs=140, learning_rate=1e-2, row_tokens=128)
    sizes = GPT2Config(n_layer=2, n_head=2, n_embd=32, n_ctx=128, vocab_size=50257)
    model = GPT2(sizes).init_weights(0)
    list(train(model, data, config, make_optimizer(model, config), tokenizer.end_id))
    weights = {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}
    return Checkpoint(sizes, weights, TEMPLATES["chat"], taught=SHOP, about={"base": "tiny", "faq": True})


def bot_of(loaded: Checkpoint, **options: Any) -> GPT2Chatbot:
    bot = GPT2Chatbot("demo", generation=GREEDY, dtype="float32", quantize="none", **options)
    bot.use(loaded)
    return bot


def prompt_of(bot: GPT2Chatbot) -> str:
    assert bot.answer
    return bot.tokenizer.decode(bot.answer.prompt)


def test_the_model_knows_what_it_was_taught(learnt: Checkpoint) -> None:
    bot = bot_of(learnt, match=False)
    for question, answer in SHOP:
        bot.reset()
        assert bot.chat(question) == answer


def test_a_question_in_other_words_gets_the_taught_answer(learnt: Checkpoint) -> None:
    bot = bot_of(learnt)
    for asked, answer in OTHER_WORDS:
        bot.reset()
        assert bot.chat(asked) == answer
        assert asked not in prompt_of(bot)
        assert [message.content for message in bot.messages] == [asked, answer]  # what was typed


def test_earlier_questions_are_read_as_taught_too_and_remembered_as_typed(learnt: Checkpoint) -> None:
    bot = bot_of(dataclasses.replace(learnt, about={"base": "tiny", "faq": False}))
    for asked, _ in OTHER_WORDS:
        bot.chat(asked)
    assert [m.content for m in bot.messages if m.role == "user"] == [asked for asked, _ in OTHER_WORDS]
    assert "When do you open?" in prompt_of(bot) and "opening hours" not in prompt_of(bot)
    assert bot.regenerate().wait() == bot.messages[-1].content
    assert bot.undo().content == OTHER_WORDS[1][0]


def test_a_running_chat_answers_what_a_faq_taught_as_a_fresh_one_does(learnt: Checkpoint) -> None:
    bot = bot_of(learnt)
    for _ in range(2):
        for question, answer in [*SHOP, *OTHER_WORDS]:
            assert bot.chat(question) == answer
    assert prompt_of(bot).count("User:") == 1 and len(bot.messages) == 4 * len([*SHOP, *OTHER_WORDS])
    bot.use(dataclasses.replace(learnt, about={"base": "tiny", "faq": False}))
    bot.chat("When do you open?")
    bot.chat("Where can I park?")
    assert prompt_of(bot).count("User:") == 2


def test_without_match_the_prompt_is_what_was_typed(learnt: Checkpoint) -> None:
    bot = bot_of(learnt, match=False)
    bot.chat("What are your opening hours?")
    assert "User: What are your opening hours?" in prompt_of(bot)
    assert "When do you open?" not in prompt_of(bot)


def test_a_question_for_nothing_taught_is_asked_as_it_is(learnt: Checkpoint) -> None:
    asked = "Who painted the Mona Lisa?"
    one, other = bot_of(learnt), bot_of(learnt, match=False)
    assert one.chat(asked) == other.chat(asked)
    assert prompt_of(one) == prompt_of(other)


def test_a_model_that_keeps_nothing_of_what_it_was_taught_is_left_alone(learnt: Checkpoint) -> None:
    bot = bot_of(dataclasses.replace(learnt, taught=[]))
    bot.chat("What are your opening hours?")
    assert "User: What are your opening hours?" in prompt_of(bot)


def test_examples_are_another_way_to_ask_and_never_put_into_the_question(learnt: Checkpoint) -> None:
    bot = bot_of(learnt)
    bot.add_custom_examples([{"user": "Is it warm in the greenhouse?", "bot": "Very."}])
    bot.chat("How warm is the greenhouse?")
    assert prompt_of(bot).count("Is it warm in the greenhouse?") == 1  # the example itself
    assert "User: How warm is the greenhouse?\n" in prompt_of(bot)
    bot.clear_custom_examples()
    assert len(bot.matcher) == len(SHOP)
    bot.add_custom_examples([{"user": "zzyzx", "bot": "At nine."}])
    bot.reset()
    bot.chat("zzyzx")
    assert prompt_of(bot).endswith("User: When do you open?\nBot:")
    bot.drop_custom_example("zzyzx", "At nine.")
    bot.reset()
    bot.chat("zzyzx")
    assert prompt_of(bot).endswith("User: zzyzx\nBot:")


def test_an_example_with_a_system_prompt_does_not_end_the_chat(learnt: Checkpoint) -> None:
    bot = bot_of(learnt)
    assert bot.add_custom_examples([{"system": "Be kind.", "user": "Is it warm?", "bot": "Very."}]) == 1
    assert isinstance(bot.chat("When do you open?"), str)
    assert ("Is it warm?", "Very.") in bot.matcher.pairs


def test_another_model_brings_its_own_questions(learnt: Checkpoint, tmp_path: Path) -> None:
    path = tmp_path / "other.pt"
    checkpoint.save(dataclasses.replace(learnt, taught=[("Where is the cat?", "On the mat.")]), path)
    bot = bot_of(learnt)
    bot.chat("What are your opening hours?")
    bot.load_model(path)
    assert bot.matcher.pairs == [("Where is the cat?", "On the mat.")]
    bot.chat("What are your opening hours?")
    assert "User: What are your opening hours?" in prompt_of(bot)


def test_the_encoder_is_shared() -> None:
    assert Matcher(SHOP)._encoder is Matcher([])._encoder is encoder()


def test_a_file_of_questions_is_answered_as_in_a_chat(learnt: Checkpoint, tmp_path: Path) -> None:
    checkpoint.save(dataclasses.replace(learnt, about={"faq": True}), tmp_path / "faq.pt")
    earlier = [{"role": "user", "content": "Hello"}, {"role": "assistant", "content": "Good day."}]
    rows: list[dict[str, object]] = [{"user": asked} for asked, _ in OTHER_WORDS]
    rows += [{"messages": [*earlier, {"role": "user", "content": asked}]} for asked, _ in OTHER_WORDS]
    (tmp_path / "q.jsonl").write_text("\n".join(map(json.dumps, rows)), "utf-8")
    command = ("generate", "--batch", tmp_path / "q.jsonl", "--model", tmp_path / "faq.pt", "--dtype", "float32")
    said = invoke(*command, "--quantize", "none", "--out", "-", "--seed", 1)
    assert [json.loads(line)["text"] for line in said.stdout.splitlines()] == 2 * [answer for _, answer in OTHER_WORDS]
    said = invoke(*command, "--quantize", "none", "--out", "-", "--seed", 1, "--no_match")
    assert [json.loads(line)["text"] for line in said.stdout.splitlines()] != 2 * [answer for _, answer in OTHER_WORDS]


def test_a_question_of_marks_alone_asks_for_nothing_that_was_not_taught_so() -> None:
    matcher = Matcher([("?", "Yes."), ("I ❤️ it", "Me too."), ("IT", "Computers."), ("it", "A thing."), *SHOP])
    assert matcher.match("?")[0].answer == "Yes." and matcher.match("??")[0].confidence == 0
    assert matcher.match("I ❤ it")[0].confidence == 1  # however it is drawn
    assert [matcher.match(asked)[0].answer for asked in ("IT?", "it?")] == ["Computers.", "A thing."]


def test_what_was_said_before_tells_which_of_several_answers_is_meant() -> None:
    matcher = Matcher([("Two", "Then take the red boat."), ("Two", "Six euros, please."), *SHOP])
    assert matcher.depends("two!") and not matcher.depends("When do you open?") and not matcher.depends("Three")
    assert {match.answer for match in likely(matcher.match("Two"))} == {"Then take the red boat.", "Six euros, please."}
    assert len(likely(matcher.match("When do you open?"))) == 1


def test_a_question_in_another_language_is_read_by_its_spelling_alone() -> None:
    russian = [("Когда вы открыты?", "С девяти."), ("Где моя посылка?", "В пути."), ("Есть ли парковка?", "За домом.")]
    matcher = Matcher([*russian, *SHOP])
    assert not matcher.reads("Где посылка моя") and matcher.reads("Where is it?")
    assert matcher.phrased("Где посылка моя") == "Где моя посылка?"
    assert matcher.match("Где посылка моя")[0].similarity > 0.5
    assert matcher.phrased("zyzzyx") == "zyzzyx"  # no language that was taught
