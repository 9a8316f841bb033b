"""The server described for programs: OpenAPI 3.1, made from the types of what it takes and what it sends.

Where a type has checks of its own, `EXACTLY` says in JSON Schema (2020-12) what they let through. Two things no schema
can say are in the descriptions: that an answer stands last, and how many tokens the context has.
"""

from __future__ import annotations

from collections.abc import Sequence
from http import HTTPStatus
from typing import Any

from pydantic.json_schema import models_json_schema

from gpt2chat.server import nanochat, objects, protocol
from gpt2chat.version import __version__

Schema = dict[str, Any]
NULL: Schema = {"type": "null"}
STOP: Schema = {"type": "string", "maxLength": protocol.STOP_LENGTH}
PART: Schema = {
    "type": "object",
    "properties": {"type": {"const": "text"}, "text": {"type": "string"}},
    "required": ["type", "text"],
}
TOKEN_ID = "^([0-9]{1,4}|[1-4][0-9]{4}|50[01][0-9]{2}|502[0-4][0-9]|5025[0-6])$"
ID: Schema = {"type": "integer", "minimum": 0, "maximum": 50256}
IDS: Schema = {"type": "array", "items": ID, "minItems": 1}
TEXT_LIMIT: Schema = {"type": "string", "maxLength": nanochat.CHARACTERS}


def listed(items: Schema, least: int, most: int) -> Schema:
    """Return a list of so many."""
    return {"type": "array", "items": items, "minItems": least, "maxItems": most}


SHARED: Schema = {
    "stop": {"anyOf": [STOP, listed(STOP, 0, protocol.MOST_STOPS), NULL]},
    "logit_bias": {
        "anyOf": [
            {
                "type": "object",
                "maxProperties": protocol.MOST_BIASED,
                "propertyNames": {"pattern": TOKEN_ID},
                "additionalProperties": {"type": "number", "minimum": -100, "maximum": 100},
            },
            NULL,
        ]
    },
    **{name: {"enum": list(idle)} for name, idle in protocol.NOT_SERVED.items()},
}
# type -> field -> what it takes; what is said here takes the place of what pydantic says
EXACTLY: dict[str, Schema] = {
    "ChatMessage": {
        "role": {"enum": list(protocol.ROLES)},
        "content": {"anyOf": [{"type": "string"}, {"type": "array", "items": PART}, NULL]},
    },
    "ChatRequest": SHARED,
    "CompletionRequest": {
        **SHARED,
        "prompt": {
            "anyOf": [{"type": "string"}, IDS, listed({"anyOf": [{"type": "string"}, IDS]}, 1, protocol.MOST_PROMPTS)]
        },
        "best_of": {"enum": [None, 1]},
    },
    "LooseMessage": {
        "role": {"enum": ["user", "assistant", "system"]},
        "content": TEXT_LIMIT,
    },
    "LooseRequest": {
        **SHARED,
        "messages": listed({"$ref": "#/components/schemas/LooseMessage"}, 1, nanochat.MESSAGES),
        "temperature": {"anyOf": [{"type": "number", "minimum": 0, "maximum": nanochat.TEMPERATURE}, NULL]},
        "top_k": {"anyOf": [{"type": "integer", "minimum": 0, "maximum": nanochat.TOP_K}, NULL]},
        "max_tokens": {"anyOf": [{"type": "integer", "minimum": 1, "maximum": nanochat.TOKENS}, NULL]},
    },
}
# what fields must be together
TOGETHER: dict[str, Schema] = {
    "ChatRequest": {
        "if": {"properties": {"top_logprobs": {"type": "integer", "minimum": 1}}, "required": ["top_logprobs"]},
        "then": {"properties": {"logprobs": {"const": True}}, "required": ["logprobs"]},
    },
    "CompletionRequest": {
        "if": {"properties": {"max_tokens": {"const": 0}}, "required": ["max_tokens"]},
        "then": {"properties": {"echo": {"const": True}}, "required": ["echo"]},
    },
    "LooseMessage": {
        "if": {"properties": {"role": {"const": "assistant"}}},
        "else": {"properties": {"content": {"minLength": 1}}, "required": ["content"]},
    },
}
TAKEN = (
    protocol.ChatRequest,
    protocol.CompletionRequest,
    protocol.ExplainRequest,
    protocol.FeedbackRequest,
    nanochat.LooseRequest,
)
SENT = (
    objects.ErrorObject,
    objects.ChatCompletion,
    objects.TextCompletion,
    objects.Explanation,
    objects.Saved,
    objects.ServedModel,
    objects.ServedModels,
    objects.Health,
    objects.Statistics,
    objects.PageSettings,
)
FAULTS = (400, 401, 403, 404, 408, 413, 415, 429, 431, 500, 503)
READ_FAULTS = (400, 401, 403, 404, 431, 500, 503)
EVENTS = "Server-sent events: each is `data: ` and a JSON object, the last one "
EVENT: Schema = {"type": "object", "properties": {"data": {"type": "string", "minLength": 2}}, "required": ["data"]}


