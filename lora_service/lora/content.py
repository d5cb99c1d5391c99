"""What a file holds before its layout is known: named tensors and header strings."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from torch import Tensor


@dataclass(frozen=True, eq=False)
class FileContent:
    """Named tensors and header strings.

    Attributes:
        name: the file's name without its suffix, by which other tools call an embedding.
    """

    tensors: Mapping[str, Tensor]
    metadata: Mapping[str, str] = field(default_factory=dict)
    name: str = "lora"
