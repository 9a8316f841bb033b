"""The Hugging Face hub: a repository's name -> a folder of its cache with config and weights.

The hub's client does the transfer (HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE mean what they
always mean); this module chooses the files, looks at the disk first, checks the hashes and says in one line what went
wrong.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import logging
import re
import shutil
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from gpt2chat.errors import WeightsError

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoSibling

# Sets of files that make a model, best first; a pattern stands for the parts of a large one.
CHOICES = (
    ("config.json", r"model\.safetensors"),
    ("config.json", r"model\.safetensors\.index\.json|model-\d+-of-\d+\.safetensors"),
    ("config.json", r"pytorch_model\.bin"),
    ("config.json", r"pytorch_model\.bin\.index\.json|pytorch_model-\d+-of-\d+\.bin"),
    ("adapter_config.json", r"adapter_model\.safetensors"),
    ("adapter_config.json", r"adapter_model\.bin"),
)
TRIES, LONGEST_WAIT = 4, 60.0  # requests for the list of files; seconds between two of them
Answer = TypeVar("Answer")


def is_repository(name: str) -> bool:
    """Whether a name can be one of the hub's: `owner/name`, with `@revision` or without."""
    return bool(re.fullmatch(r"(?:[\w-][\w.-]*/[\w-][\w.-]*|distilgpt2)(?:@[\w][\w./-]*)?", name))


def download(repository: str, name: str) -> Path:
    """Return the cache folder of `repository`, downloading what is missing; raises WeightsError for `name`.

    Without a network, or when told to stay offline, what is in the cache is used.
    """
    from huggingface_hub import constants

    repository, _, revision = repository.partition("@")
    with _quiet():
        if constants.HF_HUB_OFFLINE:
            return _cached(repository, revision, name, "HF_HUB_OFFLINE is set, and they are not in the cache")
        try:
            return _fetch(repository, revision, name)
        except WeightsError:
            raise
        except Exception as error:  # the client passes on whatever its network libraries raise
            reason, temporary = _reason(error, repository, revision)
            if temporary:
                with contextlib.suppress(WeightsError):
                    return _cached(repository, revision, name, "")
            raise _missing(name, repository, reason) from None


def _fetch(repository: str, revision: str, name: str) -> Path:
    from huggingface_hub import HfApi, hf_hub_download

    api = HfApi()
    info = _retrying(lambda: api.model_info(repository, revision=revision or None, files_metadata=True, timeout=20))
    chosen = _choose({sibling.rfilename: sibling for sibling in info.siblings or []}, name, repository)
    _check_room(chosen, repository, name)
    for file in chosen:
        path = Path(hf_hub_download(repository, file.rfilename, revision=info.sha))
        _check_hash(path, file, name)
    if revision != info.sha:
        _remember(repository, revision or "main", str(info.sha))
    return path.parent


def _choose(files: dict[str, RepoSibling], name: str, repository: str) -> list[RepoSibling]:
    """Return the files to fetch: the config and the best form of the weights."""
    for config, pattern in CHOICES:
        weights = [file for path, file in files.items() if re.fullmatch(pattern, path)]
        if config in files and weights:
            return [files[config], *weights]
    shown = ", ".join(sorted(files)[:6]) or "no files"
    raise WeightsError(
        f"model: {name!r}: expected config.json with model.safetensors or pytorch_model.bin in {repository}, found "
        f"{shown}"
    )


def _check_room(files: list[RepoSibling], repository: str, name: str) -> None:
    """Compare what is still to come with the free space of the cache's disk."""
    from huggingface_hub import constants, try_to_load_from_cache

    absent = [file for file in files if not isinstance(try_to_load_from_cache(repository, file.rfilename), str)]
    needed = sum(file.size or 0 for file in absent)
    cache = Path(constants.HF_HUB_CACHE)
    place = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise WeightsError(
            f"model: {name!r}: expected {needed / 1e6:.0f} MB free in {cache}, found {free / 1e6:.0f} MB: free some, "
            "or set HF_HOME to another disk"
        )


