"""The loss of one step, as pure functions: noise, timesteps, targets and weights.

Shapes: ``b`` pictures, latents ``(b, c, h, w)``, timesteps ``(b,)`` as integers.
"""

from __future__ import annotations

import torch


def sample_timesteps(count: int, steps: int, timestep_bias: float, generator: torch.Generator) -> torch.Tensor:
    """Sample ``count`` timesteps from 0 to ``steps`` − 1, on the generator's device.

    All are possible, unlike in the predecessors, whose second stage silently drew
    below 0.8 of the range only. The density is ``1 + timestep_bias · (2u − 1)`` over
    ``u = t / steps``: subjects learn a little less at high noise, where a layout is
    decided, styles a little more.
    """
    u = torch.rand(count, generator=generator, device=generator.device)
    if timestep_bias:
        # The inverse of the density's integral (1 − k) u + k u².
        k = timestep_bias
        u = ((1 - k) ** 2 + 4 * k * u).sqrt().sub(1 - k).div(2 * k)
    return (u * steps).long().clamp_(0, steps - 1)


def sample_noise(like: torch.Tensor, offset: float, generator: torch.Generator) -> torch.Tensor:
    """Sample normal noise of ``like``'s shape.

    Args:
        offset: strength of a shift of each channel as a whole (N. Guttenberg, crosslabs.org, 2023).
    """
    noise = torch.randn(like.shape, generator=generator, device=like.device)
    if offset:
        shift = torch.randn((*like.shape[:2], 1, 1), generator=generator, device=like.device)
        noise = noise + offset * shift
    return noise


def add_noise(latents: torch.Tensor, noise: torch.Tensor, alphas: torch.Tensor) -> torch.Tensor:
    """Return ``√ᾱ · latents + √(1 − ᾱ) · noise`` (DDPM, equation 4); ``alphas`` is ᾱ of each picture ``(b,)``."""
    a = alphas.view(-1, 1, 1, 1)
    return a.sqrt() * latents + (1 - a).sqrt() * noise


def target(latents: torch.Tensor, noise: torch.Tensor, alphas: torch.Tensor, prediction_type: str) -> torch.Tensor:
    """Return the target of the prediction: the noise, or ``v = √ᾱ · noise − √(1 − ᾱ) · latents`` (Salimans & Ho, 2022).

    With diffusers' third ``prediction_type``, ``sample``, it is the latents themselves.
    """
    if prediction_type == "epsilon":
        return noise
    if prediction_type == "sample":
        return latents
    a = alphas.view(-1, 1, 1, 1)
    return a.sqrt() * noise - (1 - a).sqrt() * latents


def snr_weights(alphas: torch.Tensor, gamma: float, prediction_type: str) -> torch.Tensor:
    """Return the min-SNR-γ weights ``(b,)`` (Hang et al., https://arxiv.org/abs/2303.09556); γ = 0 gives 1.

    They make the same loss of whatever is predicted: min(snr, γ) times the squared error of the latents.
    """
    if not gamma:
        return torch.ones_like(alphas)
    snr = alphas / (1 - alphas)
    if prediction_type == "epsilon":
        # min(snr, γ) / snr, but for schedules that end without signal: their snr is 0, and the weight 1.
        return (torch.full_like(snr, gamma) / snr).clamp(max=1)
    return snr.clamp(max=gamma) / (snr + 1 if prediction_type == "v_prediction" else 1)


MASK_FLOOR = 0.1
"""Weight of the loss where the mask is 0, outside the subject."""


def masked_loss(
    model_pred: torch.Tensor, target: torch.Tensor, weights: torch.Tensor, mask: torch.Tensor | None
) -> torch.Tensor:
    """Return the mean over the batch of ``weights (b,)`` times each picture's mean squared error, in fp32.

    With ``mask`` ``(b, 1, h, w)`` in [0, 1] the error is averaged with weights
    ``MASK_FLOOR + (1 − MASK_FLOOR) · mask``, normalised per picture so that small
    subjects count as much as large ones.
    """
    error = (model_pred.float() - target.float()).square().mean(dim=1, keepdim=True)
    if mask is not None:
        share = MASK_FLOOR + (1 - MASK_FLOOR) * mask
        error = error * share / share.mean(dim=(1, 2, 3), keepdim=True)
    return (weights * error.mean(dim=(1, 2, 3))).mean()
