"""The network equals the reference, with and without a cache; sizes, names and configs are GPT-2's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2chat import pretrained
from gpt2chat.errors import ConfigError, ContextError, WeightsError
from gpt2chat.generation import Decoder
from gpt2chat.model import GPT2, MODEL_SIZES, GPT2Config, KVCache, parameter_count, weight_shapes
from gpt2chat.pretrained.layout import translate
from gpt2chat.sampling import GenerationConfig

VOCAB = 101


def reference(seed: int = 0, **sizes: int) -> transformers.GPT2LMHeadModel:
    """A transformers GPT-2 in which no two parameters are alike, so that a swapped pair shows."""
    torch.manual_seed(seed)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes)).eval()
    model.generation_config.eos_token_id = None
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter), alpha=0.02)
    return model


def ours(theirs: transformers.GPT2LMHeadModel) -> GPT2:
    """Our network with the reference's weights."""
    c = theirs.config
    config = GPT2Config(c.n_layer, c.n_head, c.n_embd, c.n_positions, c.vocab_size)
    model = GPT2.empty(config)
    translated = translate({name: t for name, t in theirs.state_dict().items() if name != "lm_head.weight"})
    model.load_state_dict({name: t.contiguous() for name, t in translated.tensors.items()}, assign=True)
    return model.eval()


def random_ids(rows: int, length: int, vocab: int = VOCAB, seed: int = 0) -> torch.Tensor:
    return torch.randint(vocab, (rows, length), generator=torch.Generator().manual_seed(seed))


@torch.inference_mode()
@pytest.mark.parametrize("tied", [True, False])
def test_shapes_and_parameters_are_known_without_building(tied: bool) -> None:
    config = GPT2Config(n_layer=2, n_head=2, n_embd=48, n_ctx=20, vocab_size=77, tie_word_embeddings=tied)
    built = {name: tuple(tensor.shape) for name, tensor in GPT2.empty(config).state_dict().items()}
    assert list(weight_shapes(config).items()) == list(built.items())
    assert parameter_count(config) == sum(parameter.numel() for parameter in GPT2.empty(config).parameters())


def logits(model: GPT2, ids: torch.Tensor, cache: KVCache | None = None) -> torch.Tensor:
    return model.logits(model.hidden_states(ids, cache))


def greedy(model: GPT2, prompt: torch.Tensor, count: int) -> list[int]:
    config = GenerationConfig(temperature=0, max_new_tokens=count)
    return list(Decoder(model).generate(prompt[0].tolist(), config, stop=()))


def reference_greedy(model: transformers.GPT2LMHeadModel, prompt: torch.Tensor, count: int) -> list[int]:
    out = model.generate(prompt, do_sample=False, max_new_tokens=count, min_new_tokens=count, pad_token_id=0)
    return out[0, prompt.size(1) :].tolist()


@pytest.fixture(scope="module")
def small() -> transformers.GPT2LMHeadModel:
    model = reference(n_layer=2, n_head=4, n_embd=64, n_positions=128, vocab_size=VOCAB)
    with torch.no_grad():  # far from uniform, so that greedy decoding wanders
        for parameter in model.parameters():
            parameter.mul_(3)
    return model


@pytest.fixture(scope="module")
def model(small: transformers.GPT2LMHeadModel) -> GPT2:
    return ours(small)


@pytest.fixture(scope="module")
def released() -> transformers.GPT2LMHeadModel:
    """124M parameters, random ones: the sizes are those of transformers' defaults."""
    return reference()


@torch.inference_mode()
def test_logits_equal_the_reference(small: transformers.GPT2LMHeadModel, model: GPT2) -> None:
    ids = random_ids(3, 128)
    assert (logits(model, ids) - small(ids).logits).abs().max() < 1e-4


@torch.inference_mode()
def test_logits_equal_the_reference_at_124m(released: transformers.GPT2LMHeadModel) -> None:
    model, ids = ours(released), random_ids(1, 64, vocab=50257)
    assert model.config == MODEL_SIZES["gpt2-small (124M)"]
    assert (logits(model, ids) - released(ids).logits).abs().max() < 1e-4


def test_greedy_ids_equal_the_reference(small: transformers.GPT2LMHeadModel, model: GPT2) -> None:
    prompt = random_ids(1, 20)
    expected = reference_greedy(small, prompt, 100)
    assert len(set(expected)) > 10
    assert greedy(model, prompt, 100) == expected


@pytest.mark.slow
def test_greedy_ids_equal_the_reference_at_124m(released: transformers.GPT2LMHeadModel) -> None:
    prompt = random_ids(1, 20, vocab=50257)
    assert greedy(ours(released), prompt, 100) == reference_greedy(released, prompt, 100)


@given(cuts=st.sets(st.integers(1, 95)), rows=st.integers(1, 3))
@settings(max_examples=40)
def test_cached_equals_uncached_for_any_split(model: GPT2, cuts: set[int], rows: int) -> None:
    ids, cache = random_ids(rows, 96), KVCache(model.config, batch_size=rows)
    borders = [0, *sorted(cuts), 96]
    parts = [logits(model, ids[:, a:b], cache) for a, b in zip(borders, borders[1:], strict=False)]
    assert cache.length == 96
    torch.testing.assert_close(torch.cat(parts, 1), logits(model, ids), atol=1e-4, rtol=0)


