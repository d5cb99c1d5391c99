"""What a prompt of one thing tells, as questions with a fixed list of answers."""

from __future__ import annotations

import random
from dataclasses import replace

from tools.synthetic.canvas import PALETTE
from tools.synthetic.description import KINDS, PLACES, SIZES, Description, Item
from tools.synthetic.scenes import PATTERNS, Background
from tools.synthetic.scenes import PLACES as SCENES

_BACKGROUNDS = (
    *(Background(kind, color) for kind in sorted(set(PATTERNS)) for color in sorted(PALETTE)),
    *(Background(name, None) for name in sorted(SCENES)),
)
QUESTIONS: dict[str, tuple[str, ...]] = {
    "color": tuple(sorted(PALETTE)),
    "background": tuple(background.phrase for background in _BACKGROUNDS),
    "thing": KINDS,
    "place": tuple(sorted(PLACES)),
}
"""Each question's possible answers, as captions spell them."""
UNTOLD = -100
"""The number of an answer that is not told; PyTorch's cross-entropy passes over it."""


def answers(description: Description) -> dict[str, str]:
    """What ``description`` answers: nothing unless it is of one item, and no place if it tells none."""
    if len(description.subjects) != 1 or not isinstance(description.subjects[0], Item):
        return {}
    item = description.subjects[0]
    told = {"color": item.color, "background": description.background.phrase, "thing": item.kind}
    return told | ({"place": description.place} if description.place else {})


def numbers(description: Description) -> list[int]:
    """``answers`` as places in ``QUESTIONS``' lists, ``UNTOLD`` where there is none."""
    told = answers(description)
    return [known.index(told[name]) if name in told else UNTOLD for name, known in QUESTIONS.items()]


def any_thing(rng: random.Random, place: str | None = None) -> Description:
    """One flat thing in any colour before any background that shows it; ``place`` None is any or none."""
    background, color = Background.sample(rng), rng.choice(sorted(PALETTE))
    while background.hides(color):
        background, color = Background.sample(rng), rng.choice(sorted(PALETTE))
    where = rng.choice(("", "", *PLACES)) if place is None else place
    return Description((Item(rng.choice(KINDS), color),), background, rng.choice(("", "", "", *SIZES)), where)


def altered(description: Description, question: str, rng: random.Random) -> Description:
    """``description`` of one item with another answer to ``question``, which it must answer."""
    told = answers(description)[question]
    other = rng.choice([answer for answer in QUESTIONS[question] if answer != told])
    if question == "place":
        return replace(description, place=other)
    if question == "background":
        return replace(description, background=_BACKGROUNDS[QUESTIONS["background"].index(other)])
    item = description.subjects[0]
    assert isinstance(item, Item)
    changed = Item(item.kind, other) if question == "color" else Item(other, item.color)
    return replace(description, subjects=(changed,))
