"""CRC-32C (Castagnoli), many bytes at a time.

The checksum of RFC 3720 (appendix B.4), which TensorFlow's files carry. A CRC register is linear over GF(2), so a
buffer is cut into lanes, all lanes are run side by side by numpy, and their registers are joined in pairs.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np

POLYNOMIAL = 0x82F63B78  # reflected
LANES, LANE_BYTES = 8192, 512
CHUNK = LANES * LANE_BYTES


def _tables() -> np.ndarray:
    """Return (4, 256) uint32: what a byte at distance 0 to 3 from the end of a word adds to the register."""
    first = np.arange(256, dtype=np.uint32)
    for _ in range(8):
        first = np.where(first & 1, (first >> 1) ^ np.uint32(POLYNOMIAL), first >> 1)
    tables = [first]
    for _ in range(3):
        tables.append(first[tables[-1] & 0xFF] ^ (tables[-1] >> 8))
    return np.stack(tables)


TABLES = _tables()


def _step(state: np.ndarray, tables: np.ndarray = TABLES) -> np.ndarray:
    """Move registers over four bytes that were added to them (or, with other tables, over any linear map)."""
    return (
        tables[3][state & 0xFF]
        ^ tables[2][(state >> 8) & 0xFF]
        ^ tables[1][(state >> 16) & 0xFF]
        ^ tables[0][state >> 24]
    )


@lru_cache(maxsize=64)
def _shift(count: int) -> np.ndarray:
    """Return tables (4, 256) that move a register over `count` zero bytes, a power of two of at least 4."""
    if count == 4:
        return TABLES
    half = _shift(count // 2)
    bytes_ = np.arange(256, dtype=np.uint32)
    return np.stack([_step(_step(bytes_ << np.uint32(8 * (3 - i)), half), half) for i in range(4)])


def _chunk(data: np.ndarray) -> np.ndarray:
    """Return the register (1,), started at zero, after CHUNK bytes or fewer; zeros in front change nothing."""
    lanes = 1 << ((data.size - 1) // LANE_BYTES).bit_length()
    data = np.concatenate([np.zeros(lanes * LANE_BYTES - data.size, np.uint8), data])
    words = np.ascontiguousarray(data.view("<u4").reshape(lanes, LANE_BYTES // 4).T)
    state = np.zeros(lanes, np.uint32)
    for column in words:
        state = _step(state ^ column)
    length = LANE_BYTES
    while state.size > 1:
        state = _step(state[0::2], _shift(length)) ^ state[1::2]
        length *= 2
    return state


def crc32c(data: bytes | memoryview | np.ndarray) -> int:
    """Return the CRC-32C of a buffer of bytes."""
    buffer = np.frombuffer(data, np.uint8)
    register, odd = 0xFFFFFFFF, buffer.size % 4
    for byte in buffer[:odd].tolist():
        register = int(TABLES[0][(register ^ byte) & 0xFF]) ^ (register >> 8)
    rest = buffer[odd:]
    if rest.size:
        first = rest[: rest.size % CHUNK or CHUNK].copy()
        first[:4] ^= np.array([register], "<u4").view(np.uint8)  # a register that starts at zero then ends the same
        state = _chunk(first)
        for start in range(first.size, rest.size, CHUNK):
            state = _step(state, _shift(CHUNK)) ^ _chunk(rest[start : start + CHUNK])
        register = int(state[0])
    return register ^ 0xFFFFFFFF


def unmask(stored: int) -> int:
    """Undo what LevelDB and TensorFlow do to a checksum that they store beside its data."""
    rotated = (stored - 0xA282EAD8) & 0xFFFFFFFF
    return ((rotated >> 17) | (rotated << 15)) & 0xFFFFFFFF
