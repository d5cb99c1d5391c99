"""Decoding: an image file of any format, whatever its name, becomes upright sRGB."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pillow_heif
from numpy.typing import NDArray
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from lora_service.dataset.images.crops import Size
from lora_service.dataset.upload.source_files import SourceFile, UnusableFileError
from lora_service.errors import shorten
from lora_service.settings import MEBIBYTE

pillow_heif.register_heif_opener()

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIF")
_READABLE = "jpg, png, webp, bmp, tiff, gif, avif and heic are read"
_RAW = {".dng", ".cr2", ".nef", ".arw", ".orf", ".rw2", ".pef", ".srw"}  # TIFFs of which Pillow sees the thumbnail
_MAX_RATIO = 100  # of the longer side to the shorter
_STRIP = 256  # rows
_PIXEL_BYTES = {"1": 1, "L": 1, "P": 1, "I;16": 2, "I;16B": 2, "I;16L": 2}  # in Pillow's memory; 4 in other modes
_PROGRESSIVE_BYTES = 6  # per pixel: 2 for each coefficient
_OVERSAMPLING = 2  # an image is reduced early only to this many times the target side; Lanczos does the rest
_STILL_FORMATS = {"JPEG", "MPO", "HEIF", "AVIF"}  # further frames of these are depth maps and thumbnails
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = {_UPRIGHT[5], _UPRIGHT[6], _UPRIGHT[7], _UPRIGHT[8]}
_SRGB = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB"))


@dataclass(frozen=True)
class DecodedImage:
    """An image as a person sees it.

    Args:
        image: RGB in sRGB, upright; transparent parts show the background colour.
        alpha: "L", of the image's size; none: the file is opaque everywhere.
        original: the size in the file, upright; ``image`` may be smaller.
        warnings: messages for a person.
    """

    image: Image.Image
    alpha: Image.Image | None
    original: Size
    warnings: tuple[str, ...]


def decode(
    file: SourceFile,
    target_side: int,
    background: tuple[int, int, int],
    max_pixels: int,
    max_bytes: int = 1024 * MEBIBYTE,
) -> DecodedImage:
    """Decode the image in ``file``.

    Args:
        target_side: the shorter side in pixels that will be used of it; a larger image is reduced while decoding, to no
            less than twice that.
        background: the RGB colour under transparent parts.
        max_pixels: the most that width × height may be.
        max_bytes: the most memory that its pixels may take while they are decoded.

    Raises:
        UnusableFileError: it is no image (code ``not_an_image``, ``raw_file``), damaged (``damaged``), larger than
            ``max_pixels`` (``too_many_pixels``) or ``max_bytes`` (``too_much_memory``), many times longer than wide
            (``too_narrow``), or wholly transparent (``transparent``).
        MemoryError: the process has too little.
    """
    if PurePosixPath(file.name.lower()).suffix in _RAW:
        raise UnusableFileError("it is a camera's raw file; export it as jpg", code="raw_file")
    try:
        with Image.open(file.path, formats=FORMATS) as image:
            _check_size(image, max_pixels)
            return _decode(image, target_side, background, max_bytes)
    except (UnusableFileError, MemoryError):
        raise
    except UnidentifiedImageError:
        raise UnusableFileError(f"it is not a picture that can be read ({_READABLE})", code="not_an_image") from None
    except Image.DecompressionBombError as error:
        message = f"it has more than the {max_pixels / 1e6:.0f} million pixels that are accepted"
        raise UnusableFileError(message, code="too_many_pixels") from error
    except Exception as error:  # decoders raise anything on damaged data: SyntaxError, struct.error, KeyError …
        raise UnusableFileError(f"it is damaged ({_one_line(error)})", code="damaged") from error


def _check_size(image: Image.Image, max_pixels: int) -> None:
    size = f"{image.width} × {image.height} pixels"
    if image.width * image.height > max_pixels:
        message = f"it has {size}, but {max_pixels / 1e6:.0f} million are accepted at most"
        raise UnusableFileError(message, code="too_many_pixels")
    if max(image.size) > _MAX_RATIO * min(image.size):
        raise UnusableFileError(f"it has {size}, which is a line and no picture", code="too_narrow")


def _check_memory(image: Image.Image, full_size: Size, max_bytes: int) -> None:
    """Check what decoding takes: a copy in Pillow's memory and one converted, and all scans of a progressive JPEG."""
    pixel = 2 * _PIXEL_BYTES.get(image.mode, 4)
    scans = _PROGRESSIVE_BYTES * full_size[0] * full_size[1] if image.info.get("progressive") else 0
    if (needed := pixel * image.width * image.height + scans) > max_bytes:
        message = f"it takes {needed / MEBIBYTE:.0f} MiB to decode, but {max_bytes / MEBIBYTE:.0f} are accepted at most"
        raise UnusableFileError(message, code="too_much_memory")


