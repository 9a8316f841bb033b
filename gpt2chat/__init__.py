"""gpt2chat: teach a GPT-2 your texts and answers on the machine you have, and talk to it.

The names below are the public API; they load on first use, so that importing the package stays cheap.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING

from gpt2chat.version import __version__

if TYPE_CHECKING:
    from gpt2chat.chatbot import GPT2Chatbot
    from gpt2chat.checkpoint import Checkpoint
    from gpt2chat.conversation import Message
    from gpt2chat.engine import Engine
    from gpt2chat.errors import EngineFull, GPT2ChatError
    from gpt2chat.generation import Decoder
    from gpt2chat.history import ChatHistory, ChatModel
    from gpt2chat.model import GPT2, MODEL_SIZES, GPT2Config, KVCache
    from gpt2chat.reply import StreamingReply
    from gpt2chat.sampling import GenerationConfig
    from gpt2chat.templates import TEMPLATES, Template
    from gpt2chat.tokenizer import Tokenizer
    from gpt2chat.training import Step, TrainConfig, train

_HOME = {
    "GPT2": "model",
    "GPT2Chatbot": "chatbot",
    "GPT2Config": "model",
    "GPT2ChatError": "errors",
    "MODEL_SIZES": "model",
    "TEMPLATES": "templates",
    "ChatHistory": "history",
    "ChatModel": "history",
    "Checkpoint": "checkpoint",
    "Decoder": "generation",
    "Engine": "engine",
    "EngineFull": "errors",
    "GenerationConfig": "sampling",
    "KVCache": "model",
    "Message": "conversation",
    "Step": "training",
    "StreamingReply": "reply",
    "Template": "templates",
    "Tokenizer": "tokenizer",
    "TrainConfig": "training",
    "train": "training",
}

__all__ = [
    "ChatHistory",
    "ChatModel",
    "Checkpoint",
    "Decoder",
    "Engine",
    "EngineFull",
    "GPT2",
    "GPT2ChatError",
    "GPT2Chatbot",
    "GPT2Config",
    "GenerationConfig",
    "KVCache",
    "MODEL_SIZES",
    "Message",
    "Step",
    "StreamingReply",
    "TEMPLATES",
    "Template",
    "Tokenizer",
    "TrainConfig",
    "__version__",
    "train",
]


def __getattr__(name: str) -> object:
    if name not in _HOME:
        raise AttributeError(f"module 'gpt2chat' has no attribute {name!r}")
    return getattr(import_module(f"gpt2chat.{_HOME[name]}"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_HOME])
