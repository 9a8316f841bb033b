"""The zip that `torch.save` writes, read as plain data: whole, with the checksums of its writing, and never run."""

from __future__ import annotations

import os
import pickle
import sys
import warnings
import zipfile
import zlib
from pathlib import Path
from typing import Any, BinaryIO

import torch

from gpt2chat.errors import CheckpointError
from gpt2chat.weights import pieces

MAPPING = os.name == "posix"
Records = set[tuple[int, int]]  # (size, CRC) of what a zip holds


def unpickle(path: Path | BinaryIO, mapped: bool, records: Records | None = None) -> object:
    """Read a file of torch.save that holds plain data and tensors; raises CheckpointError without the place.

    With `records` the memory of each tensor must be one of them.
    """

    def check(storage: Any, _: str) -> Any:
        if records is not None:
            _check_numbers(storage, records, mapped)
        return storage

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the age of a pickle or of a kind of tensor
            if isinstance(path, Path) and path.suffix == ".safetensors":  # which torch takes at its word
                with path.open("rb") as file:
                    return torch.load(file, map_location=check, weights_only=True)
            return torch.load(path, map_location=check, weights_only=True, mmap=mapped)
    except CheckpointError:
        raise
    except pickle.UnpicklingError as error:
        raise CheckpointError(
            "holds objects other than plain data and tensors; refused: save state_dict() of it instead"
        ) from error
    except Exception as error:  # a pickle is a program, which can fail in any way, also for want of memory
        raise CheckpointError(f"cannot be read, perhaps cut short: {first_line(error)}") from error


def first_line(error: Exception) -> str:
    """Return what an error says in one line, or its kind."""
    return str(error).splitlines()[0] if str(error) else type(error).__name__


def is_checkpoint(path: Path) -> bool:
    """Whether a file is one of ours: a zip of torch whose pickle names the format, or a zip that is cut short."""
    try:
        with path.open("rb") as file:
            if file.read(2) != b"PK":
                return False
        with zipfile.ZipFile(path) as archive:
            for record in archive.infolist():
                if record.filename.endswith("/data.pkl") and record.compress_type == zipfile.ZIP_STORED:
                    with archive.open(record) as opened:
                        return b"gpt2chat" in opened.read(200)
            return False
    except (OSError, zipfile.BadZipFile, NotImplementedError, RuntimeError, ValueError, EOFError):
        return True


def check_records(path: Path) -> Records:
    """Check that the file is a whole torch zip of stored records, each with the CRC it was written with.

    Those that hold numbers are not read here: their sizes and CRCs are returned for `unpickle` to compare.
    """
    size = path.stat().st_size
    if size == 0:
        raise CheckpointError("expected a checkpoint, found an empty file")
    try:
        with path.open("rb") as file:
            if (begins := file.read(2)) != b"PK":
                raise CheckpointError(f"expected a .pt written by gpt2chat, found a file that begins with {begins!r}")
        with zipfile.ZipFile(path) as archive:
            records = archive.infolist()
            _check_directory(records, size)
            numbers = [record for record in records if "/data/" in record.filename]
            for record in records:
                if record not in numbers:
                    _check_record(archive, record)
    except (zipfile.BadZipFile, NotImplementedError, OverflowError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"damaged, cut short or not a checkpoint ({error}): expected a whole .pt as gpt2chat or torch writes it"
        ) from error
    return {(record.file_size, record.CRC) for record in numbers}


def _check_directory(records: list[zipfile.ZipInfo], size: int) -> None:
    """Refuse what torch never writes, before any of it is read."""
    if not any(record.filename.endswith("/data.pkl") for record in records):
        raise CheckpointError("expected a checkpoint, found another kind of zip file")
    if any(record.compress_type != zipfile.ZIP_STORED for record in records):
        raise CheckpointError("expected stored records, found compressed ones; refused")
    if sum(record.file_size for record in records) > size:
        raise CheckpointError("its records claim to be larger than the file; refused")
    if len({record.filename for record in records}) < len(records):
        raise CheckpointError("holds several records of one name; refused")


def _check_record(archive: zipfile.ZipFile, record: zipfile.ZipInfo) -> None:
    try:
        with archive.open(record) as opened:
            begin = opened.read(1 << 20)
            while opened.read(1 << 20):
                pass
    except zipfile.BadZipFile as error:
        raise CheckpointError(
            f"damaged: record {record.filename} does not have the checksum it was written with"
        ) from error
    if record.filename.endswith("/byteorder") and begin != sys.byteorder.encode():
        raise CheckpointError(f"expected {sys.byteorder}-endian numbers, found {begin[:20]!r}")


def _check_numbers(storage: torch.UntypedStorage, records: Records, mapped: bool) -> None:
    """Refuse memory that is not all of one record, whole and as it was written."""
    checksum = 0
    for piece in pieces(torch.empty(0, dtype=torch.uint8).set_(storage), mapped):  # type: ignore[call-overload]
        checksum = zlib.crc32(piece.numpy().data, checksum)
    if (storage.nbytes(), checksum) not in records and storage.nbytes():
        raise CheckpointError(
            f"damaged: {storage.nbytes()} bytes of a tensor are not a whole record with the checksum of its writing"
        )
