"""The tensors of one module <-> its change of a weight; what the formats share once keys are split.

A key is a component, a module path and a suffix; suffixes are those of the kohya format here.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from lora_service.errors import LoraFileError
from lora_service.lora.lycoris import DoraLayer, Factor, FullDifference, LohaLayer, LokrLayer
from lora_service.lora.safetensors_header import shortened
from lora_service.lora.weights import BIAS, LoraLayer, WeightChange

MAX_RANK = 4096
"""The highest rank that is read: above every dimension of the models served, so more is a mistake or an attack."""
MAX_WEIGHT_ITEMS = 32 * 1024**2
"""The largest weight of a UNet or text encoder; a convolution of 2,560 channels has 29 million items."""
MAX_TRANSFORMER_ITEMS = 384 * 1024**2
"""The largest weight of a transformer; FLUX.2 dev's fused projection of 55,296 × 6,144 has 340 million items."""

LayerTensors = dict[str, Tensor]
"""Key suffix -> tensor, of one module."""
HeaderAlpha = Callable[[str, str, int], float | None]
"""(component, module path, rank) -> alpha by the header; None where it names none."""
AlphaByRank = Callable[[int], float]

_UNSUPPORTED_KINDS = {
    "oft": "OFT", "boft": "BOFT", "on_input": "IA³", "a1.weight": "GLoRA", "b1.weight": "GLoRA", "glora": "GLoRA",
    "set_weight": "weight replacement", "lora_bias": "LoRA with biases",
    "lora_down.bias": "LoRA with a bias of its first factor (lora_down.bias or lora_A.bias)",
    "reshape_weight": "padded LoRA", "vera": "VeRA",
}  # fmt: skip


@dataclass
class TensorsByModule:
    """A file's tensors, grouped by component and module path."""

    modules: dict[str, dict[str, LayerTensors]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(dict)))

    def add(self, component: str, path: str, suffix: str, tensor: Tensor) -> None:
        """Add a tensor to those of its module.

        Raises:
            LoraFileError: the module has one of this suffix already, from another key (``duplicate_tensor``).
        """
        tensors = self.modules[component][path]
        if suffix in tensors:
            raise LoraFileError(
                f"The LoRA has two tensors {suffix!r} for {component}.{shortened(path)}; keep one.",
                code="duplicate_tensor",
            )
        tensors[suffix] = tensor

    def layers(self, header_alpha: HeaderAlpha | None = None) -> dict[str, dict[str, WeightChange]]:
        """Return every module's change as component -> module path -> change.

        Raises:
            LoraFileError: as of :func:`build_layer`.
        """
        layers: dict[str, dict[str, WeightChange]] = {}
        for component, modules in self.modules.items():
            changes = layers.setdefault(component, {})
            for path, tensors in modules.items():
                alpha = header_alpha and _alpha_of_module(header_alpha, component, path)
                changes |= _changes_of_module(f"{component}.{path}", path, tensors, alpha)
        return layers


def _changes_of_module(
    module: str, path: str, tensors: Mapping[str, Tensor], header_alpha: Callable[[int], float | None] | None
) -> dict[str, WeightChange]:
    """Return the changes of a module's weight, under its path, and of its bias."""
    of_weight = {suffix: tensor for suffix, tensor in tensors.items() if suffix not in _BIASES}
    biases = {suffix: tensor for suffix, tensor in tensors.items() if suffix in _BIASES}
    changes: dict[str, WeightChange] = {}
    scale = 1.0
    if not biases or of_weight.keys() - {"alpha"}:
        layer = changes[path] = build_layer(module, of_weight, header_alpha)
        scale = layer.alpha / layer.rank if layer.rank else 1.0
    if len(biases) > 1 or any(tensor.dim() != 1 or tensor.numel() == 0 for tensor in biases.values()):
        raise LoraFileError(
            f"The LoRA's module {shortened(module)} has changes of its bias that cannot be used ({_shapes(biases)}); "
            "it needs one, of one value per output.",
            code="shape_mismatch",
        )
    for suffix, values in biases.items():
        difference = FullDifference(values.float() * scale if suffix == "lora_up.bias" else values)
        _check_limits(module, difference)
        changes[path + BIAS] = difference
    return changes


def _alpha_of_module(header_alpha: HeaderAlpha, component: str, path: str) -> Callable[[int], float | None]:
    return lambda rank: header_alpha(component, path, rank)


