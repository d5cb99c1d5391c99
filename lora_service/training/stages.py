"""The two stages: textual inversion of new tokens, then LoRA on the UNet and the text encoder."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lora_service.models.bundle import BaseModel
from lora_service.models.text import Conditioning, TextSide
from lora_service.pictures import TrainingPicture
from lora_service.pictures.captions import TagOptions
from lora_service.training import objective
from lora_service.training.config import TrainPlan
from lora_service.training.draws import Draws, Wording, draw
from lora_service.training.latents import CachedLatents
from lora_service.training.layers import Layers
from lora_service.training.loop import OnProgress, Stage, StageReport, run
from lora_service.training.tokens import NewTokens, NormPull

TRIGGER_SHARE = 0.3
"""Share of stage 2's captions that carry the plain trigger word instead of the learned tokens, so that the
LoRA also works in tools that read no tokens."""

TEXT_CACHE_BYTES = 512 * 1024**2
"""Most of the device's memory that kept hidden states of captions may take: 2,200 captions of SD 1.5 in fp32."""


@dataclass(frozen=True)
class Material:
    """What both stages work on; ``text`` knows the new tokens, where there are any."""

    base: BaseModel
    pictures: tuple[TrainingPicture, ...]
    cache: list[CachedLatents]
    plan: TrainPlan
    text: TextSide
    autocast: torch.dtype | None

    def draws(self, stage: str, steps: int, spellings: tuple[tuple[str, float], ...], dropout: float) -> Draws:
        config = self.plan.config
        return draw(
            self.cache,
            self.pictures,
            Wording(spellings, TagOptions(config.shuffle_tags, config.keep_tokens, dropout)),
            self.text,
            batches=steps * config.gradient_accumulation_steps,
            batch_size=config.train_batch_size,
            seed=f"{stage} {config.seed}",
        )

    def generator(self, offset: int) -> torch.Generator:
        """Noise and timesteps of one stage, drawn on the device."""
        return torch.Generator(self.base.device).manual_seed((self.plan.config.seed or 0) + offset)


def invert(material: Material, tokens: NewTokens, on_progress: OnProgress) -> StageReport:
    """Stage 1 (https://arxiv.org/abs/2208.01618): only the tokens' rows learn, through frozen text encoders and UNet.

    No caption is dropped here: an empty one teaches the tokens nothing.
    """
    plan, config = material.plan, material.plan.config
    steps = config.max_train_steps_ti
    draws = material.draws("tokens", steps, ((plan.spelling, 1.0),), dropout=0.0)
    return run(
        Stage(
            name="stage 1 (tokens)",
            steps=steps,
            batch_size=config.train_batch_size,
            groups=[_token_group(tokens, config.learning_rate_ti, config.weight_decay_ti)],
            loss_of_batch=_loss(material, draws, _encode_each(material.text, draws), material.generator(1)),
            autocast=material.autocast,
            after_step=_keep_norms(material.base, tokens),
        ),
        config,
        on_progress,
    )


def tune(material: Material, layers: Layers, tokens: NewTokens | None, on_progress: OnProgress) -> StageReport:
    """Stage 2: the LoRA layers learn, the tokens too where ``continue_inversion`` says so.

    Args:
        layers: component -> module path -> the layer.
    """
    plan, config, base = material.plan, material.plan.config, material.base
    steps = config.max_train_steps_tuning
    learning = tokens if config.continue_inversion else None
    groups = _groups(plan, layers)
    if learning is not None:
        groups.append(_token_group(learning, config.continue_inversion_lr, config.weight_decay_ti))
    for learned in tokens.rows.values() if tokens else ():
        learned.rows.requires_grad_(learning is not None)
    spellings = (
        ((plan.spelling, 1 - TRIGGER_SHARE), (plan.trigger, TRIGGER_SHARE)) if tokens else ((plan.trigger, 1.0),)
    )
    draws = material.draws("tuning", steps, spellings, config.caption_dropout or 0.0)
    text_learns = learning is not None or any(layers.get(name) for name in base.text.encoders)
    encode = _encode_each if text_learns or _cache_bytes(base, draws) > TEXT_CACHE_BYTES else _encode_once
    return run(
        Stage(
            name="stage 2 (LoRA)",
            steps=steps,
            batch_size=config.train_batch_size,
            groups=groups,
            loss_of_batch=_loss(material, draws, encode(material.text, draws), material.generator(2)),
            autocast=material.autocast,
            after_step=_keep_norms(base, learning),
        ),
        config,
        on_progress,
    )


