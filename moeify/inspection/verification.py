"""Files held against the checksums that were recorded when they were written."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from moeify.checkpoint.checksums import sha256
from moeify.checkpoint.inside import resolve_inside
from moeify.checkpoint.naming import some
from moeify.errors import CheckpointError
from moeify.families.problems import Problem
from moeify.progress import stage
from moeify.provenance.record import RECORD_FILE, FileEntry, recorded_files

_MISSING = "missing_file"


@dataclass(frozen=True, kw_only=True)
class Verified:
    """Files and bytes that were read and are what was written.

    ``unsummed`` have no recorded SHA-256; ``absent`` were not downloaded from the Hub, as code.
    """

    files: int
    bytes: int
    unsummed: tuple[str, ...]
    absent: tuple[str, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """For the JSON document."""
        return asdict(self)


def verify_files(folder: Path, problems: list[Problem], *, in_part: bool = False) -> Verified:
    """Read every file of ``folder`` that moeify.json has a SHA-256 of; adds to ``problems``.

    ``in_part`` says that what is missing was perhaps never fetched, which is no problem. Raises
    ``CheckpointError`` where there is no sum.
    """
    listed = recorded_files(folder)
    summed = {name: entry for name, entry in listed.items() if entry.sha256 is not None}
    if not summed:
        raise CheckpointError(
            f"{RECORD_FILE} of {folder.name} holds no checksums",
            "they are written by moeify; with --checksum those of large files too",
            path=folder,
        )
    total = sum(entry.nbytes for entry in summed.values())
    files = good = 0
    absent: list[str] = []
    with stage("checking files", total, "bytes") as checking:
        for name, entry in summed.items():
            problem = _problem(folder, name, entry)
            if problem is None:
                files, good = files + 1, good + entry.nbytes
            elif in_part and problem.kind == _MISSING:
                absent.append(name)
            else:
                problems.append(problem)
            checking.advance(entry.nbytes)
    rest = tuple(sorted(listed.keys() - summed.keys()))
    return Verified(files=files, bytes=good, unsummed=rest, absent=tuple(sorted(absent)))


def _problem(folder: Path, name: str, entry: FileEntry) -> Problem | None:
    try:
        path = resolve_inside(folder, name)
        if not path.is_file():
            return Problem(kind=_MISSING, message=f"{name} was written, and is gone")
        size = path.stat().st_size
        if size != entry.nbytes:
            return Problem(kind="checksum", message=f"{name} has {size} bytes, {entry.nbytes} were written")
        if sha256(path) == entry.sha256:
            return None
        return Problem(kind="checksum", message=f"{name} is not what was written: other SHA-256")
    except CheckpointError as error:
        return Problem(kind="checksum", message=error.message)
    except OSError as error:
        return Problem(kind="checksum", message=f"{name} cannot be read: {error.strerror}")


def unsummed_note(verified: Verified) -> str | None:
    """What a reader must know of files without a sum."""
    if not verified.unsummed:
        return None
    return (
        f"{len(verified.unsummed)} files have no recorded checksum: {some(verified.unsummed)};"
        " --checksum of the command that writes records it"
    )
