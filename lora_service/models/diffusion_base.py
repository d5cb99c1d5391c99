"""A base model in memory, with one interface for all families."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution
from torch import Tensor, nn

from lora_service.errors import InputError, SettingError
from lora_service.models.block_offloading import BlockOffloading
from lora_service.models.compiled import Backend, CompiledModule
from lora_service.models.defaults import ModelDefaults
from lora_service.models.families.family import Family
from lora_service.models.text_encoders import PromptEmbeds, TextEncoders


@dataclass
class DiffusionBase:
    """The models of a base, all in eval mode and without gradients.

    Attributes:
        name: the value of ``BASE_MODEL``, for messages.
        family: knows whatever depends on it.
        backbone: the UNet or transformer that denoises.
        scheduler_config: the base's own; every sampling scheduler and the noise schedule of the training follow it.
        defaults: the defaults of inputs that depend on the base.
        pipeline_config: that of the base's own pipeline in diffusers, such as ``is_distilled``.
        dtype: that of the backbone and the text encoders; the VAE may have another.
        compiled: the backbone compiled, for drawing; None: it is not.
        compiled_decoder: the VAE's decoder compiled; None: it is not.
        waiting_blocks: the backbone's blocks, where they always wait on the host; None: they are on the device.
    """

    name: str
    family: Family
    backbone: Any
    vae: Any
    text: TextEncoders
    scheduler_config: dict[str, Any]
    defaults: ModelDefaults
    device: torch.device
    dtype: torch.dtype
    pipeline_config: Mapping[str, Any] = field(default_factory=dict)
    compiled: CompiledModule | None = None
    compiled_decoder: CompiledModule | None = None
    waiting_blocks: BlockOffloading | None = None

    @property
    def shift_config(self) -> dict[str, Any]:
        """What the noise levels of flow matching are shifted by: the configs of the pipeline and the scheduler."""
        return {**self.pipeline_config, **self.scheduler_config}

    @property
    def components(self) -> dict[str, nn.Module]:
        """The models that a LoRA can change, by their names in LoRA files."""
        return {self.family.backbone: self.backbone, **self.text.learning}

    @property
    def tokenizers(self) -> Mapping[str, Any]:
        """The tokenizers of the text encoders among the :attr:`components`, which can learn new tokens."""
        return {name: each for name, each in self.text.tokenizers.items() if name in self.text.learning}

    @property
    def models(self) -> dict[str, nn.Module]:
        """All models, by the names of diffusers' folders."""
        return {self.family.backbone: self.backbone, "vae": self.vae, **self.text.encoders}

    @property
    def unet(self) -> UNet2DConditionModel:
        """The backbone of a family whose backbone is a UNet."""
        return self.backbone

    def compile(self, *, backend: Backend = "inductor", cuda_graphs: bool = False) -> None:
        """Have :attr:`compiled` and :attr:`compiled_decoder` used for drawing; they are compiled at the first calls.

        Args:
            backend: of ``torch.compile``.
            cuda_graphs: replay recorded kernels for the first shapes, which saves launching them one by one.

        Raises:
            SettingError: its family is not compiled.
        """
        if self.family.objective == "flow":
            raise SettingError("COMPILE", True, f"0 for {self.family.title}, which is drawn uncompiled")
        self.compiled = CompiledModule(self.backbone, backend=backend, cuda_graphs=cuda_graphs)
        self.compiled_decoder = CompiledModule(self.vae, "decode", backend=backend, cuda_graphs=cuda_graphs)

    @property
    def blocks(self) -> list[nn.Module]:
        """The blocks of a transformer whose gradients can be checkpointed; none of a UNet."""
        children = map(self.backbone.get_submodule, self.family.targets.blocks)
        return [block for child in children for block in child.children()]

    def to_device(self) -> None:
        """Move what a broken-off training may have left in the host's memory back to the device; mostly nothing."""
        for model in (self.vae, *self.text.encoders.values()):
            nn.Module.to(model, self.device)

    @property
    def is_inpainting(self) -> bool:
        """True for a backbone that takes a mask and the latents of a masked picture behind those it denoises."""
        return self.family.is_inpainting(self.vae, self.backbone)

    @cached_property
    def noise_schedule(self) -> DDPMScheduler:
        """The forward process that a base of diffusion was trained on."""
        return DDPMScheduler.from_config(self.scheduler_config)

    @property
    def prediction_type(self) -> str:
        """``epsilon``, ``v_prediction``, ``sample`` (the latents), or of flow matching ``flow``: noise less latents."""
        if self.family.objective == "flow":
            return "flow"
        return str(self.noise_schedule.config.prediction_type)

    def denoise(self, noisy: Tensor, timesteps: Tensor, text: PromptEmbeds, sizes: Tensor | None = None) -> Tensor:
        """Run the backbone on noisy latents.

        Args:
            noisy: latents ``(b, c, h, w)``.
            timesteps: ``(b,)``.
            text: the prompt embeds of the batch.
            sizes: XL's micro-conditioning ``(b, 6)`` in pixels: each picture's original height and width, the crop's
                top and left, and the target height and width (https://arxiv.org/abs/2307.01952, section 2.2).

        Returns:
            The prediction ``(b, c, h, w)``, of :attr:`prediction_type`.
        """
        return self.family.predict(self.backbone, noisy, timesteps, text, sizes)

    def posterior(self, pixels: Tensor) -> DiagonalGaussianDistribution:
        """Encode pictures ``(b, 3, h, w)`` in [-1, 1]; samples of it need :meth:`scale_latents`."""
        return self.family.encode(self.vae, pixels.to(self.device, self.vae.dtype))

    def scale_latents(self, latents: Tensor) -> Tensor:
        """Scale latents of the VAE to the backbone's, which have about unit variance."""
        return self.family.to_backbone(self.vae, latents)

    def scale_deviation(self, deviation: Tensor) -> Tensor:
        """Scale the standard deviation of latents as :meth:`scale_latents` scales these."""
        return self.family.deviation_to_backbone(self.vae, deviation)

    def decode(self, latents: Tensor) -> Tensor:
        """Decode the backbone's latents ``(b, c, h, w)`` to pictures ``(b, 3, h, w)``, about in [-1, 1]."""
        unscaled = self.family.to_vae(self.vae, latents.to(self.vae.dtype))
        if self.compiled_decoder is not None:
            return self.compiled_decoder(unscaled, return_dict=False)[0]
        return self.family.decode(self.vae, unscaled)

    @property
    def vae_scale_factor(self) -> int:
        """Side of a picture in pixels divided by that of its latents."""
        return self.family.latent_factor(self.vae)

    @property
    def size_step(self) -> int:
        """The factor of widths and heights in pixels."""
        return self.family.size_step(self.vae, self.backbone)

    def nearest_side(self, pixels: float) -> int:
        """Return the multiple of :attr:`size_step` nearest to ``pixels``."""
        return max(self.size_step, round(pixels / self.size_step) * self.size_step)

    def check_longest(self, field: str, pixels: int) -> None:
        """Check that a side of ``pixels`` is not longer than what the backbone takes.

        Raises:
            InputError: on ``field``.
        """
        longest = self.family.longest_side(self.vae, self.backbone)
        if longest is not None and pixels > longest:
            raise InputError(field, pixels, f"at most {longest} for {self.defaults.title}")

    def check_side(self, field: str, pixels: int) -> None:
        """Check that pictures can have a side of ``pixels``.

        Raises:
            InputError: on ``field``, unless it is a multiple of :attr:`size_step`, and not too long.
        """
        self.check_longest(field, pixels)
        if pixels % self.size_step:
            near = self.nearest_side(pixels)
            raise InputError(field, pixels, f"a multiple of {self.size_step} for {self.defaults.title}, like {near}")
