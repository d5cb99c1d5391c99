"""Backgrounds: a plain or patterned colour, or a place."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass

from PIL import Image, ImageDraw

from tools.synthetic.canvas import CANVAS, PALETTE, Color, jitter, mix, with_article

PATTERNS = ("plain", "plain", "plain", "striped", "dotted", "checked", "gradient")
HIDDEN = {"forest": "green", "meadow": "green", "night": "black", "snow": "white"}
"""The colour that a place hides."""


@dataclass(frozen=True)
class Background:
    """A pattern of ``color``, or without a colour the place ``kind``, a key of ``SCENES``."""

    kind: str
    color: str | None

    @property
    def phrase(self) -> str:
        """The end of a caption that names this background."""
        if self.color is None:
            return SCENES[self.kind][0]
        pattern = self.color if self.kind == "plain" else f"{self.kind} {self.color}"
        return f"on {with_article(pattern)} background"

    def hides(self, color: str) -> bool:
        """Return True where a thing of this colour would not be visible."""
        return color == (self.color or HIDDEN.get(self.kind))

    @staticmethod
    def all() -> list[Background]:
        """Return all backgrounds."""
        patterns = [Background(kind, color) for kind in dict.fromkeys(PATTERNS) for color in PALETTE]
        return patterns + [Background(name, None) for name in SCENES]

    @staticmethod
    def sample(rng: random.Random) -> Background:
        if rng.random() < 0.25:
            return Background(rng.choice(sorted(SCENES)), None)
        return Background(rng.choice(PATTERNS), rng.choice(sorted(PALETTE)))

    def draw(self, rng: random.Random) -> Image.Image:
        """Draw a canvas with this background."""
        if self.color is None:
            picture = Image.new("RGB", (CANVAS, CANVAS))
            SCENES[self.kind][1](ImageDraw.Draw(picture), rng)
            return picture
        color = jitter(PALETTE[self.color], rng, 6)
        picture = Image.new("RGB", (CANVAS, CANVAS), color)
        draw = ImageDraw.Draw(picture)
        if self.kind == "gradient":
            _bands(draw, color, _gradient_end(color), 0, CANVAS)
        else:
            _draw_pattern(draw, self.kind, _pattern_color(color), rng)
        return picture


def _pattern_color(color: Color) -> Color:
    """Return the pattern's second shade: darker, or lighter on a dark colour."""
    return mix(color, (255, 255, 255), 0.35) if sum(color) < 180 else mix(color, (0, 0, 0), 0.25)


def _gradient_end(color: Color) -> Color:
    """Return the last colour of a gradient that starts with ``color``."""
    return mix(color, (255, 255, 255), 0.75) if sum(color) < 360 else mix(color, (0, 0, 0), 0.7)


def _draw_pattern(draw: ImageDraw.ImageDraw, kind: str, color: Color, rng: random.Random) -> None:
    step = rng.choice((32, 40, 48))
    half = step // 2
    cells = range(0, CANVAS + step, step)
    if kind == "striped":
        for x in cells:
            draw.rectangle((x, 0, x + half - 1, CANVAS), fill=color)
    elif kind == "dotted":
        for i, y in enumerate(cells):
            for x in cells:
                cx = x + (half if i % 2 else 0)
                draw.ellipse((cx - step / 4, y - step / 4, cx + step / 4, y + step / 4), fill=color)
    elif kind == "checked":
        for i, y in enumerate(cells):
            for j, x in enumerate(cells):
                if (i + j) % 2:
                    draw.rectangle((x, y, x + step - 1, y + step - 1), fill=color)


def _bands(draw: ImageDraw.ImageDraw, top: Color, bottom: Color, start: int, end: int) -> None:
    """Draw a vertical gradient between the rows ``start`` and ``end``."""
    for y in range(start, end, 4):
        draw.rectangle((0, y, CANVAS, y + 3), fill=mix(top, bottom, (y - start) / max(1, end - start)))


