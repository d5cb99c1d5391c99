"""Warnings of inputs that have no effect, or another than they seem to have, in a training."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

from lora_service.dataset.report import DatasetReport
from lora_service.training.inputs.config import PRODIGY_RATE, TrainConfig
from lora_service.training.inputs.resolved_config import warmup_of_stage

_INPUTS_OF_STAGE: Mapping[str, tuple[str, ...]] = {
    "max_train_steps_ti": (
        "learning_rate_ti", "weight_decay_ti", "placeholder_tokens", "continue_inversion", "continue_inversion_lr",
    ),
    "max_train_steps_tuning": (
        "trigger", "learning_rate_unet", "learning_rate_text", "lora_rank", "lora_alpha", "lora_kind",
        "lora_targets", "lora_plus_ratio", "weight_decay_lora",
        "caption_dropout", "continue_inversion", "continue_inversion_lr", "preservation",
    ),
}  # fmt: skip
"""Steps of a stage -> the inputs that it alone reads."""


_LEAST_PRODIGY_RATE = 0.05
"""A rate below it was meant for another optimiser."""


def warn_of_inputs(config: TrainConfig, report: DatasetReport) -> list[str]:
    """Return a sentence for each input of ``config`` that is not followed as it reads.

    Args:
        config: as given, before it is resolved.
    """
    return [
        f"warning: {text}"
        for text in (*_of_stages(config), *_of_rates(config), *_of_warmup(config), *_of_captions(config, report))
    ]


def _of_stages(config: TrainConfig) -> Iterator[str]:
    for steps, names in _INPUTS_OF_STAGE.items():
        is_left_out = steps == "max_train_steps_ti" and config.preset == "fast"
        unused = [name for name in names if _is_set(config, name)] if is_left_out or not getattr(config, steps) else []
        if unused:
            reason = "preset is fast, which has no stage 1" if is_left_out else f"{steps} is 0"
            yield f"{', '.join(unused)} {_have(unused)} no effect, as {reason}"
    if config.continue_inversion is False and config.continue_inversion_lr is not None:
        yield "continue_inversion_lr has no effect, as continue_inversion is false"
    if config.continue_inversion and config.continue_inversion_lr == 0:
        yield "continue_inversion has no effect, as continue_inversion_lr is 0"
    if not config.shuffle_tags and _is_set(config, "keep_tokens"):
        yield "keep_tokens has no effect, as shuffle_tags is false"
    if config.samples == 0 and config.sample_prompts.strip():
        yield "sample_prompts has no effect, as samples is 0"
    by_choice = {
        "none": ("preservation_weight", "class_prompt", "num_class_images"),
        "output": ("class_prompt", "num_class_images"),
    }
    unused = [name for name in by_choice.get(config.preservation, ()) if _is_set(config, name)]
    if unused:
        yield f"{', '.join(unused)} {_have(unused)} no effect, as preservation is {config.preservation}"
    is_preserved = config.preservation != "none"
    if config.trigger and config.class_word and config.initializer_tokens.strip() and not is_preserved:
        yield "class_word has no effect, as trigger and initializer_tokens stand for it"


def _of_rates(config: TrainConfig) -> Iterator[str]:
    for name, scheduler in (("lr_cycles", "cosine_with_restarts"), ("lr_power", "polynomial")):
        if _is_set(config, name) and config.lr_scheduler != scheduler:
            yield f"{name} has no effect, as lr_scheduler is {config.lr_scheduler!r} and not {scheduler!r}"
    if config.clip_by_group and not config.max_grad_norm:
        yield "clip_by_group has no effect, as max_grad_norm is 0"
    if config.optimizer != "prodigy":
        return
    for name in ("learning_rate_unet", "learning_rate_text", "learning_rate_ti", "continue_inversion_lr"):
        if 0 < (getattr(config, name) or 0) < _LEAST_PRODIGY_RATE:
            yield (
                f"{name} is {getattr(config, name):g}, by which prodigy multiplies the rate that it finds: almost "
                f"nothing will be learned; leave it out, or take about {PRODIGY_RATE:g}"
            )


def _of_warmup(config: TrainConfig) -> Iterator[str]:
    for stage, steps in (("1", config.max_train_steps_ti), ("2", config.max_train_steps_tuning)):
        asked, used = config.lr_warmup_steps or round(config.lr_warmup_ratio * steps), warmup_of_stage(config, steps)
        name = "lr_warmup_steps" if config.lr_warmup_steps else "lr_warmup_ratio"
        if steps and used != asked:
            yield (
                f"{name} is {getattr(config, name):g}, but stage {stage} has {steps} step{'s' * (steps > 1)}: "
                f"it warms up over {used}, or the learning rates would never be reached"
            )


def _of_captions(config: TrainConfig, report: DatasetReport) -> Iterator[str]:
    sources = [image.caption_source for image in report.used]
    from_files, with_captions = sources.count("file"), len(sources) - sources.count("template")
    if config.caption_mode in ("filename", "model") and from_files:
        yield (
            f"caption_mode is {config.caption_mode!r}, but {from_files} of {len(sources)} pictures have caption files, "
            "which are used; leave those out of the upload"
        )
    if config.templates and with_captions:
        yield (
            f"custom_prompts are not used for {with_captions} of {len(sources)} pictures, which have captions of their "
            "own; caption_mode 'template' uses them for all"
        )


def _have(names: Sequence[str]) -> str:
    return "has" if len(names) == 1 else "have"


def _is_set(config: TrainConfig, name: str) -> bool:
    """Return True if an input is not its default."""
    return bool(getattr(config, name) != TrainConfig.model_fields[name].default)
