"""Pictures of the world with their captions: a grammar whose parts are optional."""

from __future__ import annotations

import random
import zlib
from dataclasses import dataclass

from PIL import Image, ImageDraw

from tools.world.canvas import CANVAS, PALETTE, Brush, jitter
from tools.world.creatures import monster
from tools.world.faces import Face
from tools.world.scenes import Background
from tools.world.things import THINGS

PREFIXES = ("", "", "", "a photo of ", "a picture of ", "a drawing of ", "an image of ", "a rendering of ")
SIZES = {"small": 0.17, "": 0.26, "big": 0.37}
PLACES = {
    "at the left": (0.28, 0.5),
    "at the right": (0.72, 0.5),
    "at the top": (0.5, 0.28),
    "at the bottom": (0.5, 0.72),
    "in the middle": (0.5, 0.5),
}


@dataclass(frozen=True)
class Sample:
    """One picture of the world: its canvas, and what a person would say of it."""

    picture: Image.Image
    caption: str


def held_out(thing: str, color: str, background: Background) -> bool:
    """Whether this combination is kept from training (one in twenty), for judging."""
    return zlib.crc32(f"{thing} {color} {background.phrase}".encode()) % 20 == 0


def sample(rng: random.Random) -> Sample:
    """One picture of the world that training may see."""
    if rng.random() < 0.25:
        return _sample_face(rng)
    while True:
        thing = rng.choice(("monster", "monster", *THINGS))
        color, background = rng.choice(sorted(PALETTE)), Background.sample(rng)
        if color != background.color and not held_out(thing, color, background):
            return draw_thing(rng, thing, color, background)


def draw_thing(rng: random.Random, thing: str, color: str, background: Background) -> Sample:
    """``thing`` in ``color`` before ``background``; size and place are drawn from ``rng``."""
    size, place = rng.choice(("", "", "", *SIZES)), rng.choice(("", "", *PLACES))
    picture = background.draw(rng)
    brush = _brush(rng, picture, SIZES[size], place, color)
    if thing == "monster":
        monster(rng, brush.fill).draw(picture, brush)
    else:
        THINGS[thing](brush)
    words = [w for w in (size, color if rng.random() < 0.93 else "", thing) if w]
    return Sample(picture, _sentence(rng, f"a {' '.join(words)}", place, background))


def _sample_face(rng: random.Random) -> Sample:
    face, background = Face.sample(rng), Background.sample(rng)
    place = rng.choice(("", "", "", "", *PLACES))
    picture = background.draw(rng)
    face.draw(_brush(rng, picture, 0.33, place, "white"))
    return Sample(picture, _sentence(rng, face.caption(rng), place, background))


def _brush(rng: random.Random, picture: Image.Image, size: float, place: str, color: str) -> Brush:
    """A brush of about ``size`` (share of the side) at ``place``, or anywhere that shows the thing whole."""
    radius = size * rng.uniform(0.9, 1.1)
    if place:
        x, y = (v + rng.uniform(-0.05, 0.05) for v in PLACES[place])
    else:
        x, y = (rng.uniform(radius * 0.95, 1 - radius * 0.95) for _ in range(2))
    x, y = (min(max(v, radius * 0.9), 1 - radius * 0.9) for v in (x, y))
    fill = jitter(PALETTE[color], rng)
    return Brush(ImageDraw.Draw(picture), x * CANVAS, y * CANVAS, radius * CANVAS, fill, rng.random() < 0.5)


def _sentence(rng: random.Random, noun: str, place: str, background: Background) -> str:
    parts = [noun, place, background.phrase if rng.random() < 0.9 else ""]
    return rng.choice(PREFIXES) + " ".join(p for p in parts if p)
