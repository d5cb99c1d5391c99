"""The content of a synthetic picture as data, which can be drawn any number of times and captioned."""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

from tools.synthetic.canvas import CANVAS, PALETTE, Brush, jitter, with_article
from tools.synthetic.creatures import monster
from tools.synthetic.faces import CartoonFace
from tools.synthetic.scenes import Background
from tools.synthetic.styles import STYLES
from tools.synthetic.things import THINGS

MONSTER = "monster"
KINDS = (*THINGS, MONSTER)
"""The kinds of items; a monster looks different each time."""
PREFIXES = ("", "", "", "a photo of ", "a picture of ", "a drawing of ", "an image of ", "a rendering of ")
SIZES = {"small": 0.17, "": 0.26, "big": 0.37}
"""Radius of a single item as a share of the side, by the caption's word; no word means medium."""
PLACES = {
    "at the left": (0.28, 0.5),
    "at the right": (0.72, 0.5),
    "at the top": (0.5, 0.28),
    "at the bottom": (0.5, 0.72),
    "in the middle": (0.5, 0.5),
}
"""Centre of a single item as shares of the side, by the caption's phrase."""
UNPLACED_SPREAD = 0.1
"""Largest distance, as a share of the side and along each axis, from the middle to the centre of a subject whose
caption names no place. Photographs have their subject near the middle; when it could be anywhere, the base drew it
half as well as with a place in the prompt."""
FACE_SIZE, PAIR_SIZE = 0.33, 0.21
GROUPS = ("item", "face", "pair", "style")
"""One item, a face or two items, each drawn flat, and anything in a drawing style."""


@dataclass(frozen=True)
class Item:
    """A thing, or a monster, in a colour of the palette."""

    kind: str
    color: str

    def caption(self, rng: random.Random | None = None, size: str = "") -> str:
        """Return ``a big red star``; with ``rng``, the colour is omitted at random."""
        color = self.color if rng is None or rng.random() < 0.93 else ""
        return with_article(" ".join(word for word in (size, color, self.kind) if word))

    def draw(self, picture: Image.Image, brush: Brush, rng: random.Random) -> None:
        if self.kind == MONSTER:
            monster(rng, brush.fill).draw(picture, brush)
        else:
            THINGS[self.kind](brush)


@dataclass(frozen=True)
class Description:
    """The content of one picture: a face, an item, or two items, the first to the left of the second.

    ``size`` and ``place`` are keys of ``SIZES`` and ``PLACES``, for a single subject only;
    an empty place means near the middle. ``style`` is a key of ``STYLES``; empty means flat colours.
    """

    subjects: tuple[Item | CartoonFace, ...]
    background: Background
    size: str = ""
    place: str = ""
    style: str = ""

    @property
    def group(self) -> str:
        """The one of ``GROUPS`` that this description belongs to."""
        if self.style:
            return "style"
        if len(self.subjects) == 2:
            return "pair"
        return "item" if isinstance(self.subjects[0], Item) else "face"

    def caption(self, rng: random.Random | None = None) -> str:
        """Return the caption: with ``rng`` parts are omitted at random, without it everything is named."""
        subjects = [s.caption(rng, self.size) if isinstance(s, Item) else s.caption(rng) for s in self.subjects]
        scene = self.background.phrase if rng is None or rng.random() < 0.9 else ""
        prefix = "" if rng is None else rng.choice(PREFIXES)
        if self.style:
            prefix = STYLES[self.style].prefix
        return prefix + " ".join(part for part in (" and ".join(subjects), self.place, scene) if part)

    def draw(self, rng: random.Random) -> Image.Image:
        """Draw a canvas of this content; whatever the description leaves open comes from ``rng``."""
        picture = self.background.draw(rng)
        for subject, (x, y, radius) in zip(self.subjects, self._spots(rng), strict=True):
            x, y = (min(max(v, radius * 0.95), 1 - radius * 0.95) * CANVAS for v in (x, y))
            fill = jitter(PALETTE[subject.color if isinstance(subject, Item) else "white"], rng)
            # Things are never mirrored: with half of them mirrored, a small UNet draws neither orientation well.
            mirrored = rng.random() < 0.5 and not (isinstance(subject, Item) and subject.kind in THINGS)
            brush = Brush(ImageDraw.Draw(picture), x, y, radius * CANVAS, fill, mirrored)
            if isinstance(subject, Item):
                subject.draw(picture, brush, rng)
            else:
                subject.draw(brush)
        return STYLES[self.style].apply(picture, rng) if self.style else picture

    def _spots(self, rng: random.Random) -> list[tuple[float, float, float]]:
        """Return the centre and radius ``(x, y, radius)`` of each subject, as shares of the side."""
        if len(self.subjects) == 2:
            return [(x + rng.uniform(-0.03, 0.03), rng.uniform(0.38, 0.62), PAIR_SIZE * rng.uniform(0.9, 1.1))
                    for x in (0.26, 0.74)]  # fmt: skip
        size = SIZES[self.size] if isinstance(self.subjects[0], Item) else FACE_SIZE
        radius = size * rng.uniform(0.9, 1.1)
        centre, spread = (PLACES[self.place], 0.05) if self.place else ((0.5, 0.5), UNPLACED_SPREAD)
        x, y = (v + rng.uniform(-spread, spread) for v in centre)
        return [(x, y, radius)]