def document(names: Sequence[str], keyed: bool) -> Schema:
    """Return the description of a server of a model with these names; with `keyed` it asks for keys."""
    paths = {path: {"get": read(*given)} for path, given in READS.items()}
    paths |= {path: {"post": posted(*given)} for path, given in POSTS.items()}
    name = {
        "name": "name",
        "in": "path",
        "required": True,
        "schema": {"type": "string", "minLength": 1},
        "examples": {each: {"value": each} for each in names},
    }
    paths["/v1/models/{name}"]["get"]["parameters"] = [name]
    paths["/feedback"]["post"]["responses"]["507"] = fault(507)
    for path in ("/", "/health"):
        paths[path]["get"]["security"] = []
        del paths[path]["get"]["responses"]["401"]
    told: Schema = {
        "openapi": "3.1.0",
        "info": {"title": "gpt2chat", "version": __version__, "description": f"Serves {names[0]}."},
        "paths": paths,
        "components": {"schemas": schemas(names)},
    }
    if keyed:
        told["components"]["securitySchemes"] = {"key": {"type": "http", "scheme": "bearer"}}
        told["security"] = [{"key": []}]
    return told


def schemas(names: Sequence[str]) -> Schema:
    """Return all types by name."""
    modes: Any = [(kind, "validation") for kind in TAKEN] + [(kind, "serialization") for kind in SENT]
    _, made = models_json_schema(modes, ref_template="#/components/schemas/{model}")
    found: dict[str, Schema] = made["$defs"]
    for name, fields in EXACTLY.items():
        for field, exact in fields.items():
            kept = {key: value for key, value in found[name]["properties"].get(field, {}).items() if key == "title"}
            found[name]["properties"][field] = {**kept, **exact}
        if "model" in found[name]["properties"]:
            found[name]["properties"]["model"] = {"enum": [None, "", *names]}
    for name, rule in TOGETHER.items():
        found[name] |= rule
    return found


def ref(name: str) -> Schema:
    """Return what stands for a type."""
    return {"$ref": f"#/components/schemas/{name}"}


def header(words: str, required: bool = True, **schema: Any) -> Schema:
    """Return a header of an answer."""
    return {"description": words, "required": required, "schema": {"type": "string", **schema}}


HEADERS: Schema = {
    "x-request-id": header("The request's own, or one that was made for it.", minLength=1),
    "cache-control": header("Nothing is kept.", const="no-store"),
    "x-content-type-options": header("Types are what they are said to be.", const="nosniff"),
}
FAULT_HEADERS = {
    **HEADERS,
    "x-should-retry": header("Whether the same request may go well later.", False, enum=["true", "false"]),
}


def fault(status: int) -> Schema:
    """Return the answer that is an error."""
    headers = dict(FAULT_HEADERS)
    if status in (429, 503):
        headers["retry-after"] = header("Seconds.", required=status == 429, pattern="^[0-9]+$")
    if status == 401:
        headers["www-authenticate"] = header("What is expected.", const="Bearer")
    content = {"application/json": {"schema": ref("ErrorObject")}}
    return {"description": HTTPStatus(status).phrase, "headers": headers, "content": content}


def read(words: str, kind: str, form: str = "application/json") -> Schema:
    """Return a GET."""
    schema = ref(kind) if kind[:1].isupper() else {"type": kind}
    answer = {"description": "What was asked for", "headers": HEADERS, "content": {form: {"schema": schema}}}
    return {"summary": words, "responses": {"200": answer, **{str(status): fault(status) for status in READ_FAULTS}}}


def posted(words: str, taken: str, sent: str, events: str = "") -> Schema:
    """Return a POST; `events` says how a stream of its answers ends, if there may be one."""
    content: Schema = {"application/json": {"schema": ref(sent)}}
    headers = dict(HEADERS)
    if events:
        content["text/event-stream"] = {"schema": EVENT}
        headers["x-gpt2chat-dropped-turns"] = header("Turns that left to make the rest fit.", False, pattern="^[0-9]+$")
        words = f"{words} {EVENTS}{events}."
    answer = {"description": "The answer", "headers": headers, "content": content}
    body = {"required": True, "content": {"application/json": {"schema": ref(taken)}}}
    faults = {str(status): fault(status) for status in FAULTS}
    return {"summary": words, "requestBody": body, "responses": {"200": answer, **faults}}


READS: dict[str, tuple[str, ...]] = {
    "/": ("The page.", "string", "text/html"),
    "/health": ("Whether it lives; answers at any time.", "Health"),
    "/stats": ("Figures of workers and engines.", "Statistics"),
    "/metrics": ("Figures for Prometheus.", "string", "text/plain"),
    "/settings": ("What the page should know.", "PageSettings"),
    "/openapi.json": ("This description.", "object"),
    "/v1/models": ("The models.", "ServedModels"),
    "/v1/models/{name}": ("One model.", "ServedModel"),
}
POSTS: dict[str, tuple[str, ...]] = {
    "/v1/chat/completions": (
        "Answer a chat; all of it must fit the context, but whole turns, the oldest first, leave to make it fit.",
        "ChatRequest",
        "ChatCompletion",
        "is `[DONE]`, or an error",
    ),
    "/v1/completions": (
        "Go on with texts, which must fit the context.",
        "CompletionRequest",
        "TextCompletion",
        "is `[DONE]`, or an error",
    ),
    "/chat/completions": (
        "Answer a chat as nanochat's server does: as a stream unless `stream` is false.",
        "LooseRequest",
        "ChatCompletion",
        "has `done`, or is an error",
    ),
    "/explain": (
        "Tell how likely the model found the answer that is the last message.",
        "ExplainRequest",
        "Explanation",
    ),
    "/feedback": ("Keep a judgement of the answer that is the last message.", "FeedbackRequest", "Saved"),
}
