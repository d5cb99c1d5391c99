"""What a training gets: pictures as the model will see them, and the report of how they came to be."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from lora_service.dataset.captions.templates import SUBJECT
from lora_service.dataset.report import DatasetReport

Box = tuple[int, int, int, int]
"""left, top, right, bottom in pixels."""
Size = tuple[int, int]
"""width, height in pixels."""


@dataclass(frozen=True)
class TrainingImage:
    """One picture, ready for the VAE.

    Args:
        name: as in the archive.
        image: RGB in sRGB, upright, at its training size.
        captions: one or more templates to draw from; ``{}`` stands exactly once for the subject.
        mask: "L", of the image's size, 255 where the subject is; none: everything counts.
        crop: what ``image`` shows of the upright original, whose size is ``original``.
        repeats: the picture's weight when one is drawn.
    """

    name: str
    image: Image.Image
    captions: tuple[str, ...]
    mask: Image.Image | None
    crop: Box
    original: Size
    repeats: int = 1

    def __post_init__(self) -> None:
        if not self.captions or any(caption.count(SUBJECT) != 1 for caption in self.captions):
            raise ValueError(f"the captions {self.captions} do not name the subject once each")


@dataclass(frozen=True)
class TrainingDataset:
    """The pictures of one training, in the order of their names, and their report."""

    pictures: tuple[TrainingImage, ...]
    report: DatasetReport
