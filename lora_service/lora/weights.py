"""The one in-memory form of a LoRA: changes of weights, token embeddings, and the header's strings."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Protocol

import torch
from torch import Tensor

COMPONENTS = ("unet", "text_encoder", "text_encoder_2")


class WeightChange(Protocol):
    """A change of one weight, of whatever kind; the kinds are the classes below."""

    @property
    def kind(self) -> str:
        """The name people know the kind by."""

    @property
    def rank(self) -> int:
        """Inner dimension of the factors; 0 where there is none."""

    @property
    def alpha(self) -> float:
        """The change is ``alpha / rank`` times the product of its factors."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the weight it changes: ``(out, in)`` or ``(out, in, kh, kw)``; ``(out, in·kh·kw)`` if unknown."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """The tensors it is made of, by their names in the kohya layout (without ``alpha``)."""

    def delta(self, weight: Tensor) -> Tensor:
        """The change at scale 1, in fp32, of the shape and on the device of ``weight``, which is only read."""

    def norm(self) -> float | None:
        """Frobenius norm of the change at scale 1; None if it depends on the weight."""


@dataclass(frozen=True, eq=False)
class LoraLayer:
    """The change ``alpha / rank · up @ down`` (https://arxiv.org/abs/2106.09685), convolutions as in LoCon.

    Shapes: ``down (rank, in[, kh, kw])``, ``up (out, rank[, 1, 1])``.
    """

    down: Tensor
    up: Tensor
    alpha: float
    kind = "LoRA"

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.up.shape[0], *self.down.shape[1:])

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return {"lora_down.weight": self.down, "lora_up.weight": self.up}

    def factors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """``up (out, rank)`` and ``down (rank, in·kh·kw)`` in fp32, without ``alpha / rank``."""
        return self.up.to(device).float().flatten(1), self.down.to(device).float().flatten(1)

    def delta(self, weight: Tensor) -> Tensor:
        up, down = self.factors(weight.device)
        return (up @ down).mul_(self.alpha / self.rank).reshape(weight.shape)

    def norm(self) -> float:
        up, down = self.factors(self.up.device)
        return abs(self.alpha) / self.rank * _product_norm(up, down)


@dataclass(frozen=True, eq=False)
class LohaLayer:
    """The change ``alpha / rank · (a1 @ b1) ∘ (a2 @ b2)`` (FedPara, https://arxiv.org/abs/2108.06098).

    Shapes: ``a1, a2 (out, rank)``, ``b1, b2 (rank, in)`` or ``(rank, in, kh, kw)``.
    """

    a1: Tensor
    b1: Tensor
    a2: Tensor
    b2: Tensor
    alpha: float
    kind = "LoHa"

    @property
    def rank(self) -> int:
        return self.b1.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.a1.shape[0], *self.b1.shape[1:])

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        return {
            "hada_w1_a": self.a1,
            "hada_w1_b": self.b1.flatten(1),
            "hada_w2_a": self.a2,
            "hada_w2_b": self.b2.flatten(1),
        }

    def delta(self, weight: Tensor) -> Tensor:
        a1, b1, a2, b2 = (t.to(weight.device).float().flatten(1) for t in (self.a1, self.b1, self.a2, self.b2))
        return (a1 @ b1).mul_(a2 @ b2).mul_(self.alpha / self.rank).reshape(weight.shape)

    def norm(self) -> float:
        a1, b1, a2, b2 = (t.float().flatten(1) for t in (self.a1, self.b1, self.a2, self.b2))
        return abs(self.alpha) / self.rank * (a1 @ b1).mul_(a2 @ b2).norm().item()


