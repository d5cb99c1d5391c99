"""The recipes that are compared: inputs of a training, beside those that all have alike."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from lora_service.models.defaults import ModelDefaults

TRIGGER = "zumvek"
"""The rare word of all of them."""


@dataclass(frozen=True)
class Method:
    """A recipe.

    Attributes:
        inputs: those of the training that differ from the defaults.
        rate: what the base's learning rates of UNet and text encoder are multiplied by.
        steps: of stage 1 and stage 2.
    """

    name: str
    inputs: Mapping[str, Any] = field(default_factory=dict)
    steps: tuple[int, int] = (300, 600)
    rate: float = 1.0

    def rates(self, defaults: ModelDefaults) -> dict[str, float]:
        """Return the learning rates on a base with ``defaults``, where they are not the base's own."""
        if self.rate == 1:
            return {}
        return {name: self.rate * getattr(defaults, name) for name in ("learning_rate_unet", "learning_rate_text")}

    @property
    def pictures(self) -> int:
        """The pictures of all steps together."""
        return sum(self.steps) * int(self.inputs.get("train_batch_size", 1))


_PLAIN = {
    "caption_mode": "template",
    "caption_dropout": 0,
    "snr_gamma": 0,
    "noise_offset": 0,
    "mask_mode": "none",
    "flip": False,
    "weight_decay_lora": 1e-2,
}
"""What neither the DreamBooth script of diffusers (train_dreambooth_lora.py) nor the first trainers had."""
_REFERENCE_RATE = 0.5
"""Of 0.5, 1 and 1.5 (docs/recipe.md): as like the subjects as with 1, with far less drift."""

METHODS: Mapping[str, Method] = {
    method.name: method
    for method in (
        Method("full"),
        Method("fast", {"preset": "fast"}),
        # One prompt with a rare word, a constant rate, the attention's projections alone; the text encoder learns too.
        Method(
            "dreambooth",
            _PLAIN | {"lora_targets": "attention", "custom_prompts": '["a photo of {}"]', "lora_rank": 4},
            steps=(0, 900),
            rate=_REFERENCE_RATE,
        ),
        # New tokens first, then the layers that cloneofsimo/lora taught, the tokens as they are.
        Method(
            "inversion",
            _PLAIN | {"lora_targets": "attention+geglu", "continue_inversion": False},
            rate=_REFERENCE_RATE,
        ),
    )
}


def parse(text: str, steps: tuple[int, int] | None) -> Method:
    """Return a method by its name, inputs ``NAME=VALUE`` split by commas, or both: ``full,lora_targets=attention``.

    Raises:
        ValueError: there is no such method.
    """
    first, *rest = [part.strip() for part in text.split(",")]
    if "=" in first:
        first, rest = "full", [first, *rest]
    if first not in METHODS:
        raise ValueError(f"{first!r} is no method; there are {', '.join(METHODS)}")
    pairs = dict(pair.partition("=")[::2] for pair in rest)
    method = METHODS[first]
    own = tuple(int(n) for n in pairs.pop("steps").split("+")) if "steps" in pairs else steps or method.steps
    return Method(text, {**method.inputs, **pairs}, (own[0], own[1]), method.rate)
