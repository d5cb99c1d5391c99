"""A base by its weights: a folder's name says nothing of them."""

from __future__ import annotations

import hashlib

import torch

from lora_service.models.diffusion_base import DiffusionBase

_VALUES_OF_A_TENSOR = 64
"""Values of each tensor that count, evenly spread: bases differ in nearly all of theirs, and a hash of five gigabytes
takes longer than some trainings."""


def fingerprint(base: DiffusionBase) -> str:
    """Return a hash of a base's weights and their dtypes, the same on every device."""
    digest = hashlib.sha256()
    for name, model in sorted(base.models.items()):
        for key, tensor in model.state_dict().items():
            digest.update(f"{name}.{key} {tuple(tensor.shape)} {tensor.dtype}".encode())
            flat = tensor.detach().flatten()
            few = flat[:: max(1, flat.numel() // _VALUES_OF_A_TENSOR)][: 2 * _VALUES_OF_A_TENSOR]
            digest.update(few.to("cpu", torch.float64).numpy().tobytes())
    return digest.hexdigest()
