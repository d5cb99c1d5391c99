"""The choice of the text encoder's layer that prompts are encoded with."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from lora_service.generation.request import GenerateRequest
from lora_service.lora.scale import Scale
from lora_service.lora.weights import LoraWeights
from lora_service.models.diffusion_base import DiffusionBase

_OWN_VERSION = "lora_service.version"


def choose_clip_skip(
    request: GenerateRequest,
    loras: Sequence[tuple[LoraWeights, Scale]],
    base: DiffusionBase,
    log: Callable[[str], None],
) -> int | None:
    """Return the request's ``clip_skip``, else that which its LoRAs were trained with; None: the base's own.

    A LoRA at scale 0 does not count. LoRAs that disagree, or that not all have one, are drawn with the base's own, and
    the log says so. kohya's trainer writes the setting for Stable Diffusion XL too, where it has no effect, so where
    another layer than the last is the base's own, only a LoRA of this package counts.
    """
    if request.clip_skip is not None or not base.family.learns_text:
        return request.clip_skip
    default = base.family.own_clip_skip
    lora_layers = [
        weights.clip_skip if default == 1 or _OWN_VERSION in weights.metadata else None
        for weights, scale in loras
        if not scale.is_zero
    ]
    layers = {layer or default for layer in lora_layers}
    if len(layers) > 1:
        shown = ", ".join(str(layer or default) for layer in lora_layers)
        note = f"the base's own, {default}, is used; set it to choose"
        log(f"warning: the LoRAs were trained with clip_skip {shown}; {note}")
    if len(layers) != 1 or layers == {default}:
        return None
    (layer,) = layers
    log(f"clip_skip {layer}, as the LoRA was trained with it; the input clip_skip changes it")
    return layer
