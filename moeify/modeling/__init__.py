"""moeify's own MoE classes, and what a checkpoint needs to carry them along.

The source files named by [`REMOTE_CODE`][moeify.modeling.REMOTE_CODE] are copied into every
checkpoint moeify writes for these types, so they import torch, transformers and one another
only. This package itself imports neither torch nor transformers.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType

from moeify.modeling.moe_families import FAMILIES, MoeFamily, moe_type

__all__ = ["REMOTE_CODE", "RemoteCode"]

CONFIGURATION, MODELING = "configuration_moe", "modeling_moe"
"""The modules that hold the classes of every type."""


@dataclass(frozen=True, kw_only=True)
class RemoteCode:
    """Source files and `auto_map` of one `model_type`, as a checkpoint carries them."""

    files: tuple[str, ...]
    """File names, all in this folder and all flat in the checkpoint."""

    auto_map: Mapping[str, str]
    """Auto class -> `module.Class`, for `config.json`. It names every head, so that a checkpoint
    saved with one head loads with any other, as a dense checkpoint does."""

    tokenizer: str | None
    """The tokenizer's class where a checkpoint does not say."""

    @property
    def paths(self) -> tuple[Path, ...]:
        """Where the files lie in this installation, in the order of `files`."""
        return tuple(Path(__file__).parent / name for name in self.files)


_FILES = (
    f"{CONFIGURATION}.py",
    f"{MODELING}.py",
    "moe_batch.py",
    "moe_experts.py",
    "moe_families.py",
    "moe_layers.py",
    "moe_models.py",
    "moe_outputs.py",
    "moe_pooling.py",
    "moe_routing.py",
)


def _remote_code(family: MoeFamily) -> RemoteCode:
    auto_map = {"AutoConfig": f"{CONFIGURATION}.{family.moe_prefix}Config"}
    auto_map |= {f"AutoModel{auto}": f"{MODELING}.{family.moe_prefix}{head}" for auto, head in family.heads.items()}
    return RemoteCode(files=_FILES, auto_map=MappingProxyType(auto_map), tokenizer=family.tokenizer)


REMOTE_CODE: Mapping[str, RemoteCode] = MappingProxyType(
    {moe_type(dense): _remote_code(family) for dense, family in FAMILIES.items()}
)
"""`model_type` -> what its checkpoints carry. Plain data, importable without torch."""
