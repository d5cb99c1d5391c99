"""The embedded model's VAE, whose latents are principal components.

Pictures of 64 × 64 pixels become latents of 16 × 16 positions and 16 channels.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from tools.embedded.loop import Plan, fit
from tools.embedded.pool import SIZE, to_tensor

PATCH = 4
CHANNELS = 16
GRID = SIZE // PATCH
"""Side of the latents."""
BATCH = 8
SCALING_FACTOR = 0.6
"""Scales the first component to a standard deviation of 1.7, the last one to 0.1."""
POSTERIOR_STD = 0.03
MAX_LATENT_NOISE = 0.1
"""A diffusion model's latents are inexact, so the decoder is trained on noise up to this std, before scaling."""
SQUARED_ERROR_WEIGHT = 2.0
"""Weight of the squared error beside the absolute one; the PSNR is the squared error's logarithm."""


@dataclass(frozen=True)
class PrincipalComponents:
    """The first 16 principal components of patches of 4 × 4 pixels, in the order of their variance.

    A VAE trained end to end spreads its information over channels of equal variance, and a diffusion model on them
    spends its capacity on where edges lie to the tenth of a pixel. Here colours come first, then gradients, then
    detail: noise hides the detail first, so that the early steps of sampling decide on colours and large shapes
    (Rissanen et al., 2023, on frequencies; Skorokhodov et al., 2025, on latents).

    ``mean`` is ``(48,)``; ``basis`` is ``(48, 16)`` and its columns are orthonormal.
    """

    mean: torch.Tensor
    basis: torch.Tensor

    @staticmethod
    def fit(pictures: np.ndarray) -> PrincipalComponents:
        """Compute the components of uint8 ``pictures`` ``(n, 64, 64, 3)``."""
        patches = _patches(to_tensor(pictures)).flatten(0, 2)
        vectors = torch.linalg.eigh(torch.cov(patches.T)).eigenvectors.flip(1)[:, :CHANNELS]
        # A vector's sign is arbitrary; the increasing weights settle it for symmetric vectors too.
        signs = (vectors * torch.arange(1, len(vectors) + 1)[:, None]).sum(dim=0).sign()
        return PrincipalComponents(patches.mean(dim=0), vectors * signs)

    def latents(self, x: torch.Tensor) -> torch.Tensor:
        """Return the components ``(n, 16, 16, 16)`` of pictures ``x`` ``(n, 3, 64, 64)`` in [-1, 1]."""
        return ((_patches(x) - self.mean.to(x)) @ self.basis.to(x)).permute(0, 3, 1, 2)


def _patches(x: torch.Tensor) -> torch.Tensor:
    """Cut ``(n, 3, 64, 64)`` into patches ``(n, 16, 16, 48)``."""
    return x.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).permute(0, 2, 3, 1, 4, 5).flatten(3)


def new_vae() -> AutoencoderKL:
    """Return the untrained VAE; it has no attention, which at 16 × 16 costs more than it improves."""
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        latent_channels=CHANNELS,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
        scaling_factor=SCALING_FACTOR,
    )


def train_encoder(
    vae: AutoencoderKL, components: PrincipalComponents, data: np.ndarray, work: Path, steps: int
) -> None:
    """Train the encoder to compute the components of uint8 pictures ``data`` ``(n, 64, 64, 3)``.

    The posterior's standard deviation is set to ``POSTERIOR_STD``.
    """
    encoder = torch.nn.ModuleList([vae.encoder, vae.quant_conv])

    def loss_of_step(step: int, generator: torch.Generator) -> torch.Tensor:
        x = _batch(data, generator)
        with torch.autocast("cpu", torch.bfloat16):
            mean = vae.encode(x).latent_dist.mean.float()
        return (mean - components.latents(x)).square().mean()

    fit(encoder, loss_of_step, _plan(steps), work / "encoder.pt")
    with torch.no_grad():
        vae.quant_conv.weight[CHANNELS:] = 0
        vae.quant_conv.bias[CHANNELS:] = 2 * math.log(POSTERIOR_STD)


def train_decoder(
    vae: AutoencoderKL, components: PrincipalComponents, data: np.ndarray, work: Path, steps: int
) -> None:
    """Train the decoder to reconstruct uint8 pictures ``data`` ``(n, 64, 64, 3)`` from their noisy components."""
    decoder = torch.nn.ModuleList([vae.post_quant_conv, vae.decoder])

    def loss_of_step(step: int, generator: torch.Generator) -> torch.Tensor:
        x = _batch(data, generator)
        latents = components.latents(x)
        std = MAX_LATENT_NOISE * torch.rand(BATCH, 1, 1, 1, generator=generator)
        noisy = latents + std * torch.randn(latents.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            reconstruction = vae.decode(noisy.contiguous(memory_format=torch.channels_last)).sample.float()
        error = reconstruction - x
        return error.abs().mean() + SQUARED_ERROR_WEIGHT * error.square().mean()

    fit(decoder, loss_of_step, _plan(steps), work / "decoder.pt")


def _plan(steps: int) -> Plan:
    return Plan(steps, 1e-3, decay_from=0.3, ema_decay=0.998)


def _batch(data: np.ndarray, generator: torch.Generator) -> torch.Tensor:
    indices = torch.randint(len(data), (BATCH,), generator=generator).sort().values.numpy()
    return to_tensor(data[indices]).contiguous(memory_format=torch.channels_last)


def mean_psnr(vae: AutoencoderKL, pictures: np.ndarray) -> float:
    """Return the mean peak signal-to-noise ratio of the VAE's reconstructions of uint8 ``pictures``, in dB."""
    x = to_tensor(pictures)
    with torch.inference_mode():
        y = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
    return float((10 * torch.log10(4 / (x - y).square().mean(dim=(1, 2, 3)))).mean())
