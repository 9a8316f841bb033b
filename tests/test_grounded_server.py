"""Over HTTP a grounded answer is what the bot gives: whole, streamed, alone and among others, with its account."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import pytest
from helpers_cli import invoke
from helpers_server import Served, served

from gpt2chat import checkpoint
from gpt2chat.chatbot import GPT2Chatbot
from gpt2chat.checkpoint import Checkpoint
from gpt2chat.conversation import TEMPLATES, Message
from gpt2chat.formats.rows import pairs_to_messages
from gpt2chat.grounding import FALLBACK, Grounding
from gpt2chat.matching import outside
from gpt2chat.model import GPT2, GPT2Config
from gpt2chat.sampling import GenerationConfig

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
QUESTIONS = [*(question for question, _ in SHOP), OPEN, "card or voucher?", "Who wrote Hamlet?", "猫", "?"]
PATHS = ("/v1/chat/completions", "/chat/completions")
PLAIN = GenerationConfig(temperature=0.8, max_new_tokens=64)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model that was never taught a word, which says that it knows the answers of a shop."""
    path = tmp_path_factory.mktemp("shop") / "shop.pt"
    sizes = GPT2Config(n_layer=2, n_head=2, n_embd=32, n_ctx=128, vocab_size=50257)
    weights = {name: tensor.detach() for name, tensor in GPT2(sizes).init_weights(0).state_dict().items()}
    about = {"base": "tiny", "faq": True}
    checkpoint.save(Checkpoint(sizes, weights, TEMPLATES["chat"], taught=SHOP, about=about), path)
    return path


@pytest.fixture(scope="module")
def server(model: Path) -> Iterator[Served]:
    with served(model, fallback=UNSURE) as running:
        yield running


@pytest.fixture(scope="module")
def bot(model: Path) -> GPT2Chatbot:
    made = GPT2Chatbot("demo", fallback=UNSURE, generation=PLAIN)
    made.load_model(model)
    assert made.grounded
    return made


def messages_of(*said: str) -> list[dict[str, str]]:
    return [{"role": ("user", "assistant")[at % 2], "content": text} for at, text in enumerate(said)]


def streamed(server: Served, said: list[dict[str, str]], path: str = PATHS[0], **options: Any) -> dict[str, Any]:
    """What a stream tells: texts and reasons of the answers, usage and notes."""
    response = server.post(path, {"messages": said, "stream": True, **options})
    assert response.status_code == 200, response.text
    lines = [line.removeprefix("data: ") for line in response.text.split("\n") if line and line != "data: [DONE]"]
    found: dict[str, Any] = {"texts": {}, "reasons": {}, "pieces": 0}
    for event in map(json.loads, lines):
        assert "error" not in event, event
        found.update({name: event[name] for name in ("usage", "gpt2chat") if event.get(name)})
        for choice in event["choices"]:
            at, text = choice["index"], choice["delta"].get("content") or ""
            found["texts"][at] = found["texts"].get(at, "") + text
            found["pieces"] += bool(text)
            if choice["finish_reason"]:
                found["reasons"][at] = choice["finish_reason"]
    return found


# -- the same text -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("path", PATHS)
def test_whole_and_streamed_it_is_what_the_bot_says(server: Served, bot: GPT2Chatbot, path: str) -> None:
    for question in QUESTIONS:
        bot.reset()
        text = bot.chat(question)
        assert text in ANSWERS | {UNSURE} and bot.answer
        whole = server.ask(question, path, stream=False)
        assert whole["choices"][0]["message"]["content"] == text
        assert whole["choices"][0]["finish_reason"] == "stop"
        assert whole["gpt2chat"]["fallback"] == bot.answer.replaced == (text == UNSURE)
        assert whole["gpt2chat"]["confidence"] == pytest.approx(bot.answer.confidence, abs=2e-4)
        told = streamed(server, messages_of(question), path)
        assert (told["texts"], told["reasons"]) == ({0: text}, {0: "stop"})
        assert told["gpt2chat"] == whole["gpt2chat"]


def test_a_running_chat_is_the_same(server: Served, bot: GPT2Chatbot) -> None:
    bot.reset()
    for question in (QUESTIONS[0], OPEN, "Who wrote Hamlet?", "card or voucher?", OPEN):
        said = [message.content for message in bot.messages]
        text = bot.chat(question)
        found = server.post(PATHS[0], {"messages": messages_of(*said, question)}).json()
        assert found["choices"][0]["message"]["content"] == text
        assert bot.answer
        assert found["gpt2chat"]["confidence"] == pytest.approx(bot.answer.confidence, abs=2e-4)


