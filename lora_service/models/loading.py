"""Loads the base model that ``BASE_MODEL`` names: the embedded one, a folder, a model of the hub or a single file."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, cast

import torch
from safetensors import SafetensorError
from torch import nn

from lora_service.errors import BaseModelError, SettingError
from lora_service.models.block_offloading import BlockOffloading
from lora_service.models.components import Components, check_components, unusable
from lora_service.models.defaults import ModelDefaults
from lora_service.models.diffusers_folder import load_folder
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.families.family import Family
from lora_service.models.hub_download import ensure_local
from lora_service.models.quantization import check_quantization, quantize_backbone
from lora_service.models.registry import family_at
from lora_service.models.single_file import load_single_file
from lora_service.settings import Settings


def load_base(settings: Settings, *, for_training: bool = False) -> DiffusionBase:
    """Load the base model of ``BASE_MODEL`` onto its device, frozen; a model of the hub is downloaded first.

    Raises:
        BaseModelError: there is no such folder, file or hub id, it is no base of any family, or it does not fit the
            device's memory.
        SettingError: ``BASE_QUANTIZATION`` or ``OFFLOAD_BLOCKS`` cannot be done here.
    """
    _disable_progress_bars()
    device = choose_device(settings)
    check_quantization(settings, device, for_training=for_training)
    _check_blocks(settings, device)
    path, defaults = ensure_local(settings)
    family = family_at(settings.base_model, path)
    half_precision = family.half_precision if family else ""
    dtype = choose_dtype(settings, device, half_precision, for_training=for_training)
    # What is quantized, and blocks that wait, are on the host first.
    is_direct = device.type == "cuda" and settings.base_quantization == "none" and not settings.offload_blocks
    try:
        components = _load_components(path, dtype, settings, device if is_direct else None)
    except torch.OutOfMemoryError as error:
        raise _too_large(settings, family, for_training=for_training) from error
    if for_training and components.family.is_inpainting(components.vae, components.backbone):
        reason = "is an inpainting model, which draws but cannot be trained; a LoRA of the plain base fits it"
        raise unusable(settings.base_model, reason)
    if settings.base_quantization != "none":
        kept = components.family.kept
        quantize_backbone(components.backbone, settings.base_quantization, dtype, device, kept)
    waits = settings.offload_blocks
    try:
        base = assemble(settings.base_model, components, defaults, device, dtype, blocks_wait=waits)
    except torch.OutOfMemoryError as error:
        raise _too_large(settings, components.family, for_training=for_training) from error
    if not for_training:
        prepare_for_drawing(base)
    return base


def _too_large(settings: Settings, family: Family | None, *, for_training: bool) -> BaseModelError:
    """Make the error for a base that the device has no memory for, with the settings that would help."""
    helps = [f"BASE_QUANTIZATION={'nf4' if for_training else 'fp8'}"] if settings.base_quantization == "none" else []
    if family and family.backbone == "transformer" and not settings.offload_blocks:
        helps.insert(0, "OFFLOAD_BLOCKS=1")
    advice = f"set {' or '.join(helps)}, or take a smaller one" if helps else "take a smaller one"
    return BaseModelError(
        f"BASE_MODEL {settings.base_model!r} does not fit the device's memory; {advice}.",
        code="out_of_memory",
        field="BASE_MODEL",
    )


def _check_blocks(settings: Settings, device: torch.device) -> None:
    """Check that ``OFFLOAD_BLOCKS`` can be done here, before anything is downloaded or loaded.

    Raises:
        SettingError: it cannot.
    """
    if settings.offload_blocks and device.type == "cpu":
        raise SettingError("OFFLOAD_BLOCKS", True, "0 on a CPU, whose memory is the host's")
    if settings.offload_blocks and settings.base_quantization != "none":
        expected = f"0 with BASE_QUANTIZATION {settings.base_quantization}, whose weights stay on the card"
        raise SettingError("OFFLOAD_BLOCKS", True, expected)


def prepare_for_drawing(base: DiffusionBase) -> None:
    """Lay the weights of convolutions out as a GPU's tensor cores compute them; on a CPU that gains nothing."""
    if base.device.type == "cuda":
        for model in (base.backbone, base.vae):
            cast(Any, nn.Module).to(model, memory_format=torch.channels_last)  # an argument that its types lack


def choose_device(settings: Settings) -> torch.device:
    """Return the device of ``DEVICE``; ``auto`` is CUDA, else Apple's MPS, else the CPU.

    Of several processes that train together, each gets the GPU of its number.

    Raises:
        BaseModelError: this machine has no such device, or not one for each process.
    """
    available = {"cuda": torch.cuda.is_available(), "mps": torch.backends.mps.is_available(), "cpu": True}
    if settings.device == "auto":
        return _own_device(next(name for name in available if available[name]))
    if not available[settings.device]:
        raise BaseModelError(
            f"DEVICE is {settings.device!r}, but this machine has none; set DEVICE=cpu or leave it out.",
            code="device_unavailable",
            field="DEVICE",
        )
    return _own_device(settings.device)


