"""The algorithms of LyCORIS (https://github.com/KohakuBlueleaf/LyCORIS) that are read: LoHa, LoKr, DoRA over each, and
full differences of weights, norms and biases.

Factors stay as small as the file has them; they are multiplied out only when a weight is patched.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from lora_service.lora.weights import LoraLayer, product_norm


@dataclass(frozen=True, eq=False)
class Factor:
    """A matrix or convolution kernel as LyCORIS stores it: full, as a low-rank product, or around a Tucker core.

    Shapes: ``b`` alone ``(rows, columns[, kh, kw])``; the product of ``a (rows, rank)`` and
    ``b (rank, columns[, kh, kw])``; with ``core (rank, rank, kh, kw)``, ``a (rank, rows)`` and ``b (rank, columns)``.
    """

    b: Tensor
    a: Tensor | None = None
    core: Tensor | None = None

    @property
    def rank(self) -> int:
        """Inner dimension; 0 where the factor is stored in full."""
        return 0 if self.a is None else self.b.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the product."""
        if self.a is None:
            return tuple(self.b.shape)
        if self.core is None:
            return (self.a.shape[0], *self.b.shape[1:])
        return (self.a.shape[1], self.b.shape[1], *self.core.shape[2:])

    def materialize(self, device: torch.device) -> Tensor:
        """Return the product in fp32 on a device."""
        b = self.b.to(device).float()
        if self.a is None:
            return b
        a = self.a.to(device).float()
        if self.core is None:
            return (a @ b.flatten(1)).reshape(self.shape)
        return torch.einsum("ijkl,jr,ip->prkl", self.core.to(device).float(), b, a)

    def norm(self) -> float:
        """Return the Frobenius norm of the product."""
        if self.a is None or self.core is not None:
            return self.materialize(self.b.device).norm().item()
        return product_norm(self.a.float(), self.b.float().flatten(1))

    def tensors(self, name: str, core_name: str) -> dict[str, Tensor]:
        """Return its tensors by their key suffixes in the kohya format."""
        if self.a is None:
            return {name: self.b}
        pair = {f"{name}_a": self.a, f"{name}_b": self.b}
        return pair if self.core is None else {**pair, core_name: self.core}


@dataclass(frozen=True, eq=False)
class LohaLayer:
    """The change ``alpha / rank · first ∘ second``, both products of low rank (https://arxiv.org/abs/2108.06098)."""

    first: Factor
    second: Factor
    alpha: float
    kind = "LoHa"

    @property
    def rank(self) -> int:
        return self.first.rank

    @property
    def shape(self) -> tuple[int, ...]:
        return self.first.shape

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return {**self.first.tensors("hada_w1", "hada_t1"), **self.second.tensors("hada_w2", "hada_t2")}

    def delta(self, weight: Tensor) -> Tensor:
        product = self.first.materialize(weight.device).mul_(self.second.materialize(weight.device))
        return product.mul_(self.alpha / self.rank).reshape(weight.shape)

    def norm(self) -> float:
        device = self.first.b.device
        product = self.first.materialize(device).mul_(self.second.materialize(device))
        return abs(self.alpha) / self.rank * product.norm().item()


@dataclass(frozen=True, eq=False)
class LokrLayer:
    """The change ``alpha / rank · kron(first, second)`` (https://arxiv.org/abs/2212.10650).

    Shapes: ``first (a, b)``, ``second (c, d[, kh, kw])`` for a weight ``(a·c, b·d[, kh, kw])``. Where both are
    stored in full there is no rank, and the change is the Kronecker product itself.
    """

    first: Factor
    second: Factor
    alpha: float
    kind = "LoKr"

    @property
    def rank(self) -> int:
        return self.second.rank or self.first.rank

    @property
    def scale(self) -> float:
        """``alpha / rank``; 1 where there is no rank."""
        return self.alpha / self.rank if self.rank else 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        (a, b), (c, d, *kernel) = self.first.shape, self.second.shape
        return (a * c, b * d, *kernel)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return {**self.first.tensors("lokr_w1", "lokr_t1"), **self.second.tensors("lokr_w2", "lokr_t2")}

    def delta(self, weight: Tensor) -> Tensor:
        first, second = self.first.materialize(weight.device), self.second.materialize(weight.device)
        first = first.reshape(*first.shape, *[1] * (second.dim() - 2))
        return torch.kron(first, second.contiguous()).mul_(self.scale).reshape(weight.shape)

    def norm(self) -> float:
        return abs(self.scale) * self.first.norm() * self.second.norm()


@dataclass(frozen=True, eq=False)
class FullDifference:
    """The difference itself, of a weight, a norm's scale, or a bias; it has neither rank nor alpha."""

    values: Tensor
    kind = "full difference"
    rank = 0
    alpha = 0.0

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.values.shape)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return {"diff": self.values}

    def delta(self, weight: Tensor) -> Tensor:
        return self.values.to(weight.device).float().reshape(weight.shape)

    def norm(self) -> float:
        return self.values.float().norm().item()


@dataclass(frozen=True, eq=False)
class DoraLayer:
    """DoRA (https://arxiv.org/abs/2402.09353): ``W' = magnitude · (W + inner) / ‖W + inner‖``.

    The norm is taken over each output's row, or, as LyCORIS has it too, over each input's column. ``magnitude`` has
    one entry per row ``(out, 1…)`` or per column ``(1, in, 1…)``.
    """

    inner: LoraLayer | LohaLayer | LokrLayer
    magnitude: Tensor

    @property
    def by_row(self) -> bool:
        """True if magnitudes are those of rows, one per output; else of columns, one per input."""
        return self.magnitude.shape[0] == self.shape[0] == self.magnitude.numel()

    def fits(self, weight: tuple[int, ...]) -> bool:
        """Return True if there is a magnitude for each row, or column, of a weight of this shape."""
        return self.magnitude.numel() == weight[0 if self.by_row else 1]

    @property
    def kind(self) -> str:
        return f"DoRA over {self.inner.kind}"

    @property
    def rank(self) -> int:
        return self.inner.rank

    @property
    def alpha(self) -> float:
        return self.inner.alpha

    @property
    def shape(self) -> tuple[int, ...]:
        return self.inner.shape

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return {**self.inner.tensors, "dora_scale": self.magnitude}

    def delta(self, weight: Tensor) -> Tensor:
        original = weight.float()
        changed = original + self.inner.delta(weight)
        reduced = [dim for dim in range(weight.dim()) if dim != (0 if self.by_row else 1)]
        norms = torch.linalg.vector_norm(changed, dim=reduced, keepdim=True)
        magnitude = self.magnitude.to(weight.device).float().reshape(norms.shape)
        return changed.mul_(magnitude / norms.clamp_min(torch.finfo(torch.float32).tiny)).sub_(original)

    def norm(self) -> None:
        return None
