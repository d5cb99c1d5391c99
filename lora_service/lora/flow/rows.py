"""Rows of changes: one change of a fused projection <-> changes of its parts, exactly.

A low-rank product keeps its second factor and its alpha when rows are taken; so does LoHa. The rows of a Kronecker
product are none, so :class:`RowsOf` keeps the whole and takes them when a weight is patched.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import torch
from torch import Tensor

from lora_service.errors import LoraFileError
from lora_service.lora.lycoris import DoraLayer, Factor, FullDifference, LohaLayer, LokrLayer
from lora_service.lora.safetensors_header import shortened
from lora_service.lora.weights import LoraLayer, WeightChange

Rows = tuple[tuple[int, int], ...]
"""Ranges of rows, each with its end behind it, in the order that they are taken in."""


@dataclass(frozen=True, eq=False)
class RowsOf:
    """Rows of a change by a Kronecker product, which is multiplied out only as far as they need it."""

    inner: LokrLayer
    rows: Rows

    @property
    def kind(self) -> str:
        return self.inner.kind

    @property
    def rank(self) -> int:
        return self.inner.rank

    @property
    def alpha(self) -> float:
        return self.inner.alpha

    @property
    def shape(self) -> tuple[int, ...]:
        return (sum(end - start for start, end in self.rows), *self.inner.shape[1:])

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors of the whole: its parts share them."""
        return self.inner.tensors

    def delta(self, weight: Tensor) -> Tensor:
        second = self.inner.second.materialize(weight.device)
        first = self.inner.first.materialize(weight.device)
        height = second.shape[0]
        pieces = []
        for start, end in self.rows:
            used = first[start // height : -(-end // height)]
            product = torch.kron(used.reshape(*used.shape, *[1] * (second.dim() - 2)), second.contiguous())
            skipped = start - start // height * height
            pieces.append(product[skipped : skipped + end - start])
        return torch.cat(pieces).mul_(self.inner.scale).reshape(weight.shape)

    def norm(self) -> float:
        return self.delta(torch.zeros(self.shape)).norm().item()


def parts(module: str, change: WeightChange, shares: Sequence[int]) -> list[WeightChange | None]:
    """Return the changes of the modules that share the rows of a fused one; None for one that is not changed.

    A product whose first factor is block-diagonal, as trainers write split projections, gets back its blocks.

    Args:
        module: the fused module's name, for messages.
        shares: the parts' rows, as parts of the whole.

    Raises:
        LoraFileError: the rows cannot be shared so (``shape_mismatch``), or magnitudes are those of whole columns
            (``unsupported_kind``).
    """
    unit, rest = divmod(change.shape[0], sum(shares))
    if rest:
        raise LoraFileError(
            f"The LoRA's module {shortened(module)} has {change.shape[0]} outputs, which are not those of "
            f"{len(shares)} projections ({':'.join(map(str, shares))}).",
            code="shape_mismatch",
        )
    ends = [0]
    for share in shares:
        ends.append(ends[-1] + share * unit)
    ranges = list(pairwise(ends))
    if isinstance(change, LoraLayer) and (blocks := _diagonal_blocks(change, ranges)):
        return blocks
    return [take_rows(module, change, (each,)) for each in ranges]


def take_rows(module: str, change: WeightChange, rows: Rows) -> WeightChange:
    """Return the change of some rows of a weight.

    Raises:
        LoraFileError: magnitudes are those of whole columns (``unsupported_kind``).
    """
    if isinstance(change, LoraLayer):
        return replace(change, up=_taken(change.up, rows))
    if isinstance(change, LohaLayer):
        return replace(change, first=_factor_rows(change.first, rows), second=_factor_rows(change.second, rows))
    if isinstance(change, FullDifference):
        return FullDifference(_taken(change.values, rows))
    if isinstance(change, LokrLayer):
        return RowsOf(change, rows)
    if isinstance(change, DoraLayer) and change.by_row:
        return DoraLayer(take_rows(module, change.inner, rows), _taken(change.magnitude, rows))  # type: ignore[arg-type]
    raise LoraFileError(
        f"The LoRA's fused module {shortened(module)} is {change.kind} with magnitudes of whole inputs, which cannot "
        "be split into those of its projections; those of outputs can.",
        code="unsupported_kind",
    )


def joined(changes: Sequence[WeightChange | None], shares: Sequence[int]) -> WeightChange | None:
    """Return the change of a fused module; None where no change of one kind is exactly the parts' together."""
    given = [change for change in changes if change is not None]
    first = given[0]
    if isinstance(first, RowsOf):
        return _whole(given)
    if len(given) == len(changes):
        if all(isinstance(change, DoraLayer) and change.by_row for change in given):
            inner = joined([change.inner for change in given], shares)  # type: ignore[attr-defined]
            magnitude = torch.cat([change.magnitude for change in given])  # type: ignore[attr-defined]
            return inner and DoraLayer(inner, magnitude)  # type: ignore[arg-type]
        if all(isinstance(change, FullDifference) for change in given):
            return FullDifference(torch.cat([change.values for change in given]))  # type: ignore[attr-defined]
        if all(isinstance(change, LohaLayer) for change in given):
            return _joined_loha(given)  # type: ignore[arg-type]
    if all(isinstance(change, LoraLayer) for change in given):
        return _joined_lora(changes, shares)  # type: ignore[arg-type]
    return None


def _taken(tensor: Tensor, rows: Rows, dim: int = 0) -> Tensor:
    pieces = [tensor.narrow(dim, start, end - start) for start, end in rows]
    return pieces[0] if len(pieces) == 1 else torch.cat(pieces, dim)


def _factor_rows(factor: Factor, rows: Rows) -> Factor:
    if factor.a is None:
        return replace(factor, b=_taken(factor.b, rows))
    return replace(factor, a=_taken(factor.a, rows, dim=0 if factor.core is None else 1))


def _diagonal_blocks(layer: LoraLayer, ranges: Sequence[tuple[int, int]]) -> list[WeightChange | None] | None:
    """Return the layers whose fusion is block-diagonal; None if a column of ``up`` reaches several parts."""
    columns = torch.stack([layer.up[start:end].flatten(1).ne(0).any(0) for start, end in ranges])
    if layer.mid is not None or not columns.any() or int(columns.sum(0).max()) > 1:
        return None
    blocks: list[WeightChange | None] = []
    for (start, end), own in zip(ranges, columns, strict=True):
        rank = int(own.sum())
        alpha = layer.alpha * rank / layer.rank
        blocks.append(LoraLayer(layer.down[own], layer.up[start:end, own], alpha) if rank else None)
    return blocks


def _joined_lora(layers: Sequence[LoraLayer | None], shares: Sequence[int]) -> LoraLayer | None:
    """Return one layer: with the second factor that all share, else the block-diagonal one of all ranks."""
    given = [layer for layer in layers if layer is not None]
    scales = {layer.alpha / layer.rank for layer in given}
    if any(layer.mid is not None for layer in given):
        return None
    first = given[0]
    if len(given) == len(layers) and len(scales) == 1 and all(_same(layer.down, first.down) for layer in given):
        return replace(first, up=torch.cat([layer.up for layer in given]))
    unit = next(layer.up.shape[0] // share for layer, share in zip(layers, shares, strict=True) if layer is not None)
    ups, alphas = [layer.up for layer in given], sum(layer.alpha for layer in given)
    rank = sum(layer.rank for layer in given)
    if len(scales) > 1:
        ups, alphas = [layer.scaled_pair()[1] for layer in given], float(rank)
    up = torch.zeros(sum(shares) * unit, rank, dtype=torch.result_type(ups[0], ups[-1]))
    row = column = 0
    remaining = iter(ups)
    for layer, share in zip(layers, shares, strict=True):
        if layer is not None:
            up[row : row + share * unit, column : column + layer.rank] = next(remaining).flatten(1)
            column += layer.rank
        row += share * unit
    return LoraLayer(torch.cat([layer.down for layer in given]), up, float(alphas))


def _joined_loha(layers: Sequence[LohaLayer]) -> LohaLayer | None:
    first = _joined_factors([layer.first for layer in layers])
    second = _joined_factors([layer.second for layer in layers])
    if first is None or second is None or len({layer.alpha for layer in layers}) > 1:
        return None
    return LohaLayer(first, second, layers[0].alpha)


def _joined_factors(factors: Sequence[Factor]) -> Factor | None:
    first = factors[0]
    if all(factor.a is None for factor in factors):
        return Factor(torch.cat([factor.b for factor in factors]))
    dim = 0 if first.core is None else 1
    for factor in factors:
        if factor.a is None or not _same(factor.b, first.b) or not _same(factor.core, first.core):
            return None
    return replace(first, a=torch.cat([factor.a for factor in factors if factor.a is not None], dim))


def _whole(changes: Sequence[WeightChange]) -> LokrLayer | None:
    """Return the product whose rows these are, in order and complete."""
    first = changes[0]
    end = 0
    for change in changes:
        if not isinstance(change, RowsOf) or not isinstance(first, RowsOf) or change.inner is not first.inner:
            return None
        for start, stop in change.rows:
            if start != end:
                return None
            end = stop
    return first.inner if isinstance(first, RowsOf) and end == first.inner.shape[0] else None


def _same(first: Tensor | None, second: Tensor | None) -> bool:
    return first is second or (first is not None and second is not None and torch.equal(first, second))
