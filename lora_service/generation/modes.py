"""The start of a request: noise (text2img), a noisy picture (img2img), or a picture with a hole (inpainting)."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.image_processor import VaeImageProcessor
from diffusers.utils.torch_utils import randn_tensor
from PIL import Image
from torch import Tensor

from lora_service.generation.denoising import DenoisingBatch, DenoisingCallback
from lora_service.generation.initial_image import InitialImage
from lora_service.generation.sizes import Size
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.families.family import PipelineTask

_IMAGE_PROCESSOR = VaeImageProcessor()
_PIPELINE_CHANNELS = 4
"""Latent channels that diffusers' img2img and inpainting pipelines recognise latents by."""

BatchArguments = Callable[[DenoisingBatch], Mapping[str, Any]]


@dataclass(frozen=True)
class Mode:
    """The pipeline for a request, and what it gets beside the prompts.

    Attributes:
        task: of the pipeline.
        starts_in_middle: whether the first timesteps are left out.
        arguments: of the pipeline, for all batches.
        batch_arguments: those that come from a batch's generators.
        callbacks: what is done between the steps.
    """

    task: PipelineTask
    starts_in_middle: bool
    arguments: Mapping[str, Any]
    batch_arguments: BatchArguments = lambda batch: {}
    callbacks: Sequence[DenoisingCallback] = ()


def choose_mode(base: DiffusionBase, initial: InitialImage | None, strength: float, size: Size) -> Mode:
    """Return what ``base`` does with an initial image.

    A mask is for diffusers' inpainting pipelines where these know the base's latents, else the latents around it are
    blended in after each step. An inpainting UNet, of 9 channels, is given an empty picture to draw anew where there
    is none.

    Args:
        base: the base model.
        initial: the initial image; None: there is none.
        strength: the share of the steps that is taken, from 0 to 1.
        size: width and height of the result.
    """
    sides = {"width": size[0], "height": size[1]}
    if base.is_inpainting:
        initial = initial or InitialImage(Image.new("RGB", size, "gray"))
    elif initial is None or (strength == 1 and initial.mask is None):
        return Mode("text2img", False, sides)
    starts_in_middle = strength < 1
    if base.vae.config.latent_channels == _PIPELINE_CHANNELS and (initial.mask is not None or base.is_inpainting):
        arguments = {**sides, "strength": strength, "mask_image": _mask_image(base, initial)}
        return Mode("inpaint", starts_in_middle, arguments, _inpainting_latents(base, initial))
    callbacks = []
    if initial.mask is not None:
        callbacks.append(LatentBlending(base, initial, noise_first=not starts_in_middle))
    if not starts_in_middle:
        return Mode("text2img", False, sides, callbacks=callbacks)
    return Mode("img2img", True, {"strength": strength}, _initial_latents(base, initial.image), callbacks)


def pixels(image: Image.Image) -> Tensor:
    """Return ``(1, 3, h, w)`` in [-1, 1]."""
    pixels: Tensor = _IMAGE_PROCESSOR.preprocess(image)
    return pixels


def cells(base: DiffusionBase, initial: InitialImage) -> Tensor:
    """Return 1 for latents that are drawn anew, ``(1, 1, h, w)``."""
    return torch.from_numpy(initial.repainted_cells(base.vae_scale_factor))[None, None].to(base.device, torch.float32)


def _mask_image(base: DiffusionBase, initial: InitialImage) -> Image.Image:
    """Return a mask of whole latents: the pipelines look at one pixel of each, and would miss thin lines."""
    cells = initial.repainted_cells(base.vae_scale_factor) * np.uint8(255)
    return Image.fromarray(cells).resize(initial.image.size, Image.Resampling.NEAREST)


def _initial_latents(base: DiffusionBase, image: Image.Image) -> BatchArguments:
    """Return the pipelines' argument ``image`` as a function of the batch."""
    if base.vae.config.latent_channels != _PIPELINE_CHANNELS:
        return lambda batch: {"image": image}  # the pipeline takes them for a picture and encodes it for each generator
    posterior = base.posterior(pixels(image))
    return lambda batch: {"image": torch.cat([base.scale_latents(posterior.sample(g)) for g in batch.generators])}


def _inpainting_latents(base: DiffusionBase, initial: InitialImage) -> BatchArguments:
    """Return the inpainting pipelines' arguments as a function of the batch: the picture, with and without its hole."""
    image_latents = _initial_latents(base, initial.image)
    hole = torch.from_numpy(np.array(_mask_image(base, initial)) > 0)
    posterior = base.posterior(pixels(initial.image).masked_fill(hole, 0)) if base.is_inpainting else None

    def batch_arguments(batch: DenoisingBatch) -> Mapping[str, Any]:
        image = masked = image_latents(batch)["image"]
        if posterior is not None:
            masked = torch.cat([base.scale_latents(posterior.sample(each)) for each in batch.generators])
        return {"image": image, "masked_image_latents": masked}  # which a UNet of 4 channels does not see

    return batch_arguments


class LatentBlending(DenoisingCallback):
    """Puts the initial image's latents back around the mask after each step, with the noise of the next one.

    As the inpainting pipelines do for a UNet of 4 channels (https://arxiv.org/abs/2206.02779), for any pipeline.

    Args:
        base: the base model.
        initial: the initial image, with a mask.
        noise_first: whether the first that the pipeline draws from a batch's generators is the noise, as in text2img;
            else it is the initial image's latents, and then the noise.
    """

    def __init__(self, base: DiffusionBase, initial: InitialImage, *, noise_first: bool) -> None:
        self._base, self._noise_first = base, noise_first
        self._posterior = base.posterior(pixels(initial.image))
        self._cells = cells(base, initial)
        self._latents: Tensor | None = None
        self._noise: Tensor | None = None

    def on_batch_start(self, batch: DenoisingBatch) -> None:
        # Copies, as the pipeline is to draw the same.
        generators = [torch.Generator("cpu").set_state(each.get_state()) for each in batch.generators]
        shape = (len(generators), *self._posterior.mean.shape[1:])
        if self._noise_first:
            self._noise = randn_tensor(shape, generators, self._base.device, self._base.dtype)
        self._latents = torch.cat([self._base.scale_latents(self._posterior.sample(each)) for each in generators])
        if not self._noise_first:
            self._noise = randn_tensor(shape, generators, self._base.device, self._base.dtype)

    def on_step_end(self, batch: DenoisingBatch, latents: Tensor) -> Tensor:
        assert self._latents is not None
        around = self._latents.to(latents)
        if batch.next_timestep is not None:
            around = batch.pipeline.scheduler.add_noise(around, self._noise, batch.next_timestep[None])
        cells = self._cells.to(latents.dtype)
        return (1 - cells) * around + cells * latents

    def on_batch_end(self, batch: DenoisingBatch) -> None:
        self._latents = self._noise = None
