"""One base model in memory: its parts, and what suits it; what differs between the families is hidden here."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn
from transformers import CLIPTokenizer

from lora_service.errors import InputError
from lora_service.models.defaults import ModelDefaults
from lora_service.models.text_encoders import PromptEmbeds, TextEncoders


@dataclass
class DiffusionBase:
    """The parts of a Stable Diffusion, all in eval mode and without gradients.

    ``name`` is what was asked for, for messages; ``scheduler_config`` is the
    base's own, from which every sampler and the training's noise schedule are made.
    ``dtype`` is the UNet's and the text encoders'; the VAE may be held in fp32
    beside them (:func:`lora_service.models.loading.vae_dtype`).
    """

    name: str
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text: TextEncoders
    scheduler_config: dict[str, Any]
    defaults: ModelDefaults
    device: torch.device
    dtype: torch.dtype

    @property
    def components(self) -> dict[str, nn.Module]:
        """What a LoRA can change, by the names the LoRA files use."""
        return {"unet": self.unet, **self.text.encoders}

    @property
    def tokenizers(self) -> Mapping[str, CLIPTokenizer]:
        """The tokenizer of each text encoder."""
        return self.text.tokenizers

    @property
    def is_xl(self) -> bool:
        """Whether the UNet is told the pooled text and the pictures' sizes too, as Stable Diffusion XL's is."""
        return self.unet.config.addition_embed_type == "text_time"

    @cached_property
    def noise_schedule(self) -> DDPMScheduler:
        """The forward process that the base was trained on."""
        return DDPMScheduler.from_config(self.scheduler_config)

    @property
    def prediction_type(self) -> str:
        """``epsilon``, ``v_prediction`` or ``sample`` (the latents)."""
        return str(self.noise_schedule.config.prediction_type)

    def denoise(self, noisy: Tensor, timesteps: Tensor, text: PromptEmbeds, sizes: Tensor | None = None) -> Tensor:
        """What the UNet says of ``noisy`` ``(b, c, h, w)`` at ``timesteps`` ``(b,)``.

        Args:
            sizes: where :attr:`is_xl`, original height and width, the crop's top and left, and target height and
                width of each picture in pixels ``(b, 6)`` (https://arxiv.org/abs/2307.01952, section 2.2).
        """
        added = {"text_embeds": text.pooled, "time_ids": sizes} if self.is_xl else None
        return self.unet(noisy.to(self.unet.dtype), timesteps, text.states, added_cond_kwargs=added).sample

    def posterior(self, pixels: Tensor) -> DiagonalGaussianDistribution:
        """The VAE's posterior of pictures ``(b, 3, h, w)`` in [-1, 1]; not yet :meth:`scaled`."""
        return self.vae.encode(pixels.to(self.device, self.vae.dtype)).latent_dist

    def scaled(self, latents: Tensor) -> Tensor:
        """What comes out of the VAE as the UNet knows it: of about unit variance."""
        return (latents - self._shift) * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Pictures ``(b, 3, h, w)`` around [-1, 1] of the UNet's latents ``(b, c, h, w)``."""
        unscaled = latents.to(self.vae.dtype) / self.vae.config.scaling_factor + self._shift
        return self.vae.decode(unscaled).sample

    @property
    def _shift(self) -> float:
        return self.vae.config.shift_factor or 0.0

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
            raise InputError(field, pixels, f"a multiple of {self.size_step} for {self.defaults.title}, like {near}")
