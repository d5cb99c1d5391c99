"""Near duplicates: images that show the same picture, by a perceptual hash and their colours."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lora_service.dataset.report import Duplicate

_SIDE, _FREQUENCIES = 32, 8
_MAX_BITS = 6  # of 64; another crop of the same picture mostly differs by more
_MAX_COLOR = 20.0  # mean difference of the thumbnails' values, of 255: the same drawing in red and in blue is two
_SAME_COLOR = 1.0  # on flat grounds most frequencies are noise, so thumbnails this close are enough

Fingerprint = tuple[NDArray[np.bool_], NDArray[np.float32]]
"""A perceptual hash of 64 bits, (64,), and a colour thumbnail, (192,)."""


def fingerprint(image: Image.Image) -> Fingerprint:
    """Return the perceptual hash and the colour thumbnail of an RGB image.

    The hash is Zauner's pHash (2010): a bit for each of the 8 × 8 lowest frequencies of the 32 × 32 grey image, set if
    it lies above their median.
    """
    gray = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), dtype=np.float32)
    low = cv2.dct(gray)[:_FREQUENCIES, :_FREQUENCIES]
    thumbnail = np.asarray(image.resize((_FREQUENCIES, _FREQUENCIES), Image.Resampling.BOX), dtype=np.float32)
    return (low > np.median(low)).reshape(-1), thumbnail.reshape(-1)


def near_duplicates(names: Sequence[str], fingerprints: Sequence[Fingerprint]) -> list[Duplicate]:
    """Return each image that looks like an earlier one, with the earliest it looks like; at least one is needed."""
    hashes, colors = (np.stack(part) for part in zip(*fingerprints, strict=True))
    duplicates = []
    for index in range(1, len(names)):
        bits = np.count_nonzero(hashes[:index] != hashes[index], axis=1)
        color = np.abs(colors[:index] - colors[index]).mean(axis=1)
        matches = np.flatnonzero(((bits <= _MAX_BITS) & (color <= _MAX_COLOR)) | (color <= _SAME_COLOR))
        if matches.size:
            duplicates.append(Duplicate(names[index], names[int(matches[0])], exact=False))
    return duplicates
