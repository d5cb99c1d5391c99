"""The embedded model's UNet and text encoder, learned together on the world's captions."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tools.embedded.components import CHANNELS, GRID, Components
from tools.embedded.loop import Plan, fit
from tools.embedded.pool import described, pool, to_tensor
from tools.embedded.tokenizer import POSITIONS
from tools.embedded.vae import SCALING_FACTOR

BATCH = 32
ITEMS = 16
"""So many of each batch are one item, drawn flat, as there are more kinds of these than of anything else, ..."""
DECISIVE = (450, 900)
"""... at these timesteps only: there the caption decides on colours and shapes; earlier ones finish what is seen
already, later ones know little but the background's colour. The rest is all that the world has, at any timestep."""
MOST_WEIGHT = 10.0
"""The squared error of the latents weighs one by the noise's share of the variance, as if velocity were
predicted, but no more than this: the last traces of noise are not worth more."""
NO_CAPTION = 0.1
"""Share of steps on an empty caption, for classifier-free guidance."""
WIDTH = 128


class Denoiser(nn.Module):
    """What is learned in one go: the UNet, and the text encoder that feeds it."""

    def __init__(self, tokenizer: CLIPTokenizer) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.unet = UNet2DConditionModel(
            sample_size=GRID,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
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
        """The latents without noise, from ``noisy`` ``(b, c, h, w)``, given ``ids`` ``(b, 48)``."""
        return self.unet(noisy, timesteps, self.text_encoder(ids)[0]).sample  # type: ignore[no-any-return]


def new_scheduler() -> DDPMScheduler:
    """Stable Diffusion's kind of noise schedule, with a noisier end, for the prediction of the latents themselves.

    Most of the 16 channels vary little, and are noise alone at most timesteps: a UNet of 64 channels
    that predicts noise or velocity is kept busy with copying it (Li and He, 2025).

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
        prediction_type="sample",
    )


@dataclass(frozen=True)
class Lessons:
    """What there is to learn from: scaled latents ``(n, 16, 16, 16)`` in fp16 with their captions' ids ``(n, 48)``.

    ``items`` are the numbers of those that show one item, drawn flat; ``empty`` ``(1, 48)`` is no caption.
    """

    latents: torch.Tensor
    ids: torch.Tensor
    empty: torch.Tensor
    items: torch.Tensor

    @staticmethod
    def of(components: Components, tokenizer: CLIPTokenizer, count: int, pictures: Path) -> Lessons:
        """``count`` pictures of the world, from the pools in ``pictures``."""
        data, captions = pool("world", count, pictures)
        chunks = (to_tensor(data[i : i + 512]) for i in range(0, count, 512))
        latents = torch.cat([(components.latents(chunk) * SCALING_FACTOR).half() for chunk in chunks])
        own = copy.deepcopy(tokenizer)  # it keeps the padding and truncation it was called with, in its files too
        ids, empty = (
            own(text, padding="max_length", truncation=True, return_tensors="pt").input_ids for text in (captions, "")
        )
        items = torch.tensor([seed for seed in range(count) if described(seed).is_plain_item])
        return Lessons(latents, ids, empty, items)


def starting(steps: int) -> Plan:
    return Plan(steps, 1.2e-3, warmup=300, average=0.999)


def finishing(steps: int) -> Plan:
    """Other draws than the first part's, and Muon for all that lies between the embeddings and the last layer."""
    return Plan(steps, 1.2e-3, warmup=100, average=0.999, orthogonal=_is_hidden, seed=2_000_003)


def _is_hidden(name: str, weights: nn.Parameter) -> bool:
    outer = ("conv_in.", "conv_out.", "token_embedding.", "position_embedding.")
    return weights.ndim > 1 and not any(part in name for part in outer)


def train(model: Denoiser, lessons: Lessons, plan: Plan, state: Path) -> None:
    """Train ``model`` by ``plan``; ``state`` is the file that holds how far it is."""
    scheduler = new_scheduler()

    def loss_of_step(step: int, generator: torch.Generator) -> torch.Tensor:
        picked = torch.randint(len(lessons.latents), (BATCH,), generator=generator)
        picked[:ITEMS] = lessons.items[torch.randint(len(lessons.items), (ITEMS,), generator=generator)]
        latents = lessons.latents[picked].float()
        timesteps = torch.randint(scheduler.config.num_train_timesteps, (BATCH,), generator=generator)
        timesteps[:ITEMS] = torch.randint(*DECISIVE, (ITEMS,), generator=generator)
        noise = torch.randn(latents.shape, generator=generator)
        noisy = scheduler.add_noise(latents, noise, timesteps).contiguous(memory_format=torch.channels_last)
        silent = torch.rand(BATCH, 1, generator=generator) < NO_CAPTION
        with torch.autocast("cpu", torch.bfloat16):
            guess = model(noisy, timesteps, torch.where(silent, lessons.empty, lessons.ids[picked])).float()
        weights = 1 / (1 - scheduler.alphas_cumprod[timesteps]).view(-1, 1, 1, 1)
        return ((guess - latents).square() * weights.clamp(max=MOST_WEIGHT)).mean()

    fit(model, loss_of_step, plan, state)
