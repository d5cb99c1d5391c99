"""Denoising: from the seeds of a batch of images to their latents, with callbacks between the steps."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lora_service.lora.patcher import Patcher
from lora_service.models.families.family import Family


class Picture(NamedTuple):
    """An image that is to be drawn.

    Attributes:
        seed: of its noise.
        lora: the number, from 0 on, of the LoRA that it has for itself; 0 where all images have the same.
    """

    seed: int
    lora: int = 0


@dataclass
class DenoisingBatch:
    """Images that are denoised together.

    Attributes:
        pictures: the images.
        generators: of the images' noise; each image depends on its own alone.
        pipeline: diffusers' pipeline, with its scheduler.
        step: the number of steps that are taken.
        steps: the number of all steps, known from the first one's end on. A scheduler of second order takes two for
            each but the last.
    """

    pictures: Sequence[Picture]
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
    """The form in which a family's pipelines hold the latents ``(b, c, h, w)`` of pictures of one size between steps.

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
        arguments: the pipeline's arguments that all batches share.
        prompt_arguments: returns those of the prompts of images that have the LoRAs of these numbers.
        batch_arguments: returns those that come from a batch's generators, such as the initial latents.
        callbacks: called in this order; ended in the opposite one.
        lora_bytes: what the LoRA of an image takes beside the weights, where it has one for itself.
    """

    layout: LatentLayout
    pipeline: Any
    arguments: Mapping[str, Any]
    prompt_arguments: Callable[[Sequence[int]], Mapping[str, Any]]
    batch_arguments: Callable[[DenoisingBatch], Mapping[str, Any]] = lambda batch: {}
    callbacks: Sequence[DenoisingCallback] = field(default=())
    lora_bytes: float = 0.0


def denoise(plan: DenoisingPlan, pictures: Sequence[Picture]) -> Tensor:
    """Return the latents ``(b, c, h, w)`` of these images, denoised together."""
    # On the CPU, for the same noise on every device.
    generators = [torch.Generator("cpu").manual_seed(picture.seed) for picture in pictures]
    batch = DenoisingBatch(pictures, generators, plan.pipeline)

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
            **plan.arguments,
            **_prompt_arguments(plan, pictures),
            **plan.batch_arguments(batch),
            generator=generators,
            output_type="latent",
            callback_on_step_end=on_step_end,
        )
        return last[0]  # not the pipeline's result, which some pipelines give as the VAE takes it
    finally:
        for callback in reversed(started):
            callback.on_batch_end(batch)


class LoraSteps(DenoisingCallback):
    """Has each LoRA act in its share of the steps, which the patcher knows by the LoRAs' scales.

    Changing the UNet takes as long as merging a LoRA, once for each LoRA that begins or ends between two steps.
    """

    def __init__(self, patcher: Patcher) -> None:
        self._patcher = patcher

    def on_batch_start(self, batch: DenoisingBatch) -> None:
        self._patcher.move_to(0.0)

    def on_step_end(self, batch: DenoisingBatch, latents: Tensor) -> Tensor:
        if batch.step < batch.steps:
            self._patcher.move_to(batch.step / batch.steps)
        return latents


def _prompt_arguments(plan: DenoisingPlan, pictures: Sequence[Picture]) -> Mapping[str, Any]:
    """Return the pipeline's arguments of the prompts: of one, or of one for each image."""
    loras = [picture.lora for picture in pictures]
    if len(set(loras)) > 1:
        return plan.prompt_arguments(loras)
    arguments = plan.prompt_arguments(loras[:1])
    if plan.layout.family.repeats_prompts:
        return {**arguments, "num_images_per_prompt": len(pictures)}
    return {
        name: value.repeat_interleave(len(pictures), dim=0) if isinstance(value, Tensor) else value
        for name, value in arguments.items()
    }
