"""Several trainings in the same batches of one warm base model."""

from __future__ import annotations

import shutil
import time
from collections.abc import Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_service.errors import LoraServiceError, SettingError
from lora_service.services.launched.launched_training import process_count
from lora_service.services.model_service import JobLog, Log, describe_defect, ignore_metric, print_traceback
from lora_service.services.training_report import report
from lora_service.services.training_service import TrainingService, TrainingUpload, fetch_pictures, remove_uploads
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.runs.run_folder import RunFolder, RunOptions

if TYPE_CHECKING:  # they import torch
    from lora_service.models.diffusion_base import DiffusionBase
    from lora_service.training.together.train_many import TrainingJob
    from lora_service.training.trainer import Trainer, TrainResult


@dataclass(frozen=True)
class NamedTraining:
    """One of several trainings.

    Attributes:
        name: before its lines in the log.
        upload, inputs: as of :meth:`TrainingService.train`.
        run_folder: a new or empty folder to work in, which is kept.
        options: what is kept there on the way.
    """

    name: str
    upload: TrainingUpload
    inputs: Mapping[str, Any]
    run_folder: Path
    options: RunOptions

    def config(self) -> TrainConfig:
        """Return its inputs, checked.

        Raises:
            InputError: one of them, or its upload, cannot be used.
        """
        config = TrainConfig.of(self.inputs)
        self.upload.check(config)
        return config


class JointTrainingService(TrainingService):
    """A training service that can also do several jobs together."""

    def train_many(self, trainings: Sequence[NamedTraining], *, log: Log = print) -> list[TrainResult | Exception]:
        """Train on all of ``trainings`` together; each learns what it would learn alone, but for the last bits.

        Returns:
            Of each its result, or what ended it; the others go on.

        Raises:
            LoraServiceError: inputs of one cannot be used, and nothing was begun; or settings do not go with this.
        """
        from lora_service.training.optimization.captured_gradients import recorder_of
        from lora_service.training.together.train_many import TrainingJob, train_many

        if (count := process_count(self.settings)) > 1:
            raise SettingError("TRAIN_PROCESSES", count, "1 for trainings that run together, and no launcher used")
        if any(name != "tensorboard" for name in self.settings.trackers):  # theirs would all be in the first one's run
            expected = "tensorboard or empty for trainings that run together, as the others have one run at a time"
            raise SettingError("TRACKERS", ",".join(self.settings.trackers), expected)
        files = [each for training in trainings for each in (training.upload.file, training.upload.class_data)]
        with self._job(JobLog(log, ignore_metric), [file for file in files if isinstance(file, Path)]):
            configs = [training.config() for training in trainings]
            with ExitStack() as runs:
                made = [self._joint_job(*each, runs, log) for each in zip(trainings, configs, strict=True)]
                jobs = [each for each in made if isinstance(each, TrainingJob)]
                recorder = recorder_of(self.settings, self.base.device, log)
                learned = iter(train_many(self.base, jobs, log, recorder))
                results = [next(learned) if isinstance(each, TrainingJob) else each for each in made]
            for training, result in zip(trainings, results, strict=True):
                _report(training, result, _prefixed(training.name, log))
            return results

    def _joint_job(
        self, training: NamedTraining, config: TrainConfig, runs: ExitStack, log: Log
    ) -> TrainingJob | LoraServiceError:
        """Make a run folder ready, which is in use until ``runs`` end; return what is wrong with what is fetched."""
        from lora_service.training.together.train_many import TrainingJob

        say, run, started = _prefixed(training.name, log), RunFolder(training.run_folder), time.monotonic()
        run.create()
        runs.enter_context(run.in_use())
        try:
            source = fetch_pictures(self.settings, training.upload, run.uploads)
            start = self._starting_lora(config, say)
        except LoraServiceError as error:
            shutil.rmtree(run.uploads, ignore_errors=True)
            return error

        def trainer(base: DiffusionBase) -> Trainer:
            made = self._trainer(run, say, lambda progress: say(progress.line()))
            made.base, made.options, made.started, made.start = base, training.options, started, start
            return made

        return TrainingJob(trainer, source, config, training.upload.class_file)


def _report(training: NamedTraining, result: TrainResult | Exception, say: Log) -> None:
    """Say what became of a training."""
    if isinstance(result, LoraServiceError):
        say(f"failed: {result}")
    elif isinstance(result, Exception):
        print_traceback(result)
        say(f"failed: {describe_defect(result)}")
    else:
        remove_uploads(RunFolder(training.run_folder), result)
        report(result, ignore_metric, say)


def _prefixed(name: str, log: Log) -> Log:
    return lambda line: log(f"{name}: {line}")
