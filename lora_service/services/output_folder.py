"""Where a job's output lies until the next job: Cog's server never deletes what it has sent."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path


class OutputFolder:
    """The temporary folder of the latest job; there is one at most."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._path: Path | None = None

    def renew(self) -> Path:
        """A new, empty folder; the one before goes."""
        self.clear()
        self._path = Path(tempfile.mkdtemp(prefix=self._prefix))
        return self._path

    def clear(self) -> None:
        """Remove the folder, if there is one."""
        if self._path is not None:
            shutil.rmtree(self._path, ignore_errors=True)
            self._path = None
