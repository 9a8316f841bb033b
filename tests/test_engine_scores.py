"""What the engine tells of each id, reading in bulk, and who shares pages with whom."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch
from helpers_engine import alone, asked, idle, native_runtime, torch_runtime

from gpt2chat.engine import Engine
from gpt2chat.errors import ConfigError, ContextError, EngineFull
from gpt2chat.explanation import explain
from gpt2chat.fleet import Fleet
from gpt2chat.generation import Decoder
from gpt2chat.paging import PAGE, PagedMemory
from gpt2chat.runtime import NativeRuntime, Runtime, TorchRuntime
from gpt2chat.sampling import GenerationConfig, Sampler
from gpt2chat.slots import SlotRuntime
from gpt2chat.steps import SCORED
from gpt2chat.streams import Drawn, Reader


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


def text(seed: int, length: int) -> list[int]:
    rng = random.Random(seed)
    return [rng.randrange(500) for _ in range(length)]


def everything(stream: Reader[Any]) -> list[Drawn]:
    """Take all of an answer in bulk."""

    async def read() -> list[Drawn]:
        taken = list[Drawn]()
        while await stream.wait():
            part = stream.take()
            assert part
            taken += part
        assert stream.take() == []
        return taken

    return asyncio.run(asyncio.wait_for(read(), 60))


def explained(runtime: Runtime, ids: list[int], start: int, top: int) -> list[tuple[int, float, int, list[float]]]:
    scores = explain(Decoder(runtime), ids[:start], ids[start:], top)
    return [(s.token, s.logprob, s.rank, [logprob for _, logprob in s.alternatives]) for s in scores]


def told(drawn: list[Drawn]) -> list[tuple[int, Any, Any, list[float]]]:
    return [(d.id, d.logprob, d.rank, [logprob for _, logprob in d.top]) for d in drawn]


def held_up(engine: Engine) -> tuple[Any, threading.Event]:
    """Return an answer in whose first token the engine's thread stays until the event is set."""
    hold = threading.Event()
    stream = engine.submit([1], GenerationConfig(max_new_tokens=2), until=lambda _: hold.wait(60) and False)
    while not engine.stats().new_tokens:
        time.sleep(0.001)
    return stream, hold


# -- log-probabilities -----------------------------------------------------------------------------------------------


def test_log_probabilities_change_no_answer_and_are_those_of_the_model(native: NativeRuntime) -> None:
    requests = asked(20, seed=11)
    options: dict[str, Any] = {"frequency_penalty": 0.5, "logit_bias": {3: 5}}
    requests += [(ids, GenerationConfig(temperature=1, seed=7, max_new_tokens=9, **options)) for ids, _ in requests[:4]]
    expected, found = alone(native, requests), []
    for streams in (1, 16):
        with Engine(native, streams=streams) as engine:
            answers = [engine.submit(*request, logprobs=4) for request in requests]
            found.append([everything(answer) for answer in answers])
    assert found[0] == found[1]
    assert [[drawn.id for drawn in answer] for answer in found[0]] == expected
    for (ids, _), answer, tokens in zip(requests, found[0], expected, strict=True):
        assert told(answer) == explained(native, [*ids, *tokens], len(ids), 4)
        assert all(dict(d.top)[d.id] == d.logprob for d in answer if d.rank <= 4)  # type: ignore[operator]


def test_guesses_change_no_log_probability_with_penalties_and_a_bias(native: NativeRuntime) -> None:
    prompt, taken = [5, 6, 7, 8, 9] * 12, 0
    for seed in range(4):
        options: dict[str, Any] = {"presence_penalty": -2, "frequency_penalty": -0.5, "logit_bias": {5: 2, 9: -100}}
        config = GenerationConfig(temperature=seed / 10, seed=seed, max_new_tokens=80, **options)
        with Engine(native, draft="none") as plain, Engine(native) as guessing:
            expected, stream = plain.submit(prompt, config, logprobs=2), guessing.submit(prompt, config, logprobs=2)
            assert everything(stream) == everything(expected)
            taken += stream.accepted_tokens
            assert expected.drafted_tokens == 0
    assert taken > 20


