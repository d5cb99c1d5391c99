"""A fake hub on loopback: as much of the API as huggingface_hub's own client needs to list and download a model.

Written from the documentation of the hub's endpoints and from its client's requests: a listing with git and LFS
hashes, `resolve` addresses, a redirect to another origin for LFS files, ranges, and the headers that errors carry.
"""

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

LARGE = (".safetensors", ".bin", ".ckpt", ".onnx", ".msgpack")
"""Suffixes of the files that the hub keeps in LFS."""


@dataclass(frozen=True)
class HubRequest:
    """A request that arrived."""

    origin: str
    method: str
    path: str
    token: str
    range: str


@dataclass
class FakeHub:
    """A hub with one repository, and its faults.

    Attributes:
        hub_id: the repository's id.
        folder: the repository's files.
        commit: the commit of its main branch.
        refuse: status and ``X-Error-Code`` of every answer.
        cut: paths whose next transfer breaks off in the middle; the one after that is answered with 503.
        busy: paths whose next transfer is answered with 503.
        corrupt: paths that arrive with one byte changed.
        requests: the requests that arrived.
    """

    hub_id: str
    folder: Path
    commit: str = "c" * 40
    refuse: tuple[int, str] | None = None
    cut: set[str] = field(default_factory=set)
    busy: set[str] = field(default_factory=set)
    corrupt: set[str] = field(default_factory=set)
    requests: list[HubRequest] = field(default_factory=list)
    url: str = ""
    store_url: str = ""

    def listing(self) -> dict[str, object]:
        paths = sorted(path for path in self.folder.rglob("*") if path.is_file())
        return {"id": self.hub_id, "sha": self.commit, "siblings": [self._sibling(path) for path in paths]}

    def _sibling(self, path: Path) -> dict[str, object]:
        content, name = path.read_bytes(), path.relative_to(self.folder).as_posix()
        git = hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
        entry: dict[str, object] = {"rfilename": name, "size": len(content), "blobId": git}
        if name.endswith(LARGE):
            sha256 = hashlib.sha256(content).hexdigest()
            entry["lfs"] = {"size": len(content), "sha256": sha256, "pointerSize": 134}
        return entry

    def downloaded(self) -> set[str]:
        """Return the paths in the repository whose bytes were requested."""
        return {r.path for r in self.requests if r.method == "GET" and not r.path.startswith("api/")}

    @contextmanager
    def running(self) -> Iterator[FakeHub]:
        """Run the hub and its file store, each at an origin of its own."""
        with _serving(self, "hub") as self.url, _serving(self, "store") as self.store_url:
            yield self


@contextmanager
def _serving(hub: FakeHub, origin: str) -> Iterator[str]:
    handler = type("Handler", (_Exchange,), {"hub": hub, "origin": origin})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    server.daemon_threads = True
    threading.Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()


class _Exchange(BaseHTTPRequestHandler):
    hub: FakeHub
    origin: str
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        hub, path = self.hub, unquote(urlsplit(self.path).path).lstrip("/")
        listing = f"api/models/{hub.hub_id}"
        name = path if path.startswith("api/") else path.partition(f"/resolve/{hub.commit}/")[2]
        self._record(name)
        if hub.refuse:
            self._answer(b"{}", hub.refuse[0], {"X-Error-Code": hub.refuse[1]})
        elif path in (listing, f"{listing}/revision/main", f"{listing}/revision/{hub.commit}"):
            self._answer(json.dumps(hub.listing()).encode())
        elif path.startswith(listing):
            self._answer(b"{}", 404, {"X-Error-Code": "RevisionNotFound"})
        elif not path.startswith(f"{hub.hub_id}/") or not (hub.folder / name).is_file():
            self._answer(b"{}", 404, {"X-Error-Code": "RepoNotFound"})
        elif self.origin == "hub" and name.endswith(LARGE):
            self._answer(b"", 302, {"Location": f"{hub.store_url}/{path}"})
        else:
            self._file(name)

    def _record(self, name: str) -> None:
        headers = self.headers
        request = HubRequest(
            self.origin, self.command, name, headers.get("Authorization", ""), headers.get("Range", "")
        )
        self.hub.requests.append(request)

    def _file(self, name: str) -> None:
        hub, content = self.hub, (self.hub.folder / name).read_bytes()
        if name in hub.corrupt:
            content = content[:-1] + bytes([content[-1] ^ 1])
        if name in hub.busy:
            hub.busy.remove(name)
            self._answer(b"", 503)
            return
        first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").rstrip("-"))
        part = content[first:]
        ranged = {"Content-Range": f"bytes {first}-{len(content) - 1}/{len(content)}"} if first else {}
        if name in hub.cut:
            hub.cut.remove(name)
            hub.busy.add(name)
            self._answer(part[: len(part) // 2], 200, {"Content-Length": str(len(part))})
            self.close_connection = True
            return
        self._answer(part, 206 if first else 200, ranged)

    def _answer(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: object) -> None:
        """Log nothing."""
