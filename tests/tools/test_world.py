"""The drawn world: seeded, captioned as drawn, and without the combinations that are kept for judging."""

import random
import re
from collections import Counter

import numpy as np
import pytest

from tools.world import captions, textures
from tools.world.canvas import PALETTE, reduce
from tools.world.description import KINDS, PLACES, SIZES, Description, Item
from tools.world.faces import EXPRESSIONS, Face
from tools.world.scenes import PLACES as SCENES
from tools.world.scenes import Background
from tools.world.styles import STYLES
from tools.world.things import THINGS


def test_a_seed_is_a_picture_and_its_caption() -> None:
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
        shown = captions.describe(random.Random(seed))
        for item in shown.subjects:
            if isinstance(item, Item):
                assert not captions.held_out(item, shown.background)
                assert not shown.background.hides(item.color)


def test_held_out_prompts_are_what_training_never_sees_spread_evenly() -> None:
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
    shown = [captions.describe(random.Random(seed)) for seed in range(2000)]
    faces = sum(isinstance(d.subjects[0], Face) for d in shown) / len(shown)
    pairs = sum(len(d.subjects) == 2 for d in shown) / len(shown)
    styled = sum(bool(d.style) for d in shown) / len(shown)
    assert (faces, pairs, styled) == pytest.approx((0.2, 0.12, 0.15), abs=0.03)
    assert {d.style for d in shown} == {"", *STYLES}
    assert {d.size for d in shown} == set(SIZES)
    assert {d.place for d in shown} == {"", *PLACES}
    assert {d.background.kind for d in shown} == {"plain", "striped", "dotted", "checked", "gradient", *SCENES}


def grammar() -> re.Pattern[str]:
    """The captions' grammar, as it is told to people."""
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
        shown = captions.describe(random.Random(seed))
        for caption in (shown.caption(), shown.caption(random.Random(seed))):
            assert rule.fullmatch(caption), caption


def test_a_caption_without_chance_tells_everything() -> None:
    pair = (Item("star", "red"), Item("mug", "blue"))
    shown = Description(pair, Background("gradient", "green"), style="pencil")
    assert shown.caption() == "a pencil drawing of a red star and a blue mug on a gradient green background"
    one = Description((Item("key", "pink"),), Background("room", None), "big", "at the left")
    assert one.caption() == "a big pink key at the left in a room"


def test_different_things_are_told_apart_by_their_captions() -> None:
    shown = {captions.describe(random.Random(seed)) for seed in range(1500)}
    things = [d for d in shown if isinstance(d.subjects[0], Item)]
    assert len({d.caption() for d in things}) == len(things) > 900


def test_of_two_things_the_first_is_at_the_left() -> None:
    shown = Description((Item("square", "red"), Item("circle", "blue")), Background("plain", "white"))
    pixels = np.asarray(reduce(shown.draw(random.Random(5)), 64), np.float32)
    red, blue = (np.argwhere(np.abs(pixels - PALETTE[c]).max(axis=2) < 60)[:, 1].mean() for c in ("red", "blue"))
    assert red < 24
    assert blue > 40


def test_a_thing_that_no_word_places_is_near_the_middle_and_never_mirrored() -> None:
    shown = Description((Item("mug", "red"),), Background("plain", "white"))
    pictures = [np.asarray(reduce(shown.draw(random.Random(seed)), 64), np.float32) for seed in range(40)]
    red = [np.argwhere(np.abs(picture - PALETTE["red"]).max(axis=2) < 60)[:, ::-1] for picture in pictures]
    middles = np.stack([(points.min(axis=0) + points.max(axis=0)) / 2 for points in red]) / 64
    assert np.abs(middles - 0.5).max() < 0.2
    assert middles.std(axis=0).min() > 0.03
    # The handle, where few pixels are red, is to the right of the body.
    assert all(points[:, 0].mean() < middle[0] * 64 for points, middle in zip(red, middles, strict=True))


def test_another_seed_draws_the_same_description_otherwise() -> None:
    shown = captions.sample(random.Random(1)).description
    one, again, other = (shown.draw(random.Random(seed)) for seed in (1, 1, 2))
    assert one.tobytes() == again.tobytes() != other.tobytes()
    assert one.size == other.size == (256, 256)


@pytest.mark.parametrize("name", STYLES)
def test_a_style_changes_the_whole_picture_and_no_other_style_looks_like_it(name: str) -> None:
    flat = Description((Item("house", "red"),), Background("meadow", None)).draw(random.Random(4))
    looks = {other: np.asarray(reduce(style.apply(flat, random.Random(1)), 64), np.float32)
             for other, style in STYLES.items()}  # fmt: skip
    looks[""] = np.asarray(reduce(flat, 64), np.float32)
    for other, look in looks.items():
        if other != name:
            assert np.abs(look - looks[name]).mean() > 6, other


def test_the_variety_draws_what_no_caption_names() -> None:
    rng = random.Random(2)
    for draw in (textures.person, textures.restyled, textures.stranger, textures.recolored):
        one, other = draw(rng), draw(rng)
        assert one.size == other.size == (256, 256)
        assert one.tobytes() != other.tobytes()


def test_a_description_belongs_to_one_group() -> None:
    background, star, mug = Background("plain", "white"), Item("star", "red"), Item("mug", "blue")
    face = Face.sample(random.Random(0))
    assert Description((star,), background).group == "item"
    assert Description((star, mug), background).group == "pair"
    assert Description((face,), background).group == "face"
    for shown in ((star,), (star, mug), (face,)):
        assert Description(shown, background, style="neon").group == "style"
