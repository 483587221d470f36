"""A Hugging Face Hub on loopback, for the real huggingface_hub client to talk to.

It stores what is pushed, serves it again with ranges, checks tokens, and fails where it is told.
"""

import json
import re
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from .repositories import Entry, Repository, apply_commit, is_large
from .xet import STORAGE_TOKEN, XetEndpoints, XetStorage

ID = r"(?P<id>(?:datasets/)?(?:[^/]+/[^/]+|[^/]+))"
TOKEN = "hf_StandInTokenThatMustNeverBeShown"
OUTSIDER = "hf_TokenOfSomebodyElse"


@dataclass(frozen=True)
class Exchange:
    """One request and what came of it; sizes are those of the bodies."""

    method: str
    path: str
    status: int
    bytes_in: int
    bytes_out: int
    token: str | None
    range: str | None = None


@dataclass
class Fault:
    """Makes ``times`` requests that match fail: with a status, or by hanging up in mid-body."""

    method: str
    pattern: str
    status: int | None = None
    code: str | None = None
    after_bytes: int = 0
    times: int = 1


@dataclass
class HubStandIn:
    """The server's state. ``users`` maps tokens to names, and ``repositories`` ids to what is in
    them: ``user/name`` a model, ``datasets/user/name`` a dataset.

    ``cut_after`` has downloads of a file end after so many bytes, once.
    ``xet`` is None on a server without Xet storage.
    """

    url: str = ""
    users: dict[str, str] = field(default_factory=lambda: {TOKEN: "user", OUTSIDER: "other"})
    repositories: dict[str, Repository] = field(default_factory=dict)
    objects: dict[str, bytes] = field(default_factory=dict)
    exchanges: list[Exchange] = field(default_factory=list)
    faults: list[Fault] = field(default_factory=list)
    events: list[tuple[str, str, Callable[[], object]]] = field(default_factory=list)
    cut_after: dict[str, int] = field(default_factory=dict)
    xet: XetStorage | None = None

    def fail(self, method: str, pattern: str, **how: Any) -> None:
        """Fail the next request whose method and path match."""
        self.faults.append(Fault(method, pattern, **how))

    def meanwhile(self, method: str, pattern: str, act: Callable[[], object]) -> None:
        """Let something happen just before the next request that matches is answered."""
        self.events.append((method, pattern, act))

    def let_happen(self, method: str, path: str) -> None:
        for event in list(self.events):
            if event[0] == method and re.search(event[1], path):
                self.events.remove(event)
                event[2]()

    def commit(self, repo_id: str, files: dict[str, bytes]) -> None:
        """Add files to main, as though somebody had pushed them."""
        repository = self.repositories[repo_id]
        entries = {path: Entry(data, is_large(path, len(data))) for path, data in files.items()}
        now = repository.commits[repository.references["main"]]
        repository.commit("main", now | entries)

    def fault_for(self, method: str, path: str) -> Fault | None:
        for fault in self.faults:
            if fault.times > 0 and fault.method == method and re.search(fault.pattern, path):
                fault.times -= 1
                return fault
        return None

    def add(self, repo_id: str, files: dict[str, bytes], **options: bool) -> Repository:
        """Store a repository as though somebody had pushed it."""
        repository = self.repositories[repo_id] = Repository(**options)
        entries = {path: Entry(data, is_large(path, len(data))) for path, data in files.items()}
        repository.commit("main", entries)
        return repository

    def bytes_in(self, since: int = 0) -> int:
        """Bytes that clients sent from exchange number ``since`` on."""
        return sum(exchange.bytes_in for exchange in self.exchanges[since:])

    def requests(self, method: str, pattern: str) -> list[Exchange]:
        return [e for e in self.exchanges if e.method == method and re.search(pattern, e.path)]


class _HangUpError(Exception):
    """The server closes the connection without an answer."""


