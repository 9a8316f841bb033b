"""`gpt2chat bench` and `eval --quantize`: every figure is there, and means what it says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from helpers_cli import invoke

from gpt2chat import checkpoint
from gpt2chat.benchmark import measure, read_speed, weight_bytes
from gpt2chat.decoding import choose, runtime_of
from gpt2chat.errors import ConfigError

KEYS = {
    "bench", "model", "size", "mode", "runtime", "batch", "prompt_tokens", "new_tokens", "decode_tok_s",
    "prefill_tok_s", "first_token_s", "load_s", "rss_mb", "read_gb_s", "limit_tok_s", "of_limit",
}  # fmt: skip


@pytest.mark.parametrize("bench", ["decode", "prefill"])
def test_one_line_of_json_has_all_figures(tiny_checkpoint: Path, bench: str) -> None:
    options = ["--prompt_tokens", 16, "--new_tokens", 9, "--repeat", 2, "--json"]
    result = invoke("bench", bench, "--model", tiny_checkpoint, *options)
    assert result.exit_code == 0
    figures = json.loads(result.stdout)
    assert set(figures) == KEYS
    assert (figures["bench"], figures["batch"], figures["prompt_tokens"], figures["new_tokens"]) == (bench, 1, 16, 9)
    for name in ("decode_tok_s", "prefill_tok_s", "first_token_s", "rss_mb", "read_gb_s", "limit_tok_s"):
        assert figures[name] > 0, name
    assert figures["of_limit"] == pytest.approx(figures["decode_tok_s"] / figures["limit_tok_s"], abs=0.01)


def test_prompts_are_as_long_as_there_is_room_for(tiny_checkpoint: Path) -> None:
    result = invoke("bench", "prefill", "--model", tiny_checkpoint, "--repeat", 1, "--json")
    assert json.loads(result.stdout)["prompt_tokens"] == 127


def test_many_at_once_are_one_line_each(tiny_checkpoint: Path) -> None:
    options = ["--prompt_tokens", 8, "--new_tokens", 6, "--repeat", 2]
    result = invoke("bench", "batch", "--model", tiny_checkpoint, "--streams", "1,3", *options, "--json")
    assert result.exit_code == 0
    lines = [json.loads(line) for line in result.stdout.splitlines()]
    assert [set(figures) for figures in lines] == [KEYS, KEYS]
    assert [(figures["bench"], figures["batch"]) for figures in lines] == [("batch", 1), ("batch", 3)]
    for figures in lines:
        assert min(figures["decode_tok_s"], figures["prefill_tok_s"]) > 0
    assert "3 at once" in invoke("bench", "batch", "--model", tiny_checkpoint, "--streams", "3", *options).stdout
    for wrong in ("0", "1,x", ""):
        result = invoke("bench", "batch", "--model", tiny_checkpoint, "--streams", wrong)
        assert "streams: expected numbers from 1 on" in result.stderr


@pytest.mark.parametrize(
    ("options", "mode"),
    [(["--dtype", "float32"], "fp32"), (["--dtype", "bfloat16"], "bf16"), (["--quantize", "int8"], "int8")],
)
def test_the_mode_is_the_one_asked_for(tiny_checkpoint: Path, options: list[str], mode: str) -> None:
    fixed = ["--prompt_tokens", 4, "--new_tokens", 3, "--repeat", 1]
    result = invoke("bench", "decode", "--model", tiny_checkpoint, *fixed, *options, "--json")
    assert json.loads(result.stdout)["mode"] == mode
    assert "tokens/s" in invoke("bench", "decode", "--model", tiny_checkpoint, *fixed, *options).stdout


def test_what_does_not_fit_or_is_no_released_size_is_refused(tiny_checkpoint: Path) -> None:
    result = invoke("bench", "decode", "--model", tiny_checkpoint, "--prompt_tokens", 32)
    assert result.exit_code == 2
    assert "expected at most 128 together, the context of this model, got 32 + 128" in result.stderr
    result = invoke("bench", "decode", "--model", tiny_checkpoint, "--random_weights")
    assert "random_weights: expected a released size such as 124M" in result.stderr


@pytest.mark.parametrize("native", ["1", "0"])
def test_the_limit_counts_the_weights_that_a_token_reads(
    tiny_checkpoint: Path, native: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GPT2CHAT_NATIVE", native)
    loaded = checkpoint.load(tiny_checkpoint)
    runtime = runtime_of(loaded, choose("cpu", "float32", "none"))
    matrices = sum(t.nbytes for name, t in loaded.weights.items() if t.dim() == 2 and name != "wpe.weight")
    assert matrices <= weight_bytes(runtime) < 2.2 * matrices  # inputs of 32 are padded to 64
    assert read_speed(runtime) > 1e8
    with pytest.raises(ConfigError, match="at most 128"):
        measure("decode", "tiny", runtime, 100, 29, 1, 0.0, 0.0)


def test_eval_says_what_rounding_changes(tiny_checkpoint: Path, tmp_path: Path) -> None:
    text, pairs = tmp_path / "a.txt", tmp_path / "a.json"
    text.write_text("The mill by the river ground rye in autumn and oats in spring.")
    pairs.write_text('[{"user": "Who?", "bot": "I."}]')
    files = ["--text_file", text, "--conversation_file", pairs]
    exact = json.loads(invoke("eval", tiny_checkpoint, *files, "--json").stdout)
    assert "change" not in exact["text"]
    for options in (["--quantize", "int8"], ["--dtype", "bfloat16"]):
        found = json.loads(invoke("eval", tiny_checkpoint, *files, *options, "--json").stdout)
        ratio = found["text"]["perplexity_per_token"] / exact["text"]["perplexity_per_token"]
        assert found["text"]["change"] == pytest.approx(ratio - 1, abs=1e-5)
        assert abs(found["text"]["change"]) < 0.01
        assert abs(found["conversations"]["answers"]["change"]) < 0.01
        assert found["conversations"]["tokens_per_second"] > 0
        assert "against float32" in invoke("eval", tiny_checkpoint, *files, *options).stdout


@pytest.mark.slow
def test_memory_is_flat_over_two_thousand_answers(tiny_checkpoint: Path) -> None:
    import random

    from gpt2chat import GPT2Chatbot

    def resident() -> int:
        return int(Path("/proc/self/statm").read_text().split()[1])

    if not Path("/proc/self/statm").exists():
        pytest.skip("reads /proc")
    rng, bot = random.Random(0), GPT2Chatbot()
    bot.load_model(tiny_checkpoint)
    sizes = []
    for number in range(2000):
        if number % 7 == 0:
            bot.reset()
        bot.chat(
            " ".join(rng.choices(["who", "are", "you", "today", "and", "why"], k=rng.randint(1, 20))), max_tokens=12
        )
        if number >= 200 and number % 100 == 0:
            sizes.append(resident())
    assert max(sizes) < 1.05 * sizes[0]


def test_logits_are_near_float32_in_every_form() -> None:
    """With random weights of a released width: int8 within 3 %, as is bfloat16."""
    from gpt2chat.checkpoint import Checkpoint
    from gpt2chat.conversation import TEMPLATES
    from gpt2chat.model import GPT2, GPT2Config

    config = GPT2Config(n_layer=4, n_head=12, n_embd=768, n_ctx=64, vocab_size=5000)
    loaded = Checkpoint(config, GPT2(config).init_weights(0).state_dict(), TEMPLATES["chat"])
    ids = torch.randint(0, 5000, (64,), generator=torch.Generator().manual_seed(0)).tolist()
    logits = {}
    for form, options in {
        "float32": ("float32", "none"),
        "bfloat16": ("bfloat16", "none"),
        "int8": ("auto", "int8"),
    }.items():
        runtime = runtime_of(loaded, choose("cpu", *options))
        logits[form] = runtime.forward(ids, runtime.new_cache(), 64).clone()
    for form in ("bfloat16", "int8"):
        assert float((logits[form] - logits["float32"]).norm() / logits["float32"].norm()) < 0.03


def test_standard_input_is_read_once_for_both_figures(tiny_checkpoint: Path) -> None:
    text = "The mill by the river ground rye in autumn."
    result = invoke("eval", tiny_checkpoint, "--text_file", "-", "--quantize", "int8", "--json", stdin=text)
    assert result.exit_code == 0
    assert "change" in json.loads(result.stdout)["text"]
