"""The two stages: textual inversion of new tokens, then LoRA on the UNet and the text encoder."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import CLIPTokenizer

from lora_service.models.bundle import BaseModel
from lora_service.pictures import TrainingPicture
from lora_service.pictures.captions import TagOptions
from lora_service.training import objective
from lora_service.training.config import TrainPlan
from lora_service.training.draws import Draws, Wording, draw
from lora_service.training.latents import CachedLatents
from lora_service.training.layers import LoraLinear
from lora_service.training.loop import OnProgress, Stage, StageReport, run
from lora_service.training.tokens import TokenRows, pull_norms

TRIGGER_SHARE = 0.3
"""Share of stage 2's captions that carry the plain trigger word instead of the learned tokens, so that the
LoRA also works in tools that read no tokens."""

CAPTIONS_AT_MOST = 2000
"""Different captions whose hidden states are kept: 470 MB in fp32 for SD 1.5."""


@dataclass(frozen=True)
class Material:
    """What both stages work on."""

    base: BaseModel
    pictures: tuple[TrainingPicture, ...]
    cache: list[CachedLatents]
    plan: TrainPlan
    tokenizer: CLIPTokenizer
    autocast: torch.dtype | None

    def draws(self, stage: str, steps: int, spellings: tuple[tuple[str, float], ...], dropout: float) -> Draws:
        config = self.plan.config
        return draw(
            self.cache,
            self.pictures,
            Wording(spellings, TagOptions(config.shuffle_tags, config.keep_tokens, dropout)),
            self.tokenizer,
            batches=steps * config.gradient_accumulation_steps,
            batch_size=config.train_batch_size,
            seed=f"{stage} {config.seed}",
        )

    def generator(self, offset: int) -> torch.Generator:
        """Noise and timesteps of one stage, drawn on the device."""
        return torch.Generator(self.base.device).manual_seed((self.plan.config.seed or 0) + offset)


def invert(material: Material, rows: TokenRows, on_progress: OnProgress) -> StageReport:
    """Stage 1 (https://arxiv.org/abs/2208.01618): only ``rows`` learn, through the frozen text encoder and UNet.

    No caption is dropped here: an empty one teaches the tokens nothing.
    """
    plan, config, base = material.plan, material.plan.config, material.base
    steps = config.max_train_steps_ti
    draws = material.draws("tokens", steps, ((plan.spelling, 1.0),), dropout=0.0)
    return run(
        Stage(
            name="stage 1 (tokens)",
            steps=steps,
            batch_size=config.train_batch_size,
            groups=[{"params": [rows.rows], "lr": config.learning_rate_ti, "weight_decay": config.weight_decay_ti}],
            loss_of_batch=_loss(material, draws, _encode_each(base, draws), material.generator(1)),
            autocast=material.autocast,
            after_step=lambda rates: pull_norms(rows.rows, base.recipe.token_norm, rates[0]),
        ),
        config,
        on_progress,
    )


def tune(
    material: Material,
    unet: Mapping[str, LoraLinear],
    text: Mapping[str, LoraLinear],
    rows: TokenRows | None,
    on_progress: OnProgress,
) -> StageReport:
    """Stage 2: the LoRA layers learn, the tokens too where ``continue_inversion`` says so."""
    plan, config, base = material.plan, material.plan.config, material.base
    steps = config.max_train_steps_tuning
    groups = _groups(plan, unet, text)
    learns_tokens = rows is not None and bool(config.continue_inversion)
    if rows is not None:
        rows.rows.requires_grad_(learns_tokens)
        if learns_tokens:
            groups.append(
                {"params": [rows.rows], "lr": config.continue_inversion_lr, "weight_decay": config.weight_decay_ti}
            )
    spellings = ((plan.spelling, 1 - TRIGGER_SHARE), (plan.trigger, TRIGGER_SHARE)) if rows else ((plan.trigger, 1.0),)
    draws = material.draws("tuning", steps, spellings, config.caption_dropout or 0.0)
    # With nothing learning in the text encoder each caption is encoded once, not once a step.
    encode = _encode_each if learns_tokens or text or len(draws.ids) > CAPTIONS_AT_MOST else _encode_once

    def keep_norms(rates: Any) -> None:
        if learns_tokens and rows is not None:
            pull_norms(rows.rows, base.recipe.token_norm, rates[-1])

    return run(
        Stage(
            name="stage 2 (LoRA)",
            steps=steps,
            batch_size=config.train_batch_size,
            groups=groups,
            loss_of_batch=_loss(material, draws, encode(base, draws), material.generator(2)),
            autocast=material.autocast,
            after_step=keep_norms,
        ),
        config,
        on_progress,
    )


def _groups(plan: TrainPlan, unet: Mapping[str, LoraLinear], text: Mapping[str, LoraLinear]) -> list[dict[str, Any]]:
    config = plan.config
    rates = ((unet, config.learning_rate_unet), (text, config.learning_rate_text))
    return [
        {
            "params": [p for layer in layers.values() for p in (layer.down, layer.up)],
            "lr": rate,
            "weight_decay": config.weight_decay_lora,
        }
        for layers, rate in rates
        if layers
    ]


Encode = Callable[[torch.Tensor], torch.Tensor]


def _encode_each(base: BaseModel, draws: Draws) -> Encode:
    """Hidden states ``(b, n, width)`` of captions ``(b,)``, through the text encoder as it is now."""
    return lambda captions: base.text_encoder(draws.ids[captions])[0]


def _encode_once(base: BaseModel, draws: Draws) -> Encode:
    with torch.no_grad():
        states = torch.cat([base.text_encoder(ids)[0] for ids in draws.ids.split(16)])
    return lambda captions: states[captions]


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
        guess = base.unet(noisy.to(base.unet.dtype), timesteps, encode(draws.captions[i])).sample
        wanted = objective.target(latents, noise, alphas, kind)
        weights = objective.snr_weights(alphas, config.snr_gamma or 0.0, kind)
        return objective.masked_loss(guess, wanted, weights, latents_of.masks(version, picture))

    return loss_of_batch
