"""An estimate of the GPU memory of a training before it starts, and the choice of what saves memory by it.

In bytes, for batches of ``b`` pictures:

    weights    of the UNet, the text encoders and the VAE, as they are held
    parameters 8 for each that learns: itself and its gradient, both fp32; with the optimiser's state, for AdamW two
               moments of 4 each, and 4 of a running mean where one is kept
    captions   prompt embeds, which are kept for a block of batches where nothing learns in the text encoders, else
               those of the frozen ones beside them
    step       b · (UNet + text encoders), twice where the class is preserved, saved for the backward pass:
                UNet           x · Σ n (c_in + c_out) over residual blocks + y · Σ n c over transformer blocks,
                               with n positions and c channels each
                transformer    see lora_service/training/memory/transformers.py
                checkpointed   z · Σ n c_in over residual blocks and transformers, and the largest block anew
                text encoders  w · n c for each layer, where something learns in them
                more targets   the inputs of layers beyond ORIGINAL_TARGETS, whose own are counted above
                dora           d · n c_in for each layer that learns
    deltas     with lokr, whose factors peft multiplies out: 4 for each item of a linear layer's weight, a convolution's
               own bytes
    encoding   4 maps of the VAE's first level, at the pictures' full size, before the steps

    need       weights + max(encoding, parameters + captions + step + deltas)
               with off-loading, where the text encoders wait on the host during the encoding, and the VAE and perhaps
               they (away) during the steps:
               weights + max(encoding − text encoders, parameters + captions + max(0, step + deltas − away))
               and where the blocks of a transformer wait too, their weights less, but for the largest block's

Samples are not counted: where there is no place for them, none are drawn.

x, y, z, w and d (``residual``, ``transformer``, ``inputs``, ``encoder`` and ``dora`` of ``_SavedBytes``) are the bytes
that autograd saved at full size, counted by ``python -m benchmarks.activations``; they hold to about a tenth for 1.x,
2.x and XL. ``OVERHEAD`` stands for what the allocator and the kernels take on top.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.resnet import ResnetBlock2D
from diffusers.models.transformers.transformer_2d import Transformer2DModel
from torch import nn

from lora_service.errors import InputError
from lora_service.models.block_offloading import BlockOffloading
from lora_service.models.clip_text_encoders import TextEncoder
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.quantization import quantization_of, weight_shape
from lora_service.training.adapters.lora_layers import parameter_count
from lora_service.training.adapters.lora_targets import TargetLayers, learning_targets, targets_in
from lora_service.training.data.batches import CAPTIONS_PER_BLOCK
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.inputs.input_checks import ORIGINAL_TARGETS
from lora_service.training.memory.transformers import layer_positions, transformer_bytes
from lora_service.training.optimization.optimizers import STATE_BYTES

GIB = 2**30
OVERHEAD = 1.15
"""Factor for fragments, workspaces and gradients on their way; a run that fits only without it may not fit."""

_BYTES_PER_PARAMETER = 8
"""Of a parameter that learns and its gradient."""


@dataclass(frozen=True)
class _SavedBytes:
    """Bytes that autograd saves per position and channel."""

    residual: float
    transformer: float
    inputs: float
    encoder: float
    dora: float


_HALF = _SavedBytes(residual=15.5, transformer=55, inputs=6, encoder=42, dora=17)
"""Autocast keeps the norms' inputs in fp32 beside the half-precision rest."""
_FULL = _SavedBytes(residual=18.5, transformer=92, inputs=10, encoder=80, dora=32)


@dataclass(frozen=True)
class MemoryEstimate:
    """Bytes on the device, as the module's formula names them."""

    weights: int
    parameters: int
    captions: int
    step: int
    encoding: int
    deltas: int = 0
    text_weights: int = 0
    away: int = 0
    blocks: int = 0

    @property
    def beyond_weights(self) -> int:
        """The bytes that are needed once the base is loaded."""
        return max(self.encoding, self.parameters + self.captions + self.step + self.deltas)

    @property
    def beyond_weights_offloaded(self) -> int:
        """The bytes that are needed once the base is loaded, where models leave the device while no step needs them."""
        during_steps = max(0, self.step + self.deltas - self.away)
        return max(self.encoding - self.text_weights, self.parameters + self.captions + during_steps)