def test_so_is_one_with_a_system_prompt(server: Served, bot: GPT2Chatbot) -> None:
    bot.reset()
    bot.system = "Be brief."
    try:
        for question in (OPEN, QUESTIONS[0]):
            text = bot.chat(question)
            said = [{"role": "system", "content": "Be brief."}, *messages_of(question)]
            found = server.post(PATHS[0], {"messages": said}).json()
            assert found["choices"][0]["message"]["content"] == text
            bot.reset()
    finally:
        bot.system = None


def test_eight_at_once_get_what_each_gets_alone(server: Served) -> None:
    asked = QUESTIONS[1:9]
    alone = [server.ask(question)["choices"][0]["message"]["content"] for question in asked]
    with ThreadPoolExecutor(8) as pool:
        for number in range(3):
            if number % 2:
                together = [t["texts"][0] for t in pool.map(lambda q: streamed(server, messages_of(q)), asked)]
            else:
                found = pool.map(server.ask, asked)
                together = [each["choices"][0]["message"]["content"] for each in found]
            assert together == alone
    assert server.engine.stats().running == server.engine.stats().waiting == 0


@pytest.mark.parametrize("options", [{"temperature": 0}, {"temperature": 2, "seed": 7}, {"top_p": 0.1, "top_k": 1}])
def test_how_answers_are_drawn_makes_no_difference(server: Served, options: dict[str, Any]) -> None:
    for question in (QUESTIONS[1], OPEN, "Who wrote Hamlet?"):
        plain, drawn = server.ask(question), server.ask(question, **options)
        assert drawn["choices"] == plain["choices"]


# -- its account ---------------------------------------------------------------------------------------------------


def test_usage_counts_prompt_and_answer_alone(server: Served, bot: GPT2Chatbot) -> None:
    """Not the candidates that the model was asked about."""
    for question in (*QUESTIONS[:4], OPEN, "Who wrote Hamlet?"):
        bot.reset()
        bot.chat(question)
        assert bot.answer
        expected = (len(bot.answer.prompt), len(bot.answer.tokens))
        used = server.ask(question)["usage"]
        assert (used["prompt_tokens"], used["completion_tokens"]) == expected
        assert used["total_tokens"] == sum(expected)
        told = streamed(server, messages_of(question), stream_options={"include_usage": True})["usage"]
        assert (told["prompt_tokens"], told["completion_tokens"]) == expected


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_a_bound_cuts_and_says_so(server: Served, bot: GPT2Chatbot, name: str) -> None:
    for most in (1, 2, 3):
        bot.reset()
        text = bot.chat("Can I pay by card?", max_tokens=most)
        found = server.ask("Can I pay by card?", **{name: most})
        assert found["choices"][0]["message"]["content"] == text != SHOP[3][1]
        assert found["choices"][0]["finish_reason"] == "length"
        assert found["usage"]["completion_tokens"] == most
        told = streamed(server, messages_of("Can I pay by card?"), **{name: most})
        assert (told["texts"], told["reasons"]) == ({0: text}, {0: "length"})


def test_several_answers_are_all_the_same(server: Served) -> None:
    for question in (QUESTIONS[0], OPEN):
        one, two = server.ask(question), server.ask(question, n=2)
        assert [choice["index"] for choice in two["choices"]] == [0, 1]
        assert {c["message"]["content"] for c in two["choices"]} == {one["choices"][0]["message"]["content"]}
        assert {c["finish_reason"] for c in two["choices"]} == {"stop"}
        assert two["usage"]["completion_tokens"] == 2 * one["usage"]["completion_tokens"]
        assert two["usage"]["prompt_tokens"] == one["usage"]["prompt_tokens"]
        told = streamed(server, messages_of(question), n=2)
        assert set(told["texts"].values()) == {one["choices"][0]["message"]["content"]}
        assert told["reasons"] == {0: "stop", 1: "stop"}


def test_log_probabilities_are_those_of_the_model(server: Served, bot: GPT2Chatbot) -> None:
    from gpt2chat.explanation import explain

    for question in (QUESTIONS[3], QUESTIONS[1], OPEN):
        bot.reset()
        bot.chat(question)
        assert bot.answer
        own = explain(bot.decoder, bot.answer.prompt, bot.answer.tokens, top=2)
        found = server.ask(question, logprobs=True, top_logprobs=2)["choices"][0]
        tokens = found["logprobs"]["content"]
        assert [token["logprob"] for token in tokens] == pytest.approx([each.logprob for each in own], abs=1e-3)
        assert all(len(token["top_logprobs"]) == 2 for token in tokens)
        spelt = b"".join(bytes(token["bytes"]) for token in tokens).decode()
        assert spelt == found["message"]["content"]
        assert server.ask(question)["choices"][0]["logprobs"] is None


