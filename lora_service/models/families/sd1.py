"""Stable Diffusion 1.x: https://arxiv.org/abs/2112.10752."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

from lora_service.models.defaults import ModelDefaults, RegisteredBase
from lora_service.models.families.family import Bases, Config, Pipelines
from lora_service.models.families.sd2 import StableDiffusion2
from lora_service.models.families.stable_diffusion import StableDiffusion

OPEN_RAIL = "CreativeML Open RAIL-M"

SD15 = ModelDefaults()


class StableDiffusion1(StableDiffusion):
    """UNets of any width but that of 2.x, such as the embedded base's."""

    name = "sd1"
    title = "Stable Diffusion 1.x"
    pipelines: ClassVar[Pipelines] = StableDiffusion2.pipelines
    bases: ClassVar[Bases] = {"sd15": RegisteredBase("stable-diffusion-v1-5/stable-diffusion-v1-5", SD15, OPEN_RAIL)}
    control_width = text_width = 768
    pad_tokens: ClassVar[Mapping[str, str | None]] = {"text_encoder": None}

    def matches(self, backbone: Config) -> bool:
        return backbone.get("cross_attention_dim", StableDiffusion2.text_width) != StableDiffusion2.text_width

    def defaults(self, scheduler: Config, pipeline: Config) -> ModelDefaults:
        return SD15


SD1 = StableDiffusion1()
