"""The drawing surface: a 256-pixel canvas, and a brush whose coordinates are relative to one thing."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw

CANVAS = 256
"""Side of the canvas in pixels; pictures are downscaled from it, which antialiases them."""

Color = tuple[int, int, int]
Point = tuple[float, float]

WHITE: Color = (250, 250, 250)
BLACK: Color = (20, 20, 22)

PALETTE: dict[str, Color] = {
    "red": (222, 38, 38),
    "orange": (245, 140, 28),
    "yellow": (250, 215, 45),
    "green": (45, 160, 65),
    "cyan": (55, 200, 220),
    "blue": (45, 80, 220),
    "purple": (140, 55, 200),
    "pink": (245, 140, 190),
    "brown": (130, 80, 40),
    "black": (25, 25, 28),
    "gray": (135, 135, 138),
    "white": (245, 245, 245),
}


def with_article(noun: str) -> str:
    """Return ``noun`` with its article: a mug, an orange mug."""
    return f"{'an' if noun[0] in 'aeiou' else 'a'} {noun}"


def mix(a: Color, b: Color, share: float) -> Color:
    """Return the colour ``share`` of the way from ``a`` to ``b``."""
    red, green, blue = (round(x + (y - x) * share) for x, y in zip(a, b, strict=True))
    return red, green, blue


def jitter(color: Color, rng: random.Random, amount: int = 10) -> Color:
    """Return ``color`` shifted at random by at most ``amount`` in each channel."""
    red, green, blue = (max(0, min(255, c + rng.randint(-amount, amount))) for c in color)
    return red, green, blue


def downscale(canvas: Image.Image, size: int) -> Image.Image:
    """Downscale ``canvas`` to the finished picture of ``size`` × ``size`` pixels."""
    return canvas.resize((size, size), Image.Resampling.BOX)


@dataclass(frozen=True)
class Brush:
    """Draws in coordinates relative to one thing: (0, 0) is its centre, ±1 its extent, y points down."""

    draw: ImageDraw.ImageDraw
    x: float
    y: float
    radius: float
    fill: Color
    mirrored: bool = False

    @staticmethod
    def at_random(picture: Image.Image, rng: random.Random, scale: float, fill: Color) -> Brush:
        """Return a brush at a random position where its thing is wholly on ``picture``.

        ``scale`` is the mean radius as a share of the canvas's side.
        """
        radius = CANVAS * scale * rng.uniform(0.85, 1.15)
        room = max(0.0, CANVAS / 2 - radius)
        x, y = (CANVAS / 2 + rng.uniform(-room, room) * 0.8 for _ in range(2))
        return Brush(ImageDraw.Draw(picture), x, y, radius, fill, rng.random() < 0.5)

    @property
    def dark(self) -> Color:
        return mix(self.fill, (0, 0, 0), 0.4)

    @property
    def light(self) -> Color:
        return mix(self.fill, (255, 255, 255), 0.5)

    def at(self, point: Point) -> Point:
        """Return ``point`` in canvas pixels."""
        sign = -1.0 if self.mirrored else 1.0
        return self.x + sign * point[0] * self.radius, self.y + point[1] * self.radius

    def polygon(self, points: Sequence[Point], fill: Color | None = None) -> None:
        self.draw.polygon([self.at(p) for p in points], fill=fill or self.fill)

    def ellipse(self, x: float, y: float, rx: float, ry: float, fill: Color | None = None) -> None:
        self.draw.ellipse(self._box(x, y, rx, ry), fill=fill or self.fill)

    def box(self, x: float, y: float, rx: float, ry: float, fill: Color | None = None) -> None:
        self.draw.rectangle(self._box(x, y, rx, ry), fill=fill or self.fill)

    def dome(self, x: float, y: float, rx: float, ry: float, fill: Color | None = None) -> None:
        """Draw the upper half of an ellipse."""
        self.draw.pieslice(self._box(x, y, rx, ry), 180, 360, fill=fill or self.fill)

    def dome_down(self, x: float, y: float, rx: float, ry: float, fill: Color | None = None) -> None:
        """Draw the lower half of an ellipse."""
        self.draw.pieslice(self._box(x, y, rx, ry), 0, 180, fill=fill or self.fill)

    def arc(self, ellipse: tuple[float, float, float, float], start: float, end: float, width: float,
            fill: Color | None = None) -> None:  # fmt: skip
        """Draw a part of the outline of ``(x, y, rx, ry)``; angles in degrees, clockwise from the right."""
        if self.mirrored:
            start, end = 180 - end, 180 - start
        self.draw.arc(self._box(*ellipse), start, end, fill=fill or self.fill, width=self._width(width))

    def line(self, points: Sequence[Point], width: float, fill: Color | None = None) -> None:
        self.draw.line([self.at(p) for p in points], fill=fill or self.fill, width=self._width(width), joint="curve")

    def _width(self, width: float) -> int:
        return max(1, round(width * self.radius))

    def _box(self, x: float, y: float, rx: float, ry: float) -> tuple[float, float, float, float]:
        cx, cy = self.at((x, y))
        rx, ry = rx * self.radius, ry * self.radius
        return cx - rx, cy - ry, cx + rx, cy + ry
