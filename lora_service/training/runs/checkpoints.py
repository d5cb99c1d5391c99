"""Checkpoints: the whole state of a run, written now and then, from which it goes on to the same file."""

from __future__ import annotations

import contextlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from lora_service.training.optimization.loop import StageRun, TrainingCallback
from lora_service.training.runs.state_file import read_state, write_state
from lora_service.whole_files import LEFTOVERS

MOST_STEPS_BETWEEN = 250
"""The most steps between two checkpoints where nobody says how many; a short stage has one each quarter."""


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after a step.

    Attributes:
        stage: the stage's name.
        run: ``StageRun.state_dict()``.
        callbacks: class name -> ``TrainingCallback.state_dict()``.
        job: what the job had by then besides: the tokens' rows, and the reports of earlier stages.
        identity: what is trained on what; it is that of the run.
    """

    stage: str
    run: Mapping[str, Any]
    callbacks: Mapping[str, Mapping[str, Any]]
    job: Mapping[str, Any]
    identity: Mapping[str, Any] = field(default_factory=dict)


class CheckpointFolder:
    """The newest checkpoints of a run, each in one file.

    Args:
        path: the folder, which is made when it is needed.
        keep: how many of them stay.
    """

    def __init__(self, path: Path, keep: int = 2) -> None:
        self.path, self._keep = path, keep

    def save(self, checkpoint: Checkpoint) -> Path:
        """Write a checkpoint, then remove those that are too many."""
        self.path.mkdir(parents=True, exist_ok=True)
        name = re.sub(r"\W+", "-", checkpoint.stage).strip("-")
        path = self.path / f"{name}-{checkpoint.run['step']:06d}.safetensors"
        write_state(path, vars(checkpoint))
        for old in self._files()[: -self._keep]:
            old.unlink()
        return path

    def latest(self, log: Callable[[str], None]) -> Checkpoint | None:
        """Return the newest checkpoint that can be read; those that cannot are removed, which the log says."""
        for path in reversed(self._files()):
            try:
                return Checkpoint(**read_state(path))
            except (ValueError, TypeError) as error:
                log(f"warning: the checkpoint {path.name} is damaged, and the one before it is used ({error})")
                path.unlink()
        return None

    def clear(self) -> None:
        """Remove all checkpoints, and their folder."""
        for path in [*self._files(), *self.path.glob(LEFTOVERS)]:
            path.unlink()
        with contextlib.suppress(OSError):  # there is none, or somebody keeps something in it
            self.path.rmdir()

    def _files(self) -> list[Path]:
        """Return the checkpoints, oldest first: "stage-1…" comes before "stage-2…", and steps have leading zeros."""
        return sorted(self.path.glob("*.safetensors"))


class StageRestorer(TrainingCallback):
    """Puts the stage of a checkpoint into its state; the first of the callbacks, so that the others see it."""

    def __init__(self, checkpoint: Checkpoint | None) -> None:
        self._checkpoint = checkpoint

    def on_stage_start(self, stage: StageRun) -> None:
        if self._checkpoint and self._checkpoint.stage == stage.spec.name:
            stage.load_state_dict(self._checkpoint.run)


class CheckpointWriter(TrainingCallback):
    """Writes checkpoints, and puts the other callbacks into the state that they had at one; it comes after them all.

    Args:
        folder: receives the checkpoints; None: none are written.
        save_every: steps between two; None: as suits the stage's length; 0: none on the way.
        callbacks: those whose state is saved.
        job_state: returns ``Checkpoint.job``.
        identity: ``Checkpoint.identity``.
        resumed: the checkpoint that the run goes on from.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        save_every: int | None,
        callbacks: Sequence[TrainingCallback],
        job_state: Callable[[], Mapping[str, Any]],
        identity: Mapping[str, Any],
        resumed: Checkpoint | None = None,
    ) -> None:
        self._folder, self._save_every, self._callbacks = folder, save_every, callbacks
        self._job_state, self._identity, self._resumed = job_state, identity, resumed
        self._is_first_stage = True

    def on_stage_start(self, stage: StageRun) -> None:
        """Load the states of the callbacks where the stage goes on; else save what the stages before it learned."""
        if self._resumed and self._resumed.stage == stage.spec.name:
            for callback in self._callbacks:
                callback.load_state_dict(self._resumed.callbacks.get(type(callback).__name__, {}))
        elif not self._is_first_stage and self._save_every != 0:
            self.save(stage)
        self._is_first_stage = False

    def on_step_end(self, stage: StageRun) -> None:
        every = save_interval(stage.spec.steps) if self._save_every is None else self._save_every
        if every and stage.step % every == 0:
            self.save(stage)

    def save(self, stage: StageRun) -> None:
        """Write a checkpoint of ``stage`` as it is.

        Raises:
            DivergedError: a weight is no number any more; the checkpoint before stays.
        """
        stage.check_parameters()
        states = {type(callback).__name__: callback.state_dict() for callback in self._callbacks}
        self._folder.save(
            Checkpoint(
                stage=stage.spec.name,
                run=stage.state_dict(),
                callbacks={name: state for name, state in states.items() if state},
                job=self._job_state(),
                identity=self._identity,
            )
        )


def save_interval(steps: int) -> int:
    """Return the steps between two checkpoints of a stage of ``steps`` steps, where nobody says how many."""
    return min(MOST_STEPS_BETWEEN, max(1, steps // 4))
