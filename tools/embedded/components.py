"""What the latents are: the principal components of small patches of pictures."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from tools.embedded.pool import SIZE, to_tensor

PATCH = 4
CHANNELS = 16
GRID = SIZE // PATCH
"""Side of the latents."""


@dataclass(frozen=True)
class Components:
    """The first 16 components of patches of 4 × 4 pixels, most varied first.

    A VAE that is free to choose spreads what it is told over equally varied channels, and a
    diffusion model on them spends its capacity on where edges lie to the tenth of a pixel.
    Here colours come first, then gradients, then detail: noise covers the detail first, and
    what is decided early is what matters (Rissanen et al., 2023, on frequencies; Skorokhodov
    et al., 2025, on latents).

    ``mean`` is ``(48,)``; ``basis`` is ``(48, 16)`` and its columns are orthonormal.
    """

    mean: torch.Tensor
    basis: torch.Tensor

    @staticmethod
    def of(pictures: np.ndarray) -> Components:
        """Those of uint8 ``pictures`` ``(n, 64, 64, 3)``."""
        patches = _patches(to_tensor(pictures)).flatten(0, 2)
        vectors = torch.linalg.eigh(torch.cov(patches.T)).eigenvectors.flip(1)[:, :CHANNELS]
        # A vector's sign is the solver's whim; the weights settle it for symmetric ones too.
        signs = (vectors * torch.arange(1, len(vectors) + 1)[:, None]).sum(dim=0).sign()
        return Components(patches.mean(dim=0), vectors * signs)

    def latents(self, x: torch.Tensor) -> torch.Tensor:
        """The components ``(n, 16, 16, 16)`` of pictures ``x`` ``(n, 3, 64, 64)`` in [-1, 1]."""
        return ((_patches(x) - self.mean.to(x)) @ self.basis.to(x)).permute(0, 3, 1, 2)


def _patches(x: torch.Tensor) -> torch.Tensor:
    """``(n, 16, 16, 48)``."""
    return x.unfold(2, PATCH, PATCH).unfold(3, PATCH, PATCH).permute(0, 2, 3, 1, 4, 5).flatten(3)
