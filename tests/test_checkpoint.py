"""A checkpoint comes back exactly or not at all, and no accident takes the old one away."""

from __future__ import annotations

import os
import pickle
import random
import stat
import subprocess
import sys
import time
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

import numpy
import pytest
import torch

import gpt2chat
from gpt2chat import checkpoint, files
from gpt2chat.checkpoint import Checkpoint, load, save
from gpt2chat.conversation import TEMPLATES, Message
from gpt2chat.errors import CheckpointError
from gpt2chat.model import GPT2, GPT2Config

CONFIG = GPT2Config(n_layer=2, n_head=2, n_embd=16, n_ctx=16, vocab_size=64)
posix = pytest.mark.skipif(os.name != "posix", reason="signals and limits of POSIX")


def random_weights(config: GPT2Config, dtype: torch.dtype = torch.float32) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = {name: tensor.shape for name, tensor in GPT2.empty(config).state_dict().items()}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


def full(config: GPT2Config = CONFIG, **changed: Any) -> Checkpoint:
    """A checkpoint with something in every field."""
    parts: dict[str, Any] = {
        "weights": random_weights(config),
        "template": TEMPLATES["alpaca"],
        "examples": [Message("user", "Who? 😀"), Message("assistant", "<|endoftext|>\n")],
        "taught": [("Who? 😀", "I\n"), ("Who? 😀", "you"), ("", "<|endoftext|>")],
        "about": {"base": "tiny", "arguments": {"epochs": 3, "rate": 1e-4, "files": ["a.json"]}, "none": None},
        "history": [{"step": 1, "loss": 0.1 + 0.2}, {"step": 2, "loss": 1 / 3, "best": True}],
        "training": {"step": 2, "state": {0: {"exp_avg": torch.randn(3, 4), "step": torch.tensor(2.0)}}},
    }
    return Checkpoint(config, **{**parts, **changed})


