"""The two stages: textual inversion of new tokens, then LoRA on the UNet and the text encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lora_service.dataset import TrainingImage
from lora_service.dataset.captions.templates import TagOptions
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.text_encoders import PromptEmbeds, TextEncoders
from lora_service.training import loss
from lora_service.training.batches import BatchPlan, CaptionSampler, plan_batches
from lora_service.training.config import ResolvedConfig
from lora_service.training.latent_cache import CachedLatents
from lora_service.training.loop import LoopReport, LoopSpec, OnProgress, run_loop
from lora_service.training.lora_layers import Layers
from lora_service.training.textual_inversion import AddedTokens, NormPull

TRIGGER_SHARE = 0.3
"""Share of stage 2's captions that carry the plain trigger word instead of the learned tokens, so that the
LoRA also works in tools that read no tokens."""

PROMPT_CACHE_BYTES = 512 * 1024**2
"""Most of the device's memory that kept hidden states of captions may take: 2,200 captions of SD 1.5 in fp32."""


@dataclass(frozen=True)
class TrainingContext:
    """What both stages work on; ``text`` knows the new tokens, where there are any."""

    base: DiffusionBase
    pictures: tuple[TrainingImage, ...]
    cache: list[CachedLatents]
    resolved: ResolvedConfig
    text: TextEncoders
    autocast: torch.dtype | None

    def batches(
        self, stage: str, steps: int, subject_texts: tuple[tuple[str, float], ...], dropout: float
    ) -> BatchPlan:
        config = self.resolved.config
        return plan_batches(
            self.cache,
            self.pictures,
            CaptionSampler(subject_texts, TagOptions(config.shuffle_tags, config.keep_tokens, dropout)),
            self.text,
            batches=steps * config.gradient_accumulation_steps,
            batch_size=config.train_batch_size,
            seed=f"{stage} {config.seed}",
        )

    def generator(self, offset: int) -> torch.Generator:
        """Noise and timesteps of one stage, drawn on the device."""
        return torch.Generator(self.base.device).manual_seed((self.resolved.config.seed or 0) + offset)


def train_textual_inversion(context: TrainingContext, tokens: AddedTokens, on_progress: OnProgress) -> LoopReport:
    """Stage 1 (https://arxiv.org/abs/2208.01618): only the tokens' rows learn, through frozen text encoders and UNet.

    No caption is dropped here: an empty one teaches the tokens nothing.
    """
    resolved, config = context.resolved, context.resolved.config
    steps = config.max_train_steps_ti
    batches = context.batches("tokens", steps, ((resolved.subject_text, 1.0),), dropout=0.0)
    return run_loop(
        LoopSpec(
            name="stage 1 (tokens)",
            steps=steps,
            batch_size=config.train_batch_size,
            groups=[_token_group(tokens, config.learning_rate_ti, config.weight_decay_ti)],
            loss_of_batch=_loss(context, batches, _encode_each(context.text, batches), context.generator(1)),
            autocast=context.autocast,
            after_step=_norm_pull(context.base, tokens),
        ),
        config,
        on_progress,
    )


def train_lora(
    context: TrainingContext, layers: Layers, tokens: AddedTokens | None, on_progress: OnProgress
) -> LoopReport:
    """Stage 2: the LoRA layers learn, the tokens too where ``continue_inversion`` says so.

    Args:
        layers: component -> module path -> the layer.
    """
    resolved, config, base = context.resolved, context.resolved.config, context.base
    steps = config.max_train_steps_tuning
    learning = tokens if config.continue_inversion else None
    groups = _groups(resolved, layers)
    if learning is not None:
        groups.append(_token_group(learning, config.continue_inversion_lr, config.weight_decay_ti))
    for learned in tokens.rows.values() if tokens else ():
        learned.rows.requires_grad_(learning is not None)
    subject_texts = (
        ((resolved.subject_text, 1 - TRIGGER_SHARE), (resolved.trigger, TRIGGER_SHARE))
        if tokens
        else ((resolved.trigger, 1.0),)
    )
    batches = context.batches("tuning", steps, subject_texts, config.caption_dropout or 0.0)
    text_learns = learning is not None or any(layers.get(name) for name in base.text.encoders)
    encode = _encode_each if text_learns or _cache_bytes(base, batches) > PROMPT_CACHE_BYTES else _encode_once
    return run_loop(
        LoopSpec(
            name="stage 2 (LoRA)",
            steps=steps,
            batch_size=config.train_batch_size,
            groups=groups,
            loss_of_batch=_loss(context, batches, encode(context.text, batches), context.generator(2)),
            autocast=context.autocast,
            after_step=_norm_pull(base, learning),
        ),
        config,
        on_progress,
    )


