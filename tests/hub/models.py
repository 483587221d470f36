"""Small checkpoints to publish and to pull."""

from pathlib import Path

import moeify

from ..real.hub_shapes import qwen_like

CARD = b"---\nlicense: apache-2.0\nlanguage:\n- en\n- de\n---\n\nA small model.\n"


def dense(folder: Path) -> Path:
    """A Qwen3 of half a million weights, in two shards."""
    return qwen_like(folder, "qwen3", hidden=96, layers=4, ffn=256)


def mixture(folder: Path, **options: object) -> Path:
    """A Qwen3-MoE in two files, of which the second holds the routers."""
    source = folder.with_name(f"{folder.name}-dense")
    if not source.exists():
        dense(source)
    moeify.upcycle(source, folder, **({"num_experts": 4} | options))
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """The files of a folder by name, as a repository holds them."""
    paths = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in paths}
