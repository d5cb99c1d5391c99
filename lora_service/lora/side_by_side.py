"""LoRAs side by side in one batch: each group of its rows passes a LoRA of its own, as batched matrix products.

For as long as a batch takes, forward hooks add what the LoRAs change to what the layers return; weights and modules
stay as they are.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lora_service.lora.patcher import ScaledLora
from lora_service.lora.weights import LoraLayer


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
    return _added(layer, x, layer(x), downs, ups)


def _added(layer: nn.Linear | nn.Conv2d, x: Tensor, out: Tensor, downs: Tensor, ups: Tensor) -> Tensor:
    """Return what :func:`add_loras` does, where ``out`` is ``layer(x)``."""
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


class _Stack(NamedTuple):
    """The factors of several LoRAs, or groups of rows, in one layer, as of :func:`add_loras`."""

    downs: Tensor
    ups: Tensor

    def select(self, numbers: Tensor) -> _Stack:
        return _Stack(self.downs[numbers], self.ups[numbers])


def can_be_beside(lora: ScaledLora, component: str, backbone: nn.Module, ragged: Sequence[str] = ()) -> bool:
    """Return True if all that a LoRA changes of a backbone are products of low rank, in all steps.

    Args:
        component: the backbone's name in LoRA files.
        ragged: children of the backbone whose rows are not as many for each picture of a batch.
    """
    weights, scale = lora
    layers = dict(backbone.named_modules())
    changed = {
        path: change
        for path, change in weights.layers.get(component, {}).items()
        if scale.of(component, path) != 0 and (path in layers or type(change) is not LoraLayer)
    }
    return scale.is_constant and all(
        type(change) is LoraLayer and _is_plain(layers[path]) and path.partition(".")[0] not in ragged
        for path, change in changed.items()
    )


def _is_plain(layer: nn.Module) -> bool:
    return isinstance(layer, nn.Linear) or (isinstance(layer, nn.Conv2d) and layer.groups == 1)


def stacked_bytes(loras: Sequence[ScaledLora], component: str, dtype: torch.dtype) -> int:
    """Return what :class:`LorasSideBySide` takes for ``loras``, of which all have the largest rank of each layer."""
    largest: dict[str, LoraLayer] = {}
    for lora in loras:
        for path, (change, _) in _scaled_pairs(lora, component).items():
            if path not in largest or change.rank > largest[path].rank:
                largest[path] = change
    values = sum(change.rank * (change.shape[0] + math.prod(change.shape[1:])) for change in largest.values())
    return len(loras) * values * dtype.itemsize


class LorasSideBySide:
    """LoRAs for which :func:`can_be_beside` is True, each acting on its own pictures of a batch.

    Ranks that differ are filled up with zeros, and so are layers that a LoRA does not change.

    Args:
        backbone: the model that denoises, with its own weights.
        component: its name in LoRA files.
        loras: their shapes fit, which the patcher checks.
        device: that of the backbone's inputs.
        dtype: that its layers compute in.
    """

    def __init__(
        self,
        backbone: nn.Module,
        component: str,
        loras: Sequence[ScaledLora],
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        self._backbone = backbone
        pairs = [_scaled_pairs(lora, component) for lora in loras]
        self._stacks: dict[nn.Module, _Stack] = {}
        with torch.inference_mode(False), torch.no_grad():
            for path, layer in backbone.named_modules():
                of_layer = [each.get(path) for each in pairs]
                if any(of_layer) and _is_plain(layer):
                    downs, ups = _stacked(layer, of_layer)
                    self._stacks[layer] = _Stack(downs.to(device, dtype), ups.to(device, dtype))
        self._active: Mapping[nn.Module, _Stack] = {}
        self._repeats = 0
        self._handles: list[torch.utils.hooks.RemovableHandle] = []

    @property
    def bytes_each(self) -> int:
        """The bytes of the factors of one LoRA."""
        return sum(tensor[0].nbytes for stack in self._stacks.values() for tensor in stack)

    def install(self, loras: Sequence[int]) -> None:
        """Have the layers add to each picture of a batch the LoRA of its number.

        The backbone may be given the pictures several times in one batch, as with classifier-free guidance: all of
        them without the prompt, then all with it.
        """
        images, self._repeats = len(loras), 0
        runs = [number for place, number in enumerate(loras) if not place or loras[place - 1] != number]
        # One group for each LoRA where all have as many pictures side by side, else one for each picture.
        groups = runs if [each for each in runs for _ in range(images // len(runs))] == list(loras) else list(loras)

        def count_rows(backbone: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            rows = len(args[0] if args else kwargs["hidden_states"])
            if rows % images:
                raise RuntimeError(f"{rows} rows of {images} pictures with a LoRA each")
            if rows // images != self._repeats:
                self._repeats = rows // images
                self._select(groups * self._repeats)

        self._handles.append(self._backbone.register_forward_pre_hook(count_rows, with_kwargs=True))
        for layer in self._stacks:
            self._handles.append(layer.register_forward_hook(self._add))

    def remove(self) -> None:
        """Have the layers be as they were. Safe to call again if it was interrupted."""
        while self._handles:
            self._handles[-1].remove()
            self._handles.pop()
        self._active = {}

    def _select(self, groups: Sequence[int]) -> None:
        self._active = {}  # first, to have its memory
        numbers: Tensor | None = None
        active = {}
        for layer, stack in self._stacks.items():
            numbers = torch.tensor(groups, device=stack.downs.device) if numbers is None else numbers
            active[layer] = stack.select(numbers)
        self._active = active

    def _add(self, layer: Any, inputs: tuple[Tensor, ...], out: Tensor) -> Tensor:
        return _added(layer, inputs[0], out, *self._active[layer])


_Pair = tuple[LoraLayer, float]
"""A change and the factor of its product."""


def _scaled_pairs(lora: ScaledLora, component: str) -> dict[str, _Pair]:
    weights, scale = lora
    return {
        path: (change, scale.of(component, path) * change.alpha / change.rank)
        for path, change in weights.layers.get(component, {}).items()
        if isinstance(change, LoraLayer) and scale.of(component, path) != 0
    }


def _stacked(layer: Any, pairs: Sequence[_Pair | None]) -> _Stack:
    """Return the factors of all LoRAs in one layer, in fp32; zeros where a LoRA has none."""
    cpu = torch.device("cpu")
    rank = max(pair[0].rank for pair in pairs if pair is not None)
    out, *inputs = layer.weight.shape
    downs, ups = torch.zeros(len(pairs), rank, *inputs), torch.zeros(len(pairs), out, rank)
    for number, pair in enumerate(pairs):
        if pair is None:
            continue
        change, factor = pair
        up, down = change.factors(cpu)
        downs[number, : change.rank] = down.reshape(change.rank, *inputs)
        torch.mul(up, factor, out=ups[number, :, : change.rank])
    return _Stack(downs, ups.reshape(*ups.shape, *[1] * len(inputs[1:])))
