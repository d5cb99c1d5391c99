"""Named tensors of one module -> its change: what the layouts share, once a key is split into module and part."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

from torch import Tensor

from lora_service.errors import LoraFileError
from lora_service.lora.lycoris import DoraLayer, Factor, LohaLayer, LokrLayer
from lora_service.lora.safetensors_header import shortened
from lora_service.lora.weights import LoraLayer, WeightChange

MAX_RANK = 4096
"""Above every dimension of the models served; more could only be a mistake or an attack."""
MAX_WEIGHT_ITEMS = 32 * 1024**2
"""Of a weight that is changed; the largest in the models served, a convolution of 2,560 channels, has 29 million."""

LayerTensors = dict[str, Tensor]

TENSOR_ALIASES = {
    "lora_A": "lora_down.weight", "lora_B": "lora_up.weight",
    "lora_A.weight": "lora_down.weight", "lora_B.weight": "lora_up.weight",
    "lora_A.default.weight": "lora_down.weight", "lora_B.default.weight": "lora_up.weight",
    "lora.down.weight": "lora_down.weight", "lora.up.weight": "lora_up.weight",
    "lora_linear_layer.down.weight": "lora_down.weight", "lora_linear_layer.up.weight": "lora_up.weight",
    "lora_magnitude_vector": "dora_scale", "lora_magnitude_vector.weight": "dora_scale",
    "lora_magnitude_vector.default.weight": "dora_scale",
    "alpha": "alpha", "lora.alpha": "alpha",
}  # fmt: skip
"""Names of parts in other layouts -> in the kohya layout."""

_UNREAD_KINDS = {
    "oft": "OFT", "boft": "BOFT", "on_input": "IA³", "a1.weight": "GLoRA", "b1.weight": "GLoRA", "glora": "GLoRA",
    "diff_b": "bias difference", "diff": "full difference", "set_weight": "weight replacement",
    "w_norm": "norm difference", "b_norm": "norm difference", "norm": "norm difference",
    "lora_bias": "LoRA with biases", "lora_up.bias": "LoRA with biases", "lora_down.bias": "LoRA with biases",
    "lora_B.bias": "LoRA with biases", "reshape_weight": "padded LoRA", "vera": "VeRA",
}  # fmt: skip


@dataclass
class TensorsByModule:
    """Collects a file's tensors by component and module path, and tells apart what it cannot place."""

    modules: dict[str, dict[str, LayerTensors]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(dict)))

    def add(self, component: str, path: str, part: str, tensor: Tensor) -> None:
        """Puts a tensor with the parts of its module.

        Raises:
            LoraFileError: the module already has such a part, under another spelling of its name.
        """
        parts = self.modules[component][path]
        if part in parts:
            raise LoraFileError(f"The LoRA has two tensors {part!r} for {component}.{shortened(path)}; keep one.")
        parts[part] = tensor

    def layers(
        self, alpha_of: Callable[[str, str, int], float | None] | None = None
    ) -> dict[str, dict[str, WeightChange]]:
        """Every module's change.

        Args:
            alpha_of: (component, path, rank) -> alpha where the file keeps it apart from the tensors.
        """
        return {
            component: {
                path: build_layer(f"{component}.{path}", parts, alpha_of and _bind(alpha_of, component, path))
                for path, parts in modules.items()
            }
            for component, modules in self.modules.items()
        }


def _bind(
    alpha_of: Callable[[str, str, int], float | None], component: str, path: str
) -> Callable[[int], float | None]:
    return lambda rank: alpha_of(component, path, rank)


def build_layer(
    name: str, parts: Mapping[str, Tensor], alpha_of: Callable[[int], float | None] | None = None
) -> WeightChange:
    """The change that a module's tensors describe; parts are named as in the kohya layout.

    Args:
        name: the module, for messages.
        alpha_of: rank -> alpha, asked when the parts hold no ``alpha``; None, or None from it, means alpha = rank.

    Raises:
        LoraFileError: a part is missing, of an unknown kind, or its shape contradicts the others.
    """
    rest = dict(parts)
    stored_alpha = rest.pop("alpha", None)
    magnitude = rest.pop("dora_scale", None)
    builder = next((build for part, build in _BUILDERS.items() if any(key.startswith(part) for key in rest)), None)
    if builder is None:
        raise _unread(name, rest)
    try:
        layer = builder(rest, _alpha(name, stored_alpha, alpha_of))
    except (KeyError, ValueError) as error:
        missing = f"has no {error.args[0]!r}" if isinstance(error, KeyError) else "has parts that do not fit each other"
        raise LoraFileError(f"The LoRA's module {shortened(name)} {missing} ({_shapes(parts)}).") from error
    if rest:
        raise _unread(name, rest)
    if not math.isfinite(layer.alpha):
        raise LoraFileError(
            f"The LoRA's module {shortened(name)} has the alpha {layer.alpha}; it must be a finite number."
        )
    if math.prod(layer.shape) > MAX_WEIGHT_ITEMS:
        raise LoraFileError(
            f"The LoRA's module {shortened(name)} changes a weight of the shape {layer.shape}; no base served has one."
        )
    if layer.rank > MAX_RANK:
        raise LoraFileError(
            f"The LoRA's module {shortened(name)} has the rank {layer.rank}; at most {MAX_RANK} is read."
        )
    return layer if magnitude is None else _dora(name, layer, magnitude)


