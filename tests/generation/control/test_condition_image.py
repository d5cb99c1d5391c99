"""Condition images: traced from pictures, or drawings as they are."""

import numpy as np
import pytest
from PIL import Image, ImageDraw, ImageFilter, ImageOps

from lora_service.generation.control.condition_image import make_condition_image
from lora_service.models.control_registry import LINE_TYPES, AdapterType


def picture() -> Image.Image:
    """A blue disc on orange, as light as each other in gray."""
    image = Image.new("RGB", (96, 64), (230, 120, 40))
    ImageDraw.Draw(image).ellipse((30, 14, 66, 50), fill=(90, 150, 250))
    return image


def drawing() -> Image.Image:
    image = Image.new("RGB", (96, 64))
    ImageDraw.Draw(image).ellipse((30, 14, 66, 50), outline="white", width=2)
    return image


@pytest.mark.parametrize("adapter_type", LINE_TYPES)
def test_a_picture_is_traced_to_white_lines_along_its_edges(adapter_type: AdapterType) -> None:
    image, note = make_condition_image(picture(), adapter_type, (96, 64))
    lines = np.asarray(image)[:, :, 0] > 127
    near = np.asarray(ImageOps.grayscale(drawing().resize((96, 64)))) > 0
    near = np.asarray(Image.fromarray(near).filter(ImageFilter.MaxFilter(7)))
    assert "traced" in note
    assert 0.01 < lines.mean() < 0.2
    assert (lines & near).sum() > 0.95 * lines.sum()


@pytest.mark.parametrize("adapter_type", LINE_TYPES)
@pytest.mark.parametrize("inverted", [False, True], ids=["white on black", "black on white"])
def test_a_drawing_is_used_as_white_on_black(adapter_type: AdapterType, inverted: bool) -> None:
    given = ImageOps.invert(drawing()) if inverted else drawing()
    image, note = make_condition_image(given, adapter_type, (96, 64))
    assert "already" in note
    assert image.tobytes() == drawing().tobytes()


def test_a_photograph_in_gray_is_no_drawing() -> None:
    gradient = ImageOps.grayscale(Image.linear_gradient("L").resize((96, 64))).convert("RGB")
    assert "traced" in make_condition_image(gradient, "sketch", (96, 64)).note


def test_other_pictures_are_taken_as_they_are_with_no_new_colours() -> None:
    labels = Image.new("RGB", (40, 40), "red")
    labels.paste("blue", (0, 0, 20, 40))
    image, _ = make_condition_image(labels, "seg", (96, 64))
    assert image.size == (96, 64)
    assert {colour for _, colour in image.getcolors() or ()} == {(255, 0, 0), (0, 0, 255)}
