"""LoRAs side by side in one batch: each group of its rows passes a LoRA of its own, as batched matrix products."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


def add_loras(layer: nn.Linear | nn.Conv2d, x: Tensor, downs: Tensor, ups: Tensor) -> Tensor:
    """Return ``layer(x) + up · down · x`` with the LoRA of each group of rows.

    It is one product for all groups where one after another takes a product each (as in Punica,
    https://arxiv.org/abs/2310.18547, and S-LoRA, https://arxiv.org/abs/2311.03285).

    Args:
        layer: a linear layer, or a convolution without groups.
        x: ``(b, …, in)``, or ``(b, in, h, w)`` of a convolution: ``g`` groups of ``b / g`` rows each, in a row.
        downs: ``(g, rank, in[, kh, kw])``.
        ups: ``(g, out, rank[, 1, 1])``, multiplied by scale and alpha / rank already.
    """
    out: Tensor = layer(x)
    downs, ups = downs.to(out.dtype), ups.to(out.dtype)
    if isinstance(layer, nn.Conv2d):
        return out + _convolve(layer, x.to(out.dtype), downs, ups)
    groups = len(downs)
    hidden = torch.bmm(x.reshape(groups, -1, x.shape[-1]).to(out.dtype), downs.transpose(1, 2))
    return torch.baddbmm(out.reshape(groups, -1, out.shape[-1]), hidden, ups.transpose(1, 2)).view_as(out)


def _convolve(layer: nn.Conv2d, x: Tensor, downs: Tensor, ups: Tensor) -> Tensor:
    """Return ``up · down · x``: a convolution whose channels are those of all groups, each seeing its own."""
    groups = len(downs)
    by_row = x.unflatten(0, (groups, -1)).transpose(0, 1).flatten(1, 2)  # (rows of a group, groups · in, h, w)
    weight = downs.flatten(0, 1)
    hidden = F.conv2d(by_row, weight, None, layer.stride, layer.padding, layer.dilation, groups)
    out = F.conv2d(hidden, ups.flatten(0, 1), groups=groups)
    return out.unflatten(1, (groups, -1)).transpose(0, 1).flatten(0, 1)