@pytest.mark.parametrize(
    "options", [{"presence_penalty": 2}, {"frequency_penalty": 1.5}, {"frequency_penalty": -2, "logit_bias": {7: 3}}]
)
def test_penalties_count_what_was_drawn_so_far(native: NativeRuntime, options: dict[str, Any]) -> None:
    prompt = [5, 6, 7, 8, 9] * 8
    config = GenerationConfig(temperature=0.3, seed=2, max_new_tokens=40, **options)
    sampler, ids = Sampler(config), list(prompt)
    for place in range(40):
        ids.append(sampler.sample(native.forward(ids, native.new_cache())[0], ids, place))
    assert list(Decoder(native).generate(prompt, config, ())) == ids[40:]
    plain = GenerationConfig(temperature=0.3, seed=2, max_new_tokens=40)
    assert list(Decoder(native).generate(prompt, plain, ())) != ids[40:]
    with Engine(native) as engine:
        assert list(engine.submit(prompt, config)) == ids[40:]


def test_without_log_probabilities_an_id_comes_alone(engine: Engine) -> None:
    config = GenerationConfig(temperature=0, max_new_tokens=3)
    plain = everything(engine.submit([1, 2], config))
    assert [drawn[1:] for drawn in plain] == [(None, (), None)] * 3
    own = everything(engine.submit([1, 2], config, logprobs=0))
    assert [(drawn.id, drawn.top, drawn.rank) for drawn in own] == [(drawn.id, (), 1) for drawn in plain]
    assert [drawn.id for drawn in own] == list(engine.submit([1, 2], config, logprobs=20))


def test_ids_that_the_model_lacks_are_refused_before_anything_runs(engine: Engine) -> None:
    lacking = GenerationConfig(logit_bias={500: 1})
    with pytest.raises(ConfigError, match="logit_bias: expected ids from 0 to 499, got 500"):
        engine.submit([1], lacking)
    with pytest.raises(ConfigError, match="logit_bias: expected ids from 0 to 499, got 500"):
        next(Decoder(engine.runtime).generate([1], lacking, ()))
    for logprobs in (-1, 21, True, 1.0):
        with pytest.raises(ConfigError, match="logprobs: expected a whole number, 0 to 20"):
            engine.submit([1], logprobs=logprobs)  # type: ignore[arg-type]


# -- in bulk ---------------------------------------------------------------------------------------------------------


def test_a_bulk_reader_takes_what_is_there_without_waiting(engine: Engine) -> None:
    stream = engine.submit([1, 2, 3], GenerationConfig(max_new_tokens=30, seed=1))
    idle(engine)
    taken = stream.take()
    assert len(taken) == 30
    assert stream.take() == []
    assert everything(stream) == []
    assert list(stream) == []


def test_a_fault_comes_behind_what_was_drawn_before_it(engine: Engine) -> None:
    def fail(token: int) -> bool:
        raise OSError("broken")

    async def read() -> list[Drawn]:
        stream = engine.submit([1], until=fail)
        assert await stream.wait()
        taken = stream.take()
        with pytest.raises(OSError, match="broken"):
            await stream.wait()
        return taken

    assert len(asyncio.run(read())) == 1


def test_only_readers_that_wait_are_woken(engine: Engine, monkeypatch: pytest.MonkeyPatch) -> None:
    async def read() -> tuple[int, int]:
        loop, calls = asyncio.get_running_loop(), list[Any]()
        wake = loop.call_soon_threadsafe
        monkeypatch.setattr(loop, "call_soon_threadsafe", lambda *args: (calls.append(args), wake(*args))[1])
        stream = engine.submit([1], GenerationConfig(max_new_tokens=50))
        assert await stream.wait()
        woken = len(calls)
        while not stream.finish_reason:
            time.sleep(0.001)  # the loop is busy elsewhere
        assert len(calls) == woken <= 1
        return len(stream.take()), len(calls)

    assert asyncio.run(read())[0] == 50


