"""The embedded model's UNet and text encoder, trained together on the synthetic dataset."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from diffusers import DDPMScheduler, UNet2DConditionModel
from diffusers.models.attention_processor import AttnProcessor, AttnProcessor2_0
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from tools.embedded.loop import Plan, fit
from tools.embedded.pool import Pool, to_tensor
from tools.embedded.tokenizer import POSITIONS
from tools.embedded.vae import CHANNELS, GRID, SCALING_FACTOR, PrincipalComponents
from tools.synthetic.description import GROUPS

GROUP_SHARES = {"item": 0.42, "face": 0.2, "pair": 0.22, "style": 0.16}
"""Shares of the groups in each batch. In the synthetic dataset single things are 58 %, faces 17 %, pairs 10 % and
styles 15 %; pairs and faces, which are learned last, have larger shares here."""
DECISIVE_TIMESTEPS = (300, 900)
"""Half of each batch has timesteps of this range only, at which the caption decides on colours and shapes: at smaller
ones these are visible already, at larger ones little but the background's colour can be predicted. The other half
has any timesteps."""
MAX_LOSS_WEIGHT = 10.0
"""The squared error of the latents is weighted by ``1 / (1 - alphas_cumprod)``, as if velocity were predicted, but
by no more than this, so that the smallest timesteps do not dominate the loss."""
CAPTION_DROPOUT = 0.1
"""Share of empty captions, for classifier-free guidance."""
WIDTH = 192
ENCODE_CHUNK = 4096
"""Number of pictures that are encoded at a time."""


class Denoiser(nn.Module):
    """The UNet with its text encoder, as one module to train."""

    def __init__(self, unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> None:
        super().__init__()
        self.unet, self.text_encoder = unet, text_encoder

    @staticmethod
    def new(tokenizer: CLIPTokenizer) -> Denoiser:
        """Return an untrained one; attention heads have 32 channels and all widths are multiples, for tensor cores.

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
    def pretrained(unet: UNet2DConditionModel, text_encoder: CLIPTextModel) -> Denoiser:
        """Return one to train further; its UNet's config does not name the folder that ``unet`` was loaded from."""
        copied = UNet2DConditionModel(**{k: v for k, v in unet.config.items() if not k.startswith("_")})
        copied.load_state_dict(unet.state_dict())
        return Denoiser(copied, text_encoder)

    def prepare(self, device: torch.device) -> Denoiser:
        """Move to ``device``, with the attention that trains fastest there, and return itself."""
        # On a CPU the backward pass of fused attention in bf16 takes as long as all the rest.
        fused = device.type == "cuda"
        self.unet.set_attn_processor(AttnProcessor2_0() if fused else AttnProcessor())
        self.text_encoder.set_attn_implementation("sdpa" if fused else "eager")
        return self.to(device)

    def forward(self, noisy_latents: torch.Tensor, timesteps: torch.Tensor, ids: torch.Tensor) -> torch.Tensor:
        """Predict the clean latents from ``noisy_latents`` ``(b, c, h, w)`` and token ``ids`` ``(b, 48)``."""
        return self.unet(noisy_latents, timesteps, self.text_encoder(ids)[0]).sample  # type: ignore[no-any-return]


def new_scheduler() -> DDPMScheduler:
    """Return Stable Diffusion's noise schedule with a noisier end, and the prediction type "sample".

    Most of the 16 channels have little variance and are pure noise at most timesteps: a UNet of 64 channels
    that predicts noise or velocity spends its capacity on copying it (Li and He, 2025).

    Stable Diffusion's last beta (0.012) leaves a signal-to-noise ratio of 0.005, at which the colour of a plain
    background, averaged over 256 positions, is still visible: the model would take it from there and not from the
    caption, and draw everything on gray (Lin et al., 2023).
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
    """Scaled latents ``(n, 16, 16, 16)`` in fp16, and the token ids of their captions ``(n, 48)``.

    ``empty`` ``(1, 48)`` are the ids of the empty caption; ``groups`` holds the indices of the samples of each of
    ``GROUPS``. All tensors are on the device of the training: 13 KB a picture.
    """

    latents: torch.Tensor
    ids: torch.Tensor
    empty: torch.Tensor
    groups: dict[str, torch.Tensor]

    @staticmethod
    def encode(
        components: PrincipalComponents, tokenizer: CLIPTokenizer, synthetic: Pool, device: torch.device
    ) -> TrainingSet:
        """Encode the pool "synthetic": its pictures, and the caption and group of each."""
        data, metadata = synthetic
        latents = torch.empty(len(data), CHANNELS, GRID, GRID, dtype=torch.float16, device=device)
        for start in range(0, len(data), ENCODE_CHUNK):
            x = to_tensor(data[start : start + ENCODE_CHUNK], device)
            latents[start : start + ENCODE_CHUNK] = components.latents(x) * SCALING_FACTOR
        names = np.array([group for _, group in metadata])
        return TrainingSet(
            latents,
            token_ids(tokenizer, [caption for caption, _ in metadata]).to(device),
            token_ids(tokenizer, [""]).to(device),
            {group: torch.from_numpy(np.flatnonzero(names == group)).to(device) for group in GROUPS},
        )


def token_ids(tokenizer: CLIPTokenizer, captions: list[str]) -> torch.Tensor:
    """Return the padded token ids ``(n, 48)``, the same as the tokenizer's own, but encoded by all cores."""
    tokenizer = copy.deepcopy(tokenizer)  # padding and truncation change its state, and the files it is saved to
    backend = tokenizer.backend_tokenizer
    backend.enable_truncation(POSITIONS)
    backend.enable_padding(length=POSITIONS, pad_id=tokenizer.pad_token_id, pad_token=tokenizer.pad_token)
    return torch.from_numpy(np.array([encoded.ids for encoded in backend.encode_batch_fast(captions)], np.int64))


