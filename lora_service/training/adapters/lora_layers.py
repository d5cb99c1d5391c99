"""The layers that learn, of LoRA, DoRA or LoKr: peft's, put into a model and taken out again."""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, cast, get_args

import torch
from peft import LoKrConfig, LoraConfig, inject_adapter_in_model
from peft.tuners.lokr.layer import factorization
from peft.tuners.lora import Linear as PeftLinear
from peft.tuners.lora.layer import LoraLayer as PeftLoraLayer
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils.integrations import dequantize_module_weight
from torch import nn
from torch.nn import functional as F

from lora_service.errors import InputError
from lora_service.lora.lycoris import DoraLayer, Factor, LokrLayer
from lora_service.lora.weights import LoraLayer, WeightChange
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.quantization import quantization_of
from lora_service.settings import Quantization
from lora_service.training.inputs.config import LoraKind, TrainConfig

LOKR_FACTOR = 8
"""Rows and columns of LoKr's first matrix, where the layer's can be divided by it. With those near the root, peft's
default, the second matrix is smaller than usual ranks, and a layer holds a tenth of LoRA's parameters."""
_ADAPTER = "default"


@dataclass(frozen=True)
class LoraFactors:
    """A layer's LoRA: ``down (rank, in[, kh, kw])`` and ``up (out, rank[, 1, 1])``, fp32, times ``scaling``."""

    down: nn.Parameter
    up: nn.Parameter
    scaling: float


def lora_factors(layer: object) -> LoraFactors | None:
    """Return the LoRA of a layer of peft that is nothing besides: no DoRA, no bias and no dropout; else None."""
    if not isinstance(layer, PeftLoraLayer) or layer.lora_variant or layer.lora_bias[_ADAPTER]:
        return None
    if not isinstance(layer.lora_dropout[_ADAPTER], nn.Identity):
        return None
    down, up = (cast(nn.Parameter, factor[_ADAPTER].weight) for factor in (layer.lora_A, layer.lora_B))
    return LoraFactors(down, up, float(layer.scaling[_ADAPTER]))


class FusedLoraLinear(PeftLinear):  # type: ignore[misc, unused-ignore]
    """peft's ``base(x) + alpha / rank · up(down(x))`` (Hu et al., https://arxiv.org/abs/2106.09685) in fewer calls.

    ``down`` is ``(rank, in)``, ``up`` is ``(out, rank)``, both fp32. At batch 1 a step costs its calls rather than its
    arithmetic, so product, scaling and sum are one ``addmm`` here where peft's own forward takes three. The base layer
    may be one of bitsandbytes', which are linear layers too. Whatever else a peft layer can be (dropout, DoRA, several
    adapters, merged) goes through peft's forward.
    """

    def __init__(self, base_layer: nn.Module, adapter_name: str, **kwargs: Any) -> None:
        super().__init__(base_layer, adapter_name, **kwargs)
        for adapter in (self.lora_A[adapter_name], self.lora_B[adapter_name]):
            adapter.float()  # peft makes them in the base's dtype; what learns is fp32
        self._factors = lora_factors(self)

    def forward(self, x: torch.Tensor, *args: Any, **kwargs: Any) -> torch.Tensor:
        """Return the layer's output for ``x`` ``(…, in)``."""
        is_switched = self.disable_adapters or self.merged or len(self.active_adapters) != 1
        if self._factors is None or is_switched or args or kwargs:
            return super().forward(x, *args, **kwargs)
        factors = self._factors
        out = self.base_layer(x)
        hidden = F.linear(x, factors.down.to(out.dtype))
        up = factors.up.to(out.dtype)
        fused = torch.addmm(out.flatten(0, -2), hidden.flatten(0, -2), up.t(), alpha=factors.scaling)
        return fused.view_as(out)


