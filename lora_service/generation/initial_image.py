"""The pictures of a request; the one that it starts from, with its mask, in the size of the result."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from lora_service.errors import InputError

_BLACK, _WHITE = 16, 239
"""Values of a mask that count as black and white: JPEG leaves neither pure."""
_MAX_SHAPE_DIFFERENCE = 0.02


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


@dataclass(frozen=True)
class InitialImage:
    """An initial image with its mask; both have the size of the result.

    Attributes:
        image: RGB.
        mask: "L", 255 where the picture is drawn anew and 0 where it stays; None: it is drawn anew everywhere.
    """

    image: Image.Image
    mask: Image.Image | None = None

    @staticmethod
    def fit(images: InputImages, size: tuple[int, int], log: Callable[[str], None]) -> InitialImage | None:
        """Crop and scale the pictures of a request to ``size`` pixels; None where it has no initial image.

        Args:
            images: the pictures.
            size: width and height of the result.
            log: called with what a person would not expect.

        Raises:
            InputError: the mask has no image (``mask_without_image``), another shape than the image
                (``mask_shape``), or nothing white within the result (``empty_mask``).
        """
        if images.image is None:
            if images.mask is not None:
                raise InputError(
                    "mask", "a picture", "left out, or given with image, of which it says what is drawn anew",
                    code="mask_without_image",
                )  # fmt: skip
            return None
        image = ImageOps.fit(images.image.convert("RGB"), size, Image.Resampling.LANCZOS)
        if images.mask is None:
            return InitialImage(image)
        return InitialImage(image, _fit_mask(images.mask, images.image.size, size, log))

    def repainted_cells(self, side: int) -> NDArray[np.uint8]:
        """Return which latents are drawn anew, 1 or 0 ``(h, w)``: all that have anything of the mask.

        Args:
            side: of a latent in pixels.
        """
        if self.mask is None:
            return np.ones((self.image.height // side, self.image.width // side), np.uint8)
        pixels = np.asarray(self.mask) > 0
        cells = pixels.reshape(pixels.shape[0] // side, side, -1, side)
        return np.asarray(cells.any(axis=(1, 3)), np.uint8)

    def keep_unmasked(self, drawn: Image.Image, feather: int) -> Image.Image:
        """Return ``drawn`` within the mask and this image elsewhere, byte for byte.

        Args:
            drawn: RGB, of the image's size.
            feather: width in pixels of the transition, which lies within the mask.
        """
        if self.mask is None:
            return drawn
        mask = np.asarray(self.mask)
        if feather:
            import cv2  # requests without a mask start sooner

            # A mask without any edge is far from all edges.
            distance = cv2.distanceTransform((mask > 0).astype(np.uint8), cv2.DIST_L2, cv2.DIST_MASK_PRECISE)
            ramp = np.clip(distance / (feather + 1), 0, 1)
            mask = np.rint(mask * ramp * ramp * (3 - 2 * ramp)).astype(np.uint8)
        return Image.composite(drawn, self.image, Image.fromarray(mask))


def _fit_mask(
    mask: Image.Image, shape: tuple[int, int], size: tuple[int, int], log: Callable[[str], None]
) -> Image.Image:
    """Return ``mask`` for an image that had ``shape`` and was fitted to ``size``."""
    gray, asked = mask.convert("L"), f"{mask.width} × {mask.height}"
    if gray.size != shape:
        expected = f"of the image's shape, {shape[0]} × {shape[1]}"
        if abs(gray.width / gray.height * shape[1] / shape[0] - 1) > _MAX_SHAPE_DIFFERENCE:
            raise InputError("mask", asked, expected, code="mask_shape")
        log(f"The mask was scaled from {asked} to the image's {shape[0]} × {shape[1]} pixels.")
        gray = gray.resize(shape, Image.Resampling.BILINEAR)
    # Bilinear, as the overshoot of Lanczos would leave traces far into the black.
    gray = ImageOps.fit(gray, size, Image.Resampling.BILINEAR)
    levels = [min(255, max(0, (value - _BLACK) * 255 // (_WHITE - _BLACK))) for value in range(256)]
    fitted = gray.point(levels)
    if fitted.getbbox() is None:
        raise InputError("mask", "black all over", "white where the picture is to be drawn anew", code="empty_mask")
    return fitted
