"""The part of the Hub stand-in that speaks to hf-xet: deduplicated storage of large files.

It takes what a client uploads, but cannot put files together again from compressed chunks: the
test tells it beforehand which files will come.
"""

import hashlib
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

STORAGE_TOKEN = "xet_StandInTokenOfTheStorage"


@dataclass
class XetStorage:
    """Files by SHA-256 that may arrive, and how many bytes of chunks did."""

    announced: dict[str, bytes] = field(default_factory=dict)
    chunk_bytes: int = 0

    def announce(self, folder: Path) -> None:
        for path in folder.glob("*.safetensors"):
            data = path.read_bytes()
            self.announced[hashlib.sha256(data).hexdigest()] = data

    def named_in(self, shard: bytes) -> dict[str, bytes]:
        """The announced files that a shard registers."""
        return {oid: data for oid, data in self.announced.items() if _stored(oid) in shard}


class XetEndpoints:
    """Endpoints for a request handler; without storage they answer 404, as older servers do."""

    hub: Any
    body: bytes
    _json: Callable[..., None]
    _error: Callable[..., None]
    _writable: Callable[[str], Any]

    def xet_token(self, id: str, revision: str) -> None:
        if self.hub.xet is None:
            return self._error(404, "no such endpoint", "EntryNotFound")
        if self._writable(id) is not None:
            expiry = int(time.time()) + 3600
            self._json({"accessToken": STORAGE_TOKEN, "exp": expiry, "casUrl": self.hub.url})

    def xet_xorb(self, hash: str) -> None:
        self.hub.xet.chunk_bytes += len(self.body)
        self._json({"was_inserted": True})

    def xet_shard(self) -> None:
        self.hub.objects |= self.hub.xet.named_in(self.body)
        self._json({"result": 1})


def _stored(oid: str) -> bytes:
    """A hash as shards hold it: four little-endian words."""
    raw = bytes.fromhex(oid)
    return b"".join(raw[start : start + 8][::-1] for start in range(0, 32, 8))
