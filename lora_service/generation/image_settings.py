"""The settings that images are generated with, as their files' metadata tells them."""

from __future__ import annotations

from typing import Any

from lora_service.generation.initial_image import InputImages
from lora_service.generation.request import GenerateRequest
from lora_service.generation.scheduler_classes import has_zero_terminal_snr
from lora_service.generation.sizes import Size
from lora_service.models.diffusion_base import DiffusionBase

ZERO_TERMINAL_RESCALE = 0.7
"""Guidance rescale of bases whose noise ends without signal, as https://arxiv.org/abs/2305.08891 has it."""


def image_settings(request: GenerateRequest, base: DiffusionBase, size: Size, images: InputImages) -> dict[str, Any]:
    """Return the settings that all images of a request share, without those of its prompts and LoRAs."""
    settings = {
        "num_inference_steps": request.steps(base.defaults),
        "guidance_scale": request.guidance(base.defaults),
        "width": size[0],
        "height": size[1],
        "scheduler": request.scheduler,
        "base": base.defaults.title,
    }
    if images.image is not None:
        settings["prompt_strength"] = request.prompt_strength
    if images.mask is not None:
        settings["keep_unmasked"] = request.keep_unmasked
        if request.keep_unmasked:
            settings["mask_feather"] = mask_feather(request, base)
    if request.schedule != "default":
        settings["schedule"] = request.schedule
    if rescale := guidance_rescale(request, base):
        settings["guidance_rescale"] = rescale
    if request.cache_interval > 1:
        settings["cache_interval"] = request.cache_interval
    if images.adapter_condition_image is not None:
        settings |= {"adapter_type": request.adapter_type, "adapter_scale": request.adapter_scale}
    return settings


def guidance_rescale(request: GenerateRequest, base: DiffusionBase) -> float:
    """Return the guidance rescale, on ``base``."""
    if request.guidance_rescale is not None:
        return request.guidance_rescale
    return ZERO_TERMINAL_RESCALE if has_zero_terminal_snr(base.scheduler_config) else 0.0


def mask_feather(request: GenerateRequest, base: DiffusionBase) -> int:
    """Return the width of the mask's soft edge in pixels, on ``base``."""
    return base.vae_scale_factor if request.mask_feather is None else request.mask_feather
