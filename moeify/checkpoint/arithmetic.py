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
    "CHUNK_ELEMENTS",
    "FLOAT_DTYPES",
    "NOISE_BLOCK_ELEMENTS",
    "Float32",
    "NoiseStream",
    "decode",
    "decode_into",
    "encode",
    "encode_into",
    "generator",
    "is_finite",
    "normal",
]

Float32 = NDArray[np.float32]
FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
CHUNK_ELEMENTS = 1 << 16
"""How much is made at a time: what one chunk needs stays in a core's cache."""
NOISE_BLOCK_ELEMENTS = 1 << 18
"""Elements that share a generator. The bits of the noise depend on it: it must not change."""
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
_DRAWS_PER_WORD = 4


class _Scratch(threading.local):
    """One thread's arrays: fresh ones would be mapped, faulted in and unmapped each time."""

    def __init__(self) -> None:
        self.draws = np.empty(CHUNK_ELEMENTS, np.float32)
        self.index = np.empty(CHUNK_ELEMENTS, np.intp)
        self.rounding = np.empty(CHUNK_ELEMENTS, np.uint32)


_scratch = _Scratch()


def decode_into(values: Float32, raw: bytes | memoryview, dtype: str) -> None:
    """Set ``values`` to little-endian ``raw`` of a float safetensors dtype."""
    if dtype == "BF16":
        bits, whole = np.frombuffer(raw, "<u2"), values.view(np.uint32)
        np.left_shift(bits, np.uint32(16), out=whole, dtype=np.uint32, casting="unsafe")
    else:
        values[:] = np.frombuffer(raw, _NUMPY[dtype])


def decode(raw: bytes | memoryview, dtype: str) -> Float32:
    """Little-endian ``raw`` of a float safetensors dtype as float32, always a fresh array."""
    width = 2 if dtype == "BF16" else _NUMPY[dtype].itemsize
    values = np.empty(len(raw) // width, np.float32)
    decode_into(values, raw, dtype)
    return values


def encode_into(raw: memoryview, values: Float32, dtype: str) -> None:
    """Fill ``raw`` with ``values`` rounded to nearest even in ``dtype``."""
    if dtype != "BF16":
        with np.errstate(over="ignore"):
            np.frombuffer(raw, _NUMPY[dtype])[:] = values
        return
    result, bits = np.frombuffer(raw, "<u2"), values.view(np.uint32)
    for start in range(0, len(bits), CHUNK_ELEMENTS):
        chunk = bits[start : start + CHUNK_ELEMENTS]
        rounded = _scratch.rounding[: len(chunk)]
        np.right_shift(chunk, np.uint32(16), out=rounded)
        rounded &= np.uint32(1)
        rounded += np.uint32(0x7FFF)
        rounded += chunk
        target = result[start : start + CHUNK_ELEMENTS]
        np.right_shift(rounded, np.uint32(16), out=target, casting="unsafe")
    # The carry of the rounding would turn some NaNs into infinities: keep them quiet NaNs.
    if len(values) and np.isnan(values.max()):
        result[np.isnan(values)] = 0x7FC0


def encode(values: Float32, dtype: str) -> bytes:
    """``values`` as little-endian bytes of ``dtype``, rounded to nearest even."""
    width = 2 if dtype == "BF16" else _NUMPY[dtype].itemsize
    raw = bytearray(values.size * width)
    encode_into(memoryview(raw), values.reshape(-1), dtype)
    return bytes(raw)


def is_finite(raw: bytes | memoryview, dtype: str) -> bool:
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


def _words(source: np.random.Generator, count: int) -> NDArray[np.uint16]:
    """Random bits, sixteen at a time, for ``count`` draws or a few more."""
    words = source.integers(0, 1 << 64, dtype=np.uint64, size=-(-count // _DRAWS_PER_WORD))
    return words.astype("<u8", copy=False).view("<u2")


def normal(key: Sequence[int | str], count: int) -> Float32:
    """``count`` draws from N(0, 1) that depend on ``key`` alone, the same on every machine.

    Each draw looks 16 random bits up in a table of quantiles (largest value 4.3): it needs no
    logarithm, whose last bit differs between processors, and is twice as fast as a ziggurat.
    """
    return np.take(_quantiles(), _words(generator(key), count)[:count], mode="clip")


class NoiseStream:
    """Endless noise: element ``i`` is ``scale`` x a draw of ``normal`` for (``key``, block of i).

    Any element can be asked for; consecutive ones are cheap.
    """

    def __init__(self, key: Sequence[int | str], scale: float) -> None:
        self._key = key
        self._table = _quantiles() * np.float32(scale)
        self._source = generator(())
        self._next = (-1, 0)  # block and place in it that the source stands at

    def add_to(self, values: Float32, start: int) -> None:
        """Add elements ``start`` .. ``start + len(values)`` to at most a chunk of ``values``."""
        while len(values):
            block, place = divmod(start, NOISE_BLOCK_ELEMENTS)
            count = min(len(values), NOISE_BLOCK_ELEMENTS - place)
            values[:count] += self._draws(block, place, count)
            values, start = values[count:], start + count

    def _draws(self, block: int, place: int, count: int) -> Float32:
        skip = place % _DRAWS_PER_WORD
        if self._next != (block, place):
            self._source = generator((*self._key, block))
            _words(self._source, place - skip)
        indices = _words(self._source, skip + count)
        # A word whose draws were used in part only cannot be taken up again: seek then.
        self._next = (block, place + count) if len(indices) == skip + count else (-1, 0)
        index, draws = _scratch.index[:count], _scratch.draws[:count]
        index[:] = indices[skip : skip + count]
        return np.take(self._table, index, out=draws, mode="clip")
