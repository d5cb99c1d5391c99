"""The synthetic dataset: seeded, captioned as drawn, and without the held-out combinations."""

import random
import re
from collections import Counter

import numpy as np
import pytest

from tools.synthetic import captions, textures
from tools.synthetic.canvas import PALETTE, downscale
from tools.synthetic.description import KINDS, PLACES, SIZES, Description, Item
from tools.synthetic.faces import EXPRESSIONS, CartoonFace
from tools.synthetic.scenes import SCENES, Background
from tools.synthetic.styles import STYLES
from tools.synthetic.things import THINGS


def test_a_seed_determines_picture_and_caption() -> None:
    one, same = (captions.sample(random.Random("a")) for _ in range(2))
    assert one.caption == same.caption
    assert one.picture.tobytes() == same.picture.tobytes()
    assert textures.sample(random.Random(3)).tobytes() == textures.sample(random.Random(3)).tobytes()


@pytest.mark.parametrize("thing", THINGS)
def test_a_thing_is_drawn_in_its_colour_at_its_place(thing: str) -> None:
    background = Background("plain", "white")
    for color in ("red", "blue"):
        picture = Description((Item(thing, color),), background).draw(random.Random(1))
        near = sum(
            count
            for count, pixel in picture.getcolors(1 << 16) or []
            if all(abs(a - b) < 40 for a, b in zip(pixel, PALETTE[color], strict=True))  # type: ignore[arg-type]
        )
        assert near > 150, color


def test_held_out_combinations_are_never_drawn() -> None:
    for seed in range(400):
        description = captions.describe(random.Random(seed))
        for item in description.subjects:
            if isinstance(item, Item):
                assert not captions.held_out(item, description.background)
                assert not description.background.hides(item.color)


def test_held_out_prompts_are_held_out_and_spread_evenly() -> None:
    prompts = captions.held_out_prompts(3 * len(KINDS), seed=0)
    assert prompts == captions.held_out_prompts(3 * len(KINDS), seed=0)
    assert len(set(prompts)) == len(prompts)
    items = [item for prompt in prompts for item in prompt.subjects if isinstance(item, Item)]
    assert Counter(item.kind for item in items) == dict.fromkeys(KINDS, 3)
    for prompt, item in zip(prompts, items, strict=True):
        assert captions.held_out(item, prompt.background)
        assert re.match(f"an? {item.color} {item.kind} ", prompt.caption())
        assert prompt.background.phrase in prompt.caption()
    assert 0.3 < sum(bool(prompt.place) for prompt in prompts) / len(prompts) < 0.7


def test_more_held_out_prompts_than_there_are_are_refused() -> None:
    with pytest.raises(ValueError, match="there are only"):
        captions.held_out_prompts(100_000, seed=0)


def test_single_things_are_the_largest_share_and_all_parts_occur() -> None:
    descriptions = [captions.describe(random.Random(seed)) for seed in range(2000)]
    faces = sum(isinstance(d.subjects[0], CartoonFace) for d in descriptions) / len(descriptions)
    pairs = sum(len(d.subjects) == 2 for d in descriptions) / len(descriptions)
    styled = sum(bool(d.style) for d in descriptions) / len(descriptions)
    assert (faces, pairs, styled) == pytest.approx((0.2, 0.12, 0.15), abs=0.03)
    assert {d.style for d in descriptions} == {"", *STYLES}
    assert {d.size for d in descriptions} == set(SIZES)
    assert {d.place for d in descriptions} == {"", *PLACES}
    assert {d.background.kind for d in descriptions} == {"plain", "striped", "dotted", "checked", "gradient", *SCENES}


def grammar() -> re.Pattern[str]:
    """Return the captions' documented grammar."""
    color, any_of = "|".join(PALETTE), "|".join
    a = "(a(?! [aeiou])|an(?= [aeiou]))"
    item = f"{a} (small )?(big )?(({color}) )?({any_of(KINDS)})"
    trait = (
        f"(no hair|\\w+ \\w+ hair|glasses|a \\w+ beard|{a} ({color}) hat|{any_of(filter(None, EXPRESSIONS.values()))})"
    )
    face = f"(a person|a face)( with \\w+ skin)?( (with|and) {trait})*"
    scene = any_of([phrase for phrase, _ in SCENES.values()])
    behind = f"(on {a} ((striped|dotted|checked|gradient) )?({color}) background|{scene})"
    prefix = any_of(["", "a photo of ", "a picture of ", "a drawing of ", "an image of ", "a rendering of "])
    styled = any_of([style.prefix for style in STYLES.values()])
    return re.compile(f"({prefix}|{styled})({item}( and {item})?|{face})( ({any_of(PLACES)}))?( {behind})?")


