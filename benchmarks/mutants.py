"""Bodies that a server should refuse, or answer in good order: valid requests with something wrong in them."""

from __future__ import annotations

import copy
import json
import random
from collections.abc import Callable

SAID = [{"role": "user", "content": "Where does the river go?"}]
ANSWERED = [*SAID, {"role": "assistant", "content": "To the sea."}]
VALID: dict[str, list[dict[str, object]]] = {
    "/v1/chat/completions": [
        {"messages": SAID, "max_tokens": 2},
        {"messages": SAID, "max_tokens": 2, "stream": True, "stream_options": {"include_usage": True}, "seed": 7},
        {"model": "gpt2chat", "messages": ANSWERED[::-1], "max_completion_tokens": 1, "temperature": 0, "stop": ["a"]},
        {"messages": SAID, "max_tokens": 1, "logprobs": True, "top_logprobs": 3, "logit_bias": {"11": -5}, "n": 2},
        {"messages": [{"role": "system", "content": "Be brief."}, *SAID], "max_tokens": 1, "presence_penalty": 1.5},
        {"messages": [{"role": "user", "content": [{"type": "text", "text": "Hi"}]}], "max_tokens": 1, "min_p": 0.1},
    ],
    "/v1/completions": [
        {"prompt": "Once upon", "max_tokens": 2},
        {"prompt": ["a", "b"], "max_tokens": 1, "logprobs": 2, "echo": True, "stream": True},
        {"prompt": [464, 3290], "max_tokens": 1, "top_p": 0.9, "repetition_penalty": 1.1, "stop": "."},
    ],
    "/chat/completions": [
        {"messages": SAID, "max_tokens": 2},
        {"messages": SAID, "max_tokens": 2, "stream": False, "top_k": 3, "temperature": 1.0},
    ],
    "/explain": [{"messages": ANSWERED}],
    "/feedback": [{"messages": ANSWERED, "rating": "good"}, {"messages": ANSWERED, "rating": "bad", "instead": "Up"}],
}
PATHS = [path for path, bodies in VALID.items() for _ in bodies] * 4 + ["/v1/chat/completions"] * 16
NAMES = sorted({name for bodies in VALID.values() for body in bodies for name in body} | {"tools", "user", "best_of"})
SMALL = [0, 1, -1, 2, 0.5, 1.0, True, False, None, "", "1", "user", [], {}, [None], {"a": 1}, "a\u0000b", "😀", [1, 2]]
NEAR: dict[str, list[object]] = {
    "temperature": [0, 0.0, 1, 2, 2.0001, 5e-324, -0.0],
    "top_p": [1, 1.0, 1e-9, 0, 0.3],
    "top_k": [0, -1, 1, 200, 201, 50257, 1 << 20],
    "min_p": [0, 1, 0.999],
    "seed": [0, -1, 2**63 - 1, -(2**63), 2**63],
    "n": [1, 2, 0, 9],
    "stop": ["", [], ["\n"] * 4, ["\n"] * 5, "x" * 64, "x" * 65, "\u0000"],
    "logit_bias": [{}, {"0": 100}, {"50256": -100, "50255": 100}, {"50257": 1}, {"-1": 1}, {"٣": 1}, {"1": 1e308}],
    "repetition_penalty": [0.01, 100, 1, 0.0099],
    "max_tokens": [1, 2, 3, 0],
    "logprobs": [True, False, 0, 5, 20, 21],
    "top_logprobs": [0, 20, 21],
    "messages": [
        SAID * 3,
        ANSWERED,
        SAID * 501,
        [{"role": "developer", "content": "\u200d" * 40}, *SAID],
        [{}],
        SAID[0],
    ],
    "prompt": ["", [""], [0], [50256], [50257], [[1], [2, 3]], ["a", [1]], [[]], "\ufffd\u202e", [2**31], ["a"] * 129],
}
RAW = [
    b"NaN", b"Infinity", b"-Infinity", b"1e999", b"-1e999", b"1E400", b"9" * 400, b"-" + b"9" * 400, b"0." + b"0" * 400,
    b'"\\ud800"', b'"\\udfff\\ud800"', b'"\\ud83d"', b'"\xff\xfe"', b'"\xed\xa0\x80"', b'"\x00"', b'"\\u0000"', b"01",
    b"+1", b".5", b"1.", b"'a'", b"undefined", b"nul", b"[", b"}", b"/**/1", b'"\xf8\x88\x80\x80\x80"', b"-0", b"-",
    b'"\\x41"', b"[1,]", b'{"a":1,"a":2}', b"{1:2}", b'"\n"', b"1e-400", b"true false", b"\xef\xbb\xbf1", b"",
]  # fmt: skip
MARK = "\ue000raw\ue000"
MARKED = json.dumps(MARK).encode()


