"""Training jobs one after another on one warm base model, as a server or the command line runs them."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lora_service.downloads.fetcher import Fetcher
from lora_service.downloads.resolve import resolve, split
from lora_service.errors import InputError
from lora_service.services.model_service import Log, ModelService, RecordMetric, blame_input, ignore_metric
from lora_service.training.config import TrainConfig

if TYPE_CHECKING:  # torch and diffusers take seconds to import: they wait for the first job
    from lora_service.models.diffusion_base import DiffusionBase
    from lora_service.training.trainer import TrainResult


@dataclass(frozen=True)
class TrainingUpload:
    """The pictures of a job: a file that the server received, or links. One of them, not both.

    ``file`` may be anything: Cog hands over a ``Path`` for what it downloaded, and a bare ``str`` for what it did not
    understand, which must not be opened.
    """

    file: object
    links: str

    def check(self) -> None:
        """Check that there is exactly one of the two, and that it is no path on the server.

        Raises:
            InputError: it is not so.
        """
        if self.file is None and not self.links.strip():
            raise InputError(
                "instance_data", None, "a zip of pictures, or else instance_data_urls must hold links to some"
            )
        if self.file is not None and self.links.strip():
            raise InputError("instance_data_urls", self.links, "empty when instance_data is given too: one of the two")
        if self.file is not None and not isinstance(self.file, Path):
            raise InputError("instance_data", self.file, "an uploaded zip or an http(s) link to one")


class TrainingService(ModelService):
    """Runs training jobs, each in a folder of its own."""

    folder_prefix: ClassVar[str] = "lora-training-"

    def warm_up(self) -> None:
        """With ``WARM_UP``, load the base model before the first job needs it."""
        if self.settings.warm_up:
            _ = self.base

    @cached_property
    def base(self) -> DiffusionBase:
        """The base model, loaded on first use."""
        from lora_service.models.loading import load_base, use_threads

        use_threads(self.settings)
        return load_base(self.settings, for_training=True)

    def train(
        self,
        upload: TrainingUpload,
        inputs: Mapping[str, Any],
        *,
        record_metric: RecordMetric = ignore_metric,
        log: Log = print,
    ) -> TrainResult:
        """Train on ``upload`` as ``inputs`` ask; the file lies in the job's folder until the next job starts.

        Raises:
            LoraServiceError: a mistake that the user can mend.
        """
        with self._job():
            config = TrainConfig.of({k: v for k, v in inputs.items() if v is not None})
            upload.check()
            result = self._train(upload, config, log)
            _report(result, record_metric, log)
            return result

    def _train(self, upload: TrainingUpload, config: TrainConfig, log: Log) -> TrainResult:
        from lora_service.training.trainer import Trainer

        folder = self._output.renew()
        source = self._fetch(upload, folder / "upload")
        trainer = Trainer(
            base=self.base,
            folder=folder,
            on_progress=lambda progress: log(progress.line()),
            log=log,
            settings=self.settings,
        )
        result = trainer.run(source, config)
        shutil.rmtree(folder / "upload", ignore_errors=True)
        return result

    def _fetch(self, upload: TrainingUpload, folder: Path) -> Path | list[Path]:
        """Return the pictures as local files."""
        if isinstance(upload.file, Path):
            return upload.file
        fetcher, left, files = Fetcher(self.settings), self.settings.max_zip_bytes, []
        with blame_input("instance_data_urls"):
            links = split(upload.links)
            if len(links) > self.settings.max_pictures:
                expected = f"at most {self.settings.max_pictures} links, and not {len(links)}"
                raise InputError("instance_data_urls", upload.links, expected, code="too_many_links")
            for link in links:
                files.append(fetcher.download(resolve(link), folder, max_bytes=left))
                left = max(1, left - files[-1].stat().st_size)  # the limit is one for all links together
        return files


def _report(result: TrainResult, record_metric: RecordMetric, log: Log) -> None:
    counts = result.dataset.report.counts()
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
    size, trigger = result.path.stat().st_size, result.resolved.trigger
    log(
        f"done in {sum(result.seconds.values()):.0f} s: a LoRA of {size / 1e6:.1f} MB. "
        f"Write {result.prompt!r} here" + (f", or {trigger!r} in any tool." if trigger else ".")
    )
