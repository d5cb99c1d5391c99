"""Training jobs one after another on one warm base model, as a server or the command line runs them."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lora_service.downloads.fetcher import Fetcher
from lora_service.downloads.parsed_url import redact, redact_all
from lora_service.downloads.resolve import resolve, split
from lora_service.errors import InputError, blame_input
from lora_service.services.deferred_imports import SCIPY
from lora_service.services.launched.job import LaunchedJob, TrainJob
from lora_service.services.launched.launched_training import is_launched, process_count, train_launched
from lora_service.services.model_service import (
    JobLog,
    Log,
    ModelService,
    RecordMetric,
    ignore_metric,
    module_map,
)
from lora_service.services.training_report import recording, report
from lora_service.services.worker import COMMON_IMPORTS, Worker, family_imports
from lora_service.settings import Settings
from lora_service.training.data.class_dataset import check_class_data
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.runs.run_folder import SAMPLE_TIMES, RunFolder, RunOptions, StopSignal, no_checkpoints

if TYPE_CHECKING:  # torch and diffusers take seconds to import: on a command line they wait for the job
    from lora_service.models.diffusion_base import DiffusionBase
    from lora_service.models.image_judge import ImageJudge
    from lora_service.training.callbacks.training_progress import OnProgress
    from lora_service.training.runs.starting_lora import StartingLora
    from lora_service.training.trainer import Trainer, TrainResult

_IMPORTS = (
    *COMMON_IMPORTS,
    "diffusers:DPMSolverMultistepScheduler",  # class pictures are drawn with it
    "lora_service.training.trainer",
    "transformers:AutoImageProcessor AutoModel CLIPVisionModelWithProjection",
    "numpy.ma",
    "torch.utils._device",
    "torch._dynamo.eval_frame",
    "torch.distributed.tensor",  # which peft takes for imported
    "peft.utils.transformers_weight_conversion",
    "torch.profiler",
    "torch.profiler._cupti_monitor",
)


@dataclass(frozen=True)
class TrainingUpload:
    """The pictures of a job: a file that the server received, or links. One of them, not both.

    ``class_data`` is a file with pictures of the subject's class, or None. Both files may be anything: Cog hands over
    a ``Path`` for what it downloaded, and a bare ``str`` for what it did not understand, which must not be opened.
    """

    file: object
    links: str
    class_data: object = None

    @property
    def class_file(self) -> Path | None:
        """The file of class pictures, once :meth:`check` has passed."""
        return self.class_data if isinstance(self.class_data, Path) else None

    def check(self, config: TrainConfig) -> None:
        """Check that there is exactly one of the two, that it is no path on the server, and that all will be used.

        Raises:
            InputError: it is not so.
        """
        check_class_data(self.class_data, config)
        if self.file is None and not self.links.strip():
            raise InputError(
                "instance_data", None, "a zip of pictures, or else instance_data_urls must hold links to some"
            )
        if self.file is not None and self.links.strip():
            raise InputError(
                "instance_data_urls",
                redact_all(self.links.replace("\n", "|").split("|")),
                "empty when instance_data is given too: one of the two",
            )
        if self.file is not None and not isinstance(self.file, Path):
            raise InputError("instance_data", redact(str(self.file)), "an uploaded zip or an http(s) link to one")


class TrainingService(ModelService):
    """Runs training jobs, each in a folder of its own.

    With ``TRAIN_PROCESSES`` above 1 a job is done by as many processes, which load the base; here it is never loaded.

    Args:
        allow_local: ``start_from`` may be a path on this machine: yes on a command line, never on a server.
    """

    folder_prefix: ClassVar[str] = "lora-training-"

    def __init__(
        self, settings: Settings | None = None, *, worker: Worker | None = None, allow_local: bool = False
    ) -> None:
        super().__init__(settings, worker=worker)
        self._allow_local = allow_local

    def warm_up(self) -> None:
        """In a server's worker, import all that jobs need; with ``WARM_UP``, also load the base model.

        Where several processes train, each job's load it anew, so that it is only downloaded.
        """
        with self._starting((*_IMPORTS, *family_imports(self.settings)), [SCIPY]):
            if self.settings.warm_up and process_count(self.settings) == 1:
                _ = self.base, self.judge
            elif self.settings.warm_up:
                from lora_service.models.hub_download import ensure_local

                ensure_local(self.settings)

    @cached_property
    def base(self) -> DiffusionBase:
        """The base model, loaded on first use."""
        from lora_service.models.loading import load_base, use_threads

        use_threads(self.settings)
        base = load_base(self.settings, for_training=True)
        self._modules = module_map(_models(base))
        return base

    @cached_property
    def judge(self) -> ImageJudge | None:
        """The judge of the samples' likeness, loaded on first use; None where there is none."""
        from lora_service.models.image_judge import likeness_judge

        return likeness_judge(self.settings)

    def _base_is_intact(self) -> bool:
        base = self.__dict__.get("base")
        return base is None or module_map(_models(base)) == self._modules

    def _drop_base(self) -> None:
        self.__dict__.pop("base", None)

    def train(
        self,
        upload: TrainingUpload,
        inputs: Mapping[str, Any],
        *,
        record_metric: RecordMetric = ignore_metric,
        log: Log = print,
        on_progress: OnProgress | None = None,
        run_folder: Path | None = None,
        options: RunOptions | None = None,
    ) -> TrainResult:
        """Train on ``upload`` as ``inputs`` ask; the file lies in the job's folder until the next job starts.

        Args:
            run_folder: a new or empty folder to work in, which is kept with all that is in it, also when the job
                fails; None: a temporary one.
            options: what is kept there on the way; None: no checkpoints. Several processes keep none.
            record_metric: called with the progress as it goes, and with the results.
            on_progress: called with the progress, in place of a line in the log.

        Returns:
            the result; where several processes train, its dataset has no images.

        Raises:
            LoraServiceError: a mistake that the user can mend.
        """
        started = time.monotonic()
        log = JobLog(log, record_metric)
        with self._job(log, [file for file in (upload.file, upload.class_data) if isinstance(file, Path)]):
            config = TrainConfig.of(inputs)
            upload.check(config)
            # Nobody sees the samples of a folder that is removed, but for the last one, which is the thumbnail.
            options = options or RunOptions(sample_times=SAMPLE_TIMES if run_folder else 1)
            if process_count(self.settings) > 1:
                options = _without_checkpoints(options, log)
            run = RunFolder(run_folder or self._output.renew())
            run.create()
            with run.in_use():
                source = fetch_pictures(self.settings, upload, run.uploads)
                show = recording(record_metric, on_progress or (lambda progress: log(progress.line())))
                job = TrainJob(config, source, upload.class_file, run.path, options, started)
                if is_launched() or self.settings.train_processes == 1:
                    result = self.run_job(job, log, show)
                else:
                    result = train_launched(LaunchedJob(job, self.settings, self._allow_local), log, show)
                remove_uploads(run, result)
            report(result, record_metric, log)
            return result

    def run_job(self, job: TrainJob, log: Log, on_progress: OnProgress) -> TrainResult:
        """Train in this process, by itself or as one of several.

        Raises:
            LoraServiceError: a mistake that the user can mend.
        """
        trainer = self._trainer(RunFolder(job.folder), log, on_progress)
        trainer.options, trainer.started = job.options, job.started
        trainer.start = self._starting_lora(job.config, log)
        return trainer.run(job.source, job.config, class_data=job.class_data)

    def resume(
        self,
        run_folder: Path,
        *,
        pictures: Path | None = None,
        class_data: Path | None = None,
        stop: StopSignal | None = None,
        record_metric: RecordMetric = ignore_metric,
        log: Log = print,
        on_progress: OnProgress | None = None,
    ) -> TrainResult:
        """Go on with the run in ``run_folder``; the file is the one that it would have written without interruption.

        Args:
            pictures, class_data: the places where its pictures are now; None: where they were.
            stop: ends it after a step.
            record_metric, log, on_progress: as of :meth:`train`.

        Raises:
            LoraServiceError: a mistake that the user can mend.
        """
        from lora_service.training.runs.run_record import RunRecord
        from lora_service.training.runs.starting_lora import StartingLora

        log, run = JobLog(log, record_metric), RunFolder(run_folder)
        with self._job(log, [file for file in (pictures, class_data) if file]):
            if process_count(self.settings) > 1:
                raise no_checkpoints("resume", str(run_folder))
            record = RunRecord.read(run)
            if record.status == "finished":
                expected = f"a run that is not finished; the file of this one is {run.lora}"
                raise InputError("resume", str(run_folder), expected, code="run_finished")
            config = record.config()
            with run.in_use():
                run.clear_leftovers()
                show = recording(record_metric, on_progress or (lambda progress: log(progress.line())))
                trainer = self._trainer(run, log, show)
                trainer.options, trainer.resumed = RunOptions(stop=stop or StopSignal()), record
                trainer.start = StartingLora.read(run) if run.start.exists() else None
                result = trainer.run(
                    pictures or record.source(run), config, class_data=class_data or record.class_source(run)
                )
                remove_uploads(run, result)
            report(result, record_metric, log)
            return result

    def _trainer(self, run: RunFolder, log: Log, on_progress: OnProgress) -> Trainer:
        from lora_service.training.trainer import Trainer

        return Trainer(self.base, run.path, on_progress=on_progress, log=log, settings=self.settings, judge=self.judge)

    def _starting_lora(self, config: TrainConfig, log: Log) -> StartingLora | None:
        """Return the LoRA of ``start_from``, fetched and read."""
        if not config.start_from.strip():
            return None
        from lora_service.lora.files import read_lora
        from lora_service.training.runs.starting_lora import StartingLora

        until = time.monotonic() + self.settings.max_download_seconds
        with blame_input("start_from"):
            remote = resolve(config.start_from, allow_local=self._allow_local)
            file = Fetcher(self.settings).fetch_file(remote, base=self.base.defaults.version, until=until)
            weights = read_lora(file.path, file.name)
            for warning in (*filter(None, [file.note]), *weights.warnings):
                log(f"warning: start_from: {warning}")
            lora = StartingLora.of(weights)
            lora.check(self.base)
            return lora


