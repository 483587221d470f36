"""Blocks of weights as float32 and back, and the seeded noise that is added to them."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

__all__ = [
    "FLOAT_DTYPES",
    "Float32",
    "add_noise",
    "decode",
    "encode",
    "generator",
    "is_finite",
    "normal",
]

Float32 = NDArray[np.float32]
FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
_CHUNK_ELEMENTS = 1 << 17  # smaller ones make threads wait for the interpreter lock
_NUMPY: dict[str, np.dtype[Any]] = {
    "F64": np.dtype("<f8"),
    "F32": np.dtype("<f4"),
    "F16": np.dtype("<f2"),
}
_EXPONENT_MASK: dict[str, tuple[type[np.unsignedinteger[Any]], int]] = {
    "F64": (np.uint64, 0x7FF0_0000_0000_0000),
    "F32": (np.uint32, 0x7F80_0000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}


def decode(raw: bytes, dtype: str) -> Float32:
    """Little-endian ``raw`` of a float safetensors dtype as float32, always a fresh array."""
    if dtype == "BF16":
        return (np.frombuffer(raw, "<u2").astype(np.uint32) << 16).view(np.float32)
    return np.frombuffer(raw, _NUMPY[dtype]).astype(np.float32)


def encode(values: Float32, dtype: str) -> NDArray[np.generic]:
    """``values`` rounded to nearest even in ``dtype``; BF16 comes back as its uint16 bits."""
    if dtype != "BF16":
        with np.errstate(over="ignore"):
            return values.astype(_NUMPY[dtype])
    bits = values.view(np.uint32)
    rounded = bits >> np.uint32(16)
    rounded &= np.uint32(1)
    rounded += np.uint32(0x7FFF)
    rounded += bits
    rounded >>= np.uint32(16)
    result = rounded.astype(np.uint16)
    # The carry of the rounding would turn some NaNs into infinities: keep them quiet NaNs.
    if (missing := np.isnan(values)).any():
        result[missing] = 0x7FC0
    return result


def is_finite(raw: bytes, dtype: str) -> bool:
    """Whether ``raw`` holds neither NaN nor infinity, judged on the exponent bits."""
    kind, mask = _EXPONENT_MASK[dtype]
    bits = np.frombuffer(raw, np.dtype(kind).newbyteorder("<"))
    return not bool(np.any((bits & kind(mask)) == mask))


def generator(key: Sequence[int | str]) -> np.random.Generator:
    """A generator that depends on ``key`` alone: seed, tensor name, expert, block."""
    words: list[int] = []
    for part in key:
        if isinstance(part, str):
            words += [len(part), *part.encode()]
        else:
            words.append(part)
    return np.random.Generator(np.random.SFC64(np.random.SeedSequence(words)))


@functools.cache
def _quantiles() -> Float32:
    """The midpoints of 2^16 equally likely slices of N(0, 1), scaled to unit variance."""
    inverse = NormalDist().inv_cdf
    upper = [inverse((i + 0.5) / 65536) for i in range(32768, 65536)]
    table = np.array([-value for value in reversed(upper)] + upper)
    table /= table.std()
    return table.astype(np.float32)


def normal(key: Sequence[int | str], count: int) -> Float32:
    """``count`` draws from N(0, 1) that depend on ``key`` alone, the same on every machine.

    Each draw looks 16 random bits up in a table of quantiles (largest value 4.3): it needs no
    logarithm, whose last bit differs between processors, and is twice as fast as a ziggurat.
    """
    words = generator(key).integers(0, 1 << 64, dtype=np.uint64, size=-(-count // 4))
    draws = np.empty(count, np.float32)
    indices = words.astype("<u8", copy=False).view("<u2")[:count]
    np.take(_quantiles(), indices, out=draws, mode="clip")
    return draws


class _Scratch(threading.local):
    """One thread's buffers: fresh arrays would be mapped, faulted in and unmapped each time."""

    def __init__(self) -> None:
        self.values = np.empty(_CHUNK_ELEMENTS, np.float32)
        self.draws = np.empty(_CHUNK_ELEMENTS, np.float32)
        self.index = np.empty(_CHUNK_ELEMENTS, np.intp)
        self.rounding = np.empty(_CHUNK_ELEMENTS, np.uint32)


_scratch = _Scratch()


def add_noise(source: bytes, key: Sequence[int | str], scale: float) -> NDArray[np.uint16]:
    """Finite BF16 ``source`` plus ``scale`` x ``normal(key)``, rounded to BF16 bits.

    The same bits as ``decode``, ``normal`` and ``encode`` give, in chunks that stay in the cache.
    """
    bits = np.frombuffer(source, "<u2")
    result = np.empty(len(bits), np.uint16)
    draw, table = generator(key).integers, _quantiles()
    for start in range(0, len(bits), _CHUNK_ELEMENTS):
        chunk = bits[start : start + _CHUNK_ELEMENTS]
        count = len(chunk)
        values, draws = _scratch.values[:count], _scratch.draws[:count]
        index, rounding = _scratch.index[:count], _scratch.rounding[:count]
        words = draw(0, 1 << 64, dtype=np.uint64, size=-(-count // 4))
        index[:] = words.astype("<u8", copy=False).view("<u2")[:count]
        np.take(table, index, out=draws, mode="clip")
        draws *= np.float32(scale)
        whole = values.view(np.uint32)
        np.left_shift(chunk, np.uint32(16), out=whole, dtype=np.uint32, casting="unsafe")
        values += draws
        np.right_shift(whole, np.uint32(16), out=rounding)
        rounding &= np.uint32(1)
        rounding += np.uint32(0x7FFF)
        rounding += whole
        rounding >>= np.uint32(16)
        result[start : start + count] = rounding
    return result