def test_a_task_that_is_cancelled_while_it_waits_leaves_nothing_behind(engine: Engine) -> None:
    async def leave(stream: Reader[int]) -> None:
        task = asyncio.ensure_future(stream.wait())
        await asyncio.sleep(0.01)
        task.cancel()
        assert isinstance((await asyncio.gather(task, return_exceptions=True))[0], asyncio.CancelledError)

    running, hold = held_up(engine)
    running.take()
    waiting = engine.submit([2], GenerationConfig(max_new_tokens=5))
    for stream in (running, waiting):
        asyncio.run(leave(stream))
        assert stream._request._waiters == []
    hold.set()
    idle(engine)
    assert (running.finish_reason, waiting.finish_reason) == ("cancelled", "cancelled")


def test_a_stream_tells_when_it_leaves_the_line(native: NativeRuntime) -> None:
    with Engine(native, streams=1) as engine:
        running, hold = held_up(engine)
        waiting, gone = engine.submit([2], GenerationConfig(max_new_tokens=2)), engine.submit([3])
        gone.cancel()
        assert (running.started, waiting.started, gone.started) == (True, False, False)
        hold.set()
        assert len(list(waiting)) == 2
        assert (waiting.started, gone.started) == (True, False)


# -- scores ----------------------------------------------------------------------------------------------------------


def test_scores_are_those_of_an_explanation_alone_and_among_others(native: NativeRuntime) -> None:
    rng, texts = random.Random(4), []
    for number in range(24):
        ids = text(0, rng.choice((0, 40, 70))) + text(number + 1, rng.randint(2, 90))
        texts.append((ids, rng.randint(1, len(ids) - 1)))
    texts += [(text(50, 160), 1), (text(51, 160), 159), (text(52, 2), 1)]
    expected = [explained(native, ids, start, 3) for ids, start in texts]
    requests = asked(12, seed=12)
    answers = alone(native, requests)
    for streams in (1, 4, 16):
        with Engine(native, streams=streams) as engine:
            for _ in range(2):  # the second time from a warm cache
                scores = [engine.score(ids, start, 3) for ids, start in texts]
                beside = [engine.submit(*request) for request in requests]
                assert [told(list(score)) for score in scores] == expected
                assert [list(answer) for answer in beside] == answers
                assert {score.finish_reason for score in scores} == {"stop"}
            assert [score.new_tokens for score in scores] == [len(ids) - start for ids, start in texts]
            assert engine.stats().used_bytes == 0


@pytest.mark.parametrize("slots", [False, True])
def test_through_torch_scores_are_close_and_do_not_depend_on_company(through_torch: TorchRuntime, slots: bool) -> None:
    texts, found = [(text(n, 150 - 9 * n), 1 + 10 * n) for n in range(6)], []
    for streams in (1, 5):
        runtime = SlotRuntime(through_torch.model, streams) if slots else through_torch
        with Engine(runtime, streams=streams) as engine:
            scores = [engine.score(ids, start) for ids, start in texts]
            found.append([told(everything(score)) for score in scores])
    assert found[0] == found[1]
    for (ids, start), scores_of_one in zip(texts, found[0], strict=True):
        expected = explained(through_torch, ids, start, 5)
        assert [s[0] for s in scores_of_one] == [s[0] for s in expected] == ids[start:]
        assert [s[1] for s in scores_of_one] == pytest.approx([s[1] for s in expected], abs=1e-4)
        assert sum((s[3] for s in scores_of_one), []) == pytest.approx(sum((s[3] for s in expected), []), abs=1e-4)


def test_scores_and_answers_use_each_others_pages(engine: Engine) -> None:
    ids = text(1, 100)
    answer = engine.submit(ids[:65], GenerationConfig(max_new_tokens=2))
    list(answer)
    for start, cached in ((65, 64), (64, 48), (1, 0), (100, 0)):
        score = engine.score(ids, start)
        assert len(list(score)) == 100 - start
        assert (score.cached_tokens, score.prompt_tokens) == (cached, start)
    again = engine.submit([*ids, 1], GenerationConfig(max_new_tokens=2))
    list(again)
    assert again.cached_tokens == 96


