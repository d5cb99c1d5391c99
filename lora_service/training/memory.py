"""An estimate of the GPU memory of a training before it starts, and the choice of gradient checkpointing by it.

In bytes, for batches of ``b`` pictures:

    weights    of the UNet, the text encoders and the VAE, as they are held
    parameters 16 for each that learns: itself, its gradient and AdamW's two moments, all fp32
    captions   prompt embeds, which are kept for a block of batches where nothing learns in the text encoders
    step       b · (UNet + text encoders), saved for the backward pass:
                UNet           x · Σ n (c_in + c_out) over residual blocks + y · Σ n c over transformer blocks,
                               with n positions and c channels each
                checkpointed   z · Σ n c_in over residual blocks and transformers, and the largest block anew
                text encoders  w · n c for each layer, where something learns in them
    encoding   4 maps of the VAE's first level, at the pictures' full size, before the steps

    need       weights + max(encoding, parameters + captions + step)

x, y, z and w (``transformer`` is y, ``residual`` x, ``inputs`` z, ``encoder`` w of ``_SavedBytes``) are the bytes that
autograd saved at full size, counted by ``python -m benchmarks.activations``; they hold
to about a tenth for 1.x, 2.x and XL. ``OVERHEAD`` stands for what the allocator and the kernels take on top.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel

from lora_service.errors import InputError
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.text_encoders import TextEncoder
from lora_service.training.batches import CAPTIONS_PER_BLOCK
from lora_service.training.config import TrainConfig
from lora_service.training.lora_layers import targets_in

GIB = 2**30
OVERHEAD = 1.15
"""Factor for fragments, workspaces and gradients on their way; a run that fits only without it may not fit."""

_BYTES_PER_PARAMETER = 16


@dataclass(frozen=True)
class _SavedBytes:
    """Bytes that autograd saves per position and channel."""

    residual: float
    transformer: float
    inputs: float
    encoder: float


_HALF = _SavedBytes(residual=15.5, transformer=55, inputs=6, encoder=42)
"""Autocast keeps the norms' inputs in fp32 beside the half-precision rest."""
_FULL = _SavedBytes(residual=18.5, transformer=92, inputs=10, encoder=80)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the device, as the module's formula names them."""

    weights: int
    parameters: int
    captions: int
    step: int
    encoding: int

    @property
    def beyond_weights(self) -> int:
        """The bytes that are needed once the base is loaded."""
        return max(self.encoding, self.parameters + self.captions + self.step)


