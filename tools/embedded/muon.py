"""Muon (Jordan et al., 2024) for many small matrices: those of one shape are updated as one batch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

MOMENTUM = 0.95
COEFFICIENTS = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5


class Muon:
    """``torch.optim.Muon`` with Nesterov momentum and updates of AdamW's RMS (Liu et al., 2025), batched by shape.

    PyTorch's updates one matrix after another; a small UNet has 150, and on a GPU launching their kernels one by one
    takes half as long as computing the gradients. Here ``k`` matrices ``(m, n)`` of one shape are one ``(k, m, n)``.
    """

    def __init__(self, matrices: Sequence[torch.Tensor], weight_decay: float) -> None:
        self._matrices, self._weight_decay = matrices, weight_decay
        shapes: dict[torch.Size, list[int]] = {}
        for i, matrix in enumerate(matrices):
            shapes.setdefault(matrix.shape, []).append(i)
        self._groups = list(shapes.values())
        self._momenta = [torch.zeros_like(torch.stack([matrices[i] for i in group])) for group in self._groups]

    @torch.no_grad()
    def step(self, gradients: Sequence[torch.Tensor], learning_rate: float) -> None:
        """Update all matrices in place; ``gradients`` are in the order of the matrices."""
        for group, momentum in zip(self._groups, self._momenta, strict=True):
            gradient = torch.stack([gradients[i] for i in group])
            momentum.lerp_(gradient, 1 - MOMENTUM)
            directions = orthogonalize(gradient.lerp(momentum, MOMENTUM)).to(momentum.dtype).contiguous().unbind()
            size = 0.2 * max(momentum.shape[1:]) ** 0.5
            matrices = [self._matrices[i] for i in group]
            torch._foreach_mul_(matrices, 1 - learning_rate * self._weight_decay)
            torch._foreach_add_(matrices, directions, alpha=-learning_rate * size)

    def state_dict(self) -> dict[str, Any]:
        return {"momenta": self._momenta}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        for momentum, saved in zip(self._momenta, state["momenta"], strict=True):
            momentum.copy_(saved)


def orthogonalize(matrices: torch.Tensor) -> torch.Tensor:
    """Return, for each ``(m, n)`` of ``(k, m, n)``, the nearest matrix with singular values of about 1, in bf16.

    This is the Newton-Schulz iteration, which is stable in bf16.
    """
    x = matrices.bfloat16()
    transposed = x.shape[1] > x.shape[2]
    if transposed:
        x = x.mT
    x = x / x.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    first, third, fifth = COEFFICIENTS
    for _ in range(ITERATIONS):
        squared = x @ x.mT
        x = torch.baddbmm(x, torch.baddbmm(squared, squared, squared, beta=third, alpha=fifth), x, beta=first)
    return x.mT if transposed else x
