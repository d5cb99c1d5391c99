"""Evaluates a LoRA: its images at several scales beside the base's, their similarity to the subject, and the drift."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from statistics import mean

import numpy as np
import torch
from PIL import Image

from lora_service.generation.generator import ImageGenerator
from lora_service.generation.image_grid import ImageRow
from lora_service.generation.request import GenerateRequest
from lora_service.lora.scale import Scale
from lora_service.lora.weights import LoraWeights
from lora_service.models.diffusion_base import DiffusionBase

SEED, SEEDS = 11, 3
"""The first seed, and how many in a row there are; the images of the first one are shown."""
UNRELATED_PROMPTS = (
    "a red star on a blue background",
    "a yellow car in a meadow",
    "a green fish on a pink background",
    "a person with long black hair and glasses",
)
"""Prompts whose images a LoRA should not change."""

_SIDE = 64


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
class VariantMetrics:
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


def evaluate(base: DiffusionBase, lora: LoraWeights, evaluation: Evaluation) -> tuple[list[ImageRow], VariantMetrics]:
    """Generate images with the base and with the LoRA at two scales; return rows of them and their metrics."""
    generator, metrics, rows = ImageGenerator(base), VariantMetrics(), []
    variants = {
        "base": (0.0, evaluation.base_subject),
        "scale 0.5": (0.5, evaluation.lora_subject.format("<1>")),
        "scale 1.0": (1.0, evaluation.lora_subject.format("<1>")),
    }
    if lora.trigger:
        variants["trigger word"] = (1.0, evaluation.lora_subject.format(lora.trigger))
    for name, (scale, subject) in variants.items():
        prompts = [prompt.format(subject) for prompt in evaluation.prompts]
        batches = _generate(generator, lora, scale, prompts, SEEDS)
        metrics.similarity[name] = mean(evaluation.similarity(images) for images in zip(*batches, strict=True))
        rows.append(ImageRow(name, [images[0] for images in batches]))
    rows[-1] = replace(rows[-1], captions=[prompt.format("…") for prompt in evaluation.prompts])
    before = [images[0] for images in _generate(generator, lora, 0.0, UNRELATED_PROMPTS)]
    for scale in (0.5, 1.0):
        after = [images[0] for images in _generate(generator, lora, scale, UNRELATED_PROMPTS)]
        metrics.drift[f"scale {scale}"] = mean(drift(b, a) for b, a in zip(before, after, strict=True))
    count = len(evaluation.prompts) // 2
    pairs = [image for pair in zip(before[:count], after, strict=False) for image in pair]
    captions = [c for prompt in UNRELATED_PROMPTS[:count] for c in (f"{prompt}: base", "the same with the LoRA")]
    rows.append(ImageRow("other prompts", pairs, captions))
    return rows, metrics


def _generate(
    generator: ImageGenerator, lora: LoraWeights, scale: float, prompts: Sequence[str], seeds: int = 1
) -> list[list[Image.Image]]:
    """Return the images of each prompt, of so many seeds."""
    loras = [(lora, Scale(scale, scale))]
    requests = [GenerateRequest(prompt=prompt, seed=SEED, num_outputs=seeds) for prompt in prompts]
    return [[each.image for each in generator.generate(request, loras)] for request in requests]


def drift(before: Image.Image, after: Image.Image) -> float:
    """Return the mean absolute change of a pixel, 0 to 1, of one prompt and seed without and with a LoRA."""
    return float((_tensor(before, _SIDE) - _tensor(after, _SIDE)).abs().mean())


def reconstruct(base: DiffusionBase, pictures: Sequence[Image.Image]) -> list[Image.Image]:
    """Encode and decode ``pictures``, of one size, with the base's VAE: the best that the base can draw."""
    arrays = np.stack([np.asarray(p.convert("RGB"), np.float32) for p in pictures])
    pixels = torch.from_numpy(arrays).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.inference_mode():
        decoded = [base.decode(base.scale_latents(base.posterior(chunk).mean)) for chunk in pixels.split(32)]
    scaled = ((torch.cat(decoded).float().cpu().clamp(-1, 1) + 1) * 127.5).round().byte()
    return [Image.fromarray(array) for array in scaled.permute(0, 2, 3, 1).numpy()]


def _tensor(image: Image.Image, side: int) -> torch.Tensor:
    image = image.convert("RGB").resize((side, side))
    return torch.from_numpy(np.asarray(image, np.float32) / 255).permute(2, 0, 1)
