"""The training guide's commands and Python blocks run unchanged, offline, with the released weights in the cache."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from helpers_cli import ROOT, TEXT, environment, save_tiny, spawn
from safetensors.torch import save_file

from gpt2chat import checkpoint
from gpt2chat.model import GPT2, GPT2Config
from gpt2chat.pretrained import to_released_names

TRAIN_ON_TEXT = (
    'python train_chatbot.py --model "gpt2-small (124M)" --text_file your_text_file.txt --epochs 1 '
    '--save_path "trained_model.pt"'
)
EXAMPLES = """[
  {
    "user": "What is your favorite color?",
    "bot": "My favorite color is blue. I find it calming and peaceful."
  },
  {
    "user": "Tell me about quantum physics",
    "bot": "Quantum physics is the study of matter and energy at its most fundamental level..."
  }
]
"""
TRAIN_ON_CONVERSATIONS = (
    'python train_chatbot.py --model "gpt2-small (124M)" --conversation_file examples.json --epochs 2 '
    '--save_path "trained_model.pt"'
)
TRAIN_AND_CHAT = "python train_chatbot.py --text_file your_data.txt --interactive"
USE = """from gpt_generate import GPT2Chatbot

# Initialize with custom weights
chatbot = GPT2Chatbot(model_name="gpt2-small (124M)")
chatbot.load_model("path/to/your/trained_model.pt")

# Chat with the fine-tuned model
response = chatbot.chat("Tell me what you learned")
print(response)
"""
ADD_EXAMPLES = """examples = [
    {"user": "Who created you?", "bot": "I was created by you to help with your specific tasks."},
    {"user": "What's our project about?", "bot": "Our project focuses on natural language processing and custom AI assistants."}
]

chatbot.add_custom_examples(examples)
"""  # noqa: E501 - as it stands in the guide

# What a small stand-in may be told of: its size is not the one named, and its context fills up.
EXPECTED_NOTICES = {"the file holds another size than", "the context of"}

SMALL = GPT2Config(n_layer=2, n_head=2, n_embd=32, n_ctx=256)
RELEASED = GPT2Config()  # 124M
# As published with the weights.
PUBLISHED = {
    "activation_function": "gelu_new",
    "architectures": ["GPT2LMHeadModel"],
    "attn_pdrop": 0.1,
    "bos_token_id": 50256,
    "embd_pdrop": 0.1,
    "eos_token_id": 50256,
    "initializer_range": 0.02,
    "layer_norm_epsilon": 1e-05,
    "model_type": "gpt2",
    "resid_pdrop": 0.1,
    "summary_activation": None,
    "summary_first_dropout": 0.1,
    "summary_proj_to_labels": True,
    "summary_type": "cls_index",
    "summary_use_proj": True,
    "task_specific_params": {"text-generation": {"do_sample": True, "max_length": 50}},
}
NO_NETWORK = """import socket


def refuse(*_, **__):
    raise OSError("there is no network here")


socket.socket.connect = socket.create_connection = socket.getaddrinfo = refuse
"""


def fill_cache(home: Path, config: GPT2Config) -> None:
    """Write random weights as the hub's client keeps the released ones, causal masks included."""
    repository = home / "hub" / "models--openai-community--gpt2"
    commit = "607a30d783dfa663caf39e06633721c8d4cfcd7e"
    snapshot = repository / "snapshots" / commit
    snapshot.mkdir(parents=True)
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(commit)
    shape = {"n_layer": config.n_layer, "n_head": config.n_head, "n_embd": config.n_embd}
    shape |= {"n_ctx": config.n_ctx, "n_positions": config.n_ctx, "vocab_size": config.vocab_size}
    (snapshot / "config.json").write_text(json.dumps(PUBLISHED | shape, indent=2))
    tensors = to_released_names(GPT2(config).init_weights(0))
    mask = torch.ones(config.n_ctx, config.n_ctx).tril()[None, None]
    tensors |= {f"h.{layer}.attn.bias": mask.clone() for layer in range(config.n_layer)}
    save_file({name: t.detach() for name, t in tensors.items()}, snapshot / "model.safetensors", {"format": "pt"})


