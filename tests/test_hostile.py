"""Among clients that send anything and leave at any moment, the server answers or says why it does not."""

from __future__ import annotations

import asyncio
import json
import logging
import random
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from helpers_cli import ROOT, environment, save_tiny
from helpers_server import Served, served

sys.path.append(str(ROOT / "benchmarks"))

import canaries
import hostile
import inside
import mutants
from visitors import small

from gpt2chat.sampling import GenerationConfig
from gpt2chat.server import openapi, protocol
from gpt2chat.server.faults import ApiError
from gpt2chat.server.guard import Policy
from gpt2chat.server.limits import Limits
from gpt2chat.server.nanochat import parse_nanochat

KEY = {"Authorization": "Bearer k"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Served]:
    folder = tmp_path_factory.mktemp("hostile")
    with served(small(folder, 512), waiting=512, feedback=folder / "feedback.jsonl") as server:
        yield server


@pytest.fixture
def quiet() -> Iterator[None]:
    """The faults that tests cause are not worth their tracebacks."""
    logging.disable()
    yield
    logging.disable(logging.NOTSET)


def test_no_body_brings_the_server_down(running: Served) -> None:
    found = asyncio.run(hostile.fuzz(running.port, 2000))
    assert found["wrong"] == []
    assert sum(found["statuses"].values()) == 2000
    assert found["statuses"]["200"] > 300 and found["statuses"]["400"] > 300
    assert set(found["answered"]) == set(mutants.VALID) and min(found["answered"].values()) > 0
    assert running.get("/health").json()["available_workers"] == 1


def test_whoever_leaves_gives_the_place_back_within_a_step(running: Served) -> None:
    found = asyncio.run(inside.disconnect(running, 60))
    assert found["wrong"] == []
    assert len(found["left"]) >= 3 and sum(found["left"].values()) > 15


def test_steps_for_those_who_left_are_seen(running: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    """The measurement itself: a server that does not notice that clients leave is caught."""
    monkeypatch.setattr("gpt2chat.server.sockets.leave", lambda scope: None)
    monkeypatch.setattr("gpt2chat.server.replies._left", lambda receive: asyncio.sleep(1))
    assert asyncio.run(inside.disconnect(running, 60))["wrong"]


@pytest.mark.usefixtures("quiet")
def test_a_fault_ends_one_request_and_the_next_is_answered(running: Served) -> None:
    found = asyncio.run(inside.fault_all(running, 20))
    assert found["wrong"] == []
    assert sum(number for what, number in found["outcomes"].items() if what.endswith(": error")) >= 14


def test_no_chat_knows_another(tmp_path: Path) -> None:
    model, options = small(tmp_path, 1024), {"policy": Policy(keys=tuple(canaries.KEYS)), "waiting": 256}
    with served(model, streams=32, **options) as among, served(model, streams=32, **options) as alone:
        found = asyncio.run(canaries.canaries(among.port, alone.port, 100))
    assert found["wrong"] == []
    assert found["asked_again"] == 25


@pytest.mark.slow
@pytest.mark.parametrize("part", [["--sigterms", "3"], ["--requests", "500"]], ids=lambda part: part[0])
def test_processes_end_in_order_and_keep_nothing(part: list[str], tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "benchmarks" / "hostile.py"), *part]
    result = subprocess.run(command, cwd=tmp_path, env=environment(), capture_output=True, text=True, timeout=300)
    assert result.stdout, result.stderr
    found = json.loads(result.stdout)
    assert found["wrong"] == [] and result.returncode == 0, result.stderr


# -- the description -----------------------------------------------------------------------------------------------


def test_every_path_is_described_and_no_other(running: Served) -> None:
    told = running.get("/openapi.json").json()
    served_paths = {
        (route.path.replace(":path", ""), method.lower())
        for route in running.server.config.app.app.routes
        for method in route.methods - {"HEAD"}
    }
    assert {(path, method) for path, methods in told["paths"].items() for method in methods} == served_paths
    assert "security" not in told


def test_a_server_with_keys_says_so_and_tells_nobody_else(tmp_path: Path) -> None:
    with served(save_tiny(tmp_path / "tiny.pt"), policy=Policy(keys=("k",))) as server:
        assert server.get("/openapi.json").status_code == 401
        told = server.get("/openapi.json", headers=KEY).json()
    assert told["security"] == [{"key": []}]
    assert [path for path, methods in told["paths"].items() if methods.get("get", {}).get("security") == []] == [
        "/",
        "/health",
    ]


