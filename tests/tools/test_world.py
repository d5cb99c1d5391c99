"""The drawn world: seeded, captioned as drawn, and without the subjects that are to be taught."""

import random
import zipfile
from pathlib import Path

import pytest
import torch
from torch import nn

from tools.embedded.loop import Plan, fit
from tools.world import captions, creatures, subjects, textures
from tools.world.canvas import PALETTE, reduce
from tools.world.scenes import Background
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
        picture = captions.draw_thing(random.Random(1), thing, color, background).picture
        near = sum(
            count
            for count, pixel in picture.getcolors(1 << 16) or []
            if all(abs(a - b) < 40 for a, b in zip(pixel, PALETTE[color], strict=True))  # type: ignore[arg-type]
        )
        assert near > 150, color


def test_held_out_combinations_are_never_drawn() -> None:
    rng = random.Random(0)
    for _ in range(300):
        words = captions.sample(rng).caption
        for thing in THINGS:
            for color in PALETTE:
                for other in PALETTE:
                    background = Background("plain", other)
                    if f"{color} {thing} {background.phrase}" in words:
                        assert not captions.held_out(thing, color, background)


def test_subjects_are_two_coloured_and_differ_by_seed() -> None:
    found = {creatures.subject(seed) for seed in range(50)}
    assert len(found) == 50
    assert all(subject.color != subject.second and subject.pattern != "plain" for subject in found)


def test_a_subjects_zip_is_reproducible_and_holds_pictures_masks_and_captions(tmp_path: Path) -> None:
    for name in ("a.zip", "b.zip"):
        subjects.write_zip(tmp_path / name, seed=4, count=3, size=64)
    assert (tmp_path / "a.zip").read_bytes() == (tmp_path / "b.zip").read_bytes()
    with zipfile.ZipFile(tmp_path / "a.zip") as archive:
        assert sorted(archive.namelist()) == [
            f"{i:02}{end}" for i in (1, 2, 3) for end in (".mask.png", ".png", ".txt")
        ]
        assert "{}" in archive.read("01.txt").decode()


def test_the_mask_is_where_the_subject_is() -> None:
    picture = next(subjects.pictures(1, 64))
    box = picture.mask.getbbox()
    assert box is not None
    assert (box[2] - box[0]) * (box[3] - box[1]) < 64 * 64 * 0.7
    assert reduce(picture.image, 64).size == picture.mask.size


def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path: Path) -> None:
    def trained(path: Path, *stops: int) -> torch.Tensor:
        for steps in (*stops, 6):
            torch.manual_seed(0)
            model = nn.Linear(3, 1)

            def loss(
                step: int, generator: torch.Generator, model: nn.Linear = model, last: int = steps
            ) -> torch.Tensor:
                if step == last:
                    raise KeyboardInterrupt
                return model(torch.randn(4, 3, generator=generator)).square().mean()

            try:
                fit(model, loss, Plan(6, 0.1, warmup=2, average=0.5, save_every=2), path)
            except KeyboardInterrupt:
                continue
        return model.weight.detach()

    torch.testing.assert_close(trained(tmp_path / "a.pt"), trained(tmp_path / "b.pt", 2, 4), rtol=0, atol=0)
