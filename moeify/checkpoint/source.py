"""From what a user types, a folder or a Hub id, to a folder on disk."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from moeify.errors import CheckpointError, ConfigError, HubError

__all__ = [
    "ADAPTER_CONFIG",
    "ADAPTER_WEIGHTS",
    "MODEL_FILES",
    "Source",
    "is_hub_id",
    "resolve_source",
    "split_revision",
]

ADAPTER_CONFIG = "adapter_config.json"
ADAPTER_WEIGHTS = "adapter_model.safetensors"

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_REVISION = re.compile(r"[\w./-]{1,250}")
MODEL_FILES = (
    "*.json", "*.jinja", "*.txt", "*.model", "*.model.v*", "*.spm", "*.bpe", "*.codes",
    "*.vocab", "*.tiktoken", "*.md", "LICENSE*", "LICENCE*", "NOTICE*", "COPYING*",
)  # fmt: skip
"""Settings, vocabularies, templates and terms of use, as all libraries name them."""
_WANTED = [
    "model.safetensors",
    "model-*-of-*.safetensors",
    ADAPTER_WEIGHTS,
    *MODEL_FILES,
    "[0-9]*_*/*",  # the modules of a sentence encoder, their own weights included
]
_UNWANTED = ["onnx/*", "openvino/*", "coreml/*", "checkpoint-*/*", "runs/*", "original/*"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A checkpoint folder and where it came from.

    ``name`` is the Hub id or the folder's own name, never a full path, because it is recorded
    in files that are published. ``revision`` is the Hub commit, or None for a local folder.
    """

    folder: Path
    name: str
    revision: str | None = None


def is_hub_id(text: str) -> bool:
    """Whether ``text`` has the form of a Hub id: ``[user/]name[@revision]``."""
    name, at, revision = text.partition("@")
    if at and _REVISION.fullmatch(revision) is None:
        return False
    return _HUB_ID.fullmatch(name) is not None and ".." not in name and "--" not in name


def split_revision(text: str, revision: str | None) -> tuple[str, str | None]:
    """The Hub id in ``text``, and the revision that follows it after ``@`` or is given besides.

    Raises ``ConfigError`` where the two disagree.
    """
    name, at, named = text.partition("@")
    if at and revision not in (None, named):
        raise ConfigError(
            f"{text} names one revision, --revision {revision} another", "name it once"
        )
    return name, named if at else revision


def resolve_source(source: str | Path, revision: str | None = None) -> Source:
    """The folder behind ``source``, downloaded from the Hub if it is a Hub id.

    A revision may follow the id, as in ``Qwen/Qwen3-0.6B@main``. Only what moeify reads or carries
    along is fetched: weights as safetensors, JSON and text, no code and no exports. Cache, offline
    mode and tokens work as huggingface_hub has them. Raises ``CheckpointError`` for a folder that
    does not exist and ``HubError`` when the Hub refuses.
    """
    path = Path(source).expanduser()
    if os.path.isdir(path):  # False also for what is no path at all
        if revision is not None:
            raise ConfigError(
                f"--revision {revision} is only for Hub ids; {path} is a local folder",
                "leave --revision out",
            )
        return Source(folder=path, name=path.name or path.resolve().name)
    text = str(source)
    if os.path.exists(path) or text.startswith((".", "/", "~")) or not is_hub_id(text):
        raise CheckpointError(
            f"{text} is not a checkpoint folder",
            "name a folder with config.json and *.safetensors, or a Hub id such as Qwen/Qwen3-0.6B",
            path=path,
        )
    text, revision = split_revision(text, revision)
    folder = _download(text, revision)
    commit = folder.name if folder.parent.name == "snapshots" else revision
    return Source(folder=folder, name=text, revision=commit)


def _download(repo_id: str, revision: str | None) -> Path:
    from huggingface_hub import snapshot_download

    from moeify.checkpoint.hub_errors import hub_errors

    with hub_errors(repo_id, "downloading", revision):
        folder = Path(
            snapshot_download(
                repo_id, revision=revision, allow_patterns=_WANTED, ignore_patterns=_UNWANTED
            )
        )
    if not any(folder.glob("model*.safetensors")) and not (folder / ADAPTER_CONFIG).is_file():
        _explain_missing_weights(repo_id, folder)
    return folder


def _explain_missing_weights(repo_id: str, folder: Path) -> None:
    """Raise ``HubError`` for a repository without safetensors, saying what it has instead."""
    from huggingface_hub import list_repo_files

    from moeify.checkpoint.hub_errors import hub_errors
    from moeify.checkpoint.reader import read_config
    from moeify.checkpoint.weight_files import conversion_hint

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
