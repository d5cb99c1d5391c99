"""Generated images and their files, which carry the settings that they were generated with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lora_service.generation.text_parameters import text_parameters

PNG_SETTINGS = "lora_service"
"""The PNG text chunk that holds all settings as JSON."""
_EXIF_IFD, _EXIF_USER_COMMENT, _EXIF_MAKER_NOTE = 0x8769, 0x9286, 0x927C
_MAX_EXIF = 65_000
"""Bytes; JPEG takes 65,533 in one segment."""


@dataclass(frozen=True)
class GeneratedImage:
    """A generated image, its own seed, and the settings it was generated with."""

    image: Image.Image
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)


def save_image(generated: GeneratedImage, path: Path, quality: int = 90) -> Path:
    """Write an image to ``path``, in the format of its suffix, with its settings in the metadata.

    They are there twice, both without the links, as these may hold a token. As A1111's text
    (:func:`lora_service.generation.text_parameters.text_parameters`): PNG has it as the text chunk ``parameters``, JPEG
    and WebP as the EXIF user comment. And all of them as JSON: in the text chunk ``lora_service``, or as the EXIF maker
    note. Of what EXIF has no room for, the text is kept before the JSON, and the beginning of the text.
    """
    text = text_parameters(generated.settings)
    settings = json.dumps(dict(generated.settings), ensure_ascii=False, sort_keys=True)
    if path.suffix == ".png":
        info = PngInfo()
        info.add_text("parameters", text)  # in Latin-1 where that has all of its letters, as A1111 writes it
        info.add_itxt(PNG_SETTINGS, settings)
        generated.image.save(path, pnginfo=info)
    else:
        generated.image.save(path, quality=quality, exif=_exif(text, settings.encode()))
    return path


def read_settings(path: Path) -> dict[str, Any]:
    """Return the settings that :func:`save_image` wrote; empty for another program's file.

    Raises:
        OSError: it is no image.
    """
    with Image.open(path) as image:
        text = image.info.get(PNG_SETTINGS) or image.getexif().get_ifd(_EXIF_IFD).get(_EXIF_MAKER_NOTE) or "{}"
    try:
        settings = json.loads(text)
    except ValueError:
        return {}
    return settings if isinstance(settings, dict) else {}


def _exif(text: str, settings: bytes) -> Image.Exif:
    # Without half a letter at the end, of those that take two units.
    comment = text.encode("utf-16-be")[:_MAX_EXIF].decode("utf-16-be", "ignore").encode("utf-16-be")
    exif = Image.Exif()
    ifd = exif.get_ifd(_EXIF_IFD)
    ifd[_EXIF_USER_COMMENT] = b"UNICODE\0" + comment
    if len(comment) + len(settings) <= _MAX_EXIF:
        ifd[_EXIF_MAKER_NOTE] = settings
    return exif
