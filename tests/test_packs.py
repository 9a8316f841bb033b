"""Packs are read instead of made again, fit their checkpoint or are replaced, and never stand in the way."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from gpt2chat import GPT2Chatbot, checkpoint, decoding, packs, pretrained
from gpt2chat.calibration import int4_panels, own_texts
from gpt2chat.checkpoint import Checkpoint
from gpt2chat.conversation import TEMPLATES, Message
from gpt2chat.decoding import choose, open_model, runtime_of
from gpt2chat.errors import WeightsError
from gpt2chat.model import GPT2, GPT2Config
from gpt2chat.quantize import Panels, rounded, unpack
from gpt2chat.runtime import NativeRuntime
from gpt2chat.weights import make

IDS = [1, 2, 3, 4, 5]


@pytest.fixture(autouse=True)
def native(monkeypatch: pytest.MonkeyPatch) -> None:
    if choose("cpu").kernel is None:
        pytest.skip("no native decoder here")


@pytest.fixture
def forbidden(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise AssertionError("the checkpoint was read again")

    monkeypatch.setattr(packs, "build", refuse)


def opened(path: Path, form: str = "int8") -> tuple[Checkpoint, torch.Tensor]:
    loaded, runtime = open_model(str(path), choose("cpu", quantize=form), pretrained.load)
    assert isinstance(runtime, NativeRuntime) and runtime.form == form
    return loaded, runtime.forward(IDS, runtime.new_cache()).clone()


@pytest.mark.parametrize("form", ["int8", "int4"])
def test_the_second_start_reads_what_the_first_made(
    tiny_checkpoint: Path, form: str, request: pytest.FixtureRequest
) -> None:
    first = opened(tiny_checkpoint, form)
    assert tiny_checkpoint.with_name(f"tiny.{form}.pack").exists()
    request.getfixturevalue("forbidden")
    second = opened(tiny_checkpoint, form)
    assert torch.equal(first[1], second[1])
    assert second[0] == first[0]


def test_all_that_chat_needs_is_in_the_pack(tiny_model: GPT2, tmp_path: Path) -> None:
    weights = {name: tensor.detach() for name, tensor in tiny_model.state_dict().items()}
    examples = [Message("user", "¿Qué?"), Message("assistant", "\u2028 so")]
    about = {"base": "tiny", "arguments": {"lr": 1e-4, "list": [1, None, True]}}
    history = [{"step": 3, "loss": 0.5, "validation_loss": None}]
    path = tmp_path / "m.pt"
    taught = [("Who? 😀", "I"), ("", "\u2028")]
    saved = Checkpoint(tiny_model.config, weights, TEMPLATES["alpaca"], 77, examples, about, history, taught=taught)
    checkpoint.save(saved, path)
    opened(path)
    again = opened(path)[0]
    assert (again.examples, again.about, again.history) == (examples, about, history)
    assert again.taught == taught
    assert (again.template, again.trained_length, again.config) == (TEMPLATES["alpaca"], 77, tiny_model.config)
    bot = GPT2Chatbot(quantize="int8")
    bot.load_model(path)
    assert isinstance(bot.chat("Hello", max_tokens=5), str)


def test_another_checkpoint_of_the_same_name_gets_a_pack_of_its_own(
    tiny_checkpoint: Path, tiny_config: GPT2Config
) -> None:
    before = opened(tiny_checkpoint)[1]
    weights = GPT2(tiny_config).init_weights(9).state_dict()
    checkpoint.save(Checkpoint(tiny_config, weights, TEMPLATES["chat"]), tiny_checkpoint)
    after = opened(tiny_checkpoint)[1]
    assert not torch.equal(before, after)
    assert torch.equal(opened(tiny_checkpoint)[1], after)


@pytest.mark.parametrize("place", [0, 9, 100, 300, 5000, -1])
def test_a_damaged_pack_is_made_again(tiny_checkpoint: Path, place: int) -> None:
    expected = opened(tiny_checkpoint)[1]
    pack = tiny_checkpoint.with_name("tiny.int8.pack")
    whole = pack.read_bytes()
    damaged = bytearray(whole)
    damaged[place] ^= 0x41
    for content in (bytes(damaged), whole[: len(whole) // 2], b"", b"another program's file"):
        pack.write_bytes(content)
        assert torch.equal(opened(tiny_checkpoint)[1], expected)
        assert packs.load(pack, packs.identity(tiny_checkpoint) or "", "int8") is not None


def test_a_folder_that_cannot_be_written_sends_the_pack_to_the_cache(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> None:
    monkeypatch.setenv("GPT2CHAT_CACHE", str(tmp_path / "cache"))
    os.mkdir(tiny_checkpoint.with_name("tiny.int8.pack"))  # in its place; root may write everywhere
    first = opened(tiny_checkpoint)[1]
    assert len(list((tmp_path / "cache" / "packs").glob("*.int8.pack"))) == 1
    request.getfixturevalue("forbidden")
    assert torch.equal(opened(tiny_checkpoint)[1], first)


def test_nowhere_to_write_a_pack_is_no_reason_not_to_answer(
    tiny_checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "cache").write_text("a file where a folder is expected")
    monkeypatch.setenv("GPT2CHAT_CACHE", str(tmp_path / "cache"))
    os.mkdir(tiny_checkpoint.with_name("tiny.int8.pack"))
    assert opened(tiny_checkpoint)[1].shape == (1, 50257)


def test_nothing_is_written_beside_the_demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT2CHAT_CACHE", str(tmp_path))
    before = set(pretrained.BUNDLED.parent.iterdir())
    open_model("demo", choose("cpu", quantize="int8"), pretrained.load)
    assert set(pretrained.BUNDLED.parent.iterdir()) == before
    assert len(list((tmp_path / "packs").iterdir())) == 1


@pytest.mark.slow
def test_int4_with_compensation_is_nearer_than_rounding_to_nearest() -> None:
    loaded = pretrained.load("demo")
    exact = runtime_of(loaded, choose("cpu", "float32", "none"))
    texts = own_texts(exact, 50256)
    made = int4_panels(loaded, texts[:16])
    compensated = {name: unpack(panels, "int4", *loaded.weights[name].shape) for name, panels in made.items()}
    nearest = {name: rounded(loaded.weights[name], "int4") for name in made}
    ids = texts[20].tolist()
    expected = exact.forward(ids, exact.new_cache(), len(ids)).clone()
    errors = []
    for weights in (nearest, compensated):
        changed = Checkpoint(loaded.config, {**loaded.weights, **weights}, loaded.template)
        runtime = runtime_of(changed, choose("cpu", "float32", "none"))
        errors.append(float((runtime.forward(ids, runtime.new_cache(), len(ids)) - expected).norm() / expected.norm()))
    assert errors[1] < 0.75 * errors[0] < 0.05
    assert make(loaded.weights["h.0.mlp.c_fc.weight"], torch.float32).shape == compensated["h.0.mlp.c_fc.weight"].shape


def test_through_torch_the_rounded_weights_answer_too(tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    loaded = checkpoint.load(tiny_checkpoint)
    natively = runtime_of(loaded, choose("cpu", "float32", "int8"))
    monkeypatch.setenv("GPT2CHAT_NATIVE", "0")
    choice = choose("cpu", "float32", "int8")
    assert choice.kernel is None
    plain = runtime_of(loaded, choice)
    assert plain.description == "int8 kept in float32, torch on cpu"
    a, b = (runtime.forward(IDS, runtime.new_cache()).clone() for runtime in (natively, plain))
    torch.testing.assert_close(a, b, atol=2e-3, rtol=1e-3)


def test_a_pack_is_no_model(tiny_checkpoint: Path) -> None:
    opened(tiny_checkpoint)
    with pytest.raises(WeightsError, match="found weights packed for decoding: pass the .pt beside it"):
        pretrained.load(str(tiny_checkpoint.with_name("tiny.int8.pack")))


def test_what_is_unknown_to_quantize_is_refused() -> None:
    with pytest.raises(decoding.ConfigError, match="quantize: expected one of auto, none, int8, int4, got 'int3'"):
        choose(quantize="int3")


@pytest.mark.parametrize("change", ["missing", "short", "kind", "more"])
def test_a_pack_that_does_not_fit_the_network_is_made_again(tiny_checkpoint: Path, change: str) -> None:
    expected = opened(tiny_checkpoint)[1]
    place, source = tiny_checkpoint.with_name("tiny.int8.pack"), packs.identity(tiny_checkpoint) or ""
    loaded, pack = packs.load(place, source, "int8") or pytest.fail("no pack")
    if change == "missing":
        del pack.vectors["ln_f.bias"]
    elif change == "short":
        pack.panels["wte.weight"] = Panels(**{n: t[:1] for n, t in pack.panels["wte.weight"].tensors().items()})
    elif change == "kind":
        pack.panels["h.0.attn.c_proj.weight"] = Panels(pack.panels["h.0.attn.c_proj.weight"].weight)
    else:
        pack.vectors["h.9.ln_1.bias"] = torch.zeros(32)
    packs.save(pack, loaded, source, place)  # with a checksum that is right
    assert packs.load(place, source, "int8") is None
    assert torch.equal(opened(tiny_checkpoint)[1], expected)
    assert packs.load(place, source, "int8") is not None


def test_facts_that_json_does_not_know_are_no_reason_not_to_answer(tiny_model: GPT2, tmp_path: Path) -> None:
    weights = {name: tensor.detach() for name, tensor in tiny_model.state_dict().items()}
    path = tmp_path / "m.pt"
    checkpoint.save(Checkpoint(tiny_model.config, weights, TEMPLATES["chat"], about={"extra": torch.ones(2)}), path)
    assert opened(path)[1].shape == (1, 50257)
    assert not list(tmp_path.glob("*.pack*"))