def test_a_stop_string_of_the_client_cuts(server: Served) -> None:
    found = server.ask("Can I pay by card?", stop=["all"])
    assert found["choices"][0]["message"]["content"] == "Yes,\n"
    assert found["choices"][0]["finish_reason"] == "stop"


def test_a_fallback_is_told_and_an_answer_is_told_apart(server: Served) -> None:
    for question in outside()[:8]:
        found = server.ask(question)
        assert found["choices"][0]["message"]["content"] == UNSURE
        assert found["gpt2chat"]["fallback"] is True
        assert 0 <= found["gpt2chat"]["confidence"] < 1
    found = server.ask("WHEN do you open")
    assert found["gpt2chat"] == {"dropped_turns": 0, "confidence": 1.0, "fallback": False}


def test_a_chat_that_is_too_long_loses_its_beginning_and_is_answered(server: Served) -> None:
    said = messages_of(*["How is it?", "Fine, thank you, and how are you today?"] * 12, "When do you open?")
    found = server.post(PATHS[0], {"messages": said}).json()
    assert found["choices"][0]["message"]["content"] == "At nine."
    assert found["gpt2chat"]["dropped_turns"] > 0


def test_what_cannot_fit_is_refused(server: Served) -> None:
    response = server.post(PATHS[0], {"messages": messages_of("word " * 500)})
    assert response.status_code == 400
    assert response.json()["error"]["code"] == "context_length_exceeded"


def test_a_client_who_leaves_is_no_trouble(server: Served) -> None:
    with httpx.stream(
        "POST", server.url + PATHS[0], json={"messages": messages_of(OPEN), "stream": True}, timeout=60
    ) as response:
        assert response.status_code == 200
    assert server.ask("When do you open?")["choices"][0]["message"]["content"] == "At nine."


def test_figures_count_answers_and_not_what_was_looked_at(server: Served) -> None:
    def counted() -> float:
        found = re.search(r"^gpt2chat_answer_seconds_count (\S+)$", server.get("/metrics").text, re.M)
        assert found
        return float(found[1])

    before = counted()
    server.ask(OPEN)
    server.ask("When do you open?", n=2)
    assert counted() - before == 3


def test_the_object_is_the_one_that_is_described(server: Served) -> None:
    notes = server.get("/openapi.json").json()["components"]["schemas"]["Notes"]["properties"]
    assert set(server.ask("Who wrote Hamlet?")["gpt2chat"]) <= set(notes)


# -- settings ------------------------------------------------------------------------------------------------------


def said(server: Served, question: str) -> tuple[str, Any]:
    found = server.ask(question, max_tokens=20)
    return found["choices"][0]["message"]["content"], found["gpt2chat"].get("fallback")


def test_the_operator_says_how_sure_and_what_instead(model: Path) -> None:
    with served(model, fallback=UNSURE, threshold=0.0) as free:
        for question in outside()[:5]:
            text, fallback = said(free, question)
            assert text in ANSWERS and fallback is False
    with served(model, grounded=True, threshold=1.0) as strict:
        assert said(strict, OPEN) == (FALLBACK, True)
        assert said(strict, "when do you open") == ("At nine.", False)


def test_without_a_fallback_or_where_it_is_not_wanted_the_model_speaks(model: Path) -> None:
    for settings in ({}, {"fallback": UNSURE, "grounded": False}):
        with served(model, generation=GenerationConfig(temperature=0, max_new_tokens=8), **settings) as free:
            assert free.service.grounding is None
            assert said(free, "When do you open?")[0] != "At nine."


def test_examples_of_the_operator_are_answers_too(model: Path) -> None:
    shown = (Message("user", "How warm is the greenhouse?"), Message("assistant", "Very."))
    with served(model, fallback=UNSURE, examples=shown) as running:
        assert said(running, "how warm is the greenhouse") == ("Very.", False)
        assert said(running, "When do you open?") == ("At nine.", False)


def test_a_model_that_keeps_nothing_gives_the_fallback(tiny_checkpoint: Path) -> None:
    with served(tiny_checkpoint, fallback=UNSURE, grounded=True) as running:
        found = running.ask("When do you open?")
        assert found["choices"][0]["message"]["content"] == UNSURE
        assert found["gpt2chat"]["fallback"] is True and found["gpt2chat"]["confidence"] == 0


def test_a_small_queue_takes_a_question_of_many_candidates(model: Path) -> None:
    """One question is one request, however many answers the model is asked about."""
    asked = ["card close", "when voucher", "when where", "hours card"]
    grounding = Grounding(SHOP, UNSURE)
    asked = [question for question in asked if len(grounding.candidates(question)) > 2]
    assert asked
    with served(model, fallback=UNSURE, streams=1, waiting=1) as narrow:
        for question in asked:
            assert narrow.post(PATHS[0], {"messages": messages_of(question)}).status_code == 200


