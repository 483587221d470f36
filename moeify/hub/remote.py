"""What a repository on the Hub holds before a push."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from moeify.checkpoint.hub_errors import hub_errors
from moeify.checkpoint.source import Source
from moeify.errors import CheckpointError
from moeify.hub.lineage import describe_difference
from moeify.provenance.record import RECORD_FILE, Record

if TYPE_CHECKING:
    from huggingface_hub import HfApi
    from huggingface_hub.hf_api import RepoFile

_MODELS = (
    ".safetensors",
    ".bin",
    ".gguf",
    ".pt",
    ".pth",
    ".ckpt",
    ".pkl",
    ".msgpack",
    ".h5",
    ".onnx",
    ".tflite",
    ".npz",
    ".nemo",
    ".keras",
)
_CONFIGS = ("config.json", "adapter_config.json")


@dataclass(frozen=True, kw_only=True)
class Remote:
    """The repository as it is: the commit of the branch and the files in it.

    Without such a branch they are main's, where it will start.
    """

    commit: str
    has_branch: bool
    private: bool
    files: Mapping[str, RepoFile]


def look(api: HfApi, repo_id: str, branch: str) -> Remote | None:
    """What ``branch`` holds, or main where there is no such branch; None without a repository."""
    from huggingface_hub import errors as hub
    from huggingface_hub.hf_api import RepoFile

    has_branch = True
    with hub_errors(repo_id, "looking up", branch):
        try:
            info = api.model_info(repo_id, revision=branch)
        except hub.RevisionNotFoundError:
            has_branch, info = False, api.model_info(repo_id)
        except hub.GatedRepoError:
            raise
        except hub.RepositoryNotFoundError:
            return None
        tree = api.list_repo_tree(repo_id, recursive=True, revision=info.sha)
        files = {item.path: item for item in tree if isinstance(item, RepoFile)}
        return Remote(commit=str(info.sha), has_branch=has_branch, private=bool(info.private), files=files)


def find_problem(api: HfApi, repo_id: str, folder: Path, remote: Remote | None) -> str | None:
    """In what way the repository holds another model than ``folder``; None where it does not."""
    if remote is None or not any(map(_is_of_a_model, remote.files)):
        return None
    theirs = None
    if RECORD_FILE in remote.files:
        with hub_errors(repo_id, f"reading {RECORD_FILE} of"):
            path = api.hf_hub_download(repo_id, RECORD_FILE, revision=remote.commit)
        try:
            theirs = _record(Path(path).parent)
        except CheckpointError:
            theirs = None  # whatever wrote that file, it was not moeify
    return describe_difference(_record(folder), theirs)


def _is_of_a_model(name: str) -> bool:
    return name in _CONFIGS or name.endswith(_MODELS)


def _record(folder: Path) -> Record | None:
    if not (folder / RECORD_FILE).exists():
        return None
    return Record.read(Source(folder=folder, name=folder.name))
