"""What the server says, asked over real sockets: shapes, limits, errors, and what it does besides answering."""

from __future__ import annotations

import json
import re
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("uvicorn")

import httpx  # noqa: E402
from helpers_cli import save_tiny  # noqa: E402
from helpers_server import Served, served  # noqa: E402

from gpt2chat.explanation import explain  # noqa: E402
from gpt2chat.generation import Decoder  # noqa: E402
from gpt2chat.sampling import GenerationConfig  # noqa: E402
from gpt2chat.server.answers import Pace  # noqa: E402
from gpt2chat.server.limits import Limits  # noqa: E402

USER = {"role": "user", "content": "What is this?"}
GREEDY = {"temperature": 0, "max_tokens": 12, "ignore_eos": True}


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("serve") / "tiny.pt")


@pytest.fixture(scope="module")
def server(tiny: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("kept")
    with served(tiny, feedback=folder / "feedback.jsonl", chat_log=folder / "app.log") as found:
        yield found


def events(text: str) -> list[Any]:
    """The data of a stream's events; [DONE] stays a text."""
    found = [line.removeprefix("data: ") for line in text.splitlines() if line.startswith("data: ")]
    return [each if each == "[DONE]" else json.loads(each) for each in found]


def content(chunks: list[Any]) -> str:
    return "".join(c["choices"][0]["delta"].get("content", "") for c in chunks if c != "[DONE]" and c["choices"])


# -- shapes --------------------------------------------------------------------------------------------------------


def test_a_stream_says_what_the_whole_says(server: Served) -> None:
    body = {"messages": [USER], **GREEDY}
    whole = server.post("/v1/chat/completions", body).json()
    stream = server.post("/v1/chat/completions", {**body, "stream": True})
    assert stream.headers["content-type"].startswith("text/event-stream")
    chunks = events(stream.text)
    assert chunks[0]["choices"][0]["delta"] == {"role": "assistant", "content": ""} and chunks[-1] == "[DONE]"
    assert content(chunks) == whole["choices"][0]["message"]["content"] != ""
    assert chunks[-2]["choices"][0] == {"index": 0, "delta": {}, "logprobs": None, "finish_reason": "length"}
    assert len({c["id"] for c in chunks[:-1]}) == 1
    assert whole["usage"] == {
        "prompt_tokens": whole["usage"]["prompt_tokens"],
        "completion_tokens": 12,
        "total_tokens": whole["usage"]["prompt_tokens"] + 12,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


def test_usage_comes_once_or_always_as_it_is_asked_for(server: Served) -> None:
    body = {"messages": [USER], **GREEDY, "stream": True}
    once = events(server.post("/v1/chat/completions", {**body, "stream_options": {"include_usage": True}}).text)
    assert once[-2]["choices"] == [] and once[-2]["usage"]["completion_tokens"] == 12
    assert all(chunk["usage"] is None for chunk in once[:-2])
    options = {"include_usage": True, "continuous_usage_stats": True}
    always = events(server.post("/v1/chat/completions", {**body, "stream_options": options}).text)[:-1]
    counts = [chunk["usage"]["completion_tokens"] for chunk in always]
    assert counts == sorted(counts) and counts[-1] == 12
    assert all("usage" not in chunk for chunk in events(server.post("/v1/chat/completions", body).text)[:-1])


def test_nanochat_has_its_fields_and_openais(server: Served) -> None:
    chunks = events(server.post("/chat/completions", {"messages": [USER], **GREEDY}).text)
    assert "".join(chunk["token"] for chunk in chunks) == content(chunks) != ""
    assert all(chunk["gpu"] == 0 for chunk in chunks)
    assert [chunk.get("done") for chunk in chunks].count(True) == 1 and chunks[-1]["done"] is True
    assert chunks[-1]["choices"][0]["finish_reason"] == "length"
    whole = server.post("/chat/completions", {"messages": [USER], **GREEDY, "stream": False}).json()
    assert whole["choices"][0]["message"]["content"] == content(chunks)
    usage = {"stream_options": {"include_usage": True}}
    told = events(server.post("/chat/completions", {"messages": [USER], **GREEDY, **usage}).text)
    assert told[-1]["done"] is True and told[-2]["usage"]["completion_tokens"] == 12


def test_several_answers_are_those_of_their_seeds(server: Served) -> None:
    options = {"temperature": 1.5, "max_tokens": 10, "ignore_eos": True, "seed": 5}
    several = server.ask("hi", n=3, **options)["choices"]
    assert [choice["index"] for choice in several] == [0, 1, 2]
    alone = [server.ask("hi", **{**options, "seed": 5 + i})["choices"][0]["message"]["content"] for i in range(3)]
    assert [choice["message"]["content"] for choice in several] == alone and len(set(alone)) == 3
    body = {"messages": [{"role": "user", "content": "hi"}], "n": 3, "stream": True, **options}
    chunks = events(server.post("/v1/chat/completions", body).text)[:-1]
    for i in range(3):
        mine = [c for c in chunks if c["choices"][0]["index"] == i]
        assert content(mine) == alone[i] and mine[-1]["choices"][0]["finish_reason"] == "length"


def test_stop_strings_are_cut_and_log_probabilities_end_with_the_text(server: Served) -> None:
    ascii_only = {str(token): 20 for token in server.service.tokenizer.encode(" abc def ghi jkl mno pqr")}
    options = {**GREEDY, "logit_bias": ascii_only, "frequency_penalty": 2, "logprobs": True}
    plain = server.ask("hi", **options)["choices"][0]
    text, tokens = plain["message"]["content"], plain["logprobs"]["content"]
    assert "".join(token["token"] for token in tokens) == text
    stop = tokens[5]["token"] + tokens[6]["token"][:2]
    found = server.ask("hi", **options, stop=[stop])["choices"][0]
    assert found["finish_reason"] == "stop"
    assert found["message"]["content"] == text[: text.index(stop)]
    assert "".join(token["token"] for token in found["logprobs"]["content"]).startswith(found["message"]["content"])
    assert len(found["logprobs"]["content"]) <= 6


def test_a_text_is_echoed_and_scored(server: Served) -> None:
    body = {"prompt": "One two three", "max_tokens": 4, "echo": True, "logprobs": 2, "temperature": 0}
    choice = server.post("/v1/completions", body).json()["choices"][0]
    scores = choice["logprobs"]
    assert choice["text"].startswith("One two three") and scores["token_logprobs"][0] is None
    for token, offset in zip(scores["tokens"], scores["text_offset"], strict=True):
        assert choice["text"][offset:].startswith(token)
    only = server.post("/v1/completions", {**body, "max_tokens": 0}).json()["choices"][0]
    assert only["text"] == "One two three"
    assert only["logprobs"]["token_logprobs"] == scores["token_logprobs"][: len(only["logprobs"]["tokens"])]
    streamed = events(server.post("/v1/completions", {**body, "stream": True}).text)[:-1]
    assert "".join(chunk["choices"][0]["text"] for chunk in streamed) == choice["text"]
    offsets = [at for c in streamed for at in (c["choices"][0]["logprobs"] or {}).get("text_offset", [])]
    assert offsets == scores["text_offset"]


def test_texts_and_ids_may_come_in_lists(server: Served) -> None:
    ids = server.service.tokenizer.encode("The mill")
    body = {"max_tokens": 3, "temperature": 0, "ignore_eos": True}
    both = server.post("/v1/completions", {"prompt": ["The mill", "by the"], "n": 2, **body}).json()
    assert [choice["index"] for choice in both["choices"]] == [0, 1, 2, 3]
    by_ids = server.post("/v1/completions", {"prompt": ids, **body}).json()["choices"][0]["text"]
    assert {both["choices"][0]["text"], both["choices"][1]["text"], by_ids} == {by_ids}
    asked = len(ids) + len(server.service.tokenizer.encode("by the"))
    assert (both["usage"]["prompt_tokens"], both["usage"]["completion_tokens"]) == (asked, 12)


def test_the_next_turn_finds_the_one_before_in_the_cache(server: Served) -> None:
    first = server.ask("Tell me a long story about the river and the mill.", **GREEDY)
    said = first["choices"][0]["message"]["content"]
    messages = [
        {"role": "user", "content": "Tell me a long story about the river and the mill."},
        {"role": "assistant", "content": said},
        {"role": "user", "content": "Go on."},
    ]
    again = server.post("/v1/chat/completions", {"messages": messages, **GREEDY}).json()["usage"]
    assert again["prompt_tokens_details"]["cached_tokens"] >= 16


def test_a_prompt_that_is_only_echoed_streams_too(server: Served) -> None:
    body = {"prompt": "One two", "max_tokens": 0, "echo": True, "stream": True}
    chunks = events(server.post("/v1/completions", body).text)
    assert chunks[0]["choices"][0]["text"] == "One two" and chunks[-1] == "[DONE]"


def test_ids_and_lengths_are_checked_also_where_nothing_is_drawn(server: Served) -> None:
    for prompt in ([60000], "a b " * 1000):
        body = {"prompt": prompt, "max_tokens": 0, "echo": True}
        assert server.post("/v1/completions", body).status_code == 400


def test_below_its_confidence_the_fallback_is_said(tiny: Path) -> None:
    with served(tiny, fallback="Please ask us.", threshold=1.0) as server:
        found = server.ask("hi", **GREEDY)
        assert found["choices"][0]["message"]["content"] == "Please ask us."
        assert 0 <= found["gpt2chat"]["confidence"] < 1 and found["choices"][0]["finish_reason"] == "stop"
        stream = server.post("/chat/completions", {"messages": [USER], **GREEDY, "logprobs": True}).text
        assert content(events(stream)) == "Please ask us."
    with served(tiny, fallback="Please ask us.", threshold=0.0) as server:
        sure = server.ask("hi", **GREEDY, logprobs=True)["choices"][0]
        assert sure["message"]["content"] != "Please ask us." and len(sure["logprobs"]["content"]) == 12
    with served(tiny) as server:
        assert server.ask("hi", **GREEDY)["choices"][0]["message"] == sure["message"]


def test_the_longest_prompt_is_what_the_operator_says(tiny: Path) -> None:
    with served(tiny, max_length=30) as server:
        body = {"messages": [{"role": "user", "content": "word " * 40}]}
        response = server.post("/v1/chat/completions", body)
        assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded")
        assert server.post("/v1/completions", {"prompt": "word " * 40}).status_code == 400
        assert server.ask("word " * 10, max_tokens=2)["usage"]["prompt_tokens"] <= 30


def test_the_empty_page_suggests_what_the_operator_says(tiny: Path) -> None:
    with served(tiny, title="Our school", suggestions=("When do you open?",)) as server:
        told = server.get("/settings").json()
        assert (told["title"], told["suggestions"]) == ("Our school", ["When do you open?"])


# -- limits and errors ---------------------------------------------------------------------------------------------

LONG = {"role": "user", "content": "x" * 8001}
LIMITS = [
    ({"messages": []}, "At least one message is required"),
    ({"messages": [USER] * 501}, "Too many messages. Maximum 500 messages allowed per request"),
    ({"messages": [USER, {"role": "user", "content": ""}]}, "Message 1 has empty content"),
    ({"messages": [LONG]}, "Message 0 is too long. Maximum 8000 characters allowed per message"),
    (
        {"messages": [{"role": "user", "content": "x" * 8000}] * 5},
        "Total conversation is too long. Maximum 32000 characters allowed",
    ),
    (
        {"messages": [{"role": "tool", "content": "x"}]},
        "Message 0 has invalid role. Must be 'user', 'assistant', or 'system'",
    ),
    ({"messages": [USER], "temperature": 2.1}, "Temperature must be between 0.0 and 2.0"),
    ({"messages": [USER], "top_k": 201}, "top_k must be between 0 and 200"),
    ({"messages": [USER], "max_tokens": 0}, "max_tokens must be between 1 and 4096"),
]


@pytest.mark.parametrize(("body", "words"), LIMITS, ids=[words.partition(".")[0] for _, words in LIMITS])
def test_nanochats_limits_word_for_word(server: Served, body: dict[str, Any], words: str) -> None:
    response = server.post("/chat/completions", body)
    assert response.status_code == 400
    assert response.json()["detail"] == response.json()["error"]["message"] == words


def test_nanochats_limits_are_checked_in_its_order(server: Served) -> None:
    everything = {"messages": [{"role": "tool", "content": ""}], "temperature": 9, "top_k": -1, "max_tokens": 0}
    assert server.post("/chat/completions", everything).json()["detail"] == "Message 0 has empty content"
    said = {**everything, "messages": [{"role": "tool", "content": "x"}]}
    assert "invalid role" in server.post("/chat/completions", said).json()["detail"]
    assert "Temperature" in server.post("/chat/completions", {**said, "messages": [USER]}).json()["detail"]


def test_system_messages_and_empty_answers_are_taken(server: Served) -> None:
    messages = [{"role": "system", "content": "Be brief."}, USER, {"role": "assistant", "content": ""}, USER]
    assert server.post("/chat/completions", {"messages": messages, "max_tokens": 2}).status_code == 200


WRONG = [
    ({}, "messages"),
    ({"messages": []}, "messages"),
    ({"messages": [{"role": "robot", "content": "x"}]}, "messages.0.role"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages.0.content"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url", "image_url": {}}]}]}, "messages.0.content"),
    ({"messages": [USER], "temperature": 2.5}, "temperature"),
    ({"messages": [USER], "temperature": "hot"}, "temperature"),
    ({"messages": [USER], "top_p": 0}, "top_p"),
    ({"messages": [USER], "n": 9}, "n"),
    ({"messages": [USER], "n": True}, "n"),
    ({"messages": [USER], "max_tokens": -1}, "max_tokens"),
    ({"messages": [USER], "max_completion_tokens": 0}, "max_completion_tokens"),
    ({"messages": [USER], "stop": ["a"] * 5}, "stop"),
    ({"messages": [USER], "stop": ["a" * 65]}, "stop"),
    ({"messages": [USER], "stop": [1]}, "stop"),
    ({"messages": [USER], "logit_bias": {"x": 1}}, "logit_bias"),
    ({"messages": [USER], "logit_bias": {"1": 101}}, "logit_bias"),
    ({"messages": [USER], "logprobs": True, "top_logprobs": 21}, "top_logprobs"),
    ({"messages": [USER], "top_logprobs": 2}, "top_logprobs"),
    ({"messages": [USER], "tools": [{"type": "function"}]}, "tools"),
    ({"messages": [USER], "response_format": {"type": "json_object"}}, "response_format"),
    ({"messages": [USER], "seed": 2**63}, "seed"),
    ({"messages": [USER], "stream_options": 5}, "stream_options"),
]