class Desk:
    """A reader's folder: the two scripts, their files, a `python`, and a hub cache."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.home = folder, folder / "home"
        for script in ("train_chatbot.py", "gpt_generate.py"):
            shutil.copy(ROOT / script, folder)
        (folder / "your_text_file.txt").write_text(TEXT, "utf-8")
        (folder / "your_data.txt").write_text(TEXT[:600], "utf-8")
        (folder / "examples.json").write_text(EXAMPLES, "utf-8")
        (folder / "bin").mkdir()
        (folder / "bin" / "python").write_text(f'#!/bin/sh\nexec "{sys.executable}" "$@"\n')
        (folder / "bin" / "python").chmod(0o755)
        self.saved = folder / "trained_model.pt"

    def run(self, line: str, stdin: str = "") -> subprocess.CompletedProcess[str]:
        """Run a line of the guide in a shell."""
        path = f"{self.folder / 'bin'}{os.pathsep}{os.environ['PATH']}"
        return subprocess.run(
            ["sh", "-c", line],
            cwd=self.folder,
            env=environment(PATH=path, HF_HOME=str(self.home)),
            input=stdin,
            capture_output=True,
            encoding="utf-8",
            timeout=1800,
        )


def follow_the_guide(desk: Desk) -> None:
    """All of it, from the first command to the last block."""
    for line, template in ((TRAIN_ON_TEXT, "few-shot"), (TRAIN_ON_CONVERSATIONS, "chat")):
        desk.saved.unlink(missing_ok=True)
        result = desk.run(line)
        assert (result.returncode, result.stdout) == (0, ""), result.stderr
        assert checkpoint.load(desk.saved).template.name == template
    place = desk.folder / "path" / "to" / "your"
    place.mkdir(parents=True)
    shutil.copy(desk.saved, place)

    asked = 'after = chatbot.chat("Who created you?", temperature=0)\nassert type(response) is type(after) is str\n'
    (desk.folder / "guide.py").write_text(USE + ADD_EXAMPLES + asked, "utf-8")
    result = desk.run("python guide.py")
    assert result.returncode == 0, result.stderr
    assert notices(result.stderr) <= EXPECTED_NOTICES
    assert result.stdout.endswith("\n")

    desk.saved.unlink()
    result = desk.run(TRAIN_AND_CHAT, stdin="Tell me what you learned\nexit\n")
    assert result.returncode == 0, result.stderr
    assert desk.saved.exists()
    assert result.stdout.strip()
    assert "trained_model.pt, trained from gpt2-small (124M)" in result.stderr


def notices(stderr: str) -> set[str]:
    """The beginnings of the lines on stderr that are known, and the other lines as they are."""
    lines = stderr.splitlines()
    return {next((n for n in EXPECTED_NOTICES if line.startswith(n)), line) for line in lines}


def test_the_guide_runs_unchanged(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    fill_cache(desk.home, SMALL)
    follow_the_guide(desk)


@pytest.mark.slow
def test_the_guide_runs_unchanged_with_weights_of_the_released_size(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    try:
        fill_cache(desk.home, RELEASED)
        follow_the_guide(desk)
        assert checkpoint.load(desk.saved).config == RELEASED
    finally:
        shutil.rmtree(desk.home)
        for path in tmp_path.rglob("*.pt"):
            path.unlink()


def test_the_released_weights_are_the_default(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    fill_cache(desk.home, SMALL)
    result = desk.run("python train_chatbot.py --conversation_file examples.json --epochs 1 --save-path bot.pt")
    assert result.returncode == 0, result.stderr
    assert result.stderr.startswith("gpt2-small (124M): ")
    assert checkpoint.load(tmp_path / "bot.pt").about["from"]["base"] == "gpt2-small (124M)"


@pytest.mark.parametrize("offline", ["1", "0"], ids=["told to stay offline", "no network"])
def test_without_weights_and_network_one_line_names_the_files_and_the_way_on(offline: str, tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK)
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    words = ["train_chatbot.py", "--model", "gpt2-small (124M)", "--text_file", "your_text_file.txt"]
    result = spawn(words, tmp_path, PYTHONPATH=path, HF_HOME=str(desk.home), HF_HUB_OFFLINE=offline)
    assert (result.returncode, result.stdout) == (1, "")
    assert result.stderr.count("\n") == 1
    assert result.stderr.startswith("error: model: the weights of 'gpt2-small (124M)' are not here")
    for expected in ("config.json", "model.safetensors", "openai-community/gpt2", "--model demo"):
        assert expected in result.stderr
    assert not list(tmp_path.glob("trained_model*"))


def test_a_trained_file_alone_is_enough_to_chat(tmp_path: Path) -> None:
    place = tmp_path / "path" / "to" / "your"
    place.mkdir(parents=True)
    save_tiny(place / "trained_model.pt")
    (tmp_path / "sitecustomize.py").write_text(NO_NETWORK)
    blocked = (
        "import socket\ntry:\n    socket.create_connection(('127.0.0.1', 9))\nexcept OSError as e:\n    print(e)\n"
    )
    path = os.pathsep.join([str(tmp_path), str(ROOT)])
    home = tmp_path / "home"
    result = spawn(
        ["-c", blocked + USE + ADD_EXAMPLES + "print(type(chatbot.chat('Who created you?')).__name__)"],
        tmp_path,
        PYTHONPATH=path,
        HF_HOME=str(home),
        HF_HUB_OFFLINE="0",
    )
    assert result.returncode == 0, result.stderr
    assert notices(result.stderr) <= EXPECTED_NOTICES
    first, *_, last = result.stdout.splitlines()
    assert (first, last) == ("there is no network here", "str")
    assert not home.exists()


def test_examples_are_shown_to_the_model_without_training(tmp_path: Path) -> None:
    save_tiny(tmp_path / "trained_model.pt")
    script = USE.replace("path/to/your/", "") + ADD_EXAMPLES + "print(chatbot.decoder.prompt_tokens)\n"
    script = script.replace("print(response)", "before = chatbot.decoder.prompt_tokens; chatbot.reset()")
    script += "chatbot.chat('Tell me what you learned'); assert chatbot.decoder.prompt_tokens > before + 30\n"
    result = spawn(["-c", script], tmp_path, HF_HOME=str(tmp_path / "home"))
    assert result.returncode == 0, result.stderr
    assert notices(result.stderr) <= EXPECTED_NOTICES
