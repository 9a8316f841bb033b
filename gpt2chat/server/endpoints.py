"""What each path does: a request is checked, asked of the engine and written down."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from functools import partial
from typing import Any

from starlette.requests import Request
from starlette.responses import JSONResponse, Response

from gpt2chat.conversation import Message, render_prompt
from gpt2chat.errors import GPT2ChatError
from gpt2chat.server import openapi
from gpt2chat.server.answers import Answering, Placed, Question, late
from gpt2chat.server.exchange import Exchange
from gpt2chat.server.faults import ApiError
from gpt2chat.server.nanochat import LooseRequest, parse_nanochat
from gpt2chat.server.protocol import (
    ChatRequest,
    CompletionRequest,
    ExplainRequest,
    FeedbackRequest,
    StreamOptions,
    parse,
)
from gpt2chat.server.replies import at_leaving, unless_left
from gpt2chat.server.service import Service
from gpt2chat.server.shapes import ChatShape, Echo, NanochatShape, TextShape
from gpt2chat.server.wire import DONE, Scores, event
from gpt2chat.streams import Drawn

USUAL_TEXT = 16  # tokens of a completion when nothing is said, as OpenAI's API has it


def service_of(request: Request) -> Service:
    """Return the service that answers."""
    service: Service = request.app.state.service
    return service


def client_of(request: Request) -> str:
    """Return who asks, as the guard found out."""
    return str(request.scope.get("state", {}).get("client", "local"))


async def chat(request: Request) -> Response:
    """POST /v1/chat/completions."""
    wanted = parse(ChatRequest, await request.body())
    logprobs = (wanted.top_logprobs or 0) if wanted.logprobs else None
    most = wanted.max_completion_tokens or wanted.max_tokens
    return await _chat(request, wanted, most, logprobs, ChatShape, bool(wanted.stream))


async def nanochat(request: Request) -> Response:
    """POST /chat/completions, which streams unless it is told not to."""
    wanted = parse_nanochat(await request.body())
    logprobs = (wanted.top_logprobs or 0) if wanted.logprobs else None
    return await _chat(request, wanted, wanted.max_tokens, logprobs, NanochatShape, wanted.stream is not False)


async def _chat(
    request: Request,
    wanted: ChatRequest | LooseRequest,
    most: int | None,
    logprobs: int | None,
    shape: type[ChatShape],
    streamed: bool,
) -> Response:
    service = service_of(request)
    await service.turn()
    service.check_name(wanted.model)
    config = wanted.generation(service.settings.generation, most)
    messages = [message.message() for message in wanted.messages]
    prompt, dropped = await service.prompt(messages, config.max_new_tokens, partial(_settle, request))
    config = service.drawing(messages, config)
    template = service.template
    stop = (*template.stop, *wanted.stops())
    needed = 0 if logprobs is None and service.settings.fallback else logprobs
    question = Question(prompt, config, stop, template.lead, needed, client_of(request), bool(wanted.ignore_eos))
    written = shape(service.settings.model, logprobs is not None, {"dropped_turns": dropped})
    count = wanted.n or 1
    drawn = config.logit_bias or wanted.ignore_eos  # what only drawing token by token can give
    if service.grounding:
        answers = await _grounded(request, question, messages, count, written.extra)
    elif not drawn and (replies := await service.replies(messages, config, count)):
        answers = service.give(question, [reply.answer for reply in replies])
    else:
        answers = service.ask(question, count)
    written.workers = [answer.stream.worker for answer in answers]
    for answer in answers:
        answer.judge = None if answer.given else service.doubting(messages, written.extra)
    at_leaving(request.scope, (answer.stream.drop for answer in answers))
    exchange = Exchange(service, answers, written, [messages[-1].content])
    return await exchange.respond(request.receive, wanted.stream_options, streamed)


async def _grounded(
    request: Request, question: Question, messages: Sequence[Message], count: int, told: dict[str, Any]
) -> list[Answering]:
    """Give a taught answer or the fallback, which the model has a say in where the question leaves it open."""
    service = service_of(request)
    grounding = service.grounding
    assert grounding
    matches = await asyncio.to_thread(grounding.candidates, messages[-1].content)
    logprobs = None
    if len(matches) > 1:
        alone: Sequence[int] = question.prompt
        if not grounding.matcher.depends(messages[-1].content):
            system = [message for message in messages[:-1] if message.role == "system"]
            alone, _ = await service.prompt([*system, messages[-1]], question.config.max_new_tokens)

        async def work() -> list[float]:
            return [await _likelihood(request, alone, question.lead, match.answer) for match in matches]

        logprobs = await unless_left(request.receive, work())
    chosen = await asyncio.to_thread(grounding.decide, matches, logprobs)
    told |= {"confidence": round(chosen.confidence, 4), "fallback": not chosen.given}
    return service.give(question, [chosen.text] * count)


async def _likelihood(request: Request, prompt: Sequence[int], lead: str, answer: str) -> float:
    """Return the mean log-probability of an answer's tokens, as far as there is room for them."""
    found = await _logprobs(request, prompt, service_of(request).tokenizer.encode(lead + answer))
    return sum(found) / max(1, len(found))


