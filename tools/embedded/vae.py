"""The embedded model's VAE: 64 × 64 pictures to 16 × 16 latents of 8 channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from tools.embedded.loop import Plan, fit
from tools.embedded.pool import SIZE, pool, to_tensor

BATCH = 16
KL_WEIGHT = 1e-4


def new_vae() -> AutoencoderKL:
    """The untrained VAE. No attention: at 16 × 16 it costs more than it gives."""
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        latent_channels=8,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )


def train(work: Path, steps: int, pictures: int) -> AutoencoderKL:
    """The trained VAE, its ``scaling_factor`` set so that latents of the world have unit variance."""
    vae = new_vae()
    data, _ = pool("variety", pictures, work / "pictures")

    def loss_of_step(step: int, generator: torch.Generator) -> torch.Tensor:
        picked = torch.randint(len(data), (BATCH,), generator=generator).sort().values.numpy()
        x = to_tensor(data[picked]).contiguous(memory_format=torch.channels_last)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            mean, std = posterior.mean.float(), posterior.std.float()
            noise = torch.randn(mean.shape, generator=generator)
            drawn = vae.decode(mean + std * noise).sample.float()
        kl = 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).mean()
        error = drawn - x
        return error.abs().mean() + error.square().mean() + KL_WEIGHT * kl

    fit(vae, loss_of_step, Plan(steps, 1.5e-3, average=0.998), work / "vae.pt")
    world, _ = pool("world", 2048, work / "pictures")
    with torch.inference_mode():
        latents = vae.encode(to_tensor(world[:512])).latent_dist.mean
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))
    return vae


def decibels(vae: AutoencoderKL, pictures: np.ndarray) -> float:
    """Mean peak signal-to-noise ratio of the VAE's reconstruction of uint8 ``pictures``, in dB."""
    x = to_tensor(pictures)
    with torch.inference_mode():
        y = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
    return float((10 * torch.log10(4 / (x - y).square().mean(dim=(1, 2, 3)))).mean())
