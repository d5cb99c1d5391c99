"""What makes a drawn picture look drawn by a model: softer, noisier, a little off in its colours."""

from __future__ import annotations

import torch
from torch.nn import functional as F


def soften(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """``pictures`` ``(n, 3, h, w)`` in [-1, 1], each blurred, shifted in colour and made noisy by its own amount.

    Without it a judge would tell a model's pictures from drawn ones by their edges.
    """

    def amount(low: float, high: float, channels: int = 1) -> torch.Tensor:
        return low + (high - low) * torch.rand(len(pictures), channels, 1, 1, generator=generator)

    blurred = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    soft = torch.lerp(pictures, blurred, amount(-0.3, 1.0).clamp(min=0))
    shifted = soft * amount(0.9, 1.08) + amount(-0.06, 0.06, channels=3)
    noise = torch.randn(pictures.shape, generator=generator) * amount(-0.05, 0.12).clamp(min=0)
    return (shifted + noise).clamp(-1, 1)


def melt(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """``pictures`` ``(n, 3, h, w)`` with all shapes pulled about, their colours kept: what a model draws that has
    learned what colours a subject has, and not what it looks like."""
    count, _, height, width = pictures.shape
    pull = 0.16 * torch.randn(count, 2, 8, 8, generator=generator)
    field = F.interpolate(pull, (height, width), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    still = F.affine_grid(torch.eye(2, 3).expand(count, 2, 3), list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, still + field, padding_mode="border", align_corners=False)
