"""The two stages: textual inversion of new tokens, then LoRA on the UNet and the text encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from lora_service.dataset.captions.templates import TagOptions
from lora_service.dataset.training_images import TrainingImage
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.text_encoders import PromptEmbeds, TextEncoders
from lora_service.training.batches import BatchPlan, CaptionSampler, plan_batches
from lora_service.training.config import PROMPT_CACHE_BYTES, ResolvedConfig
from lora_service.training.denoising_loss import DenoisingLoss
from lora_service.training.latent_cache import CachedLatents
from lora_service.training.loop import BatchLoss, LoopReport, LoopSpec, TrainingCallback, run_loop
from lora_service.training.lora_layers import Layers
from lora_service.training.optimizers import TOKENS
from lora_service.training.textual_inversion import AddedTokens, NormPull

TRIGGER_SHARE = 0.3
"""Share of stage 2's captions that carry the plain trigger word instead of the learned tokens, so that the
LoRA also works in tools that read no tokens."""

STAGE_2_COST = 1.1
"""Time of a step of stage 2 in steps of stage 1, for the time that is left; both go forward and back through the
UNet."""


@dataclass(frozen=True)
class TrainingContext:
    """The inputs of both stages; the tokenizers of ``text`` have the new tokens, where there are any."""

    base: DiffusionBase
    images: tuple[TrainingImage, ...]
    latents: list[CachedLatents]
    resolved: ResolvedConfig
    text: TextEncoders
    autocast: torch.dtype | None

    def plan(self, stage: str, steps: int, subject_texts: tuple[tuple[str, float], ...], dropout: float) -> BatchPlan:
        """Plan the batches of a stage; ``dropout`` is the share of captions that are left empty."""
        config = self.resolved.config
        return plan_batches(
            self.latents,
            self.images,
            CaptionSampler(subject_texts, TagOptions(config.shuffle_tags, config.keep_tokens, dropout)),
            self.text,
            batches=steps * config.gradient_accumulation_steps,
            batch_size=config.train_batch_size,
            seed=f"{stage} {config.seed}",
        )

    def generator(self, offset: int) -> torch.Generator:
        """Return the generator of a stage's noise and timesteps, on the device."""
        return torch.Generator(self.base.device).manual_seed((self.resolved.config.seed or 0) + offset)


def train_textual_inversion(
    context: TrainingContext, tokens: AddedTokens, callbacks: Sequence[TrainingCallback] = ()
) -> LoopReport:
    """Run stage 1 (https://arxiv.org/abs/2208.01618): only the tokens' rows learn, text encoders and UNet are frozen.

    No caption is dropped here: an empty one teaches the tokens nothing.
    """
    resolved, config = context.resolved, context.resolved.config
    steps = config.max_train_steps_ti
    plan = context.plan("tokens", steps, ((resolved.subject_text, 1.0),), dropout=0.0)
    generator = context.generator(1)
    spec = LoopSpec(
        name="stage 1 (tokens)",
        steps=steps,
        batch_size=config.train_batch_size,
        param_groups=[_token_group(tokens, config.learning_rate_ti, config.weight_decay_ti)],
        compute_loss=_batch_loss(context, plan, _encode_each_step(context.text, plan), generator),
        autocast=context.autocast,
        generator=generator,
        later_steps=STAGE_2_COST * config.max_train_steps_tuning,
        after_step=_norm_pull(context.base, tokens),
    )
    return run_loop(spec, config, callbacks)


