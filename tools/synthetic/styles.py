"""Drawing styles: filters that turn a finished flat picture into a pencil drawing, a neon sign and so on.

Most work at half the canvas's side, which is still twice the side of the finished pictures, so that a
style costs a few milliseconds.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageChops, ImageFilter

from tools.synthetic.canvas import CANVAS

HALF = CANVAS // 2
PAPER = np.array((250, 248, 240), np.float32)


@dataclass(frozen=True)
class Style:
    """The beginning of a caption in this style, and the filter that is applied to a flat canvas."""

    prefix: str
    apply: Callable[[Image.Image, random.Random], Image.Image]


def halved(canvas: Image.Image) -> Image.Image:
    """Return ``canvas`` at half its side."""
    return canvas.resize((HALF, HALF), Image.Resampling.BOX)


def array(picture: Image.Image) -> np.ndarray:
    """Return float pixels ``(h, w, 3)`` in 0 to 255."""
    return np.asarray(picture, np.float32)


def canvas_of(pixels: np.ndarray) -> Image.Image:
    """Return the canvas of float pixels ``(h, w, 3)``, clipped to 0 to 255."""
    picture = Image.fromarray(np.clip(pixels, 0, 255).astype(np.uint8))
    return picture.resize((CANVAS, CANVAS), Image.Resampling.BILINEAR)


def contours(picture: Image.Image) -> np.ndarray:
    """Return the edges between colours: float ``(h, w, 1)`` in 0 to 1, lines of two or three pixels."""
    spread = ImageChops.difference(picture.filter(ImageFilter.MaxFilter(3)), picture.filter(ImageFilter.MinFilter(3)))
    red, green, blue = spread.split()
    strongest = ImageChops.lighter(ImageChops.lighter(red, green), blue)
    lines = strongest.point(lambda v: min(255, max(0, (v - 36) * 8)))
    return np.asarray(lines, np.float32)[..., None] / 255


def blotches(rng: random.Random, cells: int) -> np.ndarray:
    """Return smooth noise of ``cells`` × ``cells`` values: float ``(HALF, HALF, 1)`` in 0 to 1."""
    noise = np.random.default_rng(rng.getrandbits(32)).random((cells, cells), np.float32)
    smooth = Image.fromarray(noise).resize((HALF, HALF), Image.Resampling.BICUBIC)
    return np.clip(np.asarray(smooth), 0, 1)[..., None]


def hatching(rng: random.Random, pitch: float, angle: float) -> np.ndarray:
    """Return strokes ``pitch`` pixels apart, a little uneven: float ``(HALF, HALF, 1)`` in 0 to 1."""
    y, x = np.mgrid[0:HALF, 0:HALF].astype(np.float32)
    across = (x * np.cos(angle) + y * np.sin(angle)) / pitch
    wave = np.sin(2 * np.pi * (across[..., None] + 0.5 * blotches(rng, 6)))
    return np.clip(wave + 0.5, 0, 1)


def outline(canvas: Image.Image, rng: random.Random) -> Image.Image:
    """Black contours on white; the colours are pale washes."""
    small = halved(canvas)
    ink = contours(small)
    return canvas_of((255 - (255 - array(small)) * 0.28) * (1 - ink) + 20 * ink)


def pencil(canvas: Image.Image, rng: random.Random) -> Image.Image:
    """Draw coloured strokes in one direction, paper between them, and thin grey contours."""
    small = halved(canvas)
    strokes = 0.4 + 0.6 * hatching(rng, rng.uniform(7, 8), rng.uniform(0.65, 0.95))
    gray = np.asarray(small.convert("L"), np.float32)[..., None]
    colored = array(small) * 0.75 + gray * 0.25
    drawn = PAPER * (1 - strokes) + colored * strokes
    line = 0.7 * contours(small)
    return canvas_of(drawn * (1 - line) + 70 * line)


def pixel(canvas: Image.Image, rng: random.Random) -> Image.Image:
    """Draw large square pixels of few colours."""
    block = CANVAS * 3 // 64
    cells = -(-CANVAS // block)
    padded = canvas.resize((cells, cells), Image.Resampling.BOX, box=(0, 0, CANVAS, CANVAS))
    few = padded.quantize(10, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE).convert("RGB")
    return few.resize((cells * block, cells * block), Image.Resampling.NEAREST).crop((0, 0, CANVAS, CANVAS))


def watercolor(canvas: Image.Image, rng: random.Random) -> Image.Image:
    """Draw uneven, pale, running colours with darker rims, on paper whose border stays bare."""
    small = halved(canvas)
    shift = [((blotches(rng, 10)[..., 0] - 0.5) * 9).astype(int) for _ in range(2)]
    y, x = np.mgrid[0:HALF, 0:HALF]
    moved = array(small.filter(ImageFilter.BoxBlur(1)))[
        np.clip(y + shift[0], 0, HALF - 1), np.clip(x + shift[1], 0, HALF - 1)
    ]
    wash = 0.45 + 0.5 * blotches(rng, 6)
    blurred = array(Image.fromarray(moved.astype(np.uint8)).filter(ImageFilter.BoxBlur(4)))
    rim = np.abs(moved - blurred).max(axis=2, keepdims=True) * 0.35
    edge = np.minimum(np.minimum(x, HALF - 1 - x), np.minimum(y, HALF - 1 - y))[..., None]
    painted = np.clip((edge - 3 - 9 * blotches(rng, 9)) / 3, 0, 1)
    wash *= painted
    return canvas_of(PAPER * (1 - wash) + moved * wash - rim * painted)


def neon(canvas: Image.Image, rng: random.Random) -> Image.Image:
    """Draw glowing tubes along the contours, in the dark."""
    small = halved(canvas)
    bright = array(small.filter(ImageFilter.MaxFilter(5)))
    bright *= 255 / np.maximum(bright.max(axis=2, keepdims=True), 60)
    light = contours(small) * bright
    glow = array(Image.fromarray(light.astype(np.uint8)).filter(ImageFilter.BoxBlur(6)))
    return canvas_of(array(small) * 0.16 + light + glow * 0.9)


STYLES: dict[str, Style] = {
    "outline": Style("an outline drawing of ", outline),
    "pencil": Style("a pencil drawing of ", pencil),
    "pixel": Style("pixel art of ", pixel),
    "watercolor": Style("a watercolor of ", watercolor),
    "neon": Style("a neon drawing of ", neon),
}
