"""Creatures: a body with a pattern, eyes, head parts and feet.

One-coloured creatures are the "monsters" of the synthetic dataset, two-coloured ones subjects that it never contains.
"""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

from tools.synthetic.canvas import BLACK, PALETTE, WHITE, Brush, Color, mix

BODIES = ("box", "ball", "egg", "bell", "drop")
PATTERNS = ("plain", "striped", "spotted", "banded", "halved")
HEADS = ("aerial", "horns", "ears", "tuft", "bare")
FEET = ("legs", "stumps", "none")
HELD_OUT_SUBJECTS = 1_000_000
"""Subjects with seeds from this one on are held out for evaluation; those below are for tuning and demonstration."""


@dataclass(frozen=True)
class Creature:
    """The appearance of a creature.

    ``color`` is that of its body, ``second`` that of its pattern, ``trim`` that of its head parts and feet.
    """

    body: str
    pattern: str
    head: str
    feet: str
    eyes: int
    mouth: bool
    color: Color
    second: Color
    trim: Color

    def draw(self, picture: Image.Image, brush: Brush) -> None:
        """Draw on ``picture`` at the position of ``brush``."""
        self._draw_head(brush)
        self._draw_feet(brush)
        mask = Image.new("RGB", picture.size)
        _body(Brush(ImageDraw.Draw(mask), brush.x, brush.y, brush.radius, WHITE, brush.mirrored), self.body)
        skin = Image.new("RGB", picture.size, self.color)
        painter = Brush(ImageDraw.Draw(skin), brush.x, brush.y, brush.radius, self.second, brush.mirrored)
        _pattern(painter, self.pattern)
        picture.paste(skin, mask=mask.convert("L").point(lambda v: 255 if v else 0))
        self._draw_face(brush)

    def _draw_head(self, b: Brush) -> None:
        top = -0.5
        if self.head == "aerial":
            b.line([(0, top), (0, -0.88)], 0.07, BLACK)
            b.ellipse(0, -0.92, 0.13, 0.13, self.trim)
        elif self.head == "horns":
            for side in (-1, 1):
                b.polygon([(side * 0.15, top), (side * 0.5, top + 0.15), (side * 0.55, -0.98)], self.trim)
        elif self.head == "ears":
            for side in (-1, 1):
                b.ellipse(side * 0.42, -0.62, 0.22, 0.26, self.trim)
        elif self.head == "tuft":
            for x in (-0.25, 0, 0.25):
                b.line([(x * 0.5, top), (x * 1.4, -0.95)], 0.1, self.trim)

    def _draw_feet(self, b: Brush) -> None:
        for side in (-1, 1):
            if self.feet == "legs":
                b.line([(side * 0.28, 0.5), (side * 0.28, 0.92)], 0.1, self.trim)
                b.ellipse(side * 0.34, 0.93, 0.16, 0.07, self.trim)
            elif self.feet == "stumps":
                b.ellipse(side * 0.34, 0.74, 0.2, 0.16, self.trim)

    def _draw_face(self, b: Brush) -> None:
        spread = {1: (0.0,), 2: (-0.25, 0.25), 3: (-0.36, 0.0, 0.36)}[self.eyes]
        size = 0.24 if self.eyes == 1 else 0.17
        for x in spread:
            b.ellipse(x, -0.1, size, size, WHITE)
            b.ellipse(x, -0.1, size * 0.5, size * 0.5, BLACK)
        if self.mouth:
            b.arc((0, 0.22, 0.2, 0.14), 10, 170, 0.07, BLACK)


def _body(b: Brush, kind: str) -> None:
    if kind == "box":
        b.box(0, 0.07, 0.62, 0.62)
    elif kind == "ball":
        b.ellipse(0, 0.07, 0.68, 0.68)
    elif kind == "egg":
        b.ellipse(0, 0.05, 0.52, 0.72)
    elif kind == "bell":
        b.ellipse(0, 0.05, 0.6, 0.62)
        b.polygon([(-0.6, 0.05), (0.6, 0.05), (0.72, 0.7), (-0.72, 0.7)])
    else:
        b.ellipse(0, 0.2, 0.6, 0.54)
        b.polygon([(0, -0.72), (0.52, 0.05), (-0.52, 0.05)])


def _pattern(b: Brush, kind: str) -> None:
    if kind == "striped":
        for i in range(-3, 4, 2):
            b.box(0, 0.22 * i, 1.0, 0.11)
    elif kind == "banded":
        for i in range(-3, 4, 2):
            b.box(0.24 * i, 0, 0.12, 1.0)
    elif kind == "halved":
        b.box(0, 0.55, 1.0, 0.5)
    elif kind == "spotted":
        for x, y in ((-0.45, -0.4), (0.05, -0.45), (0.5, -0.3), (-0.5, 0.15), (0.5, 0.2), (-0.2, 0.45), (0.25, 0.5)):
            b.ellipse(x, y, 0.12, 0.12)


def monster(rng: random.Random, color: Color) -> Creature:
    """Return a random creature of the synthetic dataset: of one colour, its pattern a shade of it."""
    shade = mix(color, rng.choice((WHITE, BLACK)), 0.35)
    return Creature(
        body=rng.choice(BODIES),
        pattern=rng.choice(PATTERNS),
        head=rng.choice(HEADS),
        feet=rng.choice(FEET),
        eyes=rng.choice((1, 2, 2, 3)),
        mouth=rng.random() < 0.5,
        color=color,
        second=shade,
        trim=rng.choice((shade, color, BLACK)),
    )


def subject(seed: int) -> Creature:
    """Return the subject of ``seed``: two-coloured, so that no caption of the synthetic dataset describes it."""
    rng = random.Random(f"subject {seed}")
    color, second, trim = rng.sample(sorted(PALETTE), 3)
    return Creature(
        body=rng.choice(BODIES),
        pattern=rng.choice(PATTERNS[1:]),
        head=rng.choice(HEADS[:-1]),
        feet=rng.choice(FEET),
        eyes=rng.choice((1, 2, 2, 3)),
        mouth=rng.random() < 0.5,
        color=PALETTE[color],
        second=PALETTE[second],
        trim=PALETTE[trim],
    )


def draw_at_random(creature: Creature, picture: Image.Image, rng: random.Random, scale: float = 0.3) -> None:
    """Draw ``creature`` whole at a random position; ``scale`` is its mean radius as a share of the side."""
    creature.draw(picture, Brush.at_random(picture, rng, scale, creature.color))
