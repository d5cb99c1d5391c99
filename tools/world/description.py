"""What a picture of the world shows, as data: it can be drawn any number of times, and told as a caption."""

from __future__ import annotations

import random
from dataclasses import dataclass

from PIL import Image, ImageDraw

from tools.world.canvas import CANVAS, PALETTE, Brush, jitter, with_article
from tools.world.creatures import monster
from tools.world.faces import Face
from tools.world.scenes import Background
from tools.world.styles import STYLES
from tools.world.things import THINGS

MONSTER = "monster"
KINDS = (*THINGS, MONSTER)
"""What an item can be; a monster looks different each time."""
PREFIXES = ("", "", "", "a photo of ", "a picture of ", "a drawing of ", "an image of ", "a rendering of ")
SIZES = {"small": 0.17, "": 0.26, "big": 0.37}
"""Radius of one item as a share of the side, by the caption's word; no word is the middle one."""
PLACES = {
    "at the left": (0.28, 0.5),
    "at the right": (0.72, 0.5),
    "at the top": (0.5, 0.28),
    "at the bottom": (0.5, 0.72),
    "in the middle": (0.5, 0.5),
}
"""Centre of one item as shares of the side, by the caption's phrase."""
UNTOLD_SPREAD = 0.1
"""How far from the middle a subject's centre may be that no word places, as a share of the side. As in photographs
it is near the middle; when it could be anywhere, the base drew it half as well as where it was told to be."""
FACE_SIZE, PAIR_SIZE = 0.33, 0.21
GROUPS = ("item", "face", "pair", "style")
"""One item, a face or two items, each drawn flat, and anything in a drawing style."""


@dataclass(frozen=True)
class Item:
    """A thing, or a monster, in a colour of the palette."""

    kind: str
    color: str

    def caption(self, rng: random.Random | None = None, size: str = "") -> str:
        """``a big red star``; with ``rng`` the colour is left out now and then."""
        color = self.color if rng is None or rng.random() < 0.93 else ""
        return with_article(" ".join(word for word in (size, color, self.kind) if word))

    def draw(self, picture: Image.Image, brush: Brush, rng: random.Random) -> None:
        if self.kind == MONSTER:
            monster(rng, brush.fill).draw(picture, brush)
        else:
            THINGS[self.kind](brush)


@dataclass(frozen=True)
class Description:
    """One picture's content: a face, an item, or two items, the first to the left of the second.

    ``size`` and ``place`` are keys of ``SIZES`` and ``PLACES``, of one subject only;
    an empty place is near the middle. ``style`` is a key of ``STYLES``; empty is flat.
    """

    subjects: tuple[Item | Face, ...]
    background: Background
    size: str = ""
    place: str = ""
    style: str = ""

    @property
    def group(self) -> str:
        """Which of ``GROUPS`` it belongs to."""
        if self.style:
            return "style"
        if len(self.subjects) == 2:
            return "pair"
        return "item" if isinstance(self.subjects[0], Item) else "face"

    def caption(self, rng: random.Random | None = None) -> str:
        """What a person would say of it: parts left out now and then, or all told without ``rng``."""
        told = [s.caption(rng, self.size) if isinstance(s, Item) else s.caption(rng) for s in self.subjects]
        scene = self.background.phrase if rng is None or rng.random() < 0.9 else ""
        prefix = "" if rng is None else rng.choice(PREFIXES)
        if self.style:
            prefix = STYLES[self.style].prefix
        return prefix + " ".join(part for part in (" and ".join(told), self.place, scene) if part)

    def draw(self, rng: random.Random) -> Image.Image:
        """A canvas that shows it; what is not described is drawn from ``rng``."""
        picture = self.background.draw(rng)
        for subject, (x, y, radius) in zip(self.subjects, self._spots(rng), strict=True):
            x, y = (min(max(v, radius * 0.95), 1 - radius * 0.95) * CANVAS for v in (x, y))
            fill = jitter(PALETTE[subject.color if isinstance(subject, Item) else "white"], rng)
            # A thing always looks the same way: half of them mirrored, a small UNet draws neither of the two.
            mirrored = rng.random() < 0.5 and not (isinstance(subject, Item) and subject.kind in THINGS)
            brush = Brush(ImageDraw.Draw(picture), x, y, radius * CANVAS, fill, mirrored)
            if isinstance(subject, Item):
                subject.draw(picture, brush, rng)
            else:
                subject.draw(brush)
        return STYLES[self.style].apply(picture, rng) if self.style else picture

    def _spots(self, rng: random.Random) -> list[tuple[float, float, float]]:
        """Centre and radius of each subject, as shares of the side."""
        if len(self.subjects) == 2:
            return [(x + rng.uniform(-0.03, 0.03), rng.uniform(0.38, 0.62), PAIR_SIZE * rng.uniform(0.9, 1.1))
                    for x in (0.26, 0.74)]  # fmt: skip
        size = SIZES[self.size] if isinstance(self.subjects[0], Item) else FACE_SIZE
        radius = size * rng.uniform(0.9, 1.1)
        centre, spread = (PLACES[self.place], 0.05) if self.place else ((0.5, 0.5), UNTOLD_SPREAD)
        x, y = (v + rng.uniform(-spread, spread) for v in centre)
        return [(x, y, radius)]
