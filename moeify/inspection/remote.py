"""Headers of a checkpoint on the Hub, read by HTTP range requests without its weights."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from moeify.checkpoint.header import MAX_HEADER_BYTES, StoredTensor, parse_header
from moeify.checkpoint.hub_errors import hub_errors
from moeify.checkpoint.inside import check_relative
from moeify.checkpoint.json_text import MAX_TEXT_BYTES, parse_json
from moeify.checkpoint.reader import CONFIG_FILE, Room, reading_notes
from moeify.checkpoint.source import resolve_source, split_revision
from moeify.checkpoint.weight_files import (
    ADAPTER_CONFIG,
    INDEX_FILE,
    WEIGHTS_FILE,
    adapter_error,
    by_file,
    first_file,
    is_index,
)
from moeify.errors import CheckpointError
from moeify.inspection.opening import Opened, compare_index, drop_training_marks, drop_wrong_values, open_folder

_LENGTH_BYTES = 8
_ENTRY_BYTES = 90  # of one tensor in a header, beside its name
_FIRST_BYTES = 1 << 19  # of a file without an index, whose number of tensors is not known
_TIMEOUT_SECONDS = 30


@dataclass(frozen=True, kw_only=True)
class _Part:
    """The beginning of a remote file, its whole size and the commit it belongs to."""

    raw: bytes
    size: int
    commit: str | None


def open_remote(repo_id: str, revision: str | None) -> Opened:
    """Config and headers of a repository: one request for each file, three to find them.

    The cache serves where the Hub must not be asked (``HF_HUB_OFFLINE=1``). Raises ``HubError``
    when the Hub refuses and ``CheckpointError`` when the repository is no safetensors checkpoint.
    """
    from huggingface_hub import constants

    repo_id, revision = split_revision(repo_id, revision)
    if constants.HF_HUB_OFFLINE:
        return open_folder(resolve_source(repo_id, revision))
    with hub_errors(repo_id, "reading", revision):
        return _open(repo_id, revision)


def _open(repo_id: str, revision: str | None) -> Opened:
    config = _json(repo_id, revision, CONFIG_FILE)
    if config is None:
        if _json(repo_id, revision, ADAPTER_CONFIG) is not None:
            raise adapter_error(repo_id)
        raise CheckpointError(f"{repo_id} is not a checkpoint: it has no {CONFIG_FILE}")
    document, commit = config
    # Later requests ask for the same commit, whatever is pushed meanwhile.
    opened = Opened(name=repo_id, revision=commit or revision, config=document)
    drop_wrong_values(opened)
    indexes: dict[str, dict[str, Any]] = {}

    def is_there(name: str) -> bool:
        """A whole file is taken over at once, an index is kept."""
        check_relative(name)
        if not is_index(name):
            return _add(opened, repo_id, name, _FIRST_BYTES, Room({}))
        if found := _json(repo_id, opened.revision, name):
            indexes[name] = found[0]
        return found is not None

    first = first_file(document, is_there)
    if first is None:
        raise CheckpointError(
            f"{repo_id} holds neither {WEIGHTS_FILE} nor {INDEX_FILE}",
            "convert it once with transformers: AutoModel.from_pretrained(ID).save_pretrained(FOLDER)",
        )
    absent, index = [], indexes.get(first)
    if index is not None:
        absent = _add_listed(opened, repo_id, index)
    unused = [INDEX_FILE] if index is None and is_there(INDEX_FILE) else []
    opened.notes += reading_notes(first, unused, absent, drop_training_marks(opened))
    return opened


def _add_listed(opened: Opened, repo_id: str, index: dict[str, Any]) -> list[str]:
    """Take over the files that ``index`` names; returns tensors that it lists in vain."""
    weight_map = index.get("weight_map")
    if not isinstance(weight_map, dict):
        raise CheckpointError(f"{INDEX_FILE} of {repo_id} has no weight_map")
    files = by_file(weight_map, Path(repo_id))
    room = Room(files)
    for file, names in files.items():
        check_relative(file)
        if not _add(opened, repo_id, file, _expected_header(names), room):
            opened.report("missing_shard", f"{INDEX_FILE} names {file!r}, which is not there")
    return compare_index(opened, files)


def _expected_header(names: list[str]) -> int:
    """About how many bytes the header of a file with tensors of these ``names`` takes."""
    return (1 << 10) + sum(len(name) + _ENTRY_BYTES for name in names)


def _add(opened: Opened, repo_id: str, file: str, expected: int, room: Room) -> bool:
    """Take over one file's tensors; False where the repository has no such file."""
    part = _fetch(repo_id, opened.revision, file, expected)
    if part is None:
        return False
    length = int.from_bytes(part.raw[:_LENGTH_BYTES], "little")
    end = _LENGTH_BYTES + length
    if length > MAX_HEADER_BYTES or end > part.size:
        opened.report("damaged_shard", f"{file} is truncated or no safetensors file")
        opened.add(file, part.size, {})
        return True
    if end > len(part.raw):
        part = _fetch(repo_id, opened.revision, file, end) or part
    tensors = _parse(opened, part, end, file, room)
    room.take(file, tensors)
    opened.add(file, part.size, tensors)
    return True