@pytest.mark.parametrize("name", openapi.EXACTLY)
def test_what_is_said_of_fields_is_said_of_fields_there_are(name: str) -> None:
    kinds = {kind.__name__: kind for kind in (*openapi.TAKEN, protocol.ChatMessage, openapi.nanochat.LooseMessage)}
    extra = set() if "messages" in name.lower() else set(protocol.NOT_SERVED)
    assert set(openapi.EXACTLY[name]) <= set(kinds[name].model_fields) | extra


def taken(path: str, body: bytes) -> bool:
    """Whether the server takes a body for a request that it can serve."""
    kinds: dict[str, Any] = {
        "/v1/chat/completions": protocol.ChatRequest,
        "/v1/completions": protocol.CompletionRequest,
        "/explain": protocol.ExplainRequest,
        "/feedback": protocol.FeedbackRequest,
    }
    try:
        wanted = parse_nanochat(body) if path == "/chat/completions" else protocol.parse(kinds[path], body)
    except ApiError as error:
        return "as the last message" in error.message  # which no schema can say
    prompts = [ids for ids in getattr(wanted, "prompt", []) if isinstance(ids, list)]
    ids = [id for ids in prompts for id in ids] + [int(id) for id in getattr(wanted, "logit_bias", None) or ()]
    return max(ids, default=0) < 50257  # the engine has no others


def test_the_description_takes_what_the_server_takes() -> None:
    jsonschema_rs = pytest.importorskip("jsonschema_rs")
    told = openapi.document(("tiny", "gpt2chat"), False)
    valid = {}
    for path in mutants.VALID:
        content = told["paths"][path]["post"]["requestBody"]["content"]["application/json"]["schema"]
        valid[path] = jsonschema_rs.Draft202012Validator({**content, "components": told["components"]})
    rng, verdicts = random.Random(0), set()
    for _ in range(4000):
        path = rng.choice(list(mutants.VALID))
        data = rng.choice((mutants.near, mutants.mistyped))(rng, rng.choice(mutants.VALID[path]))
        body = json.loads(data)
        if body.get("model") not in (None, "", "tiny", "gpt2chat") and isinstance(body["model"], str):
            continue  # that is 404
        if not isinstance(body.get("instead", ""), (str, type(None))):
            continue  # of two faults the server names the first, and `taken` sees no other
        verdict = taken(path, data)
        verdicts.add((path, verdict))
        assert valid[path].is_valid(body) == verdict, (path, body)
    assert len(verdicts) == 2 * len(mutants.VALID)


CONFIG = """
[[operations]]
include-path = "/explain"
checks.positive_data_acceptance.expected-statuses = ["2xx", 400]
[[operations]]
include-path = "/feedback"
checks.positive_data_acceptance.expected-statuses = ["2xx", 400]
"""  # that an answer stands last is more than a schema can say


@pytest.mark.slow
def test_schemathesis_finds_nothing(tmp_path: Path) -> None:
    (tmp_path / "schemathesis.toml").write_text(CONFIG)
    limits, drawing = Limits(queue_s=5, answer_s=0.1), GenerationConfig(max_new_tokens=3)
    options = {"policy": Policy(keys=("k",)), "limits": limits, "generation": drawing}
    with served(small(tmp_path, 1024), feedback=tmp_path / "feedback.jsonl", **options) as server:
        command = [sys.executable, "-m", "schemathesis.cli", "--config-file", "schemathesis.toml", "run"]
        command += [server.url + "/openapi.json", "-H", "Authorization: Bearer k", "--mode", "all", "-n", "15"]
        command += ["--phases", "examples,coverage,fuzzing", "--generation-allow-x00", "true", "--seed", "1"]
        command += ["--continue-on-failure", "--request-timeout", "30"]
        result = subprocess.run(
            command, cwd=tmp_path, env=environment(), capture_output=True, encoding="utf-8", timeout=580
        )
    assert result.returncode == 0, result.stdout[-6000:]
    assert "Tested: 12" in result.stdout  # of 13: it leaves out the path it reads the description from
