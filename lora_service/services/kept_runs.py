"""Trainings of a server that go on after it was killed: their run folders are kept under ``RUN_FOLDERS``.

Whoever sends a job names its run with it (``context``: ``{"run": NAME}``) and sends the same again when the server was
lost under the job: the training goes on from its last checkpoint, and its file is the one that it would have been.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_service.errors import InputError
from lora_service.services.model_service import Log, RecordMetric, ignore_metric
from lora_service.training.runs.run_folder import RunFolder, RunOptions, StopSignal

if TYPE_CHECKING:
    from lora_service.services.training_service import TrainingService, TrainingUpload

_NAME = re.compile(r"[a-z0-9]{8,64}")
_BEGUN_ANEW = frozenset(
    {
        "no_run",
        "unreadable_run",
        "pictures_gone",
        "pictures_changed",
        "base_changed",
        "settings_changed",
        "start_from_changed",
        "several_processes",
    }
)
"""Codes of what keeps a run from going on, but not its training from being begun anew."""


def train_or_resume(
    service: TrainingService,
    upload: TrainingUpload,
    inputs: Mapping[str, Any],
    run: str,
    record_metric: RecordMetric = ignore_metric,
    log: Log = print,
) -> Path:
    """Train, or go on with the run of that name; returns the LoRA file.

    Args:
        run: a name of lower-case letters and digits; ``""``, or without ``RUN_FOLDERS``: nothing is kept.

    Raises:
        LoraServiceError: a mistake that the user can mend.
    """
    root = service.settings.run_folders
    if root is None or not run:
        return service.train(upload, inputs, record_metric=record_metric, log=log).path
    if not _NAME.fullmatch(run):
        raise InputError("context.run", run, "8 to 64 lower-case letters and digits")
    folder = RunFolder(root / run)
    if folder.holds_a_run:
        if folder.lora.exists() and _has_ended(folder):
            log("the training had ended before its server was lost; here is its file")
            return folder.lora
        try:
            log("going on with the training whose server was lost")
            return service.resume(
                folder.path,
                pictures=upload.file if isinstance(upload.file, Path) else None,
                class_data=upload.class_file,
                record_metric=record_metric,
                log=log,
            ).path
        except InputError as error:
            if error.code not in _BEGUN_ANEW:
                raise
            log(f"warning: the training is begun anew, as it cannot go on: {error}")
    stop = StopSignal(requested=folder.stop_request.exists())  # a wish that outlives the run
    shutil.rmtree(folder.path, ignore_errors=True)
    options = RunOptions(save_every=None, stop=stop)
    return service.train(
        upload, inputs, record_metric=record_metric, log=log, run_folder=folder.path, options=options
    ).path


def _has_ended(folder: RunFolder) -> bool:
    """Return True if the training came to its end, or to an early one that was asked for."""
    from lora_service.training.runs.run_record import RunRecord

    try:
        return RunRecord.read(folder).status in ("finished", "stopped")
    except InputError:
        return False