@pytest.mark.parametrize(("body", "param"), WRONG, ids=[f"{param}-{i}" for i, (_, param) in enumerate(WRONG)])
def test_a_wrong_field_is_named(server: Served, body: dict[str, Any], param: str) -> None:
    response = server.post("/v1/chat/completions", body)
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["param"]) == (400, "invalid_request_error", param), error
    assert error["message"].startswith(param) and response.headers["x-should-retry"] == "false"
    assert "detail" not in response.json()


NO_OBJECTS = [b"", b"{", b"[]", b'"x"', b"\xff\xfe", b'{"messages":"\\ud800"}', b"[" * 9999, b"\0", b'{"prompt": NaN}']


@pytest.mark.parametrize("body", NO_OBJECTS)
def test_a_body_that_is_no_json_object_is_400(server: Served, body: bytes) -> None:
    for path in ("/v1/chat/completions", "/v1/completions", "/chat/completions", "/explain", "/feedback"):
        headers = {"content-type": "application/json"}
        response = httpx.post(server.url + path, content=body, headers=headers, timeout=30)
        assert response.status_code == 400 and response.json()["error"]["type"] == "invalid_request_error"


@pytest.mark.parametrize(
    "prompt", [[], [[]], 5, None, [1, "a"], [-1], [True], {"a": 1}, [50257], ["a"] * 129], ids=lambda p: repr(p)[:20]
)
def test_prompts_that_are_none(server: Served, prompt: Any) -> None:
    response = server.post("/v1/completions", {"prompt": prompt, "max_tokens": 1})
    assert response.status_code == 400 and "prompt" in response.json()["error"]["message"]


