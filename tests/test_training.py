"""Training computes what it says, step by step, and goes on after an interruption as if there had been none."""

from __future__ import annotations

import dataclasses
import itertools
import json
import math
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from helpers_cli import weights_of
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from gpt2chat import checkpoint, loss
from gpt2chat.checkpoint import Checkpoint
from gpt2chat.conversation import TEMPLATES, Example, Message, render
from gpt2chat.data import Dataset, Record, Report, collate, render_records
from gpt2chat.errors import ConfigError, TrainingError
from gpt2chat.generation import Decoder, stream_answer
from gpt2chat.hardware import pick_dtype
from gpt2chat.loss import IGNORE, summed_loss
from gpt2chat.model import GPT2, MODEL_SIZES, GPT2Config
from gpt2chat.sampling import GenerationConfig
from gpt2chat.tokenizer import Tokenizer
from gpt2chat.training import (
    MAX_SKIPPED,
    Step,
    TrainConfig,
    count_steps,
    default_learning_rate,
    learning_rate,
    make_optimizer,
    mean_loss,
    train,
)

CHAT = TEMPLATES["chat"]
PAD = 0
SMALL = GPT2Config(n_layer=2, n_head=2, n_embd=32, n_ctx=128, vocab_size=211)
CONFIG = TrainConfig(epochs=3, batch_size=4, row_tokens=64, learning_rate=1e-3, warmup=0.1)
PAIRS = [
    ("Hello", "Hi there, how are you?"),
    ("What is the capital of France?", "Paris."),
    ("Good night", "Sleep well, 明日 👋"),
]


