"""The precision that a training computes in, and the checkpointing of gradients."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

from lora_service.errors import InputError
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.training.inputs.resolved_config import ResolvedConfig


@contextmanager
def precision(base: DiffusionBase, resolved: ResolvedConfig, *, checkpointing: bool) -> Iterator[torch.dtype | None]:
    """Yield the dtype to compute in, None for fp32; within the context gradients of the backbone may be checkpointed.

    ``auto`` is the dtype of the base's weights: fp32 on a CPU, which gains nothing from less, bf16 on a card that has
    it, fp16 (with scaled gradients) on older ones.

    Raises:
        InputError: fp16 on a CPU, which has no gradient scaling; or full precision of weights in half precision.
    """
    mode = resolved.config.mixed_precision
    if mode == "fp16" and base.device.type != "cuda":
        raise InputError("mixed_precision", mode, f"auto, no or bf16 on a {base.device.type} device")
    if mode == "no" and base.dtype != torch.float32:
        expected = "auto, fp16 or bf16 here, as the server holds the base in half precision"
        raise InputError("mixed_precision", mode, expected)
    auto = None if base.dtype == torch.float32 else base.dtype
    dtype = {"auto": auto, "no": None, "fp16": torch.float16, "bf16": torch.bfloat16}[mode]
    if not checkpointing:
        yield dtype
        return
    base.backbone.enable_gradient_checkpointing()
    base.backbone.train()  # diffusers checkpoints in training mode only; no part of these models has dropout
    try:
        yield dtype
    finally:
        base.backbone.eval()
        base.backbone.disable_gradient_checkpointing()
