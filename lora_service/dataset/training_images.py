"""An image as the training sees it."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random

from PIL import Image

from lora_service.dataset.images.crops import Box, Size, random_crop
from lora_service.dataset.options import SUBJECT


@dataclass(frozen=True)
class UncroppedImage:
    """An upright image around its crop, for other crops of it.

    Args:
        image: RGB, the whole original at any scale.
        mask: "L", of the same size; none: all of it counts.
        subject: the masked part of the original; none: any part may be cut off.
    """

    image: Image.Image
    mask: Image.Image | None
    subject: Box | None


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
        uncropped: the image that it is cropped from, where other crops of it are wanted.
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
    uncropped: UncroppedImage | None = None

    def random_crop(self, rng: Random) -> TrainingImage:
        """Return another crop of the same image, of the same size; itself where there is nothing else to crop from."""
        if self.uncropped is None:
            return self
        crop = random_crop(self.original, self.image.size, self.uncropped.subject, rng)
        mask = None if self.uncropped.mask is None else crop.apply(self.uncropped.mask)
        return replace(self, image=crop.apply(self.uncropped.image), mask=mask, crop=crop.box)

    def __post_init__(self) -> None:
        if not self.captions or any(SUBJECT not in caption for caption in self.captions):
            raise ValueError(f"the captions {self.captions} do not all name the subject")
