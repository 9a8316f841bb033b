"""Lines that let other programs talk to a server of ours; a key stands in them only as $GPT2CHAT_API_KEY."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable

from gpt2chat.errors import ConfigError

KEY = "GPT2CHAT_API_KEY"
QUESTION = "Hello!"
# Open WebUI asks the model for titles, tags and suggestions beside each answer: a small model makes nothing of them.
WEBUI = {
    "ENABLE_OLLAMA_API": "False",
    "ENABLE_TITLE_GENERATION": "False",
    "ENABLE_TAGS_GENERATION": "False",
    "ENABLE_FOLLOW_UP_GENERATION": "False",
    "ENABLE_AUTOCOMPLETE_GENERATION": "False",
}


def snippet(kind: str, url: str, model: str, key: bool) -> str:
    """Return what makes a client talk to `model` at `url` (http://127.0.0.1:8000), with the key if there is one.

    Raises ConfigError for a client that is not in `KINDS`.
    """
    if kind not in KINDS:
        raise ConfigError(f"print_client: expected one of {', '.join(KINDS)}, got {kind!r}")
    return KINDS[kind](f"{url.rstrip('/')}/v1", model, key).strip()


def _first(key: bool) -> str:
    """Return the line that says where the key comes from."""
    return f"# first, once: export {KEY}=…\n" if key else ""


def _python(base: str, model: str, key: bool) -> str:
    return f"""
{_first(key)}# pip install openai
{"import os" + chr(10) * 2 if key else ""}from openai import OpenAI

client = OpenAI(base_url={base!r}, api_key={f'os.environ["{KEY}"]' if key else repr("none")})
stream = client.chat.completions.create(
    model={model!r},
    messages=[{{"role": "user", "content": "{QUESTION}"}}],
    stream=True,
)
for chunk in stream:
    if chunk.choices:
        print(chunk.choices[0].delta.content or "", end="", flush=True)
print()
"""


def _curl(base: str, model: str, key: bool) -> str:
    body = {"model": model, "messages": [{"role": "user", "content": QUESTION}], "stream": True}
    header = f' -H "Authorization: Bearer ${KEY}"' if key else ""
    data = shlex.quote(json.dumps(body, ensure_ascii=False))
    begin = f"{_first(key)}curl -sSN {shlex.quote(f'{base}/chat/completions')}"
    return f"{begin} -H 'Content-Type: application/json'{header} -d {data}"


def _llm(base: str, model: str, key: bool) -> str:
    secret = f' --key "${KEY}"' if key else ""
    begin = f"llm openai endpoint {shlex.quote(base)} -m {shlex.quote(model)}{secret}"
    return f"{_first(key)}# pip install llm\n{begin} '{QUESTION}'\n# a chat:\n{begin} --chat"


def _openwebui(base: str, model: str, key: bool) -> str:
    # in the network of this machine, where a server that listens on 127.0.0.1 alone can be reached
    settings = {"HOST": "127.0.0.1", "PORT": "3000", "OPENAI_API_BASE_URL": base, "DEFAULT_MODELS": model, **WEBUI}
    lines = ["docker run -d --name open-webui --network host", "-v open-webui:/app/backend/data"]
    lines += [f"-e {shlex.quote(f'{name}={value}')}" for name, value in settings.items()]
    lines += [f'-e "OPENAI_API_KEY=${KEY}"' if key else "-e OPENAI_API_KEY=none", "ghcr.io/open-webui/open-webui:main"]
    return _first(key) + "# then open http://127.0.0.1:3000\n" + " \\\n  ".join(lines)


def _aichat(base: str, model: str, key: bool) -> str:
    def quoted(text: str) -> str:
        return json.dumps(text, ensure_ascii=False)

    return f"""
# ~/.config/aichat/config.yaml
model: {quoted(f"gpt2chat:{model}")}
clients:
  - type: openai-compatible
    name: gpt2chat
    api_base: {quoted(base)}
    {f"# the key is taken from ${KEY}" if key else 'api_key: "none"'}
    models:
      - name: {quoted(model)}
"""


KINDS: dict[str, Callable[[str, str, bool], str]] = {
    "python": _python,
    "curl": _curl,
    "llm": _llm,
    "openwebui": _openwebui,
    "aichat": _aichat,
}
