"""Keeps the best checkpoint of a stage by the held-out loss."""

from __future__ import annotations

from collections.abc import Callable

from lora_service.training.callbacks.held_out import HELD_OUT_LOSS, smoothed
from lora_service.training.optimization.loop import Snapshot, StageRun, TrainingCallback


class BestCheckpoint(TrainingCallback):
    """Ends the last stage with the parameters of the step whose smoothed held-out loss was the lowest.

    Steps of a stage's first half do not count: a loss that is lowest there is one of a subject not learned yet.
    """

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log

    def on_step_end(self, stage: StageRun) -> None:
        """Keep a copy of the parameters if they are the best so far."""
        if stage.spec.later_steps or not stage.measured_now(HELD_OUT_LOSS) or 2 * stage.step < stage.spec.steps:
            return
        loss = smoothed([value for _, value in stage.measurements[HELD_OUT_LOSS]])[-1]
        if stage.best is None or loss < stage.best.loss:
            with stage.evaluating():
                stage.best = Snapshot(stage.step, loss, stage.parameter_copies())

    def on_stage_end(self, stage: StageRun) -> None:
        """Put the best parameters back."""
        best = stage.best
        if best is None:
            return
        stage.set_parameters(best.parameters)
        stage.kept_step = best.step
        last = smoothed([value for _, value in stage.measurements[HELD_OUT_LOSS]])[-1]
        self._log(
            f"{stage.spec.name}: step {best.step} of {stage.step} is kept, where the held-out loss is lowest: "
            f"{best.loss:.4f} smoothed, {last:.4f} at the end"
        )
