"""Merging, resizing and comparing LoRAs: sums of changes, their best approximation of a lower rank, and their distance.

Products of factors are decomposed without being formed: with the QR decompositions ``up = Qu Ru`` and
``downᵀ = Qd Rd``, the singular values of ``up @ down`` are those of the small ``Ru Rdᵀ``.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from lora_service.errors import InputError, LoraFileError, WrongBaseError
from lora_service.lora.base_detection import can_be_for, detect_lora_base
from lora_service.lora.header_facts import TRIGGER_KEY
from lora_service.lora.lycoris import DoraLayer, FullDifference
from lora_service.lora.scale import Scale, block_of, with_outer_blocks
from lora_service.lora.summary import block_of_module, block_order
from lora_service.lora.weights import LoraLayer, LoraWeights, WeightChange

ScaledLora = tuple[LoraWeights, Scale]
_ALL = "all"
_CPU = torch.device("cpu")
_KEPT_STRINGS = (
    "ss_base_model_version", "ss_sd_model_name", "ss_v2", "ss_network_module", "modelspec.sai_model_spec",
    "modelspec.architecture", "modelspec.implementation", "modelspec.resolution", "modelspec.prediction_type",
)  # fmt: skip
"""Header strings about the base; those about a training are not true of a sum."""


@dataclass(frozen=True)
class Approximation:
    """A LoRA of lower rank, and how much of it is missing.

    Attributes:
        error: Frobenius norm of the difference to the exact change, over that of the exact change.
    """

    weights: LoraWeights
    error: float


@dataclass(frozen=True)
class BlockComparison:
    """Two changes of one block; None where a change depends on the base's weights.

    Attributes:
        norms: Frobenius norms of both.
        cosine: of the angle between them: 1 is the same direction, 0 nothing in common; None if either is 0.
        distance: Frobenius norm of their difference.
    """

    norms: tuple[float, float] | None
    cosine: float | None
    distance: float | None


def merge_loras(loras: Sequence[ScaledLora]) -> LoraWeights:
    """Return one LoRA whose change is exactly the sum of the changes at their scales.

    Ranks add up; where one of the changes is no plain LoRA, the sum is a full difference, which may be resized.

    Tokens of one name become different ones: the second LoRA's ``<s1>`` is ``<lora2:s1>``.

    Raises:
        InputError: a scale names a block that its LoRA does not change, or steps, which no file can hold.
        WrongBaseError: the LoRAs are of different bases.
        LoraFileError: a change depends on the base's weights (``unsupported_kind``).
    """
    _check_one_base([weights for weights, _ in loras])
    changes: dict[str, dict[str, list[tuple[WeightChange, float]]]] = {}
    for weights, scale in loras:
        if not scale.is_constant:
            expected = "without steps, as a file acts in all of them"
            raise InputError("lora_scales", f"steps:{scale.start:g}-{scale.end:g}", expected)
        scale.check_blocks(with_outer_blocks(block_of(component, path) for component, path, _ in weights))
        for component, path, change in weights:
            changes.setdefault(component, {}).setdefault(path, []).append((change, scale.of(component, path)))
    layers = {
        component: {path: _sum(f"{component}.{path}", parts) for path, parts in modules.items()}
        for component, modules in changes.items()
    }
    merged = LoraWeights(layers, _merged_tokens([weights for weights, _ in loras]))
    triggers = dict.fromkeys(weights.trigger for weights, _ in loras if weights.trigger)
    strings = {key: text for key, text in loras[0][0].metadata.items() if key in _KEPT_STRINGS}
    if triggers:
        strings[TRIGGER_KEY] = ", ".join(triggers)
    return replace(merged, metadata=_with_rank(strings, merged))


def resize_lora(weights: LoraWeights, *, rank: int | None = None, energy: float | None = None) -> Approximation:
    """Return the nearest LoRA of a lower rank, module by module (the truncated singular value decomposition).

    Args:
        rank: the highest rank of a module.
        energy: share of a module's squared singular values to keep, up to 1; the lowest rank that keeps it is taken.

    Raises:
        LoraFileError: a change depends on the base's weights (``unsupported_kind``).
    """
    squares, missing = 0.0, 0.0
    layers: dict[str, dict[str, WeightChange]] = {}
    for component, path, change in weights:
        if len(change.shape) < 2:
            layers.setdefault(component, {})[path] = change
            continue
        layer, square, lost = _truncated(f"{component}.{path}", change, rank, energy)
        layers.setdefault(component, {})[path] = layer
        squares, missing = squares + square, missing + lost
    resized = replace(weights, layers=layers)
    error = math.sqrt(missing / squares) if squares else 0.0
    return Approximation(replace(resized, metadata=_with_rank(weights.metadata, resized)), error)


def compare_loras(first: LoraWeights, second: LoraWeights) -> dict[str, BlockComparison]:
    """Return the comparison of each block that either changes, and of all under ``all``, in the model's order.

    Raises:
        WrongBaseError: the LoRAs are of different bases.
    """
    _check_one_base([first, second])
    sums: dict[str, list[float] | None] = {}
    modules = dict.fromkeys((component, path) for weights in (first, second) for component, path, _ in weights)
    for component, path in modules:
        products = _products(*(weights.layers.get(component, {}).get(path) for weights in (first, second)))
        for block in (block_of_module(component, path), _ALL):
            so_far = sums.setdefault(block, [0.0, 0.0, 0.0])
            is_known = products is not None and so_far is not None
            sums[block] = [a + b for a, b in zip(so_far, products, strict=True)] if is_known else None  # type: ignore[arg-type]
    total = {_ALL: sums.pop(_ALL, [0.0, 0.0, 0.0])}
    return {block: _comparison((sums | total)[block]) for block in (*sorted(sums, key=block_order), _ALL)}


def _comparison(sums: Sequence[float] | None) -> BlockComparison:
    if sums is None:
        return BlockComparison(None, None, None)
    first, second, inner = sums
    cosine = inner / math.sqrt(first * second) if first and second else None
    distance = math.sqrt(max(first + second - 2 * inner, 0.0))
    return BlockComparison((math.sqrt(first), math.sqrt(second)), cosine, distance)


def _products(first: WeightChange | None, second: WeightChange | None) -> tuple[float, float, float] | None:
    """Return ‖first‖², ‖second‖² and their inner product; None if either depends on the base."""
    if isinstance(first, DoraLayer) or isinstance(second, DoraLayer):
        return None
    squares = [0.0 if change is None else (change.norm() or 0.0) ** 2 for change in (first, second)]
    if first is None or second is None:
        return squares[0], squares[1], 0.0
    if math.prod(first.shape) != math.prod(second.shape) or first.shape[0] != second.shape[0]:
        raise WrongBaseError(f"One LoRA changes a weight of the shape {first.shape}, the other of {second.shape}.")
    if isinstance(first, LoraLayer) and isinstance(second, LoraLayer):
        (up, down), (other_up, other_down) = _factors(first), _factors(second)
        inner = ((up.T @ other_up) * (down @ other_down.T)).sum().item()
    else:
        inner = (_dense(first).flatten() * _dense(second).flatten()).sum().item()
    return squares[0], squares[1], inner


def _sum(module: str, parts: Sequence[tuple[WeightChange, float]]) -> WeightChange:
    """Return the exact sum of changes of one weight."""
    changes = [change for change, _ in parts]
    if any(isinstance(change, DoraLayer) for change in changes):
        raise LoraFileError(
            f"The module {module} is {changes[0].kind}, whose change depends on the base's weights; "
            "a sum of such changes is no LoRA.",
            code="unsupported_kind",
        )
    if len({math.prod(change.shape) for change in changes} | {0}) > 2:
        raise WrongBaseError(f"The LoRAs change the module {module} in different shapes; they are not of one base.")
    shape = max((change.shape for change in changes), key=len)
    plain = [(change, scale) for change, scale in parts if isinstance(change, LoraLayer)]
    if len(plain) == len(parts):
        factors = [(*_factors(layer), scale) for layer, scale in plain]
        up = torch.cat([up * scale for up, _, scale in factors], dim=1)
        return _layer(up, torch.cat([down for _, down, _ in factors]), shape)
    total = torch.zeros(shape)
    for change, scale in parts:
        total += scale * _dense(change).reshape(shape)
    return FullDifference(total)


def _truncated(
    module: str, change: WeightChange, rank: int | None, energy: float | None
) -> tuple[LoraLayer, float, float]:
    """Return the nearest layer of a lower rank, the squared norm of the change, and that of what is missing."""
    if isinstance(change, DoraLayer):
        raise LoraFileError(
            f"The module {module} is {change.kind}, whose change depends on the base's weights; "
            "it cannot be resized without it.",
            code="unsupported_kind",
        )
    if isinstance(change, LoraLayer):
        up, down = _factors(change)
        (q_up, r_up), (q_down, r_down) = torch.linalg.qr(up.double()), torch.linalg.qr(down.double().T)
        u, values, v = torch.linalg.svd(r_up @ r_down.T, full_matrices=False)
        u, v = q_up @ u, v @ q_down.T
    else:
        u, values, v = torch.linalg.svd(_dense(change).flatten(1), full_matrices=False)
    squares = values.double().square()
    count = len(values) if rank is None else min(rank, len(values))
    if energy is not None:
        reached = squares.cumsum(0) >= energy * squares.sum() * (1 - 1e-12)
        count = min(count, int(reached.int().argmax()) + 1)
    root = values[:count].sqrt()
    layer = _layer((u[:, :count] * root).float(), (root[:, None] * v[:count]).float(), change.shape)
    return layer, squares.sum().item(), squares[count:].sum().item()


def _layer(up: Tensor, down: Tensor, shape: tuple[int, ...]) -> LoraLayer:
    """Return a layer of ``up (out, rank)`` and ``down (rank, in·kh·kw)`` for a weight of a shape, with alpha = rank."""
    rank = down.shape[0]
    kernel = [1] * (len(shape) - 2)
    return LoraLayer(down.reshape(rank, *shape[1:]), up.reshape(-1, rank, *kernel), float(rank))


def _factors(layer: LoraLayer) -> tuple[Tensor, Tensor]:
    up, down = layer.factors(_CPU)
    return up * (layer.alpha / layer.rank), down


def _dense(change: WeightChange) -> Tensor:
    return change.delta(torch.zeros(change.shape))


def _check_one_base(loras: Sequence[LoraWeights]) -> None:
    bases = dict.fromkeys(base for weights in loras if (base := detect_lora_base(weights)) is not None)
    if not all(can_be_for(weights, base) for base in list(bases)[:1] for weights in loras):
        raise WrongBaseError(f"The LoRAs are of different bases: {', '.join(bases)}.")


def _merged_tokens(loras: Sequence[LoraWeights]) -> dict[str, Mapping[str, Tensor]]:
    tokens: dict[str, Mapping[str, Tensor]] = {}
    for number, weights in enumerate(loras, start=1):
        for name, rows in weights.embeddings.items():
            tokens[f"<lora{number}:{name.strip('<>')}>" if name in tokens else name] = rows
    return tokens


def _with_rank(strings: Mapping[str, str], weights: LoraWeights) -> dict[str, str]:
    """Return header strings with kohya's rank and alpha as they are now, where kohya's strings are."""
    is_kohya = any(key.startswith("ss_") for key in strings)
    changed = {"ss_network_dim": str(weights.rank), "ss_network_alpha": str(weights.alpha)} if is_kohya else {}
    return {**strings, **changed}


def check_target(rank: int | None, energy: float | None) -> None:
    """Check that one of both is there, and can be used.

    Raises:
        InputError: neither or both, or a rank below 1, or an energy that is no share.
    """
    if (rank is None) == (energy is None):
        raise InputError("--rank", rank, "a rank, or --energy a share of the energy, one of both")
    if rank is not None and rank < 1:
        raise InputError("--rank", rank, "1 or more")
    if energy is not None and not 0 < energy <= 1:
        raise InputError("--energy", energy, "a share above 0, up to 1, like 0.9")
