"""Weights come from the hub whole, or one line says why not; the next try goes on with what a failure left."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import json
import logging
import os
import shutil
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from filelock import FileLock
from helpers_cli import environment, invoke, spawn
from helpers_hub import SIGNATURE, Hub, commit, facts
from helpers_weights import plain, reference
from huggingface_hub import close_session, constants
from safetensors.torch import save_file
from transformers import GPT2LMHeadModel

from gpt2chat import pretrained
from gpt2chat.errors import WeightsError
from gpt2chat.pretrained.transfer import retry_after

NAME = "someone/small"
SECRET = "hf_theSecretThatNobodyMaySee"
STORE = "/stored/"  # where the content of large files is
Files = dict[str, bytes]


@pytest.fixture(scope="module")
def models() -> list[GPT2LMHeadModel]:
    return [reference(seed, n_embd=16) for seed in range(2)]


def written(folder: Path, write: Callable[[Path], object]) -> Files:
    folder.mkdir()
    write(folder)
    return {path.name: path.read_bytes() for path in sorted(folder.iterdir())}


@pytest.fixture(scope="module")
def whole(models: list[GPT2LMHeadModel], tmp_path_factory: pytest.TempPathFactory) -> list[Files]:
    """Two versions of a repository with model.safetensors."""
    base = tmp_path_factory.mktemp("whole")
    return [written(base / str(n), model.save_pretrained) for n, model in enumerate(models)]


@pytest.fixture(scope="module")
def sharded(models: list[GPT2LMHeadModel], tmp_path_factory: pytest.TempPathFactory) -> Files:
    place = tmp_path_factory.mktemp("sharded") / "files"
    return written(place, lambda folder: models[0].save_pretrained(folder, max_shard_size="100KB"))


@pytest.fixture(scope="module")
def pickled(models: list[GPT2LMHeadModel], whole: list[Files], tmp_path_factory: pytest.TempPathFactory) -> Files:
    path = tmp_path_factory.mktemp("pickled") / "pytorch_model.bin"
    torch.save(models[0].state_dict(), path)
    return {"config.json": whole[0]["config.json"], path.name: path.read_bytes()}


@pytest.fixture
def cache(tmp_path: Path) -> Path:
    return tmp_path / "home" / "hub"


@pytest.fixture
def waits(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The pauses that were made, without the time they take."""
    taken: list[float] = []
    monkeypatch.setattr("time.sleep", taken.append)
    return taken


def direct(monkeypatch: pytest.MonkeyPatch, endpoint: str, cache: Path) -> None:
    """Let the client, which has read its environment, use another hub and cache."""
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    settings: dict[str, object] = {
        "ENDPOINT": endpoint,
        "HUGGINGFACE_CO_URL_TEMPLATE": template,
        "HF_HUB_CACHE": str(cache),
    }
    settings |= {"HF_HUB_OFFLINE": False, "HF_HUB_DISABLE_XET": True, "DOWNLOAD_CHUNK_SIZE": 2**18}
    for name, value in settings.items():
        monkeypatch.setattr(constants, name, value)
    monkeypatch.setenv("HF_TOKEN", SECRET)


