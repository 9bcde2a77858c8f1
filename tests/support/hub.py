"""A stand-in for the Hugging Face hub on loopback: one commit of one repository, and what was asked of it."""

from __future__ import annotations

import contextlib
import hashlib
import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

COMMIT = "0123456789abcdef0123456789abcdef01234567"


class Hub:
    """What it serves, ``files`` by name, and the requests that it saw."""

    def __init__(self, files: dict[str, bytes]) -> None:
        self.files = files
        self.asked: list[tuple[str, str, str | None]] = []
        self.commit = COMMIT
        self.endpoint = ""


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.relative_to(folder).as_posix(): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@contextlib.contextmanager
def serve(files: dict[str, bytes]) -> Iterator[Hub]:
    """Serve ``files`` as ``owner/name``; yields the hub with its address."""
    hub = Hub(files)

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def log_message(self, *args: object) -> None:
            pass

        def _answer(self, body: bytes, status: int = 200, **headers: str) -> None:
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name.replace("_", "-"), value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(body)

        def do_HEAD(self) -> None:
            self.do_GET()

        def do_GET(self) -> None:
            hub.asked.append((self.command, self.path, self.headers.get("authorization")))
            if self.path.startswith("/api/models/owner/name"):
                answer = {"id": "owner/name", "sha": hub.commit, "siblings": [], "tags": [], "private": False}
                return self._answer(json.dumps(answer).encode(), Content_Type="application/json")
            name = self.path.partition(f"/resolve/{COMMIT}/")[2]
            if not self.path.startswith("/owner/name/") or name not in hub.files:
                return self._answer(b"", 404, X_Error_Code="EntryNotFound")
            body = hub.files[name]
            tag = hashlib.sha256(body).hexdigest()
            return self._answer(body, ETag=f'"{tag}"', X_Repo_Commit=COMMIT)

    server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    hub.endpoint = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield hub
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
