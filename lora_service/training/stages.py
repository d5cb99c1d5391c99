"""The two stages: textual inversion of new tokens, then LoRA on the UNet and the text encoders."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import torch

from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.text_encoders import PromptEmbeds, TextEncoders, TokenIds
from lora_service.training.adapters.lora_layers import Layers
from lora_service.training.adapters.textual_inversion import AddedTokens, NormPull
from lora_service.training.context import TrainingContext
from lora_service.training.data.batches import BatchBlock, BatchPlan
from lora_service.training.inputs.resolved_config import ResolvedConfig
from lora_service.training.losses.batch_loss import BatchLoss, BatchSource, ReadCaptions, SubjectLoss
from lora_service.training.losses.denoising_loss import DenoisingLoss
from lora_service.training.losses.preservation import ClassCaptions, ClassCaptionSampler, OutputLoss, PriorLoss
from lora_service.training.optimization.loop import LoopReport, LoopSpec, TrainingCallback, run_loop
from lora_service.training.optimization.optimizers import TOKENS

TRIGGER_SHARE = 0.3
"""Share of stage 2's captions that carry the plain trigger word instead of the learned tokens, so that the
LoRA also works in tools that read no tokens."""

STAGE_2_COST = 1.1
"""Time of a step of stage 2 in steps of stage 1, for the time that is left; both go forward and back through the
UNet."""


def train_textual_inversion(
    context: TrainingContext, tokens: AddedTokens, callbacks: Sequence[TrainingCallback] = ()
) -> LoopReport:
    """Run stage 1 (https://arxiv.org/abs/2208.01618): only the tokens' rows learn, text encoders and UNet are frozen.

    No caption is dropped here: an empty one teaches the tokens nothing.
    """
    resolved, config = context.resolved, context.resolved.config
    steps = config.max_train_steps_ti
    plan = context.plan("tokens", tuple(((subject.text, 1.0),) for subject in resolved.subjects), dropout=0.0)
    generator = context.generator(1)
    batches = _batches(context, plan, _tokenize, generator)
    spec = LoopSpec(
        name="stage 1 (tokens)",
        steps=steps,
        batch_size=config.train_batch_size * context.processes.count,
        param_groups=[_token_group(tokens, config.learning_rate_ti, config.weight_decay_ti)],
        compute_loss=SubjectLoss(batches.denoising, context.text),
        sample=batches.sample,
        autocast=context.autocast,
        generator=generator,
        later_steps=STAGE_2_COST * config.max_train_steps_tuning,
        after_step=_norm_pull(context.base, tokens),
    )
    with context.text_waits(is_needed=True):
        return run_loop(spec, config, callbacks, context.processes, context.gradients)


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
    # Without tokens both are the trigger.
    shares = (1 - TRIGGER_SHARE, TRIGGER_SHARE) if tokens else (1.0, 0.0)
    texts = tuple(tuple(zip((each.text, each.trigger), shares, strict=True)) for each in resolved.subjects)
    plan = context.plan("tuning", texts, config.caption_dropout or 0.0)
    text_learns = learning is not None or any(layers.get(name) for name in base.text.encoders)
    read = _tokenize if text_learns else _encode_once
    generator = context.generator(2)
    sample, compute_loss = _preserving_loss(context, _batches(context, plan, read, generator), read)
    spec = LoopSpec(
        name="stage 2 (LoRA)",
        steps=steps,
        batch_size=config.train_batch_size * context.processes.count,
        param_groups=param_groups,
        compute_loss=compute_loss,
        sample=sample,
        autocast=context.autocast,
        generator=generator,
        after_step=_norm_pull(base, learning),
    )
    encodes_each_step = resolved.preservation == "output"
    with context.text_waits(is_needed=text_learns or encodes_each_step, companions_are_needed=encodes_each_step):
        return run_loop(spec, config, callbacks, context.processes, context.gradients)


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
    """Return an optimiser's group per component, the backbone at its rate and every text encoder at the text's.

    A component whose rate is 0 has none; its layers, of a LoRA to go on from, stay as they are. With a
    ``lora_plus_ratio`` (https://arxiv.org/abs/2402.12354) the up matrices are a group of their own.
    """
    config, groups = resolved.config, []
    for component, by_path in layers.items():
        rate = config.learning_rate_text if component.startswith("text_encoder") else config.learning_rate_unet
        if not rate:
            continue
        parts = [([p for layer in by_path.values() for p in layer.parameters.values()], rate)]
        if config.lora_plus_ratio != 1:
            ups = [up for layer in by_path.values() for up in layer.ups]
            of_ups = {id(up) for up in ups}
            rest = [p for p in parts[0][0] if id(p) not in of_ups]
            parts = [(rest, rate), (ups, rate * config.lora_plus_ratio)]
        groups += [
            {"params": params, "lr": lr, "weight_decay": config.weight_decay_lora, "name": component}
            for params, lr in parts
            if params
        ]
    return groups


ReadPlan = Callable[[TextEncoders, BatchPlan], ReadCaptions]


def _tokenize(text: TextEncoders, plan: BatchPlan) -> ReadCaptions:
    """Leave captions to be encoded at each step, as something learns there; companions read each of a block once."""
    read: dict[int, TokenIds] = {}

    def tokenize(i: int, share: slice) -> TokenIds:
        block = plan.block_of(i)
        if block.first not in read:
            read.clear()
            read[block.first] = text.read_by_companions(block.token_ids)
        return plan.token_ids(i, share, read[block.first])

    return tokenize


def _encode_once(text: TextEncoders, plan: BatchPlan) -> ReadCaptions:
    """Encode each caption of a block once, not once a step, as nothing learns in the text encoders.

    Nothing is kept from block to block, so that a stage that goes on from any step encodes alike, bit for bit.
    """
    encoded: dict[int, PromptEmbeds] = {}

    def encode(i: int, share: slice) -> PromptEmbeds:
        block, batch = plan.block_of(i), plan[i]
        if block.first not in encoded:
            encoded.clear()  # first: two blocks' embeds need not fit
            encoded[block.first] = _encode_block(text, block)
        embeds = encoded[block.first]
        return embeds.first(batch.chunks * text.positions)[batch.captions[share]]

    return encode


def _encode_block(text: TextEncoders, block: BatchBlock) -> PromptEmbeds:
    with torch.no_grad():
        return PromptEmbeds.concatenate([text.encode(ids) for ids in block.token_ids.split(16)])


def _batches(context: TrainingContext, plan: BatchPlan, read: ReadPlan, generator: torch.Generator) -> BatchSource:
    """Return the batches of the subject's pictures."""
    denoising = DenoisingLoss(context.base, context.resolved)
    return BatchSource(context.latents, plan, read(context.text, plan), denoising, generator, context.processes)


def _preserving_loss(
    context: TrainingContext, batches: BatchSource, read: ReadPlan
) -> tuple[Callable[[int], Any], Callable[[Any], BatchLoss]]:
    """Return what samples micro-batch ``i`` of stage 2, and its loss, which may keep the subject's class."""
    resolved, config, denoising, text = context.resolved, context.resolved.config, batches.denoising, context.text
    weight = config.preservation_weight or 1.0
    if resolved.preservation == "output":
        captions = ClassCaptions(batches, context.images, config, text)
        output = OutputLoss(denoising, text, context.base.components, weight)
        return lambda i: (batches.sample(i), captions(i, batches.share(i)[0])), output
    if context.class_set is None:
        return batches.sample, SubjectLoss(denoising, text)
    plan = BatchPlan(
        context.class_set.latents,
        context.class_set.images,
        ClassCaptionSampler(config.class_word, config.chunks),
        text,
        batch_size=config.train_batch_size * context.processes.count,
        seed=f"class {config.seed}",
    )
    of_class = replace(batches, latents=context.class_set.latents, plan=plan, read=read(text, plan))
    return lambda i: (batches.sample(i), of_class.sample(i)), PriorLoss(denoising, text, weight)
