"""Stable Diffusion XL: https://arxiv.org/abs/2307.01952."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, ClassVar

from lora_service.models.defaults import ModelDefaults, RegisteredBase
from lora_service.models.families.family import Bases, Config, Pipelines
from lora_service.models.families.sd2 import OPEN_RAIL_PLUS, OPENCLIP_PAD
from lora_service.models.families.stable_diffusion import StableDiffusion

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    from lora_service.models.text_encoders import PromptEmbeds

SDXL_BASE = ModelDefaults(
    title="Stable Diffusion XL",
    architecture="stable-diffusion-xl-v1-base",
    version="sdxl_base_v1-0",
    resolution=1024,
    learning_rate_ti=3e-4,
    learning_rate_unet=1e-4,
    token_norm=None,
    token_std=None,
    guidance_scale=5.0,
)
"""The rates are those of the hosted SDXL trainer (replicate/cog-sdxl), the guidance is diffusers' own."""


class StableDiffusionXL(StableDiffusion):
    """UNets that take the pooled text and the pictures' sizes too."""

    name = "sdxl"
    title = "Stable Diffusion XL"
    pipelines: ClassVar[Pipelines] = {
        "text2img": "StableDiffusionXLPipeline",
        "img2img": "StableDiffusionXLImg2ImgPipeline",
        "inpaint": "StableDiffusionXLInpaintPipeline",
    }
    bases: ClassVar[Bases] = {
        "sdxl": RegisteredBase("stabilityai/stable-diffusion-xl-base-1.0", SDXL_BASE, OPEN_RAIL_PLUS)
    }
    own_clip_skip = 2
    control_width = text_width = 2048
    t2i_adapter_end = "_adapter_xl"
    pad_tokens: ClassVar[Mapping[str, str | None]] = {"text_encoder": None, "text_encoder_2": OPENCLIP_PAD}

    def matches(self, backbone: Config) -> bool:
        return backbone.get("addition_embed_type") == "text_time"

    def defaults(self, scheduler: Config, pipeline: Config) -> ModelDefaults:
        return SDXL_BASE

    def predict(
        self, backbone: Any, noisy: Tensor, timesteps: Tensor, text: PromptEmbeds, sizes: Tensor | None
    ) -> Tensor:
        added = {"text_embeds": text.pooled, "time_ids": sizes}
        prediction: Tensor = backbone(noisy.to(backbone.dtype), timesteps, text.states, added_cond_kwargs=added).sample
        return prediction

    @property
    def takes_sizes(self) -> bool:
        return True

    def pipeline_options(self, pipeline: Config) -> dict[str, Any]:
        none = {"text_encoder": None, "tokenizer": None, "text_encoder_2": None, "tokenizer_2": None}
        return {**none, "add_watermarker": False}

    def loading_options(self) -> dict[str, Any]:
        return {}

    def vae_dtype(self, config: Config, dtype: torch.dtype) -> torch.dtype:
        """Return fp32 for VAEs that overflow in half precision; fixed ones have ``force_upcast: false``.

        Those of 1.x and 2.x never need fp32, whatever their config says.
        """
        import torch

        return torch.float32 if config["force_upcast"] else dtype


SDXL = StableDiffusionXL()
