"""Criteria by which a stage stops early, on the held-out losses that were measured so far."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from statistics import pvariance

from lora_service.training.callbacks.held_out import HELD_OUT_LOSS, smoothed
from lora_service.training.optimization.loop import StageRun, TrainingCallback

WINDOW, VARIANCE_RATIO = 5, 0.15
"""DVAR's window, in evaluations, and threshold; its authors' code has 0.15 and a third of a run."""
PATIENCE, MIN_IMPROVEMENT = 4, 0.005
"""Evaluations without an improvement by this share of the smoothed loss after which a stage stops."""


def has_settled(losses: Sequence[float], window: int = WINDOW, ratio: float = VARIANCE_RATIO) -> bool:
    """Return True if the last ``window`` losses vary little beside all of them.

    That is DVAR: the variance over the window is below ``ratio`` times that of the whole
    (Voronov et al., https://arxiv.org/abs/2302.04841, section 3.3).
    """
    if len(losses) <= window:
        return False
    return pvariance(losses[-window:]) < ratio * pvariance(losses)


def no_longer_improves(
    losses: Sequence[float], patience: int = PATIENCE, min_improvement: float = MIN_IMPROVEMENT
) -> bool:
    """Return True if the smoothed losses of the last ``patience`` evaluations are none below the best before them.

    Below means by at least the share ``min_improvement``.
    """
    means = smoothed(losses)
    if len(means) <= patience:
        return False
    return min(means[-patience:]) > (1 - min_improvement) * min(means[:-patience])


class EarlyStopping(TrainingCallback):
    """Stops a stage whose held-out loss no longer improves."""

    def __init__(self, log: Callable[[str], None]) -> None:
        self._log = log

    def on_step_end(self, stage: StageRun) -> None:
        """Stop the stage if it is time to."""
        if not stage.measured_now(HELD_OUT_LOSS) or stage.is_done:
            return
        if no_longer_improves([value for _, value in stage.measurements[HELD_OUT_LOSS]]):
            stage.stop("the held-out loss no longer improves")
            self._log(f"{stage.spec.name}: stopped at step {stage.step} of {stage.spec.steps}, as {stage.stop_reason}")
