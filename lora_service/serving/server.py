"""Runs Cog's own HTTP server for one entry, as a process with a working folder of its own.

Observed with Cog 0.23: the server reads ``.cog/openapi_schema.json`` in its working folder and checks requests against
nothing else; it starts its worker as bare ``python`` from ``PATH``; one process answers ``/predictions`` and
``/trainings`` with the same entry; once its worker dies it refuses every request, so that `supervisor` has to restart
it; and where the worker dies before it is ready, the server waits for it for ever.
"""

from __future__ import annotations

import contextlib
import errno
import ipaddress
import math
import os
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from types import TracebackType
from typing import Any, BinaryIO, Self

import psutil
import requests
from filelock import FileLock, Timeout

from lora_service.errors import InputError, ServingError
from lora_service.services.worker import IDLE, JOB_FILE_VARIABLE
from lora_service.serving import entries, schema, signature
from lora_service.serving.entries import EntryPoint, JsonSchema, Mode
from lora_service.serving.supervisor import Health, RestartPolicy

_LOOPBACK = {"0.0.0.0": "127.0.0.1", "::": "::1"}
"""The loopback addresses by those that stand for all interfaces."""
_POLL_INTERVAL = 0.05  # seconds between checks of a server that starts or ends
_LOCK_NAME = "lock"
_FOLDER_PREFIX = "lora-service-"
_WEBHOOK_TIME = 1.0  # seconds that Cog gets after the last job to send its webhook
UPLOADING = RestartPolicy(unexplained_busy=600.0)
"""Of a server that uploads its output: it is BUSY without a job meanwhile."""
_DEATH_NOTICE_TIME = 5.0  # seconds that a server that starts may be without its worker: Cog may tell why it died
_HEALTH_TIMEOUT = 10.0  # seconds; a job that holds the interpreter delays the worker's answer by 5


