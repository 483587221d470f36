"""Safetensors headers, read, checked and written with the standard library alone."""

from __future__ import annotations

import json
import math
import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeify.checkpoint.json_text import MAX_BYTES, MAX_TEXT_BYTES, parse_json
from moeify.checkpoint.regular import open_regular
from moeify.errors import CheckpointError

FLOAT_DTYPES = ("F64", "F32", "F16", "BF16")
"""Dtypes whose values are weights by themselves, without a scale or a table."""
DTYPE_BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "F8_E5M2": 8,
    "F8_E4M3": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F8_E5M2FNUZ": 8,
    "F4": 4,
    "F6_E2M3": 6,
    "F6_E3M2": 6,
    "I16": 16,
    "U16": 16,
    "F16": 16,
    "BF16": 16,
    "I32": 32,
    "U32": 32,
    "F32": 32,
    "I64": 64,
    "U64": 64,
    "F64": 64,
    "C64": 64,
}
ZEROS = Path("/dev/zero")
"""Where the tensors lie that no file holds and that are zero."""
MAX_HEADER_BYTES = MAX_TEXT_BYTES
MAX_NAME_LENGTH = 1000
_LENGTH_BYTES = 8
_ALIGNMENT = 4096
_TENSOR_BYTES = 260  # a StoredTensor with its numbers and its place in a dictionary
_SHAPE_BYTES, _SIZE_BYTES = 150, 40


@dataclass(frozen=True, slots=True)
class StoredTensor:
    """Where one tensor lies on disk.

    ``start`` and ``nbytes`` count bytes from the beginning of the file ``path``; ``shape`` is
    the safetensors shape, outermost dimension first.
    """

    name: str
    dtype: str
    shape: tuple[int, ...]
    path: Path
    start: int
    nbytes: int

    @property
    def elements(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)


def tensor_nbytes(dtype: str, shape: Iterable[int]) -> int:
    """Bytes of a tensor of ``dtype`` and ``shape``; sub-byte dtypes must fill whole bytes."""
    bits = DTYPE_BITS[dtype] * math.prod(shape)
    if bits % 8:
        raise CheckpointError(f"a {dtype} tensor of shape {tuple(shape)} does not fill whole bytes")
    return bits // 8


def zeros(name: str, dtype: str, shape: tuple[int, ...]) -> StoredTensor:
    """A tensor that no file holds and that is read as zeros."""
    return StoredTensor(name, dtype, shape, ZEROS, 0, tensor_nbytes(dtype, shape))


def read_header(path: Path, room: int = MAX_BYTES) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Tensors and metadata of one safetensors file, fully validated.

    Only the header is read, if it takes no more than about ``room`` bytes of memory. Raises
    ``CheckpointError`` when it would take more, the file is truncated, the header is no valid JSON
    object, a dtype is unknown, or offsets overlap, leave gaps or pass the end.
    """
    return parse_header(*_read_raw(path, room), path, room)


def salvage_header(path: Path, room: int = MAX_BYTES) -> dict[str, StoredTensor]:
    """What the header of a truncated file lists, for a look at it; empty where it says nothing."""
    try:
        return parse_header(_read_raw(path, room)[0], None, path, room)[0]
    except CheckpointError:
        return {}


def _read_raw(path: Path, room: int) -> tuple[bytes, int]:
    """The JSON bytes of a file's header, and the size of the file."""
    handle, size = open_regular(path)
    try:
        with open(handle, "rb") as file:
            length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
            _check_length(length, size, path, room)
            return file.read(length), size
    except OSError as error:
        raise CheckpointError(f"cannot read {path.name}: {error.strerror}", path=path) from error


def _check_length(length: int, size: int, path: Path, room: int) -> None:
    if size < _LENGTH_BYTES:
        raise CheckpointError(
            f"{path.name} is truncated: {size} bytes hold no safetensors header", "download the file again", path=path
        )
    if length > size - _LENGTH_BYTES:
        raise CheckpointError(
            f"{path.name} is truncated or no safetensors file: its header claims {length} bytes"
            f" and the file has {size}",
            "download the file again",
            path=path,
        )
    if 2 * length > room:  # its text, and the names cut out of it
        raise CheckpointError(
            f"the header of {path.name} has {length} bytes and would take more than the"
            f" {room / 1e6:.0f} MB of memory that it may take",
            path=path,
        )