def test_logits_of_scores_are_bounded_and_answers_go_on_beside_them(
    native: NativeRuntime, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[list[tuple[int, int]]] = []
    forward = native.forward_batch
    with Engine(native, draft="none") as engine:
        answering = engine.submit([1], GenerationConfig(max_new_tokens=140))
        next(answering)
        monkeypatch.setattr(
            native, "forward_batch", lambda ps: (seen.append([(len(p.ids), p.wanted) for p in ps]), forward(ps))[1]
        )
        scores = [engine.score(text(n, 160), 5) for n in range(3)]
        assert [len(list(score)) for score in scores] == [155] * 3
        answering.cancel()
        idle(engine)
        together = len(seen)
        assert len(list(engine.score(text(3, 160), 5))) == 155
    assert [wanted for parts in seen[together:] for _, wanted in parts] == [64, 64, 27]
    wanted = [sum(wanted for _, wanted in parts) for parts in seen]
    assert sum(wanted) >= 3 * 155
    assert max(wanted) <= SCORED + 1
    beside = [parts for parts in seen if max(size for size, _ in parts) > 1]
    assert all((1, 1) in parts for parts in beside[:3])


def test_scores_can_be_cancelled_dropped_and_late(native: NativeRuntime) -> None:
    with Engine(native, streams=1) as engine:
        running, hold = held_up(engine)
        late, dropped, left = engine.score(text(1, 9), 2, deadline=0.01), engine.score([1, 2], 1), engine.score([1], 1)
        cancelled = engine.score(text(1, 9), 2)
        del dropped
        cancelled.cancel()
        time.sleep(0.02)
        hold.set()
        assert (list(late), list(cancelled), list(left)) == ([], [], [])
        assert (late.finish_reason, cancelled.finish_reason, left.finish_reason) == ("deadline", "cancelled", "stop")
        list(running)
        gc.collect()
        idle(engine)
        assert (engine.stats().cancelled, engine.stats().used_bytes) == (2, 0)


def test_what_cannot_be_scored_is_refused(engine: Engine) -> None:
    for ids, start, top, error, words in (
        ([], 1, 5, ContextError, "expected 1 to 160 tokens, got 0"),
        ([1] * 161, 1, 5, ContextError, "expected 1 to 160 tokens, got 161"),
        ([1, 500], 1, 5, ConfigError, "expected ids from 0 to 499"),
        ([1, 2], 0, 5, ConfigError, "start: expected a whole number, 1 to 2, got 0"),
        ([1, 2], 3, 5, ConfigError, "start: expected a whole number, 1 to 2, got 3"),
        ([1, 2], 1, 21, ConfigError, "top: expected a whole number, 0 to 20, got 21"),
    ):
        with pytest.raises(error, match=words):
            engine.score(ids, start, top)


# -- realms ----------------------------------------------------------------------------------------------------------


def test_pages_are_shared_within_a_realm_only(native: NativeRuntime) -> None:
    requests = [(text(3, 70), GenerationConfig(temperature=0, max_new_tokens=5))] * 2
    (expected, _) = alone(native, requests)
    with Engine(native, streams=8) as engine:
        for warm in (False, True):
            cached = dict[str, list[int]]()
            streams = [(realm, engine.submit(*requests[0], realm=realm)) for realm in ("a", "b", "", "a", "b")]
            for realm, stream in streams:
                assert list(stream) == expected
                cached.setdefault(realm, []).append(stream.cached_tokens)
            first = 64 * warm
            assert cached == {"a": [first, 64], "b": [first, 64], "": [first]}
        for realm, tokens in (("a", 64), ("c", 0)):
            score = engine.score(text(3, 70), 69, realm=realm)
            list(score)
            assert score.cached_tokens == tokens


def test_nobody_waits_for_the_pages_of_another_realm(native: NativeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    with Engine(native, streams=4, draft="none") as engine:
        running, hold = held_up(engine)
        prompt, two = text(5, 150), GenerationConfig(max_new_tokens=2)
        streams = [engine.submit(prompt, two, realm=realm) for realm in ("a", "b", "a")]
        monkeypatch.setattr(engine._steps._slice, "rows", lambda answering: 8)  # many steps for a prompt
        seen: list[int] = []
        run = engine._steps.run
        monkeypatch.setattr(engine._steps, "run", lambda rs: (seen.append(sum(r.in_prompt for r in rs)), run(rs))[1])
        hold.set()
        for stream in (running, *streams):
            list(stream)
    assert 2 in seen[:3]  # those of two realms read at once
    assert [stream.cached_tokens for stream in streams] == [0, 0, 144]


def test_realms_leave_nothing_behind_when_their_pages_are_gone(native: NativeRuntime) -> None:
    memory = PagedMemory(native, 6 * PagedMemory(native, 1 << 20).page_bytes)
    for number in range(300):
        held = memory.hold([1] * 40, 40, f"realm {number}")
        assert held is not None
        assert held.cached == 0
        memory.extend(held, 40)
        held.cache.length = 40
        memory.note(held, [1] * 40)
        memory.release(held)
        assert len(memory._found([1] * 40, f"realm {number}")) == 2
    assert sorted(key[0] for key in memory._roots) == ["realm 297", "realm 298", "realm 299"]
    held = memory.hold([2] * 6 * PAGE, 6 * PAGE)
    assert held is not None
    memory.extend(held, 6 * PAGE)
    assert memory._roots == {}


# -- the house around it ---------------------------------------------------------------------------------------------


def test_a_fleet_offers_what_an_engine_does(native: NativeRuntime) -> None:
    requests = asked(6, seed=13)
    expected = alone(native, requests)
    with Fleet([Engine(native, streams=2, waiting=4) for _ in range(2)]) as fleet:
        assert (fleet.streams, fleet.runtime.config) == (4, native.config)
        for (ids, config), tokens in zip(requests, expected, strict=True):
            stream = fleet.submit(ids, config, logprobs=2, realm="a", client="b")
            assert told(everything(stream)) == explained(native, [*ids, *tokens], len(ids), 2)
            score = fleet.score([*ids, *tokens], len(ids), 2, realm="a")
            assert told(list(score)) == explained(native, [*ids, *tokens], len(ids), 2)
            assert list(fleet.generate(ids, config, ())) == tokens
        many = fleet.submit_many(text(1, 40), GenerationConfig(max_new_tokens=3, seed=1), 4)
        assert [len(list(stream)) for stream in many] == [3] * 4
        assert [stream.cached_tokens for stream in many] == [0, 32, 32, 32]  # of one engine
        with pytest.raises(EngineFull):
            fleet.submit_many([1], GenerationConfig(max_new_tokens=100), 50)
        for engine in fleet.engines:
            idle(engine)
        assert fleet.stats().used_bytes == 0
        for name in ("submit", "submit_many", "score", "generate", "stats", "close", "streams", "runtime"):
            assert hasattr(fleet, name)
            assert hasattr(fleet.engines[0], name)


def test_stats_never_wait_for_a_step(native: NativeRuntime, monkeypatch: pytest.MonkeyPatch) -> None:
    inside, go_on = threading.Event(), threading.Event()
    forward = native.forward_batch

    def slow(parts: Any) -> torch.Tensor:
        inside.set()
        go_on.wait(60)
        return forward(parts)

    with Engine(native) as engine:
        monkeypatch.setattr(native, "forward_batch", slow)
        stream = engine.submit([1], GenerationConfig(max_new_tokens=1))
        assert inside.wait(60)
        began = time.perf_counter()
        for _ in range(1000):
            assert engine.stats().running == 1
        other = engine.submit([2], GenerationConfig(max_new_tokens=1))  # nor does asking
        assert other.take() == stream.take() == []
        assert time.perf_counter() - began < 2
        go_on.set()
        assert len(list(stream)) == len(list(other)) == 1
