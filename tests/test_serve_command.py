"""`gpt2chat serve` as a program: what it says, whom it lets in, how it ends."""

from __future__ import annotations

import json
import re
import signal
import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("uvicorn")

import click  # noqa: E402
import httpx  # noqa: E402
from helpers_cli import ROOT, invoke, save_tiny  # noqa: E402
from helpers_server import program  # noqa: E402

from gpt2chat.cli.config import read_config  # noqa: E402
from gpt2chat.cli.serve import serve_command  # noqa: E402


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_tiny(tmp_path_factory.mktemp("command") / "my model.pt")


def test_it_opens_says_so_answers_and_ends(tiny: Path, tmp_path: Path) -> None:
    with program(str(tiny), "--port", "0", folder=tmp_path) as running:
        url = running.url
        assert "Initializing worker pool with 1 worker on cpu..." in running.said
        assert url.startswith("http://127.0.0.1:")
        assert httpx.get(f"{url}/health").json()["ready"] is True
        assert "<title>" in httpx.get(url).text
        body = {"messages": [{"role": "user", "content": "canary-question"}], "max_tokens": 5}
        assert httpx.post(f"{url}/v1/chat/completions", json=body, timeout=30).json()["model"] == "my model"
        assert running.end() == 0
        assert "canary" not in running.said and "stopped" in running.said and "Traceback" not in running.said
        assert re.search(r"\d+ \+ \d tokens in", running.said)
    assert sorted(path.name for path in tmp_path.iterdir()) == []


def test_ctrl_c_ends_it_as_a_shell_expects(tiny: Path, tmp_path: Path) -> None:
    with program(str(tiny), "--port", "0", folder=tmp_path) as running:
        assert running.url
        assert running.end(signal.SIGINT) == 130


def test_the_keys_come_from_the_environment_a_file_or_the_command_line(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "keys").write_text("first\n\nsecond\n")
    options = ("--port", "0", "--api_key_file", "keys", "--api_key", "third")
    with program(str(tiny), *options, folder=tmp_path, GPT2CHAT_API_KEY="fourth") as running:
        url = running.url
        for key, status in [("first", 200), ("second", 200), ("third", 200), ("fourth", 200), ("fifth", 401)]:
            assert httpx.get(f"{url}/v1/models", headers={"authorization": f"Bearer {key}"}).status_code == status
        assert httpx.get(f"{url}/stats").status_code == 401 and httpx.get(f"{url}/health").status_code == 200
        assert running.end() == 0 and "fourth" not in running.said


def test_a_config_file_sets_options_and_the_command_line_wins(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "serve.toml").write_text('port = 1\nsystem = "Be kind."\ntemperature = 0.1\nfeedback = "kept.jsonl"\n')
    with program(str(tiny), "--config", "serve.toml", "--port", "0", folder=tmp_path) as running:
        told = httpx.get(f"{running.url}/settings").json()
        assert told["defaults"]["system"] == "Be kind." and told["defaults"]["temperature"] == 0.1
        assert told["feedback"] is True


def test_questions_are_kept_only_where_that_is_asked_for(tiny: Path, tmp_path: Path) -> None:
    with program(str(tiny), "--port", "0", "--log_prompts", "said.log", folder=tmp_path) as running:
        body = {"messages": [{"role": "user", "content": "canary-question"}], "max_tokens": 5}
        httpx.post(f"{running.url}/chat/completions", json=body, timeout=30)
        running.end()
    assert "Question: canary-question" in (tmp_path / "said.log").read_text()
    assert (tmp_path / "said.log").stat().st_mode & 0o077 == 0


@pytest.mark.parametrize(
    ("args", "words"),
    [
        (("--host", "0.0.0.0"), "expected a key for a server that other machines reach at 0.0.0.0, found none"),
        (("--host", "0.0.0.0", "--api_key", ""), "expected a key, got an empty one"),
        (("--api_key_file", "missing"), "missing: cannot be read: No such file or directory"),
        (("--host", "no such host"), "no such host"),
        (("--temperature", "-1"), "temperature: expected a number from 0 to 2, got -1.0"),
        (("--max_tokens", "0"), "max_tokens: expected a whole number, 1 or more, got 0"),
        (("--allow_host", "a b"), "a b"),
        (("--cors_origin", "my.site"), "my.site"),
        (("--temperature", "2.5"), "temperature: expected a number from 0 to 2, got 2.5"),
        (("--confidence", "0.5"), "confidence: expected --fallback or --grounded beside it, got neither"),
        (("--device", "quantum"), "device: expected auto or one of"),
        (("--num_gpus", "7"), "num_gpus: expected"),
        (("--template", "none-such"), "template: expected one of"),
        (("--feedback", "no/such/folder/f.jsonl"), "no/such/folder"),
        (("--log_prompts", "no/such/folder/app.log"), "no/such/folder"),
        (("--step", "5"), "expected CHECKPOINT or --source"),
    ],
)
def test_wrong_options_are_one_line_before_anything_opens(
    tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, args: tuple[str, ...], words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("gpt2chat.server.running.serve", lambda *args, **kwargs: pytest.fail("it opened"))
    result = invoke("serve", tiny, "--port", "0", *args)
    assert result.exit_code == 2 and words in result.stderr, result.stderr
    assert len(result.stderr.strip().splitlines()) == 1


def test_a_checkpoint_that_is_not_there_ends_it_with_one_line(tmp_path: Path) -> None:
    with program("missing.pt", "--port", "0", folder=tmp_path) as running:
        assert running.process.wait(60) == 1
        assert "error: missing.pt: no such file" in running.said and "Traceback" not in running.said


def test_data_in_the_place_of_a_model_is_told_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "faq.json").write_text("[]")
    monkeypatch.chdir(tmp_path)
    result = invoke("serve", "faq.json", "--port", "0")
    assert result.exit_code == 2 and "gpt2chat train --conversation_file faq.json" in result.stderr


