"""LoRAs that were distilled for few steps, recognised by their names, and what they need to be drawn with."""

from __future__ import annotations

import re
from dataclasses import dataclass

from lora_service.generation.request import GenerateRequest
from lora_service.lora.weights import LoraWeights
from lora_service.models.defaults import ModelDefaults

_NAMES_IN_HEADER = ("modelspec.title", "ss_output_name", "modelspec.architecture", "name", "title")


@dataclass(frozen=True)
class FewStepKind:
    """A kind of distillation and the settings that it was made for.

    Attributes:
        name: its name.
        pattern: a regular expression of it in names, in small letters.
        scheduler: the scheduler to take.
        steps: fewest and most inference steps.
        guidance_scale: the highest guidance scale; 1 is none.
    """

    name: str
    pattern: str
    scheduler: str
    steps: tuple[int, int]
    guidance_scale: float


KINDS = (
    FewStepKind("LCM", r"(?<![a-z])lcm(?![a-z])|latent[-_ ]?consistency", "LCM", (2, 8), 2.0),
    FewStepKind("Lightning", r"lightning.*step|step.*lightning|sdxl[-_ ]?lightning", "K_EULER", (2, 8), 1.0),
    FewStepKind("Hyper-SD", r"hyper[-_ ]?sd", "DDIM", (1, 8), 1.0),
    FewStepKind("Turbo", r"(?<![a-z])turbo(?![a-z])", "K_EULER_ANCESTRAL", (1, 8), 1.0),
    FewStepKind("DMD2", r"(?<![a-z])dmd2", "LCM", (4, 8), 1.0),
    FewStepKind("TCD", r"(?<![a-z])tcd(?![a-z])", "LCM", (4, 8), 1.0),
)
"""By the authors' model cards: https://arxiv.org/abs/2311.05556 (LCM), https://arxiv.org/abs/2402.13929 (Lightning),
https://arxiv.org/abs/2404.13686 (Hyper-SD), https://arxiv.org/abs/2311.17042 (Turbo),
https://arxiv.org/abs/2405.14867 (DMD2), https://arxiv.org/abs/2402.19159 (TCD)."""


def few_step_kind(weights: LoraWeights, link: str) -> FewStepKind | None:
    """Return the kind that the names in a LoRA's header or its link tell; None: a LoRA like any other.

    Those of transformers are none: there the names are also those of bases, such as Z-Image-Turbo.
    """
    if "transformer" in weights.layers:
        return None
    names = [link.lower(), *(weights.metadata.get(key, "").lower() for key in _NAMES_IN_HEADER)]
    return next((kind for kind in KINDS if any(re.search(kind.pattern, name) for name in names)), None)


def few_step_advice(kind: FewStepKind, request: GenerateRequest, defaults: ModelDefaults) -> str | None:
    """Return what to set for a LoRA of ``kind``, as a sentence for the log; None where everything is set so."""
    steps, guidance = request.steps(defaults), request.guidance(defaults)
    advice = []
    if request.scheduler != kind.scheduler:
        advice.append(f"scheduler {kind.scheduler}")
    if not kind.steps[0] <= steps <= kind.steps[1]:
        advice.append(f"num_inference_steps {kind.steps[0]} to {kind.steps[1]}")
    if guidance > kind.guidance_scale:
        advice.append(f"guidance_scale {'1' if kind.guidance_scale == 1 else f'1 to {kind.guidance_scale:g}'}")
    if not advice:
        return None
    return f"it looks like one for few steps ({kind.name}), which is made for {', '.join(advice)}"
