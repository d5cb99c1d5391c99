"""The held-out loss: fixed pictures, noise, timesteps and captions, so that only the model changes it.

The training loss is of other timesteps at every step, and says nothing of progress: its noise is far larger than what
a stage gains (Voronov et al., https://arxiv.org/abs/2302.04841).
"""

from __future__ import annotations

import math
import random
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch

from lora_service.dataset.captions.templates import fill_template
from lora_service.dataset.training_images import TrainingImage
from lora_service.models.text_encoders import TokenIds
from lora_service.training.context import TrainingContext
from lora_service.training.data.latent_cache import CachedLatents
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.losses.denoising_loss import DenoisingLoss, NoisyLatents
from lora_service.training.optimization.loop import Snapshot, StageRun, TrainingCallback

HELD_OUT_LOSS = "held_out_loss"
"""Name among the measurements of a stage."""
PICTURES_PER_HELD_OUT, MOST_HELD_OUT = 5, 4
"""One picture of so many is held out, and at most so many."""
FEWEST_TO_EXCLUDE = 10
"""Sets of fewer pictures are trained on whole: each of them is needed more than the measure."""
_ITEMS = 8
"""Predictions of an evaluation, each at a timestep of its own."""
_MOST_EVALUATIONS, _FEWEST_EVALUATIONS = 20, 4
_COST = 0.03
"""Share of a stage's forward and backward passes that its evaluations may take; a training step costs three passes."""
_SMOOTHING = 0.5


@dataclass(frozen=True)
class HeldOutPictures:
    """The pictures of the held-out loss.

    Attributes:
        names: theirs in the dataset.
        are_excluded: True if nothing is trained on them.
    """

    names: tuple[str, ...]
    are_excluded: bool

    def split(self, images: Sequence[TrainingImage]) -> tuple[tuple[TrainingImage, ...], tuple[TrainingImage, ...]]:
        """Return those of ``images`` that are trained on, and those that the held-out loss is measured on."""
        trained = tuple(image for image in images if not (self.are_excluded and image.name in self.names))
        at_main_resolution = {image.name: image for image in reversed(images)}  # which is that of the first ones
        return trained, tuple(at_main_resolution[name] for name in self.names)

    @property
    def line(self) -> str:
        """A line for the person who waits."""
        if not self.are_excluded:
            return f"held-out loss: measured on {len(self.names)} of the pictures, with fixed noise; all are trained on"
        names = ", ".join(self.names)
        return f"held-out loss: measured on {names}, which {'are' if len(self.names) > 1 else 'is'} not trained on"


