"""Flow matching as pure functions (https://arxiv.org/abs/2210.02747): noise levels, noisy latents and targets.

Shapes: ``b`` pictures, latents ``(b, c, h, w)``, noise levels σ ``(b,)`` in [0, 1], 1 for noise alone.
"""

from __future__ import annotations

import math

import torch

from lora_service.training.inputs.config import TimestepSampling

_MODE_SCALE = 1.29
"""The scale of mode sampling that https://arxiv.org/abs/2403.03206 takes."""


def sample_sigmas(count: int, sampling: TimestepSampling, generator: torch.Generator) -> torch.Tensor:
    """Sample ``count`` noise levels before any shift, on the generator's device.

    logit_normal  the logistic of a normal number: most in the middle (https://arxiv.org/abs/2403.03206, section 3.1)
    uniform       all alike
    cubic         ``1 − u³``: most at high noise, where a layout is decided (https://arxiv.org/abs/2302.08453)
    mode          ``1 − u − 1.29 (cos² (π u / 2) − 1 + u)``: all are likely, most in the middle (section 3.1 too)
    """
    device = generator.device
    if sampling == "logit_normal":
        return torch.randn(count, generator=generator, device=device).sigmoid()
    u = torch.rand(count, generator=generator, device=device)
    if sampling == "cubic":
        return 1 - u**3
    if sampling == "mode":
        return 1 - u - _MODE_SCALE * ((math.pi / 2 * u).cos() ** 2 - 1 + u)
    return u


def shift_sigmas(sigmas: torch.Tensor, shift: float) -> torch.Tensor:
    """Shift noise levels for a resolution (https://arxiv.org/abs/2403.03206, equation 23); 1 changes none."""
    return shift * sigmas / (1 + (shift - 1) * sigmas)


def add_noise(latents: torch.Tensor, noise: torch.Tensor, sigmas: torch.Tensor) -> torch.Tensor:
    """Return ``(1 − σ) · latents + σ · noise``."""
    s = sigmas.view(-1, 1, 1, 1)
    return (1 - s) * latents + s * noise


def target(latents: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return the velocity of :func:`add_noise` over σ, ``noise − latents``."""
    return noise - latents
