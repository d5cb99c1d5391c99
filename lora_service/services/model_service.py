"""The frame of both services: settings, output folder, and what follows a failed job."""

from __future__ import annotations

import sys
import traceback
from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, ClassVar, Self

from lora_service.errors import LoraServiceError, shorten
from lora_service.services.deferred_imports import CLOUD, COMPILER, Names
from lora_service.services.worker import Worker, broke_import, collector_paused, torch_is_usable
from lora_service.settings import Settings
from lora_service.temporary_folders import LockedFolder

if TYPE_CHECKING:
    from torch import nn

Log = Callable[[str], None]
"""Called with lines for the person who waits."""
RecordMetric = Callable[[str, float | int | str], None]
"""Called with a metric's name and value."""


_MAX_DEFECT = 1000  # characters of an error that is a defect
_MAX_TRACEBACK_LINES = 200


def ignore_metric(name: str, value: float | int | str) -> None:
    """Record nothing."""


class JobLog:
    """A job's log that also keeps its last lines: Cog's answer to a failed job has none.

    Args:
        log: called with each line.
        record_metric: called when the job fails.
    """

    lines: ClassVar[int] = 20
    line_length: ClassVar[int] = 200

    def __init__(self, log: Log, record_metric: RecordMetric) -> None:
        self._log, self._record_metric = log, record_metric
        self._last: deque[str] = deque(maxlen=self.lines)

    def __call__(self, line: str) -> None:
        """Log a line."""
        self._last.append(line if len(line) <= self.line_length else f"{line[: self.line_length]}…")
        self._log(line)

    def record_failure(self, error: Exception) -> None:
        """Record, as metrics of the failed job, the error's sentence, code and field, and the last lines."""
        code, field, message = "internal_error", "", describe_defect(error)
        if isinstance(error, LoraServiceError):
            code, field, message = error.code, error.field, str(error)
        self._record_metric("error_code", code)
        self._record_metric("error_field", field)
        self._record_metric("error_message", message)
        self._record_metric("log", "\n".join(self._last))


class OutputFolder:
    """The temporary folder of the latest job; there is one at most, as Cog's server never deletes what it has sent."""

    def __init__(self, prefix: str) -> None:
        self._prefix = prefix
        self._folder: LockedFolder | None = None

    def renew(self) -> Path:
        """Make a new, empty folder and remove the one before."""
        self.clear()
        self._folder = LockedFolder(self._prefix)
        return self._folder.path

    def clear(self) -> None:
        """Remove the folder, if there is one."""
        folder, self._folder = self._folder, None
        if folder is not None:
            folder.remove()


class ModelService:
    """Runs jobs one after another on one base model, which is loaded once and kept.

    A context manager that removes the last job's output at its end.

    Args:
        settings: those of the environment unless given.
        worker: the server's worker process, which is ended after a job that left it unfit for the next.

    Raises:
        SettingError: an environment variable holds an unusable value.
    """

    folder_prefix: ClassVar[str]

    def __init__(self, settings: Settings | None = None, *, worker: Worker | None = None) -> None:
        self.settings = settings or Settings.from_environment()
        self._worker = worker
        self._output = OutputFolder(self.folder_prefix)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the last job's output: the server does not."""
        self._output.clear()

    @contextmanager
    def _starting(self, imports: Iterable[str], deferred: Iterable[Names] = ()) -> Iterator[None]:
        """In a server's worker, prepare it for what is within, and for jobs; elsewhere do nothing.

        Args:
            imports, deferred: as of `Worker.prepare`; the second beside what neither service uses.
        """
        if self._worker is None:
            yield
            return
        unused = [CLOUD] if self.settings.compile else [CLOUD, COMPILER]
        with collector_paused():
            self._worker.prepare(imports, (*unused, *deferred))
            yield

    @contextmanager
    def _job(self, log: JobLog, files: Collection[Path] = ()) -> Iterator[None]:
        """Remove the output of the job before, and also of this one if it fails.

        An error that is no mistake of the user's leaves its traceback in the log: Cog shows the message alone.

        Args:
            log: records an error.
            files: the job's uploads.
        """
        with self._worker.running(files) if self._worker else nullcontext():
            self.close()
            try:
                yield
            except BaseException as error:
                with self._end_if_interrupted():
                    self.close()
                    self._recover(error)
                if isinstance(error, LoraServiceError):
                    log.record_failure(error)
                elif isinstance(error, Exception):
                    print_traceback(error)
                    log.record_failure(error)
                    raise _bounded(error) from None
                raise

    def _recover(self, error: BaseException) -> None:
        """Make sure that the next job finds everything as this one did, or end the worker."""
        if isinstance(error, LoraServiceError):
            return
        if broke_import(error):
            self._end("a job ended inside an import")
        elif not torch_is_usable():
            self._end("a job left PyTorch in a state that the next job cannot use")
        elif not self._base_is_intact():
            self._end("a job left the base model changed")
            self._drop_base()

    def _base_is_intact(self) -> bool:
        """Put the base back as far as possible; return False if it is not as it was loaded."""
        return True

    def _drop_base(self) -> None:
        """Forget the base, so that the next job loads it anew."""

    @contextmanager
    def _end_if_interrupted(self) -> Iterator[None]:
        """End the worker if what is within is interrupted, by a second cancellation for example."""
        try:
            yield
        except BaseException:
            self._end("clearing up after a job was interrupted")
            self._drop_base()
            raise

    def _end(self, reason: str) -> None:
        if self._worker is not None:
            self._worker.end(reason)


def describe_defect(error: Exception) -> str:
    """Return an error that is a defect as one line."""
    return shorten(f"{type(error).__name__}: {error}", _MAX_DEFECT)


def _bounded(error: Exception) -> Exception:
    """Return an error that Cog can send to a client: the text of a library's may be megabytes of somebody's input."""
    return error if len(str(error)) <= _MAX_DEFECT else RuntimeError(describe_defect(error))


def print_traceback(error: Exception) -> None:
    """Print the traceback of a defect to standard error."""
    lines = "".join(traceback.format_exception(error)).splitlines()
    for line in lines[-_MAX_TRACEBACK_LINES:]:
        print(shorten(line, _MAX_DEFECT), file=sys.stderr)


def module_map(models: Mapping[str, nn.Module]) -> list[tuple[str, str, int, bool]]:
    """Return name, path, identity and checkpointing of every module: the same list means the same layers."""
    return [
        (name, path, id(module), bool(getattr(module, "gradient_checkpointing", False)))
        for name, model in models.items()
        for path, module in model.named_modules()
    ]
