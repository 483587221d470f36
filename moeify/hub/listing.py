"""Which files of a checkpoint folder are published, and with what content."""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from moeify.checkpoint.carry import is_part
from moeify.checkpoint.inside import resolve_inside
from moeify.checkpoint.reader import Checkpoint
from moeify.checkpoint.regular import read_text
from moeify.errors import CheckpointError
from moeify.provenance.base_card import MAX_CARD_BYTES
from moeify.provenance.card import CARD_FILE, card_text
from moeify.provenance.card_sections import PLACEHOLDER

if TYPE_CHECKING:
    from huggingface_hub import CommitOperationAdd

_FOLDERS = ("checkpoint-*", "runs", "wandb", "__pycache__")
_SHOWN = ("*.png", "*.jpg", "*.jpeg", "*.gif", "*.svg", "*.webp", "*.md", "*.pdf")
"""What a card may show out of a folder of its own."""
_NEVER = (
    "*.pt",
    "*.pth",
    "*.bin",
    "*.pkl",
    "*.pickle",
    "*.ckpt",
    "*.log",
    "*.tmp",
    "*.lock",
    "events.out.tfevents.*",
    "trainer_state.json",
)


@dataclass(frozen=True, kw_only=True)
class LocalFile:
    """A file to publish: its name in the repository and the client's own description of it.

    The description hashes the file once, when asked, and the upload uses the same hash.
    """

    name: str
    nbytes: int
    operation: CommitOperationAdd = field(repr=False)


def local_files(checkpoint: Checkpoint, repo_id: str) -> tuple[list[LocalFile], list[str]]:
    """What of ``checkpoint`` is published as ``repo_id``, and the names that are left out.

    Hidden files, pickles, logs and training states are left out, so are weights that are not
    loaded, and of folders that are no part of a model all but pictures and texts. Raises
    ``CheckpointError`` for a link that leads out of the folder and for anything that is no file.
    """
    from huggingface_hub import CommitOperationAdd

    taken: list[LocalFile] = []
    left: dict[str, None] = {}
    used = {*filter(None, [checkpoint.index_file]), *(path.name for path in checkpoint.shards)}
    for name in _names(checkpoint.folder):
        if _is_left_out(name, used):
            left["".join(name.partition("/")[:2])] = None  # of a folder its own name, once
            continue
        path = resolve_inside(checkpoint.folder, name)
        if not path.is_file():
            raise CheckpointError(
                f"{name!r} is neither a file nor a folder of {checkpoint.folder}",
                "remove it: only files and folders can be published",
                path=path,
            )
        if name != CARD_FILE:
            operation = CommitOperationAdd(path_in_repo=name, path_or_fileobj=path)
            taken.append(LocalFile(name=name, nbytes=path.stat().st_size, operation=operation))
    card = _card(checkpoint, repo_id)
    operation = CommitOperationAdd(path_in_repo=CARD_FILE, path_or_fileobj=card)
    taken.append(LocalFile(name=CARD_FILE, nbytes=len(card), operation=operation))
    return taken, list(left)


def _names(folder: Path) -> list[str]:
    names = []
    for place, folders, files in os.walk(folder):
        folders[:] = [n for n in folders if not n.startswith(".") and not _matches(n, _FOLDERS)]
        relative = Path(place).relative_to(folder)
        links = [n for n in folders if Path(place, n).is_symlink()]
        visible = [n for n in (*files, *links) if not n.startswith(".")]
        names += [PurePosixPath(relative, n).as_posix() for n in visible]
    return sorted(names)


def _is_left_out(name: str, used: set[str]) -> bool:
    top, _, inner = name.partition("/")
    if not inner:
        stale = name.endswith((".safetensors", ".safetensors.index.json")) and name not in used
        return stale or _matches(name, _NEVER)
    last = inner.rsplit("/", 1)[-1]
    if is_part(top):  # of whose pickles a module of a sentence encoder has need
        return _matches(last, ("*.lock", "*.tmp"))
    return not _matches(last, _SHOWN)


def _card(checkpoint: Checkpoint, repo_id: str) -> bytes:
    """The folder's own card, or a new one, with the repository's id in its snippets."""
    path = resolve_inside(checkpoint.folder, CARD_FILE)
    own = path.is_file()
    text = read_text(path, MAX_CARD_BYTES) if own else card_text(checkpoint.folder)
    return text.replace(PLACEHOLDER, repo_id).encode()


def _matches(name: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(name, pattern) for pattern in patterns)
