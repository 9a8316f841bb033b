"""Facts of this machine, from the standard library alone, so that they are there when torch is not."""

from __future__ import annotations

import contextlib
import os
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

INSTRUCTIONS = {  # as /proc/cpuinfo writes them -> as people do
    "avx2": "AVX2",
    "avx512f": "AVX-512",
    "avx_vnni": "AVX-VNNI",
    "avx512_vnni": "AVX-512-VNNI",
    "avx512_bf16": "AVX-512-bf16",
    "amx_bf16": "AMX-bf16",
    "amx_int8": "AMX-int8",
    "asimd": "NEON",
    "asimddp": "dot products",
    "i8mm": "I8MM",
    "bf16": "bf16",
    "sve": "SVE",
}
COMPILERS = ("c++", "g++", "clang++")
CGROUP = Path("/sys/fs/cgroup")
WALK_SECONDS = 1.0  # a cache can hold millions of files


@dataclass(frozen=True)
class Folder:
    """A folder that may not be there yet; sizes in bytes, `more` when there was no time to count all of it."""

    path: Path
    exists: bool
    writable: bool
    size: int
    more: bool
    free: int


def processor() -> str:
    """Return the processor's name, as far as the system tells it."""
    for line in _cpuinfo():
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    if sys.platform == "darwin":
        return _output(["sysctl", "-n", "machdep.cpu.brand_string"]) or platform.processor()
    return platform.processor() or platform.machine()


def instructions() -> list[str]:
    """Return which of the instruction sets that matter this processor has; none where the system does not tell."""
    for line in _cpuinfo():
        if line.startswith(("flags", "Features")):
            flags = set(line.partition(":")[2].split())
            return [name for flag, name in INSTRUCTIONS.items() if flag in flags]
    return ["NEON"] if platform.machine().lower() in ("arm64", "aarch64") else []


def cores() -> tuple[int, int]:
    """Return how many logical processors there are, and how many this process may use."""
    there = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else there
    with contextlib.suppress(OSError, ValueError):  # the share of a container; "max" is none
        quota, period = (CGROUP / "cpu.max").read_text("ascii").split()
        usable = max(1, min(usable, -(-int(quota) // int(period))))
    return there, usable


def memory() -> tuple[int, int] | None:
    """Return the bytes of memory there are and those still to be had; None where the system does not tell."""
    with contextlib.suppress(OSError, KeyError, ValueError):
        with open("/proc/meminfo", encoding="ascii") as file:
            sizes = {name: int(rest.split()[0]) << 10 for name, _, rest in (line.partition(":") for line in file)}
        total, available = sizes["MemTotal"], sizes["MemAvailable"]
        with contextlib.suppress(OSError, ValueError):
            limit, used = (int((CGROUP / name).read_text("ascii")) for name in ("memory.max", "memory.current"))
            total, available = min(total, limit), min(available, max(0, limit - used))
        return total, available
    return None


def folder(path: Path, count: bool = True) -> Folder:
    """Look at a folder, or where it would be made, and `count` its bytes; nothing stays behind."""
    exists = path.is_dir()
    place = next((each for each in (path, *path.parents) if each.exists()), Path("/"))
    size, more = _size(path) if exists and count else (0, False)
    return Folder(path, exists, _writable(place), size, more, shutil.disk_usage(place).free)


def _writable(place: Path) -> bool:
    try:
        with tempfile.TemporaryFile(dir=place):
            return True
    except OSError:
        return False


def _size(path: Path) -> tuple[int, bool]:
    """Return the bytes in a folder, links not followed, and whether time ran out."""
    total, end = 0, time.monotonic() + WALK_SECONDS
    for size in _sizes(path):
        total += size
        if time.monotonic() > end:
            return total, True
    return total, False


def _sizes(path: Path) -> Iterator[int]:
    with contextlib.suppress(OSError), os.scandir(path) as entries:
        for entry in entries:
            if entry.is_dir(follow_symlinks=False):
                yield from _sizes(Path(entry.path))
            else:
                with contextlib.suppress(OSError):
                    yield entry.stat(follow_symlinks=False).st_size


def compiler() -> str | None:
    """Return the C++ compiler that the native decoder would be compiled with: its command, and what it says it is."""
    command = os.environ.get("CXX") or next(filter(None, map(shutil.which, COMPILERS)), None)
    if command is None:
        return None
    version = _output([*command.split(), "--version"])
    return f"{command} ({version.splitlines()[0]})" if version else command


def nvidia() -> bool:
    """Whether there are signs of an NVIDIA card with a driver."""
    return Path("/dev/nvidia0").exists() or Path("/proc/driver/nvidia/version").exists()


def _output(command: list[str]) -> str:
    """Return what a program prints, or "" when it cannot be run."""
    try:
        done = subprocess.run(command, capture_output=True, stdin=subprocess.DEVNULL, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return ""
    return done.stdout.decode("utf-8", "replace").strip()


def _cpuinfo() -> list[str]:
    with contextlib.suppress(OSError), open("/proc/cpuinfo", encoding="utf-8", errors="replace") as file:
        return file.read().partition("\n\n")[0].splitlines()
    return []
