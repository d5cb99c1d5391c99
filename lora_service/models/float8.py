"""A UNet whose linear layers hold their weights in 8-bit floats (e4m3), for drawing on cards that are small for it.

Each row of a weight has a scale of its own, so that its largest value is the format's largest; the product is computed
in the base's own dtype. A weight that a LoRA is merged into is held in that dtype while it is: 3 bits of mantissa would
round the LoRA away.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

FLOAT8 = torch.float8_e4m3fn
FLOAT8_CAPABILITY = (8, 9)
"""The first CUDA cards that convert the format in hardware (Ada; Hopper is 9.0)."""


class Float8Linear(nn.Linear):
    """A linear layer with a weight in 8-bit floats; one of another dtype, a merged one, is taken as it is.

    Attributes:
        weight_scale: ``(out, 1)``, in the dtype that a merged weight has.
    """

    weight_scale: Tensor

    def forward(self, input: Tensor) -> Tensor:
        weight = self.weight
        if weight.dtype == FLOAT8:
            weight = weight.to(input.dtype) * self.weight_scale.to(input.dtype)
        return linear(input, weight, self.bias)


def to_float8(unet: nn.Module, kept: tuple[str, ...] = ()) -> None:
    """Hold the weights of the linear layers of ``unet`` in 8-bit floats.

    Args:
        kept: names of children that stay as they are.
    """
    for path, layer in unet.named_modules():
        if type(layer) is not nn.Linear or path.split(".")[0] in kept:
            continue
        weight = layer.weight.data
        largest = weight.float().abs().amax(dim=1, keepdim=True).clamp(min=torch.finfo(torch.float32).tiny)
        # Rounded first, so that the weight is divided by the very scale that it is multiplied with.
        scale = (largest / torch.finfo(FLOAT8).max).to(weight.dtype)
        scale = torch.where(scale == 0, torch.ones_like(scale), scale)
        layer.__class__ = Float8Linear
        layer.register_buffer("weight_scale", scale)
        limit = torch.finfo(FLOAT8).max
        layer.weight.data = (weight.float() / scale.float()).clamp(-limit, limit).to(FLOAT8)
