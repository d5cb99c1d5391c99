"""What a LoRA learned: drawn at several scales beside the base, and measured."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean

from PIL import Image

from lora_service.demo.measures import drift
from lora_service.demo.sheet import Row
from lora_service.generation.generator import ImageGenerator
from lora_service.generation.request import GenerateRequest
from lora_service.lora.scale import Scale
from lora_service.lora.weights import LoraWeights
from lora_service.models.diffusion_base import DiffusionBase

SEEDS = (11, 12, 13)
OTHERS = (
    "a red star on a blue background",
    "a yellow car in a meadow",
    "a green fish on a pink background",
    "a person with long black hair and glasses",
)
"""Prompts that a LoRA should leave alone."""


@dataclass(frozen=True)
class Trial:
    """What is asked of a LoRA, and by what its pictures are judged.

    ``prompts`` hold ``{}`` where the subject is told; ``plain`` is told to the base, for
    "the same prompt", and ``taught``, with ``{}`` for the name, where there is a LoRA.
    ``likeness`` says how like the subject pictures are.
    """

    prompts: Sequence[str]
    plain: str
    likeness: Callable[[Sequence[Image.Image]], float]
    taught: str = "{}"


@dataclass
class Figures:
    """What was measured, means over prompts and seeds; see ``lora_service/demo/measures.py``."""

    similarity: dict[str, float] = field(default_factory=dict)
    drift: dict[str, float] = field(default_factory=dict)

    def lines(self, scale: str) -> list[str]:
        """For people to read; ``scale`` explains the numbers of ``similarity``."""
        likeness = ", ".join(f"{name} {value:.2f}" for name, value in self.similarity.items())
        moved = ", ".join(f"{name} {value:.3f}" for name, value in self.drift.items())
        return [
            f"similarity to the subject ({scale}): {likeness}",
            f"drift of other prompts (mean change of a pixel, 0 to 1): {moved}",
        ]


def draw_and_measure(base: DiffusionBase, weights: LoraWeights, trial: Trial) -> tuple[list[Row], Figures]:
    """Rows of pictures, drawn by the base and with the LoRA at two scales, and what they measure."""
    drawing, figures, rows = ImageGenerator(base), Figures(), []
    trials = {
        "base": (0.0, trial.plain),
        "scale 0.5": (0.5, trial.taught.format("<1>")),
        "scale 1.0": (1.0, trial.taught.format("<1>")),
    }
    if weights.trigger:
        trials["trigger word"] = (1.0, trial.taught.format(weights.trigger))
    for name, (scale, told) in trials.items():
        prompts = [prompt.format(told) for prompt in trial.prompts]
        drawn = [_draw(drawing, weights, scale, prompts, seed) for seed in SEEDS]
        figures.similarity[name] = mean(trial.likeness(row) for row in drawn)
        rows.append(Row(name, drawn[0]))
    rows[-1] = replace(rows[-1], captions=[prompt.format("…") for prompt in trial.prompts])
    before = _draw(drawing, weights, 0.0, OTHERS, SEEDS[0])
    for scale in (0.5, 1.0):
        after = _draw(drawing, weights, scale, OTHERS, SEEDS[0])
        figures.drift[f"scale {scale}"] = mean(drift(b, a) for b, a in zip(before, after, strict=True))
    shown = len(trial.prompts) // 2
    pairs = [picture for pair in zip(before[:shown], after, strict=False) for picture in pair]
    captions = [caption for prompt in OTHERS[:shown] for caption in (f"{prompt}: base", "the same with the LoRA")]
    rows.append(Row("other prompts", pairs, captions))
    return rows, figures


def _draw(drawing: ImageGenerator, weights: LoraWeights, scale: float, prompts: Sequence[str], seed: int
          ) -> list[Image.Image]:  # fmt: skip
    return [
        drawing.draw(GenerateRequest(prompt=prompt, seed=seed), [(weights, Scale(scale, scale))])[0].image
        for prompt in prompts
    ]
