"""Loads a base model: the embedded one, a diffusers folder, a hub id or a single file."""

from __future__ import annotations

import os

import torch

from lora_service.errors import BaseModelError
from lora_service.models.bundle import BaseModel
from lora_service.models.catalog import ACCEPTED, recipe_of
from lora_service.models.download import at_hand
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


def load_base(settings: Settings, *, for_training: bool = False) -> BaseModel:
    """The base model of ``BASE_MODEL``, on its device, frozen.

    Raises:
        BaseModelError: there is no such folder, file or hub id, or it is no Stable Diffusion.
    """
    _silence()
    from diffusers import StableDiffusionPipeline

    device = choose_device(settings)
    dtype = choose_dtype(settings, device, for_training=for_training)
    source, recipe = at_hand(settings)
    parts = {"dtype": dtype, "safety_checker": None, "requires_safety_checker": False}
    try:
        if source.is_file():
            pipeline = StableDiffusionPipeline.from_single_file(str(source), **parts)
        else:
            pipeline = StableDiffusionPipeline.from_pretrained(source, local_files_only=True, **parts)
    except (OSError, ValueError, KeyError) as error:
        raise BaseModelError(
            f"BASE_MODEL {settings.base_model!r} could not be loaded ({str(error).splitlines()[0]}); "
            f"it must be {ACCEPTED}."
        ) from error
    if getattr(pipeline.unet.config, "addition_embed_type", None):
        raise BaseModelError(f"BASE_MODEL {settings.base_model!r} is a Stable Diffusion XL; it must be {ACCEPTED}.")
    for part in (pipeline.unet, pipeline.vae, pipeline.text_encoder):
        part.eval().requires_grad_(False).to(device)
    return BaseModel(
        name=settings.base_model,
        unet=pipeline.unet,
        vae=pipeline.vae,
        text_encoder=pipeline.text_encoder,
        tokenizer=pipeline.tokenizer,
        scheduler_config=dict(pipeline.scheduler.config),
        recipe=recipe or recipe_of(pipeline.text_encoder.config.hidden_size, pipeline.scheduler.config.prediction_type),
        device=device,
        dtype=dtype,
    )


def _silence() -> None:
    """Keep the libraries' progress bars out of logs that people read."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
