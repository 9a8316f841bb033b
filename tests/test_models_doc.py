"""The commands of docs/models.md run as they stand there, on small models in each of its forms."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
from pathlib import Path

import pytest
import torch
from helpers_cli import invoke
from helpers_hub import Hub
from helpers_weights import nanogpt, rasbt, reference, write_tensorflow
from huggingface_hub import close_session
from safetensors.torch import save_file
from test_hub import direct

from gpt2chat import pretrained

DOCUMENT = (Path(__file__).resolve().parent.parent / "docs" / "models.md").read_text("utf-8")
EXAMPLES = dict(re.findall(r"^### ([^\n]+)\n```bash\n(.+?)```", DOCUMENT, flags=re.M | re.S))
FORMS = [line for line in DOCUMENT.splitlines() if line.startswith("| ") and not line.startswith("| form")]


def write_adapter(folder: Path, base: Path) -> None:
    """A LoRA adapter of rank 2 on the first layer of a model 128 wide."""
    folder.mkdir()
    part = "base_model.model.transformer.h.0.attn.c_attn"
    save_file(
        {f"{part}.lora_A.weight": torch.randn(2, 128), f"{part}.lora_B.weight": torch.randn(384, 2)},
        folder / "adapter_model.safetensors",
    )
    config = {"peft_type": "LORA", "base_model_name_or_path": str(base), "r": 2, "lora_alpha": 4}
    config |= {"target_modules": ["c_attn"], "fan_in_fan_out": True}
    (folder / "adapter_config.json").write_text(json.dumps(config))


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a model under each name of the document."""
    folder, model = tmp_path_factory.mktemp("models"), reference()
    model.save_pretrained(folder / "my_model")
    write_tensorflow(folder / "models" / "124M", model)
    (folder / "out").mkdir()
    torch.save(nanogpt(model), folder / "out" / "ckpt.pt")
    torch.save(rasbt(model), folder / "gpt2-small-124M.pth")
    write_adapter(folder / "my_adapter", folder / "my_model")
    return folder


@pytest.fixture
def place(models: Path, tmp_path: Path, tiny_checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place to work with the models in it."""
    shutil.copytree(models, tmp_path, copy_function=os.link, dirs_exist_ok=True)
    tiny_checkpoint.rename(tmp_path / "trained_model.pt")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("title", EXAMPLES)
def test_the_example_of_each_form_runs(title: str, place: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub()
    files = {path.name: path.read_bytes() for path in (place / "my_model").iterdir()}
    for repository in ("distilbert/distilgpt2", *pretrained.REPOSITORIES.values()):
        hub.publish(repository, files)
    direct(monkeypatch, hub.endpoint, place / "home" / "hub")
    lines = EXAMPLES[title].splitlines()
    assert len(lines) == 2
    try:
        for line in lines:
            result = invoke(*shlex.split(line)[1:])
            assert result.exit_code == 0, (line, result.stderr)
            assert result.stdout.strip() or "chat" in line
    finally:
        close_session()
        hub.close()


def test_each_form_of_the_table_has_its_example() -> None:
    assert len(EXAMPLES) == len(FORMS) + 1  # transformers has two
