"""One picture file of any kind to upright sRGB, whatever its name says it is."""

from __future__ import annotations

import io
import math
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

import numpy as np
import pillow_heif
from PIL import ExifTags, Image, ImageCms, UnidentifiedImageError

from lora_service.dataset.upload.archives import SourceFile
from lora_service.errors import PicturesError

pillow_heif.register_heif_opener()

FORMATS = ("JPEG", "PNG", "WEBP", "BMP", "TIFF", "GIF", "AVIF", "HEIF")
_READABLE = "jpg, png, webp, bmp, tiff, gif, avif and heic are read"
_RAW = {".dng", ".cr2", ".nef", ".arw", ".orf", ".rw2", ".pef", ".srw"}  # TIFFs of which Pillow sees the thumbnail
_OVERSAMPLING = 2  # a picture is reduced early only to this many times the wanted size; Lanczos does the rest
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


class UnusableFile(PicturesError):
    """A file cannot be used as a picture; the message is the reason, without the file's name."""


@dataclass(frozen=True)
class DecodedImage:
    """A picture as a person sees it.

    Args:
        image: RGB in sRGB, upright; transparent parts lie on the background colour.
        alpha: "L", of the image's size, where the file is transparent somewhere.
        original: width and height in the file, upright; ``image`` may be smaller.
        warnings: what a person should know.
    """

    image: Image.Image
    alpha: Image.Image | None
    original: tuple[int, int]
    warnings: tuple[str, ...]


def decode(file: SourceFile, wanted: int, background: tuple[int, int, int], max_pixels: int) -> DecodedImage:
    """The picture in ``file``, at no less than twice ``wanted`` pixels on its short side where it has them.

    Raises:
        UnusableFile: it is no picture, damaged, or larger than ``max_pixels``.
    """
    if PurePosixPath(file.name.lower()).suffix in _RAW:
        raise UnusableFile("it is a camera's raw file; export it as jpg")
    try:
        with Image.open(file.path, formats=FORMATS) as image:
            return _decode(image, wanted, background, max_pixels)
    except UnusableFile:
        raise
    except UnidentifiedImageError:
        raise UnusableFile(f"it is not a picture that can be read ({_READABLE})") from None
    except Image.DecompressionBombError as error:
        raise UnusableFile(f"it has more than the {max_pixels / 1e6:.0f} million pixels that are accepted") from error
    except Exception as error:  # decoders raise anything on damaged data: SyntaxError, struct.error, KeyError …
        raise UnusableFile(f"it is damaged ({_one_line(error)})") from error


def _decode(image: Image.Image, wanted: int, background: tuple[int, int, int], max_pixels: int) -> DecodedImage:
    if image.width * image.height > max_pixels:
        raise UnusableFile(
            f"it has {image.width} × {image.height} pixels, but {max_pixels / 1e6:.0f} million are accepted at most"
        )
    warnings = []
    if image.format not in _STILL_FORMATS and getattr(image, "is_animated", False):
        warnings.append("only its first frame is used")
    width, height = image.size
    enough = max(1, math.floor(min(width, height) / (_OVERSAMPLING * wanted)))
    image.draft(None, (width // enough, height // enough))  # JPEG: decodes at 1/2, 1/4 or 1/8 straight away
    image.load()
    turn = _UPRIGHT.get(_orientation(image))
    profile = image.info.get("icc_profile")
    color, alpha = _split(image)
    color, alpha = _reduced(color, alpha, max(1, math.floor(min(color.size) / (_OVERSAMPLING * wanted))))
    color, complaint = _to_srgb(color, profile)
    if complaint:
        warnings.append(complaint)
    if alpha is not None:
        color = Image.composite(color, Image.new("RGB", color.size, background), alpha)
    if turn is not None:
        color, alpha = color.transpose(turn), alpha.transpose(turn) if alpha else None
        width, height = (height, width) if turn in _SIDEWAYS else (width, height)
    return DecodedImage(color, alpha, (width, height), tuple(warnings))


def _orientation(image: Image.Image) -> int:
    try:
        return int(image.getexif().get(ExifTags.Base.Orientation, 1))
    except Exception:  # a damaged EXIF block does not make the pixels worse
        return 1


def _split(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """The colours in a mode that a profile can be applied to (L, RGB, CMYK, LAB), and alpha if it matters."""
    if image.mode.startswith("I") or image.mode == "F":
        return _to_eight_bits(image), None
    alpha = None
    if image.has_transparency_data:
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        if alpha.getextrema() == (255, 255):
            alpha = None
        elif alpha.getextrema() == (0, 0):
            raise UnusableFile("it is wholly transparent")
    if image.mode in ("L", "RGB", "CMYK", "LAB"):
        return image, alpha
    return image.convert("L" if image.mode in ("1", "LA") else "RGB"), alpha


def _to_eight_bits(image: Image.Image) -> Image.Image:
    """Sixteen-bit and floating-point greys: their own range where it is known, else as wide as they are."""
    values = np.asarray(image, dtype=np.float64)
    values = np.nan_to_num(values, posinf=0, neginf=0)
    highest = float(values.max(initial=0))
    if image.mode.startswith("I;16") or (image.mode == "I" and highest <= 65535):
        white = 65535.0
    else:
        white = 1.0 if highest <= 1 else 255.0 if highest <= 255 else highest
    return Image.fromarray(np.clip(values / white * 255 + 0.5, 0, 255).astype(np.uint8))


def _reduced(color: Image.Image, alpha: Image.Image | None, factor: int) -> tuple[Image.Image, Image.Image | None]:
    """Both at 1/``factor``; colours are weighted by alpha, so that what is invisible does not bleed."""
    if factor == 1:
        return color, alpha
    if alpha is None:
        return color.reduce(factor), None
    both = color.convert("RGBA")
    both.putalpha(alpha)
    both = both.reduce(factor)
    return both.convert("RGB"), both.getchannel("A")


def _to_srgb(image: Image.Image, profile: Any) -> tuple[Image.Image, str]:
    """``image`` in sRGB, and what went wrong with its colour profile, or ""."""
    if image.mode == "LAB":
        transform = ImageCms.buildTransform(ImageCms.createProfile("LAB"), _SRGB, "LAB", "RGB")
        return _applied(transform, image), ""
    if not profile:
        return image.convert("RGB"), ""
    try:
        source = ImageCms.ImageCmsProfile(io.BytesIO(profile))
        transform = ImageCms.buildTransform(source, _SRGB, image.mode, "RGB")
        return _applied(transform, image), ""
    except (ImageCms.PyCMSError, OSError, ValueError, TypeError):
        return image.convert("RGB"), "its colour profile cannot be read and was ignored"


def _applied(transform: ImageCms.ImageCmsTransform, image: Image.Image) -> Image.Image:
    result = ImageCms.applyTransform(image, transform)
    if result is None:  # only when working in place
        raise ValueError("no result")
    return result


def _one_line(error: Exception) -> str:
    return " ".join(f"{error}".split())[:120] or type(error).__name__


def decode_mask(file: SourceFile, max_pixels: int) -> Image.Image:
    """The mask in ``file``, "L": its transparency where it has some, else its brightness.

    Raises:
        UnusableFile: as ``decode``.
    """
    decoded = decode(file, wanted=max_pixels, background=(0, 0, 0), max_pixels=max_pixels)
    return decoded.alpha or decoded.image.convert("L")
