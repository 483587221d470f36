"""Neurons taken by index: what numpy takes, in every dtype, layout and cut."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from moeify.checkpoint.arithmetic import decode
from moeify.checkpoint.files import SourceFiles
from moeify.checkpoint.gather import neurons
from moeify.checkpoint.header import StoredTensor, read_header
from moeify.checkpoint.jobs import Blend, Copy, Job, Noise, Piece, piece_of
from moeify.checkpoint.lowrank import LowRank
from moeify.checkpoint.slices import Slice
from moeify.checkpoint.writer import plan_shards, write_shards
from moeify.errors import ConfigError

DRAWN = np.random.default_rng(0)
ARRAYS = {
    "rows": DRAWN.standard_normal((40, 700)).astype(np.float32),
    "columns": DRAWN.standard_normal((300, 40)).astype(np.float16),
    "stacked": DRAWN.integers(0, 255, (3, 40, 5)).astype(np.uint8),
    "vector": DRAWN.standard_normal(40),
    "up": DRAWN.standard_normal((40, 3)).astype(np.float32),
    "down": DRAWN.standard_normal((3, 700)).astype(np.float32),
}
AXES = {"rows": 0, "columns": 1, "stacked": 1, "vector": 0}
INDICES = {
    "in_order": np.arange(7, 31),
    "shuffled": DRAWN.permutation(40),
    "runs": np.array([3, 4, 5, 20, 21, 0, 39]),
    "repeated": np.array([5, 5, 5]),
    "one": np.array([39]),
}


@pytest.fixture
def stored(tmp_path: Path) -> dict[str, StoredTensor]:
    save_file(ARRAYS, tmp_path / "source.safetensors")
    return read_header(tmp_path / "source.safetensors")[0]


def made(piece: Piece, cuts: int) -> bytes:
    """The bytes of ``piece``, made in parts of that many bytes."""
    out = bytearray(piece.nbytes)
    with SourceFiles() as files:
        for start in range(0, len(out), cuts):
            piece.fill(files, start, memoryview(out)[start : start + cuts])
    return bytes(out)


@pytest.mark.parametrize("index", INDICES)
@pytest.mark.parametrize("name", AXES)
def test_any_neurons_of_any_axis_and_dtype(name: str, index: str, stored: dict[str, StoredTensor]) -> None:
    tensor, wanted = stored[name], np.take(ARRAYS[name], INDICES[index], axis=AXES[name])
    whole = Slice(tensor, 0, tensor.elements)
    piece = Copy(neurons(whole, tensor.shape, AXES[name], INDICES[index]))
    for cuts in (piece.nbytes, 8 * 113, 8):
        assert made(piece, cuts) == wanted.tobytes()


def test_a_slice_of_a_stacked_tensor(stored: dict[str, StoredTensor]) -> None:
    order = INDICES["shuffled"]
    part = Slice(stored["stacked"], 200, 200)
    piece = Copy(neurons(part, (40, 5), 0, order))
    assert made(piece, 64) == ARRAYS["stacked"][1][order].tobytes()


def test_many_chunks_of_both_kinds_are_written_as_they_should(tmp_path: Path) -> None:
    arrays = {"rows": np.arange(2_500_000, dtype=np.float32).reshape(2500, 1000)}
    arrays["columns"] = np.ascontiguousarray(arrays["rows"].T)
    save_file(arrays, tmp_path / "large.safetensors")
    stored = read_header(tmp_path / "large.safetensors")[0]
    order = np.random.default_rng(1).permutation(2500)
    jobs = [
        Job(name, "F32", tensor.shape, (Copy(neurons(Slice(tensor, 0, tensor.elements), tensor.shape, axis, order)),))
        for name, axis, tensor in [("rows", 0, stored["rows"]), ("columns", 1, stored["columns"])]
    ]
    (tmp_path / "out").mkdir()
    shards = plan_shards(jobs, 10**9)
    write_shards(tmp_path / "out", shards, processes=1)
    found = read_header(tmp_path / "out" / shards[0].file)[0]
    for name, axis in [("rows", 0), ("columns", 1)]:
        with SourceFiles() as files:
            raw = files.read(found[name].path, found[name].start, found[name].nbytes)
        assert raw == np.take(arrays[name], order, axis=axis).tobytes()


@pytest.mark.parametrize("noise", [None, Noise(0.1, (0, "key"))])
def test_copies_of_one_slice_of_columns_read_its_rows_once(
    noise: Noise | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    array = np.random.default_rng(3).standard_normal((1500, 512)).astype(np.float32)
    save_file({"columns": array}, tmp_path / "source.safetensors")
    stored = read_header(tmp_path / "source.safetensors")[0]["columns"]
    whole, parts = Slice(stored, 0, stored.elements), [np.arange(s, s + 128) for s in (0, 128)]
    pieces = [piece_of(neurons(whole, array.shape, 1, part.copy()), "F32", noise) for part in parts for _ in range(4)]
    read = []
    with SourceFiles() as files:
        files.stds[stored] = files.scan(stored)
        found = [bytearray(piece.nbytes) for piece in pieces]
        plain = files.read_into
        monkeypatch.setattr(files, "read_into", lambda out, *place: (read.append(len(out)), plain(out, *place)))
        for piece, out in zip(pieces, found, strict=True):
            piece.fill(files, 0, memoryview(out))
    assert sum(read) == len(parts) * array.nbytes
    assert max(read) <= 1 << 20
    for number, out in enumerate(found):
        wanted = array[:, parts[number // 4]].tobytes()
        assert bytes(out) == (wanted if noise is None else made_afresh(pieces[number], stored, files.stds[stored]))


def made_afresh(piece: Piece, stored: StoredTensor, std: float) -> bytes:
    """The bytes that a thread makes which has kept nothing."""
    out = bytearray(piece.nbytes)
    with SourceFiles() as files:
        files.stds[stored] = std
        piece.fill(files, 0, memoryview(out))
    return bytes(out)


def test_gathered_neurons_are_cast_averaged_and_noised(stored: dict[str, StoredTensor]) -> None:
    order, tensor = INDICES["runs"], stored["rows"]
    taken = neurons(Slice(tensor, 0, tensor.elements), tensor.shape, 0, order)
    other = neurons(Slice(tensor, 0, tensor.elements), tensor.shape, 0, order[::-1].copy())
    rows = ARRAYS["rows"]
    mean = decode(made(Blend(((taken, 0.25), (other, 0.75)), "F32"), 4 * 1000), "F32")
    wanted = 0.25 * rows[order] + 0.75 * rows[order[::-1]]
    assert np.allclose(mean.reshape(wanted.shape), wanted, atol=1e-6)
    noisy = piece_of(taken, "F32", Noise(0.1, (0, "key")))
    assert list(noisy.scanned()) == [tensor]
    out = bytearray(noisy.nbytes)
    with SourceFiles() as files:
        files.stds[tensor] = files.scan(tensor)
        tally = noisy.fill(files, 0, memoryview(out))
    assert tally is not None and tally.relative_std == pytest.approx(0.1, rel=0.05)


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("axis", [0, 1])
def test_an_adapter_changes_the_neurons_that_are_taken(axis: int, transposed: bool, tmp_path: Path) -> None:
    draw = np.random.default_rng(2)
    up, down = (draw.standard_normal(s).astype(np.float32) for s in [(40, 3), (3, 50)])
    whole = up @ down
    base = draw.standard_normal((50, 40) if transposed else (40, 50)).astype(np.float32)
    save_file({"base": base, "up": up, "down": down}, tmp_path / "a.safetensors")
    stored = read_header(tmp_path / "a.safetensors")[0]
    index = np.array([7, 3, 4, 38])
    change = LowRank(stored["up"], stored["down"], 0.5, transposed).at(index, axis)
    run = neurons(Slice(stored["base"], 0, base.size), base.shape, axis, index)
    found = decode(made(piece_of(run, "F32", changes=(change,)), 4 * 17), "F32")
    wanted = np.take(base + 0.5 * (whole.T if transposed else whole), index, axis=axis)
    assert np.allclose(found.reshape(wanted.shape), wanted, atol=1e-5)


@pytest.mark.parametrize("index", [[40], [-1], [0, 41, 2]])
def test_neurons_that_are_not_there_are_refused(index: list[int], stored: dict[str, StoredTensor]) -> None:
    tensor = stored["rows"]
    with pytest.raises(ConfigError, match=r"'rows' has no neuron .* numbered 0 to 39"):
        neurons(Slice(tensor, 0, tensor.elements), tensor.shape, 0, np.array(index))
