"""The native decoder: equal to torch within rounding, and to itself to the bit however the work is cut."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from gpt2chat import kernels, packs
from gpt2chat.checkpoint import Checkpoint
from gpt2chat.conversation import TEMPLATES
from gpt2chat.decoding import choose, runtime_of
from gpt2chat.errors import ConfigError, ContextError
from gpt2chat.hardware import pick_dtype
from gpt2chat.kernels.binding import Kernel
from gpt2chat.model import GPT2, GPT2Config
from gpt2chat.quantize import FORMS, form_for, int4_groups, int8_rows, pack, rounded, unpack
from gpt2chat.runtime import NativeCache, NativeRuntime, Part, Team, TorchRuntime

# 3 layers of odd sizes: a width that is no multiple of 64, heads of 16 and 48, a vocabulary that ends within a panel
SHAPES = {
    "narrow": GPT2Config(n_layer=3, n_head=3, n_embd=48, n_ctx=100, vocab_size=601),
    "untied": GPT2Config(n_layer=2, n_head=2, n_embd=96, n_ctx=64, vocab_size=333, tie_word_embeddings=False),
    "wide": GPT2Config(n_layer=2, n_head=4, n_embd=256, n_ctx=600, vocab_size=2000),
}
# how far logits may be from torch's with the same weights, relative: activations are rounded to 16 bits (bfloat16 where
# tiles are used) for all, to 8 for int4; keys and values to bfloat16 for all but float32
NEAR = {"float32": 1e-5, "bfloat16": 2e-2, "int8": 1e-2, "int4": 2e-2}


@pytest.fixture(scope="module")
def native() -> Kernel:
    try:
        return kernels.kernel()
    except kernels.KernelUnavailable as error:
        if shutil.which("c++") or shutil.which("g++"):
            raise
        pytest.skip(str(error))


def checkpoint_of(shape: str) -> Checkpoint:
    model = GPT2(SHAPES[shape]).init_weights(1)
    generator = torch.Generator().manual_seed(2)
    weights = {
        name: tensor + 0.05 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in model.state_dict().items()
    }
    return Checkpoint(SHAPES[shape], weights, TEMPLATES["chat"])


def runtime(native: Kernel, shape: str, form: str) -> NativeRuntime:
    loaded = checkpoint_of(shape)
    made = packs.build(loaded, form)
    dtype = torch.float32 if form == "float32" else torch.bfloat16
    return NativeRuntime(native, loaded.config, form, made.panels, made.vectors, dtype)


def ids_for(config: GPT2Config, count: int, seed: int = 0) -> list[int]:
    return torch.randint(0, config.vocab_size, (count,), generator=torch.Generator().manual_seed(seed)).tolist()


def in_pieces(runtime: NativeRuntime, ids: list[int], sizes: Iterator[int] | list[int]) -> torch.Tensor:
    """Run ids in calls of these sizes; return all logits."""
    cache, parts, at = runtime.new_cache(), [], 0
    for size in sizes:
        part = ids[at : at + size]
        parts.append(runtime.forward(part, cache, len(part)).clone())
        at += size
        if at >= len(ids):
            break
    return torch.cat(parts)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_logits_are_those_of_torch_with_the_same_weights(native: Kernel, shape: str, form: str) -> None:
    loaded, ours = checkpoint_of(shape), runtime(native, shape, form)
    weights = {
        name: rounded(tensor, form_for(name, form)) if tensor.dim() == 2 and name != "wpe.weight" else tensor
        for name, tensor in loaded.weights.items()
    }
    theirs = TorchRuntime(Checkpoint(loaded.config, weights, loaded.template).build_model().requires_grad_(False))
    ids = ids_for(loaded.config, min(300, loaded.config.n_ctx))
    expected = theirs.forward(ids, theirs.new_cache(), len(ids))
    found = ours.forward(ids, ours.new_cache(), len(ids))
    assert found.shape == expected.shape
    assert ((found - expected).norm() / expected.norm()).item() < NEAR[form]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", SHAPES)
def test_an_answer_does_not_depend_on_how_the_ids_are_cut(native: Kernel, shape: str, form: str) -> None:
    ours = runtime(native, shape, form)
    ids = ids_for(ours.config, min(300, ours.config.n_ctx))
    whole = in_pieces(ours, ids, [len(ids)])
    for size in (1, 2, 3, 4, 5, 17, 33):
        assert torch.equal(in_pieces(ours, ids, [size] * len(ids)), whole), size


@pytest.mark.parametrize("form", FORMS)
def test_an_answer_does_not_depend_on_the_number_of_threads(native: Kernel, form: str) -> None:
    ours = runtime(native, "wide", form)
    ids = ids_for(ours.config, 90)
    answers = []
    for threads in (1, 2, 3):
        ours.team = Team(threads)
        answers.append(in_pieces(ours, ids, [70, 1, 1, 8, 10]))
    assert torch.equal(answers[0], answers[1])
    assert torch.equal(answers[0], answers[2])


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", ["narrow", "wide"])
def test_what_was_in_the_cache_before_leaves_no_trace(native: Kernel, shape: str, form: str) -> None:
    ours = runtime(native, shape, form)
    cache, fresh = ours.new_cache(), ours.new_cache()
    ours.forward(ids_for(ours.config, 99, seed=5), cache)
    cache.truncate(16)
    blocks = cache.page // 16
    cache.pages[0].view(2, ours.config.n_layer, ours.config.n_head, blocks, -1)[:, :, :, 1:] = float("nan")
    first = ids_for(ours.config, 99, seed=5)[:16]
    ours.forward(first, fresh)
    for id in ids_for(ours.config, 20, seed=6):
        assert torch.equal(ours.forward([id], cache).clone(), ours.forward([id], fresh))


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("shape", ["narrow", "wide"])
def test_an_answer_depends_neither_on_pages_nor_on_what_is_computed_with_it(
    native: Kernel, shape: str, form: str
) -> None:
    ours = runtime(native, shape, form)
    texts = [ids_for(ours.config, length, seed=length) for length in (70, 33, 1, 16, 57)]
    alone = [in_pieces(ours, ids, [len(ids)]) for ids in texts]
    size, dtype = ours.page_shape(16)
    caches = [NativeCache(16, [torch.full(size, float("nan"), dtype=dtype) for _ in range(5)], 5) for _ in texts]
    together: list[list[torch.Tensor]] = [[] for _ in texts]
    places = [0] * len(texts)
    for sizes in ((40, 20, 1, 3, 0), (30, 1, 0, 12, 56), (0, 12, 0, 1, 1)):
        parts = [
            (number, Part(ids[place : place + size], cache, size))
            for number, (ids, cache, place, size) in enumerate(zip(texts, caches, places, sizes, strict=True))
            if size
        ]
        logits = ours.forward_batch([part for _, part in parts]).split([part.wanted for _, part in parts])
        for (number, part), found in zip(parts, logits, strict=True):
            together[number].append(found.clone())
            places[number] += part.wanted
    for found, expected in zip(together, alone, strict=True):
        assert torch.equal(torch.cat(found), expected)


def test_what_does_not_fit_or_is_no_id_is_refused_and_the_cache_stays(native: Kernel) -> None:
    ours = runtime(native, "narrow", "int8")
    cache = ours.new_cache()
    ours.forward([1, 2, 3], cache)
    with pytest.raises(ContextError, match="at most 100 tokens, got 101"):
        ours.forward([1] * 98, cache)
    for bad in (-1, 601):
        with pytest.raises(IndexError, match="ids: expected 0 to 600"):
            ours.forward([1, bad], cache)
    assert cache.length == 3
    assert ours.forward([1] * 97, cache).shape == (1, 601)


def test_shapes_that_the_native_decoder_does_not_know_go_through_torch(native: Kernel) -> None:
    odd = GPT2Config(n_layer=1, n_head=3, n_embd=36, n_ctx=32, vocab_size=100)
    loaded = Checkpoint(odd, GPT2(odd).init_weights(0).state_dict(), TEMPLATES["chat"])
    assert isinstance(runtime_of(loaded, choose("cpu")), TorchRuntime)


def test_a_busy_machine_gets_fewer_threads_for_a_while() -> None:
    team = Team(4)
    seen = []
    for _ in range(50):
        seen.append(team.count)
        team.note(0.04 / team.count)
    assert seen == [4, 4, 2, *[4] * 47]  # one look at what half of them can do
    for _ in range(3):
        team.note(0.2)
    assert team.count == 2
    for _ in range(Team.REST):
        assert team.count == 2
        team.note(0.02)
    assert team.count == 4
    team.note(0.2)  # still busy
    assert team.count == 2
    for _ in range(2 * Team.REST):
        team.note(0.02)
    for _ in range(20):
        team.note(0.01)
        assert team.count == 4
    team.note(0.2)  # once is chance
    assert team.count == 4


def test_a_machine_that_was_busy_from_the_start_is_seen() -> None:
    team = Team(2)
    for seconds in (0.2, 0.2, 0.02, 0.2, 0.2, 0.2):
        team.note(seconds)
    assert team.count == 1


def test_a_single_thread_stays() -> None:
    team = Team(1)
    for seconds in (0.01, 0.5, 0.5, 0.5, 0.5, 0.5):
        team.note(seconds)
    assert team.count == 1


# -- panels ------------------------------------------------------------------------------------------------------------


@given(st.integers(1, 70), st.integers(1, 150), st.sampled_from(FORMS), st.integers(0, 9))
def test_a_matrix_comes_back_from_its_panels(outputs: int, inputs: int, form: str, seed: int) -> None:
    matrix = torch.randn(outputs, inputs, generator=torch.Generator().manual_seed(seed))
    back = unpack(pack(matrix, form), form, outputs, inputs)
    if form == "float32":
        assert torch.equal(back, matrix)
    elif form == "bfloat16":
        assert torch.equal(back, matrix.bfloat16().float())
    elif form == "int8":
        rows, scale = int8_rows(matrix)
        assert torch.equal(back, rows * scale)
    else:
        assert (back - matrix).abs().max() <= matrix.abs().max() / 7.5


def test_numbers_that_fit_exactly_are_kept_exactly_in_int4() -> None:
    numbers = torch.randint(-8, 8, (16, 64), generator=torch.Generator().manual_seed(0))
    numbers[:, ::32] = -8
    assert torch.equal(rounded(numbers * 0.25, "int4"), numbers * 0.25)
    found, scale = int4_groups(torch.zeros(2, 64))
    assert found.eq(0).all() and scale.eq(1).all()


# -- compiling ---------------------------------------------------------------------------------------------------------


@pytest.fixture
def unknown(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A process that has not looked for the native decoder yet, and an empty cache."""
    monkeypatch.setattr(kernels, "_found", None)
    monkeypatch.setenv("GPT2CHAT_CACHE", str(tmp_path))
    monkeypatch.delenv("CXX", raising=False)
    return tmp_path


