"""A bot answers, remembers, streams and forgets as it says, and never runs out of context."""

from __future__ import annotations

import dataclasses
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from helpers_cli import weights_of

from gpt2chat import checkpoint, pretrained
from gpt2chat.chatbot import GPT2Chatbot
from gpt2chat.checkpoint import Checkpoint
from gpt2chat.conversation import TEMPLATES, Message, render, render_prompt
from gpt2chat.data import Dataset, Record, Report, render_records
from gpt2chat.errors import CheckpointError, ConfigError, ContextError, DataError
from gpt2chat.model import GPT2, GPT2Config
from gpt2chat.sampling import GenerationConfig
from gpt2chat.tokenizer import Tokenizer
from gpt2chat.training import TrainConfig, make_optimizer, train

CHAT, FEW_SHOT = TEMPLATES["chat"], TEMPLATES["few-shot"]
TAUGHT = [("Hello", "Hi there, 明日 👋!"), ("What is the capital of France?", "Paris.")]
DIALOGUE = "User: Who?\nBot: Me, of course.\nUser: Why?\nBot: Because.\nUser: Who?\nBot: Me, of course.\nUser: Why?"
WILD = GenerationConfig(temperature=1.0, top_k=0, max_new_tokens=6)
MakeBot = Callable[..., GPT2Chatbot]


@pytest.fixture(scope="module")
def taught(tokenizer: Tokenizer, tiny_config: GPT2Config) -> Checkpoint:
    """A tiny model that knows two pairs with the chat template, and a dialogue that goes on by itself."""
    pairs = [Record("p", (Message("user", user), Message("assistant", bot))) for user, bot in TAUGHT]
    documents = render_records([*pairs, Record("t:1", DIALOGUE)], CHAT, tokenizer, 128, "error", Report())
    data = Dataset([example for document in documents for example in document])
    config = TrainConfig(epochs=60, learning_rate=1e-2, row_tokens=128)
    model = GPT2(tiny_config).init_weights(0)
    list(train(model, data, config, make_optimizer(model, config), tokenizer.end_id))
    return Checkpoint(tiny_config, weights_of(model), CHAT, about={"base": "tiny"})


@pytest.fixture
def raw(tiny_model: GPT2) -> Checkpoint:
    """Fresh weights: what they say has no meaning and no end."""
    return Checkpoint(tiny_model.config, weights_of(tiny_model), CHAT, about={"base": "tiny"})


@pytest.fixture
def bot(raw: Checkpoint) -> GPT2Chatbot:
    return bot_with(raw, generation=WILD)


def bot_with(loaded: Checkpoint, **options: Any) -> GPT2Chatbot:
    bot = GPT2Chatbot("demo", **options)
    bot.use(loaded)
    return bot


def seen(bot: GPT2Chatbot) -> list[int]:
    """The prompt that the last answer was given to."""
    return bot.decoder.ids[: bot.decoder.prompt_tokens]


def roles(messages: Sequence[Message]) -> list[str]:
    return [message.role for message in messages]


def pair(user: str, bot: str) -> dict[str, str]:
    return {"user": user, "bot": bot}


# -- the model -----------------------------------------------------------------------------------------------------


def forbid(*_: object, **__: object) -> None:
    raise AssertionError("nothing may be loaded here")


def test_the_constructor_reads_and_fetches_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name in ((pretrained, "load"), (checkpoint, "load"), (socket, "socket"), (socket, "create_connection")):
        monkeypatch.setattr(owner, name, forbid)
    bot = GPT2Chatbot("gpt2-small (124M)", system="Be kind.", generation=WILD)
    assert bot.add_custom_examples([pair("a", "b")]) == 1
    bot.reset()
    with pytest.raises(AssertionError, match="nothing may be loaded"):
        bot.chat("Hello")
    assert bot.messages == []


