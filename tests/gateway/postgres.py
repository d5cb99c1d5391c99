"""A PostgreSQL of Debian's package on loopback, as an unprivileged user, that can be killed and started again."""

from __future__ import annotations

import contextlib
import os
import pwd
import shutil
import signal
import subprocess
import tempfile
import time
from pathlib import Path
from types import TracebackType
from typing import Self

from tests.gateway.running import free_port


def programs() -> Path | None:
    """The folder of the newest server's programs, None where there is none."""
    folders = sorted(Path("/usr/lib/postgresql").glob("*/bin/initdb"), key=lambda path: int(path.parts[4]))
    return folders[-1].parent if folders else None


class Cluster:
    """A database server in a folder of its own; a context in which it runs."""

    def __init__(self) -> None:
        found = programs()
        assert found is not None
        self._programs, self.port = found, free_port()
        self._folder = Path(tempfile.mkdtemp(prefix="lora-postgres-"))
        self._user = "nobody" if os.geteuid() == 0 else None  # PostgreSQL refuses to run as root
        self._process: subprocess.Popen[bytes] | None = None
        if self._user:
            owner = pwd.getpwnam(self._user)
            os.chown(self._folder, owner.pw_uid, owner.pw_gid)

    @property
    def url(self) -> str:
        return f"postgresql://gateway@127.0.0.1:{self.port}/postgres"

    def __enter__(self) -> Self:
        self._command("initdb", "--pgdata=data", "--username=gateway", "--auth=trust", "--encoding=UTF8").wait(120)
        self.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._process is not None:
            self._process.send_signal(signal.SIGINT)  # a fast shutdown
            with contextlib.suppress(subprocess.TimeoutExpired):
                self._process.wait(60)
        shutil.rmtree(self._folder, ignore_errors=True)

    def start(self) -> None:
        """Start it and wait until it answers; the processes of one that was killed take a moment to end."""
        options = ["-D", "data", "-k", str(self._folder), "-h", "127.0.0.1", "-p", str(self.port)]
        end = time.monotonic() + 120
        while time.monotonic() < end:
            self._process = self._command("postgres", *options)
            while self._process.poll() is None and time.monotonic() < end:
                ready = self._command("pg_isready", "-q", "-h", "127.0.0.1", "-p", str(self.port), "-d", "postgres")
                if ready.wait(30) == 0:
                    return
                time.sleep(0.1)
            time.sleep(0.2)
        raise AssertionError((self._folder / "log").read_text())

    def kill(self) -> None:
        """End its main process as a machine that loses its power would."""
        assert self._process is not None
        self._process.kill()
        self._process.wait()

    def _command(self, program: str, *arguments: str) -> subprocess.Popen[bytes]:
        with (self._folder / "log").open("ab") as log:
            return subprocess.Popen(
                [str(self._programs / program), *arguments], cwd=self._folder, stdout=log, stderr=log,
                env={"PATH": os.environ["PATH"], "LC_ALL": "C.UTF-8"},
                user=self._user, group=pwd.getpwnam(self._user).pw_gid if self._user else None,
                extra_groups=[] if self._user else None,
            )  # fmt: skip
