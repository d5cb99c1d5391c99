"""The training pictures of the judges, drawn beforehand, and their augmentation."""

from __future__ import annotations

import random
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from torch.nn import functional as F

from tools.embedded.pool import SIZE, draw_pool
from tools.judges.questions import answer_indices, random_description
from tools.synthetic import captions, subjects
from tools.synthetic.canvas import downscale

PICTURES_PER_SUBJECT = 6


def attribute_dataset(count: int, work: Path) -> tuple[np.ndarray, torch.Tensor]:
    """Return pictures of single things, uint8 ``(count, 64, 64, 3)``, and the classes ``(count, questions)``."""
    pictures, classes = draw_pool(_draw_thing, count, work / f"readings-{count}.npy")
    return pictures, torch.tensor(classes)


def captioned_dataset(count: int, work: Path) -> tuple[np.ndarray, list[str], torch.Tensor]:
    """Return pictures of the synthetic dataset, their captions, and the classes ``(count, questions)``."""
    pictures, metadata = draw_pool(_draw_captioned, count, work / f"captioned-{count}.npy")
    return pictures, [caption for caption, _ in metadata], torch.tensor([classes for _, classes in metadata])


def subject_dataset(kind: str, count: int, work: Path) -> np.ndarray:
    """Return subjects of one kind in several scenes each: uint8 ``(count, PICTURES_PER_SUBJECT, 64, 64, 3)``.

    Their seeds start at 0, and so are not held out for evaluation.
    """
    pictures, _ = draw_pool(partial(_draw_subject, kind=kind), count, work / f"{kind}s-{count}.npy")
    return pictures.reshape(count, PICTURES_PER_SUBJECT, SIZE, SIZE, 3)


def _draw_thing(seed: int) -> tuple[bytes, list[int]]:
    rng = random.Random(f"reading {seed}")
    description = random_description(rng)
    return downscale(description.draw(rng), SIZE).tobytes(), answer_indices(description)


def _draw_captioned(seed: int) -> tuple[bytes, tuple[str, list[int]]]:
    sample = captions.sample(random.Random(f"captioned {seed}"))
    return downscale(sample.picture, SIZE).tobytes(), (sample.caption, answer_indices(sample.description))


def _draw_subject(seed: int, kind: str) -> tuple[bytes, None]:
    series = islice(subjects.pictures(seed, SIZE, "judge", kind), PICTURES_PER_SUBJECT)
    return b"".join(picture.image.tobytes() for picture in series), None


def augment(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Blur, shift the colour of, and add noise to each of ``pictures`` ``(n, 3, h, w)`` in [-1, 1], at random strength.

    Without it a judge would distinguish a model's pictures from drawn ones by their edges.
    """

    def amount(low: float, high: float, channels: int = 1) -> torch.Tensor:
        return low + (high - low) * torch.rand(len(pictures), channels, 1, 1, generator=generator)

    blurred = F.avg_pool2d(F.pad(pictures, (1, 1, 1, 1), mode="replicate"), 3, stride=1)
    smoothed = torch.lerp(pictures, blurred, amount(-0.3, 1.0).clamp(min=0))
    shifted = smoothed * amount(0.9, 1.08) + amount(-0.06, 0.06, channels=3)
    noise = torch.randn(pictures.shape, generator=generator) * amount(-0.05, 0.12).clamp(min=0)
    return (shifted + noise).clamp(-1, 1)


def melt(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Deform ``pictures`` ``(n, 3, h, w)`` elastically (Simard et al., 2003), so that colours stay but shapes do not.

    They imitate the pictures of a model that reproduces a subject's colours, but not its shape.
    """
    count, _, height, width = pictures.shape
    displacement = 0.16 * torch.randn(count, 2, 8, 8, generator=generator)
    field = F.interpolate(displacement, (height, width), mode="bicubic", align_corners=True).permute(0, 2, 3, 1)
    identity = F.affine_grid(torch.eye(2, 3).expand(count, 2, 3), list(pictures.shape), align_corners=False)
    return F.grid_sample(pictures, identity + field, padding_mode="border", align_corners=False)
