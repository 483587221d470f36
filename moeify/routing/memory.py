"""How much memory there is, and whether a checkpoint's weights fit into it."""

from __future__ import annotations

import os
from pathlib import Path

from moeify.checkpoint.reader import Checkpoint

__all__ = ["available_memory", "fits_memory"]

_MEMINFO = Path("/proc/meminfo")
_CGROUP = Path("/sys/fs/cgroup")
_PART = 0.8
"""What a model may take of the available memory: activations need the rest."""


def fits_memory(checkpoint: Checkpoint) -> bool:
    """Whether all weights fit at once; True on systems that do not say what is available."""
    available = available_memory()
    needed = sum(tensor.nbytes for tensor in checkpoint.tensors.values())
    return available is None or needed <= _PART * available


def available_memory() -> int | None:
    """Bytes that this process can still take, a container's limit included; None if unknown."""
    found = [value for value in (_system(), _container()) if value is not None]
    return min(found, default=None)


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
