"""The peers of the decoding benchmarks, each with the same random weights: transformers, CTranslate2, llama.cpp.

They come from the package index: `pip install transformers ctranslate2 gguf llama-cpp-python`; those that are not
installed are left out. llama.cpp's AMX path for 8 and 4 bits crashes on some virtual machines; there, build it without:
CMAKE_ARGS="-DCMAKE_C_FLAGS='-mno-amx-tile -mno-amx-int8 -mno-amx-bf16' -DCMAKE_CXX_FLAGS=(the same)".
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import os
import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np

FORMS = {
    "float32": {"transformers": "float32", "ctranslate2": "float32", "llama.cpp": "F32"},
    "bfloat16": {"transformers": "bfloat16", "llama.cpp": "BF16"},
    "int8": {"ctranslate2": "int8", "llama.cpp": "Q8_0"},
    "int4": {"llama.cpp": "Q4_0"},
}
NEEDED = {"transformers": "transformers", "ctranslate2": "ctranslate2", "llama.cpp": "llama_cpp"}
# llama.cpp's numbers for file types, from llama.h
FILE_TYPES = {"F32": 0, "Q4_0": 2, "Q8_0": 7, "BF16": 32}
Run = Callable[[list[list[int]], int], float]  # (prompts of one length, new tokens of each) -> seconds until the last


def installed(peer: str) -> bool:
    """Whether a peer can be measured here."""
    return importlib.util.find_spec(NEEDED[peer]) is not None


def folder_for(size: str) -> Path:
    """Return where the peers' files of a size are kept between runs."""
    return Path(os.environ.get("BENCH_MODELS", Path.home() / ".cache" / "gpt2chat-benchmarks"), size)


def make_files(size: str) -> None:
    """Write random weights of a released size in every peer's own form, once."""
    folder = folder_for(size)
    if not (folder / "hf" / "model.safetensors").exists():
        _write_transformers(size, folder / "hf")
    if installed("ctranslate2"):
        for form in ("float32", "int8"):
            if not (folder / f"ct2-{form}" / "model.bin").exists():
                from ctranslate2.converters import TransformersConverter

                TransformersConverter(str(folder / "hf")).convert(
                    str(folder / f"ct2-{form}"), quantization=form, force=True
                )
    if installed("llama.cpp") and not (folder / "Q4_0.gguf").exists():
        _write_gguf(folder)


def _write_transformers(size: str, folder: Path) -> None:
    import torch
    from tokenizers import Tokenizer, models
    from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

    from gpt2chat.model import MODEL_SIZES
    from gpt2chat.pretrained import canonical_name

    shape = MODEL_SIZES[canonical_name(size)]
    torch.manual_seed(0)
    config = GPT2Config(n_layer=shape.n_layer, n_head=shape.n_head, n_embd=shape.n_embd)
    GPT2LMHeadModel(config).eval().save_pretrained(folder)
    words = {f"t{number}": number for number in range(shape.vocab_size - 1)} | {"<|endoftext|>": shape.vocab_size - 1}
    plain = Tokenizer(models.WordLevel(words, unk_token="<|endoftext|>"))  # ids are all that is measured
    end = "<|endoftext|>"
    PreTrainedTokenizerFast(tokenizer_object=plain, unk_token=end, bos_token=end, eos_token=end).save_pretrained(folder)


GGUF_NAMES = {
    "ln_1": "attn_norm",
    "attn.c_attn": "attn_qkv",
    "attn.c_proj": "attn_output",
    "ln_2": "ffn_norm",
    "mlp.c_fc": "ffn_up",
    "mlp.c_proj": "ffn_down",
}