def check_kind(config: TrainConfig, base: DiffusionBase) -> None:
    """Check that the layers of ``lora_kind`` can learn in ``base``.

    Raises:
        InputError: they cannot in its weights of 8 or 4 bit (code ``quantized_base``): LoKr takes their packed shape
            for the layer's, and peft's dequantization for DoRA in 8 bit loses their scales on some devices.
    """
    quantization = quantization_of(base)
    refused: Mapping[Quantization, tuple[LoraKind, ...]] = {"none": (), "int8": ("dora", "lokr"), "nf4": ("lokr",)}
    if config.lora_kind in refused[quantization]:
        kinds = [kind for kind in get_args(LoraKind) if kind not in refused[quantization]]
        expected = f"{' or '.join(kinds)}, as the server holds the base in {quantization} (BASE_QUANTIZATION)"
        raise InputError("lora_kind", config.lora_kind, expected, code="quantized_base")


Layers = Mapping[str, Mapping[str, "LearnedLayer"]]
"""Component -> module path -> the layer that learns there."""


@dataclass(frozen=True)
class LayerOptions:
    """The algorithm of the layers that learn; they count ``alpha / rank``, or ``alpha / √rank`` of the kind rslora."""

    rank: int
    alpha: float
    kind: LoraKind = "lora"


class LearnedLayer:
    """A layer of peft while it learns: what the optimiser changes, and the change of the weight that it amounts to.

    Attributes:
        parameters: by name, fp32; those of LoRA begin with ``lora_A`` (down) and ``lora_B`` (up).
    """

    def __init__(self, layer: BaseTunerLayer) -> None:
        self._layer: Any = layer
        named = dict(cast(nn.Module, layer).named_parameters())
        self.parameters: dict[str, nn.Parameter] = {
            name: parameter for name, parameter in named.items() if name.startswith(("lora_", "lokr_"))
        }

    @property
    def scaling(self) -> float:
        """The factor of the product of the factors."""
        return float(self._layer.scaling[_ADAPTER])

    @property
    def ups(self) -> list[nn.Parameter]:
        """LoRA's up matrix, which starts at 0; none of LoKr."""
        return [parameter for name, parameter in self.parameters.items() if name.startswith("lora_B")]

    def initialize(self, generator: torch.Generator) -> None:
        """Start the factors that are not 0 from ``generator``, uniform in ±1/√inputs as peft has them."""
        for name, parameter in self.parameters.items():
            if name.startswith("lora_A") or name.startswith(("lokr_w1_b", "lokr_w2")):
                bound = 1 / math.sqrt(parameter[0].numel())
                parameter.data.copy_(torch.rand(parameter.shape, generator=generator) * 2 * bound - bound)
            elif name.startswith("lora_magnitude"):  # of the base's weight in fp32, not as its dtype rounds it
                weight = dequantize_module_weight(self._layer.get_base_layer())
                norms = weight.detach().float().flatten(1).norm(dim=1)
                parameter.data.copy_(norms.reshape(parameter.shape))

    def start_from(self, start: LoraLayer) -> None:
        """Start from the change of a file; a 1 × 1 convolution may be a linear layer there."""
        for name, values in ((f"lora_A.{_ADAPTER}.weight", start.down), (f"lora_B.{_ADAPTER}.weight", start.up)):
            parameter = self.parameters[name]
            parameter.data.copy_(values.reshape(parameter.shape))

    def change(self) -> WeightChange:
        """Return a copy of what is learned as the change of a weight."""
        if not isinstance(self._layer, PeftLoraLayer):
            return self._lokr()
        down, up = (self._copy(f"lora_{part}.{_ADAPTER}.weight") for part in "AB")
        is_plain = not self._layer.use_rslora.get(_ADAPTER)
        alpha = float(self._layer.lora_alpha[_ADAPTER]) if is_plain else self.scaling * down.shape[0]
        inner = LoraLayer(down, up, alpha)
        magnitude = f"lora_magnitude_vector.{_ADAPTER}.weight"
        if magnitude not in self.parameters:
            return inner
        return DoraLayer(inner, self._copy(magnitude).reshape(-1, *[1] * (down.dim() - 1)))

    def _lokr(self) -> LokrLayer:
        first, second = self._factor("lokr_w1"), self._factor("lokr_w2")
        rank = second.rank or first.rank
        if not rank and self.scaling != 1:  # LyCORIS reads no alpha where there is no rank
            first = Factor(first.b * self.scaling)
        return LokrLayer(first, second, self.scaling * rank)

    def _factor(self, name: str) -> Factor:
        if f"{name}.{_ADAPTER}" in self.parameters:
            return Factor(self._copy(f"{name}.{_ADAPTER}"))
        return Factor(self._copy(f"{name}_b.{_ADAPTER}"), self._copy(f"{name}_a.{_ADAPTER}"))

    def _copy(self, name: str) -> torch.Tensor:
        return self.parameters[name].detach().cpu()


