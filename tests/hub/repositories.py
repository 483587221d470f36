"""What the Hub stand-in stores: repositories, their commits and large objects."""

import base64
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any

LARGE = (".safetensors", ".bin", ".gguf", ".pt")
LARGE_BYTES = 10_000_000


@dataclass(frozen=True)
class Entry:
    """A file of a commit: small ones by git's hash, large ones by SHA-256 behind a pointer."""

    data: bytes
    large: bool

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.data).hexdigest()

    @property
    def git_hash(self) -> str:
        data = self._pointer() if self.large else self.data
        return hashlib.sha1(b"blob %d\0" % len(data) + data).hexdigest()

    @property
    def etag(self) -> str:
        return self.sha256 if self.large else self.git_hash

    def _pointer(self) -> bytes:
        head = "version https://git-lfs.github.com/spec/v1"
        return f"{head}\noid sha256:{self.sha256}\nsize {len(self.data)}\n".encode()

    def as_json(self, path: str) -> dict[str, Any]:
        shown = {"type": "file", "path": path, "size": len(self.data), "oid": self.git_hash}
        if self.large:
            pointer_size = len(self._pointer())
            shown["lfs"] = {"oid": self.sha256, "size": len(self.data), "pointerSize": pointer_size}
        return shown


@dataclass
class Repository:
    """One repository: commits by id, references to them, and who may read it."""

    private: bool = False
    gated: bool = False
    commits: dict[str, dict[str, Entry]] = field(default_factory=dict)
    references: dict[str, str] = field(default_factory=dict)
    messages: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not self.commits:
            self.commit("main", {".gitattributes": Entry(b"*.safetensors filter=lfs\n", False)})

    def commit(self, reference: str, files: dict[str, Entry], message: str = "initial") -> str:
        listing = sorted((path, entry.git_hash) for path, entry in files.items())
        oid = hashlib.sha1(json.dumps([len(self.commits), listing]).encode()).hexdigest()
        self.commits[oid] = files
        self.references[reference] = oid
        self.messages.append(message)
        return oid

    def resolve(self, revision: str) -> str | None:
        """The commit behind a branch, a tag or a commit id."""
        return self.references.get(revision) or (revision if revision in self.commits else None)

    def split(self, path: str) -> tuple[str, str] | None:
        """Revision and rest of ``revision/rest``; names of branches may hold slashes."""
        for name in (*self.references, *self.commits):
            if path == name or path.startswith(f"{name}/"):
                return name, path[len(name) + 1 :]
        return None

    def files(self, revision: str = "main") -> dict[str, bytes]:
        oid = self.resolve(revision)
        assert oid is not None, revision
        return {path: entry.data for path, entry in self.commits[oid].items()}


def is_large(path: str, size: int) -> bool:
    """Whether the Hub stores a file as a large object."""
    return size > 0 and (path.endswith(LARGE) or size > LARGE_BYTES)


def apply_commit(
    lines: list[dict[str, Any]], files: dict[str, Entry], objects: dict[str, bytes]
) -> tuple[dict[str, Entry], str]:
    """The files after a commit in the Hub's newline-delimited form, and its message.

    Raises KeyError for a large object that was never uploaded.
    """
    after, message = dict(files), ""
    for line in lines:
        value = line["value"]
        if line["key"] == "header":
            message = value["summary"]
        elif line["key"] == "file":
            assert value["encoding"] == "base64"
            after[value["path"]] = Entry(base64.b64decode(value["content"]), False)
        elif line["key"] == "lfsFile":
            after[value["path"]] = Entry(objects[value["oid"]], True)
        elif line["key"] == "deletedFile":
            del after[value["path"]]
        else:
            raise ValueError(f"unknown commit line {line['key']}")
    return after, message
