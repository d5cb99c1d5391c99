"""A base model in memory, with one interface for Stable Diffusion 1.x, 2.x and XL."""

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
from lora_service.models.compiled import Backend, CompiledModule
from lora_service.models.registry import ModelDefaults
from lora_service.models.text_encoders import PromptEmbeds, TextEncoders


@dataclass
class DiffusionBase:
    """The models of a Stable Diffusion, all in eval mode and without gradients.

    Attributes:
        name: the value of ``BASE_MODEL``, for messages.
        scheduler_config: the base's own; every sampling scheduler and the noise schedule of the training follow it.
        defaults: the defaults of inputs that depend on the base.
        dtype: that of the UNet and the text encoders; the VAE may have fp32
            (:func:`lora_service.models.loading.vae_dtype`).
        compiled: the UNet compiled, for drawing; None: it is not.
        compiled_decoder: the VAE's decoder compiled; None: it is not.
    """

    name: str
    unet: UNet2DConditionModel
    vae: AutoencoderKL
    text: TextEncoders
    scheduler_config: dict[str, Any]
    defaults: ModelDefaults
    device: torch.device
    dtype: torch.dtype
    compiled: CompiledModule | None = None
    compiled_decoder: CompiledModule | None = None

    @property
    def components(self) -> dict[str, nn.Module]:
        """The models that a LoRA can change, by their names in LoRA files."""
        return {"unet": self.unet, **self.text.encoders}

    @property
    def tokenizers(self) -> Mapping[str, CLIPTokenizer]:
        """The tokenizer of each text encoder."""
        return self.text.tokenizers

    def compile(self, *, backend: Backend = "inductor", cuda_graphs: bool = False) -> None:
        """Have :attr:`compiled` and :attr:`compiled_decoder` used for drawing; they are compiled at the first calls.

        Args:
            backend: of ``torch.compile``.
            cuda_graphs: replay recorded kernels for the first shapes, which saves launching them one by one.
        """
        self.compiled = CompiledModule(self.unet, backend=backend, cuda_graphs=cuda_graphs)
        self.compiled_decoder = CompiledModule(self.vae, "decode", backend=backend, cuda_graphs=cuda_graphs)

    def to_device(self) -> None:
        """Move what a broken-off training may have left in the host's memory back to the device; mostly nothing."""
        for model in (self.vae, *self.text.encoders.values()):
            nn.Module.to(model, self.device)

    @property
    def is_xl(self) -> bool:
        """True for Stable Diffusion XL, whose UNet takes the pooled text and the pictures' sizes too."""
        return self.unet.config.addition_embed_type == "text_time"

    @property
    def is_inpainting(self) -> bool:
        """True for a UNet that takes a mask and the latents of a masked picture behind those it denoises."""
        return bool(self.unet.config.in_channels != self.vae.config.latent_channels)

    @cached_property
    def noise_schedule(self) -> DDPMScheduler:
        """The forward process that the base was trained on."""
        return DDPMScheduler.from_config(self.scheduler_config)

    @property
    def prediction_type(self) -> str:
        """``epsilon``, ``v_prediction`` or ``sample`` (the latents)."""
        return str(self.noise_schedule.config.prediction_type)

    def denoise(self, noisy: Tensor, timesteps: Tensor, text: PromptEmbeds, sizes: Tensor | None = None) -> Tensor:
        """Run the UNet on noisy latents.

        Args:
            noisy: latents ``(b, c, h, w)``.
            timesteps: ``(b,)``.
            text: the prompt embeds of the batch.
            sizes: XL's micro-conditioning ``(b, 6)`` in pixels: each picture's original height and width, the crop's
                top and left, and the target height and width (https://arxiv.org/abs/2307.01952, section 2.2).

        Returns:
            The prediction ``(b, c, h, w)``, of :attr:`prediction_type`.
        """
        added = {"text_embeds": text.pooled, "time_ids": sizes} if self.is_xl else None
        return self.unet(noisy.to(self.unet.dtype), timesteps, text.states, added_cond_kwargs=added).sample

    def posterior(self, pixels: Tensor) -> DiagonalGaussianDistribution:
        """Encode pictures ``(b, 3, h, w)`` in [-1, 1]; samples of it need :meth:`scale_latents`."""
        return self.vae.encode(pixels.to(self.device, self.vae.dtype)).latent_dist

    def scale_latents(self, latents: Tensor) -> Tensor:
        """Scale latents of the VAE to the UNet's, which have about unit variance."""
        return (latents - self._shift) * self.vae.config.scaling_factor

    def decode(self, latents: Tensor) -> Tensor:
        """Decode the UNet's latents ``(b, c, h, w)`` to pictures ``(b, 3, h, w)``, about in [-1, 1]."""
        unscaled = latents.to(self.vae.dtype) / self.vae.config.scaling_factor + self._shift
        if self.compiled_decoder is not None:
            return self.compiled_decoder(unscaled, return_dict=False)[0]
        return self.vae.decode(unscaled).sample

    @property
    def _shift(self) -> float:
        return self.vae.config.shift_factor or 0.0

    @property
    def vae_scale_factor(self) -> int:
        """Side of a picture in pixels divided by that of its latents."""
        return int(2 ** (len(self.vae.config.block_out_channels) - 1))

    @property
    def size_step(self) -> int:
        """The factor of widths and heights in pixels: the VAE's downsampling times the UNet's."""
        return int(self.vae_scale_factor * 2 ** (len(self.unet.config.block_out_channels) - 1))

    def nearest_side(self, pixels: float) -> int:
        """Return the multiple of :attr:`size_step` nearest to ``pixels``."""
        return max(self.size_step, round(pixels / self.size_step) * self.size_step)

    def check_side(self, field: str, pixels: int) -> None:
        """Check that pictures can have a side of ``pixels``.

        Raises:
            InputError: on ``field``, unless it is a multiple of :attr:`size_step`.
        """
        if pixels % self.size_step:
            near = self.nearest_side(pixels)
            raise InputError(field, pixels, f"a multiple of {self.size_step} for {self.defaults.title}, like {near}")
