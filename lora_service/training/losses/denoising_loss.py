"""The loss of noisy latents on a base: noise, forward pass, target and weights of a step in one place."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.families.family import Objective
from lora_service.models.text_encoders import PromptEmbeds
from lora_service.training.inputs.config import TimestepSampling
from lora_service.training.inputs.resolved_config import ResolvedConfig
from lora_service.training.losses import flow_matching, loss

_FLOW_DEFAULT: TimestepSampling = "logit_normal"


@dataclass(frozen=True)
class NoisyLatents:
    """Latents with noise on them.

    Attributes:
        noisy, target: the backbone's input, and what it should predict of it, ``(b, c, h, w)``.
        timesteps, weights: of each picture, ``(b,)``; timesteps of flow matching are σ, and its weights 1.
    """

    noisy: torch.Tensor
    target: torch.Tensor
    timesteps: torch.Tensor
    weights: torch.Tensor

    def __getitem__(self, share: slice) -> NoisyLatents:
        """Return a share of the pictures."""
        return NoisyLatents(self.noisy[share], self.target[share], self.timesteps[share], self.weights[share])

    @staticmethod
    def concatenate(batches: Sequence[NoisyLatents]) -> NoisyLatents:
        """Return ``batches`` as one batch."""
        names = ("noisy", "target", "timesteps", "weights")
        return NoisyLatents(*(torch.cat([getattr(batch, name) for batch in batches]) for name in names))


class DenoisingLoss:
    """The distance of the base's predictions from their targets, as ``resolved`` weighs it."""

    def __init__(self, base: DiffusionBase, resolved: ResolvedConfig) -> None:
        self.base, self._resolved = base, resolved
        self._noising = _NOISING[base.family.objective](base, resolved)

    def sample(self, latents: torch.Tensor, generator: torch.Generator) -> NoisyLatents:
        """Add noise at random timesteps to ``latents`` ``(b, c, h, w)``."""
        noise = loss.sample_noise(latents, self._resolved.config.noise_offset or 0.0, generator)
        return self._noising.at(latents, noise, self._noising.sample_timesteps(latents, generator))

    def at(self, latents: torch.Tensor, noise: torch.Tensor, shares: torch.Tensor) -> NoisyLatents:
        """Add ``noise`` ``(b, c, h, w)`` to ``latents`` at timesteps ``(b,)`` that are ``shares`` of their range."""
        return self._noising.at(latents, noise, self._noising.timesteps_at(latents, shares).to(latents.device))

    def predict(self, batch: NoisyLatents, text: PromptEmbeds, sizes: torch.Tensor | None) -> torch.Tensor:
        """Return the base's prediction ``(b, c, h, w)``; ``sizes`` as of ``DiffusionBase.denoise``."""
        return self.base.denoise(batch.noisy, batch.timesteps, text, sizes)

    def __call__(
        self, batch: NoisyLatents, text: PromptEmbeds, sizes: torch.Tensor | None, mask: torch.Tensor | None
    ) -> torch.Tensor:
        """Return the weighted loss, a scalar in fp32; ``mask`` as of :func:`loss.masked_loss`."""
        return loss.masked_loss(self.predict(batch, text, sizes), batch.target, batch.weights, mask)


class Noising(ABC):
    """The way in which a base was trained with noise."""

    def __init__(self, base: DiffusionBase, resolved: ResolvedConfig) -> None:
        self._base, self._resolved = base, resolved

    @abstractmethod
    def sample_timesteps(self, latents: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        """Sample a timestep for each of ``latents``, ``(b,)``."""

    @abstractmethod
    def timesteps_at(self, latents: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        """Return the timesteps at ``shares`` of their range, from 0 to 1."""

    @abstractmethod
    def at(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> NoisyLatents:
        """Add ``noise`` ``(b, c, h, w)`` to ``latents`` at ``timesteps`` ``(b,)``."""


class DiffusionNoising(Noising):
    """Noise by a schedule of discrete timesteps (DDPM, https://arxiv.org/abs/2006.11239), with min-SNR weights."""

    def __init__(self, base: DiffusionBase, resolved: ResolvedConfig) -> None:
        super().__init__(base, resolved)
        self._alphas_cumprod = base.noise_schedule.alphas_cumprod.to(base.device)
        self._steps = int(base.noise_schedule.config.num_train_timesteps)

    def sample_timesteps(self, latents: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        return loss.sample_timesteps(len(latents), self._steps, self._resolved.timestep_bias, generator)

    def timesteps_at(self, latents: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        return (shares * self._steps).long()

    def at(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> NoisyLatents:
        alphas, prediction_type = self._alphas_cumprod[timesteps], self._base.prediction_type
        return NoisyLatents(
            noisy=loss.add_noise(latents, noise, alphas),
            target=loss.target(latents, noise, alphas, prediction_type),
            timesteps=timesteps,
            weights=loss.snr_weights(alphas, self._resolved.config.snr_gamma or 0.0, prediction_type),
        )


class FlowNoising(Noising):
    """Noise by flow matching, at levels that are shifted as the family shifts them at the pictures' resolution."""

    def sample_timesteps(self, latents: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
        asked = self._resolved.config.timestep_sampling
        sampling = _FLOW_DEFAULT if asked == "auto" else asked
        return self.timesteps_at(latents, flow_matching.sample_sigmas(len(latents), sampling, generator))

    def timesteps_at(self, latents: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        family = self._base.family
        positions = family.positions(latents.shape[-2], latents.shape[-1])
        return flow_matching.shift_sigmas(shares, family.shift(self._base.shift_config, positions))

    def at(self, latents: torch.Tensor, noise: torch.Tensor, timesteps: torch.Tensor) -> NoisyLatents:
        return NoisyLatents(
            noisy=flow_matching.add_noise(latents, noise, timesteps),
            target=flow_matching.target(latents, noise),
            timesteps=timesteps,
            weights=torch.ones_like(timesteps),
        )


_NOISING: Mapping[Objective, type[Noising]] = {"diffusion": DiffusionNoising, "flow": FlowNoising}