def parameter_count(weight: tuple[int, ...], rank: int, kind: LoraKind) -> int:
    """Return the number of parameters that learn for a weight ``(out, in[, kh, kw])``."""
    out, inputs, kernel = weight[0], weight[1], math.prod(weight[2:])
    if kind == "lokr":
        (a, c), (b, d) = factorization(out, LOKR_FACTOR), factorization(inputs, LOKR_FACTOR)
        return a * b + (c * d * kernel if rank >= max(c, d) / 2 else rank * (c + d * kernel))
    return rank * (out + inputs * kernel) + (out if kind == "dora" else 0)


@contextmanager
def lora_layers(
    model: nn.Module,
    paths: Collection[str],
    options: LayerOptions,
    generator: torch.Generator,
    starts: Mapping[str, LoraLayer] | None = None,
    *,
    learn: bool = True,
    device: torch.device | None = None,
) -> Iterator[Mapping[str, LearnedLayer]]:
    """Let the layers of ``model`` at ``paths`` learn within the context; yields them by path.

    ``down`` starts uniform in ±1/√in, drawn from ``generator``, and ``up`` at 0, so that the first step sees the base.
    There is no dropout: it would have to be remembered and turned off wherever the LoRA is used. However the context
    ends, the model is as before it, module by module.

    Args:
        starts: module path -> the change that the layer there starts from, of its own rank and alpha; of the kind lora
            alone. Layers that are not among ``paths`` are added.
        learn: False if the layers stay as they start.
        device: of the layers; None: that of the weights, which may wait elsewhere.
    """
    starts = starts or {}
    paths = list(dict.fromkeys([*paths, *starts]))
    if not paths:  # peft refuses a model without targets
        yield {}
        return
    try:
        inject_adapter_in_model(_peft_config(paths, options, starts), model, _ADAPTER)
        layers = {path: LearnedLayer(cast(BaseTunerLayer, model.get_submodule(path))) for path in paths}
        for path, layer in layers.items():
            for parameter in layer.parameters.values():
                # peft makes them in the base's dtype; what learns is fp32.
                parameter.data = parameter.data.to(device or parameter.device, torch.float32)
                parameter.requires_grad_(learn)
            if path in starts:
                layer.start_from(starts[path])
            else:
                layer.initialize(generator)
        yield layers
    finally:
        _remove_layers(model)


def _peft_config(
    paths: Collection[str], options: LayerOptions, starts: Mapping[str, LoraLayer]
) -> LoraConfig | LoKrConfig:
    rank, alpha, targets = options.rank, options.alpha, list(paths)
    if options.kind == "lokr":
        return LoKrConfig(r=rank, alpha=alpha, target_modules=targets, decompose_factor=LOKR_FACTOR)  # type: ignore[arg-type, unused-ignore]
    config = LoraConfig(
        r=rank,
        lora_alpha=alpha,  # type: ignore[arg-type, unused-ignore]
        target_modules=targets,
        lora_dropout=0.0,
        use_dora=options.kind == "dora",
        use_rslora=options.kind == "rslora",
        # peft matches a pattern with the end of a path.
        rank_pattern={f"^{re.escape(path)}": start.rank for path, start in starts.items()},
        alpha_pattern={f"^{re.escape(path)}": start.alpha for path, start in starts.items()},
    )
    config._register_custom_module({nn.Linear: FusedLoraLinear})
    return config


def _remove_layers(model: nn.Module) -> None:
    """Put every layer that peft wrapped back; also after an injection that broke off half-way."""
    for path, layer in list(model.named_modules()):
        if isinstance(layer, BaseTunerLayer):
            parent, _, name = path.rpartition(".")
            setattr(model.get_submodule(parent), name, layer.get_base_layer())
    if hasattr(model, "peft_config"):
        del model.peft_config
