"""Small images and archives, made by code."""

from __future__ import annotations

import io
import tarfile
import zipfile
from collections.abc import Mapping
from typing import Any

import numpy as np
import pillow_heif
from PIL import Image, ImageDraw

pillow_heif.register_heif_opener()


def picture(seed: int, size: tuple[int, int] = (96, 72)) -> Image.Image:
    """Return soft coloured blotches, RGB, which differ by ``seed``."""
    coarse = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return Image.fromarray(coarse).resize(size, Image.Resampling.BICUBIC)


def encoded(image: Image.Image, form: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, form, **options)
    return buffer.getvalue()


def png(seed: int, size: tuple[int, int] = (96, 72)) -> bytes:
    return encoded(picture(seed, size))


def zipped(members: Mapping[str, bytes], method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in members.items():
            archive.writestr(zipfile.ZipInfo(name), data, method)
    return buffer.getvalue()


def tarred(members: Mapping[str, bytes], mode: str = "w", form: int = tarfile.PAX_FORMAT) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode=mode, format=form) as archive:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
    return buffer.getvalue()


def half_mask(size: tuple[int, int] = (96, 72)) -> Image.Image:
    """Return a mask, "L", that is white in the right half."""
    mask = Image.new("L", size, 0)
    mask.paste(255, (size[0] // 2, 0, size[0], size[1]))
    return mask


def draw_face(image: Image.Image, x: float, y: float, radius: float) -> None:
    """Draw a face that the Haar cascade detects: long brown hair, pale skin, its middle at (x, y) in pixels."""
    pen = ImageDraw.Draw(image)

    def ellipse(across: float, down: float, half_width: float, half_height: float, color: str) -> None:
        left, top = x + (across - half_width) * radius, y + (down - half_height) * radius
        pen.ellipse((left, top, left + 2 * half_width * radius, top + 2 * half_height * radius), fill=color)

    ellipse(0, -0.05, 0.85, 0.95, "#694123")
    ellipse(0, 0.1, 0.66, 0.78, "#fce0c8")
    pen.chord((x - 0.7 * radius, y - 0.82 * radius, x + 0.7 * radius, y + 0.62 * radius), 180, 360, fill="#694123")
    pen.chord((x - 0.5 * radius, y - 0.3 * radius, x + 0.5 * radius, y + 0.3 * radius), 180, 360, fill="#fce0c8")
    for side in (-0.26, 0.26):
        ellipse(side, 0.06, 0.12, 0.11, "white")
        ellipse(side, 0.07, 0.065, 0.075, "#141416")
    ellipse(0, 0.28, 0.07, 0.09, "#bda896")
    pen.line((x - 0.2 * radius, y + 0.56 * radius, x + 0.2 * radius, y + 0.56 * radius), fill="#963c3c", width=8)


CLEAN = {"a.png": png(1), "b.png": png(2, (100, 80)), "b.txt": b"TOK at sea"}
"""Members of an upload without problems."""
MIXED = {
    "10_red dog/a.png": png(1),
    "10_red dog/copy.png": png(1),
    "10_red dog/a_mask.png": encoded(half_mask()),
    "b.jpg": encoded(picture(1), "JPEG"),
    "small.png": png(3, (32, 40)),
    "broken.jpg": b"?",
    "10_red dog/a.txt": b"TOK " + b"long " * 80,
}
"""Members of an upload with repeats, a mask, a long caption, a copy, a near duplicate, and two unsuitable files."""
