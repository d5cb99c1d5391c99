"""The embedded model's VAE: 64 × 64 pictures to 16 × 16 latents of 12 channels."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL

from tools.embedded.loop import Plan, fit
from tools.embedded.pool import SIZE, pool, to_tensor

BATCH = 8
LATENT_CHANNELS = 12
SQUARED = 2.0
"""Weight of the squared error beside the absolute one: decibels are its logarithm."""
KL_WEIGHT = 5e-4


def new_vae(latent_channels: int = LATENT_CHANNELS) -> AutoencoderKL:
    """The untrained VAE. No attention: at 16 × 16 it costs more than it gives."""
    torch.manual_seed(0)
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * 3,
        up_block_types=("UpDecoderBlock2D",) * 3,
        block_out_channels=(32, 64, 96),
        layers_per_block=1,
        latent_channels=latent_channels,
        norm_num_groups=8,
        sample_size=SIZE,
        mid_block_add_attention=False,
    )


def grown(small: AutoencoderKL) -> AutoencoderKL:
    """A new VAE that begins where ``small``, of the same shape but fewer latent channels, ended.

    Its first latent channels are those of ``small``; what the decoder makes of the
    added ones starts near nothing.
    """
    vae = new_vae()
    old, new, kept = small.state_dict(), vae.state_dict(), small.config.latent_channels
    moments = torch.tensor([*range(kept), *range(LATENT_CHANNELS, LATENT_CHANNELS + kept)])  # means, log variances
    latents = torch.arange(kept)
    new["decoder.conv_in.weight"][:, kept:] *= 0.1
    new["quant_conv.weight"][moments] = 0
    new["post_quant_conv.weight"][latents] = 0
    places = {
        "encoder.conv_out": (moments, None),
        "quant_conv": (moments, moments),
        "post_quant_conv": (latents, latents),
        "decoder.conv_in": (None, latents),
    }
    for name, value in old.items():
        rows, columns = places.get(name.rpartition(".")[0], (None, None))
        rows = torch.arange(new[name].shape[0]) if rows is None else rows
        if value.ndim > 1 and columns is not None:
            new[name][rows[:, None], columns[None]] = value
        else:
            new[name][rows] = value
    vae.load_state_dict(new)
    return vae


def train(vae: AutoencoderKL, work: Path, steps: int, pictures: int) -> None:
    """Train the encoder and decoder, and set ``scaling_factor`` so that the world's latents have unit variance."""
    data, _ = pool("variety", pictures, work / "pictures")

    def loss_of_step(step: int, generator: torch.Generator) -> torch.Tensor:
        x = _batch(data, generator)
        with torch.autocast("cpu", torch.bfloat16):
            posterior = vae.encode(x).latent_dist
            mean, std = posterior.mean.float(), posterior.std.float()
            noise = torch.randn(mean.shape, generator=generator)
            drawn = vae.decode(mean + std * noise).sample.float()
        kl = 0.5 * (mean.square() + std.square() - 1 - 2 * std.log()).mean()
        return _error(drawn, x) + KL_WEIGHT * kl

    fit(vae, loss_of_step, Plan(steps, 1e-3, average=0.998), work / "vae.pt")
    world, _ = pool("world", 2048, work / "pictures")
    with torch.inference_mode():
        latents = vae.encode(to_tensor(world[:512])).latent_dist.mean
    vae.register_to_config(scaling_factor=round(1 / latents.std().item(), 4))


def finish_decoder(vae: AutoencoderKL, work: Path, steps: int, pictures: int) -> None:
    """Train the decoder further on latents that no longer move; the UNet may be trained meanwhile."""
    data, _ = pool("variety", pictures, work / "pictures")
    decoder = torch.nn.ModuleList([vae.post_quant_conv, vae.decoder])

    def loss_of_step(step: int, generator: torch.Generator) -> torch.Tensor:
        x = _batch(data, generator)
        with torch.autocast("cpu", torch.bfloat16):
            with torch.no_grad():
                latents = vae.encode(x).latent_dist.mean
            drawn = vae.decode(latents).sample.float()
        return _error(drawn, x)

    fit(decoder, loss_of_step, Plan(steps, 1e-3, decay_from=0.2, average=0.998), work / "decoder.pt")


def _batch(data: np.ndarray, generator: torch.Generator) -> torch.Tensor:
    picked = torch.randint(len(data), (BATCH,), generator=generator).sort().values.numpy()
    return to_tensor(data[picked]).contiguous(memory_format=torch.channels_last)


def _error(drawn: torch.Tensor, x: torch.Tensor) -> torch.Tensor:
    error = drawn - x
    return error.abs().mean() + SQUARED * error.square().mean()


def decibels(vae: AutoencoderKL, pictures: np.ndarray) -> float:
    """Mean peak signal-to-noise ratio of the VAE's reconstruction of uint8 ``pictures``, in dB."""
    x = to_tensor(pictures)
    with torch.inference_mode():
        y = vae.decode(vae.encode(x).latent_dist.mean).sample.clamp(-1, 1)
    return float((10 * torch.log10(4 / (x - y).square().mean(dim=(1, 2, 3)))).mean())
