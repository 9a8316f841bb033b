"""A tiny real model, its checkpoint and GPT-2's tokenizer, for all tests."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
from hypothesis import settings

from gpt2chat import checkpoint
from gpt2chat.checkpoint import Checkpoint
from gpt2chat.conversation import TEMPLATES
from gpt2chat.model import GPT2, GPT2Config
from gpt2chat.tokenizer import Tokenizer

settings.register_profile("gpt2chat", deadline=None, max_examples=60, derandomize=True, database=None)
settings.load_profile("gpt2chat")
if (
    signal.getsignal(signal.SIGINT) is signal.SIG_IGN
):  # begun in the background: programs that tests run would ignore it
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def tokenizer() -> Tokenizer:
    return Tokenizer.gpt2()


@pytest.fixture(scope="session")
def tiny_config() -> GPT2Config:
    return GPT2Config(n_layer=2, n_head=2, n_embd=32, n_ctx=128, vocab_size=50257)


@pytest.fixture(scope="session")
def tiny_model(tiny_config: GPT2Config) -> GPT2:
    """Shared by all tests, so none of them changes it."""
    return GPT2(tiny_config).init_weights(0).eval()


@pytest.fixture
def tiny_checkpoint(tiny_model: GPT2, tmp_path: Path) -> Path:
    """The file of a tiny model with the chat template."""
    path = tmp_path / "tiny.pt"
    weights = {name: tensor.detach() for name, tensor in tiny_model.state_dict().items()}
    checkpoint.save(Checkpoint(tiny_model.config, weights, TEMPLATES["chat"], about={"base": "tiny"}), path)
    return path
