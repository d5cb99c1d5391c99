"""The progress and the results of a training, as metrics and lines of its job."""

from __future__ import annotations

from typing import TYPE_CHECKING

from lora_service.services.model_service import Log, RecordMetric

if TYPE_CHECKING:  # they import torch
    from lora_service.training.callbacks.training_progress import OnProgress, TrainingProgress
    from lora_service.training.trainer import TrainResult


def recording(record_metric: RecordMetric, on_progress: OnProgress) -> OnProgress:
    """Return a callback that records the progress as metrics, and calls ``on_progress``."""

    def record(progress: TrainingProgress) -> None:
        for name, value in progress.metrics().items():
            record_metric(name, value)
        on_progress(progress)

    return record


def report(result: TrainResult, record_metric: RecordMetric, log: Log) -> None:
    """Record the results of a training as metrics, and say how to draw with its file."""
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
        if stage.diverged_at:
            metrics["diverged_at"] = stage.diverged_at
    for name, value in metrics.items():
        record_metric(name, value)
    size, trigger = result.path.stat().st_size, result.resolved.trigger
    log(
        f"done in {sum(result.seconds.values()):.0f} s: a LoRA of {size / 1e6:.1f} MB. "
        f"Write {result.prompt!r} here" + (f", or {trigger!r} in any tool." if trigger else ".")
    )
    for number, subject in enumerate(result.resolved.subjects[1:], start=2):
        log(f"<1:{number}> is subject {number}" + (f", {subject.trigger!r} in any tool." if subject.trigger else "."))
