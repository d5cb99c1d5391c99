"""The scale of a LoRA, apart from the patcher so that a request can be checked without torch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Scale:
    """The factors by which a LoRA's changes are multiplied: 1 is as trained, 0 is off."""

    unet: float
    text_encoder: float

    def of(self, component: str) -> float:
        """Return the scale of a component; both text encoders share one."""
        return self.unet if component == "unet" else self.text_encoder

    @property
    def is_zero(self) -> bool:
        """True if the LoRA changes nothing at this scale."""
        return self.unet == 0 and self.text_encoder == 0
