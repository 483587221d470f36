"""What a push will change on the Hub, known before anything is sent."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from moeify.hub.listing import LocalFile
from moeify.progress import stage

if TYPE_CHECKING:
    from huggingface_hub.hf_api import RepoFile

_WEIGHTS = re.compile(r"(model[^/]*\.safetensors|pytorch_model[^/]*\.bin)(\.index\.json)?")


@dataclass(frozen=True, kw_only=True)
class PushPlan:
    """The difference between a checkpoint and what is on the Hub.

    ``removed`` are weight files of an earlier push that the checkpoint no longer has: left in
    place, they would be loaded beside the new ones. ``problem`` says in what way the repository
    holds a different model, None where it does not.
    """

    repo_id: str
    branch: str
    creates_repo: bool
    new: tuple[LocalFile, ...]
    changed: tuple[LocalFile, ...]
    unchanged: tuple[LocalFile, ...]
    removed: tuple[str, ...] = ()
    left_out: tuple[str, ...] = ()
    problem: str | None = field(default=None)

    @property
    def uploads(self) -> tuple[LocalFile, ...]:
        """The files that the repository lacks in this form."""
        return (*self.new, *self.changed)

    @property
    def upload_bytes(self) -> int:
        """Their size."""
        return sum(file.nbytes for file in self.uploads)

    @property
    def total_bytes(self) -> int:
        """Size of everything that is published."""
        return self.upload_bytes + sum(file.nbytes for file in self.unchanged)

    @property
    def is_empty(self) -> bool:
        """Whether the repository holds all of it already."""
        return not (self.new or self.changed or self.removed)


def plan_push(
    repo_id: str,
    branch: str,
    local: list[LocalFile],
    remote: Mapping[str, RepoFile] | None,
    left_out: list[str],
    problem: str | None = None,
) -> PushPlan:
    """Compare ``local`` with ``remote``, which is None where there is no repository yet."""
    present = remote or {}
    new: list[LocalFile] = []
    changed: list[LocalFile] = []
    unchanged: list[LocalFile] = []
    with stage("comparing files", sum(file.nbytes for file in local if file.name in present), "bytes") as comparing:
        for file in local:
            if file.name not in present:
                new.append(file)
                continue
            (unchanged if is_same(file, present[file.name]) else changed).append(file)
            comparing.advance(file.nbytes)
    names = {file.name for file in local}
    removed = [name for name in sorted(present) if _WEIGHTS.fullmatch(name) and name not in names]
    weights = [*removed, *(file.name for file in (*new, *changed))]
    if not any(name.endswith((".safetensors", ".bin")) for name in weights):
        problem = None  # the very weights are there: nothing of value can be overwritten
    return PushPlan(
        repo_id=repo_id,
        branch=branch,
        creates_repo=remote is None,
        new=tuple(new),
        changed=tuple(changed),
        unchanged=tuple(unchanged),
        removed=tuple(removed),
        left_out=tuple(left_out),
        problem=problem,
    )


def is_same(file: LocalFile, stored: RepoFile) -> bool:
    """Whether the Hub holds the very bytes of ``file``: sizes first, hashes only then."""
    if stored.size != file.nbytes:
        return False
    if stored.lfs is not None:
        return file.operation.upload_info.sha256.hex() == stored.lfs.sha256
    from huggingface_hub.utils import sha

    with file.operation.as_file() as content:
        return bool(sha.git_hash(content.read()) == stored.blob_id)
