"""The engine: many answers at once, each the one that it would be alone."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import random
import re
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from helpers_engine import alone, asked, idle, native_runtime, torch_runtime, weights
from hypothesis import given, settings
from hypothesis import strategies as st

from gpt2chat import pretrained
from gpt2chat.chatbot import GPT2Chatbot
from gpt2chat.decoding import choose, runtime_of
from gpt2chat.engine import Engine
from gpt2chat.errors import ConfigError, ContextError, EngineFull, ModelError
from gpt2chat.fleet import Fleet
from gpt2chat.generation import Decoder
from gpt2chat.paging import PAGE, PagedMemory
from gpt2chat.runtime import NativeCache, NativeRuntime, Part, Runtime, TorchRuntime
from gpt2chat.sampling import GenerationConfig
from gpt2chat.slices import Slice
from gpt2chat.slots import SlotRuntime
from gpt2chat.static import StaticRuntime
from gpt2chat.streams import Line, Request
from gpt2chat.tokenizer import Tokenizer


@pytest.fixture(scope="module")
def native() -> NativeRuntime:
    return native_runtime()


@pytest.fixture(scope="module")
def through_torch() -> TorchRuntime:
    return torch_runtime()


@pytest.fixture
def engine(native: NativeRuntime) -> Iterator[Engine]:
    with Engine(native, streams=4) as engine:
        yield engine


# -- sameness --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [True, False])
@pytest.mark.parametrize("streams", [1, 4, 16])
def test_answers_are_those_that_each_request_gets_alone(native: NativeRuntime, streams: int, share: bool) -> None:
    requests = asked(40)
    expected = alone(native, requests, stop=(7,))
    with Engine(native, streams=streams, share=share) as engine:
        for _ in range(2):  # the second time from a warm cache
            answers = [engine.submit(ids, config, stop=(7,)) for ids, config in requests]
            assert [list(answer) for answer in answers] == expected
        stats = engine.stats()
    assert stats.finished == 80
    assert stats.used_bytes == 0
    assert (stats.cached_tokens > 0) == share


def test_answers_do_not_depend_on_who_joins_and_leaves_when(native: NativeRuntime) -> None:
    requests = asked(60, seed=1)
    expected, found = alone(native, requests), {}
    with Engine(native, streams=5) as engine:

        def ask(numbers: list[int]) -> None:
            rng = random.Random(numbers[0])
            for number in numbers:
                time.sleep(rng.random() / 200)
                if rng.random() < 0.3:  # somebody who leaves early
                    leaver = engine.submit(*requests[(number + 1) % 60])
                    next(leaver)
                    leaver.cancel()
                found[number] = list(engine.submit(*requests[number], client=str(numbers[0])))

        threads = [threading.Thread(target=ask, args=(list(range(first, 60, 6)),)) for first in range(6)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        idle(engine)
        assert engine.stats().used_bytes == 0
    assert [found[number] for number in range(60)] == expected


def test_through_torch_answers_are_the_same_as_well(through_torch: Runtime) -> None:
    requests = asked(12, seed=2)
    with Engine(through_torch, streams=1) as engine:
        expected = [list(engine.submit(*request)) for request in requests]
    for _ in range(2):
        with Engine(through_torch, streams=5) as engine:
            answers = [engine.submit(*request) for request in requests]
            assert [list(answer) for answer in answers] == expected


def test_steps_of_fixed_shape_give_the_logits_of_growing_ones(through_torch: TorchRuntime) -> None:
    slots = SlotRuntime(through_torch.model, 3)
    assert slots.most_caches == 16
    theirs, ours = [through_torch.new_cache() for _ in range(3)], [slots.new_cache() for _ in range(3)]
    sizes = ((9, 1, 4), (1, 1, 5), (1, 70, 1), (1, 1, 1), (0, 1, 1), (1, 0, 1))
    for number, step in enumerate(sizes):
        ids = [[(7 * number + n * k) % 500 for k in range(size)] for n, size in enumerate(step)]
        parts = [
            [Part(part, cache, 1) for part, cache in zip(ids, caches, strict=True) if part] for caches in (theirs, ours)
        ]
        expected, found = through_torch.forward_batch(parts[0]), slots.forward_batch(parts[1])
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-4)
    assert [cache.length for cache in ours] == [cache.length for cache in theirs]
    ours[1].truncate(20)
    theirs[1].truncate(20)
    torch.testing.assert_close(slots.forward([3], ours[1]), through_torch.forward([3], theirs[1]), atol=1e-4, rtol=1e-4)


def test_a_fault_of_a_step_leaves_all_slots_as_they_were(
    through_torch: TorchRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    slots = SlotRuntime(through_torch.model, 2)
    reading, answering = slots.new_cache(), slots.new_cache()
    slots.forward([1, 2, 3], answering)
    monkeypatch.setattr(slots, "_step_of", lambda parts: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        slots.forward_batch([Part([4, 5], reading, 1), Part([6], answering, 1)])
    assert (reading.length, answering.length) == (0, 3)


def test_answers_in_slots_do_not_depend_on_company(through_torch: TorchRuntime) -> None:
    requests, found = asked(20, seed=8), []
    for streams in (1, 4, 16):
        with Engine(SlotRuntime(through_torch.model, streams), streams=streams) as engine:
            found.append([list(s) for s in [engine.submit(*request) for request in requests]])
            found.append([list(s) for s in [engine.submit(*request) for request in reversed(requests)]][::-1])
    assert all(answers == found[0] for answers in found)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_steps_are_recorded_and_answers_do_not_depend_on_company() -> None:
    requests, found = asked(40, seed=8), []
    model = weights().build_model(torch.bfloat16, torch.device("cuda")).requires_grad_(False)
    for streams in (1, 4, 16):
        with Engine(StaticRuntime(model), streams=streams) as engine:
            assert isinstance(engine.runtime, SlotRuntime)
            found.append([list(s) for s in [engine.submit(*request) for request in requests]])
    assert found[0] == found[1] == found[2]


def test_a_fleet_gives_requests_to_who_has_least_to_do(native: NativeRuntime) -> None:
    requests = asked(20, seed=9)
    with Fleet([Engine(native, streams=2, waiting=3) for _ in range(2)]) as fleet:
        hold = threading.Event()
        three = GenerationConfig(max_new_tokens=3)
        held = [fleet.submit([1], three, until=lambda _: hold.wait(60) and False) for _ in range(2)]
        assert [engine.stats().running + engine.stats().waiting for engine in fleet.engines] == [1, 1]
        with pytest.raises(EngineFull):
            held += [fleet.submit([2], three) for _ in range(20)]
        hold.set()
        held.clear()
        gc.collect()
        for engine in fleet.engines:
            idle(engine)
        assert [list(fleet.submit(*request)) for request in requests] == alone(native, requests)
        assert fleet.stats().finished >= 20
    with pytest.raises(ConfigError, match="expected engines of one model"):
        Fleet([])


def test_guesses_are_checked_and_change_nothing(native: NativeRuntime) -> None:
    prompt = [5, 6, 7, 8, 9] * 12
    config = GenerationConfig(temperature=0, max_new_tokens=60)
    with Engine(native, draft="none") as engine:
        expected = list(engine.submit(prompt, config))
    with Engine(native) as engine:
        stream = engine.submit(prompt, config)
        assert list(stream) == expected
        assert stream.drafted_tokens > 0


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(1, 90), min_size=1, max_size=6), st.integers(0, 2**32))
def test_any_mix_of_lengths_gives_each_its_answer(native: NativeRuntime, lengths: list[int], seed: int) -> None:
    rng = random.Random(seed)
    config = GenerationConfig(temperature=1, max_new_tokens=6, seed=seed)
    requests = [([rng.randrange(9) for _ in range(length)], config) for length in lengths]  # few ids: many begin alike
    with Engine(native, streams=3) as engine:
        assert [list(s) for s in [engine.submit(*r) for r in requests]] == alone(native, requests)


# -- memory ----------------------------------------------------------------------------------------------------------


def test_equal_beginnings_are_read_once(native: NativeRuntime) -> None:
    beginning = list(range(100))
    with Engine(native, streams=8) as engine:
        streams = [engine.submit([*beginning, 200 + n], GenerationConfig(max_new_tokens=4)) for n in range(8)]
        for stream in streams:
            list(stream)
        assert [stream.cached_tokens for stream in streams] == [0] + [96] * 7
        again = engine.submit([*beginning, 201, 3], GenerationConfig(max_new_tokens=4))
        list(again)
        assert again.cached_tokens == 96


def test_several_answers_to_one_prompt_share_its_pages_and_have_seeds_of_their_own(native: NativeRuntime) -> None:
    prompt, config = list(range(64)), GenerationConfig(temperature=1, top_k=0, max_new_tokens=20, seed=5)
    seeds = [GenerationConfig(temperature=1, top_k=0, max_new_tokens=20, seed=5 + n) for n in range(4)]
    expected = alone(native, [(prompt, seed) for seed in seeds])
    with Engine(native) as engine:
        streams = engine.submit_many(prompt, config, 4)
        assert [list(stream) for stream in streams] == expected
        assert sum(stream.cached_tokens for stream in streams) == 3 * 48


def test_with_little_memory_requests_wait_and_all_are_answered(native: NativeRuntime) -> None:
    requests = asked(30, seed=3)
    expected = alone(native, requests)
    page = PagedMemory(native, 1 << 20).page_bytes
    with Engine(native, streams=16, memory=10 * page) as engine:  # the context has as many pages
        streams = [engine.submit(*request) for request in requests]
        assert [list(stream) for stream in streams] == expected
        stats = engine.stats()
    assert stats.used_bytes == 0
    assert stats.kept_bytes <= stats.budget_bytes == 10 * page


def test_what_never_fits_is_refused_in_words(native: NativeRuntime) -> None:
    page = PagedMemory(native, 1 << 20).page_bytes
    with Engine(native, memory=4 * page) as engine:
        with pytest.raises(ContextError, match=r"80 tokens do not fit into \d+ MB for keys and values"):
            engine.submit([1] * 40, GenerationConfig(max_new_tokens=40))
        assert len(list(engine.submit([1] * 40, GenerationConfig(max_new_tokens=24)))) == 24


def test_a_page_is_empty_when_another_stream_gets_it(native: NativeRuntime) -> None:
    memory = PagedMemory(native, PagedMemory(native, 1 << 20).page_bytes)
    assert memory.count == 1
    for first in (3, 4):
        held = memory.hold([first] * 10, 16)
        assert held is not None
        assert memory.hold([9], 16) is None
        memory.extend(held, 16)
        assert isinstance(held.cache, NativeCache)
        assert not held.cache.pages[0].any()
        native.forward_batch([Part([first] * 16, held.cache, 1)])
        assert held.cache.pages[0].any()
        memory.note(held, [first] * 16)
        memory.release(held)
    assert memory.kept_bytes() == memory.page_bytes


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_no_page_is_lost_or_held_twice(native: NativeRuntime, data: st.DataObject) -> None:
    memory = PagedMemory(native, 12 * PagedMemory(native, 1 << 20).page_bytes)
    living: list[tuple[Any, list[int], int]] = []
    for _ in range(data.draw(st.integers(1, 30))):
        if living and data.draw(st.booleans()):
            held, _, _ = living.pop(data.draw(st.integers(0, len(living) - 1)))
            memory.release(held)
            continue
        length = data.draw(st.integers(2, 100))
        ids = [data.draw(st.integers(0, 1))] * length
        held = memory.hold(ids[:-1], length)
        if held is None:
            continue
        memory.extend(held, length)
        held.cache.length = length
        memory.note(held, ids)
        living.append((held, ids, length))
        written = {id(page) for other, _, _ in living for page in other.cache.pages[len(other.nodes) :]}
        shared = {id(page) for other, _, _ in living for page in other.cache.pages[: len(other.nodes)]}
        assert len(written) == sum(len(other.cache.pages) - len(other.nodes) for other, _, _ in living)
        assert not written & shared
        assert memory.used_bytes() == len(written | shared) * memory.page_bytes
    for held, _, _ in living:
        memory.release(held)
    assert memory.used_bytes() == 0
    assert memory.hold([5], 12 * PAGE) is not None  # all pages can be had again


# -- leaving, waiting, refusing --------------------------------------------------------------------------------------


def test_leaving_early_ends_the_computation_within_a_step(native: NativeRuntime) -> None:
    with Engine(native, streams=2, draft="none") as engine:
        stream = engine.submit([1, 2], GenerationConfig(max_new_tokens=150))
        next(stream)
        stream.cancel()
        drawn = stream.new_tokens
        idle(engine)
        assert stream.new_tokens <= drawn + 1
        assert stream.finish_reason == "cancelled"
        assert len(list(stream)) == stream.new_tokens - 1  # what came before can still be read
        assert engine.stats().used_bytes == 0


def test_a_stream_that_nobody_holds_is_cancelled(native: NativeRuntime) -> None:
    with Engine(native, streams=1) as engine:
        for _ in range(5):
            engine.submit([1, 2], GenerationConfig(max_new_tokens=150))
        gc.collect()
        idle(engine)
        assert engine.stats().cancelled == 5


def test_a_waiting_request_can_leave(engine: Engine) -> None:
    running = [engine.submit([n], GenerationConfig(max_new_tokens=120)) for n in range(4)]
    for stream in running:
        next(stream)
    waiting = engine.submit([5], GenerationConfig(max_new_tokens=5))
    waiting.cancel()
    assert waiting.finish_reason == "cancelled"
    assert list(waiting) == []
    assert [len(list(stream)) for stream in running] == [119] * 4


def test_deadlines_end_answers_and_waiting(native: NativeRuntime) -> None:
    with Engine(native, streams=1) as engine:
        slow = engine.submit([1], GenerationConfig(max_new_tokens=150), until=lambda _: bool(time.sleep(0.01)))
        late = engine.submit([2], GenerationConfig(max_new_tokens=5), deadline=0.05)
        assert list(late) == []
        assert late.finish_reason == "deadline"
        slow.cancel()
        timed = engine.submit(
            [1], GenerationConfig(max_new_tokens=150), until=lambda _: bool(time.sleep(0.01)), deadline=0.1
        )
        assert 0 < len(list(timed)) < 150
        assert timed.finish_reason == "deadline"


def test_too_many_are_refused_at_once(native: NativeRuntime) -> None:
    with Engine(native, streams=1, waiting=3) as engine:
        hold = threading.Event()
        streams = [engine.submit([1], GenerationConfig(max_new_tokens=9), until=lambda _: hold.wait(60) and False)]
        while engine.stats().waiting:
            time.sleep(0.001)
        streams += [engine.submit([n], GenerationConfig(max_new_tokens=2)) for n in range(3)]
        began = time.perf_counter()
        for _ in range(1000):
            with pytest.raises(EngineFull, match="3 requests wait, which is the most"):
                engine.submit([4], GenerationConfig())
        assert time.perf_counter() - began < 5
        hold.set()
        assert [len(list(stream)) for stream in streams] == [9, 2, 2, 2]
        assert engine.stats().refused == 1000


def test_one_client_cannot_take_all_places(native: NativeRuntime) -> None:
    hold = threading.Event()
    with Engine(native, streams=1, waiting=10, per_client=2) as engine:
        first = engine.submit([1], GenerationConfig(max_new_tokens=2), until=lambda _: hold.wait(60) and False)
        while engine.stats().waiting:
            time.sleep(0.001)
        kept = [engine.submit([n], GenerationConfig(max_new_tokens=2), client="a") for n in range(2)]
        with pytest.raises(EngineFull, match="2 requests of this client wait"):
            engine.submit([1], GenerationConfig(), client="a")
        kept.append(engine.submit([1], GenerationConfig(max_new_tokens=2), client="b"))
        hold.set()
        assert [len(list(stream)) for stream in (first, *kept)] == [2] * 4


def request(number: int, client: str, deadline: float | None = None) -> Request:
    return Request(number, [1], GenerationConfig(), 1, (), (), client, deadline, None)


def test_clients_take_turns() -> None:
    line, order = Line(), []
    for number, client in enumerate("aaaabbc"):
        line.add(request(number, client))
    while first := line.first():
        assert line.remove(first)
        order.append(f"{first.client}{first.number}")
    assert order == ["a0", "b4", "c6", "a1", "b5", "a2", "a3"]
    assert len(line) == 0


def test_the_line_knows_who_is_late() -> None:
    line = Line()
    requests = [request(number, "a", deadline) for number, deadline in enumerate((5.0, None, 1.0, 3.0))]
    for each in requests:
        line.add(each)
    line.remove(requests[3])
    assert line.late(0.5) == []
    assert line.late(4.0) == [requests[2]]
    assert (len(line), line.of("a"), line.of("b")) == (2, 2, 0)


# -- faults ----------------------------------------------------------------------------------------------------------


def test_a_fault_ends_the_request_it_belongs_to_and_no_other(
    native: NativeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = asked(9, seed=4)
    expected = alone(native, requests)
    with Engine(native, streams=16) as engine:
        real = {name: getattr(engine._memory, name) for name in ("extend", "note")}
        forward = native.forward_batch

        def fail_for(name: str, *args: Any) -> Any:
            held = args[0]
            if any(r.held is held and r.ids[0] == 499 and r.drawn == 2 for r in engine._running):
                raise OSError(f"{name} fails")
            return real[name](*args)

        def broken_forward(parts: Any) -> Any:
            if any(part.ids[0] == 498 for part in parts):
                raise RuntimeError("the model fails")
            return forward(parts)

        def sulk(token: int) -> bool:
            raise ModelError("sampling fails")

        for name in real:
            monkeypatch.setattr(engine._memory, name, lambda *args, name=name: fail_for(name, *args))
            good = [engine.submit(*r) for r in requests]
            bad = engine.submit([499, 1, 2], GenerationConfig(max_new_tokens=30))
            with pytest.raises(OSError, match=f"{name} fails"):
                list(bad)
            assert bad.finish_reason == "error"
            assert [list(stream) for stream in good] == expected
            monkeypatch.setattr(engine._memory, name, real[name])
        monkeypatch.setattr(native, "forward_batch", broken_forward)
        good = [engine.submit(*r) for r in requests]
        with pytest.raises(RuntimeError, match="the model fails"):
            list(engine.submit([498, 1, 2], GenerationConfig(max_new_tokens=30)))
        with pytest.raises(ModelError, match="sampling fails"):
            list(engine.submit([3, 1, 2], GenerationConfig(max_new_tokens=30), until=sulk))
        assert [list(stream) for stream in good] == expected
        idle(engine)
        assert (engine.stats().failed, engine.stats().used_bytes) == (4, 0)


def test_after_a_fault_of_its_own_the_engine_begins_anew(
    native: NativeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    with Engine(native) as engine:
        monkeypatch.setattr(engine._steps, "run", lambda running: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            list(engine.submit([1], GenerationConfig()))
        monkeypatch.undo()
        assert len(list(engine.submit([1], GenerationConfig(max_new_tokens=5)))) == 5


def test_no_fault_of_a_request_ends_the_engine(native: NativeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    def leave(token: int) -> bool:
        raise SystemExit

    def fail(*_: Any) -> None:
        raise MemoryError

    with Engine(native, streams=2) as engine:
        for _ in range(3):
            with pytest.raises(SystemExit):
                list(engine.submit([1, 2], GenerationConfig(), until=leave))
            for name in ("hold", "release"):
                with monkeypatch.context() as patch:
                    patch.setattr(engine._memory, name, fail)
                    streams = [engine.submit([1, number], GenerationConfig(max_new_tokens=3)) for number in range(3)]
                    for stream in streams:
                        with contextlib.suppress(MemoryError):
                            list(stream)
                    idle(engine)
            assert len(list(engine.submit([1, 2], GenerationConfig(max_new_tokens=5)))) == 5
            assert engine.stats().used_bytes == 0


def test_as_many_as_there_are_places_can_come_at_once(native: NativeRuntime) -> None:
    with Engine(native, streams=16, waiting=0) as engine:
        streams = engine.submit_many([1, 2], GenerationConfig(max_new_tokens=5, seed=1), 16)
        assert [len(list(stream)) for stream in streams] == [5] * 16


def test_each_of_several_answers_meets_its_own_stop_string() -> None:
    runtime = runtime_of(pretrained.load("demo"), choose("cpu"))
    prompt = Tokenizer.gpt2().encode("Once upon a time")
    config = GenerationConfig(temperature=1, seed=1, max_new_tokens=60)
    with Engine(runtime) as engine:
        streams = engine.submit_many(prompt, config, 5, stop_strings=["."])
        texts = [Tokenizer.gpt2().decode(list(stream)) for stream in streams]
    assert len(set(texts)) > 2
    for stream, text in zip(streams, texts, strict=True):
        assert (stream.finish_reason == "stop") == ("." in text)
        assert "." not in text[:-3]


def test_requests_that_are_gone_leave_the_list_of_deadlines() -> None:
    line = Line()
    for number in range(5000):
        line.add(request(number, "a", deadline=1e9 + number))
        if number >= 10:
            assert (first := line.first())
            line.remove(first)
    assert len(line) == 10
    assert len(line._deadlines) < 200
    assert len(line.late(2e9)) == 10


def test_pages_that_were_read_last_stay_longest(native: NativeRuntime) -> None:
    memory = PagedMemory(native, 5 * PagedMemory(native, 1 << 20).page_bytes)
    for first in (1, 2, 1):  # the first text is used again
        held = memory.hold([first] * 33, 33)
        assert held is not None
        memory.extend(held, 32)
        held.cache.length = 32
        memory.note(held, [first] * 32)
        memory.release(held)
    other = memory.hold([3] * 33, 33)
    assert other is not None
    memory.extend(other, 33)  # three pages: the free one, and both of the second text
    assert len(memory._found([1] * 33)) == 2
    assert len(memory._found([2] * 33)) == 0


def test_a_child_process_cannot_ask(native: NativeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine(native) as engine:
        monkeypatch.setattr(engine, "_process", -1)
        with pytest.raises(RuntimeError, match="of another process"):
            engine.submit([1])


def test_two_readers_share_a_stream(native: NativeRuntime) -> None:
    async def both(engine: Engine) -> list[list[int]]:
        stream = engine.submit([1, 2], GenerationConfig(max_new_tokens=50))

        async def read() -> list[int]:
            return [token async for token in stream]

        return await asyncio.wait_for(asyncio.gather(read(), read()), 30)

    with Engine(native) as engine:
        assert sum(map(len, asyncio.run(both(engine)))) == 50


def test_what_is_no_request_is_refused(engine: Engine, native: NativeRuntime) -> None:
    for prompt, error, words in (
        ([], ContextError, "expected 1 to 159 tokens, got 0"),
        ([1] * 160, ContextError, "expected 1 to 159 tokens, got 160"),
        ([500], ConfigError, "expected ids from 0 to 499, got 500 to 500"),
        ([-1], ConfigError, "expected ids from 0 to 499"),
    ):
        with pytest.raises(error, match=words):
            engine.submit(prompt, GenerationConfig())
    for prompt in (torch.ones(3, 1, dtype=torch.long).numpy(), [1.5], "text", 5):
        with pytest.raises(ConfigError, match="expected ids, whole numbers in a row"):
            engine.submit(prompt, GenerationConfig())  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="deadline: expected seconds"):
        engine.submit([1], deadline=float("nan"))
    with pytest.raises(ConfigError, match="until: expected stop_strings"):
        engine.submit_many([1], GenerationConfig(), 2, until=bool)
    for options in (
        {"streams": 0},
        {"waiting": -1},
        {"memory": -5},
        {"memory": 100},
        {"draft": "gpt"},
        {"per_client": 0},
    ):
        with pytest.raises(ConfigError):
            Engine(native, **options)  # type: ignore[arg-type]
    engine.close()
    with pytest.raises(RuntimeError, match="the engine is closed"):
        engine.submit([1], GenerationConfig())


# -- readers ---------------------------------------------------------------------------------------------------------


def test_streams_can_be_read_without_holding_up_an_event_loop(native: NativeRuntime) -> None:
    requests = asked(10, seed=6)

    async def read(engine: Engine, number: int) -> list[int]:
        return [token async for token in engine.submit(*requests[number])]

    async def everything(engine: Engine) -> list[list[int]]:
        return await asyncio.gather(*(read(engine, number) for number in range(10)))

    with Engine(native) as engine:
        assert asyncio.run(everything(engine)) == alone(native, requests)


def test_a_reader_that_is_cancelled_leaves(native: NativeRuntime) -> None:
    async def leave(engine: Engine) -> None:
        stream = engine.submit([1], GenerationConfig(max_new_tokens=159))

        async def read() -> None:
            async for _ in stream:
                await asyncio.sleep(0)

        task = asyncio.ensure_future(read())
        await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    with Engine(native) as engine:
        for _ in range(5):
            asyncio.run(leave(engine))
        gc.collect()
        idle(engine)
        assert engine.stats().used_bytes == 0


def test_it_answers_where_a_decoder_does(native: NativeRuntime, engine: Engine) -> None:
    config = GenerationConfig(temperature=0, max_new_tokens=12)
    decoder = Decoder(native)
    assert list(engine.generate([1, 2, 3], config, ())) == list(decoder.generate([1, 2, 3], config, ()))
    stream = engine.submit([1, 2, 3], config, until=lambda token: True, stop_strings=["never"])
    assert len(list(stream)) == 1
    assert stream.finish_reason == "stop"


def test_the_example_of_the_document_runs(capsys: pytest.CaptureFixture[str]) -> None:
    document = Path(__file__).resolve().parent.parent / "docs" / "engine.md"
    (code,) = re.findall(r"```python\n(.*?)```", document.read_text("utf-8"), flags=re.S)
    exec(compile(code, str(document), "exec"), {})
    assert len(capsys.readouterr().out.splitlines()) >= 2


def test_many_chatbots_can_talk_through_one_engine() -> None:
    loaded = pretrained.load("demo")
    questions = ["Hello, who are you?", "Do you like tea?", "What did I ask first?"]
    options = {"generation": GenerationConfig(seed=3, max_new_tokens=20), "match": False}
    bot = GPT2Chatbot("demo", **options)  # type: ignore[arg-type]
    bot.use(loaded)
    expected = [bot.chat(question) for question in questions]
    with Engine(bot.decoder.runtime, streams=4) as engine:

        def talk() -> list[str]:
            other = GPT2Chatbot("demo", **options)  # type: ignore[arg-type]
            other.use(loaded, engine)
            return [other.chat(question) for question in questions]

        with ThreadPoolExecutor(6) as pool:
            assert [call.result() for call in [pool.submit(talk) for _ in range(6)]] == [expected] * 6
        assert engine.stats().cached_tokens > 0
        assert engine.stats().used_bytes == 0


def test_closing_ends_all_answers(native: NativeRuntime) -> None:
    engine = Engine(native, streams=1)
    streams = [engine.submit([n], GenerationConfig(max_new_tokens=150)) for n in range(3)]
    next(streams[0])
    engine.close()
    for stream in streams:
        list(stream)
        assert stream.finish_reason == "cancelled"


def test_a_program_that_ends_with_an_open_engine_ends_well() -> None:
    code = (
        "from gpt2chat.engine import Engine; from gpt2chat.decoding import choose, runtime_of;"
        "from gpt2chat import pretrained; from gpt2chat.sampling import GenerationConfig as G;"
        "e = Engine(runtime_of(pretrained.load('demo'), choose('cpu')));"
        "s = [e.submit([n], G(max_new_tokens=200)) for n in range(8)]; next(s[0])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "")


# -- slices ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("fixed", "each", "beside"), [(4e-3, 1.5e-4, 1), (4e-3, 1.5e-4, 16), (2e-3, 1e-3, 4)])
def test_slices_are_such_that_a_step_takes_about_twice_as_long(fixed: float, each: float, beside: int) -> None:
    chooser = Slice()
    assert chooser.rows(0) == Slice.MOST
    assert chooser.rows(beside) == Slice.FIRST
    for step in range(200):
        rows = beside + (chooser.rows(beside) if step % 2 else 0)
        chooser.note(rows, (fixed + each * rows) * (50 if step % 20 == 7 else 1))  # now and then another program runs
    plain = fixed + each * beside
    whole = plain + each * chooser.rows(beside)
    assert 1.4 * plain < whole < 3 * plain or chooser.rows(beside) in (Slice.LEAST, Slice.MOST)


def test_a_long_prompt_is_read_in_slices_beside_answers(native: NativeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[int]] = []
    forward = native.forward_batch
    with Engine(native, draft="none") as engine:
        answering = engine.submit([1], GenerationConfig(max_new_tokens=140))
        next(answering)
        monkeypatch.setattr(
            native, "forward_batch", lambda parts: (seen.append([len(p.ids) for p in parts]), forward(parts))[1]
        )
        list(engine.submit(list(range(150)), GenerationConfig(max_new_tokens=2)))
        answering.cancel()
    both = [sizes for sizes in seen if len(sizes) == 2]
    assert both
    assert all(1 in sizes for sizes in both)  # the running answer gets its token in each of them
    assert sum(max(sizes) for sizes in both if max(sizes) > 1) >= 150 - 1
