"""The embedded model's VAE: 64 × 64 pictures to 16 × 16 latents of 16 channels, which are principal components."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from tools.embedded.components import CHANNELS, Components
from tools.embedded.loop import Plan, fit
from tools.embedded.pool import SIZE, to_tensor

BATCH = 8
SCALING_FACTOR = 0.6
"""The first component's std becomes 1.7, the last one's 0.1."""
POSTERIOR_STD = 0.03
MOST_NOISE = 0.1
"""Latents that a diffusion model makes are not exact; the decoder learns on noise up to this std, before scaling."""
SQUARED = 2.0
"""Weight of the squared error beside the absolute one: decibels are its logarithm."""


def new_vae() -> AutoencoderKL:
    """The untrained VAE. No attention: at 16 × 16 it costs more than it gives."""
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


def train_encoder(vae: AutoencoderKL, components: Components, data: np.ndarray, work: Path, steps: int) -> None:
    """Teach the encoder the components of uint8 pictures ``data`` ``(n, 64, 64, 3)``; the posterior is narrow."""
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


def train_decoder(vae: AutoencoderKL, components: Components, data: np.ndarray, work: Path, steps: int) -> None:
    """Teach the decoder to draw pictures ``data`` from their components, which need not be exact."""
    decoder = torch.nn.ModuleList([vae.post_quant_conv, vae.decoder])

    def loss_of_step(step: int, generator: torch.Generator) -> torch.Tensor:
        x = _batch(data, generator)
        latents = components.latents(x)
        std = MOST_NOISE * torch.rand(BATCH, 1, 1, 1, generator=generator)
        noisy = latents + std * torch.randn(latents.shape, generator=generator)
        with torch.autocast("cpu", torch.bfloat16):
            drawn = vae.decode(noisy.contiguous(memory_format=torch.channels_last)).sample.float()
        error = drawn - x
        return error.abs().mean() + SQUARED * error.square().mean()

    fit(decoder, loss_of_step, _plan(steps), work / "decoder.pt")


def _plan(steps: int) -> Plan:
    return Plan(steps, 1e-3, decay_from=0.3, average=0.998)


def _batch(data: np.ndarray, generator: torch.Generator) -> torch.Tensor:
    picked = torch.randint(len(data), (BATCH,), generator=generator).sort().values.numpy()
    return to_tensor(data[picked]).contiguous(memory_format=torch.channels_last)


def decibels(vae: AutoencoderKL, pictures: np.ndarray) -> float:
    """Mean peak signal-to-noise ratio of the VAE's reconstruction of uint8 ``pictures``, in dB."""
    x = to_tensor(pictures)
    with torch.inference_mode():
        y = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
    return float((10 * torch.log10(4 / (x - y).square().mean(dim=(1, 2, 3)))).mean())
