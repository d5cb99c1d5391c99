"""The wishes of those who wait: an end that keeps what was learned, now or in time, or a file on the way."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from typing import Any

from lora_service.training.optimization.loop import StageRun, TrainingCallback
from lora_service.training.runs.run_folder import RunFolder, StopSignal

INTERRUPTED = "stopped by request"
_RESERVED_SHARE, _LEAST_RESERVED, _MOST_RESERVED = 0.1, 1.0, 60.0
"""Share of the time that is left for the last samples and the file, and its limits in seconds."""


class RequestFiles(TrainingCallback):
    """Does what the files ``save`` and ``stop`` in the run folder ask for, after the step in which they come.

    Args:
        signal: is set where the end is asked for.
        save: called with the stage to write a LoRA file of it.
    """

    def __init__(self, run: RunFolder, signal: StopSignal, save: Callable[[StageRun], None]) -> None:
        self._run, self._signal, self._save = run, signal, save

    def on_step_end(self, stage: StageRun) -> None:
        if self._run.save_request.exists():
            self._run.save_request.unlink(missing_ok=True)
            self._save(stage)
        if self._run.stop_request.exists():
            self._signal.requested = True


class StopRequest(TrainingCallback):
    """Ends the training after the step in which somebody asks for it; the last of the callbacks.

    Args:
        signal: says that somebody asked.
        before_stop: called with the stage before it is ended, to save its state.
    """

    def __init__(self, signal: StopSignal, before_stop: Callable[[StageRun], None]) -> None:
        self._signal, self._before_stop = signal, before_stop

    def on_step_end(self, stage: StageRun) -> None:
        self._signal.can_stop = True
        if self._signal.requested:
            self._before_stop(stage)
            if not stage.is_done:
                stage.stop(INTERRUPTED)


class TimeLimit(TrainingCallback):
    """Ends stages so that the file is written within a limit; every stage takes one step at least.

    A stage has the time that is left in proportion to its steps among those that are to come; what it does not use
    is the next one's.

    Args:
        seconds: the limit.
        started: time of :func:`time.monotonic` at which it began to run.
    """

    def __init__(self, seconds: float, started: float) -> None:
        self._seconds, self._started = seconds, started
        self._stage_started = self._stage_ends = 0.0
        self._first_step = 0

    def on_stage_start(self, stage: StageRun) -> None:
        reserved = min(max(self._seconds * _RESERVED_SHARE, _LEAST_RESERVED), _MOST_RESERVED)
        now = time.monotonic()
        left = self._started + self._seconds - reserved - now
        steps = stage.spec.steps - stage.step
        self._stage_started, self._first_step = now, stage.step
        self._stage_ends = now + left * steps / max(steps + stage.spec.later_steps, 1)

    def on_step_end(self, stage: StageRun) -> None:
        """End the stage if another step would take longer than there is time."""
        now = time.monotonic()
        step_seconds = (now - self._stage_started) / (stage.step - self._first_step)
        if not stage.is_done and now + step_seconds > self._stage_ends:
            stage.stop(f"stop_after_seconds is {self._seconds:g}")

    def state_dict(self) -> Mapping[str, Any]:
        """Return the seconds that were used, which count after an interruption too."""
        return {"used": time.monotonic() - self._started}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        used = float(state.get("used", 0.0))
        self._started -= used
        self._stage_ends -= used
