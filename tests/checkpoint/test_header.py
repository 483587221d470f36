"""Headers: what safetensors writes is read, and whatever contradicts itself is refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from moeify.checkpoint.header import DTYPE_BITS, encode_header, read_header
from moeify.errors import CheckpointError


def write(path: Path, header: Any, data: bytes = b"", length: int | None = None) -> Path:
    raw = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes((len(raw) if length is None else length).to_bytes(8, "little") + raw + data)
    return path


def entry(begin: int, end: int, shape: list[Any] | None = None, dtype: Any = "U8") -> dict[str, Any]:
    shape = [end - begin] if shape is None else shape
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_reads_what_safetensors_writes(tmp_path: Path) -> None:
    arrays = {
        "a.weight": np.arange(6, dtype=np.float32).reshape(2, 3),
        "b": np.array(7, dtype=np.int64),
        "empty": np.zeros((0, 4), np.float16),
    }
    path = tmp_path / "model.safetensors"
    save_file(arrays, path, metadata={"format": "pt"})
    tensors, metadata = read_header(path)
    assert metadata == {"format": "pt"}
    raw = path.read_bytes()
    for name, array in arrays.items():
        tensor = tensors[name]
        assert tensor.shape == array.shape
        assert raw[tensor.start : tensor.start + tensor.nbytes] == array.tobytes()


def test_encoded_headers_are_read_by_safetensors(tmp_path: Path) -> None:
    from safetensors import safe_open

    specs = [("x", "F32", (2, 2)), ("ünïcode", "BF16", (3,)), ("none", "F16", (0, 5))]
    header = encode_header(specs)
    assert len(header) % 8 == 0
    path = tmp_path / "x.safetensors"
    path.write_bytes(header + bytes(16 + 6))
    with safe_open(path, "pt") as file:
        assert {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()} == {  # noqa: SIM118, it is no dict
            name: shape for name, _, shape in specs
        }
    assert {t.name: (t.dtype, t.shape) for t in read_header(path)[0].values()} == {
        name: (dtype, shape) for name, dtype, shape in specs
    }


@pytest.mark.parametrize(
    ("header", "data", "reason"),
    [
        ({"a": entry(0, 4)}, b"abc", "truncated"),
        ({"a": entry(0, 4)}, b"abcde", "belong to nothing"),
        ({"a": entry(0, 4), "b": entry(2, 6)}, b"abcdef", "overlaps"),
        ({"a": entry(0, 2), "b": entry(3, 4)}, b"abcd", "gap"),
        ({"a": entry(1, 4)}, b"abcd", "gap"),
        ({"a": entry(0, 4, [5])}, b"abcd", "needs"),
        ({"a": entry(0, 4, [-4])}, b"abcd", "invalid shape"),
        ({"a": entry(0, 4, [True])}, b"abcd", "invalid shape"),
        ({"a": entry(0, 4, [4.0])}, b"abcd", "invalid shape"),
        ({"a": entry(4, 0, [4])}, b"abcd", "invalid offsets"),
        ({"a": entry(0, 1 << 70, [1 << 70])}, b"abcd", "invalid shape"),
        ({"a": entry(0, 1 << 63, [1 << 63])}, b"abcd", "invalid"),
        ({"a": entry(0, 4, dtype="F5")}, b"abcd", "unknown dtype"),
        ({"a": entry(0, 4, dtype=["F32"])}, b"abcd", "unknown dtype"),
        ({"a": entry(0, 1, [1], dtype="F4")}, b"a", "whole bytes"),
        ({"a": {"dtype": "U8"}}, b"", "lacks"),
        ({"a": 5}, b"", "lacks"),
        ([], b"", "not a JSON object"),
        (b"{", b"", "not valid JSON"),
        (b"\xff\xfe", b"", "not valid JSON"),
        (b"[" * 100_000, b"", "not valid JSON"),
        (b'{"a":1,"a":2}', b"", "twice"),
        ({"__metadata__": {"a": 1}}, b"", "__metadata__"),
    ],
)
def test_contradictions_are_refused(tmp_path: Path, header: Any, data: bytes, reason: str) -> None:
    path = write(tmp_path / "model.safetensors", header, data)
    with pytest.raises(CheckpointError, match=reason):
        read_header(path)


@pytest.mark.parametrize("length", [1 << 63, 10**8 + 1, 1000])
def test_a_header_longer_than_its_file_is_refused_unread(tmp_path: Path, length: int) -> None:
    path = write(tmp_path / "model.safetensors", b"{}", length=length)
    with pytest.raises(CheckpointError, match="claims"):
        read_header(path)


@pytest.mark.parametrize("content", [b"", b"1234567"])
def test_tiny_files_are_refused(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(content)
    with pytest.raises(CheckpointError, match="truncated"):
        read_header(path)


def test_missing_file_and_folder_are_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="missing"):
        read_header(tmp_path / "absent.safetensors")
    with pytest.raises(CheckpointError, match="not a regular file"):
        read_header(tmp_path)


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=400))
def test_any_bytes_are_read_or_refused(tmp_path_factory: pytest.TempPathFactory, raw: bytes) -> None:
    path = tmp_path_factory.mktemp("fuzz") / "model.safetensors"
    path.write_bytes(raw)
    try:
        tensors, _ = read_header(path)
    except CheckpointError:
        return
    assert all(tensor.start + tensor.nbytes <= len(raw) for tensor in tensors.values())


_JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(max_size=5)
    | st.sampled_from(sorted(DTYPE_BITS)),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["dtype", "shape", "data_offsets", "a"]), inner, max_size=4)
    ),
    max_leaves=12,
)


@settings(max_examples=500, deadline=None)
@given(document=_JSON, data=st.binary(max_size=16))
def test_any_json_is_read_or_refused(tmp_path_factory: pytest.TempPathFactory, document: Any, data: bytes) -> None:
    path = write(tmp_path_factory.mktemp("fuzz") / "model.safetensors", document, data)
    try:
        read_header(path)
    except CheckpointError as error:
        assert error.message
