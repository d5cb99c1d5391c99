"""Loads a base model: the embedded one, a diffusers folder, a hub id or a single file, all into one bundle."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from safetensors import SafetensorError
from torch import nn

from lora_service.errors import BaseModelError
from lora_service.models.components import Components, refusal, refuse_broken
from lora_service.models.defaults import ModelDefaults, PredictionType
from lora_service.models.diffusers_folder import load_folder
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.hub_download import ensure_local
from lora_service.models.registry import defaults_for
from lora_service.models.single_file import load_single_file
from lora_service.models.text_encoders import TextEncoders
from lora_service.settings import Settings


def choose_device(settings: Settings) -> torch.device:
    """The device of ``DEVICE``; ``auto`` is CUDA, then Apple's MPS, then the CPU.

    Raises:
        BaseModelError: CUDA or MPS was asked for and is not there.
    """
    there = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if settings.device == "auto":
        return torch.device(next(name for name in there if there[name]))
    if not there[settings.device]:
        raise BaseModelError(
            f"DEVICE is {settings.device!r}, but this machine has none; set DEVICE=cpu or leave it out."
        )
    return torch.device(settings.device)


def choose_dtype(settings: Settings, device: torch.device, *, for_training: bool = False) -> torch.dtype:
    """The dtype of ``DTYPE``; ``auto`` is fp32, on CUDA fp16, for training bf16 where there is bf16."""
    if settings.dtype == "auto":
        if device.type != "cuda":
            return torch.float32
        # Emulated bf16, which older cards claim to have, is slower than fp16.
        real_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        return torch.bfloat16 if for_training and real_bf16 else torch.float16
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[settings.dtype]


def use_threads(settings: Settings) -> int:
    """Fix the number of CPU threads, which results depend on in the last bits; returns it."""
    threads = settings.torch_threads or os.cpu_count() or 1
    torch.set_num_threads(threads)
    return threads


def vae_dtype(config: Mapping[str, Any], dtype: torch.dtype, *, is_xl: bool) -> torch.dtype:
    """What a VAE of ``config`` is held in beside a UNet of ``dtype``: XL's overflows in half precision.

    A VAE that was mended says ``force_upcast: false``; 1.x and 2.x need none, whatever that says.
    """
    return torch.float32 if is_xl and config["force_upcast"] else dtype


def load_base(settings: Settings, *, for_training: bool = False) -> DiffusionBase:
    """The base model of ``BASE_MODEL``, on its device, frozen.

    Raises:
        BaseModelError: there is no such folder, file or hub id, or it is no Stable Diffusion.
    """
    _silence()
    device = choose_device(settings)
    dtype = choose_dtype(settings, device, for_training=for_training)
    place, defaults = ensure_local(settings)
    components = _load_parts(place, dtype, settings)
    return assemble(settings.base_model, components, defaults, device, dtype)


def assemble(
    name: str, components: Components, defaults: ModelDefaults | None, device: torch.device, dtype: torch.dtype
) -> DiffusionBase:
    """``components`` as one base, frozen and on ``device``; without a recipe of its own it gets its family's.

    Raises:
        BaseModelError: its UNet predicts what is neither learned nor drawn here.
    """
    is_xl = components.unet.config.addition_embed_type == "text_time"
    text = TextEncoders(components.text_encoders, components.tokenizers, blank_is_zero=components.blank_is_zero)
    schedule = dict(components.scheduler_config)
    if defaults and defaults.prediction_type:
        schedule["prediction_type"] = defaults.prediction_type
    if schedule.get("prediction_type", "epsilon") not in get_args(PredictionType):
        predicted = (
            f"says that it predicts {schedule['prediction_type']!r} and not {' or '.join(get_args(PredictionType))}"
        )
        raise refusal(name, predicted)
    base = DiffusionBase(
        name=name,
        unet=components.unet,
        vae=components.vae,
        text=text,
        scheduler_config=schedule,
        defaults=defaults or defaults_for(is_xl, text.width, str(schedule.get("prediction_type"))),
        device=device,
        dtype=dtype,
    )
    for part in base.components.values():
        part.eval().requires_grad_(False).to(device)
    # The plain method: that of diffusers warns of every cast.
    nn.Module.to(base.vae.eval().requires_grad_(False), device, vae_dtype(base.vae.config, dtype, is_xl=is_xl))
    return base


def _load_parts(place: Path, dtype: torch.dtype, settings: Settings) -> Components:
    name = settings.base_model
    try:
        components = (
            load_single_file(place, name, dtype, settings) if place.is_file() else load_folder(place, name, dtype)
        )
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise refusal(name, f"could not be loaded ({reason})") from error
    refuse_broken(name, components)
    return components


def _silence() -> None:
    """Keep the libraries' progress bars out of logs that people read."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
