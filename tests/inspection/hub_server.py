"""A loopback stand-in for the Hub's files: HEAD and GET with ranges, and every request counted."""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@dataclass
class Traffic:
    """What the server was asked and what it sent."""

    endpoint: str = ""
    requests: list[str] = field(default_factory=list)
    bytes_sent: int = 0
    honours_ranges: bool = True
    status: int = 200


@contextmanager
def hub_server(repo_id: str, folder: Path) -> Iterator[Traffic]:
    """Serve ``folder`` as ``repo_id`` while the context lasts."""
    traffic = Traffic()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_HEAD(self) -> None:
            self._answer(with_body=False)

        def do_GET(self) -> None:
            self._answer(with_body=True)

        def _answer(self, *, with_body: bool) -> None:
            traffic.requests.append(f"{self.command} {self.path} {self.headers.get('Range', '')}")
            prefix = f"/{repo_id}/resolve/"
            file = folder / self.path.removeprefix(prefix).partition("/")[2]
            if traffic.status != 200:
                self._refuse(traffic.status, "GatedRepo" if traffic.status == 403 else "Broken")
            elif not self.path.startswith(prefix):
                self._refuse(404, "RepoNotFound")
            elif not file.is_file():
                self._refuse(404, "EntryNotFound")
            else:
                self._send(file, with_body)

        def _refuse(self, status: int, code: str) -> None:
            self.send_response(status)
            self.send_header("X-Error-Code", code)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _send(self, file: Path, with_body: bool) -> None:
            size = file.stat().st_size
            first, last, span = 0, size - 1, self.headers.get("Range")
            if span and traffic.honours_ranges:
                low, _, high = span.removeprefix("bytes=").partition("-")
                first, last = int(low), min(int(high or last), last)
                self.send_response(206)
                self.send_header("Content-Range", f"bytes {first}-{last}/{size}")
            else:
                self.send_response(200)
            self.send_header("X-Repo-Commit", COMMIT)
            self.send_header("ETag", '"etag"')
            self.send_header("Content-Length", str(last - first + 1))
            self.end_headers()
            if with_body:
                self._stream(file, first, last)

        def _stream(self, file: Path, first: int, last: int) -> None:
            with open(file, "rb") as source:
                source.seek(first)
                left = last - first + 1
                while left:
                    chunk = source.read(min(left, 1 << 16))
                    try:
                        self.wfile.write(chunk)
                    except OSError:  # the client has read what it wanted
                        self.close_connection = True
                        return
                    traffic.bytes_sent += len(chunk)
                    left -= len(chunk)

        def log_message(self, *_: object) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    traffic.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield traffic
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
