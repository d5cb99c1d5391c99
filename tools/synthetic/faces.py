"""Cartoon faces, whose skin, hair, expression, glasses, beard and hat a caption can name."""

from __future__ import annotations

import random
from dataclasses import dataclass

from tools.synthetic.canvas import BLACK, PALETTE, WHITE, Brush, Color, mix, with_article

SKINS: dict[str, Color] = {
    "pale": (252, 224, 200),
    "tan": (226, 172, 125),
    "brown": (160, 105, 65),
    "dark": (92, 58, 38),
}
HAIRS: dict[str, Color] = {
    "black": (30, 26, 26),
    "brown": (105, 65, 35),
    "blond": (240, 210, 110),
    "red": (200, 75, 30),
    "gray": (160, 160, 165),
}
HAIRSTYLES = ("short", "long", "curly", "no")
EXPRESSIONS = {"neutral": "", "smile": "a smile", "frown": "a frown", "open": "an open mouth"}
"""Phrase of the caption by the expression of the mouth."""


@dataclass(frozen=True)
class CartoonFace:
    """The traits of one face; ``style`` is one of ``HAIRSTYLES``, ``hat`` a colour of the palette."""

    skin: str
    hair: str
    style: str
    glasses: bool
    beard: bool
    expression: str
    hat: str | None

    @staticmethod
    def sample(rng: random.Random) -> CartoonFace:
        return CartoonFace(
            skin=rng.choice(sorted(SKINS)),
            hair=rng.choice(sorted(HAIRS)),
            style=rng.choice(HAIRSTYLES),
            glasses=rng.random() < 0.3,
            beard=rng.random() < 0.2,
            expression=rng.choice(("neutral", "smile", "smile", "frown", "open")),
            hat=rng.choice(sorted(PALETTE)) if rng.random() < 0.2 else None,
        )

    def caption(self, rng: random.Random | None = None) -> str:
        """Return a phrase that names the traits: with ``rng`` some are omitted at random, without it all are named."""
        head = f"a person with {self.skin} skin"
        if rng is not None:
            head = rng.choice(("a person", "a face", "a person", head))
        traits = ["no hair" if self.style == "no" else f"{self.style} {self.hair} hair"]
        traits += ["glasses"] * self.glasses + [f"a {self.hair} beard"] * self.beard
        traits += [EXPRESSIONS[self.expression]] * (self.expression != "neutral")
        traits += [with_article(f"{self.hat} hat")] if self.hat else []
        named = [trait for trait in traits if rng is None or rng.random() < 0.85]
        if not named:
            return head
        joiner = " and " if " with " in head else " with "
        return head + joiner + " and ".join(named)

    def draw(self, b: Brush) -> None:
        skin, hair = SKINS[self.skin], HAIRS[self.hair]
        self._draw_hair_behind(b, hair)
        b.ellipse(0, 0.1, 0.66, 0.78, skin)
        self._draw_hair_before(b, hair)
        if self.beard:
            b.dome(0, 0.42, 0.4, 0.16, hair)
            b.ellipse(0, 0.62, 0.44, 0.27, hair)
        self._draw_features(b, mix(skin, (0, 0, 0), 0.25))
        if self.hat:
            color = PALETTE[self.hat]
            b.box(0, -0.45, 0.92, 0.09, mix(color, (0, 0, 0), 0.25))
            b.box(0, -0.74, 0.58, 0.28, color)

    def _draw_hair_behind(self, b: Brush, hair: Color) -> None:
        if self.style == "long":
            b.ellipse(0, -0.05, 0.85, 0.85, hair)
            b.box(0, 0.45, 0.85, 0.5, hair)
        elif self.style == "curly":
            for x, y in ((-0.6, -0.35), (-0.35, -0.65), (0, -0.75), (0.35, -0.65), (0.6, -0.35), (-0.7, 0), (0.7, 0)):
                b.ellipse(x, y, 0.29, 0.29, hair)

    def _draw_hair_before(self, b: Brush, hair: Color) -> None:
        if self.style != "no":
            b.dome(0, -0.1, 0.7, 0.72, hair)
            b.dome(0, 0.0, 0.5, 0.3, SKINS[self.skin])

    def _draw_features(self, b: Brush, shade: Color) -> None:
        for x in (-0.26, 0.26):
            b.ellipse(x, 0.06, 0.12, 0.11, WHITE)
            b.ellipse(x, 0.07, 0.065, 0.075, BLACK)
            if self.glasses:
                b.arc((x, 0.06, 0.22, 0.2), 0, 360, 0.06, BLACK)
        if self.glasses:
            b.line([(-0.06, 0.05), (0.06, 0.05)], 0.06, BLACK)
        b.ellipse(0, 0.28, 0.07, 0.09, shade)
        draw_mouth(b, self.expression)


def draw_mouth(b: Brush, expression: str) -> None:
    """Draw the mouth of ``expression``, a key of ``EXPRESSIONS``."""
    lips, inside = (190, 50, 60), (95, 20, 30)
    if expression == "smile":
        b.dome_down(0, 0.46, 0.3, 0.24, lips)
    elif expression == "frown":
        b.arc((0, 0.7, 0.28, 0.22), 190, 350, 0.09, lips)
    elif expression == "open":
        b.ellipse(0, 0.6, 0.18, 0.2, lips)
        b.ellipse(0, 0.61, 0.11, 0.13, inside)
    else:
        b.line([(-0.2, 0.56), (0.2, 0.56)], 0.07, (150, 60, 60))
