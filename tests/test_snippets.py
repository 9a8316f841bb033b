"""What `--print-client` prints works as it stands: it is run, where its program is here, against a server's double."""

from __future__ import annotations

import ast
import json
import os
import shlex
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers_cli import ROOT

from gpt2chat.errors import ConfigError
from gpt2chat.server.snippets import KINDS, WEBUI, snippet

URL = "http://127.0.0.1:8000"
MODELS = ("demo", "gpt2-small (124M)", 'it\'s "mine"; $(touch owned) `touch owned` \\ é😀')
SECRET = "s3cret-key"


class Double(BaseHTTPRequestHandler):
    """Streams two words, and remembers what it was asked."""

    asked: list[tuple[str, str | None, dict[str, Any]]]

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        type(self).asked.append((self.path, self.headers.get("Authorization"), body))
        self.send_response(200)
        self.send_header("Content-Type", "text/event-stream")
        self.end_headers()
        for delta, reason in (({"content": "Good "}, None), ({"content": "day."}, None), ({}, "stop")):
            choice = {"index": 0, "delta": {"role": "assistant", **delta}, "finish_reason": reason}
            chunk = {"id": "chatcmpl-1", "object": "chat.completion.chunk", "created": 1, "model": body["model"]}
            self.wfile.write(f"data: {json.dumps({**chunk, 'choices': [choice]})}\n\n".encode())
        self.wfile.write(b"data: [DONE]\n\n")

    def log_message(self, *_: object) -> None:
        pass


@pytest.fixture
def server() -> Iterator[ThreadingHTTPServer]:
    handler = type("Handler", (Double,), {"asked": []})
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as running:
        thread = threading.Thread(target=running.serve_forever)
        thread.start()
        yield running
        running.shutdown()
        thread.join()


def run(command: list[str], folder: Path, stdin: str = "") -> str:
    kept = {name: os.environ[name] for name in ("PATH", "LD_LIBRARY_PATH") if name in os.environ}
    path = f"{Path(sys.executable).parent}{os.pathsep}{kept.pop('PATH', '')}"
    environment = {**kept, "PATH": path, "HOME": str(folder), "GPT2CHAT_API_KEY": SECRET, "LLM_USER_PATH": str(folder)}
    done = subprocess.run(
        command, cwd=folder, env=environment, input=stdin, capture_output=True, encoding="utf-8", timeout=120
    )
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in folder.iterdir() if path.name == "owned") == []
    return done.stdout


def check_asked(server: ThreadingHTTPServer, model: str, key: bool) -> None:
    [(path, authorization, body)] = server.RequestHandlerClass.asked  # type: ignore[attr-defined]
    assert path == "/v1/chat/completions" and body["model"] == model and body["stream"] is True
    assert body["messages"] == [{"role": "user", "content": "Hello!"}]
    assert SECRET in (authorization or "") if key else SECRET not in (authorization or "")


def place(server: ThreadingHTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_address[1]}"


@pytest.mark.parametrize("key", [True, False])
@pytest.mark.parametrize("model", MODELS)
def test_curl(server: ThreadingHTTPServer, tmp_path: Path, model: str, key: bool) -> None:
    if shutil.which("curl") is None:
        pytest.skip("no curl here")
    out = run(["sh", "-c", snippet("curl", place(server), model, key)], tmp_path)
    assert out.endswith("data: [DONE]\n\n") and '"Good "' in out
    check_asked(server, model, key)


@pytest.mark.parametrize(("model", "key"), [(MODELS[0], False), (MODELS[2], True)])
def test_python(server: ThreadingHTTPServer, tmp_path: Path, model: str, key: bool) -> None:
    pytest.importorskip("openai")
    (tmp_path / "client.py").write_text(snippet("python", place(server), model, key), "utf-8")
    assert run([sys.executable, "client.py"], tmp_path) == "Good day.\n"
    check_asked(server, model, key)


@pytest.mark.parametrize(("model", "key"), [(MODELS[0], False), (MODELS[2], True)])
def test_llm(server: ThreadingHTTPServer, tmp_path: Path, model: str, key: bool) -> None:
    pytest.importorskip("llm")
    lines = snippet("llm", place(server), model, key).splitlines()
    commands = [line for line in lines if not line.startswith("#")]
    assert run(["sh", "-c", commands[0]], tmp_path) == "Good day.\n"
    check_asked(server, model, key)
    server.RequestHandlerClass.asked.clear()  # type: ignore[attr-defined]
    assert "Good day." in run(["sh", "-c", commands[1]], tmp_path, stdin="Hello!\nexit\n")
    check_asked(server, model, key)


@pytest.mark.parametrize("key", [True, False])
@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("url", [URL, f"{URL}/", "http://[::1]:8000"])
def test_python_compiles_and_shell_lines_parse(url: str, model: str, key: bool) -> None:
    tree = ast.parse(snippet("python", url, model, key))
    constants = [node.value for node in ast.walk(tree) if isinstance(node, ast.Constant)]
    assert model in constants and f"{url.rstrip('/')}/v1" in constants
    for kind in ("curl", "llm", "openwebui"):
        words = shlex.split(snippet(kind, url, model, key), comments=True)
        assert any(model in word or json.dumps(model, ensure_ascii=False) in word for word in words), words
        assert any(word.endswith(("/v1", "/v1/chat/completions")) and url.rstrip("/") in word for word in words)


@pytest.mark.parametrize("key", [True, False])
@pytest.mark.parametrize("model", MODELS)
def test_open_webui_is_told_all_that_the_compose_file_tells_it(model: str, key: bool) -> None:
    words = shlex.split(snippet("openwebui", URL, model, key), comments=True)
    assert words[:2] == ["docker", "run"] and words[-1].startswith("ghcr.io/open-webui/open-webui:")
    settings = dict(words[n + 1].split("=", 1) for n, word in enumerate(words) if word == "-e")
    composed = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))["services"]["webui"]["environment"]
    assert (
        composed.keys() <= settings.keys() and WEBUI.items() <= settings.items() and WEBUI.items() <= composed.items()
    )
    assert settings["OPENAI_API_BASE_URL"] == f"{URL}/v1" and settings["HOST"] == "127.0.0.1"
    assert settings["OPENAI_API_KEY"] == ("$GPT2CHAT_API_KEY" if key else "none")


@pytest.mark.parametrize("key", [True, False])
@pytest.mark.parametrize("model", MODELS)
def test_aichat_is_yaml_that_names_the_model(model: str, key: bool) -> None:
    config = yaml.safe_load(snippet("aichat", URL, model, key))
    [client] = config["clients"]
    assert config["model"] == f"{client['name']}:{model}" and client["models"] == [{"name": model}]
    assert client["type"] == "openai-compatible" and client["api_base"] == f"{URL}/v1"
    assert ("api_key" in client) is not key  # it reads GPT2CHAT_API_KEY, after the client's name
    assert client["name"].upper() + "_API_KEY" == "GPT2CHAT_API_KEY"


def test_the_key_stands_in_them_by_name_and_only_where_there_is_one() -> None:
    for kind in KINDS:
        assert "GPT2CHAT_API_KEY" in snippet(kind, URL, "demo", True)
        assert "GPT2CHAT_API_KEY" not in snippet(kind, URL, "demo", False)


def test_another_client_is_an_error_that_names_those_there_are() -> None:
    with pytest.raises(ConfigError, match="expected one of python, curl, llm, openwebui, aichat, got 'perl'"):
        snippet("perl", URL, "demo", False)