@dataclass(frozen=True, eq=False)
class LokrLayer:
    """The change ``scale · kron(w1, w2)`` (https://arxiv.org/abs/2212.10650), its factors multiplied out.

    Shapes: ``w1 (a, b)``, ``w2 (c, d[, kh, kw])`` for a weight ``(a·c, b·d[, kh, kw])``.
    ``rank`` and ``alpha`` tell what ``scale = alpha / rank`` was made from; both 0-rank and full factors have scale 1.
    """

    w1: Tensor
    w2: Tensor
    alpha: float
    rank: int
    kind = "LoKr"

    @property
    def scale(self) -> float:
        return self.alpha / self.rank if self.rank else 1.0

    @property
    def shape(self) -> tuple[int, ...]:
        return (self.w1.shape[0] * self.w2.shape[0], self.w1.shape[1] * self.w2.shape[1], *self.w2.shape[2:])

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        # Full factors carry no alpha in any reader, so the scale goes into the smaller one.
        return {"lokr_w1": self.w1.float() * self.scale, "lokr_w2": self.w2}

    def delta(self, weight: Tensor) -> Tensor:
        w1, w2 = self.w1.to(weight.device).float(), self.w2.to(weight.device).float()
        w1 = w1.reshape(*w1.shape, *[1] * (w2.dim() - 2))
        return torch.kron(w1, w2).mul_(self.scale).reshape(weight.shape)

    def norm(self) -> float:
        return abs(self.scale) * self.w1.float().norm().item() * self.w2.float().norm().item()


@dataclass(frozen=True, eq=False)
class DoraLayer:
    """DoRA (https://arxiv.org/abs/2402.09353): the changed weight is brought to learned lengths.

    ``W' = magnitude · (W + inner) / ‖W + inner‖``, the norm over each output's row, or, as some trainers have it,
    over each input's column; ``magnitude`` has one entry per row ``(out, 1…)`` or per column ``(1, in, 1…)``.
    """

    inner: LoraLayer | LohaLayer | LokrLayer
    magnitude: Tensor

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
        by_row = self.magnitude.shape[0] == weight.shape[0]
        dims = [dim for dim in range(weight.dim()) if dim != (0 if by_row else 1)]
        lengths = changed.norm(dim=dims, keepdim=True).clamp_min(torch.finfo(torch.float32).tiny)
        magnitude = self.magnitude.to(weight.device).float().reshape(lengths.shape)
        return changed.mul_(magnitude / lengths).sub_(original)

    def norm(self) -> None:
        return None


@dataclass(frozen=True, eq=False)
class LoraWeights:
    """What a LoRA file says, whatever its layout.

    Attributes:
        layers: component (``unet``, ``text_encoder``, ``text_encoder_2``) -> module path of the diffusers or
            transformers model, without a leading ``text_model.`` -> change of its weight.
        embeddings: token name (``<s1>``) -> component -> row ``(width,)`` of the embedding table.
        metadata: the header's strings.
        layout: name of the file layout it was read from; "" if it was made in memory.
    """

    layers: Mapping[str, Mapping[str, WeightChange]]
    embeddings: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    layout: str = ""

    def __iter__(self) -> Iterator[tuple[str, str, WeightChange]]:
        """Every change as (component, module path, change)."""
        for component, modules in self.layers.items():
            for path, layer in modules.items():
                yield component, path, layer

    @cached_property
    def rank(self) -> int:
        """The commonest rank of its layers; 0 without layers."""
        return self._commonest()[0]

    @cached_property
    def alpha(self) -> float:
        """The commonest alpha of the layers of the commonest rank."""
        return self._commonest()[1]

    @property
    def trigger(self) -> str | None:
        """The plain word that calls the subject in any tool, if the file names one."""
        return self.metadata.get("modelspec.trigger_phrase", "").strip() or None

    @property
    def tokens(self) -> tuple[str, ...]:
        """Names of its tokens, in the file's order."""
        return tuple(self.embeddings)

    def with_metadata(self, metadata: Mapping[str, str]) -> LoraWeights:
        """The same weights under other header strings."""
        return replace(self, metadata=metadata)

    def _commonest(self) -> tuple[int, float]:
        counts = Counter((layer.rank, layer.alpha) for _, _, layer in self)
        return counts.most_common(1)[0][0] if counts else (0, 0.0)


def _product_norm(up: Tensor, down: Tensor) -> float:
    """‖up @ down‖ from two rank × rank Gram matrices; the product itself is never formed."""
    square = ((up.T @ up) * (down @ down.T).T).sum().item()
    return math.sqrt(max(square, 0.0))