def parse_header(
    raw: bytes, file_size: int | None, path: Path, room: int = MAX_BYTES
) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Tensors and metadata from the JSON bytes of a header; see ``read_header`` for the errors.

    ``file_size`` None leaves open where the file ends.
    """
    document = parse_json(raw, f"the header of {path.name}", path, room)
    metadata = document.pop("__metadata__", None) or {}
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise CheckpointError(f"{path.name}: __metadata__ must map strings to strings", path=path)
    data_start = _LENGTH_BYTES + len(raw)
    tensors: dict[str, StoredTensor] = {}
    shared: dict[Any, Any] = {}
    # Entries give way to tensors one by one, so that a long header is not held twice.
    for name in list(document):
        tensors[name] = _parse_entry(name, document.pop(name), data_start, path, shared)
    _check_layout(tensors.values(), data_start, file_size, path)
    return tensors, metadata


def held_bytes(tensors: dict[str, StoredTensor]) -> int:
    """About what ``tensors`` of one file take in memory."""
    shapes = {tensor.shape for tensor in tensors.values()}  # each is there once
    return (
        _TENSOR_BYTES * len(tensors)
        + sum(map(sys.getsizeof, tensors))
        + sum(_SHAPE_BYTES + _SIZE_BYTES * len(shape) for shape in shapes)
    )


def _is_count(value: object) -> bool:
    return type(value) is int and 0 <= value < 1 << 63


def _parse_entry(name: str, entry: Any, data_start: int, path: Path, shared: dict[Any, Any]) -> StoredTensor:
    """The tensor ``name``; equal shapes and sizes are one object, which ``shared`` holds."""
    if len(name) > MAX_NAME_LENGTH:
        raise CheckpointError(
            f"{path.name}: {name[:40]!r}... is longer than the {MAX_NAME_LENGTH} characters that a"
            " tensor's name may have",
            path=path,
        )
    try:
        dtype, shape, (begin, end) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError) as error:
        raise CheckpointError(
            f"{path.name}: the header entry of {name!r} lacks dtype, shape or data_offsets", path=path
        ) from error
    if not isinstance(dtype, str) or dtype not in DTYPE_BITS:
        raise CheckpointError(f"{path.name}: {name!r} has the unknown dtype {dtype!r}", path=path)
    if not isinstance(shape, list) or not all(map(_is_count, shape)):
        raise CheckpointError(f"{path.name}: {name!r} has the invalid shape {shape!r}", path=path)
    if not (_is_count(begin) and _is_count(end) and begin <= end):
        raise CheckpointError(f"{path.name}: {name!r} has the invalid offsets [{begin!r}, {end!r}]", path=path)
    if tensor_nbytes(dtype, shape) != end - begin:
        raise CheckpointError(
            f"{path.name}: {name!r} of shape {shape} and dtype {dtype} needs"
            f" {tensor_nbytes(dtype, shape)} bytes, its offsets span {end - begin}",
            path=path,
        )
    size, nbytes = tuple(shape), end - begin
    return StoredTensor(
        name,
        sys.intern(dtype),
        shared.setdefault(size, size),
        path,
        data_start + begin,
        shared.setdefault(nbytes, nbytes),
    )


def _check_layout(tensors: Iterable[StoredTensor], data_start: int, file_size: int | None, path: Path) -> None:
    position, previous = data_start, None
    for tensor in sorted(tensors, key=lambda t: (t.start, t.nbytes)):
        if tensor.start != position:
            what = "overlaps" if tensor.start < position else "leaves a gap after"
            raise CheckpointError(f"{path.name}: {tensor.name!r} {what} {previous or 'the header'!r}", path=path)
        position, previous = tensor.start + tensor.nbytes, tensor.name
    if file_size is not None and position != file_size:
        state = "truncated" if position > file_size else "followed by bytes that belong to nothing"
        raise CheckpointError(
            f"{path.name} is {state}: the header describes {position} bytes, the file has {file_size}",
            "download the file again",
            path=path,
        )


def encode_header(tensors: Iterable[tuple[str, str, tuple[int, ...]]]) -> bytes:
    """The bytes that start a safetensors file holding ``(name, dtype, shape)`` in this order.

    Padded with spaces so that the data begin on a page, where direct writes can start.
    """
    document: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    position = 0
    for name, dtype, shape in tensors:
        end = position + tensor_nbytes(dtype, shape)
        document[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [position, end]}
        position = end
    raw = json.dumps(document, separators=(",", ":"), ensure_ascii=False).encode()
    raw += b" " * (-len(raw) % _ALIGNMENT)
    return len(raw).to_bytes(_LENGTH_BYTES, "little") + raw
