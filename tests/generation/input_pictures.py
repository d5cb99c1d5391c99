"""Pictures to start from, by what a request does with them."""

from __future__ import annotations

from collections.abc import Mapping

from PIL import Image, ImageDraw

from lora_service.generation.initial_image import InputImages


def input_pictures(side: int) -> Mapping[str, InputImages]:
    """Return none, a picture, one with a mask, and one whose lines are followed."""
    image, white = Image.effect_noise((side, side), 60).convert("RGB"), Image.new("L", (side, side))
    ImageDraw.Draw(white).ellipse((6, 8, 25, 27), fill=255)
    return {
        "text": InputImages(),
        "picture": InputImages(image),
        "inpaint": InputImages(image, white),
        "control": InputImages(adapter_condition_image=white),
    }
