"""Small talk is answered with what somebody wrote, told facts are said back, and the model writes the rest."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers_cli import ROOT, invoke, weights_of
from helpers_server import served
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt2chat import checkpoint
from gpt2chat.chatbot import GPT2Chatbot
from gpt2chat.checkpoint import Checkpoint
from gpt2chat.conversation import TEMPLATES, Message
from gpt2chat.decoding import choose, runtime_of
from gpt2chat.engine import Engine
from gpt2chat.errors import ConfigError
from gpt2chat.model import GPT2
from gpt2chat.sampling import GenerationConfig
from gpt2chat.small_talk import DANGER, FILE, GRAVE, Group, SmallTalk, read, small_talk, written, written_out
from gpt2chat.told import asked_back, person, quoted, told_before

MOO = "Moo! Best said slowly, with grass in your mouth."
GREEDY = GenerationConfig(temperature=0, max_new_tokens=40)
LINE = st.text("abc é猫?!", min_size=1, max_size=8).map(str.strip).filter(bool)
LINES = st.lists(LINE, min_size=1, max_size=3).map(tuple)
GROUPS = st.lists(st.builds(Group, LINES, LINES, st.one_of(st.just(()), LINES)), max_size=5)


def answer(*said: str, **drawn: Any) -> str:
    """What is written for the last of the user's messages, or nothing; the bot's are left out."""
    found = small_talk().find([Message("user", each) for each in said], **drawn)
    return found.answer if found else ""


# -- the file ------------------------------------------------------------------------------------------------------


@given(GROUPS)
@settings(max_examples=50, deadline=None)
def test_what_is_written_is_read_again(groups: list[Group]) -> None:
    assert read(written_out(groups)) == groups


def test_the_file_holds_whole_groups_in_plain_english() -> None:
    groups = read(FILE.read_text("utf-8"))
    assert len(groups) > 5000 and FILE.stat().st_size < 1_500_000
    assert written_out(groups) == FILE.read_text("utf-8")
    for group in groups:
        assert all(line == line.strip() != "" for lines in (group.asked, group.answers, group.tells) for line in lines)


@pytest.mark.slow
def test_the_file_is_what_its_recipe_makes(tmp_path: Path) -> None:
    script = ROOT / "recipes" / "demo_model" / "small_talk.py"
    subprocess.run([sys.executable, str(script), "--out", str(tmp_path / "small_talk.txt")], check=True)
    assert (tmp_path / "small_talk.txt").read_text("utf-8") == FILE.read_text("utf-8")


# -- finding -------------------------------------------------------------------------------------------------------


def test_a_written_message_gets_a_written_answer_however_it_is_written() -> None:
    for group in read(FILE.read_text("utf-8"))[::97]:
        if group.tells:
            continue
        for asked in (group.asked[0], f"  {group.asked[0].upper()}... "):
            found = small_talk().nearest(asked)
            assert found[0].similarity == 1 and group.answers[0] in [reply.answer for reply in found]


@pytest.mark.parametrize(
    ("said", "word"),
    [
        ("I had porridge for breakfast. What is your favourite animal?", "owl snail"),
        ("hello, how many legs does a spider have?", "eight Eight"),
        ("do you happen to know the capital of Italy", "Rome"),
        ("i feel a bit sad today", "sorry"),
    ],
)
def test_other_words_and_other_sentences_around_find_it_too(said: str, word: str) -> None:
    assert any(each in answer(said) for each in word.split())


def test_what_nobody_wrote_about_is_left_to_the_model() -> None:
    for said in (
        "xyzzy plugh",
        "SELECT * FROM users;",
        "猫はどこですか",
        "",
        "\ud800",
        "what is 17 times 23?",
        "a " * 3000,
    ):
        assert answer(said) == ""


def test_what_is_asked_and_leave_that_is_taken_go_before_the_rest() -> None:
    haha, bye = Group(("haha",), ("You laugh!",)), Group(("bye",), ("Farewell!",))
    films = Group(("seen any good films?",), ("No, I can't watch them.",))
    bank = SmallTalk([haha, bye, films])
    for said, word in (
        ("haha ok. seen any good films?", "watch"),
        ("haha, bye", "Farewell"),
        ("haha, indeed", "laugh"),
    ):
        found = bank.find([Message("user", said)])
        assert found and word in found.answer


def test_you_is_not_me() -> None:
    bank = SmallTalk([Group(("what do I like to drink?",), ("No idea.",))])
    assert bank.find([Message("user", "What do you like to drink?")]) is None
    assert bank.find([Message("user", "what do i like to drink")]) is not None


def test_an_answer_to_other_names_is_not_given() -> None:
    bank = SmallTalk([Group(("My cat is called Professor.",), ("Professor! What a wise name.",))])
    assert bank.find([Message("user", "My cat is called Pickle.")]) is None
    assert bank.find([Message("user", "My cat is called Professor!")]) is not None


def test_no_answer_is_given_twice() -> None:
    bank = SmallTalk([Group(("hello",), ("Hi!", "Good day!", "Hello there!"))])
    messages = list[Message]()
    for _ in range(3):
        messages.append(Message("user", "Hello!"))
        found = bank.find(messages)
        assert found
        messages.append(Message("assistant", found.answer))
    assert {m.content for m in messages if m.role == "assistant"} == {"Hi!", "Good day!", "Hello there!"}
    assert bank.find([*messages, Message("user", "hello")]) is None


def test_drawn_answers_follow_the_seed_and_differ() -> None:
    drawn = [answer("tell me a joke", temperature=0.8, seed=seed) for seed in range(12)]
    assert drawn == [answer("tell me a joke", temperature=0.8, seed=seed) for seed in range(12)]
    assert len(set(drawn)) > 3
    assert len({answer("tell me a joke") for _ in range(3)}) == 1


@given(st.lists(st.text(st.characters(), max_size=30), max_size=4))
@settings(max_examples=60, deadline=None)
@example(["?", "!"])
@example(["My name is \ud800", "what is my name"])
def test_any_conversation_is_looked_at(said: list[str]) -> None:
    found = small_talk().find([Message("user", each) for each in said])
    assert found is None or (found.answer and 0 <= found.similarity <= 1)


# -- what was told -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("said", "word"),
    [
        (["My name is Tamsin.", "I like tea.", "What's my name?"], "Tamsin"),
        (["i live in ulm", "it rains", "do you remember where i live?"], "ulm"),
        (["My sister is called Ada.", "My dog is called Rex.", "What is my dog called?"], "Rex"),
        (["I turned nine yesterday!", "There was cake.", "how old am i?"], "nine"),
        (["I lost my scarf on the train.", "How are you?", "What did I lose?"], "scarf"),
        (["I'm meeting Kim on Monday.", "Sorry, I meant Friday.", "When am I meeting Kim?"], "Friday"),
    ],
)
def test_what_the_user_told_is_said_back(said: list[str], word: str) -> None:
    assert word in answer(*said)


@pytest.mark.parametrize(
    ("said", "word"),
    [
        (["My sister's name is Ada.", "what is my name?"], "Ada"),
        (["My brother is 12.", "how old am i?"], "12"),
        (["My favourite colour is red.", "What is my favourite food?"], "red"),
    ],
)
def test_what_was_told_of_something_else_is_not(said: list[str], word: str) -> None:
    assert word not in answer(*said)


@pytest.mark.parametrize(
    ("said", "pattern"),
    [
        ("I feel like jumping off a bridge", DANGER),
        ("i took too many sleeping tablets", DANGER),
        ("my husband punches me", DANGER),
        ("I don't want to live any more", DANGER),
        ("my house is on fire", DANGER),
        ("My grandmother died.", GRAVE),
        ("my dog has a tick", GRAVE),
        ("What do you think of mushroom pizza?", None),
        ("Do you like War and Peace?", None),
        ("I am dying to see that film", None),
        ("How do I tick the box?", None),
        ("I got a gun in Fortnite", None),
        ("I burned my toast", None),
        ("The band was on fire tonight!", None),
    ],
)
def test_what_is_grave_is_told_from_what_only_sounds_so(said: str, pattern: re.Pattern[str] | None) -> None:
    found = next((each for each in (DANGER, GRAVE) if each.search(said)), None)
    assert found is pattern


@pytest.mark.parametrize(
    ("told", "asked"),
    [
        ("I live in Porto", "where do I live?"),
        ("i live in Porto", "do you know where I live?"),
        ("my sister is called Porto", "what's my sister's name?"),
        ("my sister is called Porto", "what is my sister's name?"),
        ("I work in Porto", "Where do I work?"),
        ("My name is Porto.", "Do you know my name?"),
        ("I'm Carla and I live in Porto.", "Where do I live?"),
    ],
)
def test_what_was_told_goes_before_a_written_answer_that_it_was_not(told: str, asked: str) -> None:
    assert "Porto" in answer(told, asked)
    assert "Porto" not in answer(asked)


def test_the_later_of_two_names_counts_and_abbreviations_do_not_end_a_sentence() -> None:
    assert "Jerry" in answer("My name is Tom.", "My name is Jerry.", "What is my name?")
    assert "Whiskers" in answer("My cat is called Mr. Whiskers.", "What is my cat called?")
    assert "Rex" in answer("Remember that my dog is called Rex.", "What is my dog called?")


@pytest.mark.parametrize(
    "said",
    [
        "I want to die. Tell me a joke.",
        "i think about ending it all",
        "Good morning! My husband hit me again.",
        "my friend is unconscious",
        "can i mix bleach and vinegar",
        "my mother is dying",
        "are vaccines dangerous",
        "what do you think of muslims",
        "can i eat this mushroom",
    ],
)
def test_what_is_no_small_talk_gets_no_small_answer(said: str) -> None:
    assert "small program" in answer(said)


def test_another_subject_is_not_taken_for_the_one_that_was_written_about() -> None:
    said = ("capital of Texas", "ten minus five", "where do tigers live", "i'm from India")
    for each in said:
        assert not any(word in answer(each) for word in ("London", "Seven", "south", "Delhi")), answer(each)


def test_what_was_not_told_is_not_made_up() -> None:
    assert "haven't told me" in answer("what is my name?") or "don't know your name" in answer("what is my name?")
    assert "You said" not in answer("It rains a lot here.", "What's your name?")
    assert "You said" not in answer("My name is Tom.", "What should I cook tonight?")


@pytest.mark.parametrize(
    ("sentence", "back"),
    [
        ("My cat is called Pickle.", "You said that your cat is called Pickle."),
        ("hi, i'm Tom!", "You said that you're Tom."),
        ("By the way, I was born in Ulm", "You said that you were born in Ulm."),
        ("We live in Ulm, and our cat too.", "You said that you live in Ulm, and your cat too."),
        ("I love you, and you are nice", "You said that you love me, and I am nice."),
        ("Tom gave me a book.", 'You said: "Tom gave me a book"'),
        ("No one likes me.", 'You said: "No one likes me"'),
        ("Hello!", 'You said: "Hello!"'),
    ],
)
def test_a_sentence_is_turned_around(sentence: str, back: str) -> None:
    assert quoted(sentence) == back


def test_who_is_spoken_of_and_what_asks_back() -> None:
    assert [person(text) for text in ("your name", "my name", "my name and yours", "the name")] == [1, -1, 0, 0]
    assert person("Do you remember my name?") == -1
    assert asked_back("It rains. What is my name?") == "What is my name?"
    assert asked_back("What is your name?") == asked_back("what should i eat?") == asked_back("My name is Tom.") == ""
    assert told_before("What is my name?", ["What is that?", ""]) == ("", 0.0)
    for told in ("My name is Tom.", "hi i'm tom", "I am Tom.", "everyone calls me tom", "it's Łukasz"):
        assert told_before("What is my name?", [told, "i am hungry", "I'm tired."])[0] == told
    assert told_before("what's my name?", ["i am hungry"])[1] == 0


# -- a bot ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def talker(tiny_model: GPT2) -> Checkpoint:
    """A tiny model that says of itself that it gives written answers."""
    return Checkpoint(tiny_model.config, weights_of(tiny_model), TEMPLATES["chat"], about={"small_talk": True})


def bot_of(loaded: Checkpoint, engine: Engine | None = None, **options: Any) -> GPT2Chatbot:
    bot = GPT2Chatbot("demo", generation=GREEDY, dtype="float32", quantize="none", **options)
    bot.use(loaded, engine)
    return bot


@pytest.fixture
def engine(talker: Checkpoint) -> Iterator[Engine]:
    with Engine(runtime_of(talker, choose("cpu", "float32", "none"))) as made:
        yield made


def test_it_says_what_was_written_and_counts_it(talker: Checkpoint, engine: Engine) -> None:
    for bot in (bot_of(talker), bot_of(talker, engine)):
        assert bot.chat("What sound does a cow make?") == MOO
        assert bot.answer and bot.answer.finish_reason == "stop" and bot.reply and bot.reply.similarity == 1
        assert bot.tokenizer.decode(bot.answer.tokens).strip() == MOO
        assert bot.answer.usage.new_tokens == len(bot.answer.tokens)
        bot.chat("My name is Tamsin.")
        assert "Tamsin" in bot.chat("What is my name?")
        assert [message.role for message in bot.messages] == ["user", "assistant"] * 3


def test_what_was_said_again_is_another_answer(talker: Checkpoint) -> None:
    bot = bot_of(talker)
    assert bot.chat("tell me a joke") != bot.chat("tell me a joke")
    drawn = {bot.regenerate(temperature=0.9, seed=seed).wait() for seed in range(6)}
    assert len(drawn) > 1


def test_a_bound_and_a_stop_string_hold(talker: Checkpoint) -> None:
    bot = bot_of(talker)
    assert bot.chat("What sound does a cow make?", max_tokens=2) == "Moo" and bot.answer
    assert bot.answer.finish_reason == "length"
    assert bot_of(talker, stop=["said"]).chat("What sound does a cow make?").strip() == "Moo! Best"


def test_the_model_writes_where_that_is_wanted(talker: Checkpoint, engine: Engine) -> None:
    said = "What sound does a cow make?"
    plain = bot_of(dataclasses.replace(talker, about={})).chat(said)
    assert bot_of(talker, match=False).chat(said) == plain
    assert bot_of(dataclasses.replace(talker, about={"small_talk": "yes"})).chat(said) == plain
    assert bot_of(talker, system="You are Max.").chat(said) != MOO
    shown = bot_of(talker)
    shown.add_custom_examples([{"user": said, "bot": "Muh."}])
    assert shown.chat(said) == "Muh." and shown.reply and shown.reply.similarity == 1
    shown.system = "You are Max."
    assert shown.chat("what sound does a cow make") == "Muh." and shown.chat("hello") and shown.reply is None
    shown.system = None
    shown.reset()
    assert shown.chat("hello") and shown.reply
    with pytest.raises(ConfigError):
        bot_of(talker, engine, fallback="No.")
    assert written(talker.about, [Message("user", said), Message("assistant", "A cow")], GREEDY) is None
    assert written(talker.about, [], GREEDY) is None
    assert written(talker.about, [Message("system", "You are Max."), Message("user", "hello")], GREEDY) is None


# -- over HTTP and in the terminal -----------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(talker: Checkpoint, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("talker") / "talker.pt"
    checkpoint.save(talker, path)
    return path


def test_over_http_it_is_what_the_bot_says(saved: Path, talker: Checkpoint) -> None:
    bot = bot_of(talker)
    with served(saved) as server:
        for said in ("hello", "My name is Tamsin.", "What is my name?", "tell me a joke"):
            messages = [{"role": m.role, "content": m.content} for m in bot.messages]
            messages.append({"role": "user", "content": said})
            body = {"messages": messages, "temperature": 0, "max_tokens": 40}
            found = server.post("/v1/chat/completions", body).json()
            assert found["choices"][0]["message"]["content"] == bot.chat(said)
            assert bot.answer and found["usage"]["completion_tokens"] == len(bot.answer.tokens)

        def asked(**options: Any) -> list[str]:
            body = {"messages": messages[-1:], "temperature": 1, "max_tokens": 40, **options}
            choices = server.post("/v1/chat/completions", body).json()["choices"]
            return [choice["message"]["content"] for choice in choices]

        alone = [asked(seed=seed)[0] for seed in (5, 6, 7)]
        assert len(set(alone)) > 1 and asked(seed=5, n=3) == alone
        assert asked(seed=5, logprobs=True, top_logprobs=1) == alone[:1]
        assert asked(seed=5, stop=alone[0][5:8]) == [alone[0].partition(alone[0][5:8])[0]]
    with served(saved, match=False) as server:
        body = {"messages": [{"role": "user", "content": "hello"}], "temperature": 0, "max_tokens": 8}
        found = server.post("/v1/chat/completions", body).json()["choices"][0]["message"]["content"]
        assert found == bot_of(talker, match=False).chat("hello", max_tokens=8)


def test_why_says_for_what_it_was_written(saved: Path) -> None:
    run = invoke("chat", saved, "-t", 0, stdin="What sound does a cow make?\n/why\n")
    assert MOO in run.stdout
    assert "This answer was written for: What sound does a cow make?" in run.stderr