def test_without_a_compiler_torch_answers_and_the_reason_is_told(
    unknown: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(unknown))
    said: list[str] = []
    choice = choose("cpu", notice=said.append)
    assert choice.kernel is None
    assert said == [choice.why]
    assert "no C++ compiler is installed" in choice.why
    assert choice.form in ("float32", "bfloat16")


def test_a_compiler_that_fails_is_quoted(unknown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", f"{sys.executable} -c 'raise SystemExit(1)'".split(" -c")[0] + " -c import_nothing")
    with pytest.raises(kernels.KernelUnavailable, match="cannot compile it"):
        kernels.kernel()
    assert list((unknown / "kernels").iterdir()) == [unknown / "kernels" / "lock"]


def test_a_full_disk_is_no_reason_to_keep_a_slower_library(
    unknown: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compiler = tmp_path / "compiler"
    script = '#!/bin/sh\ncase "$*" in *native*) echo "x.s: No space left on device" >&2; exit 1;; esac\nexec g++ "$@"\n'
    compiler.write_text(script)
    compiler.chmod(0o755)
    monkeypatch.setenv("CXX", str(compiler))
    with pytest.raises(kernels.KernelUnavailable, match="No space left on device"):
        kernels.kernel()
    assert list((unknown / "kernels").iterdir()) == [unknown / "kernels" / "lock"]


def test_float16_answers_through_torch_and_is_not_for_training() -> None:
    loaded = checkpoint_of("wide")
    choice = choose("cpu", "float16")
    assert choice.kernel is None
    assert "float16" in choice.why
    ours, exact = runtime_of(loaded, choice), runtime_of(loaded, choose("cpu", "float32", "none"))
    ids = ids_for(loaded.config, 50)
    found, expected = (r.forward(ids, r.new_cache(), 50) for r in (ours, exact))
    assert ((found - expected).norm() / expected.norm()).item() < 1e-2
    with pytest.raises(ConfigError, match="expected auto, float32 or bfloat16, got 'float16'"):
        pick_dtype("float16", torch.device("cpu"))


def test_it_can_be_switched_off(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GPT2CHAT_NATIVE", "0")
    assert choose("cpu").kernel is None


def test_a_cache_that_cannot_be_written_is_named(unknown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (unknown / "kernels").write_text("a file where a folder is expected")
    with pytest.raises(kernels.KernelUnavailable, match="cannot be written"):
        kernels.kernel()


@pytest.mark.slow
@pytest.mark.parametrize("processor", ["x86-64", "x86-64-v3", "cascadelake"])
def test_code_for_other_processors_gives_the_same_answers(processor: str, native: Kernel, tmp_path: Path) -> None:
    import ctypes
    import platform

    if platform.machine() != "x86_64":
        pytest.skip("compiles for x86-64")
    library = tmp_path / "decode.so"
    flags = [*kernels.FLAGS, f"-march={processor}", "-fopenmp"]
    subprocess.run(["c++", *flags, str(kernels.SOURCE), "-o", str(library)], check=True)
    other = Kernel(ctypes.CDLL(str(library)))
    if not other.instructions:
        pytest.skip(f"this processor is older than {processor}")
    for form in FORMS:
        mine, theirs = runtime(native, "wide", form), runtime(other, "wide", form)
        ids = ids_for(mine.config, 300)
        a, b = in_pieces(mine, ids, [300]), in_pieces(theirs, ids, [300])
        assert ((a - b).norm() / a.norm()).item() < {"float32": 1e-5, "int8": 2e-3}.get(form, 2e-2)
        assert torch.equal(in_pieces(theirs, ids, [1] * 300), b)


def test_two_processes_that_start_together_compile_once(tmp_path: Path, native: Kernel) -> None:
    program = "from gpt2chat.kernels import kernel; kernel(print)"
    environment = {**os.environ, "GPT2CHAT_CACHE": str(tmp_path)}
    both = [
        subprocess.Popen([sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = sorted(process.communicate()[0] for process in both)
    assert [process.returncode for process in both] == [0, 0]
    assert said[0] == "" and "once" in said[1]
    assert len(list((tmp_path / "kernels").glob("*.so"))) == 1


def test_threads_that_share_a_runtime_take_turns(native: Kernel) -> None:
    from concurrent.futures import ThreadPoolExecutor

    from gpt2chat.generation import Decoder
    from gpt2chat.sampling import GenerationConfig

    ours, config = runtime(native, "wide", "int8"), GenerationConfig(temperature=0, max_new_tokens=40)
    prompts = [ids_for(ours.config, 12, seed) for seed in range(4)]
    alone = [list(Decoder(ours).generate(prompt, config, ())) for prompt in prompts]
    with ThreadPoolExecutor(4) as pool:
        for _ in range(5):
            together = pool.map(lambda prompt: list(Decoder(ours).generate(prompt, config, ())), prompts)
            assert list(together) == alone


@pytest.mark.parametrize("form", FORMS)
def test_what_is_no_number_is_not_hidden(native: Kernel, form: str) -> None:
    loaded = checkpoint_of("narrow")
    loaded.weights["h.1.ln_2.bias"].fill_(float("nan"))  # type: ignore[index]
    made = packs.build(loaded, form)
    ours = NativeRuntime(native, loaded.config, form, made.panels, made.vectors)
    for count in (1, 20):
        assert not torch.isfinite(ours.forward([1] * count, ours.new_cache())).any()


@pytest.mark.parametrize("content", ["half", *(pytest.param(c, marks=pytest.mark.slow) for c in ("empty", "zeros"))])
def test_a_library_that_was_cut_short_is_compiled_again(native: Kernel, tmp_path: Path, content: str) -> None:
    program = "from gpt2chat.kernels import kernel; print(kernel(print).instructions)"
    environment = {**os.environ, "GPT2CHAT_CACHE": str(tmp_path)}
    command = [sys.executable, "-c", program]
    subprocess.run(command, env=environment, check=True, capture_output=True)
    (library,) = (tmp_path / "kernels").glob("*.so")
    whole = library.read_bytes()
    cut = {"half": whole[: len(whole) // 2], "empty": b"", "zeros": whole[:4096] + bytes(len(whole) - 4096)}
    library.write_bytes(cut[content])
    again = subprocess.run(command, env=environment, check=True, capture_output=True, text=True)
    assert again.stdout.splitlines() == [again.stdout.splitlines()[0], native.instructions]
    assert "once" in again.stdout


def test_a_compiler_that_is_not_there_or_speaks_no_utf8_is_named(
    unknown: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = unknown / "bad"
    bad.write_bytes(b"#!/bin/sh\nprintf '\\377\\376 bad\\n' >&2\nexit 1\n")
    bad.chmod(0o755)
    for compiler, reason in ((str(bad), "bad"), ("/nonexistent/g++", "cannot be run: No such file")):
        monkeypatch.setenv("CXX", compiler)
        monkeypatch.setattr(kernels, "_found", None)
        with pytest.raises(kernels.KernelUnavailable, match=reason):
            kernels.kernel()


def test_without_a_home_the_reason_is_told(unknown: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("GPT2CHAT_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", staticmethod(homeless))
    with pytest.raises(kernels.KernelUnavailable, match="set GPT2CHAT_CACHE"):
        kernels.kernel()
