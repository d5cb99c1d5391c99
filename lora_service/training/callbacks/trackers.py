"""Experiment trackers: TensorBoard, Weights & Biases and Comet, through accelerate's interface to them."""

from __future__ import annotations

import importlib.util
import os
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from accelerate import PartialState
from accelerate.tracking import CometMLTracker, GeneralTracker, TensorBoardTracker, WandBTracker
from PIL import Image

from lora_service.errors import InputError
from lora_service.training.optimization.loop import StageRun, TrainingCallback

PROJECT = "lora-service"
"""The project of a run in Weights & Biases and Comet."""
_LOG_SECONDS = 5.0
_PACKAGES = {"tensorboard": "tensorboardX", "wandb": "wandb", "comet": "comet_ml"}
_KEYS = {
    "wandb": ("WANDB_API_KEY", "WANDB_MODE", "WANDB_MODE=offline"),
    "comet": ("COMET_API_KEY", "COMET_START_ONLINE", "COMET_START_ONLINE=0"),
}
"""Tracker -> the variable with its key, the one that does without, and its value then."""


def check_trackers(names: Sequence[str]) -> None:
    """Check that trackers are installed and know where to send their runs.

    Raises:
        InputError: on ``trackers``: one is not installed (code ``not_installed``) or has no key (``no_key``).
    """
    for name in names:
        package = _PACKAGES[name]
        if importlib.util.find_spec(package) is None:
            expected = f"a tracker that is installed; pip install {package} brings {name}"
            raise InputError("trackers", name, expected, code="not_installed")
        if name in _KEYS and not _is_configured(name):
            key, _, offline = _KEYS[name]
            expected = f"used with {key} set, or with {offline} to keep the run on disk"
            raise InputError("trackers", name, expected, code="no_key")


def _is_configured(name: str) -> bool:
    key, mode, _ = _KEYS[name]
    netrc, config = Path("~/.netrc").expanduser(), Path("~/.comet.config").expanduser()
    logged_in = (name == "wandb" and netrc.exists() and "wandb" in netrc.read_text()) or (
        name == "comet" and config.exists()
    )
    return bool(os.environ.get(key) or os.environ.get(mode) or logged_in)


class RunTrackers:
    """The trackers of one training. A tracker that fails is left out from then on, with a warning: the job goes on.

    Args:
        names: of ``tensorboard``, ``wandb`` and ``comet``.
        run: name of the run.
        folder: TensorBoard's files, and what the others keep on disk.
        log: called with lines for the person who waits.
    """

    def __init__(self, names: Sequence[str], run: str, folder: Path, log: Callable[[str], None]) -> None:
        self._log, self._trackers = log, dict[str, GeneralTracker]()
        self._pictures: list[tuple[str, Image.Image, int]] = []
        if names:
            PartialState()  # accelerate's trackers ask it which process is the main one
            folder.mkdir(parents=True, exist_ok=True)
        self._trackers.update({name: _make_tracker(name, run, folder) for name in names})
        self._each("start", lambda tracker: tracker.start())

    @property
    def is_empty(self) -> bool:
        """True if there is no tracker, or none that still works."""
        return not self._trackers

    def store_settings(self, values: Mapping[str, Any]) -> None:
        """Log the settings of the training."""
        plain = {
            name: value if isinstance(value, bool | int | float | str) else str(value) for name, value in values.items()
        }
        self._each("log the settings", lambda tracker: tracker.store_init_configuration(plain))

    def log_values(self, values: Mapping[str, float], step: int) -> None:
        """Log numbers of ``step``, counted over the whole training, and the pictures up to it."""
        self._each("log", lambda tracker: tracker.log(dict(values), step=step))
        due = [picture for picture in self._pictures if picture[2] <= step]
        for picture in due:
            self._send_image(*picture)
        self._pictures = self._pictures[len(due) :]

    def log_image(self, name: str, image: Image.Image, step: int) -> None:
        """Log a picture together with the numbers of its step: Weights & Biases drops what is of an earlier one."""
        if not self.is_empty:
            self._pictures.append((name, image, step))

    def _send_image(self, name: str, image: Image.Image, step: int) -> None:
        def send(tracker: GeneralTracker) -> None:
            if isinstance(tracker, CometMLTracker):  # accelerate's has no method for it
                tracker.writer.log_image(image, name=name, step=step)
            elif isinstance(tracker, TensorBoardTracker):
                tracker.log_images({name: np.asarray(image.convert("RGB"))[None]}, step=step, dataformats="NHWC")
            else:
                tracker.log_images({name: [image]}, step=step)

        self._each("log a picture", send)

    def log_file(self, path: Path) -> None:
        """Keep the file of the training with the run, where the tracker holds files."""

        def send(tracker: GeneralTracker) -> None:
            if isinstance(tracker, WandBTracker):
                tracker.run.log_artifact(str(path), name=path.stem, type="model")
            elif isinstance(tracker, CometMLTracker):
                tracker.writer.log_model(path.stem, str(path))

        self._each("log the file", send)

    def finish(self) -> None:
        """End the runs."""
        for picture in self._pictures:
            self._send_image(*picture)
        self._each("finish", lambda tracker: tracker.finish())
        self._trackers.clear()

    def _each(self, action: str, call: Callable[[GeneralTracker], None]) -> None:
        for name, tracker in list(self._trackers.items()):
            try:
                call(tracker)
            except Exception as error:  # whatever a tracker's client raises is not worth the training
                del self._trackers[name]
                self._log(f"warning: {name} could not {action} and is left out ({type(error).__name__}: {error})")


