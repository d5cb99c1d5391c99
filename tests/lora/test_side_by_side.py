"""Tests of LoRAs side by side in a batch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from lora_service.lora.lycoris import DoraLayer
from lora_service.lora.scale import Scale, parse_scale
from lora_service.lora.side_by_side import LorasSideBySide, add_loras, can_be_beside, stacked_bytes
from lora_service.lora.weights import LoraLayer, LoraWeights

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


class Backbone(nn.Module):
    """A convolution and linear layers, the second of which may be as wide as the rows of a picture tell."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 6, 3, padding=1)
        self.linear = nn.Linear(6, 6)
        self.norm = nn.LayerNorm(6)

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.norm(self.linear(self.conv(hidden_states).flatten(2).transpose(1, 2)))
        return out


def loras_of(backbone: Backbone) -> list[tuple[LoraWeights, Scale]]:
    """Make LoRAs of different ranks and layers, one of which has a Tucker core."""
    tucker = LoraLayer(torch.randn(4, 3, 1, 1), torch.randn(6, 4, 1, 1), 2.0, torch.randn(4, 4, 3, 3))
    linear = LoraLayer(torch.randn(2, 6), torch.randn(6, 2), 4.0)
    both = {"conv": LoraLayer(torch.randn(3, 3, 3, 3), torch.randn(6, 3, 1, 1), 3.0), "linear": linear}
    return [
        (LoraWeights({"unet": {"conv": tucker}}), Scale(0.5, 0.5)),
        (LoraWeights({"unet": {"linear": linear, "gone": linear}}), Scale(-1.0, 1.0)),
        (LoraWeights({"unet": both}), parse_scale("1,unet:0.7")),
    ]


@torch.no_grad()
def merged(backbone: Backbone, lora: tuple[LoraWeights, Scale], x: torch.Tensor) -> torch.Tensor:
    weights, scale = lora
    changed = Backbone()
    changed.load_state_dict(backbone.state_dict())
    for path, change in weights.layers["unet"].items():
        if path != "gone":
            weight = changed.get_submodule(path).weight
            weight += scale.of("unet", path) * change.delta(weight)
    return changed(x)


@torch.no_grad()
@pytest.mark.parametrize("numbers", [[0, 1, 2], [0, 0, 2, 2], [2, 0], [0, 1, 1], [1]])
@pytest.mark.parametrize("repeats", [1, 2])
def test_each_picture_passes_its_own_lora_also_where_guidance_repeats_them(numbers: list[int], repeats: int) -> None:
    torch.manual_seed(0)
    backbone = Backbone()
    before = {name: tensor.clone() for name, tensor in backbone.state_dict().items()}
    loras = loras_of(backbone)
    beside = LorasSideBySide(backbone, "unet", loras, torch.device("cpu"), torch.float32)
    x = torch.randn(repeats * len(numbers), 3, 5, 4)
    bare = backbone(x)
    beside.install(numbers)
    expected = [merged(backbone, loras[n], row[None]) for n, row in zip(numbers * repeats, x, strict=True)]
    for _ in range(2):
        torch.testing.assert_close(backbone(hidden_states=x), torch.cat(expected), atol=1e-4, rtol=1e-4)
    beside.remove()
    assert torch.equal(backbone(x), bare)
    assert all(torch.equal(tensor, before[name]) for name, tensor in backbone.state_dict().items())
    assert stacked_bytes(loras, "unet", torch.float32) >= 3 * beside.bytes_each


def test_what_can_be_beside_the_weights() -> None:
    backbone, full = Backbone(), Scale(1.0, 1.0)
    [tucker, linear, both] = loras_of(backbone)
    assert all(can_be_beside(lora, "unet", backbone) for lora in (tucker, linear, both))
    change = both[0].layers["unet"]["linear"]
    assert isinstance(change, LoraLayer)
    dora = LoraWeights({"unet": {"linear": DoraLayer(change, torch.ones(6, 1))}})
    assert not can_be_beside((dora, full), "unet", backbone)
    assert can_be_beside((dora, Scale(0.0, 1.0)), "unet", backbone)
    assert can_be_beside((LoraWeights({"text_encoder": dora.layers["unet"]}), full), "unet", backbone)
    assert not can_be_beside((both[0], parse_scale("1,steps:0-0.5")), "unet", backbone)
    assert not can_be_beside((both[0], full), "unet", backbone, ("linear",))
    assert not can_be_beside((LoraWeights({"unet": {"norm": change}}), full), "unet", backbone)