def fetch_pictures(settings: Settings, upload: TrainingUpload, folder: Path) -> Path | list[Path]:
    """Return the pictures as local files; those that come by link are fetched into ``folder``.

    Raises:
        LinkError: a link cannot be fetched.
        InputError: there are too many (code ``too_many_links``).
    """
    if isinstance(upload.file, Path):
        return upload.file
    fetcher, left, files = Fetcher(settings), settings.max_zip_bytes, []
    until = time.monotonic() + settings.max_download_seconds
    with blame_input("instance_data_urls"):
        links = split(upload.links)
        if len(links) > settings.max_pictures:
            expected = f"at most {settings.max_pictures} links, and not {len(links)}"
            raise InputError("instance_data_urls", redact_all(links), expected, code="too_many_links")
        for link in links:
            files.append(fetcher.download(resolve(link), folder, max_bytes=left, until=until))
            left = max(1, left - files[-1].stat().st_size)  # the limit is one for all links together
    return files


def _without_checkpoints(options: RunOptions, log: Log) -> RunOptions:
    """Return the options as several processes can follow them.

    Raises:
        InputError: they ask for checkpoints (code ``several_processes``).
    """
    if options.save_every:
        raise no_checkpoints("save_every", options.save_every)
    if options.save_every is None:
        log("several processes train together and keep no checkpoints: an interrupted training begins anew")
    return replace(options, save_every=0)


def remove_uploads(run: RunFolder, result: TrainResult) -> None:
    """Remove pictures that came by link, unless the run may go on."""
    if not result.interrupted:
        shutil.rmtree(run.uploads, ignore_errors=True)


def _models(base: DiffusionBase) -> dict[str, Any]:
    return {**base.components, "vae": base.vae}
