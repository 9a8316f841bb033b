"""`gpt2chat doctor`: a report that can be pasted anywhere, whatever is missing or broken."""

from __future__ import annotations

import configparser
import dataclasses
import getpass
import json
import os
import re
import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from click.testing import Result
from helpers_cli import ROOT, invoke, save_tiny, spawn

from gpt2chat import decoding, diagnosis, kernels, machine, privacy, tokenizer
from gpt2chat.cli.doctor import INDENT, WIDTH, lines
from gpt2chat.cli.serve import EXTRA
from gpt2chat.diagnosis import CHECKS, NEEDS, NOTE, OK, OPTIONAL, PROBLEM, Finding, diagnose

NAMES = [name for name, _ in CHECKS]
QUICKLY = "from gpt2chat import cli, diagnosis; diagnosis.SPEED_SECONDS = 0.05; cli.main(['doctor', *{}])"
FIRST = re.compile(rf"(ok|note|problem) +({'|'.join(NAMES)}|terminal) +\S")


@pytest.fixture
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let the speed test be short."""
    monkeypatch.setattr(diagnosis, "SPEED_SECONDS", 0.05)
    monkeypatch.setattr(diagnosis, "SLOW", 0.0)


def finding(name: str, *, notice: Callable[[str], None] | None = None) -> Finding:
    """What one check finds."""
    (found,) = diagnose([(name, dict(CHECKS)[name])], notice)
    return found


def by_name(result: Result) -> dict[str, Any]:
    return {entry["name"]: entry for entry in json.loads(result.stdout)["findings"]}


# -- the report --------------------------------------------------------------------------------------------------------


def test_the_report_is_one_aligned_block_of_text(quick: None) -> None:
    result = invoke("doctor")
    *report, last = result.stdout.splitlines()
    assert result.exit_code == (0 if last.startswith("0 problems") else 1)
    assert all(len(line) <= WIDTH for line in report)
    assert [found[2] for line in report if (found := FIRST.match(line))] == [*NAMES[:-1], "terminal", NAMES[-1]]
    assert all(FIRST.match(line) or line.startswith((" " * INDENT, " " * (INDENT - 3) + "-> ")) for line in report)
    assert result.stdout.isascii() or not str(ROOT).isascii()


def test_json_is_one_object_with_the_same_findings(quick: None) -> None:
    result = invoke("doctor", "--json")
    data = json.loads(result.stdout)
    assert [entry["name"] for entry in data["findings"]] == [*NAMES[:-1], "terminal", NAMES[-1]]
    assert {entry["state"] for entry in data["findings"]} <= {OK, NOTE, PROBLEM}
    assert data["problem"] == sum(entry["state"] == PROBLEM for entry in data["findings"])
    assert all(entry["advice"] for entry in data["findings"] if entry["state"] != OK)
    assert result.exit_code == (1 if data["problem"] else 0)


def test_a_fault_in_a_check_is_its_line_and_not_the_end(quick: None, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ZeroDivisionError("the flux is off")

    monkeypatch.setattr(machine, "memory", broken)
    result = invoke("doctor")
    assert result.exit_code == 1
    assert re.search(r"^problem  memory +ZeroDivisionError: the flux is off$", result.stdout, re.M)
    assert FIRST.match(result.stdout.splitlines()[0])
    assert "\nok       speed" in result.stdout
    assert result.stdout.splitlines()[-1].startswith("1 problems")


def test_long_and_steering_texts_stay_within_the_width() -> None:
    text = lines(Finding("hub cache", NOTE, "/" + "x" * 300 + "\n\x1b[31m", "do\tthis " * 40))
    assert all(len(line) <= WIDTH for line in text.splitlines())
    assert "\x1b" not in text and "\\x1b" in text


def test_nothing_private_is_told(tmp_path: Path) -> None:
    home = tmp_path / "homes" / "veronika"
    home.mkdir(parents=True)
    scratch = tmp_path / "veronika" / "cache"
    environment = {
        "HOME": str(home),
        "GPT2CHAT_CACHE": str(scratch),
        "HF_ENDPOINT": "https://me:sesame99@hub.example:8443/x?token=open77",
        "HF_TOKEN": "hf_abcdefghijkl",
        "LOGNAME": "veronika",
        "GPT2CHAT_NATIVE": "0",
    }
    for form in ([], ["--json"]):
        result = spawn(["-c", QUICKLY.format(form)], home, **environment)
        assert "https://hub.example:8443/x" in result.stdout, result.stderr
        everything = result.stdout + result.stderr
        for secret in ("sesame99", "open77", "hf_abc", "veronika", str(home)):
            assert secret not in everything
        assert "(user)/cache" in "".join(result.stdout.split())
        assert "offline" in result.stdout


def test_private_words_are_hidden_wherever_they_stand(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "ann"))
    monkeypatch.setenv("LOGNAME", "ann")
    monkeypatch.setenv("MY_API_KEY", "swordfish")
    hide = privacy.hider()
    said = f"{tmp_path}/ann/x {tmp_path}/annex /data/ann/y https://u:p@h/ swordfish hf_1234567"
    assert hide(said) == f"~/x {tmp_path}/annex /data/(user)/y https://h/ (hidden) (hidden)"
    assert hide({"a": [f"{tmp_path}/ann", 3, None]}) == {"a": ["~", 3, None]}
    assert getpass.getuser() == "ann"


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("https://huggingface.co", "https://huggingface.co"),
        ("https://u:p@h:1/x?t=1#f", "https://h:1/x"),
        ("u:p@h", "(no address)"),
        ("https://h:port", "(no address)"),
        ("", "(no address)"),
    ],
)
def test_of_an_address_only_the_place_is_shown(url: str, shown: str) -> None:
    assert privacy.plain_url(url) == shown


# -- what is missing or wrong ------------------------------------------------------------------------------------------


def test_it_works_offline_without_a_compiler_a_cache_and_optional_packages(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    empty = tmp_path / "bin"
    empty.mkdir()
    nowhere = {"GPT2CHAT_CACHE": str(tmp_path / "file" / "x"), "HF_HOME": str(tmp_path / "file" / "y")}
    result = spawn(["-c", QUICKLY.format(["--json"])], tmp_path, PATH=str(empty), HOME=str(tmp_path), **nowhere)
    data = json.loads(result.stdout)
    found = {entry["name"]: entry for entry in data["findings"]}
    assert "no C++ compiler" in found["native"]["found"]
    assert "g++" in found["native"]["advice"]
    for name, variable in (("cache", "GPT2CHAT_CACHE"), ("hub cache", "HF_HOME")):
        assert "cannot be written" in found[name]["found"]
        assert variable in found[name]["advice"]
    assert "torch" in found["speed"]["facts"]["runtime"]
    assert found["speed"]["facts"]["decode_tok_s"] > 0
    assert found["speed"]["state"] != PROBLEM
    assert os.listdir(empty) == []


def test_a_package_that_is_missing_or_old_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    optional = [name for _, packages in OPTIONAL.values() for name in packages]
    versions = {**dict.fromkeys(NEEDS, "99.0"), "tqdm": None, "numpy": "1.25.9", **dict.fromkeys(optional, "1.0")}
    monkeypatch.setattr(diagnosis, "_version", versions.get)
    found = finding("packages")
    assert found.state == PROBLEM
    assert found.advice.startswith("tqdm>=4.66, numpy>=1.26 needed: pip install")
    assert "tqdm missing" in found.found
    versions |= {"tqdm": "4.66.1", "numpy": "1.26.0rc1"}
    assert finding("packages").state == OK
    versions["prompt_toolkit"] = None
    found = finding("packages")
    assert found.state == NOTE and "gpt2chat[chat]" in found.advice and "gpt2chat[serve]" not in found.advice
    versions |= {"prompt_toolkit": "3.0", "uvicorn": None}
    found = finding("packages")
    assert found.state == NOTE and "uvicorn missing" in found.found
    assert found.advice == "if you like: pip install 'gpt2chat[serve]' (gpt2chat serve)"


def test_the_lowest_versions_are_those_of_the_installation() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    asked = dict(line.split(">=") for line in setup["options"]["install_requires"].split())
    assert {name: ".".join(map(str, low)) for name, low in NEEDS.items()} == asked
    assert setup["options"]["python_requires"] == f">={'.'.join(map(str, diagnosis.PYTHON))}"


def test_the_optional_packages_are_those_of_the_extras() -> None:
    setup = configparser.ConfigParser()
    setup.read(ROOT / "setup.cfg", encoding="utf-8")
    for extra, (_, packages) in OPTIONAL.items():
        assert re.findall(r"^(\w+)>=", setup["options.extras_require"][extra], flags=re.M) == list(packages)
    assert set(OPTIONAL["serve"][1]) == set(EXTRA)


def test_a_package_that_cannot_be_imported_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch", None)
    found = finding("device")
    assert (found.state, found.found.partition(":")[0]) == (PROBLEM, "ModuleNotFoundError")
    assert "pip install" in found.advice


def test_an_old_python_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(diagnosis, "PYTHON", (99, 0))
    assert finding("gpt2chat").state == PROBLEM


@pytest.mark.parametrize(
    ("cuda", "card", "words"),
    [("12.8", False, "whl/cpu"), ("12.8", True, "driver"), (None, True, "whl/cu")],
)
def test_a_build_of_torch_that_does_not_fit_the_machine_is_noted(
    cuda: str | None, card: bool, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch.version, "cuda", cuda)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    monkeypatch.setattr(machine, "nvidia", lambda: card)
    found = finding("device")
    assert found.state == NOTE
    assert words in found.advice


def test_a_card_is_named_with_its_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    card = SimpleNamespace(name="NVIDIA H200", total_memory=139 * 10**9)
    monkeypatch.setattr(torch.version, "cuda", "12.8")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda number: card)
    found = finding("device")
    assert (found.state, found.found) == (OK, "cuda: NVIDIA H200 (139 GB), torch built for CUDA 12.8")


@pytest.mark.parametrize(("threads", "usable", "state"), [(1, 8, NOTE), (8, 8, OK), (1, 2, OK), (8, 2, NOTE)])
def test_threads_that_do_not_fit_the_cores_are_noted(
    threads: int, usable: int, state: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import torch

    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    monkeypatch.setattr(machine, "cores", lambda: (8, usable))
    assert finding("threads").state == state


def test_little_memory_and_little_disk_are_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for available, state in ((10**8, PROBLEM), (10**9, NOTE), (10**10, OK)):
        monkeypatch.setattr(machine, "memory", lambda available=available: (2 * 10**10, available))
        assert finding("memory").state == state
    real = shutil.disk_usage(".")
    monkeypatch.setattr(shutil, "disk_usage", lambda path: real._replace(free=9 * 10**8))
    assert (finding("disk").state, finding("cache").state) == (PROBLEM, NOTE)


def test_a_damaged_vocabulary_is_a_problem(monkeypatch: pytest.MonkeyPatch) -> None:
    assert finding("tokenizer").state == OK
    monkeypatch.setattr(tokenizer, "RANKS_SHA256", "0" * 64)
    assert finding("tokenizer").state == PROBLEM


def test_a_decoder_that_is_switched_off_says_how_to_switch_it_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(kernels.OFF, "0")
    found = finding("native")
    assert (found.state, "unset GPT2CHAT_NATIVE" in found.advice) == (NOTE, True)


def test_a_folder_that_was_removed_is_one_line_of_the_report(quick: None, tmp_path: Path) -> None:
    gone = tmp_path / "gone"
    gone.mkdir()
    code = f"import os; os.rmdir({str(gone)!r}); from gpt2chat.diagnosis import *; print(*diagnose(CHECKS[8:10]))"
    result = spawn(["-c", code], gone)
    assert "FileNotFoundError" in result.stdout and "name='cache'" in result.stdout


# -- measuring ---------------------------------------------------------------------------------------------------------


def test_the_speed_test_keeps_to_its_time(tmp_path: Path) -> None:
    loaded, runtime = decoding.open_model(
        str(save_tiny(tmp_path / "tiny.pt")), decoding.choose(quantize="none"), decoding.pretrained.load
    )
    began = time.perf_counter()
    prefill, decode = diagnosis.speeds(runtime, 0.5)
    assert time.perf_counter() - began < 2.0
    assert prefill > 0 and decode > 0
    assert loaded.config.n_ctx == 128


def test_a_slow_machine_is_still_measured(tmp_path: Path) -> None:
    _, runtime = decoding.open_model(
        str(save_tiny(tmp_path / "tiny.pt")), decoding.choose(quantize="none"), decoding.pretrained.load
    )
    prefill, decode = diagnosis.speeds(runtime, 0.0)
    assert prefill > 0 and decode > 0


def test_folders_are_looked_at_without_a_trace(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "one").write_bytes(b"x" * 1000)
    (tmp_path / "a" / "b" / "two").write_bytes(b"x" * 500)
    (tmp_path / "a" / "loop").symlink_to(tmp_path)
    before = sorted(tmp_path.rglob("*"))
    found = machine.folder(tmp_path / "a")
    assert (found.exists, found.writable, found.more) == (True, True, False)
    assert 1500 <= found.size < 1500 + 5000
    absent = machine.folder(tmp_path / "not" / "there")
    assert (absent.exists, absent.writable, absent.size) == (False, True, 0)
    assert sorted(tmp_path.rglob("*")) == before


def test_findings_are_plain_data() -> None:
    for found in diagnose(CHECKS[:-1]):
        assert json.loads(json.dumps(found.to_dict())) == json.loads(json.dumps(dataclasses.asdict(found)))