@pytest.fixture
def hub(whole: list[Files], waits: list[float], cache: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """A hub with the first version of the small model in `main`."""
    running = Hub()
    running.publish(NAME, whole[0])
    direct(monkeypatch, running.endpoint, cache)
    yield running
    close_session()
    running.close()


@pytest.fixture(autouse=True)
def nothing_shows_the_token(capfd: pytest.CaptureFixture[str]) -> Iterator[None]:
    yield
    shown = capfd.readouterr()
    assert SECRET not in shown.out + shown.err


def loads(model: GPT2LMHeadModel, name: str = NAME) -> None:
    loaded = pretrained.load(name)
    assert torch.equal(loaded.weights["wte.weight"], plain(model)["wte.weight"])
    assert torch.equal(loaded.weights["h.1.mlp.c_fc.bias"], plain(model)["h.1.mlp.c_fc.bias"])


def fails(cache: Path, *expected: str, name: str = NAME) -> None:
    """One line names the model and the reason, without the token or a signed address."""
    result = invoke("inspect", name)
    assert SECRET not in result.stdout + result.stderr
    assert SIGNATURE not in result.stderr
    assert (result.exit_code, result.stdout) == (1, "")
    assert result.stderr.startswith("error: model: ") and result.stderr.count("\n") == 1, result.stderr
    for text in (repr(name), *expected):
        assert text in result.stderr
    assert len(begun(cache)) <= 1  # what the next try goes on with


def begun(cache: Path) -> list[Path]:
    """The files that are not yet whole."""
    return list(cache.rglob("*.incomplete"))


def ranges(hub: Hub) -> list[str | None]:
    """What was asked of the content of large files: the parts, or None for all."""
    return [request.range for request in hub.asked("GET", STORE)]


def part(cache: Path, content: bytes, whole: bytes) -> Path:
    """What an earlier process left of a large file."""
    blobs = cache / "models--someone--small" / "blobs"
    blobs.mkdir(parents=True)
    path = blobs / f"{hashlib.sha256(whole).hexdigest()}.incomplete"
    path.write_bytes(content)
    return path


# -- what is there -------------------------------------------------------------------------------------------------


def test_the_second_start_downloads_nothing(
    hub: Hub, models: list[GPT2LMHeadModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    read: list[str] = []
    compute = hashlib.file_digest
    monkeypatch.setattr(hashlib, "file_digest", lambda data, kind: (read.append(kind), compute(data, kind))[1])
    loads(models[0])
    assert len(hub.asked("GET", STORE)) == 1
    hub.requests.clear()
    loads(models[0])
    assert read == ["sha256"]  # once, for the weights
    assert [(r.method, r.path) for r in hub.requests] == [("GET", f"/api/models/{NAME}?blobs=true")]


def test_the_token_goes_to_the_hub_and_not_to_its_store(hub: Hub, models: list[GPT2LMHeadModel]) -> None:
    loads(models[0])
    for request in hub.requests:
        assert request.authorization == (None if STORE in request.path else f"Bearer {SECRET}")


def test_shards_are_all_fetched(hub: Hub, models: list[GPT2LMHeadModel], sharded: Files) -> None:
    hub.publish("someone/sharded", {**sharded, "pytorch_model.bin": b"not wanted"})
    loads(models[0], "someone/sharded")
    assert len(hub.asked("GET", STORE)) == sum(name.endswith(".safetensors") for name in sharded) > 1


def test_a_pickle_is_taken_where_there_is_nothing_better(
    hub: Hub, models: list[GPT2LMHeadModel], pickled: Files
) -> None:
    hub.publish("someone/old", pickled)
    loads(models[0], "someone/old")


def test_a_repository_without_weights_is_told_what_was_found(hub: Hub, cache: Path) -> None:
    hub.publish("someone/data", {"README.md": b"hello", "train.csv": b"1,2"})
    fails(cache, "expected config.json with model.safetensors", "found README.md, train.csv", name="someone/data")
    hub.publish("someone/empty", {})
    fails(cache, "found no files", name="someone/empty")


@pytest.mark.parametrize("revision", [commit(1), "v2", "feature/longer"])
def test_a_revision_is_taken_and_found_again_without_a_network(
    revision: str, hub: Hub, models: list[GPT2LMHeadModel], whole: list[Files]
) -> None:
    hub.publish(NAME, whole[1], "main" if revision == commit(1) else revision)
    hub.revisions[NAME]["main"] = commit(0)
    loads(models[1], f"{NAME}@{revision}")
    loads(models[0])
    hub.close()
    loads(models[1], f"{NAME}@{revision}")
    loads(models[0])


def test_an_adapter_takes_the_revision_of_its_base_that_it_names(
    hub: Hub, models: list[GPT2LMHeadModel], whole: list[Files], tmp_path: Path
) -> None:
    hub.publish(NAME, whole[1], "v2")
    hub.revisions[NAME]["main"] = commit(0)
    config = {"peft_type": "LORA", "base_model_name_or_path": NAME, "revision": "v2", "r": 1, "lora_alpha": 1}
    (tmp_path / "adapter_config.json").write_text(json.dumps(config))
    place = "base_model.model.transformer.h.0.attn.c_proj.lora_{}.weight"
    zeros = {place.format("A"): torch.zeros(1, 16), place.format("B"): torch.zeros(16, 1)}
    save_file(zeros, tmp_path / "adapter_model.safetensors")
    loads(models[1], str(tmp_path))


def test_a_branch_that_moved_is_followed(hub: Hub, models: list[GPT2LMHeadModel], whole: list[Files]) -> None:
    loads(models[0])
    hub.publish(NAME, whole[1])
    loads(models[1])


def test_a_process_of_its_own_finds_hub_and_cache_in_the_environment_and_is_quiet(
    whole: list[Files], models: list[GPT2LMHeadModel], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hub = Hub(prefix="/mirror/hf")
    hub.publish(NAME, whole[0])
    hub.plant("GET", STORE, times=1, cut=1000)
    child = {"HF_ENDPOINT": hub.endpoint + "/", "HF_HOME": str(tmp_path / "home"), "HF_TOKEN": SECRET}
    child |= {"HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_XET": "1"}
    result = spawn(["-m", "gpt2chat", "inspect", NAME], tmp_path, **child)
    hub.close()
    assert (result.returncode, result.stderr) == (0, "")
    assert result.stdout.startswith(f"model      {NAME}: ") and SECRET not in result.stdout
    direct(monkeypatch, hub.endpoint, tmp_path / "home" / "hub")
    loads(models[0])


# -- what the hub refuses ------------------------------------------------------------------------------------------

BAD_TOKEN = {"X-Error-Message": "Invalid credentials in Authorization header"}
GATED = {"X-Error-Code": "GatedRepo", "X-Error-Message": "Access to model someone/small is restricted"}
REFUSALS = {
    "a bad token": (401, BAD_TOKEN, "refuses access (401): check HF_TOKEN"),
    "no right": (403, {}, "refuses access (403): check HF_TOKEN"),
    "gated": (403, GATED, f"terms must be accepted at http://127.0.0.1:{{port}}/{NAME}, and HF_TOKEN set"),
    "unknown or private": (401, {"X-Error-Code": "RepoNotFound"}, "no public repository of that name"),
    "another status": (418, {}, "answers 418"),
}


@pytest.mark.parametrize("part", ["/api/", "/resolve/"])
@pytest.mark.parametrize("refusal", REFUSALS)
def test_a_refusal_is_told_at_once(
    refusal: str, part: str, hub: Hub, cache: Path, models: list[GPT2LMHeadModel], waits: list[float]
) -> None:
    status, headers, expected = REFUSALS[refusal]
    hub.plant(part=part, status=status, headers=headers)
    fails(cache, expected.format(port=hub.endpoint.rpartition(":")[2]))
    assert waits == []
    hub.faults.clear()
    loads(models[0])


def test_a_repository_or_a_revision_that_is_not_there(hub: Hub, cache: Path) -> None:
    fails(cache, "no public repository of that name", name="nobody/nothing")
    fails(cache, "has no revision 'v9'", name=f"{NAME}@v9")
    fails(cache, "cannot be the name of a repository", name="a--b/c")
    assert not cache.exists()


def test_a_token_that_cannot_be_sent(hub: Hub, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", f"\u00fc{SECRET}")
    fails(cache, "HF_TOKEN holds characters that no token has")


def test_a_password_in_the_address_of_a_mirror_is_not_shown(
    cache: Path, monkeypatch: pytest.MonkeyPatch, waits: list[float]
) -> None:
    direct(monkeypatch, "http://user:s3cretpw@127.0.0.1:9", cache)
    with pytest.raises(WeightsError) as caught:
        pretrained.load(NAME)
    close_session()
    assert "http://127.0.0.1:9" in str(caught.value) and "s3cretpw" not in str(caught.value)


# -- a busy hub ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "method, part", [("GET", "/api/models"), ("HEAD", "model.safe"), ("GET", STORE), ("GET", "config")]
)
@pytest.mark.parametrize(
    "status, headers, pause",
    [(429, {"Retry-After": "7"}, 7), (429, {"RateLimit": '"api";r=0;t=8'}, 8), (500, {}, 1), (503, {}, 1)],
)
def test_a_busy_hub_is_asked_again_after_the_pause_it_wants(
    status: int,
    headers: dict[str, str],
    pause: float,
    method: str,
    part: str,
    hub: Hub,
    models: list[GPT2LMHeadModel],
    waits: list[float],
    caplog: pytest.LogCaptureFixture,
) -> None:
    hub.plant(method, part, times=1, status=status, headers=headers)
    loads(models[0])
    assert waits == [pause]
    assert caplog.messages == ([f"{hub.endpoint} asks to wait {pause} seconds"] if headers else [])


def test_a_pause_of_our_own_is_told_too(
    hub: Hub, models: list[GPT2LMHeadModel], waits: list[float], caplog: pytest.LogCaptureFixture
) -> None:
    hub.plant("GET", "/api/", times=2, status=502)
    hub.plant("GET", STORE, times=2, cut=0)
    loads(models[0])
    assert waits == [1, 2, 1, 2]
    assert caplog.messages == [
        f"{hub.endpoint} answers 502: trying again in 2 seconds",
        f"the connection to {hub.endpoint} broke off: trying again in 2 seconds",
    ]


@pytest.mark.parametrize("kind", ["GMT", "-0000"])
def test_a_pause_may_be_given_as_a_date(kind: str) -> None:
    at = datetime.datetime.now(datetime.UTC) + datetime.timedelta(seconds=100)
    found = retry_after({"Retry-After": at.strftime(f"%a, %d %b %Y %H:%M:%S {kind}")})
    assert found is not None and 90 < found < 101
    assert retry_after({"Retry-After": "Sat, 01 Jan 2000 00:00:00 GMT"}) == 0
    assert retry_after({"Retry-After": "soon"}) is None


@pytest.mark.parametrize("method, part", [("GET", "/api/models"), ("HEAD", "model.safe"), ("GET", STORE)])
@pytest.mark.parametrize("headers", [{"Retry-After": "3600"}, {"RateLimit": '"resolvers";r=0;t=3600'}])
def test_a_long_pause_is_told_and_not_made(
    headers: dict[str, str], method: str, part: str, hub: Hub, cache: Path, waits: list[float]
) -> None:
    hub.plant(method, part, status=429, headers=headers)
    fails(cache, "asks to wait 3600 seconds (429, too many requests)")
    assert waits == []


@pytest.mark.parametrize("method, part", [("GET", "/api/models"), ("HEAD", "model.safe"), ("GET", STORE)])
@pytest.mark.parametrize("status", [500, 503])
def test_a_hub_that_stays_broken_is_given_up(
    status: int, method: str, part: str, hub: Hub, cache: Path, models: list[GPT2LMHeadModel], waits: list[float]
) -> None:
    hub.plant(method, part, status=status)
    fails(cache, f"answers {status}")
    assert waits == [1, 2, 4]
    hub.faults.clear()
    loads(models[0])


@pytest.mark.parametrize("fault", [{"status": 503}, {"status": 429}, {"reset": True, "cut": 0}, {"body": b"<html>"}])
def test_a_full_cache_stands_in_for_a_broken_hub(
    fault: dict[str, Any], hub: Hub, models: list[GPT2LMHeadModel]
) -> None:
    loads(models[0])
    hub.plant(**fault)
    loads(models[0])


# -- broken connections --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("cut", [0, 1, 2**18 + 1, 3 * 2**18, 3 * 10**6])
def test_a_download_that_breaks_off_goes_on_where_it_was(cut: int, hub: Hub, models: list[GPT2LMHeadModel]) -> None:
    hub.plant("GET", STORE, times=1, cut=cut)
    loads(models[0])
    assert ranges(hub) == [None, f"bytes={cut}-" if cut else None]


def test_an_end_that_comes_too_early_is_seen_where_no_length_is_stated(hub: Hub, models: list[GPT2LMHeadModel]) -> None:
    hub.plant("GET", STORE, times=1, cut=10**6, length=-1)
    loads(models[0])
    assert ranges(hub) == [None, "bytes=1000000-"]


def test_a_download_that_breaks_off_again_and_again_goes_on(hub: Hub, models: list[GPT2LMHeadModel]) -> None:
    hub.plant("GET", STORE, times=7, cut=2**18)
    loads(models[0])


@pytest.mark.parametrize("part", ["/api/", "config.json", STORE])
def test_a_connection_that_is_torn_is_made_again(part: str, hub: Hub, models: list[GPT2LMHeadModel]) -> None:
    hub.plant("GET", part, times=2, cut=100, reset=True)
    loads(models[0])


@pytest.mark.parametrize("reset", [False, True])
@pytest.mark.parametrize("cut", [0, 1000])
def test_a_connection_that_always_breaks_is_given_up(
    cut: int, reset: bool, hub: Hub, cache: Path, models: list[GPT2LMHeadModel]
) -> None:
    hub.plant("GET", STORE, cut=cut, reset=reset)
    fails(cache, "broke off", "try again")
    hub.faults.clear()
    loads(models[0])


@pytest.mark.parametrize("length", [1000, 10**7])
def test_a_body_of_another_length_is_refused(
    length: int, hub: Hub, cache: Path, models: list[GPT2LMHeadModel], whole: list[Files]
) -> None:
    body = whole[0]["model.safetensors"]
    hub.plant("GET", STORE, length=length, body=body[:length])
    fails(cache, f"does not send model.safetensors as it lists it ({len(body)} bytes): try again")
    assert begun(cache) == []
    hub.faults.clear()
    loads(models[0])


def test_damaged_content_is_removed(hub: Hub, cache: Path, models: list[GPT2LMHeadModel], whole: list[Files]) -> None:
    body = bytearray(whole[0]["model.safetensors"])
    body[-1] ^= 1
    hub.plant("GET", STORE, times=1, body=bytes(body))
    fails(cache, "model.safetensors was damaged on its way and removed: try again (its SHA-256")
    assert begun(cache) == []
    loads(models[0])


def test_a_damaged_small_file_is_removed(
    hub: Hub, cache: Path, models: list[GPT2LMHeadModel], whole: list[Files]
) -> None:
    content = whole[0]["config.json"]
    hub.plant("GET", "config.json", times=1, body=content.replace(b"1", b"2", 1))
    fails(cache, "config.json was damaged on its way and removed: try again (its blob id")
    loads(models[0])
    next(cache.rglob("config.json")).resolve().write_bytes(content.replace(b"1", b"2", 1))
    fails(cache, "config.json was damaged")
    loads(models[0])


def test_a_hub_that_lists_no_hash_of_small_files(hub: Hub, models: list[GPT2LMHeadModel], whole: list[Files]) -> None:
    siblings = [{"rfilename": name, **facts(name, content)} for name, content in whole[0].items()]
    siblings = [{key: value for key, value in known.items() if key != "blobId"} for known in siblings]
    hub.plant("GET", "/api/", body=json.dumps({"id": NAME, "sha": commit(0), "siblings": siblings}).encode())
    loads(models[0])


@pytest.mark.parametrize("part", ["/api/", "/resolve/"])
def test_a_page_of_something_else_is_not_taken_for_the_hub(
    part: str, hub: Hub, cache: Path, models: list[GPT2LMHeadModel]
) -> None:
    hub.plant(part=part, status=200, body=b"<html>Please log in to this network</html>")
    fails(cache, "does not answer as a hub")
    hub.faults.clear()
    loads(models[0])


# -- no network ----------------------------------------------------------------------------------------------------


def test_without_a_network_the_cache_is_used(
    hub: Hub, cache: Path, models: list[GPT2LMHeadModel], waits: list[float]
) -> None:
    loads(models[0])
    hub.close()
    loads(models[0])
    assert waits == []
    shutil.rmtree(cache)
    fails(cache, "cannot be reached, and they are not in the cache (ConnectError)", "--model demo")


def test_told_to_stay_offline_nobody_is_asked(
    hub: Hub, cache: Path, models: list[GPT2LMHeadModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    loads(models[0])
    hub.requests.clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    loads(models[0])
    shutil.rmtree(cache)
    fails(cache, "HF_HUB_OFFLINE is set, and they are not in the cache")
    assert hub.requests == []


@pytest.mark.parametrize("broken", ["config", "-00001-", "-00002-", "index"])
def test_a_part_of_a_model_in_the_cache_is_not_enough(
    broken: str, hub: Hub, cache: Path, models: list[GPT2LMHeadModel], sharded: Files
) -> None:
    sha = hub.publish("someone/sharded", sharded)
    hub.plant("HEAD", broken, status=404)
    fails(cache, "answers 404", name=f"someone/sharded@{sha}")
    hub.plant(status=503)
    fails(cache, "answers 503", name=f"someone/sharded@{sha}")
    hub.faults.clear()
    loads(models[0], f"someone/sharded@{sha}")


# -- the disk ------------------------------------------------------------------------------------------------------


def test_a_disk_without_room_is_seen_before_the_download(
    hub: Hub, cache: Path, models: list[GPT2LMHeadModel], whole: list[Files], monkeypatch: pytest.MonkeyPatch
) -> None:
    sha = hub.publish(NAME, whole[1], "v2")
    loads(models[1], f"{NAME}@v2")
    with monkeypatch.context() as small:
        small.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2_000_000))
        fails(cache, "expected 3 MB free", "found 2 MB", "HF_HOME")
        loads(models[1], f"{NAME}@{sha}")
    loads(models[0])


def test_a_cache_that_cannot_be_written(hub: Hub, cache: Path) -> None:
    cache.parent.write_text("a file where the folder should be")
    fails(cache, f"{cache} cannot be written (Not a directory): set HF_HOME")


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() != 0, reason="needs the right to mount")
def test_a_disk_that_fills_up_is_told(
    hub: Hub, cache: Path, models: list[GPT2LMHeadModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    cache.mkdir(parents=True)
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(cache)], capture_output=True).returncode:
        pytest.skip("mounting is not allowed here")
    try:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=10**9))
        fails(cache, f"the disk of {cache} is full")
        subprocess.run(["mount", "-o", "remount,size=20m", str(cache)], check=True)
        loads(models[0])
    finally:
        subprocess.run(["umount", str(cache)], check=True)


def test_what_is_there_of_a_file_needs_no_room(
    hub: Hub, cache: Path, models: list[GPT2LMHeadModel], whole: list[Files], monkeypatch: pytest.MonkeyPatch
) -> None:
    body = whole[0]["model.safetensors"]
    part(cache, body[: 2 * 10**6], body)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=2_000_000))
    loads(models[0])
    assert ranges(hub) == ["bytes=2000000-"]


