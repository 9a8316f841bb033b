"""Weights of every family of programs give the logits that transformers gives."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from helpers_weights import crc32c, masked, nanogpt, plain, rasbt, reference, write_tensorflow
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from transformers import GPT2LMHeadModel

from gpt2chat import checkpoint, pretrained
from gpt2chat.checkpoint import Checkpoint
from gpt2chat.errors import WeightsError
from gpt2chat.pretrained.crc32c import CHUNK, unmask
from gpt2chat.pretrained.crc32c import crc32c as fast_crc32c

IDS = torch.tensor([[15496, 11, 995, 0, 50256, 1, 2, 3]])


def logits(loaded: Checkpoint, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    model = loaded.build_model(dtype)
    with torch.no_grad():
        return model.logits(model.hidden_states(IDS)).float()


def expected(model: GPT2LMHeadModel) -> torch.Tensor:
    with torch.no_grad():
        return model(IDS).logits


@pytest.fixture(scope="module")
def model() -> GPT2LMHeadModel:
    return reference(n_embd=64, n_head=1)


def save_parts(model: GPT2LMHeadModel, folder: Path) -> Path:
    """Write a transformers folder whose weights are two .bin files."""
    model.config.save_pretrained(folder)
    parts: list[dict[str, Any]] = [{}, {}]
    for number, (name, tensor) in enumerate(model.state_dict().items()):
        parts[number % 2][name] = tensor
    places = {}
    for number, part in enumerate(parts):
        file = f"pytorch_model-{number + 1:05}-of-00002.bin"
        torch.save(part, folder / file)
        places |= dict.fromkeys(part, file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    return folder


def save_bin(model: GPT2LMHeadModel, folder: Path, zipped: bool) -> Path:
    """Write a transformers folder as the first releases were: old names, causal masks, an older pickle."""
    model.config.save_pretrained(folder)
    mask = {f"h.{n}.attn.bias": torch.ones(1, 1, 32, 32).tril() for n in range(model.config.n_layer)}
    torch.save(plain(model) | mask, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    return folder


def save_parameters(model: GPT2LMHeadModel, folder: Path) -> Path:
    """Write weights that want gradients."""
    model.config.save_pretrained(folder)
    torch.save(dict(model.named_parameters()), folder / "pytorch_model.bin")
    return folder


def save_one_memory(model: GPT2LMHeadModel, folder: Path) -> Path:
    """Write, as torch did before 2020, weights that are views of one long vector."""
    model.config.save_pretrained(folder)
    weights = plain(model)
    parts = torch.cat([tensor.flatten() for tensor in weights.values()]).split([t.numel() for t in weights.values()])
    views = {name: part.view(t.shape) for (name, t), part in zip(weights.items(), parts, strict=True)}
    torch.save(views, folder / "pytorch_model.bin", _use_new_zipfile_serialization=False)
    return folder


def save_pt(content: object, path: Path, **options: bool) -> Path:
    torch.save(content, path, **options)
    return path


def save_shards(model: GPT2LMHeadModel, folder: Path) -> Path:
    model.save_pretrained(folder, max_shard_size="5MB")
    assert len(list(folder.glob("*.safetensors"))) > 1
    return folder


def save_bare(model: GPT2LMHeadModel, path: Path) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in plain(model).items()}, path)
    return path


def saved(model: GPT2LMHeadModel, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


FORMS: dict[str, tuple[Callable[[GPT2LMHeadModel, Path], Path], str]] = {
    "transformers folder": (saved, "transformers"),
    "transformers shards": (save_shards, "transformers"),
    "transformers .bin parts": (save_parts, "transformers"),
    "transformers .bin": (lambda model, place: save_bin(model, place, True), "transformers"),
    "transformers .bin of old": (lambda model, place: save_bin(model, place, False), "transformers"),
    "transformers .bin of parameters": (save_parameters, "transformers"),
    "transformers .bin of one memory": (save_one_memory, "transformers"),
    "safetensors alone": (save_bare, "transformers"),
    "state dict alone": (lambda model, place: save_pt(model.state_dict(), place), "transformers"),
    "Lightning": (
        lambda model, place: save_pt({"state_dict": {f"model.{k}": t for k, t in model.state_dict().items()}}, place),
        "transformers",
    ),
    "nanoGPT": (lambda model, place: save_pt(nanogpt(model), place), "nanoGPT"),
    "nanoGPT not compiled": (lambda model, place: save_pt(nanogpt(model, "transformer.", 0), place), "nanoGPT"),
    "nanoGPT of old": (
        lambda model, place: save_pt(nanogpt(model), place, _use_new_zipfile_serialization=False),
        "nanoGPT",
    ),
    "LLMs-from-scratch": (lambda model, place: save_pt(rasbt(model), place), "LLMs-from-scratch"),
    "LLMs-from-scratch with optimizer": (
        lambda model, place: save_pt({"model_state_dict": rasbt(model), "optimizer_state_dict": {"state": {}}}, place),
        "LLMs-from-scratch",
    ),
}


@pytest.mark.parametrize("form", FORMS)
def test_every_form_gives_the_same_logits_whatever_it_is_called(
    form: str, model: GPT2LMHeadModel, tmp_path: Path
) -> None:
    write, family = FORMS[form]
    loaded = pretrained.load(str(write(model, tmp_path / "something.pt")))
    torch.testing.assert_close(logits(loaded), expected(model), rtol=0, atol=1e-5)
    assert f"tensors in the layout of {family}" in loaded.about["form"]
    assert loaded.config.vocab_size == 50257
    assert loaded.config.tie_word_embeddings


@pytest.mark.parametrize("shards", [1, 3])
def test_a_tensorflow_checkpoint_gives_the_same_logits(shards: int, tmp_path: Path) -> None:
    model = reference(n_embd=16, n_head=4)
    folder = write_tensorflow(tmp_path / "124M", model, shards)
    for place in (folder, folder / "model.ckpt.index"):
        loaded = pretrained.load(str(place))
        assert loaded.config.n_head == 4
        torch.testing.assert_close(logits(loaded), expected(model), rtol=0, atol=1e-5)


def test_an_output_head_of_its_own_is_kept(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    loaded = pretrained.load(str(save_pt(rasbt(model, head=1.5), tmp_path / "sft.pth")))
    assert not loaded.config.tie_word_embeddings
    torch.testing.assert_close(logits(loaded), 1.5 * expected(model), rtol=0, atol=1e-5)
    checkpoint.save(loaded, tmp_path / "own.pt")
    torch.testing.assert_close(logits(checkpoint.load(tmp_path / "own.pt")), 1.5 * expected(model), rtol=0, atol=1e-5)


def test_an_untied_model_of_transformers_is_read(tmp_path: Path) -> None:
    model = reference(n_embd=64, n_head=1, tie_word_embeddings=False)
    model.save_pretrained(tmp_path / "any")
    torch.testing.assert_close(logits(pretrained.load(str(tmp_path / "any"))), expected(model), rtol=0, atol=1e-5)


def test_a_model_without_biases_has_zeros_for_them(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    content = nanogpt(model)
    content["model"] = {name: t for name, t in content["model"].items() if not name.endswith(".bias")}
    loaded = pretrained.load(str(save_pt(content, tmp_path / "ckpt.pt")))
    for parameter in (p for name, p in model.named_parameters() if name.endswith(".bias")):
        assert parameter.abs().sum() > 0
    assert all(not tensor.any() for name, tensor in loaded.weights.items() if name.endswith(".bias"))
    assert "13 biases that it does not have taken as zero" in loaded.about["form"]


def test_a_model_without_biases_for_query_key_and_value_has_zeros_for_them(tmp_path: Path) -> None:
    model = reference(n_embd=64, n_head=1)
    stored = {name: t for name, t in rasbt(model).items() if not re.search(r"W_\w+\.bias$", name)}
    for block in model.transformer.h:
        block.attn.c_attn.bias.data.zero_()
    loaded = pretrained.load(str(save_pt(stored, tmp_path / "any")))
    torch.testing.assert_close(logits(loaded), expected(model), rtol=0, atol=1e-5)
    assert "2 biases that it does not have taken as zero" in loaded.about["form"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
@pytest.mark.parametrize("zipped", [False, True])
def test_other_types_are_read_as_they_are(dtype: torch.dtype, zipped: bool, tmp_path: Path) -> None:
    model = reference(n_embd=64, n_head=1).to(dtype)
    model.config.save_pretrained(tmp_path / "bin")
    torch.save(model.state_dict(), tmp_path / "bin" / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    model.save_pretrained(tmp_path / "safetensors")
    for place in ("bin", "safetensors"):
        loaded = pretrained.load(str(tmp_path / place))
        torch.testing.assert_close(logits(loaded), expected(model.float()), rtol=0, atol=1e-5)
        assert {tensor.dtype for tensor in loaded.weights.values()} == {dtype}


@pytest.mark.parametrize("changed", [{"layer_norm_epsilon": 0.1}, {"reorder_and_upcast_attn": True}, {"n_inner": 256}])
def test_a_config_that_is_not_the_usual_one_is_honoured(changed: dict[str, Any], tmp_path: Path) -> None:
    model = reference(n_embd=64, n_head=4, **changed)
    model.save_pretrained(tmp_path / "any")
    torch.testing.assert_close(logits(pretrained.load(str(tmp_path / "any"))), expected(model), rtol=0, atol=1e-5)


@pytest.mark.parametrize("shift", range(4))
def test_numbers_at_odd_places_of_a_file_are_moved_to_even_ones(
    shift: int, model: GPT2LMHeadModel, tmp_path: Path
) -> None:
    content = model.state_dict() | {"note": "x" * shift}
    path = save_pt({"state_dict": content}, tmp_path / "a.pt", _use_new_zipfile_serialization=False)
    built = pretrained.load(str(path)).build_model()
    assert all(parameter.data_ptr() % 4 == 0 for parameter in built.parameters())


def test_dialogpt_is_known_by_its_config(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "any")
    assert pretrained.load(str(tmp_path / "any")).template.name == "few-shot"
    path = tmp_path / "any" / "config.json"
    tasks = {"task_specific_params": {"conversational": {"max_length": 1000}}}
    path.write_text(json.dumps(json.loads(path.read_text()) | tasks))
    assert pretrained.load(str(tmp_path / "any")).template.name == "dialogpt"


@pytest.mark.parametrize("rank_stabilised", [False, True])
def test_an_adapter_is_merged_into_its_base(rank_stabilised: bool, model: GPT2LMHeadModel, tmp_path: Path) -> None:
    """What peft computes: y = x W + scale (x A^T) B^T, with W stored (in, out)."""
    model.save_pretrained(tmp_path / "base")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    rank, alpha = 4, 8
    scale = alpha / (rank**0.5 if rank_stabilised else rank)
    config = {"peft_type": "LORA", "base_model_name_or_path": "../base", "r": rank, "lora_alpha": alpha}
    config |= {"use_rslora": rank_stabilised, "fan_in_fan_out": True, "target_modules": ["c_attn"]}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    changed, tensors = reference(n_embd=64, n_head=1), {}
    for n, block in enumerate(changed.transformer.h):
        a, b = torch.randn(rank, 64) * 0.1, torch.randn(192, rank) * 0.1
        place = f"base_model.model.transformer.h.{n}.attn.c_attn"
        tensors |= {f"{place}.lora_A.weight": a, f"{place}.lora_B.weight": b}
        block.attn.c_attn.weight.data += scale * (b @ a).t()
    save_file(tensors, adapter / "adapter_model.safetensors")
    loaded = pretrained.load(str(adapter))
    torch.testing.assert_close(logits(loaded), expected(changed), rtol=0, atol=1e-5)
    assert "2 weights changed by a LoRA adapter" in loaded.about["form"]


@pytest.mark.parametrize("changed_part", ["lm_head", "wte", "lora_embedding", "ensured"])
def test_an_adapter_with_patterns_and_weights_of_its_own(
    changed_part: str, model: GPT2LMHeadModel, tmp_path: Path
) -> None:
    """What peft computes: a pattern is the end of a name; a changed embedding leaves the head as it was."""
    model.save_pretrained(tmp_path / "base")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": "../base", "r": 4, "lora_alpha": 8, "bias": "all"}
    config |= {
        "rank_pattern": {"attn.c_proj": 2, "h.0.attn.c_attn": 3},
        "alpha_pattern": {r"1\.mlp.c_\w+": 5, "proj": 99},
    }
    config |= {"modules_to_save": ["ln_f", changed_part], "ensure_weight_tying": changed_part == "ensured"}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    changed, prefix = reference(n_embd=64, n_head=1), "base_model.model.transformer."
    ranks_and_alphas = {"h.0.attn.c_attn": (3, 8), "h.1.attn.c_proj": (2, 8), "h.1.mlp.c_proj": (4, 5)}
    tensors = {f"{prefix}ln_f.weight": torch.randn(64), f"{prefix}h.0.attn.c_attn.base_layer.bias": torch.randn(192)}
    tensors[f"{prefix}h.0.mlp.c_fc.weight"] = torch.randn(64, 256) * 0.1
    changed.transformer.ln_f.weight.data = tensors[f"{prefix}ln_f.weight"]
    changed.transformer.h[0].attn.c_attn.bias.data = tensors[f"{prefix}h.0.attn.c_attn.base_layer.bias"]
    changed.transformer.h[0].mlp.c_fc.weight.data = tensors[f"{prefix}h.0.mlp.c_fc.weight"]
    for name, (rank, alpha) in ranks_and_alphas.items():
        weight = changed.transformer.get_submodule(name).weight
        a, b = torch.randn(rank, weight.shape[0]) * 0.1, torch.randn(weight.shape[1], rank) * 0.1
        tensors |= {f"{prefix}{name}.lora_A.weight": a, f"{prefix}{name}.lora_B.weight": b}
        weight.data += alpha / rank * (b @ a).t()
    before = changed.transformer.wte.weight.data
    moved = before + torch.randn_like(before) * 0.1
    if changed_part == "lora_embedding":
        a, b = torch.randn(4, len(before)) * 0.1, torch.randn(64, 4) * 0.1
        tensors |= {f"{prefix}wte.lora_embedding_A": a, f"{prefix}wte.lora_embedding_B": b}
        moved = before + 2 * (b @ a).t()
    else:
        tensors["base_model.model.lm_head.weight" if changed_part == "lm_head" else f"{prefix}wte.weight"] = moved
    save_file(tensors, adapter / "adapter_model.safetensors")
    changed.transformer.wte.weight = torch.nn.Parameter(before if changed_part == "lm_head" else moved)
    changed.lm_head.weight = torch.nn.Parameter(moved if changed_part == "lm_head" else before)
    loaded = pretrained.load(str(adapter))
    torch.testing.assert_close(logits(loaded), expected(changed), rtol=0, atol=1e-5)
    assert not loaded.config.tie_word_embeddings


def test_an_adapter_of_the_trunk_alone_and_of_the_head(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    """Patterns are matched with the names in peft, which begin with h in a GPT2Model; lm_head leaves the embedding."""
    model.save_pretrained(tmp_path / "base")
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": "../base", "r": 2, "lora_alpha": 2}
    config |= {"alpha_pattern": {"^h.0.attn.c_attn": 6, "lm_hea": 9}}
    (adapter / "adapter_config.json").write_text(json.dumps(config))
    changed, tensors = reference(n_embd=64, n_head=1), {}
    weight, embedding = changed.transformer.h[0].attn.c_attn.weight, changed.transformer.wte.weight.data
    for place, shape in (("h.0.attn.c_attn", (192, 64)), ("lm_head", (len(embedding), 64))):
        tensors[f"base_model.model.{place}.lora_A.weight"] = torch.randn(2, shape[1]) * 0.1
        tensors[f"base_model.model.{place}.lora_B.weight"] = torch.randn(shape[0], 2) * 0.1
    a, b, head_a, head_b = tensors.values()
    weight.data += 3 * (b @ a).t()
    changed.lm_head.weight = torch.nn.Parameter(embedding + head_b @ head_a)
    save_file(tensors, adapter / "adapter_model.safetensors")
    loaded = pretrained.load(str(adapter))
    torch.testing.assert_close(logits(loaded), expected(changed), rtol=0, atol=1e-5)


def test_a_file_is_known_by_what_it_holds(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    torch.save(model.state_dict(), tmp_path / "weights.index")
    loaded = pretrained.load(str(tmp_path / "weights.index"))
    torch.testing.assert_close(logits(loaded), expected(model), rtol=0, atol=1e-5)


def test_a_shard_that_no_index_names_is_named(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "shards", max_shard_size="5MB")
    save_file({"x": torch.ones(1)}, tmp_path / "shards" / "more.safetensors")
    loaded = pretrained.load(str(tmp_path / "shards"))
    assert "1 entries left out: more.safetensors" in loaded.about["form"]


def test_the_base_of_an_adapter_may_lie_beside_it(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "base")
    (tmp_path / "adapter").mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": "base", "r": 1, "lora_alpha": 1}
    (tmp_path / "adapter" / "adapter_config.json").write_text(json.dumps(config))
    save_file(
        {"base_model.model.transformer.ln_f.bias": torch.ones(64)}, tmp_path / "adapter/adapter_model.safetensors"
    )
    assert pretrained.load(str(tmp_path / "adapter")).weights["ln_f.bias"].eq(1).all()


def test_a_part_of_a_model_and_guessed_heads_are_named(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    weights = {name: tensor.contiguous() for name, tensor in model.state_dict().items()}
    save_file({"transformer.wte.weight": weights["transformer.wte.weight"]}, tmp_path / "part.safetensors")
    with pytest.raises(WeightsError, match="found a part of one: pass the folder"):
        pretrained.load(str(tmp_path / "part.safetensors"))
    torch.save({"state_dict": weights}, tmp_path / "alone.pt")
    assert "1 heads assumed, one for 64" in pretrained.load(str(tmp_path / "alone.pt")).about["form"]


@pytest.mark.parametrize("name", ["gelu_new", "gelu_pytorch_tanh"])
def test_both_names_of_the_activation_are_known(name: str, model: GPT2LMHeadModel, tmp_path: Path) -> None:
    model.config.activation_function = name
    model.save_pretrained(tmp_path / "any")
    torch.testing.assert_close(logits(pretrained.load(str(tmp_path / "any"))), expected(model), rtol=0, atol=1e-5)


def test_loading_in_bfloat16_rounds_each_weight_once(model: GPT2LMHeadModel, tmp_path: Path) -> None:
    model.save_pretrained(tmp_path / "any")
    built = pretrained.load(str(tmp_path / "any")).build_model(torch.bfloat16)
    weights = plain(model)
    for name, parameter in built.named_parameters():
        stored = weights[name].t() if re.search(r"c_(attn|proj|fc)\.weight$", name) else weights[name]
        assert torch.equal(parameter, stored.bfloat16())


@given(data=st.binary(max_size=200), extra=st.integers(-2, 2), many=st.booleans())
def test_the_fast_checksum_equals_the_plain_one(data: bytes, extra: int, many: bool) -> None:
    assert fast_crc32c(data) == crc32c(data)
    assert unmask(masked(crc32c(data))) == crc32c(data)


def test_the_checksum_of_many_chunks() -> None:
    assert fast_crc32c(b"123456789") == 0xE3069283  # the check value of the algorithm
    data = np.random.default_rng(0).bytes(CHUNK + 7)
    assert fast_crc32c(data) == crc32c(data)
    assert fast_crc32c(data[:CHUNK]) == crc32c(data[:CHUNK])


def test_a_folder_that_is_no_model_is_told_what_was_found(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("hello")
    with pytest.raises(WeightsError, match=r"expected config\.json with .* found notes\.txt"):
        pretrained.load(str(tmp_path) + os.sep)


def test_what_is_not_read_of_a_place_is_named(tmp_path: Path) -> None:
    model = reference()
    model.save_pretrained(tmp_path / "two")
    torch.save(model.state_dict(), tmp_path / "two" / "pytorch_model.bin")
    assert "1 entries left out: pytorch_model.bin" in pretrained.load(str(tmp_path / "two")).about["form"]
    torch.save({**nanogpt(model), "ema": dict(model.state_dict())}, tmp_path / "ckpt.pt")
    assert "ema" in pretrained.load(str(tmp_path / "ckpt.pt")).about["form"]


def test_the_name_of_a_file_does_not_tell_what_is_in_it(tmp_path: Path) -> None:
    model = reference()
    torch.save(plain(model), tmp_path / "zip.safetensors")
    save_file({name: tensor.contiguous() for name, tensor in plain(model).items()}, tmp_path / "safe.bin")
    one, other = (pretrained.load(str(tmp_path / name)).weights for name in ("zip.safetensors", "safe.bin"))
    assert set(one) == set(other) and all(torch.equal(one[name], other[name]) for name in one)
