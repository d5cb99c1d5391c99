"""Fits a training's inputs to the family of the base: what the family has no counterpart of is said or refused."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from lora_service.errors import InputError
from lora_service.models.families.family import Family
from lora_service.training.inputs.config import TrainConfig

_CODE = "not_for_this_base"


def fit_to_family(config: TrainConfig, family: Family, log: Callable[[str], None] = lambda line: None) -> TrainConfig:
    """Return ``config`` as a base of ``family`` can be trained.

    Args:
        log: called with what the family leaves out.

    Raises:
        InputError: an input asks for what the family cannot do (``not_for_this_base``).
    """
    if family.objective == "diffusion":
        if config.timestep_sampling != "auto":
            expected = f"auto for {family.title}, whose timesteps follow the task"
            raise InputError("timestep_sampling", config.timestep_sampling, expected, code=_CODE)
        return config
    if config.lora_format == "cloneofsimo":
        expected = f"kohya or diffusers for {family.title}, whose layers it has no names for"
        raise InputError("lora_format", config.lora_format, expected, code=_CODE)
    values: dict[str, Any] = {"snr_gamma": _zero(config, "snr_gamma", family, "flow matching has no SNR weights")}
    values["noise_offset"] = config.noise_offset or 0.0
    if config.max_token_length != "auto":
        expected = f"auto for {family.title}, whose text encoders read no chunks of 75 tokens"
        raise InputError("max_token_length", config.max_token_length, expected, code=_CODE)
    if family.learns_text:
        return config.model_copy(update=values)
    why = "its text encoder is frozen"
    for name in ("learning_rate_text", "continue_inversion"):
        values[name] = _zero(config, name, family, why)
    if config.clip_skip is not None:
        expected = f"left out for {family.title}, whose text encoder is no CLIP"
        raise InputError("clip_skip", config.clip_skip, expected, code=_CODE)
    if not config.max_train_steps_tuning:
        expected = f"1 or more for {family.title}, which has no stage 1: {why}"
        raise InputError("max_train_steps_tuning", 0, expected, code=_CODE)
    if config.max_train_steps_ti:
        log(f"{family.title} has no stage 1, as {why}: max_train_steps_ti is 0, and the trigger word calls the subject")
    for name in ("learning_rate_ti", "initializer_tokens"):
        if getattr(config, name):
            log(f"{family.title} has no stage 1, as {why}: {name} is not used")
    values |= {"max_train_steps_ti": 0, "learning_rate_ti": 0.0, "initializer_tokens": ""}
    return config.model_copy(update=values)


def _zero(config: TrainConfig, name: str, family: Family, why: str) -> Any:
    """Return the neutral value of an input that is empty or has it already.

    Raises:
        InputError: it has another one.
    """
    value = getattr(config, name)
    neutral, allowed = (False, "false") if name == "continue_inversion" else (0.0, "0")
    if value:
        raise InputError(name, value, f"left out or {allowed} for {family.title}: {why}", code=_CODE)
    return neutral
