"""The pictures that a request brings along."""

from __future__ import annotations

from dataclasses import dataclass

from PIL import Image


@dataclass(frozen=True)
class InputImages:
    """The decoded pictures of a request, upright; the fields are named as the inputs.

    Attributes:
        image: the initial image of img2img; None for text2img.
        mask: white where the initial image is drawn anew; None: everywhere.
        adapter_condition_image: the picture whose structure is followed; None for none.
    """

    image: Image.Image | None = None
    mask: Image.Image | None = None
    adapter_condition_image: Image.Image | None = None

    @property
    def shape(self) -> Image.Image | None:
        """The picture whose shape the result has where no size is asked for."""
        return self.image or self.adapter_condition_image
