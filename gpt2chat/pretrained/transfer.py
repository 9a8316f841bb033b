"""One file of the hub -> the cache: whole, checked, and going on where an earlier process stopped.

The hub's client begins a file anew in every process. Here what came of a large file stays in the cache, as
`blobs/<SHA-256>.incomplete`; one process at a time writes there, under the lock that the client takes for the same
blob, and only a file with the right SHA-256 becomes a blob, which the client then finds. All bytes are written at
their own place, never appended, so that even a lock that does not lock (some network disks) cannot spoil a file.
"""

from __future__ import annotations

import contextlib
import datetime
import email.utils
import hashlib
import logging
import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gpt2chat.errors import WeightsError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

TRIES, LONGEST_WAIT = 4, 60.0  # for the list of files, and for each file without news; seconds between two
NEWS = 2**18  # bytes that make the tries count anew
SILENT_WAIT = 1.0  # seconds; a longer pause is told
BROKEN = ("ReadError", "RemoteProtocolError", "ConnectionError")  # a connection that ended too early, by its error
LOST = (*BROKEN, "ConnectError", "ConnectTimeout", "ReadTimeout")  # and a network that was there a moment ago
Answer = TypeVar("Answer")


class WrongAnswer(Exception):
    """What the hub sends is not the file that it lists."""


def folder_of(repository: str) -> Path:
    """Return where the cache keeps a repository."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    return Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model")


def blob_of(repository: str, file: RepoSibling) -> Path:
    """Return the place of a large file's content in the cache."""
    assert file.lfs is not None
    return folder_of(repository) / "blobs" / file.lfs.sha256


def part_of(blob: Path) -> Path:
    """Return the place of what has come of a blob."""
    return blob.with_name(blob.name + ".incomplete")


def size_of(path: Path) -> int:
    """Return the bytes of a file; 0 for one that is not there."""
    try:
        return path.stat().st_size
    except OSError:
        return 0


def fetch(repository: str, file: RepoSibling, commit: str, name: str) -> None:
    """Make a large file a blob of the cache; raises WeightsError for `name` when the content is not what was listed.

    Nothing is done where the hub calls the blob by another name (some mirrors do): the client then fetches it.
    """
    from huggingface_hub import get_hf_file_metadata, hf_hub_url

    url = hf_hub_url(repository, file.rfilename, revision=commit)
    blob = blob_of(repository, file)
    part = part_of(blob)
    if blob.exists() or retrying(lambda: get_hf_file_metadata(url), passing=LOST).etag != blob.name:
        return
    blob.parent.mkdir(parents=True, exist_ok=True)
    with _alone(repository, file):
        if not blob.exists():
            retrying(lambda: _receive(url, part, file), passing=LOST, had=lambda: size_of(part))
            check(part, file, name)
            os.replace(part, blob)
            mark(blob)


@contextlib.contextmanager
def _alone(repository: str, file: RepoSibling) -> Iterator[None]:
    """Hold the lock that programs take while they fetch a blob; a process that is killed lets go of it."""
    from huggingface_hub.utils import WeakFileLock

    folder, blob = folder_of(repository), blob_of(repository, file)
    place = folder.parent / ".locks" / folder.name / f"{blob.name}.lock"
    place.parent.mkdir(parents=True, exist_ok=True)
    with contextlib.ExitStack() as stack:
        try:
            stack.enter_context(WeakFileLock(place, timeout=0.5))
        except TimeoutError:
            _tell(f"another program is downloading {file.rfilename}: waiting for it to end ({place})")
            stack.enter_context(WeakFileLock(place))
        yield


def _receive(url: str, part: Path, file: RepoSibling) -> None:
    """Ask for what is missing of a file, and write it down as it comes."""
    from huggingface_hub import constants, get_session
    from huggingface_hub.utils import build_hf_headers, hf_raise_for_status, tqdm

    size, have = file.size or 0, size_of(part)
    if have > size:
        part.unlink()
        have = 0
    if have == size:
        return
    headers = {**build_hf_headers(), "Accept-Encoding": "identity"}
    if have:
        headers["Range"] = f"bytes={have}-"
    with get_session().stream("GET", url, headers=headers, timeout=constants.HF_HUB_DOWNLOAD_TIMEOUT) as response:
        if response.status_code != 416:
            hf_raise_for_status(response)
        start = _start(response, have, size)
        if start is None:
            if response.status_code != 200:
                part.unlink(missing_ok=True)
            raise WrongAnswer(f"{endpoint()} does not send {file.rfilename} as it lists it ({size} bytes)")
        part.touch()
        shown = {"total": size, "initial": start, "unit": "B", "unit_scale": True, "desc": file.rfilename[-40:]}
        with part.open("r+b") as out, tqdm(**shown, disable=None, name="huggingface_hub.http_get") as bar:
            out.seek(start)
            for chunk in response.iter_bytes():
                out.write(chunk)
                bar.update(len(chunk))
            out.flush()
            os.fsync(out.fileno())
            if out.tell() < size:
                raise ConnectionError