AlphaFor = Callable[[int], float]


def _lora(parts: LayerTensors, alpha_for: AlphaFor) -> LoraLayer:
    down, up = _factor(parts.pop("lora_down.weight")), _factor(parts.pop("lora_up.weight"))
    mid = parts.pop("lora_mid.weight", None)
    rank = down.shape[0]
    _require(up.shape[1] == rank and up.shape[2:].numel() == 1)
    if mid is not None:
        _require(down.shape[2:].numel() == 1 and mid.dim() == 4 and mid.shape[:2] == (rank, rank))
    return LoraLayer(down, up, alpha_for(rank), mid)


def _loha(parts: LayerTensors, alpha_for: AlphaFor) -> LohaLayer:
    first, second = _whole_or_split(parts, "hada_w1", "hada_t1"), _whole_or_split(parts, "hada_w2", "hada_t2")
    _require(first.rank > 0 and second.rank > 0 and first.shape == second.shape)
    return LohaLayer(first, second, alpha_for(first.rank))


def _lokr(parts: LayerTensors, alpha_for: AlphaFor) -> LokrLayer:
    first, second = _whole_or_split(parts, "lokr_w1", "lokr_t1"), _whole_or_split(parts, "lokr_w2", "lokr_t2")
    _require(len(first.shape) == 2)
    rank = second.rank or first.rank
    return LokrLayer(first, second, alpha_for(rank) if rank else 0.0)


_BUILDERS: Mapping[str, Callable[[LayerTensors, AlphaFor], LoraLayer | LohaLayer | LokrLayer]] = {
    "lora_down.weight": _lora,
    "lora_up.weight": _lora,
    "hada_": _loha,
    "lokr_": _lokr,
}


def _whole_or_split(parts: LayerTensors, name: str, core_name: str) -> Factor:
    if name in parts:
        return Factor(_factor(parts.pop(name)))
    a, b = _factor(parts.pop(f"{name}_a")), _factor(parts.pop(f"{name}_b"))
    core = parts.pop(core_name, None)
    if core is None:
        _require(a.dim() == 2 and a.shape[1] == b.shape[0])
    else:
        _require(a.dim() == b.dim() == 2 and core.dim() == 4 and core.shape[:2] == (a.shape[0], b.shape[0]))
    return Factor(b, a, core)


def _factor(tensor: Tensor) -> Tensor:
    _require(tensor.dim() >= 2 and 0 not in tensor.shape)
    return tensor


def _require(fits: bool) -> None:
    if not fits:
        raise ValueError("shapes")


def _alpha(name: str, stored: Tensor | None, alpha_of: Callable[[int], float | None] | None) -> AlphaFor:
    """Rank -> alpha: the file's, else the header's, else the rank itself."""
    if stored is not None:
        if stored.numel() != 1:
            raise LoraFileError(f"The LoRA's module {shortened(name)} has {stored.numel()} alphas; it needs one.")
        alpha = float(stored.item())
        return lambda rank: alpha
    if alpha_of is None:
        return float
    return lambda rank: float(rank) if (found := alpha_of(rank)) is None else found


def _dora(name: str, layer: LoraLayer | LohaLayer | LokrLayer, magnitude: Tensor) -> DoraLayer:
    by_column = magnitude.dim() > 1 and magnitude.shape[0] == 1
    wanted = layer.shape[1 if by_column else 0]
    if magnitude.numel() != wanted:
        raise LoraFileError(
            f"The LoRA's module {shortened(name)} has {magnitude.numel()} magnitudes (dora_scale) of the shape "
            f"{tuple(magnitude.shape)}; it needs {wanted}, one per {'input' if by_column else 'output'}."
        )
    kernel = [1] * (len(layer.shape) - 2)
    return DoraLayer(layer, magnitude.reshape(1, -1, *kernel) if by_column else magnitude.reshape(-1, 1, *kernel))


def _unread(name: str, parts: Mapping[str, Tensor]) -> LoraFileError:
    part = next(iter(parts), "alpha")
    kind = next((kind for start, kind in _UNREAD_KINDS.items() if part.startswith(start)), None)
    what = f"is of the kind {kind}" if kind else f"has the part {shortened(part)!r}"
    return LoraFileError(
        f"The LoRA's module {shortened(name)} {what}, which is not read; LoRA, LoCon, LoHa, LoKr and DoRA are."
    )


def _shapes(parts: Mapping[str, Tensor]) -> str:
    return shortened(", ".join(f"{part} {tuple(tensor.shape)}" for part, tensor in parts.items()), 300)
