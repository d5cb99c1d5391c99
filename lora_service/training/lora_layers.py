"""The LoRA layers that learn, put into a model and taken out again."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import torch
from torch import nn
from torch.nn import functional as F

UNET_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj")
"""Attention, and the projection of GEGLU: what the original trainers taught."""
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")


class LoraLinear(nn.Module):
    """``base(x) + alpha / rank · up(down(x))`` (Hu et al., https://arxiv.org/abs/2106.09685).

    ``down`` is ``(rank, in)``, ``up`` is ``(out, rank)``, both fp32; ``up`` starts
    at 0, so that the first step sees the base. There is no dropout: it would have
    to be remembered and turned off wherever the LoRA is used.
    """

    def __init__(self, base: nn.Linear, rank: int, alpha: float, generator: torch.Generator) -> None:
        super().__init__()
        self.base = base
        self.alpha = alpha
        self.scale = alpha / rank
        bound = 1 / math.sqrt(base.in_features)
        down = torch.rand(rank, base.in_features, generator=generator) * 2 * bound - bound
        self.down = nn.Parameter(down.to(base.weight.device))
        self.up = nn.Parameter(torch.zeros(base.out_features, rank, device=base.weight.device))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out = self.base(x)
        inner = F.linear(x, self.down.to(out.dtype))
        # One fused call instead of a product, a scaling and a sum: at batch 1 calls are what a step costs.
        flat = torch.addmm(out.flatten(0, -2), inner.flatten(0, -2), self.up.to(out.dtype).t(), alpha=self.scale)
        return flat.view_as(out)


Layers = Mapping[str, Mapping[str, LoraLinear]]
"""Component -> module path -> the layer that learns there."""


def targets_in(component: str, model: nn.Module) -> dict[str, nn.Linear]:
    """The linear layers of the base's ``component`` that a LoRA changes, by module path."""
    endings = tuple("." + target for target in (UNET_TARGETS if component == "unet" else TEXT_TARGETS))
    return {
        path: layer for path, layer in model.named_modules() if isinstance(layer, nn.Linear) and path.endswith(endings)
    }


@contextmanager
def lora_layers(
    component: str, model: nn.Module, rank: int, alpha: float, generator: torch.Generator
) -> Iterator[Mapping[str, LoraLinear]]:
    """Within it the target layers of the base's ``component`` learn; gives them by path."""
    found = targets_in(component, model)
    layers = {path: LoraLinear(layer, rank, alpha, generator) for path, layer in found.items()}
    try:
        for path, layer in layers.items():
            _put(model, path, layer)
        yield layers
    finally:
        for path, original in found.items():
            _put(model, path, original)


def _put(model: nn.Module, path: str, layer: nn.Module) -> None:
    parent, _, name = path.rpartition(".")
    setattr(model.get_submodule(parent), name, layer)