def train_lora(
    context: TrainingContext,
    layers: Layers,
    tokens: AddedTokens | None,
    callbacks: Sequence[TrainingCallback] = (),
) -> LoopReport:
    """Run stage 2: the LoRA layers learn, and with ``continue_inversion`` the tokens too.

    Args:
        layers: component -> module path -> the layer.
    """
    resolved, config, base = context.resolved, context.resolved.config, context.base
    steps = config.max_train_steps_tuning
    learning = tokens if config.continue_inversion else None
    param_groups = _layer_groups(resolved, layers)
    if learning is not None:
        param_groups.append(_token_group(learning, config.continue_inversion_lr, config.weight_decay_ti))
    for embedding in tokens.embeddings.values() if tokens else ():
        embedding.rows.requires_grad_(learning is not None)
    subject_texts: tuple[tuple[str, float], ...] = ((resolved.trigger, 1.0),)
    if tokens:
        subject_texts = ((resolved.subject_text, 1 - TRIGGER_SHARE), (resolved.trigger, TRIGGER_SHARE))
    plan = context.plan("tuning", steps, subject_texts, config.caption_dropout or 0.0)
    text_learns = learning is not None or any(layers.get(name) for name in base.text.encoders)
    encode = _encode_each_step if text_learns or _embeds_bytes(base, plan) > PROMPT_CACHE_BYTES else _encode_once
    generator = context.generator(2)
    spec = LoopSpec(
        name="stage 2 (LoRA)",
        steps=steps,
        batch_size=config.train_batch_size,
        param_groups=param_groups,
        compute_loss=_batch_loss(context, plan, encode(context.text, plan), generator),
        autocast=context.autocast,
        generator=generator,
        after_step=_norm_pull(base, learning),
    )
    return run_loop(spec, config, callbacks)


def _norm_pull(base: DiffusionBase, tokens: AddedTokens | None) -> Callable[[Sequence[float]], None]:
    """Return the callback after a step in which ``tokens``, the last of the optimiser's groups, learn."""
    if tokens is None:
        return lambda lrs: None
    pull = NormPull(base, tokens.embeddings)
    return lambda lrs: pull(lrs[-1])


def _token_group(tokens: AddedTokens, lr: float | None, weight_decay: float) -> dict[str, Any]:
    rows = [embedding.rows for embedding in tokens.embeddings.values()]
    return {"params": rows, "lr": lr, "weight_decay": weight_decay, "name": TOKENS}


def _layer_groups(resolved: ResolvedConfig, layers: Layers) -> list[dict[str, Any]]:
    """Return an optimiser's group per component, the UNet at its rate and every text encoder at the text's.

    With a ``lora_plus_ratio`` (https://arxiv.org/abs/2402.12354) the up matrices are a group of their own.
    """
    config, groups = resolved.config, []
    for component, by_path in layers.items():
        rate = config.learning_rate_unet if component == "unet" else config.learning_rate_text
        parts = [([p for layer in by_path.values() for p in layer.parameters.values()], rate)]
        if config.lora_plus_ratio != 1:
            ups = [up for layer in by_path.values() for up in layer.ups]
            of_ups = {id(up) for up in ups}
            rest = [p for p in parts[0][0] if id(p) not in of_ups]
            parts = [(rest, rate), (ups, (rate or 0.0) * config.lora_plus_ratio)]
        groups += [
            {"params": params, "lr": lr, "weight_decay": config.weight_decay_lora, "name": component}
            for params, lr in parts
            if params
        ]
    return groups


EncodeCaptions = Callable[[int], PromptEmbeds]
"""Number of a micro-batch -> the prompt embeds of its captions."""


def _encode_each_step(text: TextEncoders, plan: BatchPlan) -> EncodeCaptions:
    """Encode with the text encoders as they are at each step."""
    return lambda i: text.encode(plan.batch_token_ids(i))


def _encode_once(text: TextEncoders, plan: BatchPlan) -> EncodeCaptions:
    """Encode each caption once, not once a step, as nothing learns in the text encoders."""
    with torch.no_grad():
        embeds = PromptEmbeds.concatenate([text.encode(ids) for ids in plan.token_ids.all().split(16)])
    return lambda i: embeds[plan.captions[i]]


def _embeds_bytes(base: DiffusionBase, plan: BatchPlan) -> int:
    """Return the size of the prompt embeds of all captions."""
    return len(plan.token_ids) * base.text.positions * base.text.width * base.dtype.itemsize


def _batch_loss(
    context: TrainingContext, plan: BatchPlan, encode: EncodeCaptions, generator: torch.Generator
) -> Callable[[int], BatchLoss]:
    """Return the loss of micro-batch ``i``."""
    denoising = DenoisingLoss(context.base, context.resolved)

    def compute_loss(i: int) -> BatchLoss:
        bucket, variants, images = context.latents[plan.buckets[i]], plan.variants[i], plan.images[i]
        batch = denoising.sample(bucket.sample(variants, images, generator), generator)
        loss = denoising(batch, encode(i), bucket.time_ids(variants, images), bucket.masks(variants, images))
        return BatchLoss(loss if plan.weights[i] == 1 else loss * plan.weights[i])

    return compute_loss
