"""The C interface of decode.cpp, as ctypes sees it."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from ctypes import POINTER, Structure, byref, c_char_p, c_float, c_int, c_int32, c_int64, c_void_p
from typing import Any

KINDS = {"float32": 0, "bfloat16": 1, "int8": 2, "int4": 3}


class Linear(Structure):
    """A matrix in panels; see decode.cpp."""

    _fields_ = (
        ("weight", c_void_p),
        ("scale", c_void_p),
        ("sum", c_void_p),
        ("bias", c_void_p),
        ("kind", c_int32),
        ("outputs", c_int32),
        ("inputs", c_int32),
    )


class Block(Structure):
    """One layer."""

    _fields_ = (
        ("norm1_weight", c_void_p),
        ("norm1_bias", c_void_p),
        ("norm2_weight", c_void_p),
        ("norm2_bias", c_void_p),
        ("attention_in", Linear),
        ("attention_out", Linear),
        ("inner", Linear),
        ("outer", Linear),
    )


class Model(Structure):
    """The whole network."""

    _fields_ = (
        ("blocks", POINTER(Block)),
        ("norm_weight", c_void_p),
        ("norm_bias", c_void_p),
        ("positions", c_void_p),
        ("embedding", Linear),
        ("head", Linear),
        ("layers", c_int32),
        ("width", c_int32),
        ("heads", c_int32),
        ("wide", c_int32),
        ("epsilon", c_float),
    )


class Kernel:
    """The functions of the compiled library; `instructions` names what of the processor it uses, or is empty."""

    def __init__(self, library: ctypes.CDLL) -> None:
        library.gpt2_instructions.restype = c_char_p
        library.gpt2_instructions.argtypes = ()
        library.gpt2_scratch.restype = c_int64
        library.gpt2_scratch.argtypes = (c_void_p, c_int, c_int, c_int)
        library.gpt2_forward.restype = None
        rows = (c_void_p, c_void_p, c_int, c_void_p, c_void_p, c_int, c_int)
        library.gpt2_forward.argtypes = (*rows, c_void_p, c_int, c_void_p, c_void_p, c_int)
        library.gpt2_read.restype = c_int64
        library.gpt2_read.argtypes = (c_void_p, c_int64, c_int)
        self._library = library
        self.instructions: str = (library.gpt2_instructions() or b"").decode()

    def scratch(self, model: Model, rows: int, longest: int, threads: int) -> int:
        """Return the bytes of memory that `forward` works in."""
        return int(self._library.gpt2_scratch(byref(model), rows, longest, threads))

    def read(self, memory: int, size: int, threads: int) -> int:
        """Read `size` bytes at an address as fast as the decoder could; return their sum."""
        return int(self._library.gpt2_read(memory, size, threads))

    def forward(
        self,
        model: Model,
        ids: Sequence[int],
        positions: Sequence[int],
        tables: Sequence[int],
        page: int,
        longest: int,
        wanted: Sequence[int],
        logits: int,
        scratch: int,
        threads: int,
    ) -> None:
        """Run rows through the model; addresses of memory are whole numbers. See gpt2_forward in decode.cpp."""
        rows = len(ids)
        numbers, pointers = c_int32 * rows, c_void_p * rows
        where: tuple[Any, ...] = (numbers(*positions), pointers(*tables), page, longest)
        asked = (c_int32 * len(wanted))(*wanted)
        self._library.gpt2_forward(
            byref(model), numbers(*ids), rows, *where, asked, len(wanted), logits, scratch, threads
        )
