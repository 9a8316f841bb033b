"""Steps of fixed shape give the logits of steps that grow."""

from __future__ import annotations

import shutil

import pytest
import torch

from gpt2chat.errors import ContextError
from gpt2chat.generation import Decoder
from gpt2chat.model import GPT2
from gpt2chat.runtime import TorchRuntime
from gpt2chat.sampling import GenerationConfig
from gpt2chat.static import StaticRuntime

GREEDY = GenerationConfig(temperature=0, max_new_tokens=40)


def test_fixed_shapes_change_nothing(tiny_model: GPT2) -> None:
    growing, fixed = TorchRuntime(tiny_model), StaticRuntime(tiny_model)
    a, b = growing.new_cache(), fixed.new_cache()
    for ids in ([5, 6, 7], [8], [9], [1, 2], [3], *([n] for n in range(100))):
        torch.testing.assert_close(fixed.forward(ids, b), growing.forward(ids, a), atol=1e-5, rtol=1e-4)
        assert b.length == a.length
    b.truncate(2)
    a.truncate(2)
    for id in range(20):
        torch.testing.assert_close(fixed.forward([id], b), growing.forward([id], a), atol=1e-5, rtol=1e-4)


def test_a_full_context_is_refused_and_answers_are_the_same(tiny_model: GPT2) -> None:
    fixed = StaticRuntime(tiny_model)
    cache = fixed.new_cache()
    fixed.forward([1] * 128, cache)
    with pytest.raises(ContextError):
        fixed.forward([1], cache)
    prompt = [11, 12, 13]
    assert list(Decoder(fixed).generate(prompt, GREEDY, ())) == list(Decoder(tiny_model).generate(prompt, GREEDY, ()))


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of torch about itself
def test_a_compiled_step_gives_the_same_answer(tiny_model: GPT2) -> None:
    if not shutil.which("c++"):
        pytest.skip("torch.compile needs a C++ compiler")
    said: list[str] = []
    compiled = StaticRuntime(tiny_model, compiled=True, notice=said.append)
    prompt = [11, 12, 13]
    assert list(Decoder(compiled).generate(prompt, GREEDY, ())) == list(
        Decoder(tiny_model).generate(prompt, GREEDY, ())
    )
    assert len(said) == 1 and "compiling a step took" in said[0]


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_a_recorded_step_gives_the_same_answer(tiny_model: GPT2) -> None:
    import copy

    on_gpu = copy.deepcopy(tiny_model).cuda()
    recorded, plain = StaticRuntime(on_gpu), TorchRuntime(on_gpu)
    prompt = [11, 12, 13]
    assert list(Decoder(recorded).generate(prompt, GREEDY, ())) == list(Decoder(plain).generate(prompt, GREEDY, ()))