def beach(draw: ImageDraw.ImageDraw, rng: random.Random) -> None:
    _bands(draw, (120, 200, 250), (205, 235, 252), 0, 110)
    _bands(draw, (40, 120, 200), (80, 170, 220), 110, 160)
    _bands(draw, (245, 220, 160), (230, 195, 125), 160, CANVAS)
    x, y = rng.randint(25, 230), rng.randint(22, 50)
    draw.ellipse((x - 20, y - 20, x + 20, y + 20), fill=(255, 225, 90))


def forest(draw: ImageDraw.ImageDraw, rng: random.Random) -> None:
    _bands(draw, (170, 215, 200), (200, 225, 190), 0, 140)
    _bands(draw, (95, 150, 70), (60, 110, 50), 140, CANVAS)
    for x in range(-10, CANVAS + 30, 38):
        dx, top = x + rng.randint(-8, 8), rng.randint(10, 60)
        draw.rectangle((dx - 4, 120, dx + 4, 165), fill=(95, 65, 40))
        draw.polygon([(dx, top), (dx + 26, 145), (dx - 26, 145)], fill=jitter((35, 105, 60), rng, 12))


def night(draw: ImageDraw.ImageDraw, rng: random.Random) -> None:
    _bands(draw, (12, 15, 50), (40, 45, 100), 0, 190)
    _bands(draw, (35, 40, 60), (22, 26, 42), 190, CANVAS)
    for _ in range(18):
        x, y, r = rng.randint(4, 252), rng.randint(4, 170), rng.choice((2, 3, 3, 4))
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(250, 245, 200))
    x, y = rng.randint(30, 225), rng.randint(28, 60)
    draw.ellipse((x - 20, y - 20, x + 20, y + 20), fill=(245, 240, 215))


def snow(draw: ImageDraw.ImageDraw, rng: random.Random) -> None:
    _bands(draw, (165, 185, 215), (215, 225, 240), 0, 160)
    _bands(draw, (250, 252, 255), (225, 232, 245), 160, CANVAS)
    for _ in range(26):
        x, y, r = rng.randint(0, CANVAS), rng.randint(0, CANVAS), rng.choice((3, 4, 5))
        draw.ellipse((x - r, y - r, x + r, y + r), fill=(255, 255, 255))


def meadow(draw: ImageDraw.ImageDraw, rng: random.Random) -> None:
    _bands(draw, (110, 185, 245), (190, 225, 250), 0, 130)
    _bands(draw, (120, 200, 80), (80, 160, 60), 130, CANVAS)
    for _ in range(14):
        x, y = rng.randint(4, 252), rng.randint(150, 250)
        color = rng.choice(((250, 240, 120), (250, 250, 250), (240, 130, 170)))
        draw.ellipse((x - 5, y - 5, x + 5, y + 5), fill=color)
    x = rng.randint(20, 200)
    for dx, r in ((0, 14), (18, 18), (38, 13)):
        draw.ellipse((x + dx - r, 40 - r, x + dx + r, 40 + r), fill=(252, 252, 255))


def room(draw: ImageDraw.ImageDraw, rng: random.Random) -> None:
    wall = rng.choice(((240, 220, 185), (225, 205, 205), (205, 215, 200)))
    draw.rectangle((0, 0, CANVAS, 170), fill=wall)
    draw.rectangle((0, 164, CANVAS, 174), fill=(250, 248, 240))
    _bands(draw, (165, 110, 65), (135, 85, 50), 174, CANVAS)
    for x in range(-200, CANVAS + 200, 50):
        draw.line((128 + (x - 128) * 0.6, 174, x, CANVAS), fill=(105, 65, 38), width=4)
    left = rng.choice((16, 160))
    draw.rectangle((left, 24, left + 80, 118), fill=(250, 250, 245))
    for x in (left + 8, left + 44):
        for y in (32, 76):
            draw.rectangle((x, y, x + 28, y + 34), fill=(150, 205, 240))


SCENES: dict[str, tuple[str, Callable[[ImageDraw.ImageDraw, random.Random], None]]] = {
    "beach": ("on the beach", beach),
    "forest": ("in the forest", forest),
    "night": ("at night", night),
    "snow": ("in the snow", snow),
    "meadow": ("in a meadow", meadow),
    "room": ("in a room", room),
}
"""Phrase of the caption and drawing function of each place."""
