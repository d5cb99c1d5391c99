"""The registry of file layouts. A new layout is one module beside this one and one line in ``FORMATS``."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from lora_service.lora.content import FileContent
from lora_service.lora.formats import cloneofsimo, diffusers, embedding, kohya
from lora_service.lora.weights import LoraWeights


@dataclass(frozen=True)
class LoraFormat:
    """One way to lay a LoRA out in a file.

    Attributes:
        detects: whether the content is this layout's, by keys; asked in the registry's order.
        read: content -> weights. It raises LoraFileError, and leaves no key out in silence.
        write: weights -> tensors and the header strings that belong to the layout. It raises LoraFileError for what
            the layout cannot hold.
    """

    name: str
    detects: Callable[[FileContent], bool]
    read: Callable[[FileContent], LoraWeights]
    write: Callable[[LoraWeights], FileContent]


FORMATS = (
    LoraFormat("kohya", kohya.detects, kohya.read, kohya.write),
    LoraFormat("diffusers", diffusers.detects, diffusers.read, diffusers.write),
    LoraFormat("cloneofsimo", cloneofsimo.detects, cloneofsimo.read, cloneofsimo.write),
    LoraFormat("embedding", embedding.detects, embedding.read, embedding.write),
)
