"""A mirror of the Hugging Face hub: the endpoints that huggingface_hub asks, over folders on disk."""

from __future__ import annotations

import hashlib
import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" * 6 + "abcd"


@dataclass
class Hub:
    """`models/ORG/NAME` and `datasets/ORG/NAME` under `root`; `token` None lets everybody read."""

    root: Path
    token: str | None = None
    url: str = ""
    asked: list[str] = field(default_factory=list)

    def repository(self, path: str) -> tuple[Path, str] | None:
        """The folder of the repository that a path names, and the rest of the path after revision."""
        parts = path.strip("/").split("/")
        kind = "models"
        if parts[0] == "api":
            kind, parts = parts[1], parts[2:]
        elif parts[0] == "datasets":
            kind, parts = "datasets", parts[1:]
        folder = self.root / kind / "/".join(parts[:2])
        return (folder, "/".join(parts[2:])) if len(parts) >= 2 and folder.is_dir() else None


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    hub: Hub

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.asked.append(f"{self.command} {path}")
        allowed = self.hub.token is None or self.headers.get("Authorization") == f"Bearer {self.hub.token}"
        found = self.hub.repository(path) if allowed else None
        if found is None:
            return self.answer(401 if not allowed else 404, b"no such repository", {"X-Error-Code": "RepoNotFound"})
        folder, rest = found
        if path.startswith("/api/"):
            return self.json(self.listing(folder, rest, path))
        file = folder / "/".join(rest.split("/")[2:])  # resolve/REVISION/FILE
        if not rest.startswith("resolve/") or not file.is_file():
            return self.answer(404, b"no such file", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        content = file.read_bytes()
        return self.answer(200, content, {"ETag": f'"{hashlib.sha256(content).hexdigest()}"', "X-Repo-Commit": COMMIT})

    def listing(self, folder: Path, rest: str, path: str) -> object:
        files = sorted(file for file in folder.rglob("*") if file.is_file())
        names = {file.relative_to(folder).as_posix(): file.stat().st_size for file in files}
        if rest.startswith("tree"):
            return [{"type": "file", "path": name, "size": size, "oid": COMMIT} for name, size in names.items()]
        return {
            "id": "/".join(folder.parts[-2:]),
            "sha": COMMIT,
            "private": False,
            "siblings": [{"rfilename": name} for name in names],
            "tags": [],
            "downloads": 0,
        }

    def json(self, value: object) -> None:
        self.answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def answer(self, status: int, content: bytes, headers: dict[str, str]) -> None:
        self.send_response(status)
        for name, value in {"Content-Length": str(len(content)), **headers}.items():
            self.send_header(name, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(content)

    def log_message(self, *arguments: object) -> None:
        """Quiet."""


@contextmanager
def serve_hub(root: Path, token: str | None = None) -> Iterator[Hub]:
    """The hub on a free port of loopback; its `url` is what HF_ENDPOINT names."""
    hub = Hub(root, token)
    with ThreadingHTTPServer(("127.0.0.1", 0), type("HubHandler", (Handler,), {"hub": hub})) as server:
        server.daemon_threads = True
        hub.url = f"http://127.0.0.1:{server.server_address[1]}"
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield hub
        server.shutdown()
