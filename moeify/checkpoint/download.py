"""What is fetched of a repository on the Hub: what moeify reads or carries along, nothing else."""

from __future__ import annotations

import re
from glob import escape
from pathlib import Path
from typing import Any

from moeify.checkpoint.hub_errors import hub_errors
from moeify.checkpoint.inside import check_relative
from moeify.checkpoint.interruption import Kept, keeping
from moeify.checkpoint.reader import CONFIG_FILE, read_config
from moeify.checkpoint.weight_files import (
    ADAPTER_CONFIG,
    ADAPTERS,
    INDEX_FILE,
    WEIGHTS_FILE,
    conversion_hint,
    first_file,
    is_index,
    read_index,
)
from moeify.errors import HubError
from moeify.progress import Stage, stage

MODEL_FILES = (
    "*.json",
    "*.jinja",
    "*.txt",
    "*.model",
    "*.model.v*",
    "*.spm",
    "*.bpe",
    "*.codes",
    "*.vocab",
    "*.tiktoken",
    "*.md",
    "LICENSE*",
    "LICENCE*",
    "NOTICE*",
    "COPYING*",
)
"""Settings, vocabularies, templates and terms of use, as all libraries name them."""
_MODULES = "[0-9]*_*/*"  # of a sentence encoder, their own weights included
_UNWANTED = ["onnx/*", "openvino/*", "coreml/*", "checkpoint-*/*", "runs/*", "original/*"]


def download(repo_id: str, revision: str | None) -> Path:
    """The folder of the cache that holds a repository's files and the weights that count.

    Raises ``HubError`` when the Hub refuses or has no such weights.
    """
    wanted = [WEIGHTS_FILE, *MODEL_FILES, *ADAPTERS, _MODULES]
    folder = _fetch(repo_id, revision, wanted, _UNWANTED)
    # What is pushed meanwhile belongs to another commit.
    commit = folder.name if folder.parent.name == "snapshots" else revision

    def is_there(name: str) -> bool:
        check_relative(name)
        if name not in (WEIGHTS_FILE, INDEX_FILE):
            _fetch(repo_id, commit, [escape(name)])
        return (folder / name).exists()

    known = (folder / CONFIG_FILE).exists()
    first = first_file(read_config(folder, check=False) if known else {}, is_there)
    if first is None:
        if not (folder / ADAPTER_CONFIG).is_file():
            _explain_missing_weights(repo_id, folder)
    elif is_index(first):
        shards = list(read_index(folder, first))
        for shard in shards:
            check_relative(shard)
        _fetch(repo_id, commit, [escape(shard) for shard in shards])
    return folder


def _fetch(repo_id: str, revision: str | None, wanted: list[str], unwanted: list[str] | None = None) -> Path:
    from huggingface_hub import snapshot_download

    kept = Kept(what=f"what arrived of {repo_id} stays in the Hub's cache, and the same command fetches the rest")
    with (
        hub_errors(repo_id, "downloading", revision),
        keeping(lambda: kept),
        stage(f"downloading {repo_id}", unit="bytes") as coming,
    ):
        return Path(
            snapshot_download(
                repo_id, revision=revision, allow_patterns=wanted, ignore_patterns=unwanted, tqdm_class=_told(coming)
            )
        )


def _told(coming: Stage) -> type[Any]:
    """The class of bar that the client is to draw: one that draws nothing and tells ``coming``."""
    from tqdm import tqdm

    class Told(tqdm):  # type: ignore[misc]
        def __init__(self, *args: Any, **options: Any) -> None:
            # Of the client's three bars one counts the bytes that are on the disk.
            self.counts = str(options.get("desc", "")).startswith("Reconstructing")
            self.got = 0
            super().__init__(*args, **options | {"disable": True})
            self.total = options.get("total")

        def update(self, n: float | None = 1) -> None:
            self.got += int(n or 0)
            if self.counts:
                coming.reach(self.got, int(self.total or 0) or None)

    return Told


def _explain_missing_weights(repo_id: str, folder: Path) -> None:
    """Raise ``HubError`` for a repository without safetensors, saying what it has instead."""
    from huggingface_hub import list_repo_files

    with hub_errors(repo_id, "listing", folder.name):
        names = list_repo_files(repo_id, revision=folder.name)
    pickles = [name for name in names if re.fullmatch(r"pytorch_model[\w.-]*\.bin", name)]
    if not pickles:
        raise HubError(
            f"{repo_id} holds no safetensors weights on the Hub",
            "name a model with model.safetensors, or a local folder",
        )
    raise HubError(
        f"{repo_id} holds {pickles[0]} and no safetensors file; nothing of it was downloaded",
        conversion_hint(repo_id, read_config(folder)),
    )
