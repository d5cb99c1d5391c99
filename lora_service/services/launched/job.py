"""A training as it goes from the service to the processes that do it, and what comes back."""

from __future__ import annotations

import os
import pickle
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import SecretStr

from lora_service.settings import Settings
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.runs.run_folder import RunOptions
from lora_service.whole_files import whole_file


@dataclass(frozen=True)
class TrainJob:
    """A training whose inputs were checked and whose pictures are files.

    Attributes:
        source: an archive, a folder, or several files.
        folder: the run folder.
        started: time of :func:`time.monotonic` at which the job began.
    """

    config: TrainConfig
    source: Path | list[Path]
    class_data: Path | None
    folder: Path
    options: RunOptions
    started: float


@dataclass(frozen=True)
class LaunchedJob:
    """A job with what the service that launches it was made of.

    Attributes:
        settings: without tokens, which go by the environment and are never on a disk.
    """

    job: TrainJob
    settings: Settings
    allow_local: bool


_SECRETS = tuple(name for name, field in Settings.model_fields.items() if field.annotation is SecretStr)


def secret_variables(settings: Settings) -> dict[str, str]:
    """Return the tokens among the settings, as variables of an environment."""
    values = {name.upper(): getattr(settings, name).get_secret_value() for name in _SECRETS}
    return {name: value for name, value in values.items() if value}


def without_secrets(settings: Settings) -> Settings:
    """Return the settings without their tokens."""
    return settings.model_copy(update={name: SecretStr("") for name in _SECRETS})


def with_secrets(settings: Settings) -> Settings:
    """Return the settings with the tokens of the environment."""
    return settings.model_copy(update={name: SecretStr(os.environ.get(name.upper(), "")) for name in _SECRETS})


@dataclass(frozen=True)
class ExchangeFolder:
    """The files between a service and the processes of one job; the folder is nobody else's, so pickles may be read."""

    path: Path

    @property
    def killed(self) -> Path:
        """The file in which the launcher says which processes were ended by which signals."""
        return self.path / "killed.json"

    def own(self, process: int) -> Path:
        """Return the folder of a process that is not the main one, which has the run folder."""
        return self.path / f"process-{process}"

    def write_job(self, launched: LaunchedJob) -> None:
        """Write the job."""
        self._write("job", launched)

    def read_job(self) -> LaunchedJob:
        """Return the job."""
        launched = pickle.loads((self.path / "job.pickle").read_bytes())
        assert isinstance(launched, LaunchedJob)
        return launched

    def write_outcome(self, process: int, outcome: Any) -> None:
        """Write what became of a process: its result, or its error."""
        self._write(f"outcome-{process}", outcome)

    def outcomes(self) -> Iterator[Any]:
        """Yield the outcomes, the first one first."""
        for path in sorted(self.path.glob("outcome-*.pickle"), key=lambda path: path.stat().st_mtime_ns):
            yield pickle.loads(path.read_bytes())

    def _write(self, name: str, value: Any) -> None:
        with whole_file(self.path / f"{name}.pickle") as part:
            part.write_bytes(pickle.dumps(value))
