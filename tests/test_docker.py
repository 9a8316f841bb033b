"""The image and its neighbours: rules a linter would check, and every step run in a folder, for want of Docker."""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from helpers_cli import ROOT
from helpers_docker import Room, Step, faults, stages

from gpt2chat.server.settings import read_service
from gpt2chat.server.snippets import WEBUI

DOCKERFILE = (ROOT / "Dockerfile").read_text("utf-8")
COMPOSE: dict[str, Any] = yaml.safe_load((ROOT / "compose.yaml").read_text("utf-8"))
BUILD, FINAL = stages(DOCKERFILE)


def only(name: str, steps: list[Step] = FINAL) -> Step:
    [found] = [step for step in steps if step.name == name]
    return found


# -- the Dockerfile ----------------------------------------------------------------------------------------------------


def test_the_dockerfile_has_no_faults() -> None:
    assert faults(DOCKERFILE) == []
    assert len(BUILD) > 8 and len(FINAL) > 8


@pytest.mark.parametrize(
    ("old", "new", "words"),
    [
        ("3.11-slim-bookworm AS", "latest AS", "is not pinned"),
        ("python:3.11-slim-bookworm\n", "python\n", "is not pinned"),
        ("--no-cache-dir --no-deps", "--no-deps", "pip keeps its cache"),
        ("-y --no-install-recommends g++", "-y g++", "without -y --no-install-recommends"),
        ("    && rm -rf /var/lib/apt/lists/*\nCOPY", "    && true\nCOPY", "apt's lists stay"),
        ("USER 1000:1000\n", "", "runs as root"),
        ("USER 1000:1000", "USER root", "runs as root"),
        ("USER 1000:1000", "USER 1000:1000\nRUN true", "RUN after USER"),
        ('ENTRYPOINT ["gpt2chat", "serve",', 'ENTRYPOINT gpt2chat serve "', "ENTRYPOINT is not in exec form"),
        ('CMD ["demo"]', "CMD demo", "CMD is not in exec form"),
        ('CMD ["python", "-c"', 'CMD python "', "HEALTHCHECK is not in exec form"),
        ("WORKDIR /models", "WORKDIR models", "WORKDIR is not absolute"),
        ("COPY gpt2chat", "ADD gpt2chat", "ADD where COPY would do"),
        ("STOPSIGNAL SIGTERM\n", "", "expected one STOPSIGNAL"),
        ("ARG TORCH_INDEX=cpu", "ARG HF_TOKEN=hf_abc", "a secret in ARG"),
    ],
)
def test_a_planted_fault_is_found(old: str, new: str, words: str) -> None:
    assert old in DOCKERFILE
    found = faults(DOCKERFILE.replace(old, new, 1))
    assert found and any(words in fault for fault in found)


def test_what_the_final_stage_needs_is_copied_from_the_build_and_nothing_else() -> None:
    copies = [step.text.split() for step in FINAL if step.name == "COPY"]
    assert [words[0] for words in copies] == ["--from=build"] * len(copies)
    assert not any("pip" in step.text or "g++" in step.text for step in FINAL if step.name == "RUN")


def test_the_server_is_started_and_asked_on_the_same_port() -> None:
    words = only("ENTRYPOINT").words
    assert words[:2] == ["gpt2chat", "serve"] and words[words.index("--port") + 1] == only("EXPOSE").text
    assert f"127.0.0.1:{only('EXPOSE').text}/health" in only("HEALTHCHECK").words[-1]
    assert "--insecure" not in words + only("CMD").words