def same(a: object, b: object) -> bool:
    """Equal types and values all the way down, tensors bit by bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, torch.Tensor) and isinstance(b, torch.Tensor):
        return a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, Mapping) and isinstance(b, Mapping):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list) and isinstance(b, list):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def same_checkpoint(a: Checkpoint, b: Checkpoint) -> bool:
    return same({**vars(a), "mapped": None}, {**vars(b), "mapped": None})


@pytest.fixture(scope="module")
def original() -> Checkpoint:
    return full()


@pytest.fixture
def path(original: Checkpoint, tmp_path: Path) -> Path:
    path = tmp_path / "model.pt"
    save(original, path)
    return path


# -- what goes in comes out --------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_everything_comes_back_exactly(tmp_path: Path, dtype: torch.dtype) -> None:
    saved = full(weights=random_weights(CONFIG, dtype))
    save(saved, tmp_path / "a.pt")
    assert same_checkpoint(load(tmp_path / "a.pt"), saved)


def test_a_checkpoint_without_extras_comes_back(tmp_path: Path) -> None:
    saved = Checkpoint(CONFIG, random_weights(CONFIG), TEMPLATES["chat"])
    save(saved, tmp_path / "a.pt")
    assert same_checkpoint(load(tmp_path / "a.pt"), saved)


def test_a_loaded_checkpoint_can_be_saved_over_its_own_file(original: Checkpoint, path: Path) -> None:
    loaded = load(path)
    save(loaded, path)
    assert same_checkpoint(load(path), original)
    assert same_checkpoint(loaded, original)


def test_weights_that_are_views_of_larger_memory_come_back(original: Checkpoint, tmp_path: Path) -> None:
    views = {name: torch.stack([tensor, tensor])[0] for name, tensor in original.weights.items()}
    save(full(weights=views), tmp_path / "a.pt")
    assert same(load(tmp_path / "a.pt").weights, original.weights)


def test_the_model_built_from_a_file_gives_the_same_logits(tiny_model: GPT2, tiny_checkpoint: Path) -> None:
    built, ids = load(tiny_checkpoint).build_model(), torch.arange(50)[None]
    assert not built.training
    with torch.inference_mode():
        expected = tiny_model.logits(tiny_model.hidden_states(ids))
        assert torch.equal(built.logits(built.hidden_states(ids)), expected)


def test_plain_torch_reads_the_file(original: Checkpoint, path: Path) -> None:
    content = torch.load(path, weights_only=True)
    assert content["format"] == "gpt2chat"
    assert same(content["weights"], original.weights)
    assert same(content["training"], original.training)


def test_the_tied_head_is_stored_once(tiny_model: GPT2, tiny_checkpoint: Path) -> None:
    assert not any("lm_head" in name for name in torch.load(tiny_checkpoint, weights_only=True)["weights"])
    weights = sum(tensor.numel() * 4 for tensor in tiny_model.state_dict().values())
    assert tiny_checkpoint.stat().st_size < 1.1 * weights


def test_a_compact_file_is_small_and_close(tmp_path: Path) -> None:
    config = GPT2Config(n_layer=2, n_head=2, n_embd=64, n_ctx=128, vocab_size=5000)
    saved = full(config, training=None)
    save(saved, tmp_path / "full.pt")
    save(saved, tmp_path / "compact.pt", compact=True)
    assert (tmp_path / "compact.pt").stat().st_size < 0.3 * (tmp_path / "full.pt").stat().st_size
    loaded = load(tmp_path / "compact.pt")
    for name, tensor in saved.weights.items():
        if tensor.dim() == 1:
            assert torch.equal(loaded.weights[name], tensor)
        else:  # half a step of 127 to each side of a row's largest value
            step = tensor.abs().amax(1, keepdim=True) / 127
            assert ((loaded.weights[name] - tensor).abs() <= 0.501 * step).all()
    loaded.weights = saved.weights
    assert same_checkpoint(loaded, saved)


def test_rows_of_zeros_survive_compaction(tmp_path: Path) -> None:
    weights = random_weights(CONFIG)
    weights["wte.weight"] = torch.zeros_like(weights["wte.weight"])
    save(full(weights=weights), tmp_path / "a.pt", compact=True)
    assert not load(tmp_path / "a.pt").weights["wte.weight"].any()


@pytest.mark.parametrize(
    "changed",
    [
        {"weights": {name: tensor.double() for name, tensor in random_weights(CONFIG).items()}},
        {"weights": {name: tensor / 0 for name, tensor in random_weights(CONFIG).items()}},
        {"weights": {}},
        {"about": {"file": Path("a.json")}},
        {"taught": [("a", 1)]},
        {"history": [{"loss": numpy.float64(0.5)}]},
    ],
    ids=["float64", "infinity", "no weights", "a path", "a taught number", "a number of numpy"],
)
def test_what_could_not_be_read_back_is_not_written(path: Path, changed: dict[str, Any]) -> None:
    before = path.read_bytes()
    with pytest.raises(CheckpointError, match=r"model\.pt: "):
        save(full(**changed), path)
    assert path.read_bytes() == before


# -- damage ------------------------------------------------------------------------------------------------------


def read_or_refuse(path: Path) -> Checkpoint | None:
    try:
        return load(path)
    except CheckpointError as error:
        assert str(path) in str(error)
        return None


@pytest.mark.parametrize("compact", [False, True])
def test_a_flipped_bit_is_refused_or_without_effect(original: Checkpoint, tmp_path: Path, compact: bool) -> None:
    path, broken = tmp_path / "a.pt", tmp_path / "broken.pt"
    save(original, path, compact)
    expected, data, rng = load(path), path.read_bytes(), random.Random(0)
    refused = 0
    for bit in rng.sample(range(8 * len(data)), 400):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        broken.unlink(missing_ok=True)
        broken.write_bytes(flipped)
        found = read_or_refuse(broken)
        refused += found is None
        assert found is None or same_checkpoint(found, expected), f"bit {bit % 8} of byte {bit // 8}"
    assert refused > 100


def test_a_flipped_bit_in_the_directory_is_refused_or_without_effect(original: Checkpoint, path: Path) -> None:
    """The zip's directory at the end steers every read, so it is tried more densely."""
    data, broken, rng = path.read_bytes(), path.with_name("broken.pt"), random.Random(1)
    start = data.index(b"PK\x01\x02")
    for bit in rng.sample(range(8 * start, 8 * len(data)), 200):
        flipped = bytearray(data)
        flipped[bit // 8] ^= 1 << bit % 8
        broken.unlink(missing_ok=True)
        broken.write_bytes(flipped)
        found = read_or_refuse(broken)
        assert found is None or same_checkpoint(found, original), f"bit {bit % 8} of byte {bit // 8}"


def test_a_file_cut_short_is_refused(path: Path) -> None:
    data, broken = path.read_bytes(), path.with_name("broken.pt")
    for size in {*(len(data) * number // 50 for number in range(50)), *(len(data) - cut for cut in range(1, 11))}:
        broken.unlink(missing_ok=True)
        broken.write_bytes(data[:size])
        with pytest.raises(CheckpointError, match=r"broken\.pt"):
            load(broken)


def test_a_deflated_zip_is_refused(path: Path) -> None:
    deflated = path.with_name("deflated.pt")
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(deflated, "w", zipfile.ZIP_DEFLATED) as new:
        for record in old.namelist():
            new.writestr(record, old.read(record))
    with pytest.raises(CheckpointError, match="compressed"):
        load(deflated)


def test_what_is_no_checkpoint_is_named(tmp_path: Path) -> None:
    (tmp_path / "empty.pt").touch()
    (tmp_path / "text.pt").write_text("User: hello\n" * 100)
    (tmp_path / "pickle.pt").write_bytes(pickle.dumps({"format": "gpt2chat"}))
    (tmp_path / "folder.pt").mkdir()
    with zipfile.ZipFile(tmp_path / "zip.pt", "w") as archive:
        archive.writestr("readme.txt", "hello")
    torch.save({"state": torch.zeros(3)}, tmp_path / "foreign.pt")
    torch.save([1, 2], tmp_path / "list.pt")
    for name, reason in {
        "empty": "empty file",
        "text": "a file that begins with b'Us'",
        "pickle": "a file that begins with",
        "folder": "found a folder",
        "zip": "another kind of zip",
        "foreign": "another program's file",
        "list": "another program's file",
        "missing": "no such file",
    }.items():
        with pytest.raises(CheckpointError, match=rf"{name}\.pt: .*{reason}"):
            load(tmp_path / f"{name}.pt")


# -- malice ------------------------------------------------------------------------------------------------------


class Malice:
    """Runs a command when it is unpickled by a careless reader."""

    def __init__(self, marker: Path) -> None:
        self.marker = marker

    def __reduce__(self) -> tuple[Callable[[str], int], tuple[str]]:
        return os.system, (f"echo hit > '{self.marker}'",)


@pytest.mark.parametrize("place", ["about", "weights", "whole", "pickle"])
def test_code_in_a_file_is_refused_and_never_runs(path: Path, place: str) -> None:
    marker, evil = path.with_name("marker"), path.with_name("evil.pt")
    content: Any = torch.load(path, weights_only=True)
    if place in ("about", "weights"):
        content[place]["wte.weight"] = Malice(marker)
    if place == "pickle":
        evil.write_bytes(pickle.dumps(Malice(marker)))
    else:
        torch.save(Malice(marker) if place == "whole" else content, evil)
    with pytest.raises(CheckpointError, match=r"evil\.pt"):
        load(evil)
    assert not marker.exists()


def weight(change: Callable[[torch.Tensor], Any], name: str = "wte.weight") -> Callable[[dict[str, Any]], object]:
    """A change of the content that replaces one weight."""
    return lambda content: content["weights"].update({name: change(content["weights"][name])})


def spoiled(value: float) -> Callable[[torch.Tensor], torch.Tensor]:
    return lambda tensor: tensor.index_fill(0, torch.tensor([3]), value)


REFUSED: dict[str, Callable[[dict[str, Any]], object]] = {
    "sparse": weight(lambda t: t.to_sparse()),
    "stride 0": weight(lambda t: torch.zeros(1, 1).expand(t.shape)),
    "transposed": weight(lambda t: torch.zeros(t.size(1), t.size(0)).t()),
    "part of a larger memory": weight(lambda t: torch.stack([t, t])[0]),
    "without memory": weight(lambda t: t.to("meta")),
    "wrong shape": weight(lambda t: t[:-1].clone()),
    "one dimension more": weight(lambda t: t[None].clone()),
    "NaN": weight(spoiled(float("nan"))),
    "infinity": weight(spoiled(float("inf"))),
    "float64": weight(lambda t: t.double()),
    "int64": weight(lambda t: t.long()),
    "complex": weight(lambda t: t.to(torch.complex64)),
    "a list": weight(lambda t: t.tolist()),
    "int8 without scales": weight(lambda t: {"int8": t.to(torch.int8)}),
    "int8 with scales of columns": weight(lambda t: {"int8": t.to(torch.int8), "scale": torch.ones(1, t.size(1))}),
    "int8 with a NaN scale": weight(
        lambda t: {"int8": t.to(torch.int8), "scale": torch.full((t.size(0), 1), float("nan"))}
    ),
    "a missing weight": lambda content: content["weights"].pop("h.1.mlp.c_fc.bias"),
    "an unexpected weight": lambda content: content["weights"].update({"lm_head.weight": torch.zeros(64, 16)}),
    "a weight named by a number": lambda content: content["weights"].update({1: torch.zeros(1)}),
    "an extra field": lambda content: content.update(more=1),
    "a missing field": lambda content: content.pop("history"),
    "an older version": lambda content: content.update(version=0),
    "a newer version": lambda content: content.update(version=4),
    "a version of no kind": lambda content: content.update(version="1"),
    "a history without numbers": lambda content: content.update(history=[{"step": 1, "loss": "x"}]),
    "a length beyond the context": lambda content: content.update(trained_length=17),
    "another format": lambda content: content.update(format="other"),
    "another vocabulary": lambda content: content.update(tokenizer="0" * 64),
    "weights as a list": lambda content: content.update(weights=[]),
    "training as a list": lambda content: content.update(training=[]),
    "a config field of text": lambda content: content["config"].update(n_layer="2"),
    "a config with more layers": lambda content: content["config"].update(n_layer=3),
    "a config that cannot be built": lambda content: content["config"].update(n_head=3),
    "a template without a name": lambda content: content["template"].pop("name"),
    "an example without a role": lambda content: content["examples"].append({"content": "a"}),
    "an example of another role": lambda content: content["examples"].append({"role": "bot", "content": "a"}),
    "a taught question without an answer": lambda content: content["taught"].append(["a"]),
    "a taught answer of a number": lambda content: content["taught"].append(["a", 1]),
    "a taught question of text alone": lambda content: content["taught"].append("ab"),
    "taught questions by name": lambda content: content.update(taught={"a": "b"}),
    "an example of a number": lambda content: content["examples"].append({"role": "user", "content": 1}),
}


@pytest.mark.parametrize("change", REFUSED.values(), ids=REFUSED.keys())
def test_content_of_another_form_is_refused(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    content, changed = torch.load(path, weights_only=True), path.with_name("changed.pt")
    change(content)
    torch.save(content, changed)
    with pytest.raises(CheckpointError, match=r"changed\.pt: "):
        load(changed)


def test_a_size_that_the_weights_do_not_have_is_refused_at_once(path: Path) -> None:
    """A file of some kilobytes cannot make its reader build thousands of layers."""
    content, changed = torch.load(path, weights_only=True), path.with_name("changed.pt")
    content["config"]["n_layer"] = 4000
    torch.save(content, changed)
    began = time.perf_counter()
    with pytest.raises(CheckpointError, match=r"changed\.pt: "):
        load(changed)
    assert time.perf_counter() - began < 2


# -- accidents while saving --------------------------------------------------------------------------------------


def run_python(code: str, *arguments: object) -> str:
    """Run code in a process of its own; return what it printed."""
    package = str(Path(gpt2chat.__file__).parent.parent)
    environment = {**os.environ, "PYTHONPATH": package, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code, *map(str, arguments)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    return done.stdout


KILLED = """
import os, random, signal, sys, time
import torch
from gpt2chat import checkpoint
path, other, rng = sys.argv[1], sys.argv[1] + ".other", random.Random(0)
first = checkpoint.load(path)
open(other, "wb").close()
for _ in range(12):
    before = os.path.getsize(other)
    child = os.fork()
    if child == 0:
        while True:
            checkpoint.save(first, path)
            open(other, "ab").write(b".")
    while os.path.getsize(other) == before:
        assert os.waitpid(child, os.WNOHANG) == (0, 0), "the child died by itself"
        time.sleep(0.002)
    time.sleep(rng.uniform(0, 0.1))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    found = checkpoint.load(path)
    assert all(torch.equal(found.weights[name], first.weights[name]) for name in first.weights)
checkpoint.save(first, path)
"""


@posix
def test_a_killed_save_leaves_the_file_whole(tiny_checkpoint: Path) -> None:
    run_python(KILLED, tiny_checkpoint)
    load(tiny_checkpoint)
    assert not [entry.name for entry in tiny_checkpoint.parent.iterdir() if ".tmp" in entry.name]


@posix
def test_what_killed_saves_left_behind_is_swept(original: Checkpoint, path: Path) -> None:
    dead = subprocess.Popen([sys.executable, "-c", ""])
    dead.wait()
    names = [f".{path.name}.tmp-{dead.pid}", f".{path.name}.tmp-{os.getppid()}", f".other.pt.tmp-{dead.pid}"]
    for name in names:
        path.with_name(name).write_bytes(b"half")
    save(original, path)
    kept = {entry.name for entry in path.parent.iterdir()}
    assert kept == {path.name, *names[1:]}  # another living run's and another file's are none of our business


@pytest.mark.parametrize(("version", "missing"), [(1, ["trained_length", "taught"]), (2, ["taught"])])
def test_a_file_of_an_older_version_is_read(path: Path, original: Checkpoint, version: int, missing: list[str]) -> None:
    content, old = torch.load(path, weights_only=True), path.with_name("old.pt")
    for name in missing:
        del content[name]
    torch.save({**content, "version": version}, old)
    loaded = load(old)
    assert (loaded.trained_length, loaded.taught) == (None, [])
    assert all(torch.equal(loaded.weights[name], original.weights[name]) for name in original.weights)


FULL = """
import resource, sys
from gpt2chat import checkpoint
from gpt2chat.errors import CheckpointError
path, loaded = sys.argv[1], checkpoint.load(sys.argv[1])
for limit in map(int, sys.argv[2:]):
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
    try:
        checkpoint.save(loaded, path)
    except CheckpointError as error:
        print(error)
"""


@posix
def test_a_full_disk_keeps_the_old_file_and_is_named(path: Path) -> None:
    before, size = path.read_bytes(), path.stat().st_size
    lines = run_python(FULL, path, *(int(share * size) for share in (0, 0.01, 0.6, 0.9999))).splitlines()
    assert len(lines) == 4
    assert all("cannot be written: File too large" in line and "unchanged" in line for line in lines)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


class FullDisk(OSError):
    """No space left on device, as a file system reports it."""

    def __init__(self) -> None:
        super().__init__(28, "No space left on device")


@pytest.mark.parametrize("number", [1, 3, 10])
def test_an_interrupt_within_a_write_stays_an_interrupt(
    number: int, original: Checkpoint, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before, calls = path.read_bytes(), []

    class Pressed(files._KeepsFirstError):
        def __init__(self, file: IO[bytes]) -> None:
            super().__init__(Keyboard(file))

    class Keyboard:
        def __init__(self, file: IO[bytes]) -> None:
            self._file = file

        def write(self, data: bytes) -> int:
            calls.append(len(data))
            if len(calls) == number:
                raise KeyboardInterrupt
            return self._file.write(data)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._file, name)

    monkeypatch.setattr(files, "_KeepsFirstError", Pressed)
    with pytest.raises(KeyboardInterrupt):
        save(original, path)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


def test_a_link_is_followed_and_a_pipe_refused(original: Checkpoint, path: Path) -> None:
    link, pipe = path.with_name("link.pt"), path.with_name("pipe.pt")
    link.symlink_to(path)
    path.write_bytes(b"")
    save(original, link)
    assert link.is_symlink()
    assert load(path).config == original.config
    os.mkfifo(pipe)
    with pytest.raises(CheckpointError, match=r"pipe.pt: expected the name of a file, found a folder, device or pipe"):
        save(original, pipe)
    assert pipe.is_fifo()


def test_an_error_while_syncing_keeps_the_old_file(
    original: Checkpoint, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(handle: int) -> None:
        raise FullDisk

    before = path.read_bytes()
    monkeypatch.setattr(checkpoint.os, "fsync", fail)
    with pytest.raises(CheckpointError, match=r"model\.pt: cannot be written: No space left on device; .*unchanged"):
        save(full(training=None), path)
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]


@posix
def test_a_file_is_synced_then_renamed_then_its_folder_is_synced(
    original: Checkpoint, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    done, fsync, replace = list[str](), os.fsync, os.replace

    def synced(handle: int) -> None:
        fsync(handle)
        found = os.fstat(handle)
        assert not stat.S_ISDIR(found.st_mode) or os.path.samestat(found, path.parent.stat())
        done.append("folder" if stat.S_ISDIR(found.st_mode) else "file")

    def renamed(source: Path, target: Path) -> None:
        replace(source, target)
        done.append(f"renamed to {target.name}")

    monkeypatch.setattr(checkpoint.os, "fsync", synced)
    monkeypatch.setattr(checkpoint.os, "replace", renamed)
    save(original, path)
    assert done == ["file", "renamed to model.pt", "folder"]


def test_a_place_that_cannot_be_written_is_named(original: Checkpoint, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "folder.pt").mkdir()
    for place in (tmp_path / "folder.pt", tmp_path / "file" / "a.pt"):
        with pytest.raises(CheckpointError, match=r"cannot be written|expected the name of a file"):
            save(original, place)
    assert sorted(entry.name for entry in tmp_path.iterdir()) == ["file", "folder.pt"]


def test_missing_folders_are_made(original: Checkpoint, tmp_path: Path) -> None:
    save(original, tmp_path / "a" / "b" / "c.pt")
    assert same_checkpoint(load(tmp_path / "a" / "b" / "c.pt"), original)


def test_an_interrupted_save_leaves_nothing_behind(original: Checkpoint, path: Path) -> None:
    before = path.read_bytes()
    with pytest.raises(KeyboardInterrupt), checkpoint.atomic_writer(path) as file:
        file.write(b"half")
        raise KeyboardInterrupt
    assert path.read_bytes() == before
    assert [entry.name for entry in path.parent.iterdir()] == [path.name]
