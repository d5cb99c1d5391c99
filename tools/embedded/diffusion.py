"""The embedded model's UNet and text encoder, learned together on the synthetic dataset's captions."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tools.embedded.components import CHANNELS, GRID, Components
from tools.embedded.loop import Plan, fit
from tools.embedded.pool import to_tensor
from tools.embedded.tokenizer import POSITIONS
from tools.embedded.vae import SCALING_FACTOR
from tools.synthetic.description import GROUPS

SHARES = {"item": 0.42, "face": 0.2, "pair": 0.22, "style": 0.16}
"""Shares of each batch. In the synthetic dataset single things are 58 %, faces 17 %, pairs 10 % and styles 15 %; as a
base learns things first and pairs and faces last, these have more here."""
DECISIVE = (300, 900)
"""Half of each of these shares is learned at these timesteps only: there the caption decides on colours and shapes;
earlier ones finish what is seen already, later ones know little but the background's colour. The other half has any."""
MOST_WEIGHT = 10.0
"""The squared error of the latents weighs one by the noise's share of the variance, as if velocity were
predicted, but no more than this: the last traces of noise are not worth more."""
NO_CAPTION = 0.1
"""Share of steps on an empty caption, for classifier-free guidance."""
WIDTH = 192
ENCODED = 4096
"""So many pictures become latents in one go."""


class Denoiser(nn.Module):
    """What is learned in one go: the UNet, and the text encoder that feeds it."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    @staticmethod
    def new(tokenizer: CLIPTokenizer) -> Denoiser:
        """The untrained one. Heads are of 32 channels, and all widths multiples of that, as tensor cores want it.

        A picture of 30 steps takes 1.3 s on one core of a laptop: one and a half times the operations of (64, 128).
        """
        torch.manual_seed(1)
        unet = UNet2DConditionModel(
            sample_size=GRID,
            in_channels=CHANNELS,
            out_channels=CHANNELS,
            block_out_channels=(96, 128),
            layers_per_block=1,
            down_block_types=("CrossAttnDownBlock2D",) * 2,
            up_block_types=("CrossAttnUpBlock2D",) * 2,
            cross_attention_dim=WIDTH,
            attention_head_dim=(3, 4),  # heads, not their width: diffusers' old name
            norm_num_groups=8,
        )
        text_encoder = CLIPTextModel(
            CLIPTextConfig(
                vocab_size=len(tokenizer),
                hidden_size=WIDTH,
                intermediate_size=4 * WIDTH,
                num_hidden_layers=4,
                num_attention_heads=6,
                max_position_embeddings=POSITIONS,
                projection_dim=WIDTH,
                bos_token_id=tokenizer.bos_token_id,
                eos_token_id=tokenizer.eos_token_id,
                pad_token_id=tokenizer.pad_token_id,
            )
        )
        return Denoiser(unet, text_encoder)

    @staticmethod
    def of(unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> Denoiser:
        """One to train further; the UNet's config then names no folder that it was loaded from."""
        own = UNet2DConditionModel(**{k: v for k, v in unet.config.items() if not k.startswith("_")})
        own.load_state_dict(unet.state_dict())
        return Denoiser(own, text_encoder)

    def on(self, device: torch.device) -> Denoiser:
        """Itself on ``device``, with the attention that trains fastest there."""
        # The fused attention's backward pass in bf16 takes as long as all the rest on a CPU.
        fused = device.type == "cuda"
        self.unet.set_attn_processor(AttnProcessor2_0() if fused else AttnProcessor())
        self.text_encoder.set_attn_implementation("sdpa" if fused else "eager")
        return self.to(device)

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
class TrainingSet:
    """What there is to learn from: scaled latents ``(n, 16, 16, 16)`` in fp16 with their captions' ids ``(n, 48)``.

    ``groups`` are the numbers of those of each of ``GROUPS``; ``empty`` ``(1, 48)`` is no caption.
    All lies on the device that trains: 13 KB a picture.
    """

    latents: torch.Tensor
    ids: torch.Tensor
    empty: torch.Tensor
    groups: dict[str, torch.Tensor]

    @staticmethod
    def of(
        components: Components, tokenizer: CLIPTokenizer, synthetic: tuple[np.ndarray, list[Any]], device: torch.device
    ) -> TrainingSet:
        """Those of the pool ``synthetic``: its pictures, and the caption and group of each."""
        data, told = synthetic
        latents = torch.empty(len(data), CHANNELS, GRID, GRID, dtype=torch.float16, device=device)
        for start in range(0, len(data), ENCODED):
            x = to_tensor(data[start : start + ENCODED], device)
            latents[start : start + ENCODED] = components.latents(x) * SCALING_FACTOR
        names = np.array([group for _, group in told])
        return TrainingSet(
            latents,
            token_ids(tokenizer, [caption for caption, _ in told]).to(device),
            token_ids(tokenizer, [""]).to(device),
            {group: torch.from_numpy(np.flatnonzero(names == group)).to(device) for group in GROUPS},
        )


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """``(n, 48)``, as the tokenizer itself makes them of one caption, but by all cores, and without its lists."""
    own = copy.deepcopy(tokenizer)  # it keeps the padding and truncation it was called with, in its files too
    backend = own.backend_tokenizer
    backend.enable_truncation(POSITIONS)
    backend.enable_padding(length=POSITIONS, pad_id=own.pad_token_id, pad_token=own.pad_token)
    return torch.from_numpy(np.array([encoded.ids for encoded in backend.encode_batch_fast(captions)], np.int64))