@dataclass(frozen=True)
class MemorySavings:
    """Measures by which a training needs less memory.

    Attributes:
        checkpointing: activations of the UNet are made anew for the backward pass, for a third more time.
        offloading: models wait on the host while no step needs them, for a few transfers.
        blocks: the transformer's blocks wait there too, each but when it is computed, for two transfers of all weights
            at each step.
    """

    checkpointing: bool = False
    offloading: bool = False
    blocks: bool = False

    def need(self, base: DiffusionBase, config: TrainConfig) -> int:
        """Return the bytes beside the base of the resolved ``config``."""
        estimated = estimate(base, config, checkpointing=self.checkpointing)
        need = estimated.beyond_weights_offloaded if self.offloading else estimated.beyond_weights
        return need - estimated.blocks if self.blocks else need

    @staticmethod
    def allowed_by(config: TrainConfig, base: DiffusionBase) -> list[MemorySavings]:
        """Return what ``gradient_checkpointing`` and ``base`` allow, that which costs least time first.

        Blocks wait with checkpointing alone: without it the weights stay on the device for the backward pass.

        Raises:
            InputError: the blocks always wait, and ``gradient_checkpointing`` is off.
        """
        asked = config.gradient_checkpointing
        if base.waiting_blocks is not None and asked == "off":
            expected = "auto or on where the transformer's blocks wait on the host (OFFLOAD_BLOCKS)"
            raise InputError("gradient_checkpointing", asked, expected)
        checkpointing = {"auto": (False, True), "on": (True,), "off": (False,)}[asked]
        if base.waiting_blocks is not None:
            return [MemorySavings(True, offloading) for offloading in (False, True)]
        allowed = [MemorySavings(each, offloading) for each in checkpointing for offloading in (False, True)]
        if base.blocks and asked != "off" and quantization_of(base) == "none":
            allowed.append(MemorySavings(True, True, True))
        return allowed