@dataclass(frozen=True)
class ServerAddress:
    """The host and port of a server."""

    host: str
    port: int

    @staticmethod
    def claim(host: str, port: int) -> ServerAddress:
        """Check that a server can listen at an address; port 0 picks a free one.

        Raises:
            InputError: the host is no IP address or the port no port.
            ServingError: the port is in use or cannot be opened.
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
                in_use = error.errno == errno.EADDRINUSE
                reason = "is already in use" if in_use else f"cannot be opened ({error.strerror})"
                message = f"Port {port} of {host} {reason}: choose another with --port."
                raise ServingError(message, code="port_in_use" if in_use else "port_unavailable") from error
            return ServerAddress(host, probe.getsockname()[1])

    @property
    def url(self) -> str:
        """The URL for a client on this machine."""
        host = _LOOPBACK.get(self.host, self.host)
        return f"http://[{host}]:{self.port}" if ":" in host else f"http://{host}:{self.port}"


def server_document(mode: Mode, folder: Path) -> JsonSchema:
    """Make the OpenAPI document for a server of one mode.

    A training server takes the same inputs at ``/predictions`` (the form) and at ``/trainings``, as an image built
    from ``cog.train.yaml`` does.

    Raises:
        ServingError: the entry is not in the folder.
        EntryError: Cog's build would refuse or misread the entry.
    """
    entry = signature.read(entries.find(mode, folder))
    return schema.openapi(run=entry, train=entry if mode == "train" else None)


class CogServer:
    """A server; as a context manager it is started, and at the end stopped and its temporary folder removed.

        with CogServer("train") as server:
            server.wait_ready()
            requests.post(f"{server.url}/predictions", json={"input": {...}})

    Args:
        mode: the entry.
        host: the IP address to listen on.
        port: the port; 0 for any that is free.
        folder: the working folder, which is kept; a temporary one unless given.
        home: the folder of the entries.
        log: the file for the output of server and worker; ``server.log`` in the working folder unless given.
        environment: variables for the server besides those of this process.
        upload_url: where Cog uploads output files to, instead of putting them into its answers.

    Raises:
        InputError: host or port are invalid.
        ServingError: the port is in use, the entry is missing, or there is no ``python`` for the worker.
        EntryError: Cog's build would refuse or misread the entry.
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
        upload_url: str | None = None,
    ) -> None:
        self.mode = mode
        self.upload_url = upload_url
        self.address = ServerAddress.claim(host, port)
        self._document = server_document(mode, home)
        self._environment = _environment(entries.find(mode, home), self.address.port) | dict(environment or {})
        self._log = log
        self._process: subprocess.Popen[bytes] | None = None
        self._open = contextlib.ExitStack()
        self._client = self._open.enter_context(requests.Session())
        self._client.trust_env = False  # a proxy of the environment is not for the loopback
        self.folder = (folder or self._temporary_folder()).resolve()

    @property
    def url(self) -> str:
        """The URL for a client on this machine."""
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
        """Start the process; `wait_ready` waits until it answers."""
        # A killed worker leaves its temporary files behind.
        shutil.rmtree(self._temporary, ignore_errors=True)
        self._temporary.mkdir()
        self._job_file.unlink(missing_ok=True)
        variables = {"TMPDIR": str(self._temporary), JOB_FILE_VARIABLE: str(self._job_file)}
        with contextlib.ExitStack() as stack:
            log = self._log or stack.enter_context((self.folder / "server.log").open("ab"))
            self._process = subprocess.Popen(
                [sys.executable, "-m", "lora_service.serving.cog_process", *self._arguments()],
                cwd=self.folder,
                env=self._environment | variables,
                stdin=subprocess.PIPE,  # its end tells the process that this one has ended
                stdout=log,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # Ctrl-C must reach this process alone; and the whole group can be killed
            )

    def _arguments(self) -> list[str]:
        upload = ["--upload-url", self.upload_url] if self.upload_url else []
        return ["--host", self.address.host, *upload]

    def stop(self, grace: float | None = 5.0) -> None:
        """End the process and all its children; does nothing when none runs.

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
            if process.stdin:
                process.stdin.close()

    def health(self) -> Health:
        """Return the state of the server; this does not disturb a running job."""
        return Health(self._status().get("status", Health.UNRESPONSIVE))

    def seconds_without_job(self) -> float:
        """Return how long the worker has run no job and received no file; 0.0 where it does not tell."""
        try:
            if self._job_file.read_text(encoding="utf-8") != IDLE:
                return 0.0
            changes = [self._job_file.stat().st_mtime, *(path.stat().st_mtime for path in self._temporary.iterdir())]
        except OSError:  # no job file, or a file went meanwhile
            return 0.0
        return time.time() - max(changes)

    def drain(self) -> None:
        """Wait until the running job, and those that follow it at once, are done and their webhooks are sent."""
        quiet = time.monotonic()
        while time.monotonic() - quiet < _WEBHOOK_TIME:
            is_busy = self.health() in (Health.BUSY, Health.UNRESPONSIVE)
            if is_busy and self.seconds_without_job() < RestartPolicy.unexplained_busy:
                quiet = time.monotonic()
            time.sleep(_POLL_INTERVAL)

    def wait_ready(self, timeout: float = 120.0) -> None:
        """Wait until requests are answered.

        Args:
            timeout: seconds; ``math.inf`` for no limit.

        Raises:
            ServingError: the entry's setup failed, the process or its worker ended, or the time is over.
        """
        end = time.monotonic() + timeout
        dead_since = math.inf
        while time.monotonic() < end:
            status = self._status()
            match Health(status.get("status", Health.UNRESPONSIVE)):
                case Health.READY | Health.BUSY:
                    return
                case Health.SETUP_FAILED:
                    message = f"The {self.mode} server's setup failed: {_setup_error(status)}."
                    raise ServingError(message, code="setup_failed")
                case Health.EXITED:
                    message = f"The {self.mode} server ended while it started: {self._last_log_line()}."
                    raise ServingError(message, code="server_exited")
                case health:
                    is_dead = health.has_lost_worker or self._has_dead_worker()
            dead_since = min(dead_since, time.monotonic()) if is_dead else math.inf
            if time.monotonic() - dead_since > _DEATH_NOTICE_TIME:
                message = f"The {self.mode} server's worker ended while it started: {self._last_log_line()}."
                raise ServingError(message, code="worker_exited")
            time.sleep(_POLL_INTERVAL)
        message = f"The {self.mode} server is not ready after {timeout:.0f} s: {self._last_log_line()}."
        raise ServingError(message, code="not_ready")

    @property
    def _temporary(self) -> Path:
        return self.folder / "tmp"

    @property
    def _job_file(self) -> Path:
        return self.folder / "job"

    def _temporary_folder(self) -> Path:
        _remove_abandoned_folders()
        # A dying worker may still write there while it is removed.
        folder = Path(self._open.enter_context(TemporaryDirectory(prefix=_FOLDER_PREFIX, ignore_cleanup_errors=True)))
        self._open.enter_context(FileLock(folder / _LOCK_NAME))
        return folder

    def _status(self) -> dict[str, Any]:
        """Return the answer to a health check, or one in its form for a server that does not answer."""
        if self._process is None or self._process.poll() is not None:
            return {"status": Health.EXITED}
        try:
            answer = self._client.get(f"{self.url}/health-check", timeout=_HEALTH_TIMEOUT).json()
        except requests.RequestException:
            return {"status": Health.UNRESPONSIVE}
        return answer if isinstance(answer, dict) else {"status": Health.UNRESPONSIVE}

    def _has_dead_worker(self) -> bool:
        """Return whether a child of the process has ended, which a server that starts may not take note of."""
        with contextlib.suppress(psutil.Error):
            children = psutil.Process(self._process.pid).children() if self._process else []
            return any(child.status() == psutil.STATUS_ZOMBIE for child in children)
        return False

    def _last_log_line(self) -> str:
        path = self.folder / "server.log"
        if self._log is not None or not path.exists():
            return "see what it wrote above"
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
        return lines[-1].strip().rstrip(".") if lines else "it wrote nothing"


def _environment(entry: EntryPoint, port: int) -> dict[str, str]:
    """Return the environment of a server: this interpreter is first on the path, and the entry can be imported."""
    python = Path(sys.executable).parent
    if not (python / "python").exists():
        message = f"{str(python)!r} holds no `python`, which Cog's server starts: use a virtual environment."
        raise ServingError(message, code="python_missing")
    paths = os.environ.get("PYTHONPATH")
    return os.environ | {
        "PATH": os.pathsep.join([str(python), os.environ.get("PATH", os.defpath)]),
        "PYTHONPATH": os.pathsep.join([str(entry.path.parent), str(entries.HOME), *([paths] if paths else [])]),
        "PORT": str(port),
        "COG_PREDICT_TYPE_STUB": entry.reference,
    }


def _remove_abandoned_folders() -> None:
    """Remove the temporary folders of servers whose starting process was killed: nobody holds their locks."""
    for lock in Path(tempfile.gettempdir()).glob(f"{_FOLDER_PREFIX}*/{_LOCK_NAME}"):
        with contextlib.suppress(Timeout, OSError), FileLock(lock, timeout=0):
            shutil.rmtree(lock.parent, ignore_errors=True)


def _setup_error(status: dict[str, Any]) -> str:
    """Return the exception of a failed setup, without the server's text around it."""
    logs = str((status.get("setup") or {}).get("logs", "")).strip()
    return logs.rpartition("etup failed: ")[2].rstrip(".") or "it gave no reason"


def _wait_for_group(group: int, seconds: float) -> None:
    """Wait until a process group is empty, at most for ``seconds``."""
    end = time.monotonic() + seconds
    with contextlib.suppress(ProcessLookupError):
        while time.monotonic() < end:
            os.killpg(group, 0)
            time.sleep(_POLL_INTERVAL)