def _parse(opened: Opened, part: _Part, end: int, file: str, room: Room) -> dict[str, StoredTensor]:
    raw = part.raw[_LENGTH_BYTES:end]
    try:
        return parse_header(raw, part.size, Path(file), room.left)[0]
    except CheckpointError as error:
        opened.report("damaged_shard", error.message)
    try:
        return parse_header(raw, None, Path(file), room.left)[0]
    except CheckpointError:
        return {}


def _json(repo_id: str, revision: str | None, file: str) -> tuple[dict[str, Any], str | None] | None:
    part = _fetch(repo_id, revision, file, MAX_TEXT_BYTES, whole=True)
    if part is None:
        return None
    return parse_json(part.raw, f"{file} of {repo_id}", Path(file)), part.commit


def _fetch(repo_id: str, revision: str | None, file: str, nbytes: int, *, whole: bool = False) -> _Part | None:
    """The first ``nbytes`` of a file, or all of it; None where there is no such file."""
    from huggingface_hub import errors as hub
    from huggingface_hub import get_session, hf_hub_url
    from huggingface_hub.utils import hf_raise_for_status  # type: ignore[attr-defined]

    headers = _headers()
    if not whole:
        headers["Range"] = f"bytes=0-{nbytes - 1}"
    url = hf_hub_url(repo_id, file, revision=revision)
    with get_session().stream(
        "GET", url, headers=headers, timeout=_TIMEOUT_SECONDS, follow_redirects=True
    ) as response:
        try:
            hf_raise_for_status(response)
        except hub.EntryNotFoundError:
            return None
        raw = bytearray()
        for chunk in response.iter_bytes():
            raw += chunk
            if len(raw) >= nbytes:  # a server that ignores ranges must not send the weights
                break
        commit = next(
            (r.headers["x-repo-commit"] for r in (*response.history, response) if "x-repo-commit" in r.headers), None
        )
        return _Part(raw=bytes(raw[:nbytes]), size=_whole_size(response, len(raw)), commit=commit)


def _headers() -> dict[str, str]:
    """Written here because the client's own builder may send a request of its own."""
    from huggingface_hub import constants, get_token

    headers = {"Accept-Encoding": "identity", "User-Agent": "moeify"}
    token = None if constants.HF_HUB_DISABLE_IMPLICIT_TOKEN else get_token()
    return headers if token is None else {**headers, "Authorization": f"Bearer {token}"}


def _whole_size(response: Any, received: int) -> int:
    span = response.headers.get("content-range", "").rpartition("/")[2]
    if span.isdecimal():
        return int(span)
    length = response.headers.get("content-length", "")
    return int(length) if length.isdecimal() else received
