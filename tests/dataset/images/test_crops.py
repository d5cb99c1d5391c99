"""Crops and sizes."""

from __future__ import annotations

from random import Random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lora_service.dataset.images.crops import (
    SMALLEST_CROP,
    Box,
    Size,
    crop_for,
    list_buckets,
    nearest_bucket,
    random_crop,
)
from tests.dataset.picture_makers import picture

sides = st.integers(1, 5000)


@pytest.mark.parametrize(
    ("original", "center", "box"),
    [
        ((100, 60), None, (20, 0, 80, 60)),
        ((60, 100), None, (0, 20, 60, 80)),
        ((100, 60), (0.0, 0.5), (0, 0, 60, 60)),
        ((100, 60), (1.0, 0.5), (40, 0, 100, 60)),
        ((100, 60), (0.4, 0.9), (10, 0, 70, 60)),
        ((64, 64), (0.1, 0.1), (0, 0, 64, 64)),
    ],
)
def test_squares_around_the_subject(
    original: tuple[int, int], center: tuple[float, float], box: tuple[int, ...]
) -> None:
    assert crop_for(original, (64, 64), center).box == box


@given(sides, sides, st.tuples(st.floats(-1, 2), st.floats(-1, 2)))
def test_crops_lie_within_the_picture(width: int, height: int, center: tuple[float, float]) -> None:
    left, top, right, bottom = crop_for((width, height), (128, 64), center).box
    assert 0 <= left < right <= width
    assert 0 <= top < bottom <= height
    assert right - left == width or bottom - top == height


def test_a_smaller_copy_gives_the_same_part() -> None:
    crop = crop_for((400, 200), (64, 64), (0.25, 0.5))
    assert crop.box == (0, 0, 200, 200)
    whole, half = (crop.apply(picture(1, size)).getpixel((32, 32)) for size in ((400, 200), (200, 100)))
    assert all(abs(a - b) <= 2 for a, b in zip(whole, half, strict=True))


def test_the_scale_is_that_of_a_side() -> None:
    assert crop_for((32, 40), (64, 64), None).scale == 2
    assert crop_for((128, 128), (64, 64), None).scale == 0.5


@pytest.mark.parametrize(
    ("original", "size"),
    [
        ((1024, 1024), (512, 512)),
        ((1600, 1200), (576, 448)),  # as kohya's buckets for 512: 4:3 lies nearest to 576 × 448
        ((4000, 3000), (576, 448)),
        ((3000, 4500), (384, 640)),
        ((500, 400), (448, 384)),  # smaller than its bucket: its own sides, down to the step
        ((3000, 100), (1024, 64)),
        ((20, 20), (64, 64)),
    ],
)
def test_buckets_of_512(original: tuple[int, int], size: tuple[int, int]) -> None:
    assert nearest_bucket(original, 512, 64) == size


@given(sides, sides, st.sampled_from([(64, 16), (512, 64), (768, 64), (1024, 64)]))
def test_buckets_stay_within_the_area_in_steps_and_do_not_enlarge(
    width: int, height: int, setting: tuple[int, int]
) -> None:
    resolution, step = setting
    to_width, to_height = nearest_bucket((width, height), resolution, step)
    assert to_width % step == to_height % step == 0
    assert to_width * to_height <= resolution**2
    assert to_width <= max(step, width)
    assert to_height <= max(step, height)


def test_all_buckets_of_512_are_kohyas() -> None:
    """As listed by kohya's make_bucket_resolutions((512, 512), min_size=256, max_size=1024, divisible=64)."""
    wide = {(1024, 256), (960, 256), (896, 256), (832, 256), (768, 320), (704, 320), (640, 384), (576, 448)}
    assert {size for size in list_buckets(512, 64) if size[0] > size[1]} == wide
    assert {size for size in list_buckets(512, 64) if size[0] < size[1]} == {(h, w) for w, h in wide}


@pytest.mark.parametrize(("original", "size"), [((640, 480), (64, 64)), ((300, 900), (64, 128)), ((70, 70), (64, 64))])
@pytest.mark.parametrize("subject", [None, (10, 20, 60, 65), (0, 0, 70, 70)])
def test_random_crops_lie_in_the_image_and_hold_the_subject(original: Size, size: Size, subject: Box | None) -> None:
    rng = Random(0)
    crops = [random_crop(original, size, subject, rng) for _ in range(200)]
    largest = crop_for(original, size, None)
    for crop in crops:
        left, top, right, bottom = crop.box
        assert 0 <= left < right <= original[0]
        assert 0 <= top < bottom <= original[1]
        assert SMALLEST_CROP - 0.02 <= (right - left) / (largest.box[2] - largest.box[0]) <= 1
        assert crop.scale <= 1.02
        assert abs((right - left) / (bottom - top) / (size[0] / size[1]) - 1) < 0.05
        if subject is not None and subject[2] - subject[0] <= right - left and subject[3] - subject[1] <= bottom - top:
            assert left <= subject[0]
            assert top <= subject[1]
            assert right >= subject[2]
            assert bottom >= subject[3]
    assert len({crop.box for crop in crops}) > 10 or original == (70, 70)


def test_random_crops_of_an_image_reach_all_of_it() -> None:
    rng = Random(0)
    boxes = [random_crop((640, 480), (64, 64), None, rng).box for _ in range(500)]
    assert min(box[0] for box in boxes) == min(box[1] for box in boxes) == 0
    assert max(box[2] for box in boxes) == 640
    assert max(box[3] for box in boxes) == 480
