"""What the machine has: device, number types, memory allocator."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

import torch

from gpt2chat.errors import ConfigError

MADV_PAGEOUT = 21  # <linux/mman.h>, since Linux 5.4
DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16}  # in which a model can be taught ...
HALF = {"float16": torch.float16}  # ... and another in which it can only answer: its gradients would vanish


def pick_device(name: str = "auto") -> torch.device:
    """Return the device called `name`; `auto` takes CUDA, then MPS, then the CPU.

    Raises ConfigError when the device is unknown or absent.
    """
    present = ["cpu"]
    if torch.cuda.is_available():
        present.insert(0, "cuda")
    elif torch.backends.mps.is_available():
        present.insert(0, "mps")
    if name == "auto":
        return torch.device(present[0])
    if name.split(":")[0] not in present:
        raise ConfigError(f"device: expected auto or one of {', '.join(present)} (what this machine has), got {name!r}")
    try:
        device = torch.device(name)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"device: {name!r} cannot be used: {str(error).splitlines()[0]}") from error
    return device


def has_fast_bfloat16(device: torch.device) -> bool:
    """Whether matrix products in bfloat16 run in hardware (Ampere and later, AMX, AVX512-BF16)."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    if device.type == "cpu":
        return bool(torch.cpu._is_amx_tile_supported() or torch.cpu._is_avx512_bf16_supported())
    return False


def pick_dtype(name: str, device: torch.device, answering: bool = False) -> torch.dtype:
    """Return the compute type called `name`; `auto` is bfloat16 where the hardware has it, else float32."""
    if name == "auto":
        return torch.bfloat16 if has_fast_bfloat16(device) else torch.float32
    known = DTYPES | HALF if answering else DTYPES
    if name not in known:
        raise ConfigError(f"dtype: expected auto, {', '.join(list(known)[:-1])} or {list(known)[-1]}, got {name!r}")
    return known[name]


def autocast(device: torch.device, dtype: torch.dtype) -> contextlib.AbstractContextManager[object]:
    """Run matrix products in `dtype` while weights stay float32; does nothing for float32."""
    if dtype == torch.float32:
        return contextlib.nullcontext()
    return torch.autocast(device.type, dtype)


def tune_allocator() -> None:
    """Let glibc keep freed memory instead of returning it to the kernel after each training step.

    Training frees and asks for the same large blocks each step; without this half of the time goes into page faults.
    It affects the whole process, so only programs call it, never the library, and `MemoryValve` bounds what is kept.
    Does nothing on other systems.
    """
    with contextlib.suppress(OSError, AttributeError):
        trim_threshold, mmap_max = -1, -4  # M_TRIM_THRESHOLD and M_MMAP_MAX of <malloc.h>
        libc = _libc()
        libc.mallopt(mmap_max, 0)
        libc.mallopt(trim_threshold, 2**31 - 1)


def _libc() -> ctypes.CDLL:
    if not sys.platform.startswith("linux"):
        raise OSError("no glibc here")
    return ctypes.CDLL("libc.so.6")


def forget_pages(tensor: torch.Tensor) -> None:
    """Let the kernel drop the memory of a dense tensor that is mapped from a file; it is read again when needed.

    Reading a large file through a mapping otherwise keeps all of it resident beside what was made of it.
    """
    with contextlib.suppress(OSError, AttributeError, ValueError):
        page, begin = os.sysconf("SC_PAGE_SIZE"), tensor.data_ptr()
        first, last = -(-begin // page) * page, (begin + tensor.nbytes) // page * page
        if last > first:
            _libc().madvise(ctypes.c_void_p(first), ctypes.c_size_t(last - first), MADV_PAGEOUT)


class MemoryValve:
    """Gives kept memory back to the kernel when the process has grown by half since the first look at it."""

    EVERY = 20  # steps between looks

    def __init__(self) -> None:
        self._steps, self._limit = 0, 0.0

    def step(self) -> None:
        """Count a training step; now and then look at the memory."""
        self._steps += 1
        if self._steps % self.EVERY:
            return
        with contextlib.suppress(OSError, AttributeError):
            resident = _resident_bytes()
            self._limit = self._limit or 1.5 * resident + 2**29
            if resident > self._limit:
                _libc().malloc_trim(0)


def peak_bytes(device: torch.device) -> int:
    """Return the most memory that was in use: of a GPU by tensors, else of this process; 0 where it is not known."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    with contextlib.suppress(OSError, StopIteration), open("/proc/self/status", encoding="ascii") as file:
        return int(next(line for line in file if line.startswith("VmHWM")).split()[1]) << 10
    return 0


def available_bytes() -> int:
    """Return how much memory programs can still take without pushing others out; 4 GiB where it is not known."""
    with contextlib.suppress(OSError, StopIteration), open("/proc/meminfo", encoding="ascii") as file:
        return int(next(line for line in file if line.startswith("MemAvailable")).split()[1]) << 10
    return 4 << 30


def _resident_bytes() -> int:
    with open("/proc/self/statm", encoding="ascii") as file:
        return int(file.read().split()[1]) * os.sysconf("SC_PAGE_SIZE")
