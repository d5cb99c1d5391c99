"""The embedded model's UNet and text encoder, learned together on the world's captions."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL, DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tools.embedded.loop import Plan, fit
from tools.embedded.pool import pool, to_tensor
from tools.embedded.tokenizer import POSITIONS

BATCH = 16
DECISIVE = (450, 900)
"""Half of each batch is drawn from these timesteps only: there the caption halves the error, and shapes are decided;
earlier ones finish what is seen already, later ones know little but the background's colour."""
NO_CAPTION = 0.1
"""Share of steps on an empty caption, for classifier-free guidance."""
WIDTH = 128


class Denoiser(nn.Module):
    """What is learned in one go: the UNet, and the text encoder that feeds it."""

    def __init__(self, tokenizer: CLIPTokenizer, latent_channels: int) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.unet = UNet2DConditionModel(
            sample_size=16,
            in_channels=latent_channels,
            out_channels=latent_channels,
            block_out_channels=(64, 128),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
            cross_attention_dim=WIDTH,
            attention_head_dim=(2, 4),  # heads, not their width: diffusers' old name
            norm_num_groups=8,
        )
        self.text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=WIDTH,
                intermediate_size=4 * WIDTH,
                num_hidden_layers=3,
                num_attention_heads=4,
                max_position_embeddings=POSITIONS,
                projection_dim=WIDTH,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )

        # The fused attention's backward pass in bf16 takes as long as all the rest on a CPU.
        self.unet.set_attn_processor(AttnProcessor())
        self.text_encoder.set_attn_implementation("eager")

    def forward(self, noisy: torch.Tensor, timesteps: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """The velocity at ``noisy`` ``(b, c, h, w)``, given ``ids`` ``(b, 48)``."""
        return self.unet(noisy, timesteps, self.text_encoder(ids)[0]).sample  # type: ignore[no-any-return]


def new_scheduler() -> DDPMScheduler:
    """Stable Diffusion's kind of noise schedule, with a noisier end, for the prediction of velocity.

    Stable Diffusion's own end (0.012) leaves a signal-to-noise ratio of 0.005, at which
    the colour of a plain background, averaged over 256 positions, is still seen: the model
    would read it there and not in the caption, and draw everything on gray (Lin et al., 2023).
    """
    return DDPMScheduler(
        beta_schedule="scaled_linear",
        beta_start=0.00085,
        beta_end=0.025,
        clip_sample=False,
        steps_offset=1,
        prediction_type="v_prediction",
    )


def cached_latents(vae: AutoencoderKL, count: int, work: Path) -> tuple[torch.Tensor, torch.Tensor, list[str]]:
    """Mean and std of the posterior ``(count, c, 16, 16)`` of the world's pictures, scaled, in fp16."""
    data, captions = pool("world", count, work / "pictures")
    path = work / f"latents-{count}.pt"
    if not path.exists():
        means, stds = [], []
        with torch.inference_mode():
            for start in range(0, count, 64):
                posterior = vae.encode(to_tensor(data[start : start + 64])).latent_dist
                means.append((posterior.mean * vae.config.scaling_factor).half())
                stds.append((posterior.std * vae.config.scaling_factor).half())
        torch.save((torch.cat(means), torch.cat(stds)), path.with_suffix(".part"))
        path.with_suffix(".part").replace(path)
    mean, std = torch.load(path, weights_only=True)
    return mean, std, captions


def train(vae: AutoencoderKL, tokenizer: CLIPTokenizer, work: Path, steps: int, pictures: int) -> Denoiser:
    """The trained UNet and text encoder (velocity prediction: Salimans and Ho, 2022)."""
    mean, std, captions = cached_latents(vae, pictures, work)
    ids = tokenizer(captions, padding="max_length", truncation=True, return_tensors="pt").input_ids
    empty = tokenizer("", padding="max_length", return_tensors="pt").input_ids
    scheduler = new_scheduler()
    model = Denoiser(tokenizer, mean.shape[1])

    def loss_of_step(step: int, generator: torch.Generator) -> torch.Tensor:
        picked = torch.randint(len(mean), (BATCH,), generator=generator)
        shape = (BATCH, *mean.shape[1:])
        latents = mean[picked].float() + std[picked].float() * torch.randn(shape, generator=generator)
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (BATCH,), generator=generator)
        timesteps[::2] = torch.randint(*DECISIVE, (BATCH // 2,), generator=generator)
        noise = torch.randn(shape, generator=generator)
        noisy = scheduler.add_noise(latents, noise, timesteps).contiguous(memory_format=torch.channels_last)
        silent = torch.rand(BATCH, 1, generator=generator) < NO_CAPTION
        with torch.autocast("cpu", torch.bfloat16):
            velocity = model(noisy, timesteps, torch.where(silent, empty, ids[picked])).float()
        return (velocity - scheduler.get_velocity(latents, noise, timesteps)).square().mean()

    fit(model, loss_of_step, Plan(steps, 1e-3, warmup=300, decay_from=0.6, average=0.999), work / "denoiser.pt")
    return model