def _make_tracker(name: str, run: str, folder: Path) -> GeneralTracker:
    if name == "tensorboard":
        return TensorBoardTracker(run, folder)
    # Both clients would also send the code around the training, the state of its repository and what it prints.
    if name == "wandb":
        import wandb

        quiet = wandb.Settings(silent=True, console="off", save_code=False, disable_git=True)
        return WandBTracker(PROJECT, name=run, dir=str(folder), settings=quiet)
    import comet_ml

    online = os.environ.get("COMET_START_ONLINE", "1").lower() not in ("0", "false", "no")
    config = comet_ml.ExperimentConfig(
        name=run,
        offline_directory=str(folder),
        log_code=False,
        log_git_metadata=False,
        log_git_patch=False,
        log_env_host=False,
        display_summary_level=0,
    )
    return CometMLTracker(PROJECT, online=online, experiment_config=config)


@contextmanager
def run_trackers(names: Sequence[str], run: str, folder: Path, log: Callable[[str], None]) -> Iterator[RunTrackers]:
    """Start trackers, of which :func:`check_trackers` has found no fault, within the context.

    They are finished however it ends.
    """
    trackers = RunTrackers(names, run, folder, log)
    try:
        yield trackers
    finally:
        trackers.finish()


class TrackerCallback(TrainingCallback):
    """Logs the losses and learning rates of every step, now and then for all steps since."""

    def __init__(self, trackers: RunTrackers) -> None:
        self._trackers = trackers
        self._offset = self._logged = 0
        self._logged_at = 0.0

    def on_stage_start(self, stage: StageRun) -> None:
        """Begin the count; a stage that goes on from a checkpoint has steps behind it already."""
        self._logged, self._logged_at = stage.step, time.monotonic()

    def on_step_end(self, stage: StageRun) -> None:
        """Log if it is time to."""
        if self._trackers.is_empty:
            return
        if stage.is_done or time.monotonic() - self._logged_at >= _LOG_SECONDS:
            self._log_steps(stage)
            self._logged, self._logged_at = stage.step, time.monotonic()

    def _log_steps(self, stage: StageRun) -> None:
        series = {f"loss/{name}": losses for name, losses in stage.losses.items()}
        series |= {f"gradient_norm/{name}": norms for name, norms in stage.gradient_norms.items()}
        columns = {name: values[self._logged : stage.step].tolist() for name, values in series.items()}
        lrs = {f"lr/{group.get('name', i)}": group["lr"] for i, group in enumerate(stage.optimizer.param_groups)}
        measured = {f"loss/{name}": dict(values) for name, values in stage.measurements.items()}
        for row in range(stage.step - self._logged):
            values = {name: column[row] for name, column in columns.items()}
            step = self._logged + row + 1
            values |= {name: each[step] for name, each in measured.items() if step in each}
            self._trackers.log_values(values | (lrs if step == stage.step else {}), self._offset + step)

    def on_stage_end(self, stage: StageRun) -> None:
        """Count the next stage's steps after this one's."""
        self._offset += stage.step

    def state_dict(self) -> Mapping[str, Any]:
        """Return the steps of the stages before."""
        return {"offset": self._offset}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Count on after the stages before."""
        self._offset = state.get("offset", 0)