@pytest.mark.parametrize("match", [True, False])
def test_an_ungrounded_server_reads_questions_as_the_bot_does(model: Path, match: bool) -> None:
    bot = GPT2Chatbot("demo", match=match, generation=GenerationConfig(temperature=0, max_new_tokens=8))
    bot.load_model(model)
    with served(model, match=match, generation=bot.generation) as running:
        for question in ("What are your opening hours?", "Who wrote Hamlet?", "When do you open?"):
            bot.reset()
            text = bot.chat(question)
            found = running.ask(question)
            assert found["choices"][0]["message"]["content"] == text
            assert bot.answer and found["usage"]["prompt_tokens"] == len(bot.answer.prompt)


def test_a_taught_question_of_an_faq_is_not_drawn_and_what_was_shown_is_given(model: Path) -> None:
    bot = GPT2Chatbot("demo", generation=GenerationConfig(temperature=1.5, max_new_tokens=8))
    bot.load_model(model)
    taught, other = "What are your opening hours?", "Who wrote Hamlet?"
    greedy = bot.chat(taught, temperature=0)
    examples = [{"user": "Is there a cat?", "bot": "Yes, Minka."}]
    with served(model, generation=bot.generation, examples=pairs_to_messages(examples)) as running:
        for seed in range(4):
            bot.reset()
            assert bot.chat(taught, seed=seed) == greedy
            asked = running.ask(taught, seed=seed, n=2)
            assert [choice["message"]["content"] for choice in asked["choices"]] == [greedy] * 2
        assert len({bot.chat(other, seed=seed) for seed in range(4)}) > 1
        bot.add_custom_examples(examples)
        for question in ("Is there a cat?", "is there a CAT", "Do you have a cat?"):
            assert bot.chat(question) == "Yes, Minka." == running.ask(question)["choices"][0]["message"]["content"]
    undisturbed = GPT2Chatbot("demo", match=False, generation=bot.generation)
    undisturbed.load_model(model)
    assert len({undisturbed.chat(taught, seed=seed) for seed in range(4)}) > 1


WAYS = ("{}", "please: {}", "hello, {}", "{} thanks", "tell me: {}", "sorry, {}", "so {}", "ok, {}")


def test_where_many_ways_were_taught_the_model_has_its_say_in_both(model: Path, tmp_path: Path) -> None:
    loaded = checkpoint.load(model)
    taught = [(way.format(question), answer) for question, answer in SHOP for way in WAYS]
    checkpoint.save(dataclasses.replace(loaded, taught=taught, about={"base": "tiny"}), tmp_path / "many.pt")
    bot = GPT2Chatbot("demo", generation=GenerationConfig(temperature=0, max_new_tokens=8))
    bot.load_model(tmp_path / "many.pt")
    read, said = list[str](), list[dict[str, str]]()
    with served(tmp_path / "many.pt", generation=bot.generation) as running:
        either = "pay with a voucher"
        for question in (either, "card or voucher?", "Who wrote Hamlet?", "when do you open", "👋" * 12, either):
            said.append({"role": "user", "content": question})
            text = bot.chat(question)
            found = running.ask(question) if len(said) == 1 else running.post(PATHS[0], {"messages": said}).json()
            assert found["choices"][0]["message"]["content"] == text
            assert bot.answer and found["usage"]["prompt_tokens"] == len(bot.answer.prompt)
            said.append({"role": "assistant", "content": text})
            read.append(bot.matcher.phrased(question))
    assert [question in dict(taught) for question in read] == [True, True, False, True, False, True]


def test_the_terminal_says_the_same(server: Served, model: Path) -> None:
    questions = [OPEN, "When do you open?", "Who wrote Hamlet?"]
    for question in questions:
        out = invoke("chat", model, "--fallback", UNSURE, "-p", question, "--json").stdout
        text = json.loads(out)["answer"]
        assert text == server.ask(question)["choices"][0]["message"]["content"]


def test_what_was_shown_goes_before_the_fallback_of_a_model_of_conversations_too(model: Path, tmp_path: Path) -> None:
    checkpoint.save(dataclasses.replace(checkpoint.load(model), about={"base": "tiny"}), tmp_path / "talks.pt")
    examples = pairs_to_messages([{"user": "Is there a cat?", "bot": "Yes, Minka."}])
    with served(tmp_path / "talks.pt", fallback=UNSURE, examples=examples) as running:
        for question, answer in (("Is there a cat?", "Yes, Minka."), ("Who wrote Hamlet?", UNSURE)):
            assert running.ask(question)["choices"][0]["message"]["content"] == answer
