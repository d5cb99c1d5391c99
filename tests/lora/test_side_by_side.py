"""Tests of LoRAs side by side in a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lora_service.lora.side_by_side import add_loras

GROUPS, RANK = 3, 4


def stacks(inputs: tuple[int, ...], out: int) -> tuple[torch.Tensor, torch.Tensor]:
    kernel = [1] * len(inputs[1:])
    return torch.randn(GROUPS, RANK, *inputs), torch.randn(GROUPS, out, RANK, *kernel)


@pytest.mark.parametrize("shape", [(6, 5), (6, 7, 5), (3, 2, 7, 5)])
def test_each_group_of_rows_passes_its_own_lora(shape: tuple[int, ...]) -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 8), torch.randn(shape)
    downs, ups = stacks((5,), 8)
    expected = [layer(part) + part @ down.T @ up.T for part, down, up in zip(x.chunk(GROUPS), downs, ups, strict=True)]
    torch.testing.assert_close(add_loras(layer, x, downs, ups), torch.cat(expected))


@pytest.mark.parametrize("options", [{}, {"stride": 2, "padding": 1}, {"padding": 2, "dilation": 2}])
def test_convolutions_too(options: dict[str, Any]) -> None:
    torch.manual_seed(0)
    layer, x = nn.Conv2d(5, 8, 3, **options), torch.randn(6, 5, 9, 7)
    downs, ups = stacks((5, 3, 3), 8)
    expected = [
        layer(part) + F.conv2d(F.conv2d(part, down, **options), up)
        for part, down, up in zip(x.chunk(GROUPS), downs, ups, strict=True)
    ]
    torch.testing.assert_close(add_loras(layer, x, downs, ups), torch.cat(expected))


def test_gradients_reach_each_lora_from_its_own_rows_alone() -> None:
    torch.manual_seed(0)
    layer, x = nn.Linear(5, 8), torch.randn(GROUPS, 7, 5)
    downs, ups = (each.requires_grad_() for each in stacks((5,), 8))
    add_loras(layer, x, downs, ups)[1].sum().backward()
    assert [bool(grad.any()) for grad in downs.grad] == [False, True, False]  # type: ignore[union-attr]
    assert [bool(grad.any()) for grad in ups.grad] == [False, True, False]  # type: ignore[union-attr]


def test_the_dtype_is_the_layers() -> None:
    layer, x = nn.Linear(5, 8, dtype=torch.bfloat16), torch.randn(GROUPS, 5, dtype=torch.bfloat16)
    assert add_loras(layer, x, *stacks((5,), 8)).dtype == torch.bfloat16
