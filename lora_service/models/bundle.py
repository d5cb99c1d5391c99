"""One base model in memory: its parts, and what suits it."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextModel, CLIPTokenizer

from lora_service.errors import InputError
from lora_service.models.recipe import BaseRecipe


@dataclass
class BaseModel:
    """The parts of a Stable Diffusion, all in eval mode and without gradients.

    ``name`` is what was asked for, for messages; ``scheduler_config`` is the
    base's own, from which every sampler and the training's noise schedule are made.
    """

    name: str
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text_encoder: CLIPTextModel
    tokenizer: CLIPTokenizer
    scheduler_config: dict[str, Any]
    recipe: BaseRecipe
    device: torch.device
    dtype: torch.dtype

    @property
    def components(self) -> dict[str, nn.Module]:
        """What a LoRA can change, by the names the LoRA files use."""
        return {"unet": self.unet, "text_encoder": self.text_encoder}

    @property
    def tokenizers(self) -> dict[str, CLIPTokenizer]:
        """The tokenizer of each text encoder."""
        return {"text_encoder": self.tokenizer}

    @cached_property
    def noise_schedule(self) -> DDPMScheduler:
        """The forward process that the base was trained on."""
        return DDPMScheduler.from_config(self.scheduler_config)

    @property
    def prediction_type(self) -> str:
        """``epsilon`` or ``v_prediction``."""
        return str(self.noise_schedule.config.prediction_type)

    @property
    def pixels_per_latent(self) -> int:
        """Side of the square of pixels that one latent stands for."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def size_step(self) -> int:
        """Widths and heights are multiples of this: the VAE's factor times the UNet's."""
        return int(self.pixels_per_latent * 2 ** (len(self.unet.config.block_out_channels) - 1))

    def nearest_side(self, pixels: float) -> int:
        """The side that pictures can have nearest to ``pixels``."""
        return max(self.size_step, round(pixels / self.size_step) * self.size_step)

    def check_side(self, field: str, pixels: int) -> None:
        """Raises ``InputError`` on ``field`` unless pictures can have a side of ``pixels``."""
        if pixels % self.size_step:
            near = self.nearest_side(pixels)
            raise InputError(field, pixels, f"a multiple of {self.size_step} for {self.recipe.title}, like {near}")