def examples(count: int, seed: int = 0) -> list[Example]:
    """Documents of random ids; half of the ids are targets."""
    rng = random.Random(seed)

    def one() -> Example:
        length = rng.randint(4, 30)
        ids = [rng.randrange(1, SMALL.vocab_size) for _ in range(length)]
        return Example(ids, [n >= length // 2 for n in range(length)], joinable=rng.random() < 0.5)

    return [one() for _ in range(count)]


DATA = Dataset(examples(40))


def network(dropout: float = 0.0, seed: int = 0) -> GPT2:
    return GPT2(dataclasses.replace(SMALL, dropout=dropout)).init_weights(seed)


def run(model: GPT2, config: TrainConfig = CONFIG, data: Dataset = DATA, steps: int | None = None) -> list[Step]:
    return list(itertools.islice(train(model, data, config, make_optimizer(model, config), PAD), steps))


def without_time(steps: Sequence[Step]) -> list[Step]:
    return [dataclasses.replace(step, seconds=0.0) for step in steps]


def same(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


# -- the loss ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("parts", [2, 3, 4])
def test_accumulation_equals_one_big_batch(parts: int) -> None:
    whole, cut = network(), network()
    expected = run(whole, steps=3)
    found = run(cut, dataclasses.replace(CONFIG, accumulate=parts), steps=3)
    for one, other in zip(expected, found, strict=True):
        assert other.loss == pytest.approx(one.loss, abs=1e-5)
        assert (other.targets, other.tokens) == (one.targets, one.tokens)
    for name, tensor in weights_of(whole).items():
        torch.testing.assert_close(weights_of(cut)[name], tensor, rtol=0, atol=1e-5)


@given(seed=st.integers(0, 2**16), count=st.integers(1, 8))
def test_a_packed_batch_costs_what_its_documents_cost_alone(seed: int, count: int) -> None:
    model, documents = network().eval(), examples(count, seed)
    rows = [documents[: count // 2], documents[count // 2 :]] if count > 1 else [documents]
    batch = collate([row for row in rows if row], PAD)
    alone = sum(summed_loss(model, collate([[document]], PAD)).item() for document in documents)
    assert summed_loss(model, batch).item() == pytest.approx(alone, rel=1e-5, abs=1e-4)


@given(seed=st.integers(0, 2**16))
def test_projecting_only_the_targets_gives_the_loss_over_all_logits(seed: int) -> None:
    model = network().eval()
    batch = collate([examples(3, seed), examples(2, seed + 1)], PAD)
    logits = model.logits(model.hidden_states(batch.input_ids, positions=batch.positions, mask=batch.mask))
    full = F.cross_entropy(logits.flatten(0, 1), batch.labels.flatten(), ignore_index=IGNORE, reduction="sum")
    found = summed_loss(model, batch)
    assert found.item() == pytest.approx(full.item(), rel=1e-5)
    parameters = list(model.parameters())
    for one, other in zip(torch.autograd.grad(found, parameters), torch.autograd.grad(full, parameters), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("frozen", [False, True])
@pytest.mark.parametrize("count", [1, 15, 16, 50])
def test_the_gradient_that_is_written_over_the_scores_is_that_of_torch(
    dtype: torch.dtype, frozen: bool, count: int
) -> None:
    torch.manual_seed(count)
    hidden, weight = torch.randn(count, 24, requires_grad=True), torch.randn(300, 24).requires_grad_(not frozen)
    labels = torch.randint(0, 300, (count,))
    labels[::7] = IGNORE
    scores = F.linear(hidden.to(dtype), weight.to(dtype)).float()
    theirs = F.cross_entropy(scores, labels, ignore_index=IGNORE, reduction="sum")
    ours = loss._CrossEntropy.apply(hidden, weight, labels, dtype)  # type: ignore[no-untyped-call]
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)
    inputs = [hidden] if frozen else [hidden, weight]
    close = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 0.05, "atol": 0.05}
    for one, other in zip(
        torch.autograd.grad(0.3 * ours, inputs), torch.autograd.grad(0.3 * theirs, inputs), strict=True
    ):
        torch.testing.assert_close(one, other, **close)
    with torch.no_grad():
        assert loss._CrossEntropy.apply(hidden, weight, labels, dtype) == ours  # type: ignore[no-untyped-call]


def test_a_step_projects_its_targets_and_little_more(monkeypatch: pytest.MonkeyPatch) -> None:
    model, projected = network(), list[int]()
    project = loss._CrossEntropy.apply

    def counted(hidden: Tensor, *rest: Any) -> Any:
        projected.append(len(hidden))
        return project(hidden, *rest)  # type: ignore[no-untyped-call]

    monkeypatch.setattr(loss._CrossEntropy, "apply", counted)
    mostly_given = Example([1] * 100, [False] * 97 + [True] * 3)
    [step] = run(model, TrainConfig(row_tokens=100), data=Dataset([mostly_given] * 4))
    assert (step.tokens, step.targets) == (400, 12)
    assert projected == [64]


def test_the_loss_of_a_step_is_the_mean_over_its_targets() -> None:
    model = network()
    before = mean_loss(model, DATA.examples, CONFIG.row_tokens, PAD)
    [step] = run(model, TrainConfig(batch_size=100, row_tokens=64, join=0.0))
    assert step.targets == sum(sum(example.loss_mask[1:]) for example in DATA.examples)
    assert step.tokens == sum(len(example.ids) for example in DATA.examples)
    assert step.loss == pytest.approx(before, rel=1e-5)


def test_mean_loss_does_not_depend_on_packing_and_refuses_nothing_to_score() -> None:
    model = network()
    alone = [summed_loss(model, collate([[e]], PAD)).item() for e in DATA.examples]
    expected = sum(alone) / sum(sum(e.loss_mask[1:]) for e in DATA.examples)
    for size in (1, 40, 128):
        assert mean_loss(model, DATA.examples, size, PAD) == pytest.approx(expected, rel=1e-5)
    for nothing in ([], [Example([1, 2], [False, False])]):
        with pytest.raises(TrainingError, match="no supervised token"):
            mean_loss(model, nothing, 64, PAD)


# -- the same run, twice or in two halves --------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_weights_and_another_seed_others() -> None:
    first, second, other = network(0.1), network(0.1), network(0.1)
    torch.manual_seed(1)
    steps = run(first)
    torch.manual_seed(2)
    assert without_time(run(second)) == without_time(steps)
    assert same(weights_of(first), weights_of(second))
    run(other, dataclasses.replace(CONFIG, seed=1))
    assert not same(weights_of(first), weights_of(other))


@pytest.fixture(scope="module")
def uninterrupted() -> tuple[list[Step], dict[str, Tensor]]:
    model = network(0.1)
    return run(model), weights_of(model)


@pytest.mark.parametrize("stop", [1, 3, 4, 8])
def test_a_resumed_run_equals_the_uninterrupted_one_bit_for_bit(
    uninterrupted: tuple[list[Step], dict[str, Tensor]], tmp_path: Path, stop: int
) -> None:
    steps, weights = uninterrupted
    borders = list(itertools.accumulate(count_steps(DATA, CONFIG)))
    assert len(steps) == borders[-1] > 8
    assert 3 in borders  # between two epochs; the other stops lie within one
    assert not {1, 4, 8} & set(borders)

    model = network(0.1)
    optimizer = make_optimizer(model, CONFIG)
    head = list(itertools.islice(train(model, DATA, CONFIG, optimizer, PAD), stop))
    state = Checkpoint(model.config, weights_of(model), CHAT, training={"optimizer": optimizer.state_dict()})
    checkpoint.save(state, tmp_path / "last.pt")
    torch.rand(5)  # whatever happens in between

    loaded = checkpoint.load(tmp_path / "last.pt")
    again = loaded.build_model()
    optimizer = make_optimizer(again, CONFIG)
    assert loaded.training is not None
    optimizer.load_state_dict(loaded.training["optimizer"])
    tail = list(train(again, DATA, CONFIG, optimizer, PAD, start=stop))
    assert without_time([*head, *tail]) == without_time(steps)
    assert same(weights_of(again), weights)


def test_dropout_is_on_while_training_and_off_while_validating() -> None:
    with_dropout, without = network(0.5), network()
    assert run(with_dropout, steps=1)[0].loss != run(without, steps=1)[0].loss
    assert mean_loss(with_dropout, DATA.examples, 64, PAD) == mean_loss(with_dropout, DATA.examples, 64, PAD)


def test_the_dropout_of_a_step_depends_on_the_seed_and_its_number() -> None:
    unmoved = TrainConfig(epochs=3, row_tokens=64, learning_rate=1e-30)
    one = Dataset(examples(1))
    losses = [step.loss for seed in (0, 1) for step in run(network(0.5), dataclasses.replace(unmoved, seed=seed), one)]
    assert len(set(losses)) == len(losses) == 6
    assert len({step.loss for step in run(network(), unmoved, one)}) == 1


# -- gradients that are not finite ---------------------------------------------------------------------------------


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_gradients_that_are_not_finite_never_reach_the_weights(poison: float) -> None:
    model, current = network(), [0]
    model.ln_f.bias.register_hook(lambda grad: grad * poison if current[0] in (3, 5, 6) else grad)
    before = weights_of(model)
    optimizer = make_optimizer(model, CONFIG)
    stream = train(model, DATA, CONFIG, optimizer, PAD)
    for current[0] in range(1, 10):
        step, after = next(stream), weights_of(model)
        assert step.number == current[0]
        assert step.skipped == (step.number in (3, 5, 6))
        assert same(before, after) == step.skipped
        assert all(torch.isfinite(tensor).all() for tensor in after.values())
        before = after
    assert all(torch.isfinite(t).all() for state in optimizer.state.values() for t in state.values())


def test_training_gives_up_when_gradients_stay_not_finite() -> None:
    model = network()
    model.ln_f.bias.register_hook(lambda grad: grad * math.nan)
    before, seen = weights_of(model), list[Step]()
    with pytest.raises(TrainingError, match="gradients were not finite 5 times in a row.*lower --learning_rate"):
        seen.extend(train(model, DATA, CONFIG, make_optimizer(model, CONFIG), PAD))
    with pytest.raises(TrainingError, match=f"step {MAX_SKIPPED}:"):
        for step in train(model, DATA, CONFIG, make_optimizer(model, CONFIG), PAD):
            assert step.skipped
    assert same(before, weights_of(model))


def test_large_gradients_are_clipped_to_the_norm_asked_for() -> None:
    model, taken = network(), list[float]()
    model.ln_f.bias.register_hook(lambda grad: grad * 1e6)
    config = dataclasses.replace(CONFIG, clip=0.5)
    optimizer = make_optimizer(model, config)
    optimizer.register_step_pre_hook(lambda *_: taken.append(norm_of(model)))
    [step] = itertools.islice(train(model, DATA, config, optimizer, PAD), 1)
    assert step.gradient_norm > 100
    assert taken == [pytest.approx(0.5, rel=1e-3)]


def norm_of(model: GPT2) -> float:
    return math.sqrt(sum(float(p.grad.square().sum()) for p in model.parameters() if p.grad is not None))


# -- number types and kernels --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_matrix_products_run_in_the_type_asked_for_and_weights_stay_float32(dtype: torch.dtype) -> None:
    model, found = network(), set[torch.dtype]()
    for module in model.modules():
        if isinstance(module, torch.nn.Linear):
            module.register_forward_hook(lambda module, given, out: found.add(out.dtype))
    next(train(model, DATA, CONFIG, make_optimizer(model, CONFIG), PAD, dtype))
    assert found == {dtype}
    found.clear()
    mean_loss(model, DATA.examples[:2], 64, PAD, dtype)
    assert found == {dtype}
    assert {parameter.dtype for parameter in model.parameters()} == {torch.float32}


@pytest.mark.parametrize(
    ("query", "device"),
    [
        ("torch.cuda.is_bf16_supported", "cuda"),
        ("torch.cpu._is_amx_tile_supported", "cpu"),
        ("torch.cpu._is_avx512_bf16_supported", "cpu"),
    ],
)
def test_auto_is_bfloat16_only_where_the_hardware_has_it(
    query: str, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("cuda.is_bf16_supported", "cpu._is_amx_tile_supported", "cpu._is_avx512_bf16_supported"):
        monkeypatch.setattr(f"torch.{name}", lambda **_: False)
    assert pick_dtype("auto", torch.device(device)) == torch.float32
    monkeypatch.setattr(query, lambda **_: True)
    assert pick_dtype("auto", torch.device(device)) == torch.bfloat16
    assert pick_dtype("float32", torch.device(device)) == torch.float32


def test_the_optimizer_updates_in_one_fused_kernel() -> None:
    assert all(group["fused"] for group in make_optimizer(network(), CONFIG).param_groups)


# -- rates, decay, frozen weights ----------------------------------------------------------------------------------


@given(total=st.integers(1, 500), warmup=st.floats(0, 1))
def test_the_rate_rises_to_its_peak_and_falls_to_a_tenth(total: int, warmup: float) -> None:
    config = TrainConfig(learning_rate=2e-3, warmup=warmup)
    rates = [learning_rate(step, total, config) for step in range(total)]
    up = math.ceil(warmup * total)
    assert rates[:up] == sorted(rates[:up])
    assert rates[up:] == sorted(rates[up:], reverse=True)
    assert max(rates) == pytest.approx(2e-3)
    assert rates[0] > 0
    assert min(rates[up:], default=1.0) >= 2e-4 * (1 - 1e-9)


def test_the_rate_of_a_long_run_starts_small_and_ends_at_a_tenth() -> None:
    config = TrainConfig(learning_rate=1e-3, warmup=0.05)
    rates = [learning_rate(step, 1000, config) for step in range(1000)]
    assert rates[0] == pytest.approx(1e-3 / 50)
    assert rates[49] == rates[50] == pytest.approx(1e-3)
    assert rates[525] == pytest.approx(0.55e-3, rel=1e-3)
    assert rates[-1] == pytest.approx(1e-4, rel=1e-2)


def test_each_step_tells_the_rate_it_used() -> None:
    steps = run(network())
    assert [step.learning_rate for step in steps] == [learning_rate(i, len(steps), CONFIG) for i in range(len(steps))]
    assert [step.number for step in steps] == list(range(1, len(steps) + 1))
    assert {step.total for step in steps} == {len(steps)} == {sum(count_steps(DATA, CONFIG))}


def test_weight_decay_reaches_matrices_only() -> None:
    model = network()
    optimizer = make_optimizer(model, dataclasses.replace(CONFIG, weight_decay=0.3))
    found = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert {name: found[id(p)] for name, p in model.named_parameters()} == {
        name: 0.3 if p.dim() == 2 else 0.0 for name, p in model.named_parameters()
    }
    with torch.no_grad():
        model.ln_f.weight.fill_(1.0)
    before = weights_of(model)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, tensor in weights_of(model).items():
        factor = 1 - CONFIG.learning_rate * 0.3 if tensor.dim() == 2 else 1.0
        torch.testing.assert_close(tensor, before[name] * factor, rtol=1e-6, atol=0)


def test_frozen_parameters_stay() -> None:
    model = network()
    for name, parameter in model.named_parameters():
        parameter.requires_grad_(name.startswith("h.1."))
    before = weights_of(model)
    run(model, dataclasses.replace(CONFIG, weight_decay=0.5), steps=3)
    changed = {name for name, tensor in weights_of(model).items() if not torch.equal(tensor, before[name])}
    assert changed
    assert all(name.startswith("h.1.") for name in changed)


@pytest.mark.parametrize(
    ("name", "rate"), [("gpt2-small (124M)", 5e-5), ("gpt2-medium (355M)", 5e-5), ("gpt2-xl (1558M)", 5e-5)]
)
def test_the_default_rate_of_the_released_sizes(name: str, rate: float) -> None:
    assert default_learning_rate(MODEL_SIZES[name]) == rate


def test_the_default_rate_is_larger_for_smaller_models() -> None:
    rates = [default_learning_rate(GPT2Config(n_head=2, n_embd=width)) for width in (768, 512, 384, 256, 64, 32)]
    assert rates == sorted(rates)
    assert rates[0] == 5e-5
    assert rates[3] == rates[-1] == 1e-3


# -- small and odd data --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 5])
def test_a_handful_of_pairs_trains(tokenizer: Tokenizer, tiny_config: GPT2Config, count: int) -> None:
    pairs = [(Message("user", f"question {n}"), Message("assistant", f"answer {n}")) for n in range(count)]
    model = GPT2(tiny_config).init_weights(0)
    config = dataclasses.replace(CONFIG, epochs=4, learning_rate=1e-2)
    steps = list(
        train(model, Dataset([render(p, CHAT, tokenizer) for p in pairs]), config, make_optimizer(model, config), 50256)
    )
    assert len(steps) == 4
    assert all(step.targets > 0 and math.isfinite(step.loss) for step in steps)
    assert steps[-1].loss < steps[0].loss


def test_less_than_one_block_of_text_trains(tokenizer: Tokenizer, tiny_config: GPT2Config) -> None:
    [blocks] = render_records([Record("t:1", "Hi.")], CHAT, tokenizer, 64, "error", Report())
    model = GPT2(tiny_config).init_weights(0)
    [step] = train(model, Dataset(texts=blocks), TrainConfig(), make_optimizer(model, TrainConfig()), 50256)
    assert (step.targets, step.tokens) == (2, 3)  # "." and the end token follow something
    assert step.loss == pytest.approx(math.log(50257), rel=0.02)


@pytest.mark.parametrize(
    "data", [[], [Example([], [])], [Example([1], [True])], [Example([1, 2, 3], [True, False, False])]]
)
def test_nothing_to_learn_is_an_error(data: list[Example]) -> None:
    model = network()
    with pytest.raises(TrainingError, match="no token to learn from"):
        run(model, data=Dataset(data))


def test_examples_without_a_target_beside_others_do_no_harm() -> None:
    model = network()
    mute = [Example([], []), Example([1], [True]), Example([1, 2], [False, False])]
    steps = run(model, dataclasses.replace(CONFIG, epochs=1), data=Dataset([*mute, *DATA.examples, *mute]))
    assert all(math.isfinite(step.loss) for step in steps)
    assert sum(step.targets for step in steps) >= sum(sum(e.loss_mask[1:]) for e in DATA.examples)


@pytest.mark.parametrize("n_ctx", [40, 100, 127])
def test_a_context_that_is_no_multiple_of_64_trains(n_ctx: int) -> None:
    config = dataclasses.replace(SMALL, n_ctx=n_ctx)
    model = GPT2(config).init_weights(0)
    full = [Example([1] * n_ctx, [True] * n_ctx)] * 3
    steps = run(model, TrainConfig(row_tokens=n_ctx), data=Dataset(full))
    assert [step.targets for step in steps] == [3 * (n_ctx - 1)]
    assert mean_loss(model, full, n_ctx, PAD) > 0


# -- learning ------------------------------------------------------------------------------------------------------


def test_a_tiny_model_learns_three_pairs_and_says_them_back_from_its_file(
    tokenizer: Tokenizer, tiny_config: GPT2Config, tmp_path: Path
) -> None:
    pairs = [(Message("user", user), Message("assistant", bot)) for user, bot in PAIRS]
    data = Dataset([render(pair, CHAT, tokenizer) for pair in pairs])
    config = TrainConfig(epochs=60, learning_rate=1e-2, row_tokens=64)
    model = GPT2(tiny_config).init_weights(0)
    steps = list(train(model, data, config, make_optimizer(model, config), tokenizer.end_id))
    assert steps[-1].loss < 0.5 < 10 < steps[0].loss
    checkpoint.save(Checkpoint(tiny_config, weights_of(model), CHAT), tmp_path / "taught.pt")

    loaded = checkpoint.load(tmp_path / "taught.pt")
    assert loaded.template == CHAT
    decoder = Decoder(loaded.build_model())
    for user, bot in PAIRS:
        config = GenerationConfig(temperature=0, max_new_tokens=40)
        answer = stream_answer(decoder, [Message("user", user)], loaded.template, tokenizer, config)
        assert "".join(answer) == bot
        assert decoder.finish_reason == "stop"


def test_the_loss_on_a_text_falls(tokenizer: Tokenizer, tiny_config: GPT2Config) -> None:
    text = "The cat sat on the mat. The dog lay on the rug. " * 20
    [blocks] = render_records([Record("t:1", text)], CHAT, tokenizer, 64, "error", Report())
    model = GPT2(tiny_config).init_weights(0)
    config = TrainConfig(epochs=12, learning_rate=1e-2, row_tokens=64)
    before = mean_loss(model, blocks, 64, tokenizer.end_id)
    list(train(model, Dataset(texts=blocks), config, make_optimizer(model, config), tokenizer.end_id))
    assert before == pytest.approx(math.log(50257), rel=0.02)
    assert mean_loss(model, blocks, 64, tokenizer.end_id) < before / 2


# -- settings ------------------------------------------------------------------------------------------------------

WHOLE = {name: [0, -1, 1.5, 2.0, True, "4", None, math.nan] for name in ("epochs", "batch_size", "row_tokens")}
NUMBERS = {
    "learning_rate": [0, 0.0, -1e-3, math.nan, math.inf, 11, True, "1e-4", None],
    "clip": [0, -1, math.nan, True, "1", None],
    "warmup": [-0.1, 1.1, math.nan, True, "0.1", None],
    "weight_decay": [-0.1, math.nan, math.inf, True, "0", None],
    "join": [-0.5, 1.5, math.nan, True, "0.5", None],
    "accumulate": [0, 5, True, "1", math.nan],
    "seed": [True, "0", 1.5, None, math.nan, -1, 2**63],
}


REFUSED = [
    pytest.param(name, value, id=f"{name}={value!r}") for name, values in (WHOLE | NUMBERS).items() for value in values
]


@pytest.mark.parametrize(("name", "value"), REFUSED)
def test_a_setting_out_of_range_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError) as caught:
        TrainConfig(**{name: value})
    assert str(caught.value).startswith(f"{name}: expected")
    assert repr(value) in str(caught.value)


@pytest.mark.parametrize("seed", [0, 2**31, 2**53, 2**63 - 1])
def test_every_seed_from_0_to_63_bits_trains(seed: int) -> None:
    assert len(run(network(0.1), dataclasses.replace(CONFIG, seed=seed), steps=2)) == 2


def test_settings_survive_json() -> None:
    assert TrainConfig(**json.loads(json.dumps(dataclasses.asdict(CONFIG)))) == CONFIG
