"""Near duplicates by fingerprint."""

from __future__ import annotations

import io

import numpy as np
import pytest
from PIL import Image, ImageEnhance

from lora_service.dataset.images.duplicates import fingerprint, near_duplicates
from lora_service.dataset.report import Duplicate
from tests.dataset.picture_makers import encoded, picture


@pytest.mark.parametrize(
    ("seed", "expected"), [(1, "c6e471db83258d9a"), (2, "b5f107a47453f0c6"), (3, "f5c7b58655715403")]
)
def test_hashes_are_those_of_imagehash(seed: int, expected: str) -> None:
    """Computed with imagehash 4.3.2's ``phash`` of the same pictures."""
    bits, _ = fingerprint(picture(seed))
    assert np.packbits(bits).tobytes().hex() == expected


def _as_jpeg(image: Image.Image) -> Image.Image:
    return Image.open(io.BytesIO(encoded(image, "JPEG", quality=50))).convert("RGB")


@pytest.mark.parametrize(
    "change",
    [_as_jpeg, lambda image: image.resize((48, 36)), lambda image: ImageEnhance.Brightness(image).enhance(0.9)],
    ids=["as a JPEG", "smaller", "darker"],
)
def test_changed_copies_are_near_duplicates(change) -> None:  # type: ignore[no-untyped-def]
    images = [picture(1), picture(2), change(picture(1))]
    assert near_duplicates(["a", "b", "c"], [fingerprint(image) for image in images]) == [
        Duplicate("c", "a", exact=False)
    ]


def test_other_images_are_no_duplicates() -> None:
    images = [picture(seed) for seed in range(40)]
    assert near_duplicates([str(seed) for seed in range(40)], [fingerprint(image) for image in images]) == []


def test_the_same_drawing_in_other_colours_is_no_duplicate() -> None:
    red = picture(1).convert("L").convert("RGB")
    blue = Image.merge("RGB", (red.getchannel("R").point([0] * 256), red.getchannel("G"), red.getchannel("B")))
    assert near_duplicates(["a", "b"], [fingerprint(red), fingerprint(blue)]) == []