def test_unknown_models_and_paths_are_404(server: Served) -> None:
    response = server.post("/v1/chat/completions", {"model": "gpt-5", "messages": [USER]})
    assert response.status_code == 404 and response.json()["error"]["code"] == "model_not_found"
    assert "tiny" in response.json()["error"]["message"]
    assert server.get("/v1/models/gpt-5").status_code == 404
    assert server.get("/v1/models/tiny").json()["id"] == "tiny" and server.get("/v1/models/").status_code == 404
    assert server.get("/v1/nothing").json()["error"]["type"] == "not_found_error"
    assert server.get("/v1/chat/completions").status_code == 405


def test_whole_oldest_turns_leave_and_the_answer_says_how_many(server: Served) -> None:
    turn = [{"role": "user", "content": "word " * 20}, {"role": "assistant", "content": "fine " * 10}]
    body = {"messages": [*turn * 6, USER], "max_tokens": 8}
    whole = server.post("/v1/chat/completions", body)
    dropped = whole.json()["gpt2chat"]["dropped_turns"]
    assert 0 < dropped < 6 and whole.headers["x-gpt2chat-dropped-turns"] == str(dropped)
    assert events(server.post("/chat/completions", body).text)[0]["gpt2chat"]["dropped_turns"] == dropped
    assert server.ask("hi", max_tokens=2)["gpt2chat"]["dropped_turns"] == 0


