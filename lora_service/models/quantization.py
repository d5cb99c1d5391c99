"""A backbone whose linear layers hold 8 or 4 bits a weight, so that trainings fit cards that are small for it.

int8  one scale a row, outliers apart: LLM.int8(), https://arxiv.org/abs/2208.07339
fp8   8-bit floats, one scale a row, for drawing: :mod:`lora_service.models.float8`
nf4   16 levels, a scale for 64 weights: QLoRA, https://arxiv.org/abs/2305.14314; the scales are in 8 bit themselves

Those for trainings are bitsandbytes', and diffusers puts them in. Gradients pass through them to the LoRA; the weights
never learn, and nothing is merged into them. Convolutions, the text encoders and the VAE stay as they are.
"""

from __future__ import annotations

import logging
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, cast

import torch
from torch import nn

from lora_service.errors import SettingError
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.float8 import FLOAT8_CAPABILITY, to_float8
from lora_service.settings import Quantization, Settings


def check_quantization(settings: Settings, device: torch.device, *, for_training: bool) -> None:
    """Check that ``BASE_QUANTIZATION`` can be done here, before anything is downloaded or loaded.

    Raises:
        SettingError: it cannot.
    """
    asked = settings.base_quantization
    if asked == "none":
        return
    if not for_training and asked != "fp8":
        raise _refused(asked, "none where pictures are drawn, or fp8: LoRAs cannot be merged into such weights")
    if for_training and asked == "fp8":
        raise _refused(asked, "none, int8 or nf4 for trainings")
    if device.type != "cuda":
        raise _refused(asked, f"none on a {device.type} device: it is for CUDA alone")
    if asked == "fp8":
        if torch.cuda.get_device_capability(device) < FLOAT8_CAPABILITY:
            raise _refused(asked, "none on this card, which has no 8-bit floats (Ada, Hopper and later have)")
        if settings.compile:
            raise _refused(asked, "none with COMPILE: merged weights are of another format, and compiled ones are not")
        return
    if find_spec("bitsandbytes") is None:
        raise _refused(asked, "none, unless bitsandbytes is installed here (it is in the images for GPUs)")


def _refused(asked: Quantization, expected: str) -> SettingError:
    return SettingError("BASE_QUANTIZATION", asked, expected)


def import_bitsandbytes() -> ModuleType:
    """Import it without its warnings of kernels for inference on a CPU, which nothing here uses."""
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        return import_module("bitsandbytes")
    finally:
        logger.setLevel(level)


def quantize_backbone(
    backbone: nn.Module,
    quantization: Quantization,
    dtype: torch.dtype,
    device: torch.device,
    kept: tuple[str, ...] = (),
) -> None:
    """Put quantized linear layers into ``backbone``, whose weights are on the CPU, one after another onto ``device``.

    Args:
        dtype: that they compute in.
        kept: children that stay as they are.
    """
    if quantization == "fp8":
        to_float8(backbone, kept=kept)
        return
    import_bitsandbytes()
    from diffusers.quantizers.bitsandbytes.utils import replace_with_bnb_linear

    before = {path: module for path, module in backbone.named_modules() if isinstance(module, nn.Linear)}
    config = _config(quantization, dtype)
    replace_with_bnb_linear(backbone, modules_to_not_convert=list(kept), quantization_config=config)
    for path, layer in before.items():
        quantized = cast(Any, backbone.get_submodule(path))
        if quantized is layer:
            continue
        # Moved to a device, bitsandbytes' parameters quantize what they hold.
        empty = quantized.weight
        quantized.weight = type(empty)(layer.weight.data, requires_grad=False, **vars(empty)).to(device)
        if layer.bias is not None:
            bias = layer.bias.data.to(device)
            quantized.bias = nn.Parameter(bias, requires_grad=False)
            quantized.register_forward_hook(partial(_keep_bias, bias))
        quantized.eval().register_forward_pre_hook(_cast_for_autocast)


def _config(quantization: Quantization, dtype: torch.dtype) -> Any:
    from diffusers import BitsAndBytesConfig

    if quantization == "int8":
        # It warns at every call that it casts its input to fp16, as the method has it.
        logging.getLogger("bitsandbytes.autograd._functions").setLevel(logging.ERROR)
        return BitsAndBytesConfig(load_in_8bit=True)
    return BitsAndBytesConfig(
        load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_compute_dtype=dtype, bnb_4bit_use_double_quant=True
    )


def _cast_for_autocast(layer: nn.Module, inputs: tuple[torch.Tensor]) -> tuple[torch.Tensor, ...] | None:
    """Cast a layer's input as autocast casts a plain layer's; of bitsandbytes' products it knows nothing.

    Without it they return fp32 where norms do, and what follows keeps twice the bytes for the backward pass.
    """
    kind = inputs[0].device.type
    return tuple(x.to(torch.get_autocast_dtype(kind)) for x in inputs) if torch.is_autocast_enabled(kind) else None


def _keep_bias(bias: torch.Tensor, layer: nn.Module, inputs: object, output: object) -> None:
    """Put back the bias, which bitsandbytes casts in place to the dtype of its input."""
    cast(Any, layer).bias.data = bias


def is_quantized(layer: nn.Module) -> bool:
    """Return True if ``layer`` is a linear layer in 8 or 4 bit."""
    return isinstance(layer, nn.Linear) and not layer.weight.is_floating_point()


def quantization_of(base: DiffusionBase) -> Quantization:
    """Return how the backbone of ``base`` is quantized."""
    dtypes = {layer.weight.dtype for layer in base.backbone.modules() if is_quantized(layer)}
    return "nf4" if torch.uint8 in dtypes else "int8" if dtypes else "none"


def weight_shape(layer: nn.Module) -> tuple[int, ...]:
    """Return the shape of a layer's weight, ``(out, in[, kh, kw])``, also where 4 bits a weight are packed."""
    if isinstance(layer, nn.Linear):
        return layer.out_features, layer.in_features
    return tuple(cast(torch.Tensor, layer.weight).shape)