@given(keep=st.integers(0, 60), length=st.integers(1, 60))
@settings(max_examples=25)
def test_a_truncated_cache_goes_on_as_a_fresh_one(model: GPT2, keep: int, length: int) -> None:
    cache, old, new = KVCache(model.config), random_ids(1, 60), random_ids(1, length, seed=1)
    logits(model, old, cache)
    cache.truncate(keep)
    assert cache.length == keep
    expected = logits(model, torch.cat([old[:, :keep], new], 1))[:, keep:]
    torch.testing.assert_close(logits(model, new, cache), expected, atol=1e-4, rtol=0)


def test_truncating_past_the_end_keeps_everything(model: GPT2) -> None:
    cache = KVCache(model.config)
    logits(model, random_ids(1, 10), cache)
    cache.truncate(50)
    assert cache.length == 10


def test_a_pass_beyond_the_context_raises_and_leaves_the_cache(model: GPT2) -> None:
    ids, cache = random_ids(1, 129), KVCache(model.config)
    with pytest.raises(ContextError, match="at most 128 tokens, got 129"):
        logits(model, ids)
    logits(model, ids[:, :100], cache)
    with pytest.raises(ContextError, match="at most 128 tokens, got 129"):
        logits(model, ids[:, 100:], cache)
    assert cache.length == 100
    last = logits(model, ids[:, 100:128], cache)
    torch.testing.assert_close(last, logits(model, ids[:, :128])[:, 100:], atol=1e-4, rtol=0)


@torch.inference_mode()
def test_documents_packed_in_a_row_do_not_see_each_other(model: GPT2) -> None:
    first, second = random_ids(1, 30), random_ids(1, 21, seed=1)
    positions = torch.cat([torch.arange(30), torch.arange(21)])[None]
    mask = torch.block_diag(torch.ones(30, 30), torch.ones(21, 21)).tril().bool()[None, None]
    packed = model.hidden_states(torch.cat([first, second], 1), positions=positions, mask=mask)
    alone = torch.cat([model.hidden_states(first), model.hidden_states(second)], 1)
    torch.testing.assert_close(packed, alone, atol=1e-4, rtol=0)


def test_no_token_sees_a_later_one(model: GPT2) -> None:
    ids = random_ids(1, 40)
    changed = ids.clone()
    changed[0, 25:] = (changed[0, 25:] + 1) % VOCAB
    before, after = logits(model, ids), logits(model, changed)
    torch.testing.assert_close(before[:, :25], after[:, :25], atol=1e-5, rtol=0)
    assert not torch.allclose(before[:, 25:], after[:, 25:], atol=1e-2)


def test_equal_seeds_give_equal_weights(tiny_config: GPT2Config) -> None:
    first, same, other = (GPT2(tiny_config).init_weights(seed).state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(first[name], same[name]) for name in first)
    assert not torch.equal(first["wte.weight"], other["wte.weight"])


def test_fresh_residual_projections_are_smaller_the_deeper_the_network() -> None:
    model = GPT2(GPT2Config(n_layer=8, n_head=2, n_embd=64, n_ctx=64, vocab_size=VOCAB)).init_weights(0)
    for name, parameter in model.named_parameters():
        if parameter.dim() == 2:
            expected = 0.02 / 4 if "c_proj" in name else 0.02  # 1 / sqrt(2 * 8) is a quarter
            assert parameter.std().item() == pytest.approx(expected, rel=0.1)


def test_released_names_round_trip(tiny_model: GPT2) -> None:
    back, weights = translate(pretrained.to_released_names(tiny_model)).tensors, tiny_model.state_dict()
    assert back.keys() == weights.keys()
    assert all(torch.equal(back[name], weights[name]) for name in weights)


def test_released_names_are_those_of_the_reference(small: transformers.GPT2LMHeadModel, model: GPT2) -> None:
    released, expected = pretrained.to_released_names(model), small.transformer.state_dict()
    assert released.keys() == expected.keys()
    assert all(torch.equal(released[name], expected[name]) for name in expected)


@pytest.mark.parametrize("prefixed", [True, False])
@torch.inference_mode()
def test_a_saved_folder_of_the_reference_loads(tmp_path: Path, prefixed: bool) -> None:
    reference = transformers.GPT2LMHeadModel(transformers.GPT2Config(n_layer=2, n_head=2, n_embd=32)).eval()
    (reference if prefixed else reference.transformer).save_pretrained(tmp_path)
    loaded = pretrained.load(str(tmp_path)).build_model()
    ids = random_ids(2, 50)
    assert (logits(loaded, ids) - reference(ids).logits).abs().max() < 1e-4


