"""The Hugging Face hub: a repository's name -> a folder of its cache with config and weights.

The hub's client keeps the cache (HF_HOME, HF_HUB_CACHE, HF_TOKEN, HF_ENDPOINT and HF_HUB_OFFLINE mean what they always
mean), `transfer` brings in the large files; this module chooses the files, looks at the disk first and says in one line
what went wrong.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import logging
import re
import shutil
import time
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gpt2chat.errors import WeightsError
from gpt2chat.pretrained import transfer
from gpt2chat.pretrained.places import read_json

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
ABANDONED = 7 * 24 * 3600.0  # seconds after which nobody comes back to an unfinished file of another version


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
                return _cached(repository, revision, name, reason)
            raise _missing(name, repository, reason) from None


def _fetch(repository: str, revision: str, name: str) -> Path:
    from huggingface_hub import HfApi, hf_hub_download

    api, asked = HfApi(), revision or None
    info = transfer.retrying(lambda: api.model_info(repository, revision=asked, files_metadata=True, timeout=20))
    commit = str(info.sha)
    chosen = _choose({sibling.rfilename: sibling for sibling in info.siblings or []}, name, repository)
    absent = [file for file in chosen if not _is_here(file, repository, commit)]
    _sweep(repository, absent)
    _check_room(absent, repository, name)
    for file in chosen:
        if file.lfs and file.size and file in absent:
            transfer.fetch(repository, file, commit, name)
        path = Path(transfer.retrying(functools.partial(hf_hub_download, repository, file.rfilename, revision=commit)))
        _check(path, file, repository, name)
    if revision != commit:
        _remember(repository, revision or "main", commit)
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


def _is_here(file: RepoSibling, repository: str, commit: str) -> bool:
    from huggingface_hub import try_to_load_from_cache

    return isinstance(try_to_load_from_cache(repository, file.rfilename, revision=commit), str)


def _sweep(repository: str, wanted: list[RepoSibling]) -> None:
    """Remove what killed downloads of other versions, or of other programs, left behind long ago."""
    parts = {transfer.part_of(transfer.blob_of(repository, file)).name for file in wanted if file.lfs}
    for path in (transfer.folder_of(repository) / "blobs").glob("*.incomplete"):
        with contextlib.suppress(OSError):
            if path.name not in parts and time.time() - path.stat().st_mtime > ABANDONED:
                path.unlink()


def _check_room(files: list[RepoSibling], repository: str, name: str) -> None:
    """Compare what is still to come with the free space of the cache's disk."""
    from huggingface_hub import constants

    blobs = [transfer.blob_of(repository, file) for file in files if file.lfs]
    had = sum(transfer.size_of(place) for blob in blobs for place in (blob, transfer.part_of(blob)))
    needed = sum(file.size or 0 for file in files) - had
    cache = Path(constants.HF_HUB_CACHE)
    place = next(folder for folder in (cache, *cache.parents) if folder.exists())
    free = shutil.disk_usage(place).free
    if needed > free:
        raise WeightsError(
            f"model: {name!r}: expected {needed / 1e6:.0f} MB free in {cache}, found {free / 1e6:.0f} MB: free some, "
            "or set HF_HOME to another disk"
        )


def _check(path: Path, file: RepoSibling, repository: str, name: str) -> None:
    """Compare a file with the hub's hash: a small one each time, a large one once."""
    blob = path.resolve()
    if file.lfs and transfer.is_marked(blob):
        return
    transfer.check(path, file, name)
    if file.lfs:
        transfer.mark(blob)
        if not path.is_symlink():  # where links are not to be had, the client copied the blob
            transfer.blob_of(repository, file).unlink(missing_ok=True)


def _remember(repository: str, revision: str, commit: str) -> None:
    """Note in the cache which commit a branch was at, as the client does, so that it is found offline."""
    place = transfer.folder_of(repository) / "refs" / revision
    with contextlib.suppress(OSError):
        place.parent.mkdir(parents=True, exist_ok=True)
        place.write_text(commit)


def _cached(repository: str, revision: str, name: str, reason: str) -> Path:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import LocalEntryNotFoundError

    try:
        folder = Path(snapshot_download(repository, revision=revision or None, local_files_only=True))
    except (LocalEntryNotFoundError, OSError, ValueError):
        raise _missing(name, repository, reason) from None
    if not _is_complete(folder):
        raise _missing(name, repository, reason)
    return folder


def _is_complete(folder: Path) -> bool:
    """Whether a folder of the cache holds a config with weights, of a large model all parts."""
    names = {path.name for path in folder.iterdir() if path.exists()}
    chosen = [[n for n in names if re.fullmatch(pattern, n)] for config, pattern in CHOICES if config in names]
    weights = next((found for found in chosen if found), [])
    for index in (name for name in weights if name.endswith(".index.json")):
        listed = read_json(folder / index).get("weight_map")
        return isinstance(listed, dict) and names.issuperset(map(str, listed.values()))
    return any("-of-" not in name for name in weights)


def _reason(error: Exception, repository: str, revision: str) -> tuple[str, bool]:
    """Return what went wrong, and whether it may pass, so that the cache is worth a look."""
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    place, response = transfer.endpoint(), transfer.response_of(error)
    if isinstance(error, transfer.WrongAnswer):
        return f"{error}: try again", True
    if isinstance(error, HFValidationError):
        return "that cannot be the name of a repository", False
    if isinstance(error, GatedRepoError):
        return f"its terms must be accepted at {place}/{repository}, and HF_TOKEN set to your token", False
    if isinstance(error, RevisionNotFoundError):
        return f"{place} has no revision {revision!r} of it", False
    if isinstance(error, RepositoryNotFoundError):
        return f"{place} has no public repository of that name (a private one needs HF_TOKEN)", False
    if response is not None:
        return _status(response, place)
    return _broken(error, place)


def _broken(error: Exception, place: str) -> tuple[str, bool]:
    """Return what went wrong where the hub gave no answer, and whether it may pass."""
    from huggingface_hub import constants

    kind = type(error.__cause__ or error).__name__
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"the disk of {constants.HF_HUB_CACHE} is full", False
    if isinstance(error, OSError) and error.filename:
        return f"{constants.HF_HUB_CACHE} cannot be written ({error.strerror}): set HF_HOME to another folder", False
    if "Consistency check failed" in str(error):
        return "the download was cut short: try again", True
    if kind in transfer.BROKEN:
        return f"the connection to {place} broke off ({kind}): try again", True
    if isinstance(error, UnicodeEncodeError):
        return "HF_TOKEN holds characters that no token has", False
    if isinstance(error, (ValueError, LookupError)) or kind == "FileMetadataError":
        return f"{place} does not answer as a hub: check HF_ENDPOINT and the network ({kind})", True
    return f"{place} cannot be reached, and they are not in the cache ({kind})", True


def _status(response: Any, place: str) -> tuple[str, bool]:
    status = response.status_code
    if status in (401, 403):
        return f"{place} refuses access ({status}): check HF_TOKEN", False
    if status == 429:
        wait = transfer.retry_after(response.headers)
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
    from huggingface_hub.utils import logging as client

    before = client.get_verbosity()
    client.set_verbosity(logging.CRITICAL)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        client.set_verbosity(before)