def first_plan(steps: int) -> Plan:
    """Return the plan of the first part: AdamW alone."""
    return Plan(steps, 1.2e-3, warmup=300, ema_decay=0.999)


def second_plan(steps: int) -> Plan:
    """Return the plan of the second part: Muon for the hidden layers, and other random numbers than the first."""
    return Plan(steps, 1.2e-3, warmup=100, ema_decay=0.999, uses_muon=_is_hidden, seed=2_000_003)


def timed_plan(seconds: float) -> Plan:
    """Return the plan of a whole training with a time budget, with Muon, for large batches.

    With a batch 32 times that of the other plans, the square-root rule would allow 5 times their learning rate. Muon's
    updates have the same size however small the gradients, so that less than twice the learning rate is best.
    """
    return Plan.within(seconds, 2e-3, warmup=300, decay_from=0.4, ema_decay=0.999, uses_muon=_is_hidden)


def _is_hidden(name: str, weights: nn.Parameter) -> bool:
    """Return True for matrices and convolutions other than the embeddings, the first and the last layer."""
    outer = ("conv_in.", "conv_out.", "token_embedding.", "position_embedding.")
    return weights.ndim > 1 and not any(part in name for part in outer)


def warm_up(model: Denoiser, batch: int) -> None:
    """Run one training step without an update, so that a compiled model is compiled."""
    device = model.unet.device
    noisy = torch.zeros(batch, CHANNELS, GRID, GRID, device=device).contiguous(memory_format=torch.channels_last)
    timesteps, ids = (torch.zeros(batch, *size, dtype=torch.long, device=device) for size in ((), (POSITIONS,)))
    model.train().to(memory_format=torch.channels_last)  # type: ignore[call-overload]
    with torch.autocast(device.type, torch.bfloat16):
        model_pred = model(noisy, timesteps, ids)
    model_pred.float().square().mean().backward()
    for weights in model.parameters():
        weights.grad = None


def train(model: Denoiser, training_set: TrainingSet, plan: Plan, checkpoint: Path, batch: int) -> None:
    """Train ``model`` by ``plan`` with ``batch`` pictures in a step; ``checkpoint`` is the file to resume from."""
    scheduler = new_scheduler()
    device = training_set.latents.device
    alphas_cumprod = scheduler.alphas_cumprod.to(device)
    counts = [(group, round(share * batch)) for group, share in GROUP_SHARES.items()]
    counts[0] = (counts[0][0], batch - sum(count for _, count in counts[1:]))

    def loss_of_step(step: int, generator: torch.Generator) -> torch.Tensor:
        integers = partial(torch.randint, generator=generator, device=device)
        indices = torch.cat([training_set.groups[g][integers(len(training_set.groups[g]), (n,))] for g, n in counts])
        latents = training_set.latents[indices].float()
        timesteps = integers(len(alphas_cumprod), (batch,))
        timesteps[::2] = integers(*DECISIVE_TIMESTEPS, (len(timesteps[::2]),))
        noise = torch.randn(latents.shape, generator=generator, device=device)
        alpha = alphas_cumprod[timesteps].view(-1, 1, 1, 1)
        noisy = (alpha.sqrt() * latents + (1 - alpha).sqrt() * noise).contiguous(memory_format=torch.channels_last)
        dropped = torch.rand(batch, 1, generator=generator, device=device) < CAPTION_DROPOUT
        ids = torch.where(dropped, training_set.empty, training_set.ids[indices])
        with torch.autocast(device.type, torch.bfloat16):
            model_pred = model(noisy, timesteps, ids).float()
        return ((model_pred - latents).square() * (1 / (1 - alpha)).clamp(max=MAX_LOSS_WEIGHT)).mean()

    fit(model, loss_of_step, plan, checkpoint)
