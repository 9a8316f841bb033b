"""Every token is scored once, with the likelihood the model gives it; replies are judged letter by letter."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence

import pytest
import torch
import torch.nn.functional as F
from hypothesis import example, given, settings
from hypothesis import strategies as st

from gpt2chat.conversation import TEMPLATES, Message, render
from gpt2chat.data import Dataset
from gpt2chat.errors import ConfigError, ContextError
from gpt2chat.evaluation import Perplexity, answer_perplexity, replies, replies_in_a_row, text_perplexity
from gpt2chat.model import GPT2, GPT2Config
from gpt2chat.tokenizer import Tokenizer
from gpt2chat.training import TrainConfig, make_optimizer, train

CHAT = TEMPLATES["chat"]
TEXT = "The cat sat on the mat, and then — 明日 👋 — it left.\n"
TAUGHT = [
    [Message("user", "Hello"), Message("assistant", "Hi there, 明日 👋!")],
    [Message("user", "Bye"), Message("assistant", "See you.")],
]


@torch.no_grad()
def nats_of(model: GPT2, ids: Sequence[int]) -> torch.Tensor:
    """The loss of each id but the first, given all before it."""
    batch = torch.tensor([list(ids)])
    return F.cross_entropy(model.logits(model.hidden_states(batch))[0, :-1], batch[0, 1:], reduction="none")


@pytest.fixture(scope="module")
def forgetful() -> GPT2:
    """A model whose next id depends on the present one alone, so that no window can change a score."""
    model = GPT2(GPT2Config(n_layer=2, n_head=2, n_embd=32, n_ctx=16)).init_weights(1).eval()
    with torch.no_grad():
        model.wte.weight.mul_(20)
        model.wpe.weight.zero_()
        for block in model.h:
            block.attn.c_proj.weight.zero_()
    return model


@pytest.fixture(scope="module")
def blank(tiny_config: GPT2Config) -> GPT2:
    """All weights zero: every id is as likely as any other."""
    model = GPT2(tiny_config).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.zero_()
    return model


# -- texts ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("text", ["a", TEXT, TEXT * 4])
def test_a_text_that_fits_is_scored_with_all_before_it(tiny_model: GPT2, tokenizer: Tokenizer, text: str) -> None:
    ids = [tokenizer.end_id, *tokenizer.encode(text)]
    assert len(ids) <= 128
    found = text_perplexity(tiny_model, tokenizer, text)
    assert found.nats == pytest.approx(float(nats_of(tiny_model, ids).sum()), rel=1e-5)
    assert (found.tokens, found.bytes) == (len(ids) - 1, len(text.encode()))


@settings(max_examples=40)
@given(words=st.integers(1, 90), stride=st.integers(1, 40))
@example(words=15, stride=8)
@example(words=16, stride=8)
@example(words=50, stride=15)
@example(words=50, stride=16)
@example(words=50, stride=17)
def test_sliding_windows_score_every_token_exactly_once(
    forgetful: GPT2, tokenizer: Tokenizer, words: int, stride: int
) -> None:
    text = " ".join(f"w{n * n % 97}" for n in range(words))
    ids = [tokenizer.end_id, *tokenizer.encode(text)]
    each = torch.cat([nats_of(forgetful, ids[at : at + 2]) for at in range(len(ids) - 1)])
    found = text_perplexity(forgetful, tokenizer, text, stride)
    assert found.tokens == len(ids) - 1
    assert found.nats == pytest.approx(float(each.sum()), rel=1e-4)


def test_a_stride_of_one_gives_each_token_the_whole_context(tokenizer: Tokenizer) -> None:
    config = GPT2Config(n_layer=1, n_head=1, n_embd=32, n_ctx=32)
    model = GPT2(config).init_weights(0).eval()
    text = TEXT * 6
    ids = [tokenizer.end_id, *tokenizer.encode(text)]
    stepwise = sum(float(nats_of(model, ids[max(0, end - 32) : end])[-1]) for end in range(2, len(ids) + 1))
    assert text_perplexity(model, tokenizer, text, stride=1).nats == pytest.approx(stepwise, rel=1e-5)


def test_a_stride_that_goes_nowhere_is_refused(tiny_model: GPT2, tokenizer: Tokenizer) -> None:
    with pytest.raises(ConfigError, match="stride: expected"):
        text_perplexity(tiny_model, tokenizer, TEXT, stride=-1)


def test_a_model_that_knows_nothing_has_the_perplexity_of_its_vocabulary(blank: GPT2, tokenizer: Tokenizer) -> None:
    for text in ("a", TEXT, TEXT * 20):
        assert text_perplexity(blank, tokenizer, text).per_token == pytest.approx(50257, rel=1e-4)
    found = answer_perplexity(blank, tokenizer, CHAT, TAUGHT)
    assert found.per_token == pytest.approx(50257, rel=1e-4)


def test_an_empty_text_has_nothing_to_score(tiny_model: GPT2, tokenizer: Tokenizer) -> None:
    found = text_perplexity(tiny_model, tokenizer, "")
    assert (found.nats, found.tokens, found.bytes, found.per_token) == (0.0, 0, 0, 1.0)


@given(nats=st.floats(0, 500), tokens=st.integers(1, 1000), more=st.integers(0, 1000))
def test_perplexity_per_token_and_per_byte_share_one_likelihood(nats: float, tokens: int, more: int) -> None:
    found = Perplexity(nats, tokens, tokens + more)
    assert math.log(found.per_token) * found.tokens == pytest.approx(nats, abs=1e-9)
    assert math.log(found.per_byte) * found.bytes == pytest.approx(nats, abs=1e-9)
    shown = json.loads(json.dumps(found.to_dict()))
    assert shown["bits_per_byte"] == pytest.approx(math.log2(found.per_byte), abs=1e-4)
    assert (shown["nats"], shown["tokens"], shown["bytes"]) == (nats, tokens, tokens + more)


def test_an_unbearable_perplexity_is_still_a_number() -> None:
    assert math.isfinite(Perplexity(1e9, 1, 1).per_token)


# -- answers -------------------------------------------------------------------------------------------------------


def test_answers_alone_are_scored_given_what_comes_before(tiny_model: GPT2, tokenizer: Tokenizer) -> None:
    conversations = [[Message("system", "Be kind."), *TAUGHT[0], *TAUGHT[1]], TAUGHT[1]]
    nats, tokens = 0.0, 0
    for conversation in conversations:
        rendered = render(conversation, CHAT, tokenizer)
        wanted = torch.tensor(rendered.loss_mask[1:])
        nats += float(nats_of(tiny_model, rendered.ids)[wanted].sum())
        tokens += sum(rendered.loss_mask)
    found = answer_perplexity(tiny_model, tokenizer, CHAT, conversations)
    assert found.nats == pytest.approx(nats, rel=1e-5)
    answers = ["Hi there, 明日 👋!", "See you.", "See you."]
    assert found.tokens == tokens == sum(len(tokenizer.encode(f" {answer}")) + 1 for answer in answers)
    assert found.bytes == sum(len(answer.encode()) for answer in answers)


def test_a_longer_question_adds_nothing_to_score(blank: GPT2, tokenizer: Tokenizer) -> None:
    short = [Message("user", "Hi"), Message("assistant", "Yes.")]
    long = [Message("user", "Hi " * 40), Message("assistant", "Yes.")]
    one, other = (answer_perplexity(blank, tokenizer, CHAT, [conversation]) for conversation in (short, long))
    assert (one.tokens, one.bytes) == (other.tokens, other.bytes) == (3, 4)
    assert one.nats == pytest.approx(other.nats)


@pytest.fixture(scope="module")
def taught(tokenizer: Tokenizer, tiny_config: GPT2Config) -> GPT2:
    model = GPT2(tiny_config).init_weights(0)
    config = TrainConfig(epochs=60, learning_rate=1e-2, row_tokens=64)
    data = Dataset([render(conversation, CHAT, tokenizer) for conversation in TAUGHT])
    list(train(model, data, config, make_optimizer(model, config), tokenizer.end_id))
    return model.eval()


def test_a_model_replies_exactly_what_it_was_taught_and_stops(taught: GPT2, tokenizer: Tokenizer) -> None:
    found = list(replies(taught, tokenizer, CHAT, TAUGHT))
    assert [reply.question for reply in found] == ["Hello", "Bye"]
    assert (
        [reply.answer for reply in found] == [reply.expected for reply in found] == ["Hi there, 明日 👋!", "See you."]
    )
    assert all(reply.exact and reply.stopped for reply in found)
    assert answer_perplexity(taught, tokenizer, CHAT, TAUGHT).per_token < 1.5


def test_another_answer_is_not_exact_and_a_cut_one_has_not_stopped(taught: GPT2, tokenizer: Tokenizer) -> None:
    [other] = replies(taught, tokenizer, CHAT, [[TAUGHT[0][0], Message("assistant", "Hi There, 明日 👋!")]])
    assert other.stopped
    assert not other.exact
    [cut] = replies(taught, tokenizer, CHAT, TAUGHT[:1], max_new_tokens=2)
    assert cut.answer == "Hi there"
    assert not cut.stopped
    assert not cut.exact


def test_the_last_question_is_asked_with_the_turns_before_it(tiny_model: GPT2, tokenizer: Tokenizer) -> None:
    alone = list(replies(tiny_model, tokenizer, CHAT, [TAUGHT[1]], max_new_tokens=8))
    after = list(replies(tiny_model, tokenizer, CHAT, [[*TAUGHT[0], *TAUGHT[1]]], max_new_tokens=8))
    assert alone[0].question == after[0].question == "Bye"
    assert alone[0].answer != after[0].answer


def test_an_answer_that_the_context_cannot_hold_is_named(tiny_model: GPT2, tokenizer: Tokenizer) -> None:
    long = [Message("user", "Hello"), Message("assistant", "word " * 200)]
    with pytest.raises(ContextError, match="expected at most 128 tokens, got 2"):
        answer_perplexity(tiny_model, tokenizer, CHAT, [long])


def test_questions_in_a_row_are_asked_in_one_chat(tiny_model: GPT2, tokenizer: Tokenizer) -> None:
    """Alone the second question gets the fresh answer; in a row it follows the first and its own answer."""
    fresh = list(replies(tiny_model, tokenizer, CHAT, TAUGHT))
    row = list(replies_in_a_row(tiny_model, tokenizer, CHAT, TAUGHT, 128))
    assert row[0] == fresh[0]
    before = [TAUGHT[0][0], Message("assistant", row[0].answer), *TAUGHT[1]]
    assert row[1] == next(replies(tiny_model, tokenizer, CHAT, [before]))


def test_questions_in_a_row_keep_to_the_taught_length(taught: GPT2, tokenizer: Tokenizer) -> None:
    questions = [TAUGHT[number % 2] for number in range(30)]
    one = len(render(TAUGHT[0], CHAT, tokenizer).ids)
    assert all(reply.exact for reply in replies_in_a_row(taught, tokenizer, CHAT, questions, one + 20))


def test_a_question_that_no_chat_could_hold_is_not_answered(tiny_model: GPT2, tokenizer: Tokenizer) -> None:
    long = [Message("user", "word " * 120), Message("assistant", "yes")]
    row = list(replies_in_a_row(tiny_model, tokenizer, CHAT, [long, TAUGHT[0]], 128))
    assert (row[0].answer, row[0].stopped) == ("", False)
    assert row[1] == next(replies(tiny_model, tokenizer, CHAT, TAUGHT[:1]))
