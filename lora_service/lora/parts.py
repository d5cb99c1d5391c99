"""Named tensors of one module -> its change: what the layouts share, once a key is split into module and part."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor

from lora_service.errors import LoraFileError
from lora_service.lora.container import shortened
from lora_service.lora.weights import DoraLayer, LohaLayer, LokrLayer, LoraLayer, WeightChange

MAX_RANK = 4096
"""Above every dimension of the models served; more could only be a mistake or an attack."""
MAX_FACTOR_ITEMS = 64 * 1024**2
"""Items of a LoKr factor multiplied out; the largest weight served has 15 million."""

Parts = dict[str, Tensor]

PART_ALIASES = {
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
    "diff": "full difference", "diff_b": "bias difference", "set_weight": "weight replacement",
    "w_norm": "norm difference", "b_norm": "norm difference", "norm": "norm difference",
    "lora_bias": "LoRA with biases", "lora_up.bias": "LoRA with biases", "lora_down.bias": "LoRA with biases",
    "lora_B.bias": "LoRA with biases", "reshape_weight": "padded LoRA", "vera": "VeRA",
}  # fmt: skip


@dataclass
class PartsByModule:
    """Collects a file's tensors by component and module path, and tells apart what it cannot place."""

    modules: dict[str, dict[str, Parts]] = field(default_factory=lambda: defaultdict(lambda: defaultdict(dict)))

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
    except (KeyError, ValueError, RuntimeError) as error:
        missing = f"has no {error.args[0]!r}" if isinstance(error, KeyError) else "has parts that do not fit each other"
        raise LoraFileError(f"The LoRA's module {shortened(name)} {missing} ({_shapes(parts)}).") from error
    if rest:
        raise _unread(name, rest)
    if not math.isfinite(layer.alpha):
        raise LoraFileError(
            f"The LoRA's module {shortened(name)} has the alpha {layer.alpha}; it must be a finite number."
        )
    if not 0 <= layer.rank <= MAX_RANK:
        raise LoraFileError(
            f"The LoRA's module {shortened(name)} has the rank {layer.rank}; at most {MAX_RANK} is read."
        )
    return layer if magnitude is None else _dora(name, layer, magnitude)


AlphaFor = Callable[[int], float]


def _lora(parts: Parts, alpha_for: AlphaFor) -> LoraLayer:
    down, up = parts.pop("lora_down.weight"), parts.pop("lora_up.weight")
    rank = _at_least_two_dimensions(down).shape[0]
    if "lora_mid.weight" in parts:
        mid = parts.pop("lora_mid.weight")  # (rank, rank, kh, kw), between 1 × 1 down and up: folded into down
        down = torch.einsum("rskl,si->rikl", mid.float(), down.float().reshape(rank, -1)).to(down.dtype)
    if _at_least_two_dimensions(up).shape[1] != rank or up.shape[2:].numel() != 1 or 0 in (*up.shape, *down.shape):
        raise ValueError("shapes")
    return LoraLayer(down, up, alpha_for(rank))


def _loha(parts: Parts, alpha_for: AlphaFor) -> LohaLayer:
    a1, b1, a2, b2 = (_matrix(parts.pop(f"hada_w{which}")) for which in ("1_a", "1_b", "2_a", "2_b"))
    if "hada_t1" in parts or "hada_t2" in parts:
        # Tucker cores (rank, rank, kh, kw): a is (rank, out) here, and the core is folded into b.
        b1, b2 = (_fold_core(parts.pop(core), b) for core, b in (("hada_t1", b1), ("hada_t2", b2)))
        a1, a2 = a1.T.contiguous(), a2.T.contiguous()
    if a1.shape[1] != b1.shape[0] or a2.shape[1] != b2.shape[0] or a1.shape[0] != a2.shape[0] or b1.shape != b2.shape:
        raise ValueError("shapes")
    return LohaLayer(a1, b1, a2, b2, alpha_for(b1.shape[0]))


def _lokr(parts: Parts, alpha_for: AlphaFor) -> LokrLayer:
    first, first_rank = _kronecker_factor(parts, "lokr_w1", None)
    second, second_rank = _kronecker_factor(parts, "lokr_w2", parts.pop("lokr_t2", None))
    if _at_least_two_dimensions(first).dim() != 2 or 0 in (*first.shape, *_at_least_two_dimensions(second).shape):
        raise ValueError("shapes")
    rank = second_rank or first_rank
    return LokrLayer(first, second, alpha_for(rank) if rank else 0.0, rank)


_BUILDERS: Mapping[str, Callable[[Parts, AlphaFor], LoraLayer | LohaLayer | LokrLayer]] = {
    "lora_down.weight": _lora,
    "lora_up.weight": _lora,
    "hada_": _loha,
    "lokr_": _lokr,
}


def _kronecker_factor(parts: Parts, name: str, core: Tensor | None) -> tuple[Tensor, int]:
    """A factor of a LoKr, multiplied out, and the rank it was split at; 0 if it is stored whole."""
    if name in parts:
        return parts.pop(name), 0
    a, b = _matrix(parts.pop(f"{name}_a")), _at_least_two_dimensions(parts.pop(f"{name}_b"))
    if a.shape[0 if core is not None else 1] != b.shape[0] or a.numel() // b.shape[0] * b[0].numel() > MAX_FACTOR_ITEMS:
        raise ValueError("shapes")
    if core is None:
        return (a.float() @ b.float().flatten(1)).reshape(-1, *b.shape[1:]), b.shape[0]
    return torch.einsum("ro,rikl->oikl", a.float(), _fold_core(core, b).float()), b.shape[0]


def _fold_core(core: Tensor, b: Tensor) -> Tensor:
    """A Tucker core ``(rank, rank, kh, kw)`` and ``b (rank, in)`` -> ``(rank, in, kh, kw)``."""
    return torch.einsum("rskl,si->rikl", core.float(), b.float()).to(b.dtype)


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
    if magnitude.numel() not in layer.shape[:2]:
        raise LoraFileError(
            f"The LoRA's module {shortened(name)} has {magnitude.numel()} magnitudes (dora_scale), "
            f"which fits neither its {layer.shape[0]} outputs nor its {layer.shape[1]} inputs."
        )
    by_column = magnitude.dim() > 1 and magnitude.shape[0] == 1
    column_shape = (1, -1, *[1] * (len(layer.shape) - 2))
    row_shape = (-1, *[1] * (len(layer.shape) - 1))
    return DoraLayer(layer, magnitude.reshape(column_shape if by_column else row_shape))


def _unread(name: str, parts: Mapping[str, Tensor]) -> LoraFileError:
    part = next(iter(parts), "alpha")
    kind = next((kind for start, kind in _UNREAD_KINDS.items() if part.startswith(start)), None)
    what = f"is of the kind {kind}" if kind else f"has the part {shortened(part)!r}"
    return LoraFileError(
        f"The LoRA's module {shortened(name)} {what}, which is not read; LoRA, LoCon, LoHa, LoKr and DoRA are."
    )


def _shapes(parts: Mapping[str, Tensor]) -> str:
    return shortened(", ".join(f"{part} {tuple(tensor.shape)}" for part, tensor in parts.items()), 300)


def _at_least_two_dimensions(tensor: Tensor) -> Tensor:
    if tensor.dim() < 2:
        raise ValueError("a factor needs two dimensions")
    return tensor


def _matrix(tensor: Tensor) -> Tensor:
    if tensor.dim() != 2 or 0 in tensor.shape:
        raise ValueError("a factor needs two dimensions")
    return tensor
