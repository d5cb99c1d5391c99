"""Every site of this package's tests, played by one server on loopback.

The sites' names are mapped to it by a resolver, and its certificate names them all: requests travel through the
same guard, the same TLS and the same parsing as they would outside.
"""

from __future__ import annotations

import json
import ssl
import struct
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Self
from urllib.parse import parse_qs, urlsplit

import trustme

from lora_service.downloads.fetcher import Fetcher
from lora_service.downloads.http.addresses import AddressPolicy
from lora_service.downloads.http.deadline import DownloadLimits
from lora_service.downloads.http.network import Network
from lora_service.settings import Settings

NAMES = (
    "drive.google.com",
    "drive.usercontent.google.com",
    "accounts.google.com",
    "huggingface.co",
    "cdn.example.org",
    "civitai.com",
    "storage.example.org",
    "www.dropbox.com",
    "raw.githubusercontent.com",
    "media.githubusercontent.com",
    "replicate.com",
    "replicate.delivery",
    "files.example.org",
    "other.example.org",
)
QUICK = DownloadLimits(
    address_timeout=5, connect_timeout=10, read_timeout=5, total_timeout=60, backoff=0.01, max_retry_after=2
)


def safetensors(floats: int = 256, *, name: str = "lora.down", fill: int = 0) -> bytes:
    """The smallest real file: one tensor. Written from the format's description, not by the code under test."""
    header = {name: {"dtype": "F32", "shape": [floats], "data_offsets": [0, 4 * floats]}}
    text = json.dumps(header).encode()
    return struct.pack("<Q", len(text)) + text + bytes([fill]) * (4 * floats)


class Exchange(BaseHTTPRequestHandler):
    """One request, and shorthands to answer it."""

    server: _Server
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        parts = urlsplit(self.path)
        self.host = (self.headers.get("Host") or "").partition(":")[0]
        self.query = {name: values[0] for name, values in parse_qs(parts.query).items()}
        self.server.fake.requests.append(Seen(self.host, parts.path, self.query, dict(self.headers)))
        route = self.server.fake.routes.get((self.host, parts.path))
        if route is None:
            self.page(404, "not here")
        else:
            route(self)
        self.close_connection = True

    def send(self, body: bytes, status: int = 200, announced: int | None = None, **headers: str) -> None:
        """An answer; underscores in header names become hyphens."""
        self.start(status, Content_Length=str(len(body) if announced is None else announced), **headers)
        self.wfile.write(body)

    def start(self, status: int = 200, **headers: str) -> None:
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()

    def page(self, status: int, text: str) -> None:
        body = f"<!DOCTYPE html><html><head><title>{text}</title></head><body>{text}</body></html>"
        self.send(body.encode(), status, Content_Type="text/html; charset=utf-8")

    def redirect(self, to: str, status: int = 302, **headers: str) -> None:
        self.send(b"", status, Location=to, **headers)

    def file(self, body: bytes, etag: str = '"v1"', **headers: str) -> None:
        """A well-behaved file: conditional requests and ranges."""
        if etag and self.headers.get("If-None-Match") == etag:
            self.send(b"", 304, ETag=etag)
            return
        range_ = self.headers.get("Range", "")
        if range_ and self.headers.get("If-Range") == etag:
            first = int(range_.removeprefix("bytes=").rstrip("-"))
            headers["Content_Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
            self.send(body[first:], 206, ETag=etag, **headers)
            return
        if etag:
            headers["ETag"] = etag
        self.send(body, Content_Type="application/octet-stream", **headers)

    def log_message(self, *_: object) -> None:
        """Quiet."""


@dataclass(frozen=True)
class Seen:
    """A request that arrived."""

    host: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]

    @property
    def token(self) -> str:
        return self.headers.get("Authorization", "")


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    fake: FakeSites

    def handle_error(self, *_: object) -> None:
        """Clients that break off are part of the tests."""

    def finish_request(self, request: object, client_address: object) -> None:
        # The handshake belongs to the request's own thread: a client that stalls holds up no other.
        wrapped = self.fake.tls.wrap_socket(request, server_side=True) if self.fake.tls else request  # type: ignore[arg-type]
        try:
            super().finish_request(wrapped, client_address)  # type: ignore[arg-type]
        finally:
            if self.fake.tls:
                wrapped.close()  # type: ignore[union-attr]


@dataclass
class FakeSites:
    """The server; ``routes`` maps host and path to what answers."""

    authority: trustme.CA
    with_tls: bool = True
    routes: dict[tuple[str, str], Callable[[Exchange], None]] = field(default_factory=dict)
    requests: list[Seen] = field(default_factory=list)
    tls: ssl.SSLContext | None = None

    def __enter__(self) -> Self:
        if self.with_tls:
            self.tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
            self.authority.issue_cert(*NAMES).configure_cert(self.tls)
        self._server = _Server(("127.0.0.1", 0), Exchange)
        self._server.fake = self
        self.port: int = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def route(self, host: str, path: str, answer: Callable[[Exchange], None]) -> None:
        self.routes[host, path] = answer

    def serve(self, url: str, body: bytes, **headers: str) -> None:
        """A file at a link, whatever its query."""
        parts = urlsplit(url)
        self.route(parts.hostname or "", parts.path, lambda exchange: exchange.file(body, **headers))

    def requests_to(self, host: str = "", path: str = "") -> list[Seen]:
        """The requests for a host and path that arrived."""
        return [seen for seen in self.requests if (not host or seen.host == host) and (not path or seen.path == path)]

    def network(self) -> Network:
        return mapped_network(self.port, self.client_tls())

    def client_tls(self) -> ssl.SSLContext:
        tls = ssl.create_default_context()
        self.authority.configure_trust(tls)
        return tls

    def environment(self, folder: Path) -> dict[str, str]:
        """Environment variables with which any Python program, unchanged, finds the sites' names here.

        The program's own guard stays on: only this server's address and port are listed. Names are mapped by a
        ``sitecustomize`` module of the test's, and the certificates are trusted through ``SSL_CERT_FILE``.
        """
        self.authority.cert_pem.write_to_path(str(folder / "ca.pem"))
        (folder / "sitecustomize.py").write_text(_MAPPED_NAMES.format(names=NAMES, port=self.port))
        return {
            "PYTHONPATH": str(folder),
            "SSL_CERT_FILE": str(folder / "ca.pem"),
            "ALLOW_PRIVATE_ADDRESSES": f"127.0.0.1:{self.port}",
        }

    def fetcher(self, folder: Path, limits: DownloadLimits = QUICK, **settings: object) -> Fetcher:
        return Fetcher(Settings(lora_cache=folder, **settings), self.network(), limits)  # type: ignore[arg-type]


_MAPPED_NAMES = """
import socket

getaddrinfo = socket.getaddrinfo


def mapped(host, port, *more, **named):
    if host in {names!r}:
        host, port = "127.0.0.1", {port}
    return getaddrinfo(host, port, *more, **named)


socket.getaddrinfo = mapped
"""


def mapped_network(port: int, tls: ssl.SSLContext) -> Network:
    """Every name is at one port on loopback, and only that may be connected to."""
    return Network(AddressPolicy((f"127.0.0.1:{port}",)), resolver=lambda host, _: [("127.0.0.1", port)], tls=tls)
