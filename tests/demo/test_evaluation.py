"""The metrics rank images as a person would."""

import random

import pytest
from PIL import Image

from lora_service.demo.evaluation import drift, subject_similarity
from tools.synthetic import captions, subjects


def test_the_same_subject_elsewhere_is_nearer_than_other_pictures() -> None:
    training = [p for p, _ in zip(subjects.pictures(12, 64), range(6), strict=False)]
    images, masks = [p.image for p in training], [p.mask for p in training]
    again = [p.image for p, _ in zip(subjects.pictures(12, 64, "judge"), range(6), strict=False)]
    other = [p.image for seed in range(6) for p, _ in zip(subjects.pictures(seed, 64), range(1), strict=False)]
    synthetic = [captions.sample(random.Random(i)).picture for i in range(6)]
    same = min(subject_similarity(picture, images, masks) for picture in again)
    assert same > max(subject_similarity(picture, images, masks) for picture in other) + 0.1
    assert same > max(subject_similarity(picture, images, masks) for picture in synthetic) + 0.1
    assert subject_similarity(images[0], images, masks) == pytest.approx(1.0, abs=0.01)


def test_drift_is_the_mean_change_of_a_pixel() -> None:
    black, gray = Image.new("RGB", (64, 64)), Image.new("RGB", (64, 64), (51, 51, 51))
    assert drift(black, black) == 0
    assert drift(black, gray) == pytest.approx(0.2)