def test_without_links_a_file_is_kept_once(
    hub: Hub, cache: Path, models: list[GPT2LMHeadModel], whole: list[Files], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_SYMLINKS", True)
    loads(models[0])
    size = len(whole[0]["model.safetensors"])
    assert sum(path.stat().st_size >= size for path in cache.rglob("*") if path.is_file()) == 1
    loads(models[0])
    assert len(ranges(hub)) == 1


# -- what an earlier process left ----------------------------------------------------------------------------------

posix = pytest.mark.skipif(os.name != "posix", reason="signals")


@contextlib.contextmanager
def another(hub: Hub, cache: Path, folder: Path) -> Iterator[subprocess.Popen[str]]:
    """A process of its own that loads the model."""
    child = environment(HF_ENDPOINT=hub.endpoint, HF_HOME=str(cache.parent), HF_HUB_OFFLINE="0", HF_TOKEN=SECRET)
    command = [sys.executable, "-m", "gpt2chat", "inspect", NAME]
    with subprocess.Popen(
        command, cwd=folder, env=child, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    ) as process:
        try:
            yield process
        finally:
            process.kill()


def wait_for(hub: Hub, cache: Path, size: int) -> None:
    """Wait until a download has come so far and stands still."""
    pause = threading.Event()
    assert hub.stalled.wait(60)
    for _ in range(6000):
        if begun(cache) and begun(cache)[0].stat().st_size >= size:
            return
        pause.wait(0.01)
    raise AssertionError("the bytes that were sent are not in the cache")


@posix
@pytest.mark.parametrize("stop", ["SIGKILL", "SIGTERM", "SIGINT"])
def test_a_download_that_was_stopped_goes_on_in_the_next_process(
    stop: str, hub: Hub, cache: Path, models: list[GPT2LMHeadModel], tmp_path: Path
) -> None:
    hub.plant("GET", STORE, times=1, cut=2**20, stall=True)
    with another(hub, cache, tmp_path) as process:
        wait_for(hub, cache, 2**20 - 2**14)
        process.send_signal(getattr(signal, stop))
        shown = process.communicate(timeout=60)
    hub.go_on.set()
    assert process.returncode == {"SIGINT": 130, "SIGTERM": 143, "SIGKILL": -signal.SIGKILL}[stop]
    assert SECRET not in "".join(shown) and "Traceback" not in shown[1]
    had = begun(cache)[0].stat().st_size
    loads(models[0])
    assert ranges(hub) == [None, f"bytes={had}-"]
    assert begun(cache) == []
    assert all(request.authorization is None for request in hub.asked("GET", STORE))
    assert all(request.authorization == f"Bearer {SECRET}" for request in hub.asked("GET", "/resolve/"))


@pytest.mark.parametrize("reset", [False, True])
def test_a_download_that_was_given_up_goes_on_at_the_next_try(
    reset: bool, hub: Hub, cache: Path, models: list[GPT2LMHeadModel]
) -> None:
    hub.plant("GET", STORE, times=1, cut=10**6)
    hub.plant("GET", STORE, cut=0, reset=reset)
    fails(cache, "broke off", "try again")
    hub.faults.clear()
    hub.requests.clear()
    loads(models[0])
    assert ranges(hub) == ["bytes=1000000-"]


@posix
def test_a_process_waits_for_another_and_takes_over_from_it(
    hub: Hub, cache: Path, models: list[GPT2LMHeadModel], tmp_path: Path
) -> None:
    hub.plant("GET", STORE, times=1, cut=2**20, stall=True)
    with another(hub, cache, tmp_path) as first:
        wait_for(hub, cache, 2**20 - 2**14)
        with another(hub, cache, tmp_path) as second:
            assert second.stderr is not None
            assert "another program is downloading model.safetensors: waiting" in second.stderr.readline()
            first.kill()
            had = begun(cache)[0].stat().st_size
            shown = second.communicate(timeout=60)
    hub.go_on.set()
    assert second.returncode == 0 and shown[0].startswith(f"model      {NAME}: ") and shown[1] == ""
    assert ranges(hub) == [None, f"bytes={had}-"]
    assert begun(cache) == []
    loads(models[0])


def test_what_another_program_has_fetched_meanwhile_is_taken(
    hub: Hub, cache: Path, models: list[GPT2LMHeadModel], whole: list[Files], monkeypatch: pytest.MonkeyPatch
) -> None:
    body = whole[0]["model.safetensors"]
    left = part(cache, body[:1000], body)
    lock = cache / ".locks" / "models--someone--small" / f"{left.stem}.lock"
    lock.parent.mkdir(parents=True)
    told: list[str] = []

    theirs = FileLock(lock, thread_local=False)

    def finish() -> None:
        left.with_suffix("").write_bytes(body)
        theirs.release()

    def tell(line: str) -> None:
        told.append(line)
        threading.Timer(0.2, finish).start()

    monkeypatch.setattr(logging.getLogger("gpt2chat.pretrained.transfer"), "warning", tell)
    with theirs:
        loads(models[0])
    assert told == [f"another program is downloading model.safetensors: waiting for it to end ({lock})"]
    assert ranges(hub) == []


@pytest.mark.parametrize("had", [0, 1, 10**6, -1])
@pytest.mark.parametrize("ignored", [False, True])
def test_a_hub_may_take_no_notice_of_what_is_there(
    had: int, ignored: bool, hub: Hub, cache: Path, models: list[GPT2LMHeadModel], whole: list[Files]
) -> None:
    body = whole[0]["model.safetensors"]
    left = part(cache, body[:had], body)
    hub.plant("GET", STORE, times=1, whole=ignored, cut=10)
    hub.plant("GET", STORE, whole=ignored)
    first = left.stat().st_size
    loads(models[0])
    then = max(first, 10) if ignored else first + 10
    assert ranges(hub)[0] == (f"bytes={first}-" if first else None)
    assert ranges(hub)[1:] == ([f"bytes={then}-"] if then < len(body) else [])
    assert next(cache.rglob("model.safetensors")).read_bytes() == body


def test_all_of_a_file_is_there(hub: Hub, cache: Path, models: list[GPT2LMHeadModel], whole: list[Files]) -> None:
    part(cache, whole[0]["model.safetensors"], whole[0]["model.safetensors"])
    loads(models[0])
    assert ranges(hub) == []


def test_more_is_there_than_the_file_has(
    hub: Hub, cache: Path, models: list[GPT2LMHeadModel], whole: list[Files]
) -> None:
    part(cache, whole[0]["model.safetensors"] + b"more", whole[0]["model.safetensors"])
    loads(models[0])
    assert ranges(hub) == [None]


def test_what_is_there_is_of_another_file(
    hub: Hub, cache: Path, models: list[GPT2LMHeadModel], whole: list[Files]
) -> None:
    body = whole[0]["model.safetensors"]
    part(cache, b"x" * 10**6, body)
    fails(cache, "model.safetensors was damaged on its way and removed: try again")
    assert begun(cache) == []
    loads(models[0])
    assert ranges(hub) == ["bytes=1000000-", None]


@pytest.mark.parametrize("place", ["bytes 0-9/10", "bytes 1000000-1999999/2000000", "bytes 5-999999/{size}", "", "?"])
def test_a_part_that_was_not_asked_for_is_not_taken(
    place: str, hub: Hub, cache: Path, models: list[GPT2LMHeadModel], whole: list[Files]
) -> None:
    body = whole[0]["model.safetensors"]
    part(cache, body[: 10**6], body)
    hub.plant("GET", STORE, times=1, headers={"Content-Range": place.format(size=len(body))})
    fails(cache, "does not send model.safetensors as it lists it")
    assert begun(cache) == []
    loads(models[0])
    assert ranges(hub) == ["bytes=1000000-", None]


@pytest.mark.parametrize("had", [0, 10**6])
def test_a_part_that_cannot_be_had_is_told_and_the_next_try_is_clean(
    had: int, hub: Hub, cache: Path, models: list[GPT2LMHeadModel], whole: list[Files]
) -> None:
    body = whole[0]["model.safetensors"]
    if had:
        part(cache, body[:had], body)
    hub.plant("GET", STORE, times=1, status=416)
    fails(cache, "does not send model.safetensors as it lists it")
    assert begun(cache) == []
    loads(models[0])


def test_a_page_instead_of_the_rest_costs_nothing_of_what_is_there(
    hub: Hub, cache: Path, models: list[GPT2LMHeadModel], whole: list[Files]
) -> None:
    body = whole[0]["model.safetensors"]
    part(cache, body[: 10**6], body)
    hub.plant("GET", STORE, times=1, body=b"<html>Please log in to this network</html>", whole=True)
    fails(cache, "does not send model.safetensors as it lists it")
    loads(models[0])
    assert ranges(hub) == ["bytes=1000000-"] * 2


def test_what_nobody_comes_back_to_is_swept_up(
    hub: Hub, cache: Path, models: list[GPT2LMHeadModel], whole: list[Files]
) -> None:
    body = whole[0]["model.safetensors"]
    wanted = part(cache, body[: 10**6], body)
    old, new = (wanted.with_name(name) for name in ("old.1234.incomplete", "new.incomplete"))
    for path in (old, new):
        path.write_bytes(b"of another version")
    for path in (wanted, old):
        os.utime(path, (time.time() - 30 * 24 * 3600,) * 2)
    loads(models[0])
    assert ranges(hub) == ["bytes=1000000-"]
    assert begun(cache) == [new]


# -- other ways to a file ------------------------------------------------------------------------------------------


def test_an_offer_of_xet_changes_nothing(
    hub: Hub, models: list[GPT2LMHeadModel], monkeypatch: pytest.MonkeyPatch
) -> None:
    hub.xet = True
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", False)
    hub.plant("GET", STORE, times=1, cut=10**6)
    loads(models[0])
    assert ranges(hub) == [None, "bytes=1000000-"]
    assert hub.asked("GET", "/xet-") == []


def test_a_mirror_with_names_of_its_own_is_left_to_the_client(
    hub: Hub, cache: Path, models: list[GPT2LMHeadModel], whole: list[Files]
) -> None:
    hub.own_names = True
    body = bytearray(whole[0]["model.safetensors"])
    body[-1] ^= 1
    hub.plant("GET", STORE, times=1, body=bytes(body))
    fails(cache, "model.safetensors was damaged on its way and removed: try again")
    loads(models[0])
    loads(models[0])
    assert ranges(hub) == [None, None]