def _keep_norms(base: BaseModel, tokens: NewTokens | None) -> Callable[[Sequence[float]], None]:
    """What follows a step in which ``tokens``, the last of the optimiser's groups, learn."""
    if tokens is None:
        return lambda rates: None
    pull = NormPull(base, tokens.rows)
    return lambda rates: pull(rates[-1])


def _token_group(tokens: NewTokens, rate: float | None, weight_decay: float) -> dict[str, Any]:
    return {"params": [learned.rows for learned in tokens.rows.values()], "lr": rate, "weight_decay": weight_decay}


def _groups(plan: TrainPlan, layers: Layers) -> list[dict[str, Any]]:
    """An optimiser's group per component, the UNet at its rate and every text encoder at the text's."""
    config = plan.config
    return [
        {
            "params": [p for layer in found.values() for p in (layer.down, layer.up)],
            "lr": config.learning_rate_unet if component == "unet" else config.learning_rate_text,
            "weight_decay": config.weight_decay_lora,
        }
        for component, found in layers.items()
        if found
    ]


Encode = Callable[[torch.Tensor], Conditioning]


def _encode_each(text: TextSide, draws: Draws) -> Encode:
    """The conditioning of captions ``(b,)``, through the text encoders as they are now."""
    return lambda captions: text.encode(draws.ids[captions])


def _encode_once(text: TextSide, draws: Draws) -> Encode:
    """The same with nothing learning in the text encoders: each caption is encoded once, not once a step."""
    with torch.no_grad():
        told = Conditioning.joined([text.encode(ids) for ids in draws.ids.split(16)])
    return lambda captions: told[captions]


def _cache_bytes(base: BaseModel, draws: Draws) -> int:
    """What the conditioning of all captions takes."""
    return len(draws.ids) * base.text.positions * base.text.width * base.dtype.itemsize


def _loss(
    material: Material, draws: Draws, encode: Encode, generator: torch.Generator
) -> Callable[[int], torch.Tensor]:
    """The loss of micro-batch ``i``: everything one step does to the pictures, in one place."""
    base, plan, config = material.base, material.plan, material.plan.config
    schedule = base.noise_schedule
    alphas_cumprod = schedule.alphas_cumprod.to(base.device)
    steps, kind = schedule.config.num_train_timesteps, base.prediction_type

    def loss_of_batch(i: int) -> torch.Tensor:
        latents_of, version, picture = material.cache[draws.groups[i]], draws.versions[i], draws.pictures[i]
        latents = latents_of.draw(version, picture, generator)  # (b, c, h, w)
        noise = objective.draw_noise(latents, config.noise_offset or 0.0, generator)
        timesteps = objective.draw_timesteps(len(latents), steps, plan.high_noise, generator)  # (b,)
        alphas = alphas_cumprod[timesteps]
        noisy = objective.add_noise(latents, noise, alphas)
        guess = base.denoise(noisy, timesteps, encode(draws.captions[i]), latents_of.conditioning(version, picture))
        wanted = objective.target(latents, noise, alphas, kind)
        weights = objective.snr_weights(alphas, config.snr_gamma or 0.0, kind)
        return objective.masked_loss(guess, wanted, weights, latents_of.masks(version, picture))

    return loss_of_batch
