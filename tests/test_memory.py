"""Loading weights of every form takes little more memory than the network that comes of it."""

from __future__ import annotations

import json
import mmap
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import helpers_weights
import pytest
import torch
from helpers_weights import nanogpt, rasbt, reference, write_tensorflow
from safetensors.torch import save_file
from transformers import GPT2LMHeadModel

from gpt2chat import checkpoint, pretrained
from gpt2chat.pretrained.crc32c import crc32c

PAGEOUT = 21  # <linux/mman.h>
LIMIT, BUFFERS = 1.2, 8 << 20  # of the network; bytes of what does not grow with it
pytestmark = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
# Each load is in a process of its own, which has loaded a small model before: its code then is in memory.
MEASURE = """
import ctypes, os, sys, torch
from gpt2chat import pretrained

def status(field):
    with open("/proc/self/status") as file:
        return next(int(line.split()[1]) << 10 for line in file if line.startswith(field))

dtype = getattr(torch, sys.argv[1])
pretrained.load("demo")
for place in sys.argv[2:]:
    if os.fork() == 0:
        pretrained.load("demo").build_model(dtype)
        ctypes.CDLL(None).malloc_trim(0)
        with open("/proc/self/clear_refs", "w") as file:
            file.write("5")  # the peak begins anew
        before = status("VmRSS:")
        model = pretrained.load(place).build_model(dtype)
        size = sum(p.numel() * p.element_size() for p in model.parameters())
        print(status("VmHWM:") - before, size, flush=True)
        os._exit(0)
    os.wait()
"""


def save_transformers(model: GPT2LMHeadModel, folder: Path, file: str = "", zipped: bool = True) -> None:
    if not file:
        model.save_pretrained(folder, max_shard_size="30MB" if folder.name == "shards" else "1GB")
        return
    model.config.save_pretrained(folder)
    torch.save(model.state_dict(), folder / file, _use_new_zipfile_serialization=zipped)


def save_adapter(model: GPT2LMHeadModel, folder: Path) -> None:
    """An adapter of every linear layer of the model in safetensors."""
    folder.mkdir()
    config = {"peft_type": "LORA", "base_model_name_or_path": "../safetensors", "r": 2, "lora_alpha": 4}
    (folder / "adapter_config.json").write_text(json.dumps(config))
    tensors = {}
    for name, weight in model.state_dict().items():
        if name.endswith(helpers_weights.LINEAR):
            place = f"base_model.model.{name.removesuffix('.weight')}"
            tensors[f"{place}.lora_A.weight"] = torch.ones(2, weight.size(0))
            tensors[f"{place}.lora_B.weight"] = torch.ones(weight.size(1), 2)
    save_file(tensors, folder / "adapter_model.safetensors")


def save_own(place: Path, compact: bool) -> None:
    checkpoint.save(pretrained.load(str(place.parent / "safetensors")), place, compact)


FORMS: dict[str, Callable[[GPT2LMHeadModel, Path], object]] = {
    "safetensors": save_transformers,
    "shards": save_transformers,
    "bin": lambda model, place: save_transformers(model, place, "pytorch_model.bin"),
    "bin of old": lambda model, place: save_transformers(model, place, "pytorch_model.bin", zipped=False),
    "TensorFlow": lambda model, place: write_tensorflow(place, model),
    "nanoGPT": lambda model, place: torch.save(nanogpt(model), place),
    "LLMs-from-scratch": lambda model, place: torch.save(rasbt(model), place),
    "adapter": save_adapter,
    "own": lambda model, place: save_own(place, compact=False),
    "own compact": lambda model, place: save_own(place, compact=True),
}


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A model of 80 MB in float32 in every form."""
    root = tmp_path_factory.mktemp("models")
    model = reference(n_layer=24, n_head=3, n_embd=192)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(helpers_weights, "crc32c", crc32c)  # which is compared with the plain one elsewhere
        for form, write in FORMS.items():
            write(model, root / form)
    for path in root.rglob("*"):
        if path.is_file():
            on_disk(path)
    return {form: root / form for form in FORMS}


def on_disk(path: Path) -> None:
    """Pages that are still to be written cannot be dropped."""
    with path.open("rb") as file:
        os.fsync(file.fileno())


def takes_pages_back(folder: Path) -> bool:
    """Whether the kernel can drop pages of files there, as it cannot where the folder lies in memory itself."""
    path, size = folder / "pages", 1 << 24
    path.write_bytes(bytes(size))
    on_disk(path)
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as pages:
        before = resident()
        assert sum(pages[::4096]) == 0
        read = resident()
        pages.madvise(PAGEOUT)
        return resident() - before < (read - before) / 2


def resident() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * mmap.PAGESIZE


@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_no_form_takes_more_memory_than_the_network_and_a_fifth(
    dtype: str, places: dict[str, Path], tmp_path: Path
) -> None:
    if not takes_pages_back(tmp_path):
        pytest.skip("the kernel does not take pages of these files back")
    ratios = measured(dtype, places)
    high = {form: places[form] for form, ratio in ratios.items() if ratio > LIMIT}
    again = measured(dtype, high) if high else {}  # what else runs can only add to a peak
    assert {form: ratio for form, ratio in again.items() if ratio > LIMIT} == {}


def measured(dtype: str, places: dict[str, Path]) -> dict[str, float]:
    """Load each place in a process of its own; return the peaks, as parts of the network."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", MEASURE, dtype, *map(str, places.values())]
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    found = dict(zip(places, (map(int, line.split()) for line in done.stdout.splitlines()), strict=True))
    return {form: (peak - BUFFERS) / size for form, (peak, size) in found.items()}
