"""Faces with features that no caption of the synthetic dataset names, to train a LoRA on."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tools.synthetic.canvas import BLACK, PALETTE, WHITE, Brush, Color, mix
from tools.synthetic.faces import SKINS, draw_mouth

SHAPES = {"round": (0.72, 0.72), "long": (0.54, 0.84), "square": (0.64, 0.74), "pointed": (0.68, 0.8)}
"""Half width and half height of the head."""
CUTS = ("mohawk", "pigtails", "bun", "spikes", "cloud", "bob")
NOSES = ("ball", "wedge", "long")
MARKS = ("freckles", "blush", "mole", "scar", "none")
DYES = ("green", "cyan", "blue", "purple", "pink", "orange", "yellow", "white")
IRISES = ("green", "cyan", "blue", "purple", "orange", "red")


@dataclass(frozen=True)
class Portrait:
    """The appearance of one person, the same in every picture but for the expression."""

    shape: str
    cut: str
    nose: str
    mark: str
    skin: Color
    hair: Color
    iris: Color
    earring: Color | None

    @staticmethod
    def sample(rng: random.Random) -> Portrait:
        one, other = (SKINS[name] for name in rng.sample(sorted(SKINS), 2))
        return Portrait(
            shape=rng.choice(sorted(SHAPES)),
            cut=rng.choice(CUTS),
            nose=rng.choice(NOSES),
            mark=rng.choice(MARKS),
            skin=mix(one, other, rng.uniform(0, 0.5)),
            hair=PALETTE[rng.choice(DYES)],
            iris=PALETTE[rng.choice(IRISES)],
            earring=PALETTE[rng.choice(DYES)] if rng.random() < 0.6 else None,
        )

    @property
    def shade(self) -> Color:
        return mix(self.skin, BLACK, 0.3)

    def draw(self, b: Brush, expression: str) -> None:
        """Draw the person with the mouth of ``expression``, a key of ``faces.EXPRESSIONS``."""
        self._draw_hair_behind(b)
        width, _ = SHAPES[self.shape]
        for side in (-1, 1):
            b.ellipse(side * width, 0.12, 0.13, 0.16, self.shade)
            if self.earring:
                b.ellipse(side * (width + 0.04), 0.38, 0.12, 0.14, self.earring)
        self._draw_head(b)
        self._draw_hair_before(b)
        self._draw_mark(b)
        self._draw_eyes(b)
        self._draw_nose(b)
        draw_mouth(b, expression)

    def _draw_head(self, b: Brush) -> None:
        width, height = SHAPES[self.shape]
        if self.shape == "square":
            b.ellipse(0, -0.2, width, 0.5, self.skin)
            b.box(0, 0.3, width, 0.5, self.skin)
        elif self.shape == "pointed":
            b.dome(0, 0.15, width, 0.8, self.skin)
            b.polygon([(-width, 0.14), (width, 0.14), (0.18, 0.95), (-0.18, 0.95)], self.skin)
        else:
            b.ellipse(0, 0.12, width, height, self.skin)

    def _draw_hair_behind(self, b: Brush) -> None:
        if self.cut == "pigtails":
            for side in (-1, 1):
                b.ellipse(side * 0.78, -0.25, 0.24, 0.24, self.hair)
                b.polygon([(side * 0.7, -0.1), (side * 0.95, -0.2), (side * 0.88, 0.6)], self.hair)
        elif self.cut == "cloud":
            b.ellipse(0, -0.28, 0.92, 0.7, self.hair)
        elif self.cut == "bob":
            b.dome(0, 0.1, 0.88, 0.95, self.hair)
            b.box(0, 0.3, 0.88, 0.24, self.hair)
        elif self.cut == "bun":
            b.ellipse(0, -0.8, 0.28, 0.22, self.hair)

    def _draw_hair_before(self, b: Brush) -> None:
        width, _ = SHAPES[self.shape]
        if self.cut == "mohawk":
            b.polygon([(-0.2, -0.3), (-0.26, -0.98), (0.26, -0.98), (0.2, -0.3)], self.hair)
        elif self.cut == "spikes":
            tips = [(x, -0.98 + 0.5 * abs(x)) for x in (-0.72, -0.36, 0, 0.36, 0.72)]
            roots = [(x, -0.5) for x in (-0.54, -0.18, 0.18, 0.54)]
            zigzag = [point for pair in zip(tips, [*roots, (0.6, -0.2)], strict=True) for point in pair]
            b.polygon([(-0.6, -0.2), *zigzag], self.hair)
        elif self.cut == "bob":
            b.dome(0, -0.2, width * 1.02, 0.56, self.hair)
        else:
            b.dome(0, -0.24, width, 0.5, self.hair)

    def _draw_mark(self, b: Brush) -> None:
        if self.mark == "freckles":
            for x in (-0.48, -0.32, 0.32, 0.48):
                b.ellipse(x, 0.3 + 0.12 * (abs(x) < 0.4), 0.05, 0.05, self.shade)
        elif self.mark == "blush":
            for x in (-0.4, 0.4):
                b.ellipse(x, 0.36, 0.15, 0.1, mix(self.skin, (235, 70, 80), 0.5))
        elif self.mark == "mole":
            b.ellipse(0.36, 0.48, 0.07, 0.07, BLACK)
        elif self.mark == "scar":
            b.line([(-0.44, 0.24), (-0.26, 0.56)], 0.07, mix(self.skin, (200, 40, 60), 0.6))

    def _draw_eyes(self, b: Brush) -> None:
        for x in (-0.27, 0.27):
            b.ellipse(x, 0.04, 0.18, 0.15, WHITE)
            b.ellipse(x, 0.04, 0.12, 0.13, self.iris)
            b.ellipse(x, 0.04, 0.05, 0.06, BLACK)
            b.line([(x - 0.17, -0.18), (x + 0.17, -0.18)], 0.07, mix(self.hair, BLACK, 0.35))

    def _draw_nose(self, b: Brush) -> None:
        if self.nose == "ball":
            b.ellipse(0, 0.28, 0.13, 0.11, self.shade)
        elif self.nose == "wedge":
            b.polygon([(0, 0.12), (0.15, 0.38), (-0.1, 0.38)], self.shade)
        else:
            b.line([(0, 0.06), (0, 0.36)], 0.11, self.shade)


def portrait(seed: int) -> Portrait:
    """Return the person of ``seed``."""
    return Portrait.sample(random.Random(f"portrait {seed}"))