def _check_hash(path: Path, file: RepoSibling, name: str) -> None:
    """Compare a file with the hub's SHA-256 once; a file that differs is removed from the cache."""
    expected = file.lfs.sha256 if file.lfs else None
    blob = path.resolve()
    checked = blob.with_name(blob.name + ".verified")
    if expected is None or checked.exists():
        return
    with blob.open("rb") as data:
        found = hashlib.file_digest(data, "sha256").hexdigest()
    if found == expected:
        with contextlib.suppress(OSError):
            checked.touch()
        return
    path.unlink()
    blob.unlink(missing_ok=True)
    raise WeightsError(
        f"model: {name!r}: {file.rfilename} was damaged on its way and removed: try again (its SHA-256 begins with "
        f"{found[:12]}, expected {expected[:12]})"
    )


def _remember(repository: str, revision: str, commit: str) -> None:
    """Note in the cache which commit a branch was at, as the client does, so that it is found offline."""
    from huggingface_hub import constants
    from huggingface_hub.file_download import repo_folder_name

    folder = Path(constants.HF_HUB_CACHE) / repo_folder_name(repo_id=repository, repo_type="model") / "refs"
    with contextlib.suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        (folder / revision).write_text(commit)


def _cached(repository: str, revision: str, name: str, reason: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repository, revision=revision or None, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        raise _missing(name, repository, reason) from None
    names = {path.name for path in folder.iterdir()}
    if not any(c in names and any(re.fullmatch(p, n) for n in names) for c, p in CHOICES):
        raise _missing(name, repository, reason)
    return folder


def _retrying(ask: Callable[[], Answer]) -> Answer:
    """Ask again when the hub is busy, after the pause it asks for."""
    from huggingface_hub.errors import HfHubHTTPError

    for number in range(TRIES):
        try:
            return ask()
        except HfHubHTTPError as error:
            status = error.response.status_code
            if number == TRIES - 1 or (status != 429 and status < 500):
                raise
            wait = _retry_after(error.response.headers) or float(2**number)
            if wait > LONGEST_WAIT:
                raise
            time.sleep(wait)
    raise AssertionError("the last try returns or raises")


def _retry_after(headers: Any) -> float | None:
    value = str(headers.get("Retry-After", ""))
    return float(value) if value.isdigit() else None


def _reason(error: Exception, repository: str, revision: str) -> tuple[str, bool]:
    """Return what went wrong, and whether it may pass, so that the cache is worth a look."""
    from huggingface_hub import constants
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    place = constants.ENDPOINT
    if isinstance(error, GatedRepoError):
        return f"its terms must be accepted at {place}/{repository}, and HF_TOKEN set to your token", False
    if isinstance(error, RevisionNotFoundError):
        return f"{place} has no revision {revision!r} of it", False
    if isinstance(error, RepositoryNotFoundError):
        return f"{place} has no public repository of that name (a private one needs HF_TOKEN)", False
    if isinstance(error, HfHubHTTPError):
        return _status(error, place)
    if isinstance(error, LocalEntryNotFoundError) and isinstance(error.__cause__, HfHubHTTPError):
        return _status(error.__cause__, place)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk of {constants.HF_HUB_CACHE} is full", False
    if "Consistency check failed" in str(error):
        return "the download was cut short; what has come is kept: try again", True
    return f"{place} cannot be reached, and they are not in the cache ({type(error).__name__})", True


def _status(error: Any, place: str) -> tuple[str, bool]:
    status = error.response.status_code
    if status in (401, 403):
        return f"{place} refuses access ({status}): check HF_TOKEN", False
    if status == 429:
        wait = _retry_after(error.response.headers)
        return f"{place} asks to wait{f' {wait:.0f} seconds' if wait else ''} (429, too many requests)", True
    return f"{place} answers {status}", status >= 500


def _missing(name: str, repository: str, reason: str) -> WeightsError:
    return WeightsError(
        f"model: the weights of {name!r} are not here: {reason}. Expected config.json and model.safetensors of "
        f"{repository}: put them into a folder and pass it (--model FOLDER), or go on without a network with the "
        'built-in model: --model demo, GPT2Chatbot("demo")'
    )


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Leave the reporting to our own one line; progress bars stay."""
    logger = logging.getLogger("huggingface_hub")
    before = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(before)
