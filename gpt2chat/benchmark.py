"""How fast a model answers on this machine, and how near that is to what its memory allows."""

from __future__ import annotations

import random
import statistics
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from gpt2chat.engine import Engine
from gpt2chat.errors import ConfigError
from gpt2chat.generation import Decoder
from gpt2chat.hardware import peak_bytes
from gpt2chat.kernels import KernelUnavailable, kernel
from gpt2chat.model import GPT2Config, parameter_count
from gpt2chat.runtime import Arena, NativeRuntime, Runtime, TorchRuntime
from gpt2chat.sampling import GenerationConfig

MODES = {"float32": "fp32", "bfloat16": "bf16", "float16": "fp16"}


@dataclass(frozen=True)
class Measurement:
    """One line of figures; speeds are medians in tokens per second, times in seconds.

    `limit_tok_s` is what decoding could reach if reading every weight once per step, as fast as this machine reads so
    much memory, were all it did; `of_limit` is the share of it that was reached. All of `batch` streams count.
    """

    bench: str
    model: str
    size: str
    mode: str
    runtime: str
    prompt_tokens: int
    new_tokens: int
    decode_tok_s: float
    prefill_tok_s: float
    first_token_s: float
    load_s: float
    rss_mb: int
    read_gb_s: float
    limit_tok_s: float
    of_limit: float
    batch: int = 1

    def to_dict(self) -> dict[str, object]:
        """Return the figures for JSON."""
        return {name: round(value, 3) if isinstance(value, float) else value for name, value in asdict(self).items()}


def measure(
    bench: str,
    model: str,
    runtime: Runtime,
    prompt_tokens: int,
    new_tokens: int,
    repeat: int,
    began: float,
    load_s: float,
) -> Measurement:
    """Decode greedily behind random prompts; `began` is when the program started on time.perf_counter's clock.

    Raises ConfigError for what does not fit.
    """
    decoder, prompts = Decoder(runtime), _prompts(runtime.config, repeat + 1, prompt_tokens, new_tokens)
    _seconds(decoder, prompts.pop(), 1)
    first_token_s = time.perf_counter() - began
    first, decoded = _speeds(decoder, prompts, new_tokens)
    speeds = (decoded, prompt_tokens / first, first_token_s, load_s)
    return _measurement(bench, model, runtime, prompt_tokens, new_tokens, speeds)


def measure_batch(
    model: str, runtime: Runtime, streams: int, prompt_tokens: int, new_tokens: int, repeat: int, load_s: float
) -> Measurement:
    """Decode greedily behind so many random prompts at once; speeds are those of all together.

    `first_token_s` is the median time until a stream's first token, all having been asked for at once. Raises
    ConfigError for what does not fit.
    """
    config = GenerationConfig(temperature=0, max_new_tokens=new_tokens)
    prompts = _prompts(runtime.config, streams * (repeat + 1), prompt_tokens, new_tokens)
    runs = []
    with Engine(runtime, streams=streams, waiting=streams, share=False, draft="none") as engine:
        for number in range(repeat + 1):
            began = time.perf_counter()
            asked = [engine.submit(prompt, config) for prompt in prompts[number * streams :][:streams]]
            answers = [list(stream) for stream in asked]
            whole = time.perf_counter() - began
            firsts = [stream.first_token_s or whole for stream in asked]
            rest = sum(map(len, answers)) - streams
            decoded = rest / (whole - max(firsts)) if new_tokens > 1 else 0.0
            runs.append((decoded, streams * prompt_tokens / max(firsts), statistics.median(firsts)))
    decoded, prefilled, first = (statistics.median(column) for column in zip(*runs[1:], strict=True))
    return _measurement(
        "batch", model, runtime, prompt_tokens, new_tokens, (decoded, prefilled, first, load_s), streams
    )