def estimate(base: DiffusionBase, config: TrainConfig, *, checkpointing: bool) -> MemoryEstimate:
    """Estimate the training of the resolved ``config`` on ``base``."""
    side, batch = max(config.resolutions(base.defaults)), config.train_batch_size
    trains_text = bool(config.max_train_steps_tuning and config.learning_rate_text)
    step = backbone_bytes(base, side // base.vae_scale_factor, checkpointing=checkpointing)
    # With "auto" captions are mostly short, and nobody has read them yet.
    positions = base.text.positions * (1 if config.max_token_length == "auto" else config.chunks)
    if trains_text or config.max_train_steps_ti:
        chunks = positions // base.text.positions
        step += sum(
            encoder_bytes(encoder, chunks * base.text.positions_of(name), base.dtype)
            for name, encoder in base.text.learning.items()
        )
    layers = _layers(base, config)
    step += sum(
        layer_bytes(component, of_component, side // base.vae_scale_factor, base, config, checkpointing=checkpointing)
        for component, of_component in layers.items()
    )
    kept = min(CAPTIONS_PER_BLOCK, config.max_train_steps_tuning * config.train_batch_size)
    of_companions = sum(base.text.positions_of(name) for name in base.text.companions)
    kept_positions = kept * (of_companions if trains_text else positions)
    return MemoryEstimate(
        weights=_weight_bytes(*base.models.values()),
        parameters=_bytes_per_parameter(config) * _parameter_count(layers, config),
        captions=kept_positions * base.text.width * base.dtype.itemsize,
        step=round(batch * step * (2 if _preserves(config) else 1)),
        encoding=4 * side**2 * base.family.vae_widths(base.vae)[0] * base.vae.dtype.itemsize,
        deltas=_delta_bytes(layers, base.dtype, checkpointing=checkpointing) if config.lora_kind == "lokr" else 0,
        text_weights=_weight_bytes(*base.text.encoders.values()),
        away=_weight_bytes(base.vae, *_waiting_encoders(base, config)),
        blocks=_block_bytes(base),
    )


def _weight_bytes(*models: nn.Module) -> int:
    return sum(p.numel() * p.element_size() for model in models for p in model.parameters())


def _block_bytes(base: DiffusionBase) -> int:
    """Return the bytes of the transformer's blocks that are on the device, but for the largest."""
    if base.waiting_blocks is not None or not base.blocks:
        return 0
    sizes = BlockOffloading(base.blocks, base.device).block_bytes
    return sum(sizes) - max(sizes)


def _waiting_encoders(base: DiffusionBase, config: TrainConfig) -> Iterable[nn.Module]:
    """Return the text encoders that no step of the resolved ``config`` needs."""
    if config.preservation == "output":  # which encodes its captions at each step
        return ()
    learns = config.max_train_steps_ti or config.learning_rate_text or config.continue_inversion
    return (base.text.companions if learns else base.text.encoders).values()


def _preserves(config: TrainConfig) -> bool:
    """Return True if stage 2 has the class in each batch beside the subject."""
    return bool(config.max_train_steps_tuning) and config.preservation != "none"


def backbone_bytes(base: DiffusionBase, side: int, *, checkpointing: bool) -> float:
    """Return the bytes saved of the backbone for one picture of ``side`` × ``side`` latents."""
    if base.family.backbone == "unet":
        return unet_bytes(base.unet, side, base.dtype, checkpointing=checkpointing)
    return transformer_bytes(base, side, base.dtype, checkpointing=checkpointing)


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


def layer_bytes(
    component: str,
    layers: TargetLayers,
    side: int,
    base: DiffusionBase,
    config: TrainConfig,
    *,
    checkpointing: bool,
) -> float:
    """Return the bytes saved for what learns in ``component`` beside those of :func:`unet_bytes` for one picture.

    Args:
        side: of the latents.
    """
    known = targets_in(component, base.components[component], ORIGINAL_TARGETS, base.family)
    dora = (_FULL if base.dtype == torch.float32 else _HALF).dora if config.lora_kind == "dora" else 0.0
    saved = dict[str, float]()
    for path, layer in layers.items():
        positions = _layer_positions(base, component, path, side)
        saved[path] = positions * weight_shape(layer)[1] * (dora + (0 if path in known else base.dtype.itemsize))
    return _at_once(saved, checkpointing=checkpointing and not component.startswith("text_encoder"))


def _layer_positions(base: DiffusionBase, component: str, path: str, side: int) -> int:
    if component != base.family.backbone:
        return base.text.positions_of(component)
    if component != "unet":
        return layer_positions(base, path, side)
    return base.text.positions if path.endswith(("attn2.to_k", "attn2.to_v")) else _positions(path, side**2, base.unet)


def _delta_bytes(layers: Mapping[str, TargetLayers], dtype: torch.dtype, *, checkpointing: bool) -> int:
    """Return the bytes of LoKr's changes at the size of the weights."""
    return sum(
        round(
            _at_once(
                {
                    path: math.prod(weight_shape(layer)) * (4.0 if isinstance(layer, nn.Linear) else dtype.itemsize)
                    for path, layer in of_component.items()
                },
                checkpointing=checkpointing and not component.startswith("text_encoder"),
            )
        )
        for component, of_component in layers.items()
    )


def _at_once(saved: Mapping[str, float], *, checkpointing: bool) -> float:
    """Return the bytes that are there at once of those saved by path: of the largest block where it is made anew."""
    by_block: dict[str, float] = {}
    for path, size in saved.items():
        block = re.match(r".*?(?:transformer_blocks|resnets|layers|_refiner)\.\d+", path)
        name = block[0] if block else path
        by_block[name] = by_block.get(name, 0.0) + size
    return max(by_block.values(), default=0.0) if checkpointing else sum(by_block.values())


def _blocks(unet: UNet2DConditionModel, positions: int) -> Iterator[tuple[Any, int]]:
    """Yield the UNet's blocks with the positions that each works on; every level has a quarter of those above it."""
    for path, module in unet.named_modules():
        if isinstance(module, ResnetBlock2D | BasicTransformerBlock | Transformer2DModel):
            yield module, _positions(path, positions, unet)


def _positions(path: str, positions: int, unet: UNet2DConditionModel) -> int:
    """Return the positions that the module at ``path`` works on; the embedding of timestep and sizes has one."""
    if "time_emb" in path or path.startswith("add_embedding"):
        return 1
    last = len(unet.config.block_out_channels) - 1
    match = re.match(r"(down|up)_blocks\.(\d)", path)
    level = last if match is None else int(match[2]) if match[1] == "down" else last - int(match[2])
    return positions // 4 ** (level - (".upsamplers." in path))


def _layers(base: DiffusionBase, config: TrainConfig) -> dict[str, TargetLayers]:
    """Return the layers that learn in stage 2, by component; what learns in stage 1 is little."""
    return {
        name: learning_targets(base, name, config.lora_targets)
        for name in base.components
        if config.max_train_steps_tuning
        and (config.learning_rate_unet if name == base.family.backbone else config.learning_rate_text)
    }


def _bytes_per_parameter(config: TrainConfig) -> int:
    return _BYTES_PER_PARAMETER + STATE_BYTES[config.optimizer] + (4 if config.ema_decay else 0)


def _parameter_count(layers: Mapping[str, TargetLayers], config: TrainConfig) -> int:
    return sum(
        parameter_count(weight_shape(layer), config.lora_rank or 1, config.lora_kind)
        for of_component in layers.values()
        for layer in of_component.values()
    )


def choose_savings(
    base: DiffusionBase, config: TrainConfig, log: Callable[[str], None], free: int | None = None
) -> MemorySavings:
    """Choose what saves memory, and say so: nothing more than is needed, and what costs least time first.

    Args:
        log: called with what is chosen, and with a warning where it may not fit.
        free: free bytes of the device beside the base; None: as it reports now, unlimited on a CPU.

    Raises:
        InputError: it cannot fit.
    """
    asked = config.gradient_checkpointing
    free = _free(base.device) if free is None else free
    allowed = MemorySavings.allowed_by(config, base)
    if free is None:
        return MemorySavings(checkpointing=asked == "on" or base.waiting_blocks is not None)
    chosen = next((each for each in allowed if each.need(base, config) * OVERHEAD <= free), allowed[-1])
    need = chosen.need(base, config)
    if need > free:
        raise _too_large(base, config, _figures(need, free), checkpointing=chosen.checkpointing, share=free / need)
    unsaved = _figures(allowed[0].need(base, config), free)
    if need * OVERHEAD > free:
        log(f"warning: this training may not fit: {_figures(need, free)}")
    elif chosen.checkpointing and asked == "auto":
        log(f"gradient_checkpointing is on, as {unsaved} without")
    if chosen.offloading:
        log(f"text encoders and VAE are in the host's memory while they are not needed, as {unsaved} otherwise")
    if chosen.blocks:
        log("the transformer's blocks are there too, each but when it is computed, which takes longer")
    return chosen


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