def build_layer(
    module: str, tensors: Mapping[str, Tensor], header_alpha: Callable[[int], float | None] | None = None
) -> WeightChange:
    """Return the change that a module's tensors describe.

    Args:
        module: its name, for messages.
        tensors: by key suffix, as in the kohya format.
        header_alpha: rank -> alpha, used without a tensor ``alpha``; where there is neither, alpha = rank.

    Raises:
        LoraFileError: a tensor is missing (``missing_tensor``), unknown (``unknown_key``), of an algorithm that is
            not read (``unsupported_kind``), does not fit the others (``shape_mismatch``), or is too large
            (``too_large``); or alpha is not one finite number (``bad_alpha``).
    """
    remaining = dict(tensors)
    stored_alpha = remaining.pop("alpha", None)
    magnitude = remaining.pop("dora_scale", None)
    builder = next((build for start, build in _BUILDERS.items() if any(s.startswith(start) for s in remaining)), None)
    if builder is None:
        raise _unsupported(module, remaining)
    try:
        layer = builder(remaining, _alpha_by_rank(module, stored_alpha, header_alpha))
    except KeyError as error:
        raise LoraFileError(
            f"The LoRA's module {shortened(module)} has no {error.args[0]!r} ({_shapes(tensors)}).",
            code="missing_tensor",
        ) from error
    except _ShapeMismatch as error:
        raise LoraFileError(
            f"The LoRA's module {shortened(module)} has tensors that do not fit each other ({_shapes(tensors)}).",
            code="shape_mismatch",
        ) from error
    if remaining:
        raise _unsupported(module, remaining)
    _check_limits(module, layer)
    return layer if magnitude is None else _dora(module, layer, magnitude)


def tensors_of(path: str, change: WeightChange) -> Mapping[str, Tensor]:
    """Return a change's tensors by suffix; differences have one suffix per kind of parameter."""
    if not isinstance(change, FullDifference):
        return change.tensors
    module = path.removesuffix(BIAS)
    names = ("w_norm", "b_norm") if "norm" in module.rpartition(".")[2] else ("diff", "diff_b")
    return {names[path != module]: change.values}


class _ShapeMismatch(ValueError):
    """Tensors of one module whose shapes contradict each other."""


def _lora(tensors: LayerTensors, alpha: AlphaByRank) -> LoraLayer:
    down, up = _factor(tensors.pop("lora_down.weight")), _factor(tensors.pop("lora_up.weight"))
    mid = tensors.pop("lora_mid.weight", None)
    rank = down.shape[0]
    _require(up.shape[1] == rank and up.shape[2:].numel() == 1)
    if mid is not None:
        _require(down.shape[2:].numel() == 1 and mid.dim() == 4 and mid.shape[:2] == (rank, rank))
    return LoraLayer(down, up, alpha(rank), mid)


def _loha(tensors: LayerTensors, alpha: AlphaByRank) -> LohaLayer:
    first, second = _full_or_product(tensors, "hada_w1", "hada_t1"), _full_or_product(tensors, "hada_w2", "hada_t2")
    _require(first.rank > 0 and second.rank > 0 and first.shape == second.shape)
    return LohaLayer(first, second, alpha(first.rank))


def _lokr(tensors: LayerTensors, alpha: AlphaByRank) -> LokrLayer:
    first, second = _full_or_product(tensors, "lokr_w1", "lokr_t1"), _full_or_product(tensors, "lokr_w2", "lokr_t2")
    _require(len(first.shape) == 2)
    rank = second.rank or first.rank
    return LokrLayer(first, second, alpha(rank) if rank else 0.0)


def _difference(tensors: LayerTensors, alpha: AlphaByRank) -> FullDifference:
    _, values = tensors.popitem()
    _require(values.dim() > 0 and values.numel() > 0)
    return FullDifference(values)


_Layer = LoraLayer | LohaLayer | LokrLayer | FullDifference
_BIASES = ("diff_b", "b_norm", "lora_up.bias")
_BUILDERS: Mapping[str, Callable[[LayerTensors, AlphaByRank], _Layer]] = {
    "lora_down.weight": _lora,
    "lora_up.weight": _lora,
    "hada_": _loha,
    "lokr_": _lokr,
    "diff": _difference,
    "w_norm": _difference,
}


def _full_or_product(tensors: LayerTensors, name: str, core_name: str) -> Factor:
    if name in tensors:
        full = _factor(tensors.pop(name))
        return Factor(_as_matrix(full) if name == "lokr_w1" else full)
    a, b = _as_matrix(_factor(tensors.pop(f"{name}_a"))), _factor(tensors.pop(f"{name}_b"))
    core = tensors.pop(core_name, None)
    if core is None:
        _require(a.dim() == 2 and a.shape[1] == b.shape[0])
    else:
        b = _as_matrix(b)
        _require(a.dim() == b.dim() == 2 and core.dim() == 4 and core.shape[:2] == (a.shape[0], b.shape[0]))
    return Factor(b, a, core)


