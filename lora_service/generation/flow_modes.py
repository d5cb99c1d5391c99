"""The start of a request on a base of flow matching: noise, or an initial image, perhaps with a mask."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from lora_service.generation.denoising import DenoisingBatch, DenoisingCallback
from lora_service.generation.initial_image import InitialImage
from lora_service.generation.modes import Mode, cells, pixels
from lora_service.generation.sizes import Size
from lora_service.models.diffusion_base import DiffusionBase


def choose_flow_mode(
    base: DiffusionBase, initial: InitialImage | None, strength: float, steps: int, size: Size
) -> Mode:
    """Return what ``base`` does with an initial image; arguments as of ``choose_mode``.

    The families' text2img pipelines take latents and noise levels to start from, so one way serves all of them.
    """
    sides = {"width": size[0], "height": size[1]}
    if initial is None or (strength == 1 and initial.mask is None):
        return Mode("text2img", False, sides)
    start = InitialLatents(base, initial, noise_levels(strength, steps), steps)
    return Mode("text2img", strength < 1, sides, start.arguments, [start])


def noise_levels(strength: float, steps: int) -> list[float]:
    """Return the noise levels σ before they are shifted, of the last ``strength`` of ``steps`` steps, as diffusers."""
    levels: list[float] = np.linspace(1.0, 1 / steps, steps)[int(steps - steps * strength) :].tolist()
    return levels


class InitialLatents(DenoisingCallback):
    """Starts a batch from the noisy latents of an image; those around a mask are put back after each step.

    Args:
        base: the base model.
        initial: the initial image.
        levels: the noise levels of the steps that are taken, before the scheduler shifts them.
        steps: the number of all steps.
    """

    def __init__(self, base: DiffusionBase, initial: InitialImage, levels: list[float], steps: int) -> None:
        self._base, self._levels, self._steps = base, levels, steps
        self._posterior = base.posterior(pixels(initial.image))
        self._cells = cells(base, initial) if initial.mask is not None else None
        self._latents = self._noise = torch.empty(0)

    def on_batch_start(self, batch: DenoisingBatch) -> None:
        samples = [self._base.scale_latents(self._posterior.sample(each)) for each in batch.generators]
        self._latents = torch.cat(samples)
        generators = list(batch.generators)
        self._noise = randn_tensor(self._latents.shape, generators, self._base.device, self._latents.dtype)

    def arguments(self, batch: DenoisingBatch) -> Mapping[str, Any]:
        """Return the pipeline's arguments, the noisy latents and their noise levels."""
        family, (height, width) = self._base.family, self._latents.shape[-2:]
        scheduler = batch.pipeline.scheduler
        mu = family.log_shift(self._base.shift_config, family.positions(height, width), self._steps)
        scheduler.set_timesteps(sigmas=self._levels, mu=mu, device=self._base.device)
        noisy = self._noisy(scheduler.sigmas[0])
        return {"latents": family.pack(noisy) if family.takes_packed_latents else noisy, "sigmas": self._levels}

    def on_step_end(self, batch: DenoisingBatch, latents: Tensor) -> Tensor:
        if self._cells is None:
            return latents
        around = self._noisy(batch.pipeline.scheduler.sigmas[batch.step]).to(latents)
        repainted = self._cells.to(latents)
        return (1 - repainted) * around + repainted * latents

    def on_batch_end(self, batch: DenoisingBatch) -> None:
        self._latents = self._noise = torch.empty(0)

    def _noisy(self, sigma: Tensor) -> Tensor:
        sigma = sigma.to(self._latents)
        return (1 - sigma) * self._latents + sigma * self._noise
