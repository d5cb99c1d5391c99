"""The frame of both services: settings, output folder, and what follows a failed job."""

from __future__ import annotations

import shutil
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import ClassVar, Self

from lora_service.errors import LoraServiceError
from lora_service.settings import Settings

Log = Callable[[str], None]
"""Called with lines for the person who waits."""
RecordMetric = Callable[[str, float | int | str], None]
"""Called with a metric's name and value."""


def ignore_metric(name: str, value: float | int | str) -> None:
    """Record nothing."""


@contextmanager
def blame_input(name: str) -> Iterator[None]:
    """Name the input ``name`` as the field of errors that have none."""
    try:
        yield
    except LoraServiceError as error:
        error.field = error.field or name
        raise


class OutputFolder:
    """The temporary folder of the latest job; there is one at most, as Cog's server never deletes what it has sent."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._path: Path | None = None

    def renew(self) -> Path:
        """Make a new, empty folder and remove the one before."""
        self.clear()
        self._path = Path(tempfile.mkdtemp(prefix=self._prefix))
        return self._path

    def clear(self) -> None:
        """Remove the folder, if there is one."""
        if self._path is not None:
            shutil.rmtree(self._path, ignore_errors=True)
            self._path = None


class ModelService:
    """Runs jobs one after another on one base model, which is loaded once and kept.

    A context manager that removes the last job's output at its end.

    Raises:
        SettingError: an environment variable holds an unusable value.
    """

    folder_prefix: ClassVar[str]

    def __init__(self, settings: Settings | None = None) -> None:
        self.settings = settings or Settings.from_environment()
        self._output = OutputFolder(self.folder_prefix)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the last job's output: the server does not."""
        self._output.clear()

    @contextmanager
    def _job(self) -> Iterator[None]:
        """Remove the output of the job before, and also of this one if it fails.

        An error that is no mistake of the user's leaves its traceback in the log: Cog shows the message alone.
        """
        self.close()
        try:
            yield
        except BaseException as error:
            self.close()
            if isinstance(error, Exception) and not isinstance(error, LoraServiceError):
                traceback.print_exc()
            raise
