"""The end of the processes of a training with the service that had them started."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import threading

import psutil

_END_SECONDS = 5.0  # for processes to end by themselves, before they are killed


def end_with_input() -> None:
    """From now on, end this process at once when its standard input ends, in whatever it is.

    The other end of that pipe is the service's. The system closes it however the service ends.
    """
    threading.Thread(target=_wait_for_end, daemon=True).start()


def _wait_for_end() -> None:
    while os.read(sys.stdin.fileno(), 1024):
        pass
    os._exit(1)


def end(launcher: subprocess.Popen[bytes]) -> None:
    """End a launcher and its processes, if they have not ended; none is left when this returns."""
    family = []
    with contextlib.suppress(psutil.NoSuchProcess):
        process = psutil.Process(launcher.pid)
        family = [*process.children(recursive=True), process]
    for pipe in (launcher.stdin, launcher.stdout):
        if pipe is not None:
            pipe.close()
    _, left = psutil.wait_procs(family, timeout=_END_SECONDS)
    for each in left:  # one that hangs in a driver, for example, or does not come to run its threads
        with contextlib.suppress(psutil.NoSuchProcess):
            each.kill()
    launcher.wait()
