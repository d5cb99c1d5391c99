"""The attributes of a picture of one thing, as questions with a fixed list of answers."""

from __future__ import annotations

import random
from dataclasses import replace

from tools.synthetic.canvas import PALETTE
from tools.synthetic.description import KINDS, PLACES, SIZES, Description, Item
from tools.synthetic.scenes import PATTERNS, SCENES, Background

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
NO_ANSWER = -100
"""The class index of a question without an answer; it is the default ``ignore_index`` of PyTorch's cross-entropy."""


def answers(description: Description) -> dict[str, str]:
    """Return the answer to each question that ``description`` answers.

    Only a description of a single item answers any, and only one that names a place answers "place".
    """
    if len(description.subjects) != 1 or not isinstance(description.subjects[0], Item):
        return {}
    item = description.subjects[0]
    named = {"color": item.color, "background": description.background.phrase, "thing": item.kind}
    return named | ({"place": description.place} if description.place else {})


def answer_indices(description: Description) -> list[int]:
    """Return the class index of each question's answer, ``NO_ANSWER`` where there is none."""
    named = answers(description)
    return [choices.index(named[name]) if name in named else NO_ANSWER for name, choices in QUESTIONS.items()]


def random_description(rng: random.Random, place: str | None = None) -> Description:
    """Return one item, without a style, before any background that does not hide it.

    Without ``place`` the place is random, and often not named.
    """
    background, color = Background.sample(rng), rng.choice(sorted(PALETTE))
    while background.hides(color):
        background, color = Background.sample(rng), rng.choice(sorted(PALETTE))
    named_place = rng.choice(("", "", *PLACES)) if place is None else place
    return Description((Item(rng.choice(KINDS), color),), background, rng.choice(("", "", "", *SIZES)), named_place)


def change_answer(description: Description, question: str, rng: random.Random) -> Description:
    """Return ``description`` with another answer to ``question``.

    Raises:
        KeyError: ``description`` does not answer ``question``.
    """
    answer = answers(description)[question]
    other = rng.choice([choice for choice in QUESTIONS[question] if choice != answer])
    if question == "place":
        return replace(description, place=other)
    if question == "background":
        return replace(description, background=_BACKGROUNDS[QUESTIONS["background"].index(other)])
    item = description.subjects[0]
    assert isinstance(item, Item)
    changed = Item(item.kind, other) if question == "color" else Item(other, item.color)
    return replace(description, subjects=(changed,))