def test_captions_follow_the_grammar() -> None:
    rule = grammar()
    for seed in range(500):
        description = captions.describe(random.Random(seed))
        for caption in (description.caption(), description.caption(random.Random(seed))):
            assert rule.fullmatch(caption), caption


def test_a_caption_without_randomness_names_everything() -> None:
    pair = (Item("star", "red"), Item("mug", "blue"))
    description = Description(pair, Background("gradient", "green"), style="pencil")
    assert description.caption() == "a pencil drawing of a red star and a blue mug on a gradient green background"
    one = Description((Item("key", "pink"),), Background("room", None), "big", "at the left")
    assert one.caption() == "a big pink key at the left in a room"


def test_different_things_have_different_captions() -> None:
    descriptions = {captions.describe(random.Random(seed)) for seed in range(1500)}
    things = [d for d in descriptions if isinstance(d.subjects[0], Item)]
    assert len({d.caption() for d in things}) == len(things) > 900


def test_of_two_things_the_first_is_at_the_left() -> None:
    description = Description((Item("square", "red"), Item("circle", "blue")), Background("plain", "white"))
    pixels = np.asarray(downscale(description.draw(random.Random(5)), 64), np.float32)
    red, blue = (np.argwhere(np.abs(pixels - PALETTE[c]).max(axis=2) < 60)[:, 1].mean() for c in ("red", "blue"))
    assert red < 24
    assert blue > 40


def test_a_thing_that_no_word_places_is_near_the_middle_and_never_mirrored() -> None:
    description = Description((Item("mug", "red"),), Background("plain", "white"))
    pictures = [np.asarray(downscale(description.draw(random.Random(seed)), 64), np.float32) for seed in range(40)]
    red = [np.argwhere(np.abs(picture - PALETTE["red"]).max(axis=2) < 60)[:, ::-1] for picture in pictures]
    middles = np.stack([(points.min(axis=0) + points.max(axis=0)) / 2 for points in red]) / 64
    assert np.abs(middles - 0.5).max() < 0.2
    assert middles.std(axis=0).min() > 0.03
    # The handle, where few pixels are red, is to the right of the body.
    assert all(points[:, 0].mean() < middle[0] * 64 for points, middle in zip(red, middles, strict=True))


def test_another_seed_draws_the_same_description_otherwise() -> None:
    description = captions.sample(random.Random(1)).description
    one, again, other = (description.draw(random.Random(seed)) for seed in (1, 1, 2))
    assert one.tobytes() == again.tobytes() != other.tobytes()
    assert one.size == other.size == (256, 256)


@pytest.mark.parametrize("name", STYLES)
def test_a_style_changes_the_whole_picture_and_no_other_style_looks_like_it(name: str) -> None:
    flat = Description((Item("house", "red"),), Background("meadow", None)).draw(random.Random(4))
    images = {other: np.asarray(downscale(style.apply(flat, random.Random(1)), 64), np.float32)
             for other, style in STYLES.items()}  # fmt: skip
    images[""] = np.asarray(downscale(flat, 64), np.float32)
    for other, image in images.items():
        if other != name:
            assert np.abs(image - images[name]).mean() > 6, other


def test_pictures_of_the_variety_differ() -> None:
    rng = random.Random(2)
    for draw in (textures.random_face, textures.restyled, textures.random_creature, textures.recolored):
        one, other = draw(rng), draw(rng)
        assert one.size == other.size == (256, 256)
        assert one.tobytes() != other.tobytes()


def test_a_description_belongs_to_one_group() -> None:
    background, star, mug = Background("plain", "white"), Item("star", "red"), Item("mug", "blue")
    face = CartoonFace.sample(random.Random(0))
    assert Description((star,), background).group == "item"
    assert Description((star, mug), background).group == "pair"
    assert Description((face,), background).group == "face"
    for contents in ((star,), (star, mug), (face,)):
        assert Description(contents, background, style="neon").group == "style"
