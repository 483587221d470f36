"""Where a file's name leads: into its folder, into the Hub's cache, or nowhere."""

from __future__ import annotations

from pathlib import Path, PurePosixPath

from moeify.errors import CheckpointError

_LONGEST_NAME, _LONGEST_PATH = 255, 1024


def check_relative(name: str) -> None:
    """Raise ``CheckpointError`` where ``name`` is no name of a file inside a folder."""
    pure = PurePosixPath(name)
    if not name or "\0" in name or pure.is_absolute() or ".." in pure.parts or "\\" in name:
        raise CheckpointError(f"{name[:200]!r} leads out of the checkpoint folder")
    if len(name.encode()) > _LONGEST_PATH or any(len(part.encode()) > _LONGEST_NAME for part in pure.parts):
        raise CheckpointError(f"{name[:40]!r}... is longer than the {_LONGEST_NAME} bytes that a file's name may have")


def resolve_inside(folder: Path, name: str) -> Path:
    """The path of file ``name`` in ``folder``, refused when it leads out of it.

    Links are followed inside the folder, and to files of models in a Hugging Face cache.
    """
    check_relative(name)
    path = folder / name
    root, target = folder.resolve(), path.resolve()
    snapshot = root.parent.name == "snapshots"
    if not (
        target.is_relative_to(root)
        or (snapshot and target.is_relative_to(root.parent.parent / "blobs"))
        or _is_cached(target)
    ):
        raise CheckpointError(
            f"{name!r} is a link out of the checkpoint folder",
            "put the file itself in its place, if it belongs to the checkpoint",
            path=path,
        )
    return path


def _is_cached(target: Path) -> bool:
    """Whether ``target`` is a file of a model, as huggingface_hub lays its cache out."""
    return any(
        place.name in ("blobs", "snapshots")
        and place.parent.name.startswith("models--")
        and (place.parent / "snapshots").is_dir()
        for place in target.parents
    )