def test_a_file_alone_is_enough_to_chat(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for owner, name in ((pretrained, "load"), (socket, "socket")):
        monkeypatch.setattr(owner, name, forbid)
    bot = GPT2Chatbot(generation=WILD)
    bot.load_model(str(tiny_checkpoint))
    assert isinstance(bot.chat("Hello"), str)


@pytest.mark.parametrize("name", ["gpt2-small (124M)", "124M", "gpt2-xl"])
def test_another_size_in_the_file_is_told_once(tiny_checkpoint: Path, name: str) -> None:
    notices: list[str] = []
    bot = GPT2Chatbot(name, notice=notices.append)
    bot.load_model(tiny_checkpoint)
    bot.load_model(tiny_checkpoint)
    assert len(notices) == 1
    assert name in notices[0]


def test_the_size_asked_for_needs_no_notice(
    tiny_checkpoint: Path, tiny_config: GPT2Config, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(pretrained.MODEL_SIZES, "gpt2-small (124M)", tiny_config)
    notices: list[str] = []
    for name in ("gpt2-small (124M)", "gpt2", "demo"):
        GPT2Chatbot(name, notice=notices.append).load_model(tiny_checkpoint)
    assert notices == []


def test_a_file_that_cannot_be_read_leaves_bot_and_conversation_as_they_were(bot: GPT2Chatbot, tmp_path: Path) -> None:
    bot.chat("Hello")
    before, decoder = list(bot.messages), bot.decoder
    (tmp_path / "bad.pt").write_bytes(b"no checkpoint")
    for path in (tmp_path / "bad.pt", tmp_path / "missing.pt", tmp_path):
        with pytest.raises(CheckpointError):
            bot.load_model(path)
    assert bot.messages == before
    assert bot.decoder is decoder
    bot.chat("Still there?")


def test_loading_starts_the_conversation_anew_and_keeps_the_examples(bot: GPT2Chatbot, tiny_checkpoint: Path) -> None:
    bot.add_custom_examples([pair("a", "b")])
    bot.chat("Hello")
    bot.load_model(tiny_checkpoint)
    assert bot.messages == []
    bot.chat("Hello")
    assert "User: a\nBot: b" in bot.tokenizer.decode(seen(bot))


# -- answers and memory --------------------------------------------------------------------------------------------


def test_an_answer_is_text_and_both_turns_are_remembered(taught: Checkpoint) -> None:
    bot = bot_with(taught)
    for user, answer in TAUGHT:
        bot.reset()
        assert bot.chat(f" {user}\n", temperature=0) == answer
        assert bot.messages == [Message("user", user), Message("assistant", answer)]


def test_the_next_turn_sees_the_turns_before(bot: GPT2Chatbot, tokenizer: Tokenizer) -> None:
    bot.chat("one")
    bot.chat("two")
    assert roles(bot.messages) == ["user", "assistant"] * 2
    assert seen(bot) == render_prompt(bot.messages[:3], CHAT, tokenizer)


@pytest.mark.parametrize("options", [{"seed": 3, "temperature": 1.0, "top_k": 0, "max_tokens": 30}, {"temperature": 0}])
def test_the_pieces_of_a_stream_join_to_the_answer(raw: Checkpoint, options: dict[str, Any]) -> None:
    whole, streamed = bot_with(raw), bot_with(raw)
    options = {"max_tokens": 20} | options
    for text in ("Hello", "And now?"):
        pieces = list(streamed.stream(text, **options))
        assert "".join(pieces) == whole.chat(text, **options)
        assert all(pieces)
    assert streamed.messages == whole.messages


def test_pieces_hold_whole_characters(taught: Checkpoint) -> None:
    pieces = list(bot_with(taught).stream("Hello", temperature=0))
    assert "".join(pieces) == "Hi there, 明日 👋!"
    assert len(pieces) > 3
    assert not any("\ufffd" in piece for piece in pieces)


def test_a_reader_that_stops_early_leaves_both_turns_and_a_usable_bot(raw: Checkpoint) -> None:
    options = {"temperature": 0, "max_tokens": 20}
    bot = bot_with(raw)
    for leave in (lambda stream: stream.close(), lambda stream: None):
        bot.reset()
        stream = bot.stream("Hello", **options)
        piece = next(stream)
        leave(stream)
        del stream
        assert bot.messages == [Message("user", "Hello"), Message("assistant", piece, trained=False)]
        fresh = bot_with(raw)
        fresh.messages = list(bot.messages)
        assert bot.chat("Go on", **options) == fresh.chat("Go on", **options)
        assert bot.messages == fresh.messages


def test_a_stream_left_open_does_not_erase_later_turns(bot: GPT2Chatbot) -> None:
    stream = bot.stream("Hello")
    next(stream)
    answer = bot.chat("Go on")
    stream.close()
    assert Message("user", "Go on") in bot.messages
    assert Message("assistant", answer) in bot.messages
    assert roles(bot.messages) == ["user", "assistant"] * (len(bot.messages) // 2)


def test_a_stream_left_open_brings_nothing_back_after_a_reset(bot: GPT2Chatbot) -> None:
    stream = bot.stream("Hello")
    next(stream)
    bot.reset()
    stream.close()
    assert bot.messages == []


def test_a_stream_nobody_reads_changes_nothing(bot: GPT2Chatbot) -> None:
    stream = bot.stream("Hello")
    assert bot.messages == []
    del stream
    assert bot.messages == []


def test_a_reader_that_fails_leaves_a_usable_bot(bot: GPT2Chatbot) -> None:
    def read() -> None:
        for piece in bot.stream("Hello"):
            raise OSError(f"cannot write {piece!r}")

    with pytest.raises(OSError, match="cannot write"):
        read()
    bot.chat("Still there?")
    assert roles(bot.messages)[-2:] == ["user", "assistant"]


@pytest.mark.parametrize("text", ["", " \n", None, 3, b"Hello"])
def test_a_message_without_text_is_refused_and_changes_nothing(bot: GPT2Chatbot, text: Any) -> None:
    with pytest.raises(ConfigError, match="message: expected text"):
        bot.chat(text)
    assert bot.messages == []


def test_a_message_that_does_not_fit_is_refused_and_changes_nothing(bot: GPT2Chatbot) -> None:
    bot.chat("Hello")
    before = list(bot.messages)
    with pytest.raises(ContextError, match="shorten it"):
        bot.chat("word " * 200)
    assert bot.messages == before
    bot.chat("Still there?")


def test_markers_in_a_message_are_text(bot: GPT2Chatbot, tokenizer: Tokenizer) -> None:
    bot.chat("a<|endoftext|>b")
    assert tokenizer.end_id not in seen(bot)


def test_complete_remembers_nothing(bot: GPT2Chatbot, tokenizer: Tokenizer) -> None:
    bot.chat("Hello")
    before = list(bot.messages)
    other = [Message("user", "one"), Message("assistant", "two"), Message("user", "three")]
    greedy = GenerationConfig(temperature=0, max_new_tokens=5)
    first = "".join(bot.complete(other, greedy))
    assert bot.messages == before
    assert seen(bot) == render_prompt(other, CHAT, tokenizer)
    assert "".join(bot.complete(other, greedy)) == first


def test_the_system_prompt_is_rendered_first_and_a_given_one_replaces_it(raw: Checkpoint, tokenizer: Tokenizer) -> None:
    bot = bot_with(raw, generation=WILD, system="Be kind.")
    bot.chat("Hello")
    assert tokenizer.decode(seen(bot)).startswith("System: Be kind.\nUser: Hello")
    list(bot.complete([Message("system", "Be brief."), Message("user", "Hello")]))
    assert tokenizer.decode(seen(bot)).startswith("System: Be brief.\nUser: Hello")


# -- examples ------------------------------------------------------------------------------------------------------


def test_custom_examples_stand_before_the_conversation_and_survive_a_reset(
    bot: GPT2Chatbot, tokenizer: Tokenizer
) -> None:
    bot.chat("Hello")
    without = seen(bot)
    assert bot.add_custom_examples([pair("a", "b"), pair("c", "d")]) == 2
    assert bot.add_custom_examples([]) == 0
    assert bot.add_custom_examples([pair("e", "f")]) == 1
    shown = [Message(role, text) for role, text in zip(["user", "assistant"] * 3, "abcdef", strict=True)]
    for _ in range(2):
        bot.reset()
        bot.chat("Hello")
        assert roles(bot.messages) == ["user", "assistant"]
        assert seen(bot) == [*render(shown, CHAT, tokenizer).ids, *without]


def test_the_examples_of_the_file_come_before_those_of_the_bot(raw: Checkpoint, tokenizer: Tokenizer) -> None:
    raw.examples = [Message("user", "a"), Message("assistant", "b")]
    bot = bot_with(raw, generation=WILD)
    bot.add_custom_examples([pair("c", "d")])
    bot.chat("Hello")
    shown = [*raw.examples, Message("user", "c"), Message("assistant", "d")]
    assert seen(bot)[: len(render(shown, CHAT, tokenizer).ids)] == render(shown, CHAT, tokenizer).ids


@pytest.mark.parametrize(
    "bad",
    [{"user": "a"}, "a", None, pair("a", "b<|endoftext|>"), {"user": 1, "bot": "b"}, pair("", "b"), pair("a", " ")],
)
def test_a_bad_example_is_refused_with_its_index_and_none_is_added(bot: GPT2Chatbot, bad: object) -> None:
    bot.chat("Hello")
    without = seen(bot)
    with pytest.raises(DataError, match="example 1"):
        bot.add_custom_examples([pair("a", "b"), bad])
    bot.reset()
    bot.chat("Hello")
    assert seen(bot) == without


# -- the context ---------------------------------------------------------------------------------------------------


def test_sixty_turns_never_run_out_of_context(raw: Checkpoint, tokenizer: Tokenizer) -> None:
    notices: list[str] = []
    bot = bot_with(raw, generation=WILD, system="Be kind.", notice=notices.append)
    bot.add_custom_examples([pair("What is up?", "The sky.")])
    pinned = [Message("system", "Be kind."), Message("user", "What is up?"), Message("assistant", "The sky.")]
    first = render(pinned, CHAT, tokenizer).ids
    for number in range(60):
        bot.chat(f"This is message number {number}.")
        prompt = seen(bot)
        assert prompt[: len(first)] == first
        last = [Message("user", f"This is message number {number}.")]
        assert tokenizer.decode(prompt).endswith(tokenizer.decode(render_prompt(last, CHAT, tokenizer)))
        assert len(prompt) + WILD.max_new_tokens <= 128
    assert len(bot.messages) == 120
    assert len(notices) == 1
    assert "oldest turns" in notices[0]

    bot.reset()
    for number in range(20):
        bot.chat(f"This is message number {number}.")
    assert len(notices) == 2  # another conversation, another notice


def test_the_chat_keeps_to_the_length_it_was_taught(raw: Checkpoint) -> None:
    notices: list[str] = []
    bot = bot_with(dataclasses.replace(raw, trained_length=64), generation=WILD, notice=notices.append)
    for number in range(20):
        bot.chat(f"This is message number {number}.")
        assert len(seen(bot)) + WILD.max_new_tokens <= 64
    assert len(notices) == 1
    assert notices[0].startswith("the 64 tokens of conversation it was taught are full")
    bot.chat("word " * 70)  # longer than all that was taught, but not than the context
    assert len(seen(bot)) > 70


def test_a_long_answer_leaves_a_quarter_of_the_context_at_most(raw: Checkpoint) -> None:
    bot = bot_with(raw, generation=GenerationConfig(temperature=1, top_k=0, max_new_tokens=1000, seed=0))
    for _ in range(4):
        bot.chat("word " * 20)
        assert len(seen(bot)) <= 96
        assert len(bot.decoder.ids) <= 128


# -- stop strings --------------------------------------------------------------------------------------------------


def test_a_stop_string_ends_the_answer_and_never_comes_out(taught: Checkpoint, tokenizer: Tokenizer) -> None:
    bot = bot_with(taught, template="few-shot")
    prompt = render_prompt([Message("user", "Who?")], FEW_SHOT, tokenizer)
    drawn = bot.decoder.generate(prompt, GenerationConfig(temperature=0, max_new_tokens=12), {tokenizer.end_id})
    assert tokenizer.decode(drawn).startswith(" Me, of course.\nUser: Why?")  # what the model itself would say

    pieces = list(bot.stream("Who?", temperature=0))
    assert "".join(pieces) == "Me, of course."
    assert "\n" not in "".join(pieces)
    assert bot.messages[-1] == Message("assistant", "Me, of course.")
    assert bot.chat("Why?", temperature=0) == "Because."
    assert bot.decoder.cached_tokens > 0


# -- drawing -------------------------------------------------------------------------------------------------------


def test_equal_seeds_give_equal_answers_and_no_seed_gives_others(bot: GPT2Chatbot) -> None:
    def answer(**options: Any) -> str:
        bot.reset()
        return bot.chat("Hello", **options)

    assert answer(seed=5) == answer(seed=5) != answer(seed=6)
    assert answer() != answer()
    assert answer(seed=None) != answer(seed=None)


def test_options_hold_for_one_answer(bot: GPT2Chatbot) -> None:
    bot.generation = GenerationConfig(temperature=1, top_k=0, max_new_tokens=9)
    before = bot.generation
    answers = set()
    for _ in range(2):
        bot.reset()
        answers.add(bot.chat("Hello", temperature=0, max_tokens=5))
        assert len(bot.decoder.ids) - bot.decoder.prompt_tokens == 5
        assert bot.decoder.finish_reason == "length"
    assert len(answers) == 1
    assert bot.generation == before
    bot.chat("And now?")
    assert len(bot.decoder.ids) - bot.decoder.prompt_tokens == 9


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"heat": 1}, "heat: expected one of .*temperature"),
        ({"temperature": -1}, "temperature: expected"),
        ({"temperature": "hot"}, "temperature: expected"),
        ({"max_tokens": 0}, "max_new_tokens: expected"),
        ({"top_k": 1.5}, "top_k: expected"),
        ({"seed": -1}, "seed: expected"),
    ],
)
def test_a_wrong_option_is_refused_and_changes_nothing(bot: GPT2Chatbot, options: dict[str, Any], said: str) -> None:
    for ask in (bot.chat, bot.stream):
        with pytest.raises(ConfigError, match=said):
            ask("Hello", **options)
    assert bot.messages == []


