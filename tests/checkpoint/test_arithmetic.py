"""Casts equal torch's bit for bit; noise depends on its key alone and is normal."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from moeify.checkpoint.arithmetic import (
    CHUNK_ELEMENTS,
    NOISE_BLOCK_ELEMENTS,
    NoiseStream,
    decode,
    encode,
    is_finite,
    normal,
)

TORCH = {"F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16}


def raw(tensor: torch.Tensor) -> bytes:
    return tensor.contiguous().view(torch.uint8).numpy().tobytes()


def samples() -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    values = torch.randn(20_000, generator=generator)
    extremes = torch.tensor([0.0, -0.0, 1e-40, 6e-8, 65504.0, 70000.0, 3.4e38, 1.00390625])
    return torch.cat([values, values * 1e-5, values * 1e5, extremes])


@pytest.mark.parametrize("dtype", ["F32", "F16", "BF16"])
def test_encode_rounds_as_torch_does(dtype: str) -> None:
    values = samples()
    assert encode(values.numpy(), dtype) == raw(values.to(TORCH[dtype]))


@pytest.mark.parametrize("dtype", sorted(TORCH))
def test_decode_reads_as_torch_does(dtype: str) -> None:
    values = samples().to(TORCH[dtype])
    np.testing.assert_array_equal(decode(raw(values), dtype), values.float().numpy())


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", sorted(TORCH))
def test_not_finite(dtype: str, value: float) -> None:
    values = torch.ones(9, dtype=TORCH[dtype])
    assert is_finite(raw(values), dtype)
    values[4] = value
    assert not is_finite(raw(values), dtype)
    stored = decode(encode(decode(raw(values), dtype), dtype), dtype)
    np.testing.assert_array_equal(np.isnan(stored), values.isnan().numpy())


def test_noise_is_normal() -> None:
    draws = normal((0, "a"), 1 << 20).astype(np.float64)
    assert abs(draws.mean()) < 5e-3
    assert abs(draws.std() - 1) < 5e-3
    for sigma, fraction in ((1, 0.6827), (2, 0.9545), (3, 0.9973)):
        assert abs((np.abs(draws) < sigma).mean() - fraction) < 2e-3
    neighbours = np.corrcoef(draws[:-1], draws[1:])[0, 1]
    assert abs(neighbours) < 5e-3


def test_noise_depends_on_its_key_alone() -> None:
    first = normal((0, "noise", "w", 1, 2), 1000)
    np.testing.assert_array_equal(first, normal((0, "noise", "w", 1, 2), 1000))
    for other in [
        (1, "noise", "w", 1, 2),
        (0, "noise", "v", 1, 2),
        (0, "noise", "w", 2, 2),
        (0, "noise", "w", 1, 3),
        (0, "noise", "w1", 2),
    ]:
        assert abs(np.corrcoef(first, normal(other, 1000))[0, 1]) < 0.15


def test_the_first_draws_never_change() -> None:
    """The bits are part of what a seed promises: the same ones on every machine and version."""
    np.testing.assert_allclose(normal((0, "noise", "w", 0, 0), 4), np.array(EXPECTED, np.float32), rtol=1e-6)


EXPECTED = [0.367346, -1.631886, 0.675529, 0.402399]


@pytest.mark.parametrize("lengths", [[1, 5, 6, 4], [CHUNK_ELEMENTS] * 9, [100_001] * 6, [3] * 50])
@pytest.mark.parametrize("start", [0, 2, NOISE_BLOCK_ELEMENTS - 7, 3 * NOISE_BLOCK_ELEMENTS])
def test_a_stream_of_noise_is_the_blocks_one_after_another(lengths: list[int], start: int) -> None:
    """Whatever the pieces in which it is asked for."""
    key, scale = (3, "noise", "w", 0), 0.037
    blocks = range((start + sum(lengths)) // NOISE_BLOCK_ELEMENTS + 1)
    whole = np.concatenate([normal((*key, block), NOISE_BLOCK_ELEMENTS) for block in blocks])
    expected = np.float32(1) + whole[start : start + sum(lengths)] * np.float32(scale)
    stream, values = NoiseStream(key, scale), np.ones(sum(lengths), np.float32)
    position = 0
    for length in lengths:
        for begin in range(position, position + length, CHUNK_ELEMENTS):
            end = min(begin + CHUNK_ELEMENTS, position + length)
            stream.add_to(values[begin:end], start + begin)
        position += length
    np.testing.assert_array_equal(values, expected)
    again = np.ones(10, np.float32)
    stream.add_to(again, start + 1)
    np.testing.assert_array_equal(again[: len(expected) - 1], expected[1:11])
