"""What comes back is what greedy decoding gives, without decoding; and an open run ends by it, interrupted or not."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from helpers_cli import weights_of

from gpt2chat import checkpoint
from gpt2chat.checkpoint import Checkpoint
from gpt2chat.conversation import TEMPLATES, Example, Message, render
from gpt2chat.data import Dataset
from gpt2chat.evaluation import replies
from gpt2chat.model import GPT2, GPT2Config
from gpt2chat.recall import ALL, SAMPLE, Quiz, Recall
from gpt2chat.tokenizer import Tokenizer
from gpt2chat.training import LEAST_SHARE, SEVERAL, Pace, Step, TrainConfig, learning_rate, make_optimizer, train

CHAT = TEMPLATES["chat"]
PAIRS = [
    ("Hello", "Hi there, how are you?"),
    ("What is the capital of France?", "Paris."),
    ("Где музей?", "Музей за домом 1."),
    ("晚安", "睡个好觉 👋"),
    ("def f(x):", "\n    return {'a': x}\n"),
    ("Good night", "Sleep well."),
]


def talk(*said: str) -> list[Message]:
    return [Message(("user", "assistant")[n % 2], text) for n, text in enumerate(said)]


def rendered(pairs: Sequence[tuple[str, ...]], tokenizer: Tokenizer) -> list[Example]:
    return [render(talk(*pair), CHAT, tokenizer) for pair in pairs]


def fresh(config: GPT2Config) -> GPT2:
    return GPT2(config).init_weights(0)


# -- what is counted -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("row_tokens", [32, 128])
def test_what_comes_back_is_what_greedy_decoding_gives(
    row_tokens: int, tiny_config: GPT2Config, tokenizer: Tokenizer
) -> None:
    model, examples = fresh(tiny_config), rendered(PAIRS, tokenizer)
    config = TrainConfig(epochs=150, batch_size=2, learning_rate=1e-2, row_tokens=64, join=0.5)
    quiz, seen = Quiz(examples, tokenizer.end_id, row_tokens), set[int]()
    for step in train(model, Dataset(examples), config, make_optimizer(model, config), tokenizer.end_id):
        if step.number % 15 == 0:
            found = quiz.ask(model)
            given = list(replies(model, tokenizer, CHAT, [talk(*pair) for pair in PAIRS]))
            expected = [tuple(tokenizer.encode(CHAT.lead + answer)) for _, answer in PAIRS]
            exact = [reply.stopped and reply.ids == ids for reply, ids in zip(given, expected, strict=True)]
            assert (found.recalled, found.checked, found.taught) == (sum(exact), 6, 6)
            assert found.sure <= found.recalled
            seen.add(found.recalled)
    assert {0, 6} < seen  # none, some and all of them


def test_of_many_answers_a_fixed_sample_is_asked(tiny_model: GPT2, tokenizer: Tokenizer) -> None:
    def quiz(count: int) -> Quiz:
        return Quiz(rendered([(f"number {n}", str(n)) for n in range(count)], tokenizer), tokenizer.end_id, 128)

    assert quiz(ALL).ask(tiny_model).checked == ALL
    found = quiz(ALL + 1).ask(tiny_model)
    assert (found.checked, found.taught) == (SAMPLE, ALL + 1)
    assert found.words() == "0 of 256 sampled of 513"
    assert found == quiz(ALL + 1).ask(tiny_model)
    assert found.to_dict() == {"recall": 0.0, "recalled": 0, "pairs": 256, "taught": 513}
    assert Recall(40, 40, 38, 39, 40).to_dict() == {"recall": 1.0, "recalled": 40, "pairs": 40}


def test_each_answer_of_a_conversation_is_asked_and_a_question_with_two_answers_once(
    tiny_model: GPT2, tokenizer: Tokenizer
) -> None:
    examples = rendered([("a", "b", "c", "d"), ("a", "b"), ("e", "one"), ("e", "two")], tokenizer)
    assert Quiz(examples, tokenizer.end_id, 128).ask(tiny_model).checked == 3


def test_an_answer_that_was_cut_and_a_text_are_not_asked(tokenizer: Tokenizer) -> None:
    [whole] = rendered([("a", "one two three")], tokenizer)
    cut = Example(whole.ids[:-2], whole.loss_mask[:-2])
    masked = Example(whole.ids, [False] * len(whole.ids))
    assert not Quiz([cut, masked], tokenizer.end_id, 128)
    assert Quiz([cut, whole], tokenizer.end_id, 128).taught == 1


# -- an open end ---------------------------------------------------------------------------------------------------

OPEN = TrainConfig(steps=120, open_end=True, batch_size=2, learning_rate=1e-2, row_tokens=64, apart=0.5, seed=3)
EVERY = 4  # steps between two checks


def test_the_rate_warms_up_stays_falls_with_what_is_learnt_and_with_the_last_steps() -> None:
    rates = [learning_rate(step, 100, OPEN) / OPEN.learning_rate for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * n for n in range(1, 11)])
    assert rates[10:80] == pytest.approx([1.0] * 70)
    assert rates[80:] == sorted(rates[80:], reverse=True)
    assert LEAST_SHARE < rates[-1] < 0.2
    assert learning_rate(50, 100, OPEN, 0.3) == pytest.approx(0.3 * OPEN.learning_rate)
    for steps in (1, 2, 3):
        assert all(learning_rate(step, steps, OPEN) > 0 for step in range(steps))


def test_a_run_that_is_given_more_starts_a_schedule_of_its_own() -> None:
    more = dataclasses.replace(OPEN, open_end=False, begin=60, warmup=0.1)
    alone = dataclasses.replace(more, begin=0)
    assert [learning_rate(60 + n, 100, more) for n in range(40)] == [learning_rate(n, 40, alone) for n in range(40)]


def test_the_pace_only_slows_down_and_ends_when_all_is_learnt() -> None:
    pace = Pace()
    pace.follow(0.4, False)
    pace.follow(0.2, False)
    assert (pace.share, pace.done) == (pytest.approx(0.6), False)
    for looks in range(1, SEVERAL + 1):
        pace.follow(1.0, False)
        assert (pace.share, pace.complete, pace.done) == (LEAST_SHARE, looks, looks == SEVERAL)
    pace.follow(0.9, False)
    assert (pace.complete, pace.done) == (0, False)
    pace.follow(1.0, True)
    assert pace.done


def open_run(
    model: GPT2, state: dict[str, object], tokenizer: Tokenizer, until: int | None = None, config: TrainConfig = OPEN
) -> tuple[list[Step], dict[str, object]]:
    """Train on from a state, checking as a run does; return the steps and the state after `until` steps."""
    examples = rendered(PAIRS, tokenizer)
    quiz, optimizer = Quiz(examples, tokenizer.end_id, 64), make_optimizer(model, config)
    if "optimizer" in state:
        optimizer.load_state_dict(state["optimizer"])  # type: ignore[arg-type]
    pace, number = Pace(**state.get("pace", {})), int(state.get("step", 0))  # type: ignore[arg-type,call-overload]
    checked = int(state.get("checked", 0))  # type: ignore[call-overload]

    def check() -> None:
        found = quiz.ask(model)
        pace.follow(found.recalled / found.checked, found.surely)

    if number % EVERY == 0 and checked != number:
        check()
    stream = train(
        model, Dataset(examples), config, optimizer, tokenizer.end_id, torch.float32, start=number, pace=pace
    )
    taken = []
    for step in itertools.islice(stream, until):
        taken.append(dataclasses.replace(step, seconds=0.0))
        if len(taken) != until and step.number % EVERY == 0:  # the interruption comes before the check
            check()
            checked = step.number
    plain = {"optimizer": optimizer.state_dict(), "pace": dataclasses.asdict(pace), "step": number + len(taken)}
    return taken, {**plain, "checked": checked}


def test_an_open_run_ends_with_its_answers_before_its_most_steps(tiny_config: GPT2Config, tokenizer: Tokenizer) -> None:
    model = fresh(tiny_config)
    steps, _ = open_run(model, {}, tokenizer)
    assert len(steps) < steps[0].total == 120
    assert Quiz(rendered(PAIRS, tokenizer), tokenizer.end_id, 64).ask(model).whole


@pytest.mark.parametrize("stop", [1, 3, 4, 5, 8, 40, 41, 42, 43, 44])
def test_an_open_run_that_is_resumed_equals_the_uninterrupted_one(
    stop: int, tiny_config: GPT2Config, tokenizer: Tokenizer, tmp_path: Path
) -> None:
    config = dataclasses.replace(tiny_config, dropout=0.1)
    whole, model = fresh(config), fresh(config)
    expected, _ = open_run(whole, {}, tokenizer)
    head, state = open_run(model, {}, tokenizer, stop)
    checkpoint.save(Checkpoint(config, weights_of(model), CHAT, training=state), tmp_path / "last.pt")
    loaded = checkpoint.load(tmp_path / "last.pt")
    again = loaded.build_model()
    assert loaded.training is not None
    tail, _ = open_run(again, loaded.training, tokenizer)
    assert [*head, *tail] == expected
    assert all(torch.equal(weights_of(again)[name], tensor) for name, tensor in weights_of(whole).items())


def test_an_open_run_in_parts_takes_the_same_steps(tiny_config: GPT2Config, tokenizer: Tokenizer) -> None:
    whole, cut = fresh(tiny_config), fresh(tiny_config)
    slow = dataclasses.replace(OPEN, learning_rate=1e-3)
    expected, _ = open_run(whole, {}, tokenizer, 12, slow)
    found, _ = open_run(cut, {}, tokenizer, 12, dataclasses.replace(slow, accumulate=2))
    assert [step.loss for step in found] == pytest.approx([step.loss for step in expected], abs=1e-4)
    for name, tensor in weights_of(whole).items():
        torch.testing.assert_close(weights_of(cut)[name], tensor, rtol=0, atol=1e-4)
