"""Cog's own HTTP server for one entry, as a process with a working folder of its own.

Seen with Cog 0.23: the server reads ``.cog/openapi_schema.json`` in its working folder and checks requests against
nothing else; it starts its worker as bare ``python`` from ``PATH``; one process answers ``/predictions`` and
``/trainings`` with the same entry; and a worker that dies leaves it refusing every request for ever, so something must
watch `Server.health` and start it again (`supervisor`).
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, BinaryIO, Self

import requests

from lora_service.errors import InputError, ServingError
from lora_service.serving import entries, schema
from lora_service.serving.entries import EntryPoint, Mode

_EVERYWHERE = {"0.0.0.0": "127.0.0.1", "::": "::1"}
_POLL = 0.05  # seconds between looks at a server that is starting
_ANSWER = 10.0  # seconds; a job that holds the interpreter delays the worker's answer by 5


class Health(StrEnum):
    """What a server is doing: Cog's own words, and two for a server that says nothing."""

    STARTING = "STARTING"
    READY = "READY"
    BUSY = "BUSY"
    SETUP_FAILED = "SETUP_FAILED"
    UNHEALTHY = "UNHEALTHY"
    """The worker died; or, for one answer, a job that is just starting kept it from answering."""
    DEFUNCT = "DEFUNCT"
    SILENT = "SILENT"
    """The process runs and does not answer."""
    EXITED = "EXITED"
    UNKNOWN = "UNKNOWN"


@dataclass(frozen=True)
class ServerAddress:
    """Where a server listens."""

    host: str
    port: int

    @staticmethod
    def claim(host: str, port: int) -> ServerAddress:
        """Check that a server could listen there; port 0 picks a free one.

        Raises:
            InputError: the host is no IP address or the port no port.
            ServingError: something else listens there, or nothing may.
        """
        host = "127.0.0.1" if host == "localhost" else host
        try:
            family = socket.AF_INET6 if ipaddress.ip_address(host).version == 6 else socket.AF_INET
        except ValueError as error:
            raise InputError("host", host, "an IP address, such as 127.0.0.1 or 0.0.0.0") from error
        if not 0 <= port <= 65535:
            raise InputError("port", port, "between 1 and 65535, or 0 for any that is free")
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Cog's server does
            try:
                probe.bind((host, port))
            except OSError as error:
                taken = error.errno == errno.EADDRINUSE
                why = "is already in use" if taken else f"cannot be opened ({error.strerror})"
                raise ServingError(f"Port {port} of {host} {why}: choose another with --port.") from error
            return ServerAddress(host, probe.getsockname()[1])

    @property
    def url(self) -> str:
        """The address for a client on this machine."""
        host = _EVERYWHERE.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