def _own_device(name: str) -> torch.device:
    """Return the device ``name``, with the number that the launcher of several processes gave this one."""
    number = os.environ.get("LOCAL_RANK")
    if name != "cuda" or number is None:
        return torch.device(name)
    count = torch.cuda.device_count()
    if int(number) >= count:
        raise BaseModelError(
            f"TRAIN_PROCESSES, or --num-processes, is {os.environ.get('LOCAL_WORLD_SIZE', int(number) + 1)}, but there "
            f"{'is 1 GPU' if count == 1 else f'are {count} GPUs'} here, and each process needs its own; it must be "
            f"{count} at most.",
            code="too_few_devices",
            field="TRAIN_PROCESSES",
        )
    torch.cuda.set_device(int(number))
    return torch.device(name, int(number))


def choose_dtype(
    settings: Settings, device: torch.device, half_precision: str = "", *, for_training: bool = False
) -> torch.dtype:
    """Return the dtype of ``DTYPE``; ``auto`` is fp32, on CUDA fp16, and for training bf16 on cards that have it.

    Args:
        half_precision: the family's own, which is taken for drawing too.
    """
    if settings.dtype == "auto":
        if device.type != "cuda":
            return torch.float32
        # Emulated bf16, which older cards claim to have, is slower than fp16.
        real_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
        wants_bf16 = for_training or half_precision == "bfloat16"
        return torch.bfloat16 if wants_bf16 and real_bf16 else torch.float16
    return {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}[settings.dtype]


def use_threads(settings: Settings) -> None:
    """Set torch's number of CPU threads, on which the last bits of results depend.

    Without a number in the settings it is that of ``OMP_NUM_THREADS``, which a shared machine has for good reason:
    where threads have to wait for a core, each step waits for the last of them. Else processes that train together
    share the cores.
    """
    processes = int(os.environ.get("LOCAL_WORLD_SIZE", "1"))
    if settings.torch_threads or "OMP_NUM_THREADS" not in os.environ:
        torch.set_num_threads(settings.torch_threads or max(1, (os.cpu_count() or 1) // processes))


def assemble(
    name: str,
    components: Components,
    defaults: ModelDefaults | None,
    device: torch.device,
    dtype: torch.dtype,
    *,
    blocks_wait: bool = False,
) -> DiffusionBase:
    """Make one base of ``components``, frozen and on ``device``; ``defaults`` of None are replaced by the family's.

    Args:
        blocks_wait: the blocks of the transformer wait on the host where they are not computed.

    Raises:
        BaseModelError: it has a prediction type that is not supported.
        SettingError: blocks are to wait of a UNet, which has no such blocks.
    """
    family = components.family
    scheduler_config = family.scheduler_config(name, components.scheduler_config, defaults)
    base = DiffusionBase(
        name=name,
        family=family,
        backbone=components.backbone,
        vae=components.vae,
        text=family.text_encoders(components),
        scheduler_config=scheduler_config,
        pipeline_config=components.pipeline_config,
        defaults=defaults or family.defaults(scheduler_config, components.pipeline_config),
        device=device,
        dtype=dtype,
    )
    for model in base.models.values():
        model.eval().requires_grad_(False)
    if blocks_wait:
        _let_blocks_wait(base)
    for model in (*([] if blocks_wait else [base.backbone]), *base.text.encoders.values()):
        model.to(device)
    # nn.Module's own method: that of diffusers warns of every cast.
    nn.Module.to(base.vae, device, family.vae_dtype(base.vae.config, dtype))
    return base


def _let_blocks_wait(base: DiffusionBase) -> None:
    """Move the backbone without its blocks to the device; these come there when they are computed."""
    if not base.blocks:
        raise SettingError("OFFLOAD_BLOCKS", True, f"0 for {base.family.title}, whose {base.family.backbone} is small")
    base.waiting_blocks = BlockOffloading(base.blocks, base.device)
    base.waiting_blocks.start()
    waiting = {id(tensor) for tensor in base.waiting_blocks.tensors}
    for tensor in (*base.backbone.parameters(), *base.backbone.buffers()):
        if id(tensor) not in waiting:
            tensor.data = tensor.data.to(base.device)


def _load_components(path: Path, dtype: torch.dtype, settings: Settings, device: torch.device | None) -> Components:
    name = settings.base_model
    try:
        if path.is_file():
            components = load_single_file(path, name, dtype, settings, device)
        else:
            components = load_folder(path, name, dtype, device)
    except torch.OutOfMemoryError:
        raise
    except (OSError, ValueError, KeyError, RuntimeError, SafetensorError) as error:
        reason = next(iter(str(error).splitlines()), type(error).__name__)
        raise unusable(name, f"could not be loaded ({reason})", code="unreadable_model") from error
    check_components(name, components)
    return components


def _disable_progress_bars() -> None:
    """Keep the libraries' progress bars out of logs that people read."""
    import diffusers
    import transformers

    for library in (diffusers, transformers):
        library.utils.logging.disable_progress_bar()