def _measurement(
    bench: str,
    model: str,
    runtime: Runtime,
    prompt_tokens: int,
    new_tokens: int,
    speeds: tuple[float, float, float, float],
    batch: int = 1,
) -> Measurement:
    """Complete the speeds of decoding and prefill, first token and loading by what is known of model and machine."""
    decoded, prefilled, first_token_s, load_s = speeds
    rss_mb, read = peak_bytes(runtime.device) >> 20, read_speed(runtime)
    limit = batch * read / weight_bytes(runtime)
    return Measurement(
        bench=bench,
        model=model,
        size=f"{parameter_count(runtime.config) / 1e6:.0f}M",
        mode=MODES.get(runtime.form, runtime.form),
        runtime=runtime.description,
        prompt_tokens=prompt_tokens,
        new_tokens=new_tokens,
        decode_tok_s=decoded,
        prefill_tok_s=prefilled,
        first_token_s=first_token_s,
        load_s=load_s,
        rss_mb=rss_mb,
        read_gb_s=read / 1e9,
        limit_tok_s=limit,
        of_limit=decoded / limit,
        batch=batch,
    )


def _prompts(config: GPT2Config, count: int, tokens: int, new_tokens: int) -> list[list[int]]:
    if tokens + new_tokens > config.n_ctx:
        most = f"expected at most {config.n_ctx} together, the context of this model"
        raise ConfigError(f"prompt_tokens, new_tokens: {most}, got {tokens} + {new_tokens}")
    rng = random.Random(0)
    return [[rng.randrange(config.vocab_size) for _ in range(tokens)] for _ in range(count)]


def _speeds(decoder: Decoder, prompts: list[list[int]], new_tokens: int) -> tuple[float, float]:
    """Return the seconds until the first token, and the tokens per second behind it (0 when there is only one)."""
    runs = [_seconds(decoder, prompt, new_tokens) for prompt in prompts]
    rest = statistics.median(rest for _, rest in runs)
    return statistics.median(first for first, _ in runs), (new_tokens - 1) / rest if new_tokens > 1 else 0.0


def _seconds(decoder: Decoder, prompt: list[int], new_tokens: int) -> tuple[float, float]:
    """Return how long the first token of an answer takes from an empty cache, and how long the others."""
    decoder.cache.truncate(0)
    began = time.perf_counter()
    stream = decoder.generate(prompt, GenerationConfig(temperature=0, max_new_tokens=new_tokens), ())
    next(stream)
    first = time.perf_counter()
    for _ in stream:
        pass
    return first - began, time.perf_counter() - first


def weight_bytes(runtime: Runtime) -> int:
    """Return the bytes of weights that each token reads: all but the embeddings of other positions and tokens."""
    if isinstance(runtime, NativeRuntime):
        return runtime.weight_bytes()
    if not isinstance(runtime, TorchRuntime):
        raise TypeError(f"unknown runtime {type(runtime).__name__}")
    model = runtime.model
    every = sum(parameter.nbytes for parameter in model.parameters())
    return every - model.wpe.weight.nbytes - (0 if runtime.config.tie_word_embeddings else model.wte.weight.nbytes)


def read_speed(runtime: Runtime) -> float:
    """Return how many bytes per second this machine reads of a memory as large as the weights, with all threads."""
    size = weight_bytes(runtime)
    if runtime.device.type != "cpu":
        numbers = torch.ones(size // 4, device=runtime.device)
        return size / _typical(lambda: float(numbers.sum()))
    memory = Arena(size).take((size // 8,), torch.int64).zero_()
    try:
        native = kernel()
    except KernelUnavailable:
        return size / _typical(lambda: int(memory.sum()))
    return size / _typical(lambda: native.read(memory.data_ptr(), memory.nbytes, torch.get_num_threads()))


def _typical(read: Callable[[], object]) -> float:
    """Return the median seconds of several runs after one that warms up."""
    seconds = []
    for _ in range(10):
        began = time.perf_counter()
        read()
        seconds.append(time.perf_counter() - began)
    return statistics.median(seconds[1:])