async def _logprobs(request: Request, prompt: Sequence[int], answer: Sequence[int]) -> list[float]:
    """Return how likely the model finds each id of an answer, as far as there is room for them."""
    ids = answer[: service_of(request).context_length - len(prompt)]
    return [drawn.logprob or 0.0 for drawn in await _scores(request, [*prompt, *ids], len(prompt), 0)]


async def _settle(request: Request, messages: Sequence[Message]) -> None:
    """Let the model have its say in how questions are read, where it knows many ways to ask."""
    service = service_of(request)
    matcher, tokenizer, template = service.matcher, service.tokenizer, service.template
    if matcher is None or not matcher.has_many:
        return
    for message in messages:
        if message.role != "user" or not (matches := await asyncio.to_thread(matcher.undecided, message.content)):
            continue
        alone = render_prompt([message], template, tokenizer)
        if len(alone) < service.context_length:
            answers = [[*tokenizer.encode(template.lead + match.answer), tokenizer.end_id] for match in matches]
            found = [await unless_left(request.receive, _logprobs(request, alone, answer)) for answer in answers]
            matcher.decide(message.content, matches, [sum(each) for each in found])


async def completion(request: Request) -> Response:
    """POST /v1/completions."""
    wanted = parse(CompletionRequest, await request.body())
    service = service_of(request)
    await service.turn()
    service.check_name(wanted.model)
    tokenizer, scored = service.tokenizer, wanted.logprobs is not None
    prompts = [await service.encode(one) if isinstance(one, str) else one for one in wanted.prompt]
    prompts = [ids or [tokenizer.end_id] for ids in prompts]  # GPT-2 begins a text behind the end of another
    for ids in prompts:
        service.check_prompt(ids, room=wanted.max_tokens != 0)
    echoes = [await _echo(request, ids, wanted.logprobs) for ids in prompts] if wanted.echo else []
    each = wanted.n or 1
    written = TextShape(service.settings.model, scored, {"dropped_turns": 0}, len(prompts), each, echoes)
    if wanted.max_tokens == 0:
        whole = written.echoed(sum(map(len, prompts)))
        if not wanted.stream:
            return JSONResponse(whole)
        took = whole.pop("usage")
        told = (
            event({**whole, "choices": [], "usage": took})
            if (wanted.stream_options or StreamOptions()).include_usage
            else b""
        )
        return Response(event(whole) + told + DONE, media_type="text/event-stream")
    config = wanted.generation(service.settings.generation, wanted.max_tokens or USUAL_TEXT)
    answers = list[Answering]()
    try:
        for number, ids in enumerate(prompts):
            question = Question(
                ids, config, wanted.stops(), "", wanted.logprobs, client_of(request), bool(wanted.ignore_eos)
            )
            answers += service.ask(question, each, number * each)
    except ApiError:
        service.leave(answers)
        raise
    at_leaving(request.scope, (answer.stream.drop for answer in answers))
    exchange = Exchange(service, answers, written, [tokenizer.decode(ids) for ids in prompts])
    return await exchange.respond(request.receive, wanted.stream_options, bool(wanted.stream))


