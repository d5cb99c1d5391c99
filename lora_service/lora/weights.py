"""The one in-memory form of a LoRA: changes of weights, token embeddings, and the header's strings."""

from __future__ import annotations

import json
import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import count
from typing import Protocol

import torch
from torch import Tensor

from lora_service.lora.header_facts import TRIGGER_KEY

BACKBONES = ("unet", "transformer")
"""The components that denoise, of which a base has one."""
COMPONENTS = (*BACKBONES, "text_encoder", "text_encoder_2")
_OBJECT_BYTES = 2048
"""Objects of one tensor and its share of a layer, beside its values; 1.8 kB were measured."""
BIAS = ".bias"
"""The end of a path that names a module's bias instead of its weight."""


class WeightChange(Protocol):
    """The change of one weight by any algorithm: :class:`LoraLayer`, or one of :mod:`lora_service.lora.lycoris`."""

    @property
    def kind(self) -> str:
        """The algorithm's name: LoRA, LoHa, LoKr, DoRA over …"""

    @property
    def rank(self) -> int:
        """Inner dimension of the low-rank factors; 0 where there are none."""

    @property
    def alpha(self) -> float:
        """The numerator of ``alpha / rank``, by which the product of the factors is multiplied."""

    @property
    def shape(self) -> tuple[int, ...]:
        """The changed weight's shape: ``(out, in)``, ``(out, in, kh, kw)``, or ``(out, in·kh·kw)`` if unknown."""

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        """Its tensors by their key suffixes in the kohya format, without ``alpha``."""

    def delta(self, weight: Tensor) -> Tensor:
        """Return the change at scale 1, in fp32, of the shape and on the device of ``weight``, which is only read."""

    def norm(self) -> float | None:
        """Return the Frobenius norm of the change at scale 1; None if it depends on the weight."""


@dataclass(frozen=True, eq=False)
class LoraLayer:
    """The change ``alpha / rank · up @ down`` (https://arxiv.org/abs/2106.09685), convolutions as in LoCon.

    Shapes: ``down (rank, in[, kh, kw])``, ``up (out, rank[, 1, 1])``. A LoCon with a Tucker core has the kernel in
    ``mid (rank, rank, kh, kw)`` between a down and an up of 1 × 1.
    """

    down: Tensor
    up: Tensor
    alpha: float
    mid: Tensor | None = None
    kind = "LoRA"

    @property
    def rank(self) -> int:
        return self.down.shape[0]

    @property
    def shape(self) -> tuple[int, ...]:
        kernel = self.down.shape[2:] if self.mid is None else self.mid.shape[2:]
        return (self.up.shape[0], self.down.shape[1], *kernel)

    @property
    def tensors(self) -> Mapping[str, Tensor]:
        pair = {"lora_down.weight": self.down, "lora_up.weight": self.up}
        return pair if self.mid is None else {**pair, "lora_mid.weight": self.mid}

    def factors(self, device: torch.device) -> tuple[Tensor, Tensor]:
        """Return ``up (out, rank)`` and ``down (rank, in·kh·kw)`` in fp32, without ``alpha / rank``."""
        up, down = self.up.to(device).float().flatten(1), self.down.to(device).float().flatten(1)
        if self.mid is not None:
            down = torch.einsum("rskl,si->rikl", self.mid.to(device).float(), down).flatten(1)
        return up, down

    def scaled_pair(self) -> tuple[Tensor, Tensor]:
        """Return ``down (rank, in[, kh, kw])`` and ``up`` with ``mid`` and ``alpha / rank`` multiplied in.

        Formats without alpha hold this pair: its product is the change itself.
        """
        scale = self.alpha / self.rank
        up = self.up if scale == 1 else self.up.float() * scale
        if self.mid is None:
            return self.down, up
        _, down = self.factors(self.down.device)
        return down.reshape(self.rank, *self.shape[1:]), up

    def delta(self, weight: Tensor) -> Tensor:
        up, down = self.factors(weight.device)
        return (up @ down).mul_(self.alpha / self.rank).reshape(weight.shape)

    def norm(self) -> float:
        return abs(self.alpha) / self.rank * product_norm(*self.factors(self.up.device))


SUBJECTS_KEY = "lora_service.subjects"
"""The header string of a LoRA of several subjects: a JSON list of objects with ``trigger`` and ``tokens``."""
_MAX_SUBJECTS = 64


@dataclass(frozen=True)
class LoraSubject:
    """One of the things that a LoRA was taught: its trigger word, "" without one, and the names of its tokens."""

    trigger: str
    tokens: tuple[str, ...]


