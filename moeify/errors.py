"""The error tree: every failure that moeify foresees is one sentence and a hint.

MoeifyError(message, hint=None)
+-- ConfigError            an impossible option or combination of options
+-- CheckpointError        not a checkpoint, truncated, shard missing, header inconsistent
|   +-- TensorNotFoundError
+-- OutputError            the output exists, has no room, or cannot be written
+-- UnsupportedModelError  no family for this model_type; lists the known ones
+-- DatasetError           missing column, empty split, unreadable file
+-- RoutingError           statistics that do not fit the checkpoint
+-- TrainingError          the loss became NaN; the last good weights were kept
+-- HubError               the Hub said no; carries huggingface_hub's own error as its cause
+-- MissingExtraError      names the extra to install
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path


class MoeifyError(Exception):
    """A failure that the user can understand and mend.

    Args:
        message: one sentence with the offending value and the limit.
        hint: the command or the option that mends it.
    """

    def __init__(self, message: str, hint: str | None = None) -> None:
        super().__init__(message)
        self.message = message
        self.hint = hint


class ConfigError(MoeifyError):
    """An option, or a combination of options, that cannot work."""


class CheckpointError(MoeifyError):
    """A folder that is no checkpoint, or one whose files contradict each other.

    Args:
        path: the file or folder that failed.
    """

    def __init__(self, message: str, hint: str | None = None, *, path: Path | None = None) -> None:
        super().__init__(message, hint)
        self.path = path


class TensorNotFoundError(CheckpointError):
    """A tensor that the model needs is in none of the checkpoint's files."""

    def __init__(self, name: str, folder: Path, hint: str | None = None) -> None:
        super().__init__(f"tensor {name!r} is missing from {folder}", hint, path=folder)
        self.name = name


class OutputError(MoeifyError):
    """The output exists already, lies inside the source, has no room or cannot be written."""


class UnsupportedModelError(MoeifyError):
    """No family is registered for a checkpoint's ``model_type``."""

    def __init__(self, model_type: object, known: Iterable[str], hint: str | None = None) -> None:
        listing = ", ".join(sorted(known))
        super().__init__(f"model_type {model_type!r} is not supported; known: {listing}", hint)
        self.model_type = model_type


class DatasetError(MoeifyError):
    """A dataset that is missing, unreadable, empty, or lacks a column."""


class RoutingError(MoeifyError):
    """Routing statistics that do not belong to the checkpoint they are used with."""


class TrainingError(MoeifyError):
    """Training diverged; the output holds the last good weights."""


class HubError(MoeifyError):
    """The Hugging Face Hub refused or could not be reached; ``__cause__`` has the details."""


class MissingExtraError(MoeifyError):
    """An optional dependency is needed.

    Args:
        package: the package that could not be imported.
        extra: the extra of moeify that brings it.
    """

    def __init__(self, package: str, extra: str) -> None:
        super().__init__(
            f"this needs the package {package!r}, which is not installed", f"pip install 'moeify[{extra}]'"
        )
        self.package = package
        self.extra = extra
