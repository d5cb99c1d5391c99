"""Temporary folders of jobs, which the next process removes where the one that made them was killed.

Each is locked by its process: the system lifts the lock when the process ends, however it ends.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

PREFIXES = ("lora-pictures-", "lora-training-", "lora-archive-", "lora-runs-", "lora-ray-", "lora-processes-")
"""Beginnings of the folders' names."""
_MIN_AGE = 10.0  # seconds; a younger one may not be locked yet


class LockedFolder:
    """A new, empty folder in that for temporary files, locked until it is removed.

    Args:
        prefix: one of ``PREFIXES``.
    """

    def __init__(self, prefix: str) -> None:
        self.path = Path(tempfile.mkdtemp(prefix=prefix))
        self._descriptor = os.open(self.path, os.O_RDONLY)
        with contextlib.suppress(OSError):  # some network file systems have no locks
            fcntl.flock(self._descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)

    def remove(self) -> None:
        """Remove the folder with what is in it."""
        shutil.rmtree(self.path, ignore_errors=True)
        os.close(self._descriptor)


@contextmanager
def temporary_folder(prefix: str) -> Iterator[Path]:
    """Make a :class:`LockedFolder` and remove it at the end."""
    folder = LockedFolder(prefix)
    try:
        yield folder.path
    finally:
        folder.remove()


def remove_abandoned_folders() -> None:
    """Remove the folders of processes that have ended."""
    before = time.time() - _MIN_AGE
    for path in Path(tempfile.gettempdir()).glob("lora-*-*"):
        with contextlib.suppress(OSError):  # it is locked, or another process has removed it
            if path.name.startswith(PREFIXES) and path.is_dir() and path.stat().st_mtime < before:
                _remove_unless_locked(path)


def _remove_unless_locked(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        shutil.rmtree(path, ignore_errors=True)
    finally:
        os.close(descriptor)
