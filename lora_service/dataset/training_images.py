"""An image as the training sees it."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image

from lora_service.dataset.images.crops import Box, Size
from lora_service.dataset.options import SUBJECT


@dataclass(frozen=True)
class TrainingImage:
    """One image, ready for the VAE.

    Args:
        name: as in the archive.
        image: RGB in sRGB, upright, at its training size.
        captions: one or more templates to sample from; ``{}`` stands for the subject.
        mask: "L", of the image's size, 255 where the subject is; none: the loss counts everywhere.
        crop: the part of the upright original that ``image`` shows.
        original: the size of the upright original.
        repeats: the times that an epoch shows it.
        subject: the number of its subject, from 0 on, where several are taught.

    Raises:
        ValueError: a caption does not name the subject.
    """

    name: str
    image: Image.Image
    captions: tuple[str, ...]
    mask: Image.Image | None
    crop: Box
    original: Size
    repeats: int = 1
    subject: int = 0

    def __post_init__(self) -> None:
        if not self.captions or any(SUBJECT not in caption for caption in self.captions):
            raise ValueError(f"the captions {self.captions} do not all name the subject")
