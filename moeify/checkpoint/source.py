"""From what a user types, a folder or a Hub id, to a folder on disk."""

from __future__ import annotations

import os
import re
from dataclasses import dataclass
from pathlib import Path

from moeify.errors import CheckpointError, ConfigError

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_REVISION = re.compile(r"[\w./-]{1,250}")


@dataclass(frozen=True, kw_only=True)
class Source:
    """A checkpoint folder and where it came from.

    ``name`` is the Hub id or the folder's own name, never a full path, because it is recorded
    in files that are published. ``revision`` is the Hub commit, or None for a local folder.
    """

    folder: Path
    name: str
    revision: str | None = None

    @property
    def base_name(self) -> str:
        """The name without the owner's."""
        return self.name.rsplit("/", 1)[-1]

    def output(self, given: str | Path | None, suffix: str) -> Path:
        """The folder ``given``, or NAME-SUFFIX in the working directory."""
        return Path(f"{self.base_name}-{suffix}") if given is None else Path(given)


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
        raise ConfigError(f"{text} names one revision, --revision {revision} another", "name it once")
    return name, named if at else revision


def resolve_source(source: str | Path, revision: str | None = None) -> Source:
    """The folder behind ``source``, downloaded from the Hub if it is a Hub id.

    A revision may follow the id, as in ``Qwen/Qwen3-0.6B@main``. Only what moeify reads or carries
    along is fetched: the weights that transformers would load, JSON and text, no code and no
    exports. Cache, offline mode and tokens work as huggingface_hub has them. Raises
    ``CheckpointError`` for a folder that does not exist and ``HubError`` when the Hub refuses.
    """
    path = Path(source).expanduser()
    if os.path.isdir(path):  # False also for what is no path at all
        if revision is not None:
            raise ConfigError(
                f"--revision {revision} is only for Hub ids; {path} is a local folder", "leave --revision out"
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
    from moeify.checkpoint.download import download

    folder = download(text, revision)
    commit = folder.name if folder.parent.name == "snapshots" else revision
    return Source(folder=folder, name=text, revision=commit)