def _norm_pull(base: DiffusionBase, tokens: AddedTokens | None) -> Callable[[Sequence[float]], None]:
    """What follows a step in which ``tokens``, the last of the optimiser's groups, learn."""
    if tokens is None:
        return lambda lrs: None
    pull = NormPull(base, tokens.rows)
    return lambda lrs: pull(lrs[-1])


def _token_group(tokens: AddedTokens, rate: float | None, weight_decay: float) -> dict[str, Any]:
    return {"params": [learned.rows for learned in tokens.rows.values()], "lr": rate, "weight_decay": weight_decay}


def _groups(resolved: ResolvedConfig, layers: Layers) -> list[dict[str, Any]]:
    """An optimiser's group per component, the UNet at its rate and every text encoder at the text's."""
    config = resolved.config
    return [
        {
            "params": [p for layer in found.values() for p in (layer.down, layer.up)],
            "lr": config.learning_rate_unet if component == "unet" else config.learning_rate_text,
            "weight_decay": config.weight_decay_lora,
        }
        for component, found in layers.items()
        if found
    ]


EncodeCaptions = Callable[[torch.Tensor], PromptEmbeds]


def _encode_each(text: TextEncoders, batches: BatchPlan) -> EncodeCaptions:
    """The conditioning of captions ``(b,)``, through the text encoders as they are now."""
    return lambda captions: text.encode(batches.ids[captions])


def _encode_once(text: TextEncoders, batches: BatchPlan) -> EncodeCaptions:
    """The same with nothing learning in the text encoders: each caption is encoded once, not once a step."""
    with torch.no_grad():
        told = PromptEmbeds.concatenate([text.encode(ids) for ids in batches.ids.split(16)])
    return lambda captions: told[captions]


def _cache_bytes(base: DiffusionBase, batches: BatchPlan) -> int:
    """What the conditioning of all captions takes."""
    return len(batches.ids) * base.text.positions * base.text.width * base.dtype.itemsize


def _loss(
    context: TrainingContext, batches: BatchPlan, encode: EncodeCaptions, generator: torch.Generator
) -> Callable[[int], torch.Tensor]:
    """The loss of micro-batch ``i``: everything one step does to the pictures, in one place."""
    base, resolved, config = context.base, context.resolved, context.resolved.config
    schedule = base.noise_schedule
    alphas_cumprod = schedule.alphas_cumprod.to(base.device)
    steps, kind = schedule.config.num_train_timesteps, base.prediction_type

    def loss_of_batch(i: int) -> torch.Tensor:
        latents_of, version, picture = context.cache[batches.groups[i]], batches.versions[i], batches.pictures[i]
        latents = latents_of.draw(version, picture, generator)  # (b, c, h, w)
        noise = loss.sample_noise(latents, config.noise_offset or 0.0, generator)
        timesteps = loss.sample_timesteps(len(latents), steps, resolved.timestep_bias, generator)  # (b,)
        alphas = alphas_cumprod[timesteps]
        noisy = loss.add_noise(latents, noise, alphas)
        model_pred = base.denoise(
            noisy, timesteps, encode(batches.captions[i]), latents_of.conditioning(version, picture)
        )
        wanted = loss.target(latents, noise, alphas, kind)
        weights = loss.snr_weights(alphas, config.snr_gamma or 0.0, kind)
        return loss.masked_loss(model_pred, wanted, weights, latents_of.masks(version, picture))

    return loss_of_batch
