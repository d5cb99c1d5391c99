"""Evaluates a LoRA: its images at several scales beside the base's, their similarity to the subject, and the drift.

The metrics are fixed functions of pixels, for the embedded model's small drawn pictures; they need no model.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean

import numpy as np
import torch
from PIL import Image
from torch.nn import functional as F

from lora_service.generation.generator import ImageGenerator
from lora_service.generation.image_grid import ImageRow
from lora_service.generation.request import GenerateRequest
from lora_service.lora.scale import Scale
from lora_service.lora.weights import LoraWeights
from lora_service.models.diffusion_base import DiffusionBase

SEEDS = (11, 12, 13)
UNRELATED_PROMPTS = (
    "a red star on a blue background",
    "a yellow car in a meadow",
    "a green fish on a pink background",
    "a person with long black hair and glasses",
)
"""Prompts whose images a LoRA should not change."""

_SIDE = 64
_PATCH = 8
_SIZES = (0.75, 1.0, 1.35)


@dataclass(frozen=True)
class Evaluation:
    """The prompts and the metric of an evaluation.

    Attributes:
        prompts: prompts with ``{}`` for the subject.
        base_subject: the subject in the base's prompts, a phrase that the base knows.
        similarity: the similarity of images to the subject.
        lora_subject: the subject in the LoRA's prompts, with ``{}`` for its tokens or its trigger word.
    """

    prompts: Sequence[str]
    base_subject: str
    similarity: Callable[[Sequence[Image.Image]], float]
    lora_subject: str = "{}"


@dataclass
class Metrics:
    """Means over prompts and seeds, by the name of the variant: ``base``, ``scale 0.5`` …"""

    similarity: dict[str, float] = field(default_factory=dict)
    drift: dict[str, float] = field(default_factory=dict)

    def lines(self, unit: str) -> list[str]:
        """Format the metrics for people; ``unit`` explains the numbers of ``similarity``."""
        similarity = ", ".join(f"{name} {value:.2f}" for name, value in self.similarity.items())
        drift = ", ".join(f"{name} {value:.3f}" for name, value in self.drift.items())
        return [
            f"similarity to the subject ({unit}): {similarity}",
            f"drift of other prompts (mean change of a pixel, 0 to 1): {drift}",
        ]


def evaluate(base: DiffusionBase, lora: LoraWeights, evaluation: Evaluation) -> tuple[list[ImageRow], Metrics]:
    """Generate images with the base and with the LoRA at two scales; return rows of them and their metrics."""
    generator, metrics, rows = ImageGenerator(base), Metrics(), []
    variants = {
        "base": (0.0, evaluation.base_subject),
        "scale 0.5": (0.5, evaluation.lora_subject.format("<1>")),
        "scale 1.0": (1.0, evaluation.lora_subject.format("<1>")),
    }
    if lora.trigger:
        variants["trigger word"] = (1.0, evaluation.lora_subject.format(lora.trigger))
    for name, (scale, subject) in variants.items():
        prompts = [prompt.format(subject) for prompt in evaluation.prompts]
        batches = [_generate(generator, lora, scale, prompts, seed) for seed in SEEDS]
        metrics.similarity[name] = mean(evaluation.similarity(images) for images in batches)
        rows.append(ImageRow(name, batches[0]))
    rows[-1] = replace(rows[-1], captions=[prompt.format("…") for prompt in evaluation.prompts])
    before = _generate(generator, lora, 0.0, UNRELATED_PROMPTS, SEEDS[0])
    for scale in (0.5, 1.0):
        after = _generate(generator, lora, scale, UNRELATED_PROMPTS, SEEDS[0])
        metrics.drift[f"scale {scale}"] = mean(drift(b, a) for b, a in zip(before, after, strict=True))
    count = len(evaluation.prompts) // 2
    pairs = [image for pair in zip(before[:count], after, strict=False) for image in pair]
    captions = [c for prompt in UNRELATED_PROMPTS[:count] for c in (f"{prompt}: base", "the same with the LoRA")]
    rows.append(ImageRow("other prompts", pairs, captions))
    return rows, metrics


def _generate(
    generator: ImageGenerator, lora: LoraWeights, scale: float, prompts: Sequence[str], seed: int
) -> list[Image.Image]:
    loras = [(lora, Scale(scale, scale))]
    return [generator.generate(GenerateRequest(prompt=prompt, seed=seed), loras)[0].image for prompt in prompts]


def subject_similarity(image: Image.Image, subject: Sequence[Image.Image], masks: Sequence[Image.Image]) -> float:
    """Return the share of a subject that ``image`` shows, from 0 to 1, anywhere and at any size.

    Each 8 × 8 patch of a training picture that lies within its mask ("L", 255 = the subject) is searched in ``image``,
    at three sizes and mirrored; a patch scores ``exp(−8 · d)`` for the root mean square difference ``d`` in [0, 1] to
    its best match. The result is the mean over patches, and the maximum over training pictures.
    """
    candidates = torch.cat([_patches(version) for version in _versions(image)])  # (m, 3 · 64)
    return max(_score(_masked_patches(p, mask), candidates) for p, mask in zip(subject, masks, strict=True))


def drift(before: Image.Image, after: Image.Image) -> float:
    """Return the mean absolute change of a pixel, 0 to 1, of one prompt and seed without and with a LoRA."""
    return float((_tensor(before, _SIDE) - _tensor(after, _SIDE)).abs().mean())


def _score(patches: torch.Tensor, candidates: torch.Tensor) -> float:
    distances = torch.cdist(patches, candidates).div(patches.shape[1] ** 0.5).min(dim=1).values
    return float(torch.exp(-8 * distances).mean())


def _masked_patches(image: Image.Image, mask: Image.Image) -> torch.Tensor:
    """Return the patches of ``image``, every second pixel apart, that lie within ``mask`` for at least 80 %."""
    cover = _patches(mask.convert("RGB").resize((_SIDE, _SIDE)), step=2).mean(dim=1)
    return _patches(image.convert("RGB").resize((_SIDE, _SIDE)), step=2)[cover >= min(0.8, float(cover.max()))]


def _versions(image: Image.Image) -> list[Image.Image]:
    sized = [image.resize((round(_SIDE * s), round(_SIDE * s)), Image.Resampling.BICUBIC) for s in _SIZES]
    return sized + [version.transpose(Image.Transpose.FLIP_LEFT_RIGHT) for version in sized]


def _patches(image: Image.Image, step: int = 1) -> torch.Tensor:
    """Return all 8 × 8 patches as rows ``(m, 192)`` in [0, 1]."""
    return F.unfold(_tensor(image).unsqueeze(0), _PATCH, stride=step)[0].T.contiguous()


def _tensor(image: Image.Image, side: int | None = None) -> torch.Tensor:
    image = image.convert("RGB")
    if side is not None:
        image = image.resize((side, side))
    return torch.from_numpy(np.asarray(image, np.float32) / 255).permute(2, 0, 1)
