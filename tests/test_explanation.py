"""What an explanation says is what the network says, and it leaves the decoder as good as it was."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import torch

from gpt2chat import kernels, packs
from gpt2chat.checkpoint import Checkpoint
from gpt2chat.conversation import TEMPLATES
from gpt2chat.errors import ContextError
from gpt2chat.explanation import explain
from gpt2chat.generation import Decoder
from gpt2chat.model import GPT2, GPT2Config
from gpt2chat.runtime import NativeRuntime, Runtime, TorchRuntime
from gpt2chat.sampling import GenerationConfig
from gpt2chat.static import StaticRuntime
from gpt2chat.tokenizer import Tokenizer

CONFIG = GPT2Config(n_layer=2, n_head=2, n_embd=64, n_ctx=640, vocab_size=50257)
GREEDY = GenerationConfig(temperature=0, max_new_tokens=12)
DRAWN = GenerationConfig(temperature=1, top_k=0, seed=3, max_new_tokens=12)
PROMPT, ANSWER = list(range(300, 340)), [11, 50256, 4, 900, 12]


def checkpoint() -> Checkpoint:
    generator = torch.Generator().manual_seed(0)
    weights = GPT2(CONFIG).init_weights(0).state_dict()
    return Checkpoint(
        CONFIG, {n: w + 0.1 * torch.randn(w.shape, generator=generator) for n, w in weights.items()}, TEMPLATES["chat"]
    )


@pytest.fixture(scope="module")
def network() -> GPT2:
    return checkpoint().build_model().requires_grad_(False)


@pytest.fixture(scope="module", params=["torch", "static", "int8"])
def runtime(request: pytest.FixtureRequest, network: GPT2) -> Runtime:
    if request.param == "torch":
        return TorchRuntime(network)
    if request.param == "static":
        return StaticRuntime(network)
    try:
        made = packs.build(checkpoint(), "int8")
        return NativeRuntime(kernels.kernel(), CONFIG, "int8", made.panels, made.vectors)
    except kernels.KernelUnavailable:
        pytest.skip("no native decoder here")


def reference(runtime: Runtime, prompt: Sequence[int], answer: Sequence[int]) -> torch.Tensor:
    """Log-probabilities (answer, V) from one pass over everything with an empty cache."""
    ids = [*prompt, *answer]
    if isinstance(runtime, TorchRuntime):
        hidden = runtime.model.hidden_states(torch.tensor([ids]))
        rows = runtime.model.logits(hidden[0])[len(prompt) - 1 : -1]
    else:
        rows = runtime.forward(ids, runtime.new_cache(), len(answer) + 1)[:-1]
    return rows.log_softmax(-1)


@pytest.mark.parametrize("history", [[], PROMPT, [*PROMPT, *ANSWER], [*PROMPT, *ANSWER, 7], [1, 2, 3]])
def test_scores_are_those_of_one_pass_over_everything(runtime: Runtime, history: list[int]) -> None:
    decoder = Decoder(runtime)
    if history:
        list(decoder.generate(history, GREEDY, ()))
    scores, expected = explain(decoder, PROMPT, ANSWER, top=3), reference(runtime, PROMPT, ANSWER)
    assert [score.token for score in scores] == ANSWER
    for score, row in zip(scores, expected, strict=True):
        assert score.logprob == pytest.approx(row[score.token].item(), abs=2e-4)
        assert score.rank == 1 + (row > row[score.token]).sum().item()
        assert [logprob for _, logprob in score.alternatives] == pytest.approx(row.topk(3).values.tolist(), abs=2e-4)


@pytest.mark.parametrize("config", [GREEDY, DRAWN], ids=["greedy", "drawn"])
def test_it_changes_no_later_answer(runtime: Runtime, config: GenerationConfig) -> None:
    decoder = Decoder(runtime)
    first = list(decoder.generate(PROMPT, config, ()))
    next_prompt = [*PROMPT, *first, 5, 6, 7]
    expected = list(Decoder(runtime).generate(next_prompt, config, ()))
    for asked, answer in ((PROMPT, first), (PROMPT, ANSWER), (next_prompt, ANSWER), ([9], ANSWER), (PROMPT, [])):
        explain(decoder, asked, answer)
        assert len(decoder.ids) == decoder.cache.length
    explain(decoder, PROMPT, first)
    assert list(decoder.generate(next_prompt, config, ())) == expected
    assert decoder.cached_tokens == len(PROMPT) + len(first) - 1
    assert list(decoder.generate(PROMPT, config, ())) == first


def test_a_greedy_answer_holds_the_likeliest_tokens(runtime: Runtime) -> None:
    decoder = Decoder(runtime)
    scores = explain(decoder, PROMPT, list(decoder.generate(PROMPT, GREEDY, ())))
    assert [score.rank for score in scores] == [1] * 12
    assert all(score.alternatives[0] == (score.text, score.logprob) for score in scores)


@pytest.mark.parametrize("prompt", [1, 30, 511, 512, 513, 639])
def test_prompt_and_answer_may_fill_the_context(runtime: Runtime, prompt: int) -> None:
    generator = torch.Generator().manual_seed(prompt)
    ids = torch.randint(0, 50257, (CONFIG.n_ctx,), generator=generator).tolist()
    scores = explain(Decoder(runtime), ids[:prompt], ids[prompt:], top=1)
    rows = reference(runtime, ids[:prompt], ids[prompt:])
    expected = [row[token].item() for row, token in zip(rows, ids[prompt:], strict=True)]
    assert len(scores) == CONFIG.n_ctx - prompt
    assert [score.logprob for score in scores] == pytest.approx(expected, abs=5e-4)


def test_what_does_not_fit_is_an_error_and_changes_nothing(network: GPT2) -> None:
    decoder = Decoder(network)
    answer = list(decoder.generate(PROMPT, GREEDY, ()))
    for prompt, scored in (([], ANSWER), (PROMPT, [1] * (CONFIG.n_ctx - len(PROMPT) + 2))):
        with pytest.raises(ContextError, match="640 tokens"):
            explain(decoder, prompt, scored)
    assert list(decoder.generate(PROMPT, GREEDY, ())) == answer


def test_it_ends_a_stream_that_is_still_running(network: GPT2) -> None:
    decoder = Decoder(network)
    stream = decoder.generate(PROMPT, GREEDY, ())
    next(stream)
    explain(decoder, PROMPT, ANSWER)
    with pytest.raises(RuntimeError, match="another answer has begun"):
        next(stream)


def test_parts_of_a_character_are_shown_as_bytes(network: GPT2, tokenizer: Tokenizer) -> None:
    parts = tokenizer.encode("🦉 owl")
    scores = explain(Decoder(network), PROMPT, [*parts, tokenizer.end_id], top=0)
    assert len(parts) > 2
    assert "".join(score.text for score in scores) == r"\xf0\x9f\xa6\x89 owl<|endoftext|>"
    assert all(score.alternatives == () for score in scores)