def _start(response: Any, have: int, size: int) -> int | None:
    """Return where an answer begins in the file, 0 when it takes no notice of a Range; None for one that is no use."""
    if response.status_code == 206:
        place = response.headers.get("Content-Range", "")
        return have if place.startswith(f"bytes {have}-") and place.endswith((f"/{size}", "/*")) else None
    return 0 if response.headers.get("Content-Length", str(size)) == str(size) else None


def check(path: Path, file: RepoSibling, name: str) -> None:
    """Compare a file with the hash that the hub gives, if it does; one that differs is removed, from the cache too."""
    blob = path.resolve()
    kind, expected, found = _hashes(blob, file)
    if expected in (None, found):
        return
    for place in (path, blob):
        place.unlink(missing_ok=True)
    raise WeightsError(
        f"model: {name!r}: {file.rfilename} was damaged on its way and removed: try again (its {kind} begins with "
        f"{found[:12]}, expected {expected[:12]})"
    )


def _hashes(path: Path, file: RepoSibling) -> tuple[str, str | None, str]:
    """Return what a file's hash is called, which the hub gives, and which it is; git's own for a small file."""
    with path.open("rb") as data:
        if file.lfs:
            return "SHA-256", file.lfs.sha256, hashlib.file_digest(data, "sha256").hexdigest()
        content = data.read()
    head = b"blob %d\0" % len(content)
    return "blob id", file.blob_id, hashlib.sha1(head + content, usedforsecurity=False).hexdigest()


def mark(blob: Path) -> None:
    """Note in the cache that a large file was compared, so that the next start is quick."""
    with contextlib.suppress(OSError):
        _note(blob).touch()


def is_marked(blob: Path) -> bool:
    """Whether a large file was compared before."""
    return _note(blob).exists()


def _note(blob: Path) -> Path:
    return blob.with_name(blob.name + ".verified")


def retrying(
    ask: Callable[[], Answer], passing: tuple[str, ...] = ("ReadError",), had: Callable[[], int] = lambda: 0
) -> Answer:
    """Ask again after a busy hub's pause or a `passing` error; the tries count anew when `had` says that bytes came."""
    failed, before = 0, had()
    while True:
        try:
            with _own_pauses():
                return ask()
        except Exception as error:
            if had() - before >= NEWS:
                failed, before = 0, had()
            wait = _pause(error, float(2**failed), passing)
            failed += 1
            if failed == TRIES or wait is None or wait > LONGEST_WAIT:
                raise
            _tell_pause(error, wait)
        time.sleep(wait)


def _pause(error: Exception, usual: float, passing: tuple[str, ...]) -> float | None:
    """Return how long to wait before the next try; None when there is no use in one."""
    response = response_of(error)
    if response is None:
        return usual if type(error).__name__ in passing else None
    if response.status_code == 429 or response.status_code >= 500:
        return retry_after(response.headers) or usual
    return None


def _tell_pause(error: Exception, wait: float) -> None:

    if wait <= SILENT_WAIT:
        return
    response = response_of(error)
    if response is None:
        _tell(f"the connection to {endpoint()} broke off: trying again in {wait:.0f} seconds")
    elif retry_after(response.headers):
        _tell(f"{endpoint()} asks to wait {wait:.0f} seconds")
    else:
        _tell(f"{endpoint()} answers {response.status_code}: trying again in {wait:.0f} seconds")


def _tell(line: str) -> None:
    logging.getLogger(__name__).warning(line)


def endpoint() -> str:
    """Return the hub's address as messages show it: without a password that may be in it."""
    from huggingface_hub import constants

    return re.sub(r"//[^/@]*@", "//", constants.ENDPOINT)


def response_of(error: Exception) -> Any:
    """Return the hub's answer in an error or in its cause, if there was one."""
    found = (getattr(each, "response", None) for each in (error, error.__cause__))
    return next((response for response in found if response is not None), None)


def retry_after(headers: Any) -> float | None:
    """Return the seconds that an answer asks to wait: by its rate limit, as a number or until a date (RFC 9110)."""
    limit = re.search(r"\br\s*=\s*0\s*;\s*t\s*=\s*(\d+)", str(headers.get("RateLimit", "")))
    value = limit[1] if limit else str(headers.get("Retry-After", ""))
    if value.isdecimal():
        return float(value)
    with contextlib.suppress(ValueError, TypeError):
        until = email.utils.parsedate_to_datetime(value)
        until = until if until.tzinfo else until.replace(tzinfo=datetime.UTC)
        return max(0.0, (until - datetime.datetime.now(datetime.UTC)).total_seconds())
    return None


@contextlib.contextmanager
def _own_pauses() -> Iterator[None]:
    """Pass on what a busy hub answers at once: the client alone would sleep, silently, as long as it is told to."""
    from huggingface_hub import get_session

    def pass_on(response: Any) -> None:
        if response.status_code == 429 or response.status_code >= 500:
            response.raise_for_status()

    hooks = get_session().event_hooks["response"]
    hooks.append(pass_on)
    try:
        yield
    finally:
        hooks.remove(pass_on)
