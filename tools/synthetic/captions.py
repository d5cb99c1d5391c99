"""Pictures of the synthetic dataset with their captions, and the prompts kept from it for judging."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from PIL import Image

from tools.synthetic.canvas import PALETTE
from tools.synthetic.description import KINDS, MONSTER, PLACES, SIZES, Description, Item
from tools.synthetic.faces import Face
from tools.synthetic.scenes import Background
from tools.synthetic.styles import STYLES
from tools.synthetic.things import THINGS


@dataclass(frozen=True)
class Sample:
    """One picture of the synthetic dataset: its canvas, what a person would say of it, and all that it shows."""

    picture: Image.Image
    caption: str
    description: Description


def held_out(item: Item, background: Background) -> bool:
    """Whether this combination is kept from training (one in twenty), for judging."""
    return zlib.crc32(f"{item.kind} {item.color} {background.phrase}".encode()) % 20 == 0


def sample(rng: random.Random) -> Sample:
    """One picture of the synthetic dataset that training may see."""
    description = describe(rng)
    return Sample(description.draw(rng), description.caption(rng), description)


def describe(rng: random.Random) -> Description:
    """What one picture that training may see shows."""
    background = Background.sample(rng)
    size, place, kind = "", rng.choice(("", "", "", "", *PLACES)), rng.random()
    subjects: tuple[Item | Face, ...]
    if kind < 0.2:
        subjects = (Face.sample(rng),)
    elif kind < 0.32:
        subjects, place = _pair(rng, background), ""
    else:
        subjects = (_item(rng, background),)
        size, place = rng.choice(("", "", "", *SIZES)), rng.choice(("", "", *PLACES))
    style = rng.choice(sorted(STYLES)) if rng.random() < 0.15 else ""
    return Description(subjects, background, size, place, style)


def held_out_prompts(count: int, seed: int) -> list[Description]:
    """``count`` different descriptions that training never sees, evenly over what an item can be.

    Colour and background are told in every caption (``Description.caption()``), the place in half of them.
    Raises ``ValueError`` where there are not as many (there are about 900).
    """
    most = len(KINDS) * min(map(_held_out_count, KINDS))
    if count > most:
        raise ValueError(f"count is {count}, and there are only {most} held-out prompts evenly over the things")
    return list(islice(_held_out_series(random.Random(f"held out {seed}")), count))


def _held_out_count(kind: str) -> int:
    items = [Item(kind, color) for color in PALETTE]
    return sum(_kept(item, background) for item in items for background in Background.every())


def _kept(item: Item, background: Background) -> bool:
    return held_out(item, background) and not background.hides(item.color)


def _held_out_series(rng: random.Random) -> Iterator[Description]:
    seen: set[tuple[Item, Background]] = set()
    while True:
        for kind in rng.sample(KINDS, len(KINDS)):
            background, item = Background.sample(rng), Item(kind, rng.choice(sorted(PALETTE)))
            while not _kept(item, background) or (item, background) in seen:
                background, item = Background.sample(rng), Item(kind, rng.choice(sorted(PALETTE)))
            seen.add((item, background))
            yield Description((item,), background, place=rng.choice(sorted(PLACES)) if rng.random() < 0.5 else "")


def _item(rng: random.Random, background: Background) -> Item:
    """An item that training may see before ``background``."""
    while True:
        item = Item(rng.choice((MONSTER, MONSTER, *THINGS)), rng.choice(sorted(PALETTE)))
        if not background.hides(item.color) and not held_out(item, background):
            return item


def _pair(rng: random.Random, background: Background) -> tuple[Item, Item]:
    """Two items, of two kinds and two colours."""
    first = _item(rng, background)
    while True:
        second = _item(rng, background)
        if first.kind != second.kind and first.color != second.color:
            return first, second