def mutant(rng: random.Random) -> tuple[str, bytes]:
    """Return a path and a body for it."""
    path = rng.choice(PATHS)
    body = rng.choice(VALID[path])
    act = rng.choices(ACTS, WEIGHTS)[0]
    return path, act(rng, body)


def near(rng: random.Random, body: dict[str, object]) -> bytes:
    """Give one or two fields other values, most of them allowed."""
    body = dict(body)
    for _ in range(rng.randint(1, 2)):
        name = rng.choice(NEAR_NAMES)
        body[name] = rng.choice(NEAR[name])
    return json.dumps(body).encode()


def mistyped(rng: random.Random, body: dict[str, object]) -> bytes:
    """Put another type somewhere, at any depth, or leave something out."""
    body = copy.deepcopy(body)
    place, key = somewhere(rng, body)
    if rng.random() < 0.2:
        del place[key]
    else:
        place[key] = rng.choice(SMALL)
    if rng.random() < 0.3:
        body[rng.choice(NAMES)] = rng.choice(SMALL)
    return json.dumps(body).encode()


def raw(rng: random.Random, body: dict[str, object]) -> bytes:
    """Put bytes in place of a value that no JSON writer would write."""
    body = copy.deepcopy(body)
    place, key = somewhere(rng, body)
    place[key] = MARK
    return json.dumps(body).encode().replace(MARKED, rng.choice(RAW))


def damaged(rng: random.Random, body: dict[str, object]) -> bytes:
    """Change, drop, repeat or insert some bytes."""
    data = bytearray(json.dumps(body).encode())
    for _ in range(rng.choice((1, 1, 2, 5))):
        at, what = rng.randrange(len(data)), rng.random()
        if what < 0.4:
            data[at] ^= 1 << rng.randrange(8)
        elif what < 0.6:
            data[at] = rng.randrange(256)
        elif what < 0.75:
            del data[at : at + rng.randint(1, 8)]
        elif what < 0.9:
            data[at:at] = rng.choice((b"\x00", b"\xff", b'"', b"{", b"]", b"\xc3\x28", b"\\u", b"\\ud800", b"\r\n\r\n"))
        else:
            data[at:at] = data[max(0, at - 20) : at]
        data = data or bytearray(b"0")
    return bytes(data)


def cut(rng: random.Random, body: dict[str, object]) -> bytes:
    """Keep the beginning."""
    data = json.dumps(body).encode()
    return data[: rng.randrange(len(data))]


def doubled(rng: random.Random, body: dict[str, object]) -> bytes:
    """Name a field twice, or add something behind the end."""
    data = json.dumps(body).encode()
    if rng.random() < 0.2:
        return data + rng.choice((b"{}", b"\x00", b",", b" \t\n", b"]", data))
    again = json.dumps({rng.choice(NAMES): rng.choice(SMALL)}).encode()
    return again[:-1] + b"," + data[1:] if rng.random() < 0.5 else data[:-1] + b"," + again[1:]


def deep(rng: random.Random, body: dict[str, object]) -> bytes:
    """Nest a value as deep as it goes."""
    depth = rng.choice((50, 120, 200, 300, 1000, 20000))
    inner = rng.choice((b"[" * depth, b"[" * depth + b"]" * depth, b'{"a":' * depth + b"1" + b"}" * depth))
    body = copy.deepcopy(body)
    place, key = somewhere(rng, body)
    place[key] = MARK
    return json.dumps(body).encode().replace(MARKED, inner) if rng.random() < 0.8 else inner


def large(rng: random.Random, body: dict[str, object]) -> bytes:
    """Put something huge in; now and then more than a server takes."""
    size = rng.choice((3_000, 8_001, 40_000, 200_000, 200_000, 1_100_000))
    body = copy.deepcopy(body)
    place, key = somewhere(rng, body)
    place[key] = rng.choice(("a", "\u0000", "é", "😀 ", "a b ", "\n"))[:4] * (size // 8)
    if rng.random() < 0.2:
        place[key] = [0] * (size // 3)
    return json.dumps(body).encode()


def somewhere(rng: random.Random, body: dict[str, object]) -> tuple[dict | list, str | int]:
    """Return a container of a body and one of its keys or places."""
    place: dict | list = body
    while True:
        key = rng.choice(list(place)) if isinstance(place, dict) else rng.randrange(len(place))
        inner = place[key]
        if not (isinstance(inner, (dict, list)) and inner) or rng.random() < 0.4:
            return place, key
        place = inner


NEAR_NAMES = sorted(NEAR)
CHANCES: dict[Callable[[random.Random, dict[str, object]], bytes], float] = {
    near: 0.3, mistyped: 0.22, raw: 0.12, damaged: 0.2, cut: 0.07, doubled: 0.07, deep: 0.015, large: 0.005,
}  # fmt: skip
ACTS, WEIGHTS = list(CHANCES), list(CHANCES.values())
