"""OpenAI's own Python client against a real server: answers, and how they are drawn, cut and scored."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Iterator
from typing import Any

import pytest
from helpers_server import Served, served

from gpt2chat.chatbot import GPT2Chatbot
from gpt2chat.explanation import explain
from gpt2chat.tokenizer import Tokenizer

openai = pytest.importorskip("openai")

MODEL = "gpt2chat"
QUESTIONS = ("What is your name?", "Tell me about the sea.", "How do I bake bread?", "Wo bist du? 😀")
TELL = [{"role": "user", "content": QUESTIONS[0]}]


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with served("demo", match=False) as running:
        yield running


@pytest.fixture(scope="module")
def client(server: Served) -> Iterator[Any]:
    with openai.OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0, timeout=60) as made:
        yield made


def asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def chat(client: Any, messages: Any = TELL, **options: Any) -> Any:
    return client.chat.completions.create(model=MODEL, messages=messages, **{"max_tokens": 40, **options})


def said(client: Any, messages: Any = TELL, **options: Any) -> str:
    """The text of an answer, which is the same streamed."""
    text = str(chat(client, messages, **options).choices[0].message.content)
    assert streamed(client, messages, **options)[0] == text
    return text


def streamed(client: Any, messages: Any = TELL, **options: Any) -> list[str]:
    """The texts of the answers of a stream."""
    texts = dict[int, str]()
    for chunk in chat(client, messages, stream=True, **options):
        for choice in chunk.choices:
            texts[choice.index] = texts.get(choice.index, "") + (choice.delta.content or "")
    return [texts[index] for index in sorted(texts)]


def complete(client: Any, prompt: Any, **options: Any) -> Any:
    return client.completions.create(model=MODEL, prompt=prompt, **{"max_tokens": 12, **options})


# -- chats ---------------------------------------------------------------------------------------------------------


def test_a_chat_and_its_parts(client: Any) -> None:
    answer = chat(client, asked(QUESTIONS[0]), temperature=0)
    assert answer.object == "chat.completion" and answer.id.startswith("chatcmpl-") and answer.model == "tiny"
    assert answer._request_id.startswith("req_")
    (choice,) = answer.choices
    assert choice.message.role == "assistant" and choice.message.content and choice.logprobs is None
    assert choice.message.tool_calls is None and choice.message.refusal is None
    usage = answer.usage
    assert usage.total_tokens == usage.prompt_tokens + usage.completion_tokens and usage.prompt_tokens > 5


def test_a_stream_and_its_chunks(client: Any) -> None:
    chunks = list(chat(client, temperature=0, stream=True, stream_options={"include_usage": True}))
    assert len({(chunk.id, chunk.created, chunk.model, chunk.object) for chunk in chunks}) == 1
    first, *middle, end, last = chunks
    assert first.choices[0].delta.role == "assistant" and first.choices[0].delta.content == ""
    assert all(chunk.choices[0].delta.content and chunk.choices[0].delta.role is None for chunk in middle)
    assert [chunk.choices[0].finish_reason for chunk in [first, *middle, end]][-1] in ("stop", "length")
    assert all(chunk.choices[0].finish_reason is None for chunk in [first, *middle])
    assert end.choices[0].delta.content is None and all(chunk.usage is None for chunk in [first, *middle, end])
    assert last.choices == [] and last.usage.completion_tokens > 5
    whole = chat(client, temperature=0)
    assert "".join(chunk.choices[0].delta.content for chunk in middle) == whole.choices[0].message.content
    assert last.usage.completion_tokens == whole.usage.completion_tokens
    assert last.usage.prompt_tokens == whole.usage.prompt_tokens


def test_a_raw_stream(client: Any) -> None:
    with client.chat.completions.with_streaming_response.create(
        model=MODEL, messages=TELL, stream=True, max_tokens=8, temperature=0
    ) as response:
        assert response.headers["content-type"].startswith("text/event-stream") and response.request_id
        lines = [line for line in response.iter_lines() if line]
    assert all(line.startswith("data: {") for line in lines[:-1]) and lines[-1] == "data: [DONE]"
    with client.chat.completions.stream(model=MODEL, messages=TELL, max_tokens=90, temperature=0) as events:
        final = events.get_final_completion()
    assert final.choices[0].message.content == said(client, max_tokens=90, temperature=0)


@pytest.mark.parametrize("temperature", [0, 0.9])
def test_stop_strings_cut_exactly(client: Any, temperature: float) -> None:
    drawn = {"temperature": temperature, "seed": 11}
    whole = said(client, **drawn)
    assert len(whole) > 12
    for begin, length in ((1, 1), (2, 2), (7, 3), (len(whole) // 2, 6), (len(whole) - 1, 1), (0, 2)):
        stop = whole[begin : begin + length]
        expected = whole[: whole.index(stop)]
        assert said(client, stop=stop, **drawn) == expected
        assert said(client, stop=["never said", stop], **drawn) == expected
        assert chat(client, stop=stop, **drawn).choices[0].finish_reason == "stop"
    assert said(client, stop=["never said"], **drawn) == whole
    assert said(client, stop=[], **drawn) == whole and said(client, stop=None, **drawn) == whole


def test_several_answers(client: Any) -> None:
    answer = chat(client, n=4, seed=5, temperature=1)
    texts = [choice.message.content for choice in answer.choices]
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3] and len(set(texts)) > 1
    assert streamed(client, n=4, seed=5, temperature=1) == texts
    assert answer.usage.prompt_tokens == chat(client).usage.prompt_tokens
    assert texts[2] == chat(client, seed=7, temperature=1).choices[0].message.content


def test_a_seed_decides_alone_and_among_others(server: Served, client: Any) -> None:
    drawn = {"temperature": 1, "seed": 42}
    alone = [said(client, asked(text), **drawn) for text in QUESTIONS]
    assert len({said(client, seed=seed, temperature=1) for seed in range(4)}) > 1

    async def together() -> list[str]:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as busy:

            async def one(text: str, whole: bool) -> str:
                if whole:
                    answer = await chat(busy, asked(text), **drawn)
                    return str(answer.choices[0].message.content)
                return "".join(
                    [
                        chunk.choices[0].delta.content or ""
                        async for chunk in await chat(busy, asked(text), stream=True, **drawn)
                    ]
                )

            return await asyncio.gather(*(one(text, bool(n % 2)) for n in range(3) for text in QUESTIONS))

    assert asyncio.run(together()) == alone * 3


def test_logprobs_are_those_of_the_model(client: Any) -> None:
    bot = GPT2Chatbot("demo")
    for text in QUESTIONS:
        choice = chat(client, asked(text), temperature=0.8, seed=1, logprobs=True, top_logprobs=5).choices[0]
        scored, tokenizer = choice.logprobs.content, Tokenizer.gpt2()
        assert b"".join(bytes(token.bytes) for token in scored).decode() == choice.message.content
        for token in scored:
            tops = [top.logprob for top in token.top_logprobs]
            assert len(tops) == 5 and tops == sorted(tops, reverse=True) and sum(map(math.exp, tops)) <= 1.0001
            assert token.logprob <= tops[0] + 1e-6
        bot.reset()
        bot.chat(text, max_tokens=1)
        assert bot.answer
        prompt = bot.answer.prompt
        truth = explain(bot.decoder, prompt, tokenizer.encode(bot.template.lead + choice.message.content))
        assert [token.logprob for token in scored] == pytest.approx([one.logprob for one in truth], abs=1e-3)
    parts = [
        chunk.choices[0].logprobs.content
        for chunk in chat(client, asked(text), temperature=0.8, seed=1, logprobs=True, top_logprobs=5, stream=True)
        if chunk.choices[0].logprobs
    ]
    assert [token for part in parts for token in part] == scored


def test_logprobs_end_where_a_stop_string_begins(client: Any) -> None:
    whole = said(client, temperature=0)
    for at in range(3, len(whole) - 2, 9):
        choice = chat(client, temperature=0, stop=whole[at : at + 2], logprobs=True).choices[0]
        joined = b"".join(bytes(token.bytes) for token in choice.logprobs.content).decode()
        assert joined.startswith(choice.message.content) and whole.startswith(joined)
        assert len(joined) - len(choice.message.content) < 20


def test_biases_forbid_and_force(client: Any) -> None:
    tokenizer, whole = Tokenizer.gpt2(), said(client, temperature=0)
    forced = tokenizer.encode(" yes")[0]
    assert said(client, logit_bias={str(forced): 100}, max_tokens=4, temperature=0) == "yes yes yes yes"
    used = {str(token): -100 for token in tokenizer.encode(f" {whole}")}
    other = tokenizer.encode(f" {said(client, temperature=0, logit_bias=used)}")
    assert other and not set(other) & set(map(int, used))


def test_penalties_repeat_less(client: Any) -> None:
    looping = {"messages": asked("a a a a a"), "temperature": 0, "max_tokens": 60}

    def variety(**options: Any) -> float:
        ids = Tokenizer.gpt2().encode(said(client, **looping, extra_body={"ignore_eos": True}, **options))
        return len(set(ids)) / len(ids)

    plain = variety()
    assert variety(frequency_penalty=2) > plain and variety(presence_penalty=2) > plain
    penalized = {"ignore_eos": True, "repetition_penalty": 1.5}
    ids = Tokenizer.gpt2().encode(said(client, **looping, extra_body=penalized))
    assert len(set(ids)) / len(ids) > plain


@pytest.mark.parametrize("name", ["max_tokens", "max_completion_tokens"])
def test_how_long_and_why_it_ended(client: Any, name: str) -> None:
    options = {"max_tokens": openai.omit, "temperature": 0}
    short = chat(client, **{**options, name: 3})
    assert short.choices[0].finish_reason == "length" and short.usage.completion_tokens == 3
    ended = chat(client, asked("What is your name?"), **{**options, name: 400})
    assert ended.choices[0].finish_reason == "stop" and ended.usage.completion_tokens < 400
    on = chat(client, asked("What is your name?"), **{**options, name: 90}, extra_body={"ignore_eos": True})
    assert on.choices[0].finish_reason == "length" and on.usage.completion_tokens == 90


def test_the_second_turn_of_a_chat_finds_the_first_one_read(client: Any) -> None:
    messages = [{"role": "system", "content": "You are a sailor from the north. " * 3}, *asked("What do you like?")]
    cached = []
    for _ in range(4):
        answer = chat(client, messages, temperature=0, max_tokens=30)
        cached.append(answer.usage.prompt_tokens_details.cached_tokens)
        assert cached[-1] < answer.usage.prompt_tokens
        messages += [{"role": "assistant", "content": answer.choices[0].message.content}, *asked("And what else?")]
    assert cached == sorted(cached) and cached[-1] > cached[1] > 0


def test_options_besides_openais(client: Any) -> None:
    greedy = said(client, temperature=0)
    assert said(client, temperature=1.5, extra_body={"top_k": 1}) == greedy
    assert said(client, temperature=1.5, extra_body={"min_p": 1.0}) == greedy
    assert said(client, temperature=1.5, top_p=1e-6) == greedy
    unknown = {"top_k": 1, "mirostat": 2, "service_tier": "flex", "store": False, "metadata": {"a": "b"}}
    assert said(client, temperature=1.5, extra_body=unknown, user="someone") == greedy


def test_content_parts_and_the_role_developer(client: Any) -> None:
    parts = [{"type": "text", "text": "What is "}, {"type": "text", "text": "your name?"}]
    plain = [{"role": "system", "content": "You are a cat."}, *asked("What is your name?")]
    made = [{"role": "developer", "content": "You are a cat."}, {"role": "user", "content": parts}]
    assert said(client, made, temperature=0) == said(client, plain, temperature=0)
    assert chat(client, made).usage.prompt_tokens == chat(client, plain).usage.prompt_tokens


# -- texts ---------------------------------------------------------------------------------------------------------


def test_texts_of_many_prompts(client: Any) -> None:
    tokenizer, prompts = Tokenizer.gpt2(), ["The sea is", "My dog", "One, two,"]
    each = [complete(client, prompt, temperature=0).choices[0].text for prompt in prompts]
    assert [choice.text for choice in complete(client, prompts, temperature=0).choices] == each
    ids = [tokenizer.encode(prompt) for prompt in prompts]
    assert [choice.text for choice in complete(client, ids, temperature=0).choices] == each
    assert complete(client, ids[0], temperature=0).choices[0].text == each[0]
    twice = complete(client, prompts, temperature=0, n=2, echo=True)
    expected = [prompt + text for prompt, text in zip(prompts, each, strict=True) for _ in range(2)]
    assert [choice.text for choice in twice.choices] == expected
    assert twice.usage.prompt_tokens == sum(map(len, ids))
    pieces = dict.fromkeys(range(6), "")
    for chunk in complete(client, prompts, temperature=0, n=2, echo=True, stream=True):
        for choice in chunk.choices:
            pieces[choice.index] += choice.text
    assert list(pieces.values()) == expected
    for at in range(0, len(each[0]) - 3, 5):
        stop = each[0][at : at + 3]
        cut = complete(client, prompts[0], temperature=0, stop=stop).choices[0]
        assert cut.text == each[0][: each[0].index(stop)] and cut.finish_reason == "stop"


@pytest.mark.parametrize("prompt", ["Hello my friend", "Grüße 😀 from", "The"])
@pytest.mark.parametrize("echo", [True, False])
def test_places_and_scores_of_a_text(client: Any, prompt: str, echo: bool) -> None:
    (choice,) = complete(client, prompt, temperature=0, echo=echo, logprobs=3).choices
    scores, begin = choice.logprobs, len(Tokenizer.gpt2().encode(prompt)) if echo else 0
    assert len(scores.tokens) == len(scores.text_offset) == len(scores.token_logprobs)
    assert begin + 12 >= len(scores.tokens) == len(scores.top_logprobs) > begin + 3
    assert scores.text_offset == sorted(scores.text_offset)
    for token, offset in zip(scores.tokens, scores.text_offset, strict=True):
        assert "\\x" in token or choice.text[offset:].startswith(token)
    scored = list(zip(scores.tokens, scores.token_logprobs, scores.top_logprobs, strict=True))
    if echo:
        assert scored.pop(0)[1:] == (None, None)
    for at, (token, logprob, tops) in enumerate(scored, 1):
        assert tops[token] == logprob and len(tops) in (3, 4) and (len(tops) == 3 or logprob == min(tops.values()))
        assert at < begin or logprob == pytest.approx(max(tops.values()))
    parts = [c.choices[0].logprobs for c in complete(client, prompt, temperature=0, echo=echo, logprobs=3, stream=True)]
    assert [token for part in parts for token in part.tokens] == scores.tokens
    assert [place for part in parts for place in part.text_offset] == scores.text_offset
    (bare,) = complete(client, prompt, temperature=0, echo=echo, logprobs=0).choices
    assert bare.logprobs.token_logprobs == scores.token_logprobs


def test_prompts_are_scored_as_a_harness_does_it(client: Any) -> None:
    """lm-eval sums `token_logprobs[context:-1]` of the echo of ids behind which one more token is drawn."""
    tokenizer, bot = Tokenizer.gpt2(), GPT2Chatbot("demo")
    context, sequel = tokenizer.encode("The dog ran to the"), tokenizer.encode(" house and barked.")
    bot.open("demo")
    truth = [one.logprob for one in explain(bot.decoder, context, sequel)]
    ids = [[*context, *sequel], [*context, *sequel][:-1]]
    answer = complete(client, ids, max_tokens=1, temperature=0, echo=True, logprobs=1, seed=1234)
    for choice, length in zip(answer.choices, (len(sequel), len(sequel) - 1), strict=True):
        found = choice.logprobs.token_logprobs[len(context) : -1]
        assert found == pytest.approx(truth[:length], abs=1e-3)
        tops = choice.logprobs.top_logprobs[len(context) : -1]
        assert all(max(each.values()) >= one for each, one in zip(tops, found, strict=True))
    alone = complete(client, ids[0], max_tokens=0, echo=True, logprobs=1)
    assert alone.choices[0].logprobs.token_logprobs[len(context) :] == pytest.approx(truth, abs=1e-3)
    assert alone.choices[0].text == "The dog ran to the house and barked." and alone.usage.completion_tokens == 0


# -- models --------------------------------------------------------------------------------------------------------


def test_models(client: Any) -> None:
    assert [model.id for model in client.models.list()] == ["tiny", MODEL]
    assert client.models.retrieve("tiny").object == "model" and client.models.retrieve(MODEL).owned_by == MODEL
    with pytest.raises(openai.NotFoundError, match="not served here") as caught:
        client.models.retrieve("gpt-9/large")
    assert caught.value.code == "model_not_found"


def test_the_asynchronous_client(server: Served, client: Any) -> None:
    async def ask() -> None:
        async with openai.AsyncOpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as later:
            answer = await chat(later, temperature=0)
            assert answer.choices[0].message.content == said(client, temperature=0)
            text = await complete(later, "The sea is", temperature=0)
            assert text.choices[0].text == complete(client, "The sea is", temperature=0).choices[0].text
            assert [model.id async for model in later.models.list()] == ["tiny", MODEL]
            with pytest.raises(openai.BadRequestError):
                await chat(later, [])

    asyncio.run(ask())
