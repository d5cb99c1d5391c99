"""What a training takes of a GPU's memory, estimated before it starts, and whether it fits.

In bytes, for batches of ``b`` pictures:

    weights   of the UNet, the text encoders and the VAE, as they are held
    learned   16 for each number that learns: itself, its gradient and AdamW's two moments, all fp32
    captions  hidden states that are kept because nothing learns in the text encoders, at most TEXT_CACHE_BYTES
    step      b · (UNet + text encoders), what is kept for the backward pass:
                UNet           x · Σ n (c_in + c_out) over residual blocks + y · Σ n c over transformer blocks,
                               with n positions and c channels each
                checkpointed   z · Σ n c_in over residual blocks and transformers, and the largest block anew
                text encoders  w · n c for each layer, where something learns in them
    encoding  4 maps of the VAE's first level, at the pictures' full size, before the steps

    need      weights + max(encoding, learned + captions + step)

x, y, z and w are what autograd was counted to keep, at full size, by ``python -m benchmarks.activations``; they hold to
about a tenth for 1.x, 2.x and XL. What the device's allocator and kernels take on top was not measured on a GPU:
``OVERHEAD`` stands for it.
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
from lora_service.training.config import TrainConfig
from lora_service.training.lora_layers import targets_in
from lora_service.training.stages import PROMPT_CACHE_BYTES

GIB = 2**30
OVERHEAD = 1.15
"""Factor for fragments, workspaces and gradients on their way; a run that fits only without it may not fit."""

_BYTES_LEARNED = 16


@dataclass(frozen=True)
class _Kept:
    """Bytes kept per position and channel."""

    residual: float
    transformer: float
    inputs: float
    encoder: float


_HALF = _Kept(residual=15.5, transformer=55, inputs=6, encoder=42)
"""Autocast keeps the norms' inputs in fp32 beside the half-precision rest."""
_FULL = _Kept(residual=18.5, transformer=92, inputs=10, encoder=80)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the device, as the module's formula names them."""

    weights: int
    learned: int
    captions: int
    step: int
    encoding: int

    @property
    def total(self) -> int:
        return self.weights + self.beyond_weights

    @property
    def beyond_weights(self) -> int:
        """What is to come once the base is loaded."""
        return max(self.encoding, self.learned + self.captions + self.step)


def estimate(base: DiffusionBase, config: TrainConfig, *, checkpointing: bool) -> MemoryEstimate:
    """What the training of ``config``, with nothing left open, needs on ``base``."""
    side, batch = config.resolution or base.defaults.resolution, config.train_batch_size
    models = [*base.components.values(), base.vae]
    teaches_text = bool(config.max_train_steps_tuning and config.learning_rate_text)
    step = unet_bytes(base.unet, side // base.vae_scale_factor, base.dtype, checkpointing=checkpointing)
    if teaches_text or config.max_train_steps_ti:
        step += sum(encoder_bytes(e, base.text.positions, base.dtype) for e in base.text.encoders.values())
    captions = 0 if teaches_text else config.max_train_steps_tuning * base.text.positions * base.text.width
    return MemoryEstimate(
        weights=sum(p.numel() * p.element_size() for model in models for p in model.parameters()),
        learned=_BYTES_LEARNED * _learned(base, config),
        captions=min(PROMPT_CACHE_BYTES, captions * base.dtype.itemsize),
        step=round(batch * step),
        encoding=4 * side**2 * base.vae.config.block_out_channels[0] * base.vae.dtype.itemsize,
    )


def unet_bytes(unet: UNet2DConditionModel, side: int, dtype: torch.dtype, *, checkpointing: bool) -> float:
    """What a step keeps of ``unet`` for one picture of ``side`` × ``side`` latents, computing in ``dtype``."""
    kept = _FULL if dtype == torch.float32 else _HALF
    whole, largest, inputs = 0.0, 0.0, 0.0
    for module, positions in _blocks(unet, side**2):
        block = 0.0
        if isinstance(module, BasicTransformerBlock):
            block = kept.transformer * positions * module.dim
        else:
            inputs += positions * module.in_channels
        if isinstance(module, ResnetBlock2D):
            block = kept.residual * positions * (module.in_channels + module.out_channels)
        whole, largest = whole + block, max(largest, block)
    return kept.inputs * inputs + largest if checkpointing else whole


def encoder_bytes(encoder: TextEncoder, positions: int, dtype: torch.dtype) -> float:
    """What a step keeps of a text encoder for one caption."""
    kept = _FULL if dtype == torch.float32 else _HALF
    return kept.encoder * positions * encoder.config.hidden_size * encoder.config.num_hidden_layers


def _blocks(unet: UNet2DConditionModel, positions: int) -> Iterator[tuple[Any, int]]:
    """The UNet's blocks with the positions that each works on; every level has a quarter of those above it."""
    last = len(unet.config.block_out_channels) - 1
    for path, module in unet.named_modules():
        if isinstance(module, ResnetBlock2D | BasicTransformerBlock | Transformer2DModel):
            match = re.match(r"(down|up)_blocks\.(\d)", path)
            level = last if match is None else int(match[2]) if match[1] == "down" else last - int(match[2])
            yield module, positions // 4**level


def _learned(base: DiffusionBase, config: TrainConfig) -> int:
    """Numbers that learn in stage 2, which are more than stage 1's."""
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
    """Whether gradients are checkpointed: as ``gradient_checkpointing`` says, where that is ``auto`` only if needed.

    Args:
        log: called with a warning where it may not fit.
        free: bytes that are left on the device beside the base; None: as it says now, unlimited on a CPU.

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
    """Within it a device that runs out of memory after all is told as a user's error, with what to lower."""
    try:
        yield
    except torch.OutOfMemoryError as error:
        why = "the device ran out of memory"
        raise _too_large(base, config, why, checkpointing=checkpointing, share=0.75) from error


def _free(device: torch.device) -> int | None:
    """Bytes that this process can still get on a GPU, PyTorch's own reserve included."""
    if device.type != "cuda":
        return None
    reserve = torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)
    return torch.cuda.mem_get_info(device)[0] + reserve


def _too_large(base: DiffusionBase, config: TrainConfig, why: str, *, checkpointing: bool, share: float) -> InputError:
    """The error that names what to lower: checkpointing's choice, else the batch, else the resolution.

    Args:
        share: part of what is needed that there is.
    """
    if not checkpointing:
        return InputError("gradient_checkpointing", config.gradient_checkpointing, f"on at this size, as {why}")
    if config.train_batch_size > 1:
        return InputError("train_batch_size", config.train_batch_size, f"less, as {why}")
    side = config.resolution or base.defaults.resolution
    fitting = base.nearest_side(side * math.sqrt(share) - base.size_step)
    return InputError("resolution", side, f"about {fitting} or less, as {why}")


def _figures(need: int, free: int) -> str:
    return f"about {need / GIB:.1f} GiB are needed beside the base and {free / GIB:.1f} GiB are free"
