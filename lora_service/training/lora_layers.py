"""The LoRA layers that learn: peft's, put into a model and taken out again."""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import Conv2d as PeftConv2d
from peft.tuners.lora import Linear as PeftLinear
from peft.tuners.tuners_utils import BaseTunerLayer
from torch import nn
from torch.nn import functional as F

from lora_service.lora.weights import LoraLayer

UNET_TARGETS = ("to_q", "to_k", "to_v", "to_out.0", "ff.net.0.proj")
"""Attention, and the projection of GEGLU: what the original trainers taught."""
TEXT_TARGETS = ("q_proj", "k_proj", "v_proj", "out_proj")
_ADAPTER = "default"


class _Factors:
    """The parameters of a layer of peft by their names here."""

    lora_A: nn.ModuleDict
    lora_B: nn.ModuleDict
    lora_alpha: Mapping[str, float]

    @property
    def down(self) -> nn.Parameter:
        return cast(nn.Parameter, self.lora_A[_ADAPTER].weight)

    @property
    def up(self) -> nn.Parameter:
        return cast(nn.Parameter, self.lora_B[_ADAPTER].weight)

    @property
    def alpha(self) -> float:
        return float(self.lora_alpha[_ADAPTER])


class FusedLoraLinear(_Factors, PeftLinear):  # type: ignore[misc, unused-ignore]
    """peft's ``base(x) + alpha / rank · up(down(x))`` (Hu et al., https://arxiv.org/abs/2106.09685) in fewer calls.

    ``down`` is ``(rank, in)``, ``up`` is ``(out, rank)``, both fp32. At batch 1 a step costs its calls rather than its
    arithmetic, so product, scaling and sum are one ``addmm`` here where peft's own forward takes three. Whatever else
    a peft layer can be (dropout, DoRA, several adapters, merged) goes through peft's forward.
    """

    def __init__(self, base_layer: nn.Module, adapter_name: str, **kwargs: Any) -> None:
        super().__init__(base_layer, adapter_name, **kwargs)
        for adapter in (self.lora_A[adapter_name], self.lora_B[adapter_name]):
            adapter.float()  # peft makes them in the base's dtype; what learns is fp32
        has_dropout = not isinstance(self.lora_dropout[adapter_name], nn.Identity)
        is_plain = not (self.lora_variant or self.lora_bias[adapter_name] or has_dropout)
        # A tuple, so that nn.Module does not register the weights a second time.
        self._fused = (self.down, self.up, float(self.scaling[adapter_name])) if is_plain else None

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the layer's output for ``x`` ``(…, in)``."""
        is_switched = self.disable_adapters or self.merged or len(self.active_adapters) != 1
        if self._fused is None or is_switched or args or kwargs:
            return super().forward(x, *args, **kwargs)
        down, up, scaling = self._fused
        out = self.base_layer(x)
        hidden = F.linear(x, down.to(out.dtype))
        fused = torch.addmm(out.flatten(0, -2), hidden.flatten(0, -2), up.to(out.dtype).t(), alpha=scaling)
        return fused.view_as(out)


class LoraConv2d(_Factors, PeftConv2d):  # type: ignore[misc, unused-ignore]
    """A convolution's LoRA, in a file to go on from: ``down (rank, in, kh, kw)``, ``up (out, rank, 1, 1)``, fp32."""

    def __init__(self, base_layer: nn.Module, adapter_name: str, **kwargs: Any) -> None:
        super().__init__(base_layer, adapter_name, **kwargs)
        for adapter in (self.lora_A[adapter_name], self.lora_B[adapter_name]):
            adapter.float()


LearnedLayer = FusedLoraLinear | LoraConv2d
Layers = Mapping[str, Mapping[str, LearnedLayer]]
"""Component -> module path -> the layer that learns there."""


def targets_in(component: str, model: nn.Module) -> dict[str, nn.Linear]:
    """Return the linear layers of the base's ``component`` that a LoRA changes, by module path."""
    endings = tuple("." + target for target in (UNET_TARGETS if component == "unet" else TEXT_TARGETS))
    return {
        path: layer for path, layer in model.named_modules() if isinstance(layer, nn.Linear) and path.endswith(endings)
    }


@contextmanager
def lora_layers(
    component: str,
    model: nn.Module,
    rank: int,
    alpha: float,
    generator: torch.Generator,
    starts: Mapping[str, LoraLayer] | None = None,
    *,
    only_starts: bool = False,
) -> Iterator[Mapping[str, LearnedLayer]]:
    """Let the target layers of the base's ``component`` learn within the context; yields them by path.

    ``down`` starts uniform in ±1/√in, drawn from ``generator``, and ``up`` at 0, so that the first step sees the base.
    There is no dropout: it would have to be remembered and turned off wherever the LoRA is used. However the context
    ends, the model is as before it, module by module.

    Args:
        starts: module path -> the change that the layer there starts from, of its own rank and alpha; layers that are
            no targets otherwise learn too.
        only_starts: there are only these layers, and they do not learn.
    """
    starts = starts or {}
    paths = list(dict.fromkeys([*(() if only_starts else targets_in(component, model)), *starts]))
    if not paths:  # peft refuses a model without targets
        yield {}
        return
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type, unused-ignore]
        target_modules=paths,
        lora_dropout=0.0,
        # peft matches a pattern with the end of a path.
        rank_pattern={f"^{re.escape(path)}": start.rank for path, start in starts.items()},
        alpha_pattern={f"^{re.escape(path)}": start.alpha for path, start in starts.items()},
    )
    config._register_custom_module({nn.Linear: FusedLoraLinear, nn.Conv2d: LoraConv2d})
    try:
        inject_adapter_in_model(config, model, _ADAPTER)
        layers = {path: cast(LearnedLayer, model.get_submodule(path)) for path in paths}
        for path, layer in layers.items():
            _initialize(layer, starts.get(path), generator)
            if only_starts:
                layer.down.requires_grad_(False)
                layer.up.requires_grad_(False)
        yield layers
    finally:
        _remove_layers(model)


def _initialize(layer: LearnedLayer, start: LoraLayer | None, generator: torch.Generator) -> None:
    if start is not None:  # a 1 × 1 convolution may be a linear layer in the file
        layer.down.data.copy_(start.down.reshape(layer.down.shape))
        layer.up.data.copy_(start.up.reshape(layer.up.shape))
        return
    # peft's distribution, but from the job's seed and not from the process's.
    bound = 1 / math.sqrt(layer.down[0].numel())
    layer.down.data.copy_(torch.rand(layer.down.shape, generator=generator) * 2 * bound - bound)


def _remove_layers(model: nn.Module) -> None:
    """Put every layer that peft wrapped back; also after an injection that broke off half-way."""
    for path, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, layer.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