def starting(steps: int) -> Plan:
    return Plan(steps, 1.2e-3, warmup=300, average=0.999)


def finishing(steps: int) -> Plan:
    """Other draws than the first part's, and Muon for all that lies between the embeddings and the last layer."""
    return Plan(steps, 1.2e-3, warmup=100, average=0.999, orthogonal=_is_hidden, seed=2_000_003)


def within(seconds: float) -> Plan:
    """All in one go, with Muon, for large batches.

    A batch 32 times that of the other plans would bear, by the square root, 5 times their rate; Muon's steps
    are of one size however small the gradients, and far fewer noisy ones are needed: less than twice the rate.
    """
    return Plan.within(seconds, 2e-3, warmup=300, decay_from=0.4, average=0.999, orthogonal=_is_hidden)


def _is_hidden(name: str, weights: nn.Parameter) -> bool:
    outer = ("conv_in.", "conv_out.", "token_embedding.", "position_embedding.")
    return weights.ndim > 1 and not any(part in name for part in outer)


def warm_up(model: Denoiser, batch: int) -> None:
    """Have all that is compiled at the first step compiled, with nothing learned."""
    device = model.unet.device
    noisy = torch.zeros(batch, CHANNELS, GRID, GRID, device=device).contiguous(memory_format=torch.channels_last)
    steps, ids = (torch.zeros(batch, *size, dtype=torch.long, device=device) for size in ((), (POSITIONS,)))
    model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.autocast(device.type, torch.bfloat16):
        guess = model(noisy, steps, ids)
    guess.float().square().mean().backward()
    for weights in model.parameters():
        weights.grad = None


def train(model: Denoiser, training_set: TrainingSet, plan: Plan, state: Path, batch: int) -> None:
    """Train ``model`` by ``plan``; ``state`` is the file that holds how far it is."""
    scheduler = new_scheduler()
    device = training_set.latents.device
    alphas = scheduler.alphas_cumprod.to(device)
    slots = [(group, round(share * batch)) for group, share in SHARES.items()]
    slots[0] = (slots[0][0], batch - sum(count for _, count in slots[1:]))

    def loss_of_step(step: int, generator: torch.Generator) -> torch.Tensor:
        integers = partial(torch.randint, generator=generator, device=device)
        picked = torch.cat([training_set.groups[g][integers(len(training_set.groups[g]), (n,))] for g, n in slots])
        latents = training_set.latents[picked].float()
        timesteps = integers(len(alphas), (batch,))
        timesteps[::2] = integers(*DECISIVE, (len(timesteps[::2]),))
        noise = torch.randn(latents.shape, generator=generator, device=device)
        signal = alphas[timesteps].view(-1, 1, 1, 1)
        noisy = (signal.sqrt() * latents + (1 - signal).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        silent = torch.rand(batch, 1, generator=generator, device=device) < NO_CAPTION
        with torch.autocast(device.type, torch.bfloat16):
            guess = model(noisy, timesteps, torch.where(silent, training_set.empty, training_set.ids[picked])).float()
        return ((guess - latents).square() * (1 / (1 - signal)).clamp(max=MOST_WEIGHT)).mean()

    fit(model, loss_of_step, plan, state)
