"""Uploads as people send them: drawn stand-ins for photographs and drawings that are not part of the project.

Each set has one subject that looks alike on every image, JPEG files of the size that a telephone or a drawing program
writes, an sRGB profile and a camera's file names. The sides are those of three sets of the DreamBooth dataset.
"""

from __future__ import annotations

import io
import random
from collections.abc import Mapping

import numpy as np
from PIL import Image, ImageCms, ImageDraw, ImageFilter

from tests.dataset.picture_makers import encoded, zipped

SIDES = {
    "dog": (1282, 1301, 1272, 1278, 1278),
    "teapot": (1282, 855, 1000, 703, 1073),
    "cartoon": (2048, 2048, 2048, 2048),
}
_CANVAS = 512
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()

Shape = tuple[str, str, tuple[float, float, float, float]]
"""The name of a drawing method, a colour, and a box (left, top, right, bottom) in a subject of side 1."""
_SHAPES: Mapping[str, tuple[Shape, ...]] = {
    "dog": (
        ("ellipse", "#8a5a2b", (0.2, 0.45, 0.9, 0.85)),
        ("rectangle", "#7a4d22", (0.3, 0.7, 0.38, 1.0)),
        ("rectangle", "#7a4d22", (0.72, 0.7, 0.8, 1.0)),
        ("ellipse", "#9b6a36", (0.0, 0.2, 0.42, 0.6)),
        ("ellipse", "#5a3715", (0.28, 0.15, 0.44, 0.5)),
        ("ellipse", "#16110d", (0.0, 0.38, 0.08, 0.46)),
        ("ellipse", "#16110d", (0.14, 0.3, 0.2, 0.36)),
    ),
    "teapot": (
        ("ellipse", "#c8b48c", (0.75, 0.35, 1.0, 0.75)),
        ("polygon", "#b0945c", (0.0, 0.4, 0.35, 0.7)),
        ("ellipse", "#d9c79f", (0.15, 0.3, 0.85, 0.95)),
        ("rectangle", "#4a6fa5", (0.2, 0.58, 0.8, 0.66)),
        ("ellipse", "#b0945c", (0.42, 0.18, 0.58, 0.34)),
    ),
    "cartoon": (
        ("ellipse", "#d3202a", (0.15, 0.0, 0.85, 0.7)),
        ("rectangle", "#d3202a", (0.3, 0.6, 0.7, 1.0)),
        ("ellipse", "white", (0.3, 0.2, 0.48, 0.42)),
        ("ellipse", "white", (0.54, 0.2, 0.72, 0.42)),
        ("ellipse", "black", (0.38, 0.27, 0.46, 0.37)),
        ("ellipse", "black", (0.6, 0.27, 0.68, 0.37)),
        ("rectangle", "#7d0f16", (0.4, 0.5, 0.62, 0.55)),
    ),
}


def drawn_set(subject: str) -> bytes:
    """Return the zip of a subject, one of ``SIDES``."""
    images = (draw(subject, number, side) for number, side in enumerate(SIDES[subject]))
    return zipped({f"{number:02}.jpg": _jpeg(image) for number, image in enumerate(images)})


def telephone_set() -> bytes:
    """Return the zip of a folder as a telephone and macOS make it: turned and upright, wide and high, JPEG and HEIC."""
    turned = Image.Exif()
    turned[0x0112] = 6
    wide, high = ((0, 0, 1200, 900), (0, 0, 900, 1200))
    images = [draw("dog", 10 + number, 1200).crop(box) for number, box in enumerate((wide, high, wide))]
    return zipped(
        {
            "my dog/": b"",
            "my dog/.DS_Store": b"\0\0\0\1Bud1",
            "my dog/IMG_0041.HEIC": encoded(images[0], "HEIF", quality=90),
            "my dog/IMG_0042.jpeg": encoded(images[2], "JPEG", quality=90, icc_profile=_SRGB, exif=turned.tobytes()),
            "my dog/IMG_0043.JPG": encoded(images[1], "JPEG", quality=90, icc_profile=_SRGB),
            "__MACOSX/my dog/._IMG_0041.HEIC": b"\0\5\x16\7",
        }
    )


def draw(subject: str, seed: int, side: int) -> Image.Image:
    """Return a square RGB image of ``subject`` at a place, in a size, and before a background that ``seed`` chooses."""
    rng = random.Random(f"{subject} {seed}")
    canvas = Image.new("RGB", (_CANVAS, _CANVAS), "white") if subject == "cartoon" else _scene(rng)
    smallest, largest = (0.5, 0.6) if subject == "cartoon" else (0.45, 0.75)
    width, height = rng.uniform(smallest, largest) * _CANVAS, rng.uniform(smallest, largest) * _CANVAS
    middle = (0.45, 0.55) if subject == "cartoon" else (0.4, 0.6)
    left, top = rng.uniform(*middle) * _CANVAS - width / 2, rng.uniform(*middle) * _CANVAS - height / 2
    pen = ImageDraw.Draw(canvas)
    for form, color, (x0, y0, x1, y1) in _SHAPES[subject]:
        box = (left + x0 * width, top + y0 * height, left + x1 * width, top + y1 * height)
        if form == "polygon":
            pen.polygon((box[0], box[1], box[2], box[1], box[2], box[3]), fill=color)
        else:
            getattr(pen, form)(box, fill=color)
    image = canvas.resize((side, side), Image.Resampling.BICUBIC)
    return image if subject == "cartoon" else Image.blend(image, _grain(rng, side), 0.06)


def _scene(rng: random.Random) -> Image.Image:
    """Return a blurred room or landscape: a wall or sky, a floor or ground, and things."""
    canvas = Image.new("RGB", (_CANVAS, _CANVAS), _color(rng))
    pen = ImageDraw.Draw(canvas)
    pen.rectangle((0, rng.uniform(0.4, 0.8) * _CANVAS, _CANVAS, _CANVAS), fill=_color(rng))
    for _ in range(8):
        x, y, radius = rng.uniform(0, _CANVAS), rng.uniform(0, _CANVAS), rng.uniform(20, 120)
        pen.ellipse((x - radius, y - radius, x + radius, y + radius), fill=_color(rng))
    return canvas.filter(ImageFilter.GaussianBlur(6))


def _color(rng: random.Random) -> tuple[int, int, int]:
    return rng.randrange(256), rng.randrange(256), rng.randrange(256)


def _grain(rng: random.Random, side: int) -> Image.Image:
    noise = np.random.default_rng(rng.randrange(2**32)).integers(0, 256, (side, side, 3), dtype=np.uint8)
    return Image.fromarray(noise)


def _jpeg(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90, icc_profile=_SRGB)
    return buffer.getvalue()
