"""Merging LoRAs' changes into one weight."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lora_service.lora.lycoris import DoraLayer
from lora_service.lora.weights import LoraLayer, WeightChange


@dataclass(frozen=True)
class ScaledChange:
    """One LoRA's change of one weight at a scale; equal only to the same object's at the same scale.

    Attributes:
        lora: the number of the LoRA in its request, from 0 on.
    """

    change: WeightChange
    scale: float
    lora: int = field(default=0, compare=False)


def merge(weight: Tensor, changes: Sequence[ScaledChange], out: Tensor) -> Tensor:
    """Write ``weight + Σ scale · delta`` to ``out``, summed in fp32 and cast once to its dtype; return ``out``."""
    in_place = out.dtype == torch.float32 and out.is_contiguous()
    total = out if in_place else torch.empty(weight.shape, dtype=torch.float32, device=weight.device)
    augend = weight.float()
    for scaled in changes:
        change = scaled.change
        if isinstance(change, LoraLayer):
            # Product and sum in one pass: the delta itself is never written to memory.
            up, down = change.factors(weight.device)
            factor = scaled.scale * change.alpha / change.rank
            torch.addmm(augend.flatten(1), up, down, alpha=factor, out=total.flatten(1))
        else:
            torch.add(augend, change.delta(weight), alpha=scaled.scale, out=total)
        augend = total
    return out if in_place else out.copy_(total)


def fits(change: WeightChange, weight: tuple[int, ...]) -> bool:
    """Return True if shapes agree; a 1 × 1 convolution is a linear layer, and a change may come flattened."""
    if isinstance(change, DoraLayer) and not (len(weight) > 1 and change.fits(weight)):
        return False
    shape = change.shape
    if len(shape) == len(weight):
        return shape == weight
    return shape[0] == weight[0] and math.prod(shape) == math.prod(weight)
