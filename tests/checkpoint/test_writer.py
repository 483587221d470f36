"""Jobs and pieces into shards: the bytes, their order, and what memory they need."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from moeify.checkpoint.arithmetic import NOISE_BLOCK_ELEMENTS
from moeify.checkpoint.files import SourceFiles
from moeify.checkpoint.header import StoredTensor, read_header
from moeify.checkpoint.jobs import Blend, Copy, Job, Noise, copy_of, piece_of
from moeify.checkpoint.planned_files import PlannedFiles, check_written, write_files
from moeify.checkpoint.slices import Slice
from moeify.checkpoint.writer import parse_size, plan_shards, write_shards
from moeify.errors import CheckpointError, ConfigError, OutputError
from moeify.progress import watch_progress


@pytest.fixture
def source(tmp_path: Path) -> dict[str, StoredTensor]:
    rng = np.random.default_rng(0)
    path = tmp_path / "source.safetensors"
    save_file(
        {
            "w": rng.standard_normal((600, 700)).astype(np.float32),
            "v": rng.standard_normal((3, 5)).astype(np.float16),
            "ids": np.arange(7),
        },
        path,
    )
    return read_header(path)[0]


def noisy(tensor: StoredTensor, expert: int, relative: float = 0.1, seed: int = 0) -> Job:
    piece = piece_of(Slice(tensor, 0, tensor.elements), tensor.dtype, Noise(relative, (seed, tensor.name, expert)))
    return Job(f"w.{expert}", tensor.dtype, tensor.shape, (piece,))


def written(folder: Path) -> dict[str, np.ndarray]:
    return {k: v for path in sorted(folder.glob("*.safetensors")) for k, v in load_file(path).items()}


def test_copies_casts_and_slices(tmp_path: Path, source: dict[str, StoredTensor]) -> None:
    original = load_file(tmp_path / "source.safetensors")
    out = tmp_path / "out"
    out.mkdir()
    jobs = [
        Job("copy", "F32", (600, 700), (copy_of(source["w"], "F32"),)),
        Job("cast", "F16", (600, 700), (copy_of(source["w"], "F16"),)),
        Job("rows", "F32", (2, 700), (Copy(Slice(source["w"], 700 * 5, 700)), Copy(Slice(source["w"], 700 * 2, 700)))),
        Job(
            "mean",
            "F32",
            (3, 5),
            (Blend(((Slice(source["v"], 0, 15), 0.25), (Slice(source["w"], 10, 15), 0.75)), "F32"),),
        ),
        Job("ids", "I64", (7,), (copy_of(source["ids"], "I64"),)),
    ]
    seen: list[tuple[int, int]] = []
    shards = plan_shards(jobs, 10**9)
    with watch_progress(lambda stage: seen.append((stage.done, stage.total)) if stage.name == "writing" else None):
        write_shards(out, shards)
    result = written(out)
    np.testing.assert_array_equal(result["copy"], original["w"])
    np.testing.assert_array_equal(result["cast"], original["w"].astype(np.float16))
    np.testing.assert_array_equal(result["rows"], original["w"][[5, 2]])
    np.testing.assert_array_equal(result["ids"], original["ids"])
    expected = 0.25 * original["v"].astype(np.float32).ravel() + 0.75 * original["w"].ravel()[10:25]
    np.testing.assert_allclose(result["mean"].ravel(), expected, rtol=1e-6)
    assert seen[-1] == ((out / "model.safetensors").stat().st_size,) * 2
    assert not (out / "model.safetensors.index.json").exists()


@pytest.mark.parametrize("shard_bytes", [10**9, 4_000_000, 1])
@pytest.mark.parametrize(("processes", "threads"), [(0, 1), (0, 3), (1, 1), (2, 2)])
def test_noise_has_the_same_bytes_however_it_is_written(
    tmp_path: Path, source: dict[str, StoredTensor], shard_bytes: int, processes: int, threads: int
) -> None:
    reference = tmp_path / "reference"
    reference.mkdir()
    jobs = [noisy(source["w"], expert) for expert in range(4)]
    write_shards(reference, plan_shards(jobs, 10**9))
    out = tmp_path / "out"
    out.mkdir()
    shards = plan_shards(reversed(jobs), shard_bytes)
    tally = write_shards(out, shards, processes=processes, threads=threads)
    assert {k: v.tobytes() for k, v in written(out).items()} == {k: v.tobytes() for k, v in written(reference).items()}
    assert tally.relative_std == pytest.approx(0.1, rel=0.01)


def test_noise_is_what_was_asked_for(tmp_path: Path, source: dict[str, StoredTensor]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    jobs = [noisy(source["w"], 0), noisy(source["w"], 1)]
    write_shards(
        out, plan_shards([*jobs, Job("other", "F32", (600, 700), noisy(source["w"], 0, seed=1).pieces)], 10**9)
    )
    result, original = written(out), load_file(tmp_path / "source.safetensors")["w"]
    noise = {name: (result[name] - original).ravel() for name in ("w.0", "w.1", "other")}
    for values in noise.values():
        assert values.std() == pytest.approx(0.1 * original.std(), rel=0.01)
    for a, b in (("w.0", "w.1"), ("w.0", "other")):
        assert abs(np.corrcoef(noise[a], noise[b])[0, 1]) < 0.01
    assert source["w"].elements > NOISE_BLOCK_ELEMENTS, "more than one block is covered"


def test_shards_are_dealt_by_size_and_the_last_group_stands_alone(
    tmp_path: Path, source: dict[str, StoredTensor]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    jobs = [Job(f"v{i}", "F16", (3, 5), (copy_of(source["v"], "F16"),)) for i in range(5)]
    router = Job("router", "F32", (600, 700), (copy_of(source["w"], "F32"),))
    shards = plan_shards(jobs, 60, last=[router])
    assert [[job.name for job in shard.jobs] for shard in shards] == [["v0", "v1"], ["v2", "v3"], ["v4"], ["router"]]
    files = PlannedFiles(shards=shards)
    write_files(out, files)
    found = {k: v for shard in shards for k, v in read_header(out / shard.file)[0].items()}
    check_written(files, found)
    for other in ({}, found | {"more": found["v0"]}, found | {"v0": found["router"]}):
        with pytest.raises(OutputError, match="as it was planned"):
            check_written(files, other)
    index = json.loads((out / "model.safetensors.index.json").read_text())
    assert index["weight_map"]["router"] == "model-00004-of-00004.safetensors"
    assert index["metadata"]["total_size"] == sum(job.nbytes for job in [*jobs, router])
    for shard in shards:
        assert (out / shard.file).stat().st_size == shard.nbytes


def test_tensors_start_on_a_multiple_of_their_element_size(tmp_path: Path, source: dict[str, StoredTensor]) -> None:
    out = tmp_path / "out"
    out.mkdir()
    jobs = [
        Job("odd", "F16", (3, 5), (copy_of(source["v"], "F16"),)),
        Job("wide", "I64", (7,), (copy_of(source["ids"], "I64"),)),
    ]
    write_shards(out, plan_shards(jobs, 10**9))
    tensors, _ = read_header(out / "model.safetensors")
    assert tensors["wide"].start % 8 == 0


def test_quantised_tensors_are_copied_but_not_changed(tmp_path: Path, source: dict[str, StoredTensor]) -> None:
    assert isinstance(copy_of(source["ids"], "I64"), Copy)
    with pytest.raises(CheckpointError, match="not changed"):
        copy_of(source["ids"], "F32")


@pytest.mark.parametrize("processes", [0, 1])
def test_a_source_that_shrinks_is_noticed(tmp_path: Path, source: dict[str, StoredTensor], processes: int) -> None:
    out = tmp_path / "out"
    out.mkdir()
    jobs = [Job("w", "F32", (600, 700), (copy_of(source["w"], "F32"),))]
    path = tmp_path / "source.safetensors"
    path.write_bytes(path.read_bytes()[:5000])
    with pytest.raises(CheckpointError, match="shrank"):
        write_shards(out, plan_shards(jobs, 10**9), processes=processes)


@pytest.mark.parametrize("bad", [np.nan, np.inf])
@pytest.mark.parametrize("noise", [False, True])
@pytest.mark.parametrize("processes", [0, 1])
def test_nan_is_found_before_anything_is_written(tmp_path: Path, bad: float, noise: bool, processes: int) -> None:
    values = np.zeros((2000, 300), np.float32)
    values[1999, 299] = bad
    save_file({"w": values}, tmp_path / "bad.safetensors")
    tensor = read_header(tmp_path / "bad.safetensors")[0]["w"]
    job = noisy(tensor, 0) if noise else Job("w", "F32", tensor.shape, (copy_of(tensor, "F32"),))
    out = tmp_path / "out"
    out.mkdir()
    with pytest.raises(CheckpointError, match="NaN or infinity"):
        write_shards(out, plan_shards([job], 10**9), check=[tensor], processes=processes)
    assert list(out.iterdir()) == []


def test_scan_is_the_standard_deviation(tmp_path: Path, source: dict[str, StoredTensor]) -> None:
    with SourceFiles() as files:
        expected = load_file(tmp_path / "source.safetensors")["w"].astype(np.float64).std()
        assert files.scan(source["w"]) == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize(("text", "nbytes"), [("5GB", 5 * 10**9), ("512 MiB", 512 << 20), ("1.5kB", 1500), ("7B", 7)])
def test_sizes(text: str, nbytes: int) -> None:
    assert parse_size(text) == nbytes


@pytest.mark.parametrize("text", ["", "5", "GB", "-1GB", "0GB", "5 gigabytes", "1e9B"])
def test_bad_sizes(text: str) -> None:
    with pytest.raises(ConfigError, match="no size"):
        parse_size(text)
