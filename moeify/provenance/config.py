"""Options of every command that writes a checkpoint."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

WITHOUT_TRACE = ("force", "checksum", "low_memory", "report_to")
"""Options that change nothing in what is written."""
_LAST = ("max_shard_size", "revision")


@dataclass(frozen=True, kw_only=True)
class OutputOptions:
    """Which version of the source is read, and how the output is published."""

    revision: str | None = None
    """Branch, tag or commit, where the source is a Hub id."""
    force: bool = False
    """Replace an output that exists."""
    checksum: bool = False
    """Record the SHA-256 of every file, however large, which moeify inspect --verify reads."""

    def recorded(self) -> dict[str, Any]:
        """The options that had a part in what is written, for moeify.json; these come last."""
        values = {k: v for k, v in asdict(self).items() if k not in WITHOUT_TRACE}
        for name in _LAST:
            if name in values:
                values[name] = values.pop(name)
        return values


@dataclass(frozen=True, kw_only=True)
class ShardedOutput(OutputOptions):
    """The same, where all weights are written anew."""

    max_shard_size: str = "5GB"
    """Largest size of a weights file."""