def choose_held_out(images: Sequence[TrainingImage], config: TrainConfig) -> HeldOutPictures:
    """Choose the pictures of the held-out loss: one in five, at most four; of fewer than five all.

    They are excluded from training only where the loss decides something, and there are pictures enough.
    """
    names = tuple(dict.fromkeys(image.name for image in images))  # each once, at whatever resolutions
    count = len(names)
    if count < PICTURES_PER_HELD_OUT:
        return HeldOutPictures(names[:MOST_HELD_OUT], are_excluded=False)
    held = min(MOST_HELD_OUT, count // PICTURES_PER_HELD_OUT)
    indices = sorted(random.Random(f"held out {config.seed}").sample(range(count), held))
    are_excluded = config.keep == "best" and count >= FEWEST_TO_EXCLUDE
    return HeldOutPictures(tuple(names[i] for i in indices), are_excluded)


def evaluation_steps(steps: int, pictures_per_step: int) -> list[int]:
    """Return the steps of a stage after which the held-out loss is measured, evenly spread, the last one among them."""
    affordable = int(_COST * 3 * steps * pictures_per_step / _ITEMS)
    count = min(steps, max(_FEWEST_EVALUATIONS, min(_MOST_EVALUATIONS, affordable)))
    return [round(steps * i / count) for i in range(1, count + 1)]


def smoothed(values: Sequence[float]) -> list[float]:
    """Return the exponential moving average of ``values``."""
    means: list[float] = []
    for value in values:
        means.append(_SMOOTHING * means[-1] + (1 - _SMOOTHING) * value if means else value)
    return means


@dataclass(frozen=True)
class _Batch:
    """The part of an evaluation with pictures of one size; the captions are tokenized."""

    noisy: NoisyLatents
    captions: TokenIds
    sizes: torch.Tensor | None
    masks: torch.Tensor | None

    def __len__(self) -> int:
        return len(self.noisy.timesteps)

    def part(self, rows: slice) -> _Batch:
        """Return some of it."""
        sizes, masks = (None if each is None else each[rows] for each in (self.sizes, self.masks))
        return _Batch(self.noisy[rows], self.captions[rows], sizes, masks)


class HeldOutLoss:
    """The mean loss of fixed noisy latents on the base as it is now.

    Item ``k`` of ``n`` is at timestep ``(k + ½) / n`` of the range and shows one picture after the other.

    Args:
        context: of the training; its tokenizers know the new tokens.
    """

    def __init__(self, context: TrainingContext) -> None:
        images = context.held_out_images
        self._context, self._denoising = context, DenoisingLoss(context.base, context.resolved)
        self._count = max(_ITEMS, len(images))
        self._largest_batch = self._count
        seed = context.resolved.config.seed or 0
        generator, rng = torch.Generator().manual_seed(seed), random.Random(f"held out {seed}")
        templates = [rng.choice(image.captions) for image in images]
        self._batches = [self._batch(bucket, templates, generator) for bucket in context.held_out_latents]

    def _batch(self, bucket: CachedLatents, templates: Sequence[str], generator: torch.Generator) -> _Batch:
        context, rows = self._context, {image: row for row, image in enumerate(bucket.images)}
        text = context.text
        items = [k for k in range(self._count) if k % len(templates) in rows]
        images = torch.tensor([rows[k % len(templates)] for k in items], device=bucket.mean.device)
        variants = torch.zeros_like(images)
        latents = bucket.mean[0, images]
        noise = torch.randn(latents.shape, generator=generator).to(latents.device)  # the same on every device
        shares = (torch.tensor(items) + 0.5) / self._count
        subjects = [context.resolved.subjects[image.subject].text for image in context.held_out_images]
        captions = [fill_template(templates[k % len(templates)], subjects[k % len(templates)]) for k in items]
        chunks = max(min(context.resolved.config.chunks, text.chunks_for(text.count(caption))) for caption in captions)
        return _Batch(
            noisy=self._denoising.at(latents, noise, shares),
            captions=text.read_by_companions(text.tokenize(captions, chunks).to(latents.device)),
            sizes=bucket.time_ids(variants, images),
            masks=bucket.masks(variants, images),
        )

    def __call__(self) -> float:
        """Measure it; what does not fit in memory at once is measured in smaller parts."""
        while True:
            try:
                return self._measure()
            except torch.OutOfMemoryError:
                if self._largest_batch == 1:
                    raise
                self._largest_batch = (self._largest_batch + 1) // 2

    def _measure(self) -> float:
        total = 0.0
        autocast = self._context.autocast
        for batch in self._batches:
            for start in range(0, len(batch), self._largest_batch):
                part = batch.part(slice(start, start + self._largest_batch))
                with torch.autocast(self._context.base.device.type, autocast) if autocast else nullcontext():
                    text = self._context.text.encode(part.captions)
                    loss = self._denoising(part.noisy, text, part.sizes, part.masks)
                total += loss.item() * len(part)
        return total / self._count


class HeldOutEvaluation(TrainingCallback):
    """Measures the held-out loss now and then, after the steps of :func:`evaluation_steps`."""

    def __init__(self, loss: HeldOutLoss) -> None:
        self._loss = loss
        self._steps: set[int] = set()

    def on_stage_start(self, stage: StageRun) -> None:
        """Plan the evaluations."""
        pictures_per_step = stage.spec.batch_size * stage.config.gradient_accumulation_steps
        self._steps = set(evaluation_steps(stage.spec.steps, pictures_per_step))

    def on_step_end(self, stage: StageRun) -> None:
        """Measure it if it is time to.

        Raises:
            DivergedError: it is not finite.
        """
        if stage.step not in self._steps:
            return
        with stage.evaluating():
            value = self._loss()
        if not math.isfinite(value):
            raise stage.diverged("The held-out loss")
        stage.measure(HELD_OUT_LOSS, value)


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