def _decode(image: Image.Image, target_side: int, background: tuple[int, int, int], max_bytes: int) -> DecodedImage:
    warnings = []
    if image.format not in _STILL_FORMATS and getattr(image, "is_animated", False):
        warnings.append("only its first frame is used")
    width, height = image.size
    factor = _reduction(image.size, target_side)
    image.draft(None, (width // factor, height // factor))  # JPEG: decodes at 1/2, 1/4 or 1/8 straight away
    _check_memory(image, (width, height), max_bytes)
    image.load()
    transpose = _UPRIGHT.get(_orientation(image))
    profile = image.info.get("icc_profile")
    converted = _convert(image)
    factor = _reduction(converted.size, target_side)
    # Pillow weights colours by alpha, so that invisible ones do not bleed.
    color, alpha = _split_alpha(converted.reduce(factor) if factor > 1 else converted)
    color, profile_warning = _to_srgb(color, profile)
    if profile_warning:
        warnings.append(profile_warning)
    if alpha is not None:
        color = Image.composite(color, Image.new("RGB", color.size, background), alpha)
    if transpose is not None:
        color, alpha = color.transpose(transpose), alpha.transpose(transpose) if alpha else None
        width, height = (height, width) if transpose in _SIDEWAYS else (width, height)
    return DecodedImage(color, alpha, (width, height), tuple(warnings))


def _reduction(size: Size, target_side: int) -> int:
    """Return the factor by which an image of ``size`` may be reduced early."""
    return max(1, math.floor(min(size) / (_OVERSAMPLING * target_side)))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged EXIF block does not make the pixels worse
        return 1


def _convert(image: Image.Image) -> Image.Image:
    """Return ``image`` in a mode that can be reduced, and that its profile applies to: L, RGB, RGBA, CMYK or LAB."""
    if image.mode.startswith("I") or image.mode == "F":
        return _to_eight_bits(image)
    if image.has_transparency_data:
        return image.convert("RGBA")
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image
    return image.convert("L" if image.mode in ("1", "LA") else "RGB")


def _split_alpha(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """Return the colours, and alpha unless it is opaque everywhere."""
    if image.mode != "RGBA":
        return image, None
    alpha = image.getchannel("A")
    if alpha.getextrema() == (0, 0):
        raise UnusableFileError("it is wholly transparent", code="transparent")
    return image.convert("RGB"), None if alpha.getextrema() == (255, 255) else alpha


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Return 16-bit, 32-bit or floating-point greys as "L": from the mode's range if known, else from the image's."""
    values = np.asarray(image)
    strips = [values[start : start + _STRIP] for start in range(0, len(values), _STRIP)]  # float64 is 8 times as much
    highest = max(float(_finite(strip).max(initial=0)) for strip in strips)
    if image.mode.startswith("I;16") or (image.mode == "I" and highest <= 65535):
        white = 65535.0
    else:
        white = 1.0 if highest <= 1 else 255.0 if highest <= 255 else highest
    result = np.empty(values.shape, np.uint8)
    for number, strip in enumerate(strips):
        result[number * _STRIP :][: len(strip)] = np.clip(_finite(strip) / white * 255 + 0.5, 0, 255)
    return Image.fromarray(result)


def _finite(values: NDArray[Any]) -> NDArray[np.float64]:
    return np.nan_to_num(values.astype(np.float64), posinf=0, neginf=0)


def _to_srgb(image: Image.Image, profile: Any) -> tuple[Image.Image, str]:
    """Return ``image`` in sRGB, and a warning about its colour profile, or ""."""
    if image.mode == "LAB":
        transform = ImageCms.buildTransform(ImageCms.createProfile("LAB"), _SRGB, "LAB", "RGB")
        return _apply_transform(transform, image), ""
    if not profile:
        return image.convert("RGB"), ""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, _SRGB, image.mode, "RGB")
        return _apply_transform(transform, image), ""
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image.convert("RGB"), "its colour profile cannot be read and was ignored"


def _apply_transform(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> Image.Image:
    result = ImageCms.applyTransform(image, transform)
    if result is None:  # only when working in place
        raise ValueError("no result")
    return result


def _one_line(error: Exception) -> str:
    return shorten(f"{error}", 120).strip() or type(error).__name__


def mask_in(decoded: DecodedImage) -> Image.Image:
    """Return the mask that an image is, "L": its transparency where it has some, else its brightness."""
    return decoded.alpha or decoded.image.convert("L")