class CogServer:
    """One server, from a claimed port to a removed folder; a context manager.

        with Server("train") as server:
            server.wait_ready()
            requests.post(f"{server.url}/predictions", json={"input": {...}})

    Args:
        mode: which entry it runs.
        host: the IP address it listens on.
        port: 0 for any that is free.
        folder: its working folder, kept afterwards; without one, a temporary folder that is removed.
        home: where the entries lie.
        log: what the server and its worker write; without one, ``server.log`` in the working folder.
        environment: variables for the server besides those of this process.
    """

    def __init__(
        self,
        mode: Mode,
        *,
        host: str = "127.0.0.1",
        port: int = 0,
        folder: Path | None = None,
        home: Path = entries.HOME,
        log: BinaryIO | None = None,
        environment: Mapping[str, str] | None = None,
    ) -> None:
        self.mode = mode
        self.address = ServerAddress.claim(host, port)
        self._document = schema.for_server(mode, home)
        self._variables = _variables(entries.find(mode, home), self.address.port) | dict(environment or {})
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._open = contextlib.ExitStack()
        self._client = self._open.enter_context(requests.Session())
        self._client.trust_env = False  # a proxy of the environment is not for the loopback
        self.folder = (folder or self._temporary_folder()).resolve()

    @property
    def url(self) -> str:
        """The address for a client on this machine."""
        return self.address.url

    def __enter__(self) -> Self:
        try:
            schema.write(self._document, self.folder)
            self.start()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """End the server (a running job has 5 s to finish) and remove its temporary folder."""
        try:
            self.stop()
        finally:
            self._open.close()

    def start(self) -> None:
        """Start the process; `wait_ready` tells when it answers."""
        # What a worker that was killed left behind goes with the next start, and the rest with the folder.
        temporary = self.folder / "tmp"
        shutil.rmtree(temporary, ignore_errors=True)
        temporary.mkdir()
        with contextlib.ExitStack() as stack:
            log = self._log or stack.enter_context((self.folder / "server.log").open("ab"))
            self._process = subprocess.Popen(
                [sys.executable, "-m", "cog.server.http", "--host", self.address.host],
                cwd=self.folder,
                env={"TMPDIR": str(temporary)} | self._variables,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a Ctrl-C in the terminal is for us; and the group can be ended whole
            )

    def stop(self, grace: float | None = 5.0) -> None:
        """End the process and all it started; does nothing when none runs.

        Args:
            grace: seconds a running job may take to finish; None: as long as it takes.
        """
        process, self._process = self._process, None
        if process is None:
            return
        try:
            if grace != 0:
                process.send_signal(signal.SIGTERM)
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(grace)
                _wait_for_group(process.pid, 2.0)  # the worker's own clean-up
        finally:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()

    def health(self) -> Health:
        """What the server is doing now; asking does not disturb a running job."""
        return Health(self._status().get("status", Health.SILENT))

    def wait_ready(self, timeout: float = 120.0) -> None:
        """Wait until requests are answered.

        Args:
            timeout: seconds; ``math.inf`` for no limit.

        Raises:
            ServingError: the entry's setup failed, the process ended, or the time is over.
        """
        end = time.monotonic() + timeout
        while time.monotonic() < end:
            status = self._status()
            match status.get("status"):
                case Health.READY | Health.BUSY:
                    return
                case Health.SETUP_FAILED:
                    raise ServingError(f"The {self.mode} server's setup failed: {_reason(status)}.")
                case Health.EXITED:
                    raise ServingError(f"The {self.mode} server ended while it started: {self._last_words()}.")
            time.sleep(_POLL)
        raise ServingError(f"The {self.mode} server is not ready after {timeout:.0f} s: {self._last_words()}.")

    def _temporary_folder(self) -> Path:
        # A dying worker may still write there while it is removed.
        folder = TemporaryDirectory(prefix="lora-service-", ignore_cleanup_errors=True)
        return Path(self._open.enter_context(folder))

    def _status(self) -> dict[str, Any]:
        """The server's own report, or one of ours in its form."""
        if self._process is None or self._process.poll() is not None:
            return {"status": Health.EXITED}
        try:
            answer = self._client.get(f"{self.url}/health-check", timeout=_ANSWER).json()
        except requests.RequestException:
            return {"status": Health.SILENT}
        return answer if isinstance(answer, dict) else {"status": Health.SILENT}

    def _last_words(self) -> str:
        path = self.folder / "server.log"
        if self._log is not None or not path.exists():
            return "see what it wrote above"
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        return lines[-1].strip().rstrip(".") if lines else "it wrote nothing"


def _variables(entry: EntryPoint, port: int) -> dict[str, str]:
    """The environment of a server: this interpreter first on the path, and the entry's folder importable."""
    python = Path(sys.executable).parent
    if not (python / "python").exists():
        raise ServingError(f"{str(python)!r} holds no `python`, which Cog's server starts: use a virtual environment.")
    paths = os.environ.get("PYTHONPATH")
    return os.environ | {
        "PATH": os.pathsep.join([str(python), os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join([str(entry.path.parent), *([paths] if paths else [])]),
        "PORT": str(port),
        "COG_PREDICT_TYPE_STUB": entry.reference,
    }


def _reason(status: dict[str, Any]) -> str:
    """The exception of a failed setup; the server wraps it in its own words."""
    logs = str((status.get("setup") or {}).get("logs", "")).strip()
    return logs.rpartition("etup failed: ")[2].rstrip(".") or "it gave no reason"


def _wait_for_group(group: int, seconds: float) -> None:
    """Wait until a process group is empty, at most so long."""
    end = time.monotonic() + seconds
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < end:
            os.killpg(group, 0)
            time.sleep(_POLL)
