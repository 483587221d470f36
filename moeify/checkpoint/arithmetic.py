"""Blocks of weights as float32 and back, and the seeded noise that is added to them."""

from __future__ import annotations

import functools
import threading
from collections.abc import Sequence
from statistics import NormalDist
from typing import Any

import numpy as np
from numpy.typing import NDArray

Float32 = NDArray[np.float32]
Raw = bytes | bytearray | memoryview
CHUNK_ELEMENTS = 1 << 17
"""How much is made at a time: with less, beginning each operation takes a part of the time."""
NOISE_BLOCK_ELEMENTS = 1 << 18
"""Elements that share a generator. The bits of the noise depend on it: it must not change."""
_NUMPY: dict[str, np.dtype[Any]] = {"F64": np.dtype("<f8"), "F32": np.dtype("<f4"), "F16": np.dtype("<f2")}
_EXPONENT_MASK: dict[str, tuple[type[np.unsignedinteger[Any]], int]] = {
    "F64": (np.uint64, 0x7FF0_0000_0000_0000),
    "F32": (np.uint32, 0x7F80_0000),
    "F16": (np.uint16, 0x7C00),
    "BF16": (np.uint16, 0x7F80),
}
_INDICES_PER_WORD = 4
_DRAWS_PER_WORD = 2 * _INDICES_PER_WORD


class _Scratch(threading.local):
    """One thread's arrays: fresh ones would be mapped, faulted in and unmapped each time."""

    def __init__(self) -> None:
        self._raw = memoryview(b"")

    def raw(self, nbytes: int) -> memoryview:
        """Room for elements as they lie in a file."""
        if len(self._raw) < nbytes:
            self._raw = memoryview(bytearray(nbytes))
        return self._raw[:nbytes]

    @functools.cached_property
    def values(self) -> Float32:
        return np.empty(CHUNK_ELEMENTS, np.float32)

    @functools.cached_property
    def term(self) -> Float32:
        return np.empty(CHUNK_ELEMENTS, np.float32)

    @functools.cached_property
    def rounding(self) -> NDArray[np.uint32]:
        return np.empty(CHUNK_ELEMENTS, np.uint32)

    @functools.cached_property
    def pairs(self) -> NDArray[np.uint64]:
        return np.empty(CHUNK_ELEMENTS // 2 + _DRAWS_PER_WORD, np.uint64)

    @functools.cached_property
    def index(self) -> NDArray[np.intp]:
        return np.empty(CHUNK_ELEMENTS // 2 + _DRAWS_PER_WORD, np.intp)


scratch = _Scratch()


def decode_into(values: Float32, raw: Raw, dtype: str) -> None:
    """Set ``values`` to little-endian ``raw`` of a float safetensors dtype."""
    if dtype == "BF16":
        bits, whole = np.frombuffer(raw, "<u2"), values.view(np.uint32)
        np.left_shift(bits, np.uint32(16), out=whole, dtype=np.uint32, casting="unsafe")
    else:
        values[:] = np.frombuffer(raw, _NUMPY[dtype])


def decode(raw: Raw, dtype: str) -> Float32:
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
        rounded = scratch.rounding[: len(chunk)]
        np.right_shift(chunk, np.uint32(16), out=rounded)
        rounded &= np.uint32(1)
        rounded += np.uint32(0x7FFF)
        rounded += chunk
        target = result[start : start + CHUNK_ELEMENTS]
        np.right_shift(rounded, np.uint32(16), out=target, casting="unsafe")
    # The carry of the rounding would turn some NaNs into infinities: keep them quiet NaNs.
    if len(values) and np.isnan(values.max()):
        result[np.isnan(values)] = 0x7FC0


def encode_noisy_into(raw: memoryview, values: Float32, dtype: str) -> None:
    """``encode_into`` for finite sums with random terms; changes ``values``.

    In bfloat16, halfway cases go away from zero: one sum in 2^16 is one, and the others cost half
    the time.
    """
    if dtype != "BF16":
        encode_into(raw, values, dtype)
        return
    bits = values.view(np.uint32)
    bits += np.uint32(0x8000)
    np.right_shift(bits, np.uint32(16), out=np.frombuffer(raw, "<u2"), casting="unsafe")


def encode(values: Float32, dtype: str) -> bytes:
    """``values`` as little-endian bytes of ``dtype``, rounded to nearest even."""
    width = 2 if dtype == "BF16" else _NUMPY[dtype].itemsize
    raw = bytearray(values.size * width)
    encode_into(memoryview(raw), values.reshape(-1), dtype)
    return bytes(raw)


def is_finite(raw: Raw, dtype: str) -> bool:
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
            words += [part] if part < 1 << 32 else [part & 0xFFFF_FFFF, part >> 32]
    # As an array, because a list of numbers takes ten times as long to become one.
    seeds = np.random.SeedSequence(np.array(words, np.uint32))
    return np.random.Generator(np.random.SFC64(seeds))


@functools.cache
def _pairs() -> Float32:
    """2^16 pairs of draws [2^16, 2] from N(0, 1).

    Either column holds the midpoints of 2^16 equally likely slices, scaled to unit variance. The
    second is ordered by the reversed bits of the index (Hammersley's points), so that the pairs
    cover the plane evenly and the columns are uncorrelated.
    """
    inverse = NormalDist().inv_cdf
    upper = [inverse((i + 0.5) / 65536) for i in range(32768, 65536)]
    column = np.array([-value for value in reversed(upper)] + upper)
    column /= column.std()
    bits = np.unpackbits(np.arange(65536, dtype=">u2").view(np.uint8)).reshape(-1, 16)
    reverse = np.packbits(bits[:, ::-1], axis=1).view(">u2").reshape(-1)
    return np.stack([column, column[reverse]], axis=1).astype(np.float32)


@functools.lru_cache(maxsize=4)
def _scaled_pairs(scale: float) -> NDArray[np.uint64]:
    """The pairs x ``scale``, each as one number; one source tensor serves many experts."""
    return (_pairs() * np.float32(scale)).view(np.uint64).reshape(-1)


def _indices(source: np.random.Generator, count: int) -> NDArray[np.uint16]:
    """Random places in a table of pairs, for ``count`` draws or a few more."""
    words = source.bit_generator.random_raw(-(-count // _DRAWS_PER_WORD))
    return words.astype("<u8", copy=False).view("<u2")


def normal(key: Sequence[int | str], count: int) -> Float32:
    """``count`` draws from N(0, 1) that depend on ``key`` alone, the same on every machine.

    Sixteen random bits look a pair of draws up in a table of quantiles (largest value 4.3): that
    needs no logarithm, whose last bit differs between processors, and takes a fifth of the time
    of a ziggurat.
    """
    return _pairs()[_indices(generator(key), count)].reshape(-1)[:count]


class NoiseStream:
    """Endless noise: element ``i`` is ``scale`` x a draw of ``normal`` for (``key``, block of i).

    Any element can be asked for; consecutive ones are cheap.
    """

    def __init__(self, key: Sequence[int | str], scale: float) -> None:
        self._key = key
        self._table = _scaled_pairs(scale)
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
            _indices(self._source, place - skip)
        places = _indices(self._source, skip + count)
        # A word whose draws were used in part only cannot be taken up again: seek then.
        whole = 2 * len(places) == skip + count
        self._next = (block, place + count) if whole else (-1, 0)
        index, pairs = scratch.index[: len(places)], scratch.pairs[: len(places)]
        index[:] = places
        np.take(self._table, index, out=pairs, mode="clip")
        return pairs.view(np.float32)[skip : skip + count]
