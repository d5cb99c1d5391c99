"""How much of a LoRA is applied; apart from the patcher, so that a request can be checked without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """How much of a LoRA is applied: 1 is as trained, 0 is nothing."""

    unet: float
    text_encoder: float

    def of(self, component: str) -> float:
        """The scale for a component; both text encoders have one."""
        return self.unet if component == "unet" else self.text_encoder

    @property
    def is_nothing(self) -> bool:
        return self.unet == 0 and self.text_encoder == 0