@torch.inference_mode()
def test_rows_beyond_the_vocabulary_are_padding_and_fewer_are_refused(tmp_path: Path) -> None:
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=50304)
    reference = transformers.GPT2LMHeadModel(config).eval()
    reference.save_pretrained(tmp_path / "padded")
    loaded = pretrained.load(str(tmp_path / "padded"))
    assert loaded.config.vocab_size == 50257
    ids = random_ids(2, 50)
    assert (logits(loaded.build_model(), ids) - reference(ids).logits[..., :50257]).abs().max() < 1e-4
    config = transformers.GPT2Config(n_layer=2, n_head=2, n_embd=32, vocab_size=1000, eos_token_id=0, bos_token_id=0)
    transformers.GPT2LMHeadModel(config).save_pretrained(tmp_path / "other")
    with pytest.raises(WeightsError, match="expected GPT-2's 50257 tokens, found 1000"):
        pretrained.load(str(tmp_path / "other"))


def test_a_folder_without_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(WeightsError, match=r"expected model\.safetensors or pytorch_model\.bin beside config\.json"):
        pretrained.load(str(tmp_path))


@pytest.mark.parametrize(
    "changed",
    [
        {"model_type": "llama"},
        {"activation_function": "relu"},
        {"scale_attn_by_inverse_layer_idx": True},
        {"n_inner": 100},
        {"n_layer": "2"},
        {"n_embd": None},
        {"layer_norm_epsilon": None},
    ],
)
def test_another_architecture_is_refused(changed: dict[str, object]) -> None:
    config = transformers.GPT2Config(n_embd=64, n_head=4).to_dict()
    assert pretrained.read_config(config).n_embd == 64
    with pytest.raises((ConfigError, WeightsError), match=next(iter(changed))):
        pretrained.read_config({**config, **changed})


@pytest.mark.parametrize("cut", [0, 7, 100, -1])
def test_weights_that_are_cut_short_are_refused(small: transformers.GPT2LMHeadModel, tmp_path: Path, cut: int) -> None:
    small.save_pretrained(tmp_path)
    file = tmp_path / "model.safetensors"
    file.write_bytes(file.read_bytes()[:cut])
    with pytest.raises(WeightsError, match=r"model\.safetensors"):
        pretrained.load(str(tmp_path))


@pytest.mark.parametrize(
    ("name", "count"),
    [
        ("gpt2-small (124M)", 124_439_808),
        ("gpt2-medium (355M)", 354_823_168),
        ("gpt2-large (774M)", 774_030_080),
        ("gpt2-xl (1558M)", 1_557_611_200),
    ],
)
def test_released_sizes_have_the_released_parameter_counts(name: str, count: int) -> None:
    assert sum(parameter.numel() for parameter in GPT2.empty(MODEL_SIZES[name]).parameters()) == count


@pytest.mark.parametrize(
    ("short", "name"),
    [
        ("gpt2", "gpt2-small (124M)"),
        ("gpt2-small", "gpt2-small (124M)"),
        ("124M", "gpt2-small (124M)"),
        ("gpt2-124M", "gpt2-small (124M)"),
        (" GPT2-Medium ", "gpt2-medium (355M)"),
        ("355m", "gpt2-medium (355M)"),
        ("gpt2-large", "gpt2-large (774M)"),
        ("774M", "gpt2-large (774M)"),
        ("gpt2-xl", "gpt2-xl (1558M)"),
        ("gpt2-1558m", "gpt2-xl (1558M)"),
        ("gpt2-xl (1558M)", "gpt2-xl (1558M)"),
        ("distilgpt2", "distilgpt2"),
        ("runs/Mine.pt", "runs/Mine.pt"),
    ],
)
def test_short_forms_name_the_released_sizes(short: str, name: str) -> None:
    assert pretrained.canonical_name(short) == name


@pytest.mark.parametrize(
    "changed",
    [
        *({name: value} for name in ("n_layer", "n_head", "n_embd", "n_ctx", "vocab_size") for value in (0, -1, 2.0)),
        {"n_layer": True},
        {"n_head": "12"},
        {"n_ctx": None},
        {"vocab_size": 1 << 21},
        {"n_embd": 100, "n_head": 12},
        *({"dropout": value} for value in (1, 1.0, -0.1, float("nan"), "0.1", None)),
        *({"layer_norm_epsilon": value} for value in (0, 1, -1e-5, float("nan"), "1e-5", None)),
    ],
)
def test_a_config_that_cannot_be_built_is_refused(changed: dict[str, object]) -> None:
    with pytest.raises(ConfigError, match=next(iter(changed))):
        GPT2Config(**changed)  # type: ignore[arg-type]


def test_a_config_round_trips_and_refuses_other_fields(tiny_config: GPT2Config) -> None:
    data = tiny_config.to_dict()
    assert GPT2Config.from_dict(data) == tiny_config
    for wrong in ({**data, "n_heads": 2}, {k: v for k, v in data.items() if k != "n_ctx"}, {**data, "n_ctx": "128"}):
        with pytest.raises(ConfigError, match="model config"):
            GPT2Config.from_dict(wrong)
