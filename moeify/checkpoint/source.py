"""From what a user types, a folder or a Hub id, to a folder on disk."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from moeify.errors import CheckpointError, ConfigError, HubError

__all__ = ["Source", "resolve_source"]

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]{0,95}(/[A-Za-z0-9][\w.-]{0,95})?")
_WANTED = [
    "model*.safetensors",
    "*.json",
    "*.txt",
    "*.model",
    "*.jinja",
    "*.py",
    "*.md",
    "LICENSE*",
]
_UNWANTED = ["onnx/*", "openvino/*", "coreml/*", "*.index.json.bak"]


@dataclass(frozen=True, kw_only=True)
class Source:
    """A checkpoint folder and where it came from.

    ``name`` is the Hub id or the folder's own name, never a full path, because it is recorded
    in files that are published. ``revision`` is the Hub commit, or None for a local folder.
    """

    folder: Path
    name: str
    revision: str | None = None


def resolve_source(source: str | Path, revision: str | None = None) -> Source:
    """The folder behind ``source``, downloaded from the Hub if it is a Hub id.

    Cache, offline mode and tokens work as huggingface_hub has them. Raises ``CheckpointError``
    for a folder that does not exist and ``HubError`` when the Hub refuses.
    """
    path = Path(source).expanduser()
    if path.is_dir():
        if revision is not None:
            raise ConfigError(
                f"--revision {revision} is only for Hub ids; {path} is a local folder",
                "leave --revision out",
            )
        return Source(folder=path, name=path.name or path.resolve().name)
    text = str(source)
    if path.exists() or text.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(text):
        raise CheckpointError(
            f"{text} is not a checkpoint folder",
            "name a folder with config.json and *.safetensors, or a Hub id such as Qwen/Qwen3-0.6B",
            path=path,
        )
    folder = _download(text, revision)
    commit = folder.name if folder.parent.name == "snapshots" else revision
    return Source(folder=folder, name=text, revision=commit)


def _download(repo_id: str, revision: str | None) -> Path:
    from huggingface_hub import errors as hub
    from huggingface_hub import snapshot_download

    try:
        folder = snapshot_download(
            repo_id, revision=revision, allow_patterns=_WANTED, ignore_patterns=_UNWANTED
        )
    except hub.GatedRepoError as error:
        raise HubError(
            f"{repo_id} is gated on the Hub and this account has no access",
            f"ask for access on the model's page, then: hf auth login ({_where(error)})",
        ) from error
    except hub.RevisionNotFoundError as error:
        raise HubError(
            f"{repo_id} has no revision {revision!r} on the Hub", "leave --revision out"
        ) from error
    except hub.RepositoryNotFoundError as error:
        raise HubError(
            f"there is no folder {repo_id} here, and no such model on the Hub,"
            " or it is private and this account has no access",
            "check the spelling; for a private model: hf auth login",
        ) from error
    except hub.LocalEntryNotFoundError as error:
        raise HubError(
            f"{repo_id} is not in the local cache and the Hub cannot be reached",
            "connect once, or name a local folder; HF_HUB_OFFLINE=1 forbids downloads",
        ) from error
    except (hub.HfHubHTTPError, OSError) as error:
        raise HubError(
            f"downloading {repo_id} failed: {_first_line(error)}", "run the command again"
        ) from error
    return Path(folder)


def _where(error: Exception) -> str:
    response = getattr(error, "response", None)
    return f"status {response.status_code}" if response is not None else "no response"


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
