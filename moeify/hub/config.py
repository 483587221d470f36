"""Options of push."""

from __future__ import annotations

import re
from dataclasses import dataclass

from moeify.errors import ConfigError

_REPO_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}/[A-Za-z0-9][\w.-]{0,95}", re.ASCII)
_BRANCH = re.compile(r"[\w.][\w./-]{0,200}", re.ASCII)


@dataclass(frozen=True, kw_only=True)
class PushConfig:
    """Where on the Hub a checkpoint goes.

    Raises ``ConfigError`` for values that cannot work.
    """

    private: bool = False
    """Create the repository so that only its owner sees it; an existing one stays as it is."""
    create_pr: bool = False
    """Open a pull request instead of changing the branch."""
    revision: str | None = None
    """Branch to push to, created where it does not exist; left out, main."""
    yes: bool = False
    """Overwrite a repository even where it holds a different model."""

    def __post_init__(self) -> None:
        name = self.revision
        if name is not None and (not _BRANCH.fullmatch(name) or ".." in name or "//" in name):
            raise ConfigError(f"{name!r} is no name for a branch", "pass --revision main")


def check_repo_id(repo_id: str) -> None:
    """Raise ``ConfigError`` unless ``repo_id`` has the form ``user/name``."""
    if not _REPO_ID.fullmatch(repo_id) or ".." in repo_id or "--" in repo_id:
        raise ConfigError(
            f"{repo_id!r} is no repository on the Hub", "write it as user/name, for instance me/bert-base-uncased-moe"
        )
    if repo_id.endswith((".git", ".", "-")):
        raise ConfigError(f"{repo_id!r} ends in what the Hub does not allow", "choose another name")
