"""The engine under load for a while: the demo model, many requests, cancellations at any moment."""

from __future__ import annotations

import gc
import random
import time
from pathlib import Path

import pytest

from gpt2chat import pretrained
from gpt2chat.decoding import choose, runtime_of
from gpt2chat.engine import Engine
from gpt2chat.generation import Decoder
from gpt2chat.runtime import NativeRuntime
from gpt2chat.sampling import GenerationConfig
from gpt2chat.streams import Stream

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def demo() -> NativeRuntime:
    runtime = runtime_of(pretrained.load("demo"), choose("cpu", "auto", "int8"))
    if not isinstance(runtime, NativeRuntime):
        pytest.skip("no native decoder here")
    return runtime


def resident_mb() -> float:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096 / 1e6


@pytest.mark.parametrize("temperature", [0, 1])
def test_the_same_seed_gives_the_same_ids_at_any_load(demo: NativeRuntime, temperature: int) -> None:
    rng, count = random.Random(5), 300
    beginning = [rng.randrange(50257) for _ in range(80)]
    requests = []
    for number in range(count):
        ids = beginning[: rng.choice((0, 16, 50, 80))] + [rng.randrange(50257) for _ in range(rng.randint(1, 40))]
        config = GenerationConfig(temperature=temperature, max_new_tokens=rng.randint(1, 16), seed=number)
        requests.append((ids, config))
    decoder, expected = Decoder(demo), []
    for ids, config in requests:
        decoder.cache.truncate(0)
        expected.append(list(decoder.generate(ids, config, (50256,))))
    for streams in (1, 4, 16):
        for share in (True, False):
            with Engine(demo, streams=streams, share=share) as engine:
                answers = [engine.submit(ids, config, stop=(50256,)) for ids, config in requests]
                assert [list(answer) for answer in answers] == expected, (streams, share)


def test_cancelling_at_any_moment_loses_nothing(demo: NativeRuntime) -> None:
    rng, living = random.Random(9), list[Stream]()
    with Engine(demo, streams=8, draft="none") as engine:
        for number in range(1000):
            while len(living) < 30:
                ids = [rng.randrange(50257) for _ in range(rng.randint(1, 60))]
                living.append(engine.submit(ids, GenerationConfig(max_new_tokens=100, seed=number)))
            stream = living.pop(rng.randrange(30))
            if rng.random() < 0.5:
                time.sleep(rng.random() / 500)
            before = stream.new_tokens
            stream.cancel()
            deadline = time.monotonic() + 30
            while not stream.finish_reason:
                assert time.monotonic() < deadline
                time.sleep(0)
            assert stream.new_tokens <= before + 2  # one may have been under way, and one come in between
        for stream in living:
            stream.cancel()
        while engine.stats().running + engine.stats().waiting:
            time.sleep(0.01)
        assert engine.stats().used_bytes == 0
        assert len(list(engine.submit([1, 2], GenerationConfig(max_new_tokens=9)))) > 0


def test_memory_stays_flat(demo: NativeRuntime) -> None:
    rng, living, marks = random.Random(13), list[Stream](), list[float]()
    with Engine(demo, streams=16, memory=64 << 20) as engine:
        for number in range(2000):
            ids = [rng.randrange(50257) for _ in range(rng.randint(1, 60))]
            living.append(engine.submit(ids, GenerationConfig(max_new_tokens=rng.randint(1, 12), seed=number)))
            if len(living) > 60:
                list(living.pop(0))
            if number % 500 == 499:
                gc.collect()
                marks.append(resident_mb())
        for stream in living:
            list(stream)
    assert marks[-1] < 1.05 * marks[1]
