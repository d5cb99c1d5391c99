"""Pictures that were uploaded twice, as the same file or nearly so."""

from __future__ import annotations

from collections.abc import Sequence

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from lora_service.dataset.report import Duplicate

_SIDE, _LOW = 32, 8
_MOST_BITS = 6  # of 64; another crop of the same picture mostly differs by more
_MOST_COLOR = 20.0  # mean difference of the thumbnails' values, of 255: the same drawing in red and in blue is two
_SAME_COLOR = 1.0  # on flat grounds most frequencies are noise; there the thumbnails alone tell


Fingerprint = tuple[NDArray[np.bool_], NDArray[np.float32]]
"""A perceptual hash of 64 bits, (64,), and a colour thumbnail, (192,)."""


def fingerprint(image: Image.Image) -> Fingerprint:
    """What an RGB picture looks like, from afar.

    The hash is Zauner's pHash (2010): which of the 8 × 8 lowest frequencies of the 32 × 32 grey picture lie
    above their median.
    """
    gray = np.asarray(image.convert("L").resize((_SIDE, _SIDE), Image.Resampling.LANCZOS), dtype=np.float32)
    low = cv2.dct(gray)[:_LOW, :_LOW]
    thumbnail = np.asarray(image.resize((_LOW, _LOW), Image.Resampling.BOX), dtype=np.float32)
    return (low > np.median(low)).reshape(-1), thumbnail.reshape(-1)


def near_duplicates(names: Sequence[str], prints: Sequence[Fingerprint]) -> list[Duplicate]:
    """Each picture that looks like an earlier one, with the earliest it looks like."""
    hashes, colors = (np.stack(part) for part in zip(*prints, strict=True))
    found = []
    for index in range(1, len(names)):
        bits = np.count_nonzero(hashes[:index] != hashes[index], axis=1)
        color = np.abs(colors[:index] - colors[index]).mean(axis=1)
        alike = np.flatnonzero(((bits <= _MOST_BITS) & (color <= _MOST_COLOR)) | (color <= _SAME_COLOR))
        if alike.size:
            found.append(Duplicate(names[index], names[int(alike[0])], exact=False))
    return found
