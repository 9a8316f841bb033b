"""The native decoder: one C++ file, compiled once on the user's machine and kept in the user's cache.

Nothing happens at import. `kernel()` loads the library, compiling it first where that was not done yet for this
processor; without a compiler it raises `KernelUnavailable` with the reason, and everything runs through torch.
"""

from __future__ import annotations

import contextlib
import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path

from gpt2chat.files import cache_folder
from gpt2chat.kernels.binding import Kernel

SOURCE = Path(__file__).with_name("decode.cpp")
FLAGS = ("-std=c++17", "-O3", "-shared", "-fPIC", "-fno-math-errno", "-fno-trapping-math", "-w")
# What a compiler may not know; each is tried in turn.
VARIANTS = (
    ("-march=native", "-mprefer-vector-width=512", "-fopenmp"),
    ("-march=native", "-fopenmp"),
    ("-mcpu=native", "-fopenmp"),
    ("-march=native",),
    ("-mcpu=native",),
    (),
)
COMPILERS = ("c++", "g++", "clang++")
TRANSIENT = ("No space left on device", "signal terminated", "annot allocate memory", "Disk quota exceeded")
OFF = "GPT2CHAT_NATIVE"  # set to 0: never use the native decoder


class KernelUnavailable(Exception):
    """The native decoder cannot be used here; the message says why."""


_found: Kernel | KernelUnavailable | None = None


def kernel(notice: Callable[[str], None] | None = None) -> Kernel:
    """Return the native decoder; `notice` is told when it has to be compiled first.

    Raises KernelUnavailable. Both answers are kept for the life of the process.
    """
    global _found
    if os.environ.get(OFF) == "0":
        raise KernelUnavailable(f"{OFF}=0")
    if _found is None:
        try:
            _found = _open(_library(notice or (lambda _: None)))
        except KernelUnavailable as error:
            _found = error
    if isinstance(_found, KernelUnavailable):
        raise _found
    return _found


def _open(path: Path) -> Kernel:
    try:
        opened = Kernel(ctypes.CDLL(str(path)))
    except (OSError, AttributeError) as error:
        raise KernelUnavailable(f"{path} cannot be loaded: {error}") from error
    if not opened.instructions:
        raise KernelUnavailable(f"{path} was compiled for another processor")
    return opened


def _library(notice: Callable[[str], None]) -> Path:
    """Return the compiled library of this source on this processor, compiled now if it is not there."""
    if sys.byteorder != "little" or os.name != "posix":
        raise KernelUnavailable(f"not built for {platform.system()} on {platform.machine()}")
    key = hashlib.sha256(SOURCE.read_bytes() + repr((FLAGS, VARIANTS)).encode() + _processor().encode()).hexdigest()
    cache = cache_folder()
    if cache is None:
        raise KernelUnavailable("there is no home folder to keep it in: set GPT2CHAT_CACHE")
    folder, name = cache / "kernels", f"decode-{key[:20]}"
    if library := _whole(folder, name):
        return library
    compiler = os.environ.get("CXX") or next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise KernelUnavailable("no C++ compiler is installed (g++ or clang++)")
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _alone(folder):
            library = _whole(folder, name)
            if library is None:
                notice("compiling the native decoder for this processor, once")
                library = _compile(compiler, folder, name)
    except OSError as error:
        way_out = "set GPT2CHAT_CACHE to a folder that can be"
        raise KernelUnavailable(f"{folder} cannot be written: {error.strerror or error}; {way_out}") from error
    return library


def _whole(folder: Path, name: str) -> Path | None:
    """Return the library of this name whose checksum, which its file name ends with, is right."""
    for path in folder.glob(f"{name}-*.so"):
        if path.name == _named(name, path.read_bytes()):
            return path
    return None


def _named(name: str, content: bytes) -> str:
    return f"{name}-{zlib.crc32(content):08x}.so"


def _compile(compiler: str, folder: Path, name: str) -> Path:
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        made, said, english = Path(scratch, "decode.so"), "", {**os.environ, "LC_ALL": "C"}
        for variant in VARIANTS:
            command = [*compiler.split(), *FLAGS, *variant, str(SOURCE), "-o", str(made)]
            try:
                done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, env=english)
            except OSError as error:
                raise KernelUnavailable(f"{compiler!r} cannot be run: {error.strerror or error}") from error
            if done.returncode == 0:
                library = folder / _named(name, made.read_bytes())
                os.replace(made, library)
                return library
            lines = done.stderr.decode("utf-8", "replace").splitlines()
            said = said or next(iter(lines), f"exit status {done.returncode}")
            if done.returncode < 0 or any(words in line for line in lines for words in TRANSIENT):
                break  # a slower library would be kept for good
        raise KernelUnavailable(f"{compiler} cannot compile it: {said}")


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Let one process at a time compile; the others then find the library."""
    import fcntl

    with (folder / "lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _processor() -> str:
    """Return what the processor can do, so that a cache that is shared between machines holds one library for each."""
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        for line in file:
            if line.startswith(("flags", "Features")):
                return platform.machine() + line
    return f"{platform.machine()} {platform.processor()} {platform.system()}"