def subjects_to_header(subjects: Sequence[LoraSubject]) -> dict[str, str]:
    """Return the header string of several subjects; none where there is one, whom the other strings name."""
    if len(subjects) < 2:
        return {}
    return {SUBJECTS_KEY: json.dumps([asdict(subject) for subject in subjects], ensure_ascii=False)}


@dataclass(frozen=True, eq=False)
class LoraWeights:
    """A LoRA in memory, whatever the format of its file.

    Attributes:
        layers: component (``unet`` or ``transformer``, ``text_encoder``, ``text_encoder_2``) -> module path of the
            diffusers or transformers model, without a leading ``text_model.`` -> change of its weight; a path that
            ends in ``.bias`` stands for the module's bias.
        embeddings: token name (``<s1>``) -> component -> row ``(width,)`` of the embedding table.
        metadata: the header's strings.
        format: name of the file format it was read from; "" if it was made in memory.
        warnings: what the file holds and could not be used, or had to be assumed.
        name: the file's name as people know it, without its ending; "" if it has none.
        serial: a number that no other object of this process has or had, for keys of caches.
    """

    layers: Mapping[str, Mapping[str, WeightChange]]
    embeddings: Mapping[str, Mapping[str, Tensor]] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    format: str = ""
    warnings: tuple[str, ...] = ()
    name: str = ""
    serial: int = field(default_factory=count().__next__, init=False, repr=False)

    def __iter__(self) -> Iterator[tuple[str, str, WeightChange]]:
        """Iterate over every change as (component, module path, change)."""
        for component, modules in self.layers.items():
            for path, layer in modules.items():
                yield component, path, layer

    @cached_property
    def rank(self) -> int:
        """The most common rank of its layers; 0 without any that has one."""
        return self._most_common()[0]

    @cached_property
    def alpha(self) -> float:
        """The most common alpha of the layers of the most common rank."""
        return self._most_common()[1]

    @property
    def trigger(self) -> str | None:
        """The plain word that calls the subject in any tool, if the header names one."""
        return self.metadata.get(TRIGGER_KEY, "").strip() or None

    @property
    def names(self) -> tuple[str, ...]:
        """Its names in a prompt's ``<lora:name:0.8>``: file name, kohya's name, title, trigger."""
        keys = ("ss_output_name", "modelspec.title", TRIGGER_KEY)
        return tuple(name for name in (self.name, *(self.metadata.get(key, "").strip() for key in keys)) if name)

    @property
    def clip_skip(self) -> int | None:
        """The text encoder's layer that it was trained with, counted from the end, if the header names one."""
        text = self.metadata.get("ss_clip_skip", "")
        return int(text) if re.fullmatch(r"[1-9]\d?", text) else None

    @property
    def tokens(self) -> tuple[str, ...]:
        """Names of its learned tokens, in the file's order."""
        return tuple(self.embeddings)

    @cached_property
    def subjects(self) -> tuple[LoraSubject, ...]:
        """All that it was taught, in order; one subject with all tokens, unless the header tells of several."""
        try:
            stored = json.loads(self.metadata.get(SUBJECTS_KEY, "[]"))
            subjects = tuple(
                LoraSubject(str(each["trigger"]).strip(), tuple(t for t in each["tokens"] if t in self.embeddings))
                for each in stored[:_MAX_SUBJECTS]
            )
        except (ValueError, KeyError, TypeError, RecursionError):
            subjects = ()
        return subjects or (LoraSubject(self.trigger or "", self.tokens),)

    @property
    def triggers_of_tokens(self) -> dict[str, str]:
        """The trigger word of each token's subject, "" where it has none."""
        return dict.fromkeys(self.embeddings, "") | {t: each.trigger for each in self.subjects for t in each.tokens}

    @cached_property
    def memory_bytes(self) -> int:
        """Memory that it holds, with that of many small tensors' objects, which may exceed their values' by far."""
        tensors = [tensor for _, _, layer in self for tensor in layer.tensors.values()]
        tensors += [row for rows in self.embeddings.values() for row in rows.values()]
        values = sum(tensor.numel() * tensor.element_size() for tensor in tensors)
        strings = sum(len(key) + len(text) for key, text in self.metadata.items())
        return values + _OBJECT_BYTES * len(tensors) + strings

    def _most_common(self) -> tuple[int, float]:
        counts = Counter((layer.rank, layer.alpha) for _, _, layer in self if layer.rank)
        return counts.most_common(1)[0][0] if counts else (0, 0.0)


def product_norm(left: Tensor, right: Tensor) -> float:
    """Return ‖left @ right‖ from two rank × rank Gram matrices; the product itself is never formed."""
    square = ((left.T @ left) * (right @ right.T)).sum().item()
    return math.sqrt(max(square, 0.0))
