"""How much memory there is, and whether a checkpoint's weights fit into it."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

from moeify.checkpoint.header import FLOAT_DTYPES
from moeify.checkpoint.reader import Checkpoint
from moeify.families.quantization import QUANTIZATION

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_UNPACKED = {"U8": 2, "I8": 1, "F8_E4M3": 1, "F8_E5M2": 1}
"""Weights that an element of a quantised checkpoint becomes once it is loaded."""
_WIDTHS = {"float64": 8, "float32": 4, "float16": 2, "bfloat16": 2}
GROWN = 1 << 29
"""Bytes that text running through a model may take before freed ones go back."""
_PART = 0.8
"""What a model may take of the available memory: activations need the rest."""


def fits_memory(*checkpoints: Checkpoint, dtype: str = "auto") -> bool:
    """Whether all weights fit at once; True on systems that do not say what is available."""
    available = available_memory()
    return available is None or sum(loaded_bytes(one, dtype) for one in checkpoints) <= _PART * available


def loaded_bytes(checkpoint: Checkpoint, dtype: str = "auto") -> int:
    """About how many bytes the weights take in memory, in ``dtype`` and quantised ones unpacked."""
    config = checkpoint.config
    named = (config.get("dtype") or config.get("torch_dtype")) if dtype == "auto" else dtype
    width = _WIDTHS.get(str(named), 0)
    widths = dict.fromkeys(FLOAT_DTYPES, width)
    if config.get(QUANTIZATION):
        widths |= {stored: count * (width or 2) for stored, count in _UNPACKED.items()}
    return sum(t.elements * widths.get(t.dtype, 0) or t.nbytes for t in checkpoint.tensors.values())


def available_memory() -> int | None:
    """Bytes that this process can still take, a container's limit included; None if unknown."""
    found = [value for value in (_system(), _container()) if value is not None]
    return min(found, default=None)


def give_back(grown: int = 0) -> None:
    """Give freed memory back to the system, where this process took ``grown`` bytes more since it last did.

    glibc keeps tensors of up to 32 MiB in its heap, and what is free between them is used for nothing
    larger. Does nothing where the C library is another.
    """
    global _held
    if grown and _own_bytes() - _held <= grown:
        return
    libc = ctypes.CDLL(None)
    if hasattr(libc, "malloc_trim"):
        libc.malloc_trim(0)
    _held = _own_bytes()


_held = 0


def _own_bytes() -> int:
    """Resident memory that is no file's; 0 on systems that do not say."""
    try:
        resident, shared = Path("/proc/self/statm").read_text(encoding="ascii").split()[1:3]
    except OSError:
        return 0
    return (int(resident) - int(shared)) * os.sysconf("SC_PAGE_SIZE")


def _system() -> int | None:
    try:
        lines = _MEMINFO.read_text(encoding="ascii").splitlines()
        fields = dict(line.split(":", 1) for line in lines)
        return int(fields["MemAvailable"].split()[0]) * 1024
    except (OSError, KeyError, ValueError):
        pass
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def _container() -> int | None:
    """What the control group leaves; file pages that it can drop count as free."""
    try:
        limit = int((_CGROUP / "memory.max").read_text(encoding="ascii"))
        used = int((_CGROUP / "memory.current").read_text(encoding="ascii"))
        lines = (_CGROUP / "memory.stat").read_text(encoding="ascii").splitlines()
        stat = dict(line.split(" ", 1) for line in lines)
        return max(limit - used + int(stat.get("inactive_file", "0")), 0)
    except (OSError, ValueError):
        return None
