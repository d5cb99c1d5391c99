"""Denoising: from the seeds of a batch of images to their latents, with callbacks between the steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from lora_service.models.families.family import Family


@dataclass
class DenoisingBatch:
    """Images that are denoised together.

    Attributes:
        seeds: of the images.
        generators: of the images' noise; each image depends on its own alone.
        pipeline: diffusers' pipeline, with its scheduler.
        step: the number of steps that are taken.
        steps: the number of all steps, known from the first one's end on. A scheduler of second order takes two for
            each but the last.
    """

    seeds: Sequence[int]
    generators: Sequence[torch.Generator]
    pipeline: Any
    step: int = 0
    steps: int = 0

    @property
    def next_timestep(self) -> Tensor | None:
        """The timestep of the next step, whose noise the latents have now; None after the last."""
        timesteps = self.pipeline.scheduler.timesteps[-self.steps :]
        return timesteps[self.step] if self.step < self.steps else None


class DenoisingCallback:
    """Is called before, between and after the steps of each batch; does nothing."""

    def on_batch_start(self, batch: DenoisingBatch) -> None:
        """Prepare for the first step."""

    def on_step_end(self, batch: DenoisingBatch, latents: Tensor) -> Tensor:
        """Return the latents ``(b, c, h, w)`` that the next step, or the decoder, gets in place of ``latents``."""
        return latents

    def on_batch_end(self, batch: DenoisingBatch) -> None:
        """Put back what was changed; called also when the batch failed or was cancelled."""


@dataclass(frozen=True)
class LatentLayout:
    """How a family's pipelines hold the latents ``(b, c, h, w)`` of pictures of one size between steps.

    Attributes:
        height, width: of the latents.
    """

    family: Family
    height: int
    width: int

    def pack(self, latents: Tensor) -> Tensor:
        return self.family.pack(latents)

    def unpack(self, packed: Tensor) -> Tensor:
        return self.family.unpack(packed, self.height, self.width)


@dataclass(frozen=True)
class DenoisingPlan:
    """All that a request has settled before any noise is drawn.

    Attributes:
        layout: of the pictures' latents.
        pipeline: of :func:`lora_service.generation.pipelines.make_pipeline`, with its scheduler.
        arguments: the pipeline's arguments that all batches share, prompt embeds among them, of one image.
        batch_arguments: returns those that come from a batch's generators, such as the initial latents.
        callbacks: called in this order; ended in the opposite one.
    """

    layout: LatentLayout
    pipeline: Any
    arguments: Mapping[str, Any]
    batch_arguments: Callable[[DenoisingBatch], Mapping[str, Any]] = lambda batch: {}
    callbacks: Sequence[DenoisingCallback] = field(default=())


def denoise(plan: DenoisingPlan, seeds: Sequence[int]) -> Tensor:
    """Return the latents ``(b, c, h, w)`` of the images with these seeds, denoised together."""
    # On the CPU, for the same noise on every device.
    generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
    batch = DenoisingBatch(seeds, generators, plan.pipeline)

    def on_step_end(pipeline: Any, step: int, timestep: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        batch.step, batch.steps = step + 1, pipeline.num_timesteps
        latents = plan.layout.unpack(tensors["latents"])
        for callback in plan.callbacks:
            latents = callback.on_step_end(batch, latents)
        last.append(latents)
        del last[:-1]
        tensors["latents"] = plan.layout.pack(latents)
        return tensors

    last: list[Tensor] = []
    started: list[DenoisingCallback] = []
    try:
        for callback in plan.callbacks:
            started.append(callback)
            callback.on_batch_start(batch)
        plan.pipeline(
            **_prompt_arguments(plan, len(seeds)),
            **plan.batch_arguments(batch),
            generator=generators,
            output_type="latent",
            callback_on_step_end=on_step_end,
        )
        return last[0]  # not the pipeline's result, which some pipelines give as the VAE takes it
    finally:
        for callback in reversed(started):
            callback.on_batch_end(batch)


def _prompt_arguments(plan: DenoisingPlan, images: int) -> dict[str, Any]:
    """Return the pipeline's arguments for ``images`` images of one prompt."""
    if plan.layout.family.repeats_prompts:
        return {**plan.arguments, "num_images_per_prompt": images}
    return {
        name: value.repeat_interleave(images, dim=0) if "prompt" in name and isinstance(value, Tensor) else value
        for name, value in plan.arguments.items()
    }