@pytest.mark.parametrize("size", [200, 20_000, 900_000])
def test_a_message_that_cannot_fit_is_refused_with_its_code(server: Served, size: int) -> None:
    response = server.post(
        "/v1/chat/completions", {"messages": [{"role": "user", "content": "word " * (size // 5 * 5)}]}
    )
    if size == 900_000:
        assert response.status_code == 413
        return
    assert (response.status_code, response.json()["error"]["code"]) == (400, "context_length_exceeded")


def test_a_full_queue_is_429_and_says_when_to_come_back(tiny: Path) -> None:
    with served(tiny, streams=1, waiting=1) as server:
        block = {"messages": [USER], "max_tokens": 100, "ignore_eos": True, "n": 2}
        gate = threading.Event()
        slow = server.engine.runtime.forward_batch
        server.engine.runtime.forward_batch = lambda parts: (gate.wait(20), slow(parts))[1]  # type: ignore[method-assign]
        running = threading.Thread(target=server.post, args=("/v1/chat/completions", block))
        running.start()
        _until(lambda: server.engine.stats().waiting == 1)
        response = server.post("/v1/chat/completions", {"messages": [USER]})
        assert (response.status_code, response.json()["error"]["code"]) == (429, "queue_full")
        assert 1 <= int(response.headers["retry-after"]) <= 30 and response.headers["x-should-retry"] == "true"
        assert server.get("/health").json()["available_workers"] == 0
        gate.set()
        running.join()


def test_who_waits_too_long_gets_503_and_who_answers_too_long_is_cut(tiny: Path) -> None:
    with served(tiny, streams=1, limits=Limits(queue_s=0.3, answer_s=0.5)) as server:
        slow = server.engine.runtime.forward_batch
        server.engine.runtime.forward_batch = lambda parts: (time.sleep(0.05), slow(parts))[1]  # type: ignore[method-assign]
        found: list[Any] = []
        block = {"messages": [USER], "max_tokens": 100, "ignore_eos": True}
        running = threading.Thread(target=lambda: found.append(server.post("/v1/chat/completions", block)))
        running.start()
        _until(lambda: server.engine.stats().running == 1)
        late = server.post("/v1/chat/completions", block)
        assert late.status_code == 503 and "queue" in late.json()["error"]["message"]
        running.join()
        assert found[0].json()["choices"][0]["finish_reason"] == "length"
        assert found[0].json()["usage"]["completion_tokens"] < 40
        _until(lambda: server.engine.stats().running == 0)


def test_a_fault_of_the_model_is_a_500_and_the_next_answer_is_fine(tiny: Path) -> None:
    with served(tiny) as server:
        right, calls = server.engine.runtime.forward_batch, [0]

        def broken(parts: Any) -> Any:
            calls[0] += 1
            raise ValueError("planted")

        server.engine.runtime.forward_batch = broken  # type: ignore[method-assign]
        response = server.post("/v1/chat/completions", {"messages": [USER]})
        assert response.status_code == 500 and calls[0] and response.json()["error"]["type"] == "server_error"
        assert "planted" not in response.text
        server.engine.runtime.forward_batch = right  # type: ignore[method-assign]
        assert server.ask("hi", max_tokens=2)["usage"]["completion_tokens"] <= 2


def test_a_fault_in_the_middle_of_a_stream_is_its_last_event(tiny: Path) -> None:
    with served(tiny) as server:
        right, calls = server.engine.runtime.forward_batch, [0]

        def broken(parts: Any) -> Any:
            calls[0] += 1
            if calls[0] > 5:
                raise ValueError("planted")
            return right(parts)

        server.engine.runtime.forward_batch = broken  # type: ignore[method-assign]
        text = server.post("/v1/chat/completions", {"messages": [USER], **GREEDY, "stream": True}).text
        assert events(text)[-1]["error"]["type"] == "server_error" and "planted" not in text


def _until(true: Any) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


# -- leaving and ending --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stream", [True, False])
def test_who_leaves_ends_the_computation_at_once(tiny: Path, stream: bool) -> None:
    with served(tiny, streams=1) as server:
        slow = server.engine.runtime.forward_batch
        server.engine.runtime.forward_batch = lambda parts: (time.sleep(0.02), slow(parts))[1]  # type: ignore[method-assign]
        body = {"messages": [USER], "max_tokens": 100, "ignore_eos": True, "stream": stream}
        url = f"{server.url}/v1/chat/completions"
        if stream:
            with httpx.stream("POST", url, json=body) as response:
                assert next(response.iter_bytes())
        else:
            with pytest.raises(httpx.ReadTimeout):
                httpx.post(url, json=body, timeout=0.3)
        _until(lambda: server.engine.stats().running == 0)
        assert server.engine.stats().cancelled == 1 and server.engine.stats().new_tokens < 60
        assert server.engine.stats().used_bytes == 0


def test_draining_ends_those_who_wait_lets_the_others_finish_and_takes_no_more(tiny: Path) -> None:
    with served(tiny, streams=1) as server:
        slow = server.engine.runtime.forward_batch
        server.engine.runtime.forward_batch = lambda parts: (time.sleep(0.02), slow(parts))[1]  # type: ignore[method-assign]
        found: dict[str, httpx.Response] = {}

        def ask(name: str) -> None:
            body = {"messages": [USER], "max_tokens": 40, "ignore_eos": True, "stream": True}
            found[name] = server.post("/v1/chat/completions", body)

        threads = [threading.Thread(target=ask, args=(name,)) for name in ("runs", "waits")]
        threads[0].start()
        _until(lambda: server.engine.stats().running == 1)
        threads[1].start()
        _until(lambda: server.engine.stats().waiting == 1)
        server.service.drain()
        refused = server.post("/v1/chat/completions", {"messages": [USER]})
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "shutting_down")
        for thread in threads:
            thread.join()
        assert found["waits"].status_code == 503 and events(found["runs"].text)[-1] == "[DONE]"


def test_at_the_end_of_the_grace_running_streams_end_with_an_error(tiny: Path) -> None:
    with served(tiny, streams=1) as server:
        slow = server.engine.runtime.forward_batch
        server.engine.runtime.forward_batch = lambda parts: (time.sleep(0.02), slow(parts))[1]  # type: ignore[method-assign]
        body = {"messages": [USER], "max_tokens": 100, "ignore_eos": True, "stream": True}
        found: list[httpx.Response] = []
        thread = threading.Thread(target=lambda: found.append(server.post("/v1/chat/completions", body)))
        thread.start()
        _until(lambda: server.engine.stats().new_tokens > 3)
        server.service.end_all()
        thread.join()
        assert events(found[0].text)[-1]["error"]["code"] == "shutting_down"


# -- besides answering ---------------------------------------------------------------------------------------------


def test_why_an_answer_came_out_is_what_the_model_says(server: Served, tiny: Path) -> None:
    messages = [USER, {"role": "assistant", "content": "A mill by the river."}]
    found = server.post("/explain", {"messages": messages}).json()["tokens"]
    assert "".join(token["token"] for token in found) == "A mill by the river."
    service = server.service
    prompt = service.tokenizer.encode("User: What is this?\nBot:")
    said = service.tokenizer.encode(" A mill by the river.")
    mine = explain(Decoder(server.engine.runtime), prompt, said)
    assert [token["logprob"] for token in found] == pytest.approx([score.logprob for score in mine], abs=1e-4)
    assert all(len(token["top_logprobs"]) == 5 for token in found)
    assert server.post("/explain", {"messages": [USER, USER]}).status_code == 400


def test_judged_answers_become_data(server: Served) -> None:
    messages = [USER, {"role": "assistant", "content": "A mill."}]
    assert server.post("/feedback", {"messages": messages, "rating": "good"}).json() == {"saved": True}
    told = {"messages": messages, "rating": "bad", "instead": "A test."}
    assert server.post("/feedback", told).status_code == 200
    assert server.service.feedback is not None
    rows = [json.loads(line) for line in server.service.feedback.path.read_text().splitlines()]
    assert [row["messages"][-1]["content"] for row in rows][-1] == "A test."
    assert "A mill." in server.service.feedback.preferences.read_text()
    assert all(path.stat().st_mode & 0o077 == 0 for path in server.service.feedback.path.parent.iterdir())
    assert server.post("/feedback", {"messages": messages, "rating": "so-so"}).status_code == 400


def test_without_a_file_feedback_is_404(tiny: Path) -> None:
    with served(tiny) as server:
        body = {"messages": [USER, {"role": "assistant", "content": "x"}], "rating": "good"}
        assert server.post("/feedback", body).status_code == 404 and not server.get("/settings").json()["feedback"]


def test_questions_and_answers_are_logged_where_that_was_asked_for(server: Served) -> None:
    answer = server.ask("Is this kept?", **GREEDY)["choices"][0]["message"]["content"]
    assert server.service.chat_log
    text = server.service.chat_log.path.read_text()
    assert "Question: Is this kept?\n" in text and answer.splitlines()[0].strip() in text
    assert re.search(r"Inference latency: [\d.]+ sec\nToken per sec: [\d.]+\n\n\n\n", text)


def test_figures_grow_with_what_is_asked(server: Served) -> None:
    before = server.get("/stats").json()["engine"]["new_tokens"]
    server.ask("hi", **GREEDY)
    stats = server.get("/stats").json()
    assert stats["engine"]["new_tokens"] == before + 12
    assert (stats["total_workers"], stats["available_workers"], stats["busy_workers"]) == (1, 1, 0)
    assert stats["workers"] == [{"gpu_id": 0, "device": "cpu"}]
    text = server.get("/metrics").text
    assert f"gpt2chat_engine_new_tokens_total {float(before + 12)}" in text
    assert re.search(r'gpt2chat_http_requests_total\{path="/v1/chat/completions",status="200"\} \d', text)
    assert "gpt2chat_first_token_seconds_bucket" in text


def test_two_workers_share_what_is_asked_and_say_which_answers(tiny: Path) -> None:
    with served(tiny, streams=1, workers=2) as server:
        slow = server.engine.runtime.forward_batch
        server.engine.runtime.forward_batch = lambda parts: (time.sleep(0.005), slow(parts))[1]  # type: ignore[method-assign]
        body, found = {"messages": [USER], **GREEDY, "max_tokens": 60}, list[list[Any]]()
        ask = lambda: found.append(events(server.post("/chat/completions", body).text))  # noqa: E731
        threads = [threading.Thread(target=ask) for _ in range(2)]
        for thread in threads:
            thread.start()
        _until(lambda: server.get("/stats").json()["busy_workers"] == 2)
        for thread in threads:
            thread.join()
        assert sorted(chunks[0]["gpu"] for chunks in found) == [0, 1]
        assert content(found[0]) == content(found[1])
        stats = server.get("/stats").json()
        assert (stats["total_workers"], stats["available_workers"], len(stats["workers"])) == (2, 2, 2)


def test_before_the_model_is_there_requests_are_told_to_wait(tiny: Path) -> None:
    with served(tiny) as server:
        fleet, server.service.engine = server.service.engine, None
        assert server.get("/health").json() == {"status": "ok", "ready": False, "num_gpus": 1, "available_workers": 0}
        response = server.post("/v1/chat/completions", {"messages": [USER]})
        assert (response.status_code, response.json()["error"]["code"]) == (503, "loading")
        assert response.headers["retry-after"] == "1" and server.get("/settings").status_code == 503
        assert server.get("/").status_code == 200 and server.get("/metrics").status_code == 200
        server.service.engine = fleet


def test_the_page_lets_nothing_run_but_itself(server: Served) -> None:
    response = server.get("/")
    policy = response.headers["content-security-policy"]
    assert response.headers["content-type"] == "text/html; charset=utf-8"
    assert "default-src 'none'" in policy and "unsafe" not in policy
    assert len(re.findall(r"script-src 'sha256-[^']+'", policy)) == len(re.findall(r"style-src 'sha256-", policy)) == 1


def test_the_servers_settings_are_the_defaults_of_requests(tiny: Path) -> None:
    with served(tiny, generation=GenerationConfig(temperature=0, max_new_tokens=7), system="Be kind.") as server:
        told = server.get("/settings").json()
        assert (told["defaults"]["temperature"], told["defaults"]["max_tokens"]) == (0, 7)
        assert told["defaults"]["system"] == "Be kind." and told["context_length"] == 128
        with_system = server.ask("hi", ignore_eos=True)
        assert with_system["usage"]["completion_tokens"] == 7
        messages = [{"role": "system", "content": "Be kind."}, {"role": "user", "content": "hi"}]
        same = server.post("/v1/chat/completions", {"messages": messages, "ignore_eos": True}).json()
        assert same["usage"]["prompt_tokens"] == with_system["usage"]["prompt_tokens"]
        assert same["choices"][0]["message"] == with_system["choices"][0]["message"]


def test_few_readers_get_each_token_and_many_get_several_at_a_time() -> None:
    paces = [Pace(active).seconds() for active in (1, 4, 5, 32, 1000)]
    assert paces[:2] == [0, 0] and paces == sorted(paces) and 0 < paces[2] < paces[3] <= paces[4] == Pace.MOST
