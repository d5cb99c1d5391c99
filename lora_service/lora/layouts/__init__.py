"""The registry of file layouts. A new layout is one module beside this one and one line in ``LAYOUTS``.

A layout's module has ``DETECTS`` and ``read``; one that can be written also has ``write``.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from lora_service.lora.layouts import diffusers, kohya
from lora_service.lora.weights import LoraWeights

Tensors = Mapping[str, Tensor]


@dataclass(frozen=True)
class Layout:
    """One way to lay a LoRA out in a file.

    Attributes:
        detects: whether the keys are this layout's; asked in the registry's order.
        read: tensors and header strings -> weights. It raises LoraFileError, and leaves no key out in silence.
        write: weights -> tensors and the header strings the layout itself needs; None if it is only read.
    """

    name: str
    detects: Callable[[Tensors], bool]
    read: Callable[[Tensors, Mapping[str, str]], LoraWeights]
    write: Callable[[LoraWeights], tuple[dict[str, Tensor], dict[str, str]]] | None = None


LAYOUTS = (
    Layout("kohya", kohya.detects, kohya.read, kohya.write),
    Layout("diffusers", diffusers.detects, diffusers.read, diffusers.write),
)
