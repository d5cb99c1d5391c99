"""A receiver of webhooks on loopback, which refuses some of them."""

from __future__ import annotations

import json
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


@dataclass(frozen=True)
class Received:
    """A webhook as it came."""

    headers: dict[str, str]
    body: str

    @property
    def id(self) -> str:
        return self.headers["webhook-id"]

    @property
    def job(self) -> dict[str, Any]:
        job: dict[str, Any] = json.loads(self.body)
        return job


@dataclass
class Receiver:
    """The webhooks that came and those that were taken, in the order of arrival."""

    port: int = 0
    came: list[Received] = field(default_factory=list)
    taken: list[Received] = field(default_factory=list)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}/hook"

    def wait(self, count: int) -> list[Received]:
        """Wait until so many have come, and return them."""
        end = time.monotonic() + 60
        while len(self.came) < count:
            assert time.monotonic() < end, self.came
            time.sleep(0.02)
        return self.came


@contextmanager
def receiving(refuse: float = 0.0, seed: int = 0, refuse_first: int = 0) -> Iterator[Receiver]:
    """Yield a receiver that answers a share ``refuse`` of all webhooks, and the first so many, with 500."""
    receiver, chance = Receiver(), random.Random(seed)

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            received = Received({name.lower(): value for name, value in self.headers.items()}, body)
            receiver.came.append(received)
            if len(receiver.came) <= refuse_first or chance.random() < refuse:
                self.send_response(500)
            else:
                receiver.taken.append(received)
                self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        receiver.port = server.server_port
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        try:
            yield receiver
        finally:
            server.shutdown()
            thread.join()