async def _echo(request: Request, ids: Sequence[int], logprobs: int | None) -> Echo:
    """Return a prompt as it is repeated, with its tokens if they are scored: nothing predicts the first one."""
    service = service_of(request)
    decoder = service.tokenizer.stream_decoder()
    parts, places, place = list[str](), list[int](), 0
    for token in ids:
        places.append(place)
        parts.append(decoder.push(token))
        place += len(parts[-1])
    text = "".join(parts) + decoder.flush()
    if logprobs is None:
        return Echo(text)
    drawn = [Drawn(ids[0], None, ())]
    if len(ids) > 1:
        drawn += await unless_left(request.receive, _scores(request, ids, 1, logprobs))
    return Echo(text, [Placed(each, at) for each, at in zip(drawn, places, strict=True)])


async def _scores(request: Request, ids: Sequence[int], start: int, top: int) -> list[Drawn]:
    """Return how likely the model finds the ids from `start` on."""
    stream = service_of(request).score(ids, start, top, client_of(request))
    at_leaving(request.scope, [stream.drop])
    found = list[Drawn]()
    with stream:
        while await stream.wait():
            found += stream.take()
    if len(found) != len(ids) - start:
        raise late()
    return found


async def explain(request: Request) -> Response:
    """POST /explain: how likely the model found each token of the last answer of a conversation."""
    wanted = parse(ExplainRequest, await request.body())
    *asked, answer = [message.message() for message in wanted.messages]
    service = service_of(request)
    said = await service.encode(service.template.lead + answer.content)
    prompt, _ = await service.prompt(asked, service.settings.generation.max_new_tokens)
    room = service.context_length - len(prompt)
    found = await unless_left(request.receive, _scores(request, [*prompt, *said[:room]], len(prompt), 5))
    lead = len(service.template.lead)
    tokens = [Placed(each, 0, 0 if at else lead) for at, each in enumerate(found)]
    return JSONResponse({"tokens": Scores().chat(tokens)["content"]})


async def feedback(request: Request) -> Response:
    """POST /feedback: keep a judged answer as data to learn from."""
    wanted = parse(FeedbackRequest, await request.body())
    service = service_of(request)
    if service.feedback is None:
        raise ApiError(404, "feedback is not collected here: gpt2chat serve --feedback FILE does")
    messages = [message.message() for message in wanted.messages]
    try:
        await asyncio.to_thread(service.judge, messages, wanted.rating == "good", wanted.instead)
    except GPT2ChatError as error:  # the disk, or the bound of the file
        raise ApiError(507, str(error)) from error
    return JSONResponse({"saved": True})


async def models(request: Request) -> Response:
    """GET /v1/models."""
    service = service_of(request)
    return JSONResponse({"object": "list", "data": [_model(service, name) for name in service.names]})


async def model(request: Request) -> Response:
    """GET /v1/models/{name}."""
    service, name = service_of(request), request.path_params["name"]
    service.check_name(name or " ")  # a body without a name means this model, a path does not
    return JSONResponse(_model(service, name))


def _model(service: Service, name: str) -> dict[str, Any]:
    return {"id": name, "object": "model", "created": service.created, "owned_by": "gpt2chat"}


async def health(request: Request) -> Response:
    """GET /health: answers at any time, also while the model loads."""
    service = service_of(request)
    stats = service.figures.stats()
    free = stats["available_workers"] if service.ready else 0
    told = {"status": "ok", "ready": service.ready, "num_gpus": service.workers, "available_workers": free}
    return JSONResponse(told)


async def stats(request: Request) -> Response:
    """GET /stats."""
    return JSONResponse(service_of(request).figures.stats())


async def metrics(request: Request) -> Response:
    """GET /metrics."""
    return Response(service_of(request).figures.text(), media_type="text/plain; version=0.0.4")


async def settings(request: Request) -> Response:
    """GET /settings: what the page should know."""
    return JSONResponse(service_of(request).told())


async def description(request: Request) -> Response:
    """GET /openapi.json: the server, described for programs."""
    return JSONResponse(openapi.document(service_of(request).names, client_of(request).startswith("key")))
