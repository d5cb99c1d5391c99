"""Samples of the synthetic dataset with their captions, and descriptions held out of it for evaluation."""

from __future__ import annotations

import random
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from PIL import Image

from tools.synthetic.canvas import PALETTE
from tools.synthetic.description import KINDS, MONSTER, PLACES, SIZES, Description, Item
from tools.synthetic.faces import CartoonFace
from tools.synthetic.scenes import Background
from tools.synthetic.styles import STYLES
from tools.synthetic.things import THINGS


@dataclass(frozen=True)
class Sample:
    """One sample of the synthetic dataset: its canvas, its caption, and the description of its whole content."""

    picture: Image.Image
    caption: str
    description: Description


def held_out(item: Item, background: Background) -> bool:
    """Return True for the combinations (one in twenty) that are held out of training, for evaluation."""
    return zlib.crc32(f"{item.kind} {item.color} {background.phrase}".encode()) % 20 == 0


def sample(rng: random.Random) -> Sample:
    """Draw one sample of the training split."""
    description = describe(rng)
    return Sample(description.draw(rng), description.caption(rng), description)


def describe(rng: random.Random) -> Description:
    """Return a random description of the training split."""
    background = Background.sample(rng)
    size, place, kind = "", rng.choice(("", "", "", "", *PLACES)), rng.random()
    subjects: tuple[Item | CartoonFace, ...]
    if kind < 0.2:
        subjects = (CartoonFace.sample(rng),)
    elif kind < 0.32:
        subjects, place = _pair(rng, background), ""
    else:
        subjects = (_item(rng, background),)
        size, place = rng.choice(("", "", "", *SIZES)), rng.choice(("", "", *PLACES))
    style = rng.choice(sorted(STYLES)) if rng.random() < 0.15 else ""
    return Description(subjects, background, size, place, style)


def held_out_prompts(count: int, seed: int) -> list[Description]:
    """Return ``count`` different held-out descriptions of one item, evenly over the kinds of items.

    Every caption (``Description.caption()``) names colour and background, half of them the place too.

    Raises:
        ValueError: fewer than ``count`` are held out (there are about 900).
    """
    available = len(KINDS) * min(map(_held_out_count, KINDS))
    if count > available:
        raise ValueError(f"count is {count}, but there are only {available} held-out prompts evenly over the kinds")
    return list(islice(_held_out_series(random.Random(f"held out {seed}")), count))


def _held_out_count(kind: str) -> int:
    items = [Item(kind, color) for color in PALETTE]
    return sum(_is_usable(item, background) for item in items for background in Background.all())


def _is_usable(item: Item, background: Background) -> bool:
    return held_out(item, background) and not background.hides(item.color)


def _held_out_series(rng: random.Random) -> Iterator[Description]:
    used: set[tuple[Item, Background]] = set()
    while True:
        for kind in rng.sample(KINDS, len(KINDS)):
            background, item = Background.sample(rng), Item(kind, rng.choice(sorted(PALETTE)))
            while not _is_usable(item, background) or (item, background) in used:
                background, item = Background.sample(rng), Item(kind, rng.choice(sorted(PALETTE)))
            used.add((item, background))
            yield Description((item,), background, place=rng.choice(sorted(PLACES)) if rng.random() < 0.5 else "")


def _item(rng: random.Random, background: Background) -> Item:
    """Return a random item that is not held out before ``background``, and not hidden by it."""
    while True:
        item = Item(rng.choice((MONSTER, MONSTER, *THINGS)), rng.choice(sorted(PALETTE)))
        if not background.hides(item.color) and not held_out(item, background):
            return item


def _pair(rng: random.Random, background: Background) -> tuple[Item, Item]:
    """Return two items that differ in kind and colour."""
    first = _item(rng, background)
    while True:
        second = _item(rng, background)
        if first.kind != second.kind and first.color != second.color:
            return first, second
