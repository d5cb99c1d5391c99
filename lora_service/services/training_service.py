"""Training jobs one after another on one warm base model, as a server or a command line runs them."""

from __future__ import annotations

import shutil
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from lora_service.downloads.fetcher import Fetcher
from lora_service.downloads.resolve import resolve, split
from lora_service.errors import InputError, LoraServiceError
from lora_service.services.output_folder import OutputFolder
from lora_service.settings import Settings
from lora_service.training.config import TrainConfig

if TYPE_CHECKING:  # torch and diffusers take seconds to import: they wait for the first job
    from lora_service.models.diffusion_base import DiffusionBase
    from lora_service.training.trainer import TrainResult

RecordMetric = Callable[[str, float | int | str], None]


@dataclass(frozen=True)
class TrainingUpload:
    """Where a job's pictures come from: a file that the server received, or links. One of them, not both.

    ``file`` is whatever arrived: Cog hands over a ``Path`` for what it downloaded,
    and a bare ``str`` for what it did not understand, which must not be opened.
    """

    file: object
    links: str

    def check(self) -> None:
        """Raises ``InputError`` unless exactly one is there, and it is no path on the server."""
        if self.file is None and not self.links.strip():
            raise InputError(
                "instance_data", None, "a zip of pictures, or else instance_data_urls must hold links to some"
            )
        if self.file is not None and self.links.strip():
            raise InputError("instance_data_urls", self.links, "empty when instance_data is given too: one of the two")
        if self.file is not None and not isinstance(self.file, Path):
            raise InputError("instance_data", self.file, "an uploaded zip or an http(s) link to one")


class TrainingService:
    """Runs training jobs, each in a folder of its own; the base model is loaded at the first and kept.

    A context manager that removes the last job's folder at its end.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __init__(self, settings: Settings | None = None) -> None:
        self._settings = settings
        self._base: DiffusionBase | None = None
        self._folder = OutputFolder("lora-training-")

    @property
    def settings(self) -> Settings:
        if self._settings is None:
            self._settings = Settings.from_environment()
        return self._settings

    def warm_up(self) -> None:
        """With ``WARM_UP``, load the base model before the first job asks for it."""
        if self.settings.warm_up:
            self.base()

    def base(self) -> DiffusionBase:
        """The base model, loaded on first use."""
        if self._base is None:
            from lora_service.models.loading import load_base, use_threads

            use_threads(self.settings)
            self._base = load_base(self.settings, for_training=True)
        return self._base

    def train(
        self,
        upload: TrainingUpload,
        inputs: Mapping[str, Any],
        *,
        record_metric: RecordMetric = lambda name, value: None,
        log: Callable[[str], None] = print,
    ) -> TrainResult:
        """Train on ``upload`` as ``inputs`` ask; the file lies in the job's folder until the next job starts.

        Whatever goes wrong, the next job is unaffected; what is no mistake of the
        user's leaves its traceback in the log.

        Raises:
            LoraServiceError: something that the user can mend.
        """
        self.close()
        try:
            config = TrainConfig.of({k: v for k, v in inputs.items() if v is not None})
            upload.check()
            return self._train(upload, config, record_metric, log)
        except BaseException as error:
            self.close()
            if isinstance(error, Exception) and not isinstance(error, LoraServiceError):
                traceback.print_exc()  # Cog shows the message alone
            raise

    def _train(
        self, upload: TrainingUpload, config: TrainConfig, record_metric: RecordMetric, log: Callable[[str], None]
    ) -> TrainResult:
        from lora_service.training.trainer import Trainer

        folder = self._folder.renew()
        source = self._fetched(upload, folder / "upload")
        job = Trainer(
            base=self.base(),
            folder=folder,
            on_progress=lambda progress: log(progress.line()),
            log=log,
            settings=self.settings,
        )
        result = job.run(source, config)
        shutil.rmtree(folder / "upload", ignore_errors=True)
        _report(result, record_metric, log)
        return result

    def _fetched(self, upload: TrainingUpload, folder: Path) -> Path | list[Path]:
        """The pictures as local files."""
        if isinstance(upload.file, Path):
            return upload.file
        fetcher, left, files = Fetcher(self.settings), self.settings.max_zip_bytes, []
        for link in split(upload.links):
            files.append(fetcher.download(resolve(link), folder, max_bytes=left))
            left = max(1, left - files[-1].stat().st_size)  # the limit is one for all links together
        return files

    def close(self) -> None:
        """Remove what the last job left: the server does not."""
        self._folder.clear()


def _report(result: TrainResult, record_metric: RecordMetric, log: Callable[[str], None]) -> None:
    counts = result.pictures.report.counts()
    metrics: dict[str, float | int | str] = {
        "pictures_used": counts["used"],
        "pictures_left_out": counts["left_out"],
        "seed": result.resolved.config.seed or 0,
    }
    for phase, seconds in result.seconds.items():
        metrics[f"seconds_{phase.replace(' ', '_')}"] = seconds
    for name, stage in result.stages.items():
        metrics[f"steps_{name.replace(' ', '_')}"] = stage.steps
        metrics[f"loss_{name.replace(' ', '_')}"] = stage.losses[-1]
    for name, value in metrics.items():
        record_metric(name, value)
    size = result.path.stat().st_size
    log(
        f"done in {sum(result.seconds.values()):.0f} s: a LoRA of {size / 1e6:.1f} MB. "
        f"Write {result.prompt!r} here"
        + (f", or {result.resolved.trigger!r} in any tool." if result.resolved.trigger else ".")
    )
