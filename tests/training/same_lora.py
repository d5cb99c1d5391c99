"""Two LoRA files that learned the same, but for the order in which numbers were added up."""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import load_file


def assert_same_lora(one: Path, other: Path, tolerance: float = 2e-4) -> None:
    """Check that both files have the same tensors, and values that differ by ``tolerance`` at most."""
    tensors, others = load_file(one), load_file(other)
    assert set(tensors) == set(others)
    for name, tensor in tensors.items():
        assert torch.allclose(tensor.float(), others[name].float(), atol=tolerance), name