def estimate(base: DiffusionBase, config: TrainConfig, *, checkpointing: bool) -> MemoryEstimate:
    """Estimate the training of the resolved ``config`` on ``base``."""
    side, batch = max(config.resolutions(base.defaults)), config.train_batch_size
    models = [*base.components.values(), base.vae]
    trains_text = bool(config.max_train_steps_tuning and config.learning_rate_text)
    step = unet_bytes(base.unet, side // base.vae_scale_factor, base.dtype, checkpointing=checkpointing)
    # With "auto" captions are mostly short, and nobody has read them yet.
    positions = base.text.positions * (1 if config.max_token_length == "auto" else config.chunks)
    if trains_text or config.max_train_steps_ti:
        step += sum(encoder_bytes(e, positions, base.dtype) for e in base.text.encoders.values())
    kept = 0 if trains_text else min(CAPTIONS_PER_BLOCK, config.max_train_steps_tuning * config.train_batch_size)
    return MemoryEstimate(
        weights=sum(p.numel() * p.element_size() for model in models for p in model.parameters()),
        parameters=_BYTES_PER_PARAMETER * _parameter_count(base, config),
        captions=kept * positions * base.text.width * base.dtype.itemsize,
        step=round(batch * step),
        encoding=4 * side**2 * base.vae.config.block_out_channels[0] * base.vae.dtype.itemsize,
    )


def unet_bytes(unet: UNet2DConditionModel, side: int, dtype: torch.dtype, *, checkpointing: bool) -> float:
    """Return the bytes saved of ``unet`` for one picture of ``side`` × ``side`` latents, computing in ``dtype``."""
    saved = _FULL if dtype == torch.float32 else _HALF
    whole, largest, inputs = 0.0, 0.0, 0.0
    for module, positions in _blocks(unet, side**2):
        block = 0.0
        if isinstance(module, BasicTransformerBlock):
            block = saved.transformer * positions * module.dim
        else:
            inputs += positions * module.in_channels
        if isinstance(module, ResnetBlock2D):
            block = saved.residual * positions * (module.in_channels + module.out_channels)
        whole, largest = whole + block, max(largest, block)
    return saved.inputs * inputs + largest if checkpointing else whole


def encoder_bytes(encoder: TextEncoder, positions: int, dtype: torch.dtype) -> float:
    """Return the bytes saved of a text encoder for one caption."""
    saved = _FULL if dtype == torch.float32 else _HALF
    return saved.encoder * positions * encoder.config.hidden_size * encoder.config.num_hidden_layers


def _blocks(unet: UNet2DConditionModel, positions: int) -> Iterator[tuple[Any, int]]:
    """Yield the UNet's blocks with the positions that each works on; every level has a quarter of those above it."""
    last = len(unet.config.block_out_channels) - 1
    for path, module in unet.named_modules():
        if isinstance(module, ResnetBlock2D | BasicTransformerBlock | Transformer2DModel):
            match = re.match(r"(down|up)_blocks\.(\d)", path)
            level = last if match is None else int(match[2]) if match[1] == "down" else last - int(match[2])
            yield module, positions // 4**level


def _parameter_count(base: DiffusionBase, config: TrainConfig) -> int:
    """Return the number of parameters of stage 2's LoRA, which has more than stage 1."""
    rank = config.lora_rank or 1
    return sum(
        rank * (layer.in_features + layer.out_features)
        for name, model in base.components.items()
        if (config.learning_rate_unet if name == "unet" else config.learning_rate_text)
        for layer in targets_in(name, model).values()
    )


def choose_checkpointing(
    base: DiffusionBase, config: TrainConfig, log: Callable[[str], None], free: int | None = None
) -> bool:
    """Choose whether gradients are checkpointed: with ``gradient_checkpointing`` ``auto`` only if it is needed.

    Args:
        log: called with a warning where it may not fit.
        free: free bytes of the device beside the base; None: as it reports now, unlimited on a CPU.

    Raises:
        InputError: it cannot fit.
    """
    asked = config.gradient_checkpointing
    free = _free(base.device) if free is None else free
    if free is None:
        return asked == "on"
    plain, checkpointed = (estimate(base, config, checkpointing=on).beyond_weights for on in (False, True))
    checkpointing = asked == "on" or (asked == "auto" and plain * OVERHEAD > free)
    need = checkpointed if checkpointing else plain
    if need > free:
        raise _too_large(base, config, _figures(need, free), checkpointing=checkpointing, share=free / need)
    if need * OVERHEAD > free:
        log(f"warning: this training may not fit: {_figures(need, free)}")
    elif checkpointing and asked == "auto":
        log(f"gradient_checkpointing is on, as {_figures(plain, free)} without")
    return checkpointing


@contextmanager
def explain_out_of_memory(base: DiffusionBase, config: TrainConfig, *, checkpointing: bool) -> Iterator[None]:
    """Turn running out of memory after all, within the context, into a user's error that names what to lower."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        why = "the device ran out of memory"
        raise _too_large(base, config, why, checkpointing=checkpointing, share=0.75) from error


def _free(device: torch.device) -> int | None:
    """Return the bytes that this process can still get on a GPU, PyTorch's own reserve included."""
    if device.type != "cuda":
        return None
    reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + reserve


def _too_large(base: DiffusionBase, config: TrainConfig, why: str, *, checkpointing: bool, share: float) -> InputError:
    """Return the error that names what to lower: checkpointing's choice, else the batch, else the resolution.

    Args:
        share: free bytes as a share of the needed ones.
    """
    if not checkpointing:
        return InputError(
            "gradient_checkpointing", config.gradient_checkpointing, f"on at this size, as {why}", code="out_of_memory"
        )
    if config.train_batch_size > 1:
        return InputError("train_batch_size", config.train_batch_size, f"less, as {why}", code="out_of_memory")
    sides = config.resolutions(base.defaults)
    side = max(sides)
    field = "resolution" if side == sides[0] else "more_resolutions"
    fitting = base.nearest_side(side * math.sqrt(share) - base.size_step)
    return InputError(field, side, f"about {fitting} or less, as {why}", code="out_of_memory")


def _figures(need: int, free: int) -> str:
    return f"about {need / GIB:.1f} GiB are needed beside the base and {free / GIB:.1f} GiB are free"