def _write_gguf(folder: Path) -> None:
    """Write llama.cpp's files: float32 by hand, the others by its own quantiser."""
    import gguf
    import llama_cpp
    from safetensors.numpy import load_file

    weights = {
        name.removeprefix("transformer."): w for name, w in load_file(folder / "hf" / "model.safetensors").items()
    }
    layers, width = (
        1 + max(int(name.split(".")[1]) for name in weights if name.startswith("h.")),
        weights["wte.weight"].shape[1],
    )
    writer = gguf.GGUFWriter(folder / "F32.gguf", "gpt2")
    writer.add_block_count(layers)
    writer.add_context_length(1024)
    writer.add_embedding_length(width)
    writer.add_feed_forward_length(4 * width)
    writer.add_head_count(width // 64)
    writer.add_layer_norm_eps(1e-5)
    writer.add_file_type(0)
    writer.add_tokenizer_model("none")
    writer.add_vocab_size(50257)
    for name, ours in (("wte.weight", "token_embd.weight"), ("wpe.weight", "position_embd.weight")):
        writer.add_tensor(ours, weights[name])
    for end in ("weight", "bias"):
        writer.add_tensor(f"output_norm.{end}", weights[f"ln_f.{end}"])
        for layer in range(layers):
            for theirs, ours in GGUF_NAMES.items():
                weight = weights[f"h.{layer}.{theirs}.{end}"]
                weight = np.ascontiguousarray(weight.T) if weight.ndim == 2 else weight
                writer.add_tensor(f"blk.{layer}.{ours}.{end}", weight)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    _hush(llama_cpp)
    for name in ("BF16", "Q8_0", "Q4_0"):
        options = llama_cpp.llama_model_quantize_default_params()
        options.ftype, options.nthread = FILE_TYPES[name], 2
        source, target = str(folder / "F32.gguf").encode(), str(folder / f"{name}.gguf").encode()
        if llama_cpp.llama_model_quantize(source, target, ctypes.byref(options)):
            raise SystemExit(f"llama.cpp could not write {name}")


# -- running -----------------------------------------------------------------------------------------------------------


def our_runtime(form: str, size: str) -> Any:
    """Return what runs the same weights in gpt2chat."""
    from gpt2chat import pretrained
    from gpt2chat.decoding import choose, runtime_of

    quantized = form in ("int8", "int4")
    choice = choose("cpu", "auto" if quantized else form, form if quantized else "none")
    return runtime_of(pretrained.load(str(folder_for(size) / "hf")), choice)


def peer_parser(description: str | None, worker: tuple[str, ...], forms: Iterable[str]) -> argparse.ArgumentParser:
    """Return the options of a comparison with the peers; a worker measures one of them."""
    parser = argparse.ArgumentParser(description=description)
    parser.add_argument("--worker", nargs=len(worker), metavar=worker)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", default="124M")
    parser.add_argument("--threads", default="2")
    parser.add_argument("--form", choices=forms, action="append")
    return parser


def open_peer(peer: str, form: str, size: str, threads: int, streams: int = 1) -> Run:
    """Load a peer's model; return what decodes greedily with it, up to so many prompts at once."""
    path, name = folder_for(size), FORMS[form][peer]
    if peer == "transformers":
        return _transformers(path / "hf", name)
    if peer == "ctranslate2":
        return _ctranslate2(path / f"ct2-{name}", name, threads)
    return _llama(path / f"{name}.gguf", threads, streams)


def _transformers(path: Path, dtype: str) -> Run:
    import torch
    from transformers import GPT2LMHeadModel

    model = GPT2LMHeadModel.from_pretrained(path, dtype=getattr(torch, dtype)).eval()
    options: dict[str, Any] = {"do_sample": False, "eos_token_id": None, "pad_token_id": 50256, "use_cache": True}

    def run(prompts: list[list[int]], new: int) -> float:
        ids, began = torch.tensor(prompts), time.perf_counter()
        with torch.inference_mode():
            model.generate(ids, attention_mask=torch.ones_like(ids), max_new_tokens=new, min_new_tokens=new, **options)
        return time.perf_counter() - began

    return run


def _ctranslate2(path: Path, form: str, threads: int) -> Run:
    import ctranslate2

    generator = ctranslate2.Generator(
        str(path), device="cpu", compute_type=form, intra_threads=threads, inter_threads=1
    )

    def run(prompts: list[list[int]], new: int) -> float:
        began = time.perf_counter()
        found = generator.generate_batch(
            [[f"t{id}" for id in prompt] for prompt in prompts],
            max_length=new,
            min_length=new,
            sampling_topk=1,
            include_prompt_in_result=False,
            suppress_sequences=[["<|endoftext|>"]],
        )
        seconds = time.perf_counter() - began
        for answer in found:
            if len(answer.sequences_ids[0]) != new:
                raise SystemExit(f"ctranslate2: expected {new} tokens, got {len(answer.sequences_ids[0])}")
        return seconds

    return run


def _llama(path: Path, threads: int, streams: int) -> Run:
    import llama_cpp

    _hush(llama_cpp)
    model = llama_cpp.llama_model_load_from_file(str(path).encode(), llama_cpp.llama_model_default_params())
    options = llama_cpp.llama_context_default_params()
    options.n_ctx, options.n_batch, options.n_threads, options.n_threads_batch = 1024 * streams, 512, threads, threads
    options.n_seq_max = streams
    context = llama_cpp.llama_init_from_model(model, options)
    batch, vocabulary = llama_cpp.llama_batch_init(512, 0, 1), 50257

    def feed(rows: list[tuple[int, int, int, bool]]) -> list[int]:
        """Run (token, position, stream, whether its logits are wanted); return the likeliest next ids."""
        for place, (token, position, stream, wanted) in enumerate(rows):
            batch.token[place], batch.pos[place], batch.logits[place] = token, position, wanted
            batch.n_seq_id[place] = 1
            batch.seq_id[place][0] = stream
        batch.n_tokens = len(rows)
        if llama_cpp.llama_decode(context, batch):
            raise SystemExit("llama.cpp: decoding failed")
        wanted = [place for place, row in enumerate(rows) if row[3]]
        logits = (llama_cpp.llama_get_logits_ith(context, place) for place in wanted)
        return [int(np.ctypeslib.as_array(row, shape=(vocabulary,)).argmax()) for row in logits]

    def run(prompts: list[list[int]], new: int) -> float:
        llama_cpp.llama_memory_clear(llama_cpp.llama_get_memory(context), True)
        began, tokens = time.perf_counter(), list[int]()
        for stream, prompt in enumerate(prompts):
            last = len(prompt) - 1
            tokens += feed([(id, place, stream, place == last) for place, id in enumerate(prompt)])
        for place in range(len(prompts[0]), len(prompts[0]) + new - 1):
            tokens = feed([(token, place, stream, True) for stream, token in enumerate(tokens)])
        return time.perf_counter() - began

    return run


def _hush(llama_cpp: Any) -> None:
    """Let llama.cpp print nothing; the callback must live as long as the library."""
    llama_cpp.silent = llama_cpp.llama_log_callback(lambda *_: None)
    llama_cpp.llama_log_set(llama_cpp.silent, ctypes.c_void_p(0))