class _Handler(XetEndpoints, BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: HubStandIn

    def log_message(self, *_: object) -> None:
        pass

    def _serve(self) -> None:
        split = urlsplit(self.path)
        self.query = {key: values[0] for key, values in parse_qs(split.query).items()}
        path, self.sent, self.status, self.received = unquote(split.path), 0, 0, 0
        header = self.headers.get("Authorization") or ""
        self.token = header.removeprefix("Bearer ") or None
        self.user = self.hub.users.get(self.token or "")
        self.hub.let_happen(self.command, path)
        fault = self.hub.fault_for(self.command, path)
        try:
            self.body = self._read(fault)
            if fault is not None:
                self._error(fault.status or 500, "told to fail", fault.code)
            elif self.token not in (None, STORAGE_TOKEN) and self.user is None:
                self._error(401, "Invalid credentials in Authorization header")
            else:
                self._route(path)
        except (_HangUpError, BrokenPipeError, ConnectionResetError):
            self.close_connection = True
        self.hub.exchanges.append(
            Exchange(self.command, path, self.status, self.received, self.sent, self.token, self.headers.get("Range"))
        )

    do_GET = do_HEAD = do_POST = do_PUT = _serve

    def _read(self, fault: Fault | None) -> bytes:
        if self.headers.get("Transfer-Encoding") == "chunked":
            length, chunks = None, []
            while size := int(self.rfile.readline().split(b";")[0], 16):
                chunks.append(self.rfile.read(size))
                self.rfile.readline()
            self.rfile.readline()
            body = b"".join(chunks)
        else:
            length = int(self.headers.get("Content-Length") or 0)
            if fault is not None and fault.status is None:
                self.received = len(self.rfile.read(min(length, fault.after_bytes)))
                self.connection.close()
                raise _HangUpError
            body = self.rfile.read(length)
        self.received = len(body)
        return body

    def _route(self, path: str) -> None:
        path = path.replace("/api/datasets/", "/api/models/datasets/")
        for method, pattern, handle in _ROUTES:
            found = re.fullmatch(pattern, path)
            if found and self.command in method:
                return handle(self, **found.groupdict())
        self._error(404, "no such endpoint", code="EntryNotFound")

    # Answers

    def _send(self, status: int, body: bytes, headers: dict[str, str] | None = None) -> None:
        self.status = status
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command == "HEAD":
            return
        self.sent = self.hub.cut_after.pop(self.path.rsplit("/", 1)[-1], len(body))
        self.wfile.write(body[: self.sent])
        if self.sent < len(body):
            self.connection.shutdown(socket.SHUT_RDWR)
            raise _HangUpError

    def _json(self, document: Any, status: int = 200, headers: dict[str, str] | None = None) -> None:
        kind = {"Content-Type": "application/json"}
        self._send(status, json.dumps(document).encode(), kind | (headers or {}))

    def _error(self, status: int, message: str, code: str | None = None, **extra: Any) -> None:
        headers = {"X-Error-Message": message} | ({"X-Error-Code": code} if code else {})
        self._json({"error": message, **extra}, status, headers)

    def _readable(self, repo_id: str) -> Repository | None:
        repository = self.hub.repositories.get(repo_id)
        owner = repo_id.split("/")[0] == self.user
        if repository is None or (repository.private and not owner):
            # As the Hub does it: who is not logged in learns nothing about what exists.
            self._error(404 if self.user else 401, "Repository not found", "RepoNotFound")
            return None
        return repository

    def _writable(self, repo_id: str) -> Repository | None:
        if self.user is None:
            self._error(401, "Invalid username or password.")
            return None
        if repo_id.split("/")[0] != self.user:
            self._error(403, f"You don't have the rights to write to {repo_id}")
            return None
        return self._readable(repo_id)

    # Endpoints

    def who_am_i(self) -> None:
        if self.user is None:
            return self._error(401, "Invalid username or password.")
        self._json({"type": "user", "name": self.user, "auth": {"type": "access_token"}})

    def create_repo(self) -> None:
        wanted = json.loads(self.body)
        if self.user is None:
            return self._error(401, "Invalid username or password.")
        owner = wanted.get("organization") or self.user
        repo_id = f"{owner}/{wanted['name']}"
        url = f"{self.hub.url}/{repo_id}"
        if owner != self.user:
            return self._error(403, f"You don't have the rights to create a model under {owner}")
        if repo_id in self.hub.repositories:
            return self._error(409, "You already created this model repo", url=url)
        private = wanted.get("visibility") == "private" or bool(wanted.get("private"))
        self.hub.repositories[repo_id] = Repository(private=private)
        self._json({"url": url, "name": repo_id, "id": repo_id})

    def validate_yaml(self) -> None:
        text = json.loads(self.body)["content"]
        if not text.startswith("---\n"):
            warning = {"message": "empty or missing yaml metadata in repo card"}
            return self._json({"errors": [], "warnings": [warning]})
        self._json({"errors": [], "warnings": []})

    def create_branch(self, id: str, name: str) -> None:
        if (repository := self._writable(id)) is None:
            return
        if name in repository.references:
            return self._error(409, f"Reference {name} already exists")
        repository.references[name] = repository.references["main"]
        self._json({})

    def preupload(self, id: str, revision: str) -> None:
        may = self._readable if self.query.get("create_pr") else self._writable
        if (repository := may(id)) is None:
            return
        present = repository.commits[repository.resolve(revision) or ""]
        answers = []
        for file in json.loads(self.body)["files"]:
            path = file["path"]
            mode = "lfs" if is_large(path, file["size"]) else "regular"
            answer = {"path": path, "uploadMode": mode, "shouldIgnore": False}
            if path in present:
                answer["oid"] = present[path].etag
            answers.append(answer)
        self._json({"files": answers})

    def lfs_batch(self, id: str) -> None:
        if (repository := self._readable(id)) is None:
            return
        answers = []
        for wanted in json.loads(self.body)["objects"]:
            answer: dict[str, Any] = {"oid": wanted["oid"], "size": wanted["size"]}
            if wanted["oid"] not in self.hub.objects:
                answer["actions"] = {"upload": {"href": f"{self.hub.url}/objects/{wanted['oid']}"}}
            answers.append(answer)
        del repository
        self._json({"transfer": "basic", "objects": answers})

    def put_object(self, oid: str) -> None:
        if Entry(self.body, True).sha256 != oid:
            return self._error(400, "content does not match its hash")
        self.hub.objects[oid] = self.body
        self._json({})

    def commit(self, id: str, revision: str) -> None:
        create_pr = bool(self.query.get("create_pr"))
        may = self._readable if create_pr else self._writable
        if (repository := may(id)) is None:
            return
        base = repository.resolve(revision)
        if base is None:
            return self._error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        lines = [json.loads(line) for line in self.body.splitlines()]
        parent = lines[0]["value"].get("parentCommit")
        if parent is not None and parent != base:
            return self._error(412, "A commit has happened since. Please refresh and try again.")
        try:
            files, message = apply_commit(lines, repository.commits[base], self.hub.objects)
        except KeyError as error:
            return self._error(400, f"object or file {error} is unknown")
        answer: dict[str, Any] = {"success": True}
        if create_pr:
            number = sum(name.startswith("refs/pr/") for name in repository.references) + 1
            revision = f"refs/pr/{number}"
            answer["pullRequestUrl"] = f"{self.hub.url}/{id}/discussions/{number}"
        oid = repository.commit(revision, files, message)
        url = f"{self.hub.url}/{id}/commit/{oid}"
        self._json(answer | {"commitUrl": url, "commitOid": oid})

    def model_info(self, id: str, revision: str = "main") -> None:
        if (repository := self._readable(id)) is None:
            return
        oid = repository.resolve(revision)
        if oid is None:
            return self._error(404, f"Invalid rev id: {revision}", "RevisionNotFound")
        files = [{"rfilename": path} for path in repository.commits[oid]]
        name = id.removeprefix("datasets/")
        shown = {"_id": "0", "id": name, "sha": oid, "private": repository.private, "tags": []}
        gated = "auto" if repository.gated else False
        self._json(shown | {"gated": gated, "siblings": files, "downloads": 0})

    def tree(self, id: str, rest: str) -> None:
        if (repository := self._readable(id)) is None:
            return
        if (found := repository.split(rest)) is None:
            return self._error(404, f"Invalid rev id: {rest}", "RevisionNotFound")
        revision, folder = found
        files = repository.commits[repository.resolve(revision) or ""]
        if folder and not any(path.startswith(f"{folder}/") for path in files):
            return self._error(404, f"{folder} does not exist", "EntryNotFound")
        inside = sorted(path for path in files if path.startswith(folder))
        self._json([files[path].as_json(path) for path in inside])

    def paths_info(self, id: str, revision: str) -> None:
        if (repository := self._readable(id)) is None:
            return
        files = repository.commits[repository.resolve(revision) or ""]
        wanted = json.loads(self.body)["paths"]
        self._json([files[path].as_json(path) for path in wanted if path in files])

    def resolve(self, id: str, rest: str) -> None:
        if (repository := self._readable(id)) is None:
            return
        if (split := repository.split(rest)) is None:
            return self._error(404, "Invalid rev id", "RevisionNotFound")
        revision, path = split
        if repository.gated and id.split("/")[0] != self.user:
            message = f"Access to model {id} is restricted and you are not in the authorized list."
            return self._error(403 if self.user else 401, message, "GatedRepo")
        oid = repository.resolve(revision) or ""
        entry = repository.commits[oid].get(path)
        headers = {"X-Repo-Commit": oid}
        if entry is None:
            return self._send(404, b"", headers | {"X-Error-Code": "EntryNotFound"})
        headers |= {"ETag": f'"{entry.etag}"', "Accept-Ranges": "bytes"}
        if entry.large:
            headers |= {"X-Linked-Etag": f'"{entry.sha256}"', "X-Linked-Size": str(len(entry.data))}
        found = re.fullmatch(r"bytes=(\d+)-(\d*)", self.headers.get("Range") or "")
        if found is None:
            return self._send(200, entry.data, headers)
        first, last = int(found[1]), int(found[2] or len(entry.data) - 1)
        part = entry.data[first : last + 1]
        span = f"bytes {first}-{first + len(part) - 1}/{len(entry.data)}"
        self._send(206, part, headers | {"Content-Range": span})


_ROUTES: list[tuple[tuple[str, ...], str, Callable[..., None]]] = [
    (("GET",), "/api/whoami-v2", _Handler.who_am_i),
    (("POST",), "/api/repos/create", _Handler.create_repo),
    (("POST",), "/api/validate-yaml", _Handler.validate_yaml),
    (("POST",), f"/api/models/{ID}/branch/(?P<name>.+)", _Handler.create_branch),
    (("POST",), f"/api/models/{ID}/preupload/(?P<revision>.+)", _Handler.preupload),
    (("POST",), f"/{ID}\\.git/info/lfs/objects/batch", _Handler.lfs_batch),
    (("PUT",), "/objects/(?P<oid>[0-9a-f]{64})", _Handler.put_object),
    (("POST",), f"/api/models/{ID}/commit/(?P<revision>.+)", _Handler.commit),
    (("GET",), f"/api/models/{ID}/revision/(?P<revision>.+)", _Handler.model_info),
    (("GET",), f"/api/models/{ID}/xet-write-token/(?P<revision>.+)", _Handler.xet_token),
    (("POST",), r"/v1/xorbs/default/(?P<hash>\w+)", _Handler.xet_xorb),
    (("POST",), "/v1/shards", _Handler.xet_shard),
    (("GET",), f"/api/models/{ID}/tree/(?P<rest>.+)", _Handler.tree),
    (("POST",), f"/api/models/{ID}/paths-info/(?P<revision>.+)", _Handler.paths_info),
    (("GET",), f"/api/models/{ID}", _Handler.model_info),
    (("GET", "HEAD"), f"/{ID}/resolve/(?P<rest>.+)", _Handler.resolve),
]


@contextmanager
def running_hub() -> Iterator[HubStandIn]:
    """A stand-in that serves until the block ends."""
    hub = HubStandIn()
    handler = type("Handler", (_Handler,), {"hub": hub})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    hub.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
