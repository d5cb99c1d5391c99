"""The size of a request's images."""

from typing import Any

import pytest
from PIL import Image

from lora_service.errors import InputError
from lora_service.generation.request import GenerateRequest
from lora_service.generation.sizes import choose_size
from tests.errors import raises
from tests.small_base import small_base

BASE = small_base()  # 32 × 32


def size(image: tuple[int, int] | None = None, **inputs: Any) -> tuple[int, int]:
    return choose_size(GenerateRequest.of({"prompt": "", **inputs}), BASE, Image.new("RGB", image) if image else None)


@pytest.mark.parametrize(
    ("inputs", "expected"),
    [
        ({}, (32, 32)),
        ({"width": 40}, (40, 32)),
        ({"aspect_ratio": "1:1"}, (32, 32)),
        ({"aspect_ratio": "16:9"}, (40, 24)),
        ({"aspect_ratio": "9:16"}, (24, 40)),
        ({"aspect_ratio": "3:2", "width": 96}, (96, 64)),
        ({"aspect_ratio": "3:2", "height": 96}, (144, 96)),
        ({"aspect_ratio": "4:3", "image": (1000, 1000)}, (40, 24)),
        ({"image": (96, 64)}, (48, 32)),
        ({"image": (96, 64), "height": 64}, (32, 64)),
        ({"image": (1000, 10)}, (128, 32)),
        ({"width": 4096, "height": 8}, None),
    ],
)
def test_sizes(inputs: dict[str, Any], expected: tuple[int, int] | None) -> None:
    if expected is None:
        with raises(InputError, field="height"):
            size(**inputs)
    else:
        assert size(**inputs) == expected


@pytest.mark.parametrize(
    ("inputs", "field", "code"),
    [
        ({"width": 36}, "width", "invalid_input"),
        ({"height": 100}, "height", "invalid_input"),
        ({"width": 64, "height": 64, "aspect_ratio": "1:1"}, "aspect_ratio", "size_given_twice"),
        ({"width": 8192, "aspect_ratio": "9:16"}, "aspect_ratio", "invalid_input"),
        ({"aspect_ratio": "7:5"}, "aspect_ratio", "invalid_input"),
    ],
)
def test_sizes_that_cannot_be_drawn_are_refused(inputs: dict[str, Any], field: str, code: str) -> None:
    with raises(InputError, field=field, code=code):
        size(**inputs)