@pytest.mark.parametrize(
    ("answer", "healthy"), [({"status": "ok", "ready": True}, True), ({"status": "ok", "ready": False}, False)]
)
def test_the_health_check_is_python_and_asks_whether_the_model_is_ready(answer: object, healthy: bool) -> None:
    from http.server import BaseHTTPRequestHandler, HTTPServer
    from threading import Thread

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(200 if self.path == "/health" else 404)
            self.end_headers()
            self.wfile.write(json.dumps(answer).encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        command = [word.replace("7860", str(server.server_port)) for word in only("HEALTHCHECK").words]
        proxied = {**os.environ, "http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
        done = subprocess.run([sys.executable, *command[1:]], env=proxied, capture_output=True)
        server.shutdown()
        thread.join()
    assert command[0] == "python" and (done.returncode == 0) is healthy
    assert subprocess.run([sys.executable, *command[1:]], capture_output=True).returncode  # nobody there any more


def test_only_what_is_copied_reaches_the_builder() -> None:
    lines = [line for line in (ROOT / ".dockerignore").read_text().splitlines() if line and not line.startswith("#")]
    copied = {word for step in BUILD if step.name == "COPY" for word in step.text.split()[:-1]}
    assert lines[0] == "*" and {line[1:] for line in lines if line.startswith("!")} == copied
    assert all((ROOT / name).exists() for name in copied)


# -- compose.yaml ------------------------------------------------------------------------------------------------------

OURS = ("chatbot", "gpu")


def test_without_a_profile_the_chatbot_alone_starts() -> None:
    assert [name for name, service in COMPOSE["services"].items() if "profiles" not in service] == ["chatbot"]
    assert {name: COMPOSE["services"][name]["profiles"] for name in ("gpu", "webui")} == {
        "gpu": ["gpu"],
        "webui": ["webui"],
    }


def test_every_port_is_published_on_this_machine_alone() -> None:
    for name, service in COMPOSE["services"].items():
        assert service["ports"] and all(port.startswith("127.0.0.1:") for port in service["ports"]), name
        assert "network_mode" not in service and "privileged" not in service
    for name in OURS:
        assert COMPOSE["services"][name]["ports"][0].endswith(f":{only('EXPOSE').text}")


@pytest.mark.parametrize("name", OURS)
def test_the_container_can_do_little(name: str) -> None:
    service = COMPOSE["services"][name]
    assert service["read_only"] is True and service["init"] is True and service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"] and service["tmpfs"] == ["/tmp"]
    binds = [mount for mount in service["volumes"] if isinstance(mount, dict)]
    short = [mount.split(":") for mount in service["volumes"] if isinstance(mount, str)]
    made = next(step.text for step in FINAL if step.name == "RUN" and "chown" in step.text)
    written = {target for source, target, *_ in short if source in COMPOSE["volumes"]}
    assert written == set(made.partition("1000:1000 ")[2].split())
    assert [mount[1:] for mount in short if mount[0] not in COMPOSE["volumes"]] == [["/service", "ro"]]
    assert [(mount["target"], mount["read_only"]) for mount in binds] == [("/models", True)]


def test_the_gpu_service_differs_in_torch_and_in_its_devices() -> None:
    chatbot, gpu = (COMPOSE["services"][name] for name in OURS)
    differing = {key for key in gpu if gpu[key] != chatbot.get(key)}
    assert differing == {"profiles", "build", "image", "networks", "deploy"}
    assert chatbot["build"]["args"] == {"TORCH_INDEX": "cpu"} and "cu1" in gpu["build"]["args"]["TORCH_INDEX"]
    assert gpu["build"]["context"] == chatbot["build"]["context"]
    [device] = gpu["deploy"]["resources"]["reservations"]["devices"]
    assert device["driver"] == "nvidia" and device["capabilities"] == ["gpu"]


def test_open_webui_asks_either_and_asks_no_more_than_the_user_does() -> None:
    webui = COMPOSE["services"]["webui"]["environment"]
    assert WEBUI.items() <= webui.items() and webui["OPENAI_API_BASE_URL"] == "http://chatbot:7860/v1"
    assert COMPOSE["services"]["gpu"]["networks"]["default"]["aliases"] == ["chatbot"]
    assert "--allow-host=chatbot" in COMPOSE["services"]["chatbot"]["command"]


def test_the_config_that_is_mounted_is_read_and_serves_the_demo() -> None:
    found = read_service(ROOT / "service" / "config.yml", {"TRAINING_DIR": "/models"})
    assert (found.model, found.max_new_tokens, found.dtype, found.port) == ("demo", 500, "auto", 7860)
    assert "./service:/service:ro" in COMPOSE["services"]["chatbot"]["volumes"]
    assert "--config=/service/config.yml" in COMPOSE["services"]["chatbot"]["command"]


def test_git_does_not_take_the_keys() -> None:
    assert "/.env" in (ROOT / ".gitignore").read_text().splitlines()


def compose_works() -> bool:
    docker = shutil.which("docker")
    return docker is not None and subprocess.run([docker, "compose", "version"], capture_output=True).returncode == 0


@pytest.mark.parametrize("profile", [[], ["--profile", "gpu"], ["--profile", "webui"]])
def test_docker_compose_accepts_it(profile: list[str]) -> None:
    if not compose_works():
        pytest.skip("this docker has no compose")
    done = subprocess.run(
        ["docker", "compose", *profile, "config", "--format", "json"], cwd=ROOT, capture_output=True, encoding="utf-8"
    )
    assert done.returncode == 0, done.stderr
    assert set(json.loads(done.stdout)["services"]) == {"chatbot", *profile[1:]}


# -- every step, in a folder -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def room() -> Iterator[Room]:
    """The image's folders after both stages."""
    folder = Path(tempfile.mkdtemp(prefix="gpt2chat-image-"))
    try:
        room = Room(folder, ROOT)
        room.take(BUILD)
        room.take(FINAL)
        (folder / "service").mkdir()
        shutil.copy(ROOT / "service" / "config.yml", folder / "service")
        yield room
    finally:
        shutil.rmtree(folder)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def started(room: Room, words: list[str], port: int, **extra: str) -> Iterator[subprocess.Popen[str]]:
    """The entrypoint with a command, as Docker would start it."""
    command = [room.placed(word).replace("7860", str(port)) for word in only("ENTRYPOINT").words + words]
    binary = room.root / "opt" / "venv" / "bin" / command[0]
    env = {**room.environment, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1", **extra}
    with open(room.root / "stderr", "w+") as log:
        process = subprocess.Popen(
            [str(binary), *command[1:]], cwd=room.here, env=env, stdout=log, stderr=log, text=True
        )
        try:
            yield process
        finally:
            if process.poll() is None:
                process.kill()
            process.wait()


def healthy(room: Room, port: int, process: subprocess.Popen[str]) -> bool:
    command = [word.replace("7860", str(port)) for word in only("HEALTHCHECK").words]
    python = str(room.root / "opt" / "venv" / "bin" / command[0])
    for _ in range(240):
        if subprocess.run([python, *command[1:]], env=room.environment, capture_output=True).returncode == 0:
            return True
        if process.poll() is not None:
            return False
        time.sleep(0.25)
    return False


@pytest.mark.slow
def test_every_step_of_the_build_runs_and_the_decoder_is_in_the_image(room: Room) -> None:
    runs = [step.text for step in BUILD + FINAL if step.name == "RUN"]
    assert len(room.ran) == len([text for text in runs if not text.startswith("apt-get")]) > 4
    kept = room.root / "opt" / "gpt2chat"
    assert list((kept / "kernels").glob("decode-*.so")) and list((kept / "packs").glob("*.pack"))
    if hasattr(os, "geteuid") and not os.geteuid():
        assert {(kept / "packs").stat().st_uid, (room.root / "logs").stat().st_uid} == {1000}
        assert (kept / "kernels").stat().st_uid == 0


@pytest.mark.slow
def test_the_server_starts_as_compose_starts_it_answers_logs_and_ends(room: Room) -> None:
    port, kept = free_port(), room.root / "opt" / "gpt2chat"
    before = sorted(path.name for path in kept.rglob("*"))
    with started(room, COMPOSE["services"]["chatbot"]["command"], port) as process:
        assert healthy(room, port, process), (room.root / "stderr").read_text()
        body = json.dumps({"model": "demo", "messages": [{"role": "user", "content": "hello"}], "max_tokens": 8})
        headers = {"Content-Type": "application/json"}
        url = f"http://127.0.0.1:{port}/v1/chat/completions"
        request = urllib.request.Request(url, body.encode(), headers)
        with urllib.request.urlopen(request, timeout=60) as response:
            answer = json.load(response)["choices"][0]["message"]["content"]
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    log = room.root / "logs" / "app.log"
    assert log.read_text("utf-8").startswith("Question: hello\nAnswer: ") and answer.split("\n")[0] in log.read_text(
        "utf-8"
    )
    assert log.stat().st_mode & 0o777 == 0o600
    assert sorted(path.name for path in kept.rglob("*")) == before  # what is read-only in the image was not needed


@pytest.mark.slow
def test_on_all_addresses_it_starts_with_a_key_or_not_at_all(room: Room) -> None:
    with started(room, only("CMD").words, free_port()) as process:
        assert process.wait(120) == 2
    assert "GPT2CHAT_API_KEY" in (room.root / "stderr").read_text()
    port = free_port()
    with started(room, only("CMD").words, port, GPT2CHAT_API_KEY="s3cret") as process:
        assert healthy(room, port, process), (room.root / "stderr").read_text()
        with pytest.raises(urllib.error.HTTPError) as refused:
            urllib.request.urlopen(f"http://127.0.0.1:{port}/v1/models", timeout=30)
        refused.value.close()
        assert refused.value.code == 401
