"""The latents of Qwen-Image's VAE, of films of one frame, with a mean and a deviation for each channel."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from lora_service.models.families.flow import PackedFlowFamily

if TYPE_CHECKING:
    from torch import Tensor


class QwenLatentsFamily(PackedFlowFamily):
    """A family with ``AutoencoderKLQwenImage``."""

    def encode(self, vae: Any, pixels: Tensor) -> Any:
        from diffusers.models.autoencoders.vae import DiagonalGaussianDistribution

        parameters = vae.encode(pixels.unsqueeze(2)).latent_dist.parameters
        return DiagonalGaussianDistribution(parameters.squeeze(2))

    def decode(self, vae: Any, latents: Tensor) -> Tensor:
        pixels: Tensor = vae.decode(latents.unsqueeze(2)).sample
        return pixels[:, :, 0]

    def latent_factor(self, vae: Any) -> int:
        return int(2 ** len(vae.temperal_downsample))

    def vae_widths(self, vae: Any) -> tuple[int, ...]:
        return tuple(vae.config.base_dim * factor for factor in vae.config.dim_mult)

    def to_backbone(self, vae: Any, latents: Tensor) -> Tensor:
        mean, deviation = _statistics(vae, latents)
        return (latents - mean) / deviation

    def deviation_to_backbone(self, vae: Any, deviation: Tensor) -> Tensor:
        return deviation / _statistics(vae, deviation)[1]

    def to_vae(self, vae: Any, latents: Tensor) -> Tensor:
        mean, deviation = _statistics(vae, latents)
        return latents * deviation + mean


def _statistics(vae: Any, like: Tensor) -> tuple[Tensor, Tensor]:
    """Return mean and standard deviation of each channel, ``(1, c, 1, 1)``."""
    config = vae.config
    mean, deviation = (like.new_tensor(each).view(1, -1, 1, 1) for each in (config.latents_mean, config.latents_std))
    return mean, deviation