def _as_matrix(tensor: Tensor) -> Tensor:
    """Return a 1 × 1 kernel as the matrix it is; some tools save factors of convolutions so."""
    return tensor.flatten(1) if tensor.shape[2:].numel() == 1 else tensor


def _factor(tensor: Tensor) -> Tensor:
    _require(tensor.dim() >= 2 and 0 not in tensor.shape)
    return tensor


def _require(fits: bool) -> None:
    if not fits:
        raise _ShapeMismatch


def _alpha_by_rank(
    module: str, stored: Tensor | None, header_alpha: Callable[[int], float | None] | None
) -> AlphaByRank:
    """Return rank -> alpha: the file's tensor, else the header's value, else the rank itself."""
    if stored is not None:
        if stored.numel() != 1:
            raise LoraFileError(
                f"The LoRA's module {shortened(module)} has {stored.numel()} alphas; it needs one.", code="bad_alpha"
            )
        value = float(stored.item())
        return lambda rank: value
    if header_alpha is None:
        return float
    return lambda rank: float(rank) if (alpha := header_alpha(rank)) is None else alpha


def _check_limits(module: str, layer: _Layer) -> None:
    if not math.isfinite(layer.alpha):
        raise LoraFileError(
            f"The LoRA's module {shortened(module)} has the alpha {layer.alpha}; it must be a finite number.",
            code="bad_alpha",
        )
    limit = MAX_TRANSFORMER_ITEMS if module.startswith("transformer.") else MAX_WEIGHT_ITEMS
    if math.prod(layer.shape) > limit:
        raise LoraFileError(
            f"The LoRA's module {shortened(module)} changes a weight of the shape {layer.shape}; no base served "
            "has one.",
            code="too_large",
        )
    if layer.rank > MAX_RANK:
        raise LoraFileError(
            f"The LoRA's module {shortened(module)} has the rank {layer.rank}; at most {MAX_RANK} is read.",
            code="too_large",
        )


def _dora(module: str, layer: _Layer, magnitude: Tensor) -> DoraLayer:
    if isinstance(layer, FullDifference):
        raise LoraFileError(
            f"The LoRA's module {shortened(module)} has magnitudes (dora_scale) of a full difference, which are not "
            "read.",
            code="unsupported_kind",
        )
    by_column = magnitude.dim() > 1 and magnitude.shape[0] == 1
    expected = layer.shape[1 if by_column else 0]
    # A convolution's factors may be flattened to (out, in·kh·kw); the weight then shows how many inputs there are.
    is_flattened = by_column and magnitude.dim() > 2 and len(layer.shape) == 2
    fits = is_flattened and magnitude.numel() > 0 and expected % magnitude.numel() == 0
    if not fits and magnitude.numel() != expected:
        raise LoraFileError(
            f"The LoRA's module {shortened(module)} has {magnitude.numel()} magnitudes (dora_scale) of the shape "
            f"{tuple(magnitude.shape)}; it needs {expected}, one per {'input' if by_column else 'output'}.",
            code="shape_mismatch",
        )
    kernel = [1] * (len(layer.shape) - 2)
    return DoraLayer(layer, magnitude.reshape(1, -1, *kernel) if by_column else magnitude.reshape(-1, 1, *kernel))


def _unsupported(module: str, tensors: Mapping[str, Tensor]) -> LoraFileError:
    if not tensors:
        return LoraFileError(f"The LoRA's module {shortened(module)} has no factors.", code="missing_tensor")
    suffix = next(iter(tensors))
    kind = next((kind for start, kind in _UNSUPPORTED_KINDS.items() if suffix.startswith(start)), None)
    problem = f"is of the kind {kind}" if kind else f"has the tensor {shortened(suffix)!r}"
    return LoraFileError(
        f"The LoRA's module {shortened(module)} {problem}, which is not read; LoRA, LoCon, LoHa, LoKr, DoRA and full "
        "differences are.",
        code="unsupported_kind" if kind else "unknown_key",
    )


def _shapes(tensors: Mapping[str, Tensor]) -> str:
    return shortened(", ".join(f"{suffix} {tuple(tensor.shape)}" for suffix, tensor in tensors.items()), 300)
