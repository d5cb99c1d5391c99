"""The picture that a ControlNet or T2I-Adapter is conditioned on, made of what was uploaded with OpenCV."""

from __future__ import annotations

from typing import NamedTuple

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from lora_service.models.control_registry import LINE_TYPES, AdapterType

Gray = NDArray[np.uint8]
"""``(h, w)``."""
Pixels = NDArray[np.uint8]
"""RGB ``(h, w, 3)``."""

_CANNY_THRESHOLDS = 100, 200
_SKETCH_THRESHOLDS = 60, 120
_FAINTEST_LINE = 32
_LINE_SIDE = 256
"""Sketched lines are one pixel wide in a picture of this side or smaller, and wider in proportion."""
_BLACK, _WHITE = 64, 192
_DRAWN_SHARE = 0.97
"""Share of pixels near black or white, without colour, from which on a picture counts as lines already."""
_MAX_LINE_SHARE = 0.35
"""Share of pixels that the lines of a drawing cover at most."""
_MAX_COLOUR = 24
"""Largest difference of a pixel's channels that still counts as gray: JPEG tints edges a little."""


class ConditionImage(NamedTuple):
    """The picture to condition on, and what was done to make it, for the log."""

    image: Image.Image
    note: str


def make_condition_image(image: Image.Image, adapter_type: AdapterType, size: tuple[int, int]) -> ConditionImage:
    """Return the condition image of ``size`` (width, height), in RGB.

    For line types, a picture that is lines already is only turned to white on black, and any other one is traced.
    Pictures of the other types are maps that OpenCV cannot make, and are taken as they are.

    Args:
        image: the uploaded picture, upright.
        adapter_type: what the condition stands for.
        size: width and height of the pictures that are drawn. A picture of another shape is cropped to it.
    """
    if adapter_type not in LINE_TYPES:
        # Labels and key points must not be mixed with their neighbours' colours; a depth map is smooth.
        resampling = Image.Resampling.LANCZOS if adapter_type == "depth" else Image.Resampling.NEAREST
        fitted = ImageOps.fit(image.convert("RGB"), size, resampling)
        return ConditionImage(fitted, f"adapter_condition_image is taken as a {_MAP_NAMES[adapter_type]}")
    fitted = ImageOps.fit(image.convert("RGB"), size, Image.Resampling.LANCZOS)
    pixels = np.asarray(fitted)
    lines = _drawn_lines(pixels)
    if lines is not None:
        return _condition(lines, "adapter_condition_image is a drawing already, and its lines are used")
    traced = _TRACERS[adapter_type](pixels)
    return _condition(traced, f"adapter_condition_image was traced to a {adapter_type} drawing")


def _condition(lines: Gray, note: str) -> ConditionImage:
    return ConditionImage(Image.fromarray(lines).convert("RGB"), note)


def _drawn_lines(pixels: Pixels) -> Gray | None:
    """Return the lines of a black-and-white drawing as white on black; None for any other picture."""
    if int((pixels.max(axis=2) - pixels.min(axis=2)).max(initial=0)) > _MAX_COLOUR:
        return None
    gray: Gray = pixels.mean(axis=2).astype(np.uint8)
    # Small drawings are blurred by scaling, and what is between black and white then lies beside lines.
    between = (gray > _BLACK) & (gray < _WHITE)
    edges = cv2.dilate((gray >= _WHITE).astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    if 1 - (between & ~edges).mean() < _DRAWN_SHARE:
        return None
    white = float((gray >= 128).mean())
    if min(white, 1 - white) > _MAX_LINE_SHARE:
        return None
    return gray if white < 0.5 else 255 - gray


def trace_canny(pixels: Pixels) -> Gray:
    """Return Canny's edges, white on black, one pixel wide."""
    edges: Gray = cv2.Canny(pixels, *_CANNY_THRESHOLDS).astype(np.uint8)  # of the channel that changes most
    return edges


def trace_sketch(pixels: Pixels) -> Gray:
    """Return the outlines as a pen would draw them: edges of the smoothed picture, wider on large ones."""
    smooth = cv2.bilateralFilter(pixels, 5, 50, 50)
    edges = cv2.Canny(smooth, *_SKETCH_THRESHOLDS)
    width = max(1, round(min(pixels.shape[:2]) / _LINE_SIDE))
    kernel = cv2.getStructuringElement(cv2.MORPH_ELLIPSE, (width, width))
    lines: Gray = cv2.dilate(edges, kernel).astype(np.uint8)
    return lines


def trace_lineart(pixels: Pixels) -> Gray:
    """Return soft lines, brighter where the picture differs more from its surroundings."""
    radius = max(1.0, min(pixels.shape[:2]) / 128)
    around = cv2.GaussianBlur(pixels, (0, 0), radius).astype(np.float32)
    difference = np.abs(around - pixels.astype(np.float32)).max(axis=2)
    scale = max(16.0, float(np.percentile(difference, 98)))
    lines: Gray = (np.clip(difference / scale, 0, 1) * 255).astype(np.uint8)
    lines[lines < _FAINTEST_LINE] = 0
    return lines


_TRACERS = {"canny": trace_canny, "sketch": trace_sketch, "lineart": trace_lineart}
_MAP_NAMES = {"seg": "map of segments", "keypose": "drawing of key points", "depth": "depth map", "pose": "drawn pose"}
