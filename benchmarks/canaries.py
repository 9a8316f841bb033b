"""Chats side by side, each with a word that nobody else was told: it must not turn up elsewhere."""

from __future__ import annotations

import asyncio
import random
import re
from pathlib import Path
from typing import Any

from forks import WORDS, forked
from visitors import CHAT, Answer, ask, small

KEYS = [f"key-of-client-{number}" for number in range(4)]
CANARY = re.compile("qz[a-z]{8}")
CACHED = re.compile(rb'"cached_tokens":\s*(\d+)')


def canary(number: int) -> str:
    """Return the word of a chat."""
    rng = random.Random(number)
    return "qz" + "".join(rng.choices("abcdefghijklmnopqrstuvwxyz", k=8))


def question(number: int) -> dict[str, Any]:
    """Return a chat that begins with its word, asks for it, and goes on long enough to fill pages of the cache."""
    word, rng = canary(number), random.Random(-number - 1)
    topics = " or ".join(rng.choices(WORDS, k=50))
    told = f"{word} is the password. Say {word} when you are asked for it, and speak of {topics}."
    messages = [{"role": "system", "content": told}] if number % 2 else [{"role": "user", "content": told}]
    messages += [{"role": "assistant", "content": f"The password is {word}."}] * (1 - number % 2)
    messages += [{"role": "user", "content": f"What is the password? Repeat it: {word}"}]
    options = {"max_tokens": 12, "seed": number, "temperature": number % 3 / 2, "stream": number % 5 == 0}
    return {"messages": messages, "stream_options": {"include_usage": True}, **options}


def cached(answer: Answer) -> int:
    """Return how many tokens of the prompt were there before."""
    return max(int(number) for number in CACHED.findall(answer.body))


async def canaries(port: int, alone_port: int, count: int, clients: int = 40) -> dict[str, Any]:
    """Ask all chats side by side, then each alone of another server.

    Every fourth chat is asked three times in a row: as its client twice, who may find it in the cache, and as
    another one, who must not.
    """
    left, given, wrong = list(range(count)), dict[int, str](), list[str]()
    own, shared, asked_again = [0], [0], [0]
    words = {canary(number): number for number in range(count)}

    async def one(number: int, key: str) -> int:
        answer = await ask(port, CHAT, question(number), key)
        if answer.status != 200 or not answer.whole:
            wrong.append(f"chat {number}: {answer.status} {answer.body[:200]!r}")
            return 0
        if given.setdefault(number, answer.text) != answer.text:
            wrong.append(f"chat {number}: {given[number]!r}, and at another time {answer.text!r}")
        for word in CANARY.findall(answer.text):
            own[0] += words.get(word) == number
            if words.get(word, number) != number:
                wrong.append(f"chat {number} tells the word of chat {words[word]}: {answer.text!r}")
        return cached(answer)

    async def client() -> None:
        while left:
            number = left.pop()
            mine, other = KEYS[number % 4], KEYS[(number + 1 + number // 4 % 3) % 4]
            strange = await one(number, mine)
            if number % 4 == 0:
                asked_again[0] += 1
                shared[0] += await one(number, mine) > 0
                strange += await one(number, other)
            if strange:
                wrong.append(f"chat {number}: {strange} tokens of a prompt that its client had never sent")

    await asyncio.gather(*(client() for _ in range(clients)))
    for number in range(count):
        answer = await ask(alone_port, CHAT, question(number), KEYS[0])
        if answer.text != given.get(number):
            wrong.append(f"chat {number}: {given.get(number)!r}, alone {answer.text!r}")
    if not shared[0]:
        wrong.append("nothing was ever shared, so that this shows nothing")
    told = {"own_words_told": own[0], "asked_again": asked_again[0], "shared_with_oneself": shared[0]}
    return {"chats": count, **told, "wrong": wrong[:20]}


def canary_part(model: str, count: int, folder: Path) -> dict[str, Any]:
    """Run `canaries` against servers of their own."""
    keys = folder / "keys"
    keys.write_text("\n".join(KEYS))
    options = ("--api_key_file", str(keys), "--max_queue", "1024")
    log = folder / "server.log"
    model = small(folder, 1024) if Path(model).parent == folder else model
    with forked(model, log, *options) as among, forked(model, log, *options) as alone:
        return asyncio.run(canaries(among.port, alone.port, count))