def test_an_unknown_template_is_refused_by_name(raw: Checkpoint) -> None:
    with pytest.raises(ConfigError, match="template: expected one of chat"):
        bot_with(raw, template="morse")


# -- the cache -----------------------------------------------------------------------------------------------------


def test_later_turns_reuse_the_cache_and_answer_as_a_fresh_bot_would(raw: Checkpoint, tokenizer: Tokenizer) -> None:
    options = {"temperature": 0, "max_tokens": 8}
    bot = bot_with(raw)
    bot.chat("Hello, how are you?", **options)
    assert bot.decoder.cached_tokens == 0
    opening = len(render_prompt(bot.messages[:1], CHAT, tokenizer))
    for text in ("What now?", "And then?"):
        fresh = bot_with(raw)
        fresh.messages = list(bot.messages)
        assert fresh.chat(text, **options) == bot.chat(text, **options)
        assert fresh.decoder.cached_tokens == 0
        assert bot.decoder.cached_tokens >= opening


def test_two_bots_on_one_checkpoint_do_not_meet(raw: Checkpoint) -> None:
    options = {"temperature": 0, "max_tokens": 8}
    one, other = bot_with(raw), bot_with(raw)
    alone = bot_with(raw)
    expected = [alone.chat("Hello", **options), alone.chat("Go on", **options)]
    first = one.stream("Hello", **options)
    pieces = [next(first)]
    other.chat("Something else", **options)
    pieces += first
    other.chat("Yet something else", **options)
    assert ["".join(pieces), one.chat("Go on", **options)] == expected


def test_the_named_model_loads_at_the_first_answer(tiny_checkpoint: Path) -> None:
    bot = GPT2Chatbot(str(tiny_checkpoint), generation=GenerationConfig(max_new_tokens=4, seed=0))
    first = bot.chat("Hello")
    assert bot.messages == [Message("user", "Hello"), Message("assistant", first)]
    again = GPT2Chatbot(str(tiny_checkpoint), generation=GenerationConfig(max_new_tokens=4, seed=0))
    assert "".join(again.complete([Message("user", "Hello")])) == first


@pytest.mark.parametrize(
    "options",
    [
        {"fallback": 3},
        {"fallback": " "},
        {"confidence": "0.5"},
        {"confidence": True},
        {"grounded": "yes"},
        {"match": "no"},
    ],
)
def test_what_is_no_choice_is_refused_in_one_line(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=r"(fallback|confidence|grounded, match): expected .*, got "):
        GPT2Chatbot("demo", **options)
