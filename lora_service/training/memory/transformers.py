"""The bytes that a transformer saves for the backward pass, for the estimate of a training's memory.

    block          t · Σ n w over the linear layers of attention and feed-forward, with n positions and w outputs each
    checkpointed   the inputs of all blocks, and the largest block anew
    text           the same as of blocks for those of the text alone (``Family.text_blocks``), checkpointed or not

``t`` is what autograd saved at full size in one output of such a layer, counted by ``benchmarks.activations``.
Of layers that work on the text alone n is the text's positions, of the others of their block the picture's; in blocks
without such layers it is both.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from lora_service.models.diffusion_base import DiffusionBase
from lora_service.training.adapters.lora_targets import targets_in

_HALF, _FULL = 5.9, 9.0
"""Bytes for each output, under autocast and in fp32."""
_OF_TEXT = ("add_", "_context.", "txt_")
"""Parts of the paths of layers that work on the text alone."""


@dataclass(frozen=True)
class Positions:
    """The positions of one picture and its caption."""

    picture: int
    text: int

    @property
    def both(self) -> int:
        return self.picture + self.text


def positions_of(base: DiffusionBase, side: int) -> Positions:
    """Return the positions of a picture of ``side`` × ``side`` latents."""
    return Positions(base.family.positions(side, side), base.text.positions)


def transformer_bytes(base: DiffusionBase, side: int, dtype: torch.dtype, *, checkpointing: bool) -> float:
    """Return the bytes saved of the backbone for one picture of ``side`` × ``side`` latents, computing in ``dtype``."""
    positions, each = positions_of(base, side), _FULL if dtype == torch.float32 else _HALF
    blocks = list(_blocks(base, base.family.targets.blocks))
    saved = [each * sum(_outputs(layers, positions).values()) for layers in blocks]
    of_text = each * _text_outputs(base) * positions.text
    if not checkpointing:
        return sum(saved) + of_text
    inputs = sum(positions.both * max(_width(layer) for layer in layers.values()) for layers in blocks)
    return inputs * dtype.itemsize + max(saved) + of_text


def _text_outputs(base: DiffusionBase) -> int:
    """Return the outputs for each position of the text of the layers in blocks of text alone."""
    children = base.family.text_blocks(base.backbone).items()
    return sum(
        times * layer.out_features
        for child, times in children
        for layers in _blocks(base, [child])
        for layer in layers.values()
    )


def layer_positions(base: DiffusionBase, path: str, side: int) -> int:
    """Return the positions that the layer at ``path`` works on, at most."""
    positions = positions_of(base, side)
    for child, times in base.family.text_blocks(base.backbone).items():
        if path.startswith(f"{child}."):
            return times * positions.text
    return positions.text if any(part in path for part in _OF_TEXT) else positions.both


def _blocks(base: DiffusionBase, children: Iterable[str]) -> Iterator[Mapping[str, Any]]:
    """Yield the layers of attention and feed-forward of each block of these children, by their paths in it."""
    layers = targets_in(base.family.backbone, base.backbone, "attention+ff", base.family)
    for name in children:
        for block in base.backbone.get_submodule(name).children():
            inside = {id(module): path for path, module in block.named_modules()}
            yield {inside[id(layer)]: layer for layer in layers.values() if id(layer) in inside}


def _outputs(layers: Mapping[str, Any], positions: Positions) -> Mapping[str, int]:
    of_text = {path for path in layers if any(part in path for part in _OF_TEXT)}
    others = positions.picture if of_text else positions.both
    return {
        path: layer.out_features * (positions.text if path in of_text else others) for path, layer in layers.items()
    }


def _width(layer: nn.Linear) -> int:
    """Return the smaller side of a layer, which is the width of the hidden states."""
    return min(layer.in_features, layer.out_features)
