"""The loss of noisy latents on a base: noise, forward pass, target and weights of a step in one place."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.text_encoders import PromptEmbeds
from lora_service.training.inputs.resolved_config import ResolvedConfig
from lora_service.training.losses import loss


@dataclass(frozen=True)
class NoisyLatents:
    """Latents with noise on them.

    Attributes:
        noisy, target: the UNet's input, and what it should predict of it, ``(b, c, h, w)``.
        timesteps, weights: of each picture, ``(b,)``; the weights are min-SNR's.
    """

    noisy: torch.Tensor
    target: torch.Tensor
    timesteps: torch.Tensor
    weights: torch.Tensor

    def __getitem__(self, share: slice) -> NoisyLatents:
        """Return a share of the pictures."""
        return NoisyLatents(self.noisy[share], self.target[share], self.timesteps[share], self.weights[share])


class DenoisingLoss:
    """How far the base's predictions are from their targets, as ``resolved`` weighs it."""

    def __init__(self, base: DiffusionBase, resolved: ResolvedConfig) -> None:
        self.base, self._resolved = base, resolved
        self._alphas_cumprod = base.noise_schedule.alphas_cumprod.to(base.device)
        self.num_timesteps = int(base.noise_schedule.config.num_train_timesteps)

    def sample(self, latents: torch.Tensor, generator: torch.Generator) -> NoisyLatents:
        """Add noise at random timesteps to ``latents`` ``(b, c, h, w)``."""
        noise = loss.sample_noise(latents, self._resolved.config.noise_offset or 0.0, generator)
        timesteps = loss.sample_timesteps(len(latents), self.num_timesteps, self._resolved.timestep_bias, generator)
        return self.at(latents, noise, timesteps)

    def at(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> NoisyLatents:
        """Add ``noise`` ``(b, c, h, w)`` to ``latents`` at ``timesteps`` ``(b,)``."""
        alphas, prediction_type = self._alphas_cumprod[timesteps], self.base.prediction_type
        return NoisyLatents(
            noisy=loss.add_noise(latents, noise, alphas),
            target=loss.target(latents, noise, alphas, prediction_type),
            timesteps=timesteps,
            weights=loss.snr_weights(alphas, self._resolved.config.snr_gamma or 0.0, prediction_type),
        )

    def predict(self, batch: NoisyLatents, text: PromptEmbeds, sizes: torch.Tensor | None) -> torch.Tensor:
        """Return the base's prediction ``(b, c, h, w)``; ``sizes`` as of ``DiffusionBase.denoise``."""
        return self.base.denoise(batch.noisy, batch.timesteps, text, sizes)

    def __call__(
        self, batch: NoisyLatents, text: PromptEmbeds, sizes: torch.Tensor | None, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the weighted loss, a scalar in fp32; ``mask`` as of :func:`loss.masked_loss`."""
        return loss.masked_loss(self.predict(batch, text, sizes), batch.target, batch.weights, mask)