def test_a_config_file_names_the_model_and_shows_no_key(tiny: Path, tmp_path: Path) -> None:
    (tmp_path / "model.pt").write_bytes(tiny.read_bytes())
    (tmp_path / "keys").write_bytes(b"\xef\xbb\xbffirst\r\n")
    (tmp_path / "serve.toml").write_text('checkpoint = "model.pt"\nport = 0\napi_key_file = "keys"\n')
    with program("--config", "serve.toml", folder=tmp_path) as running:
        headers = {"authorization": "Bearer first"}
        assert httpx.get(f"{running.url}/v1/models", headers=headers).json()["data"][0]["id"] == "model"
    (tmp_path / "wrong.json").write_text('{"api_key": ["secret-canary"]}')
    result = invoke("serve", "--config", tmp_path / "wrong.json")
    assert result.exit_code == 2 and "secret-canary" not in result.stderr and "api_key" in result.stderr


def test_beyond_this_machine_addresses_are_names_enough(tiny: Path, tmp_path: Path) -> None:
    options = ("--host", "0.0.0.0", "--insecure", "--port", "0")
    with program(str(tiny), *options, folder=tmp_path) as running:
        port = running.url.rpartition(":")[2]
        assert "other machines reach it by its address" in running.said
        for host, status in (("192.0.2.2", 200), ("[2001:db8::1]", 200), ("evil.example", 403)):
            headers = {"host": f"{host}:{port}"}
            assert httpx.get(f"http://127.0.0.1:{port}/health", headers=headers).status_code == status


def test_a_port_in_use_is_one_line(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("gpt2chat.server.running.serve", lambda *args, **kwargs: pytest.fail("it opened"))
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        result = invoke("serve", tiny, "--port", taken.getsockname()[1])
    assert result.exit_code == 2 and "in use" in result.stderr and "--port" in result.stderr


@pytest.mark.parametrize("client", ["python", "curl", "llm", "openwebui", "aichat"])
def test_snippets_know_where_and_what(client: str) -> None:
    said = invoke("serve", "demo", "--print_client", client, "--port", "9000").stdout
    assert "9000/v1" in said and ("demo" in said or client == "openwebui")


def test_help_names_everything_of_the_old_server_and_loads_nothing_heavy() -> None:
    words = invoke("serve", "--help").stdout
    for name in ("-n,", "-i,", "-g,", "-s,", "-t,", "-k,", "-m,", "-p,", "-d,", "--device_type", "--host"):
        assert name in words
    code = "import sys; sys.argv=['gpt2chat','serve','--help']\nfrom gpt2chat.cli import main\n"
    code += "try: main()\nexcept SystemExit: print(json.dumps([m in sys.modules for m in ('torch','uvicorn')]))"
    done = subprocess.run([sys.executable, "-c", "import json\n" + code], capture_output=True, text=True, timeout=60)
    assert json.loads(done.stdout.splitlines()[-1]) == [False, False]


def test_the_config_of_the_documentation_is_one(tmp_path: Path) -> None:
    (block,) = re.findall(r"^```toml\n(.*?)^```", (ROOT / "docs" / "serve.md").read_text("utf-8"), re.M | re.S)
    (tmp_path / "serve.toml").write_text(block)
    with click.Context(serve_command, info_name="serve") as context:
        found = read_config(tmp_path / "serve.toml", context)
    assert found["checkpoint"] == "trained_model.pt" and found["port"] == 9000 and len(found["suggestion"]) == 2


def test_every_option_is_in_the_documentation() -> None:
    text = (ROOT / "docs" / "serve.md").read_text("utf-8")
    missing = [
        name for param in serve_command.params for name in param.opts if name.startswith("--") and name not in text
    ]
    assert set(missing) <= {"--chat_template", "--device_type", "--help"}
