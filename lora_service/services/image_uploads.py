"""Decodes the pictures that come with an inference request."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from lora_service.downloads.parsed_url import redact
from lora_service.errors import InputError, PicturesError
from lora_service.settings import Settings

if TYPE_CHECKING:
    from PIL import Image

_SHORTER_SIDE = 4096
"""Of a picture whose shorter side has more than twice as many pixels, a half or a quarter is decoded."""


def open_image(
    field: str, value: object, settings: Settings, background: tuple[int, int, int] = (255, 255, 255)
) -> Image.Image | None:
    """Decode the picture of an input, upright and in sRGB, in whatever format it is; None stays None.

    Args:
        field: the input.
        value: anything that Cog hands over: a ``Path`` for what it downloaded, and a bare ``str`` for what it did not
            understand, which must not be opened.
        settings: limits of uploads.
        background: the colour under transparent parts.

    Raises:
        InputError: it is no upload.
        PicturesError: it cannot be decoded.
    """
    if value is None:
        return None
    from lora_service.dataset.images.decoder_process import DecodeRequest, decode_apart
    from lora_service.dataset.options import UploadLimits
    from lora_service.dataset.upload.source_files import SourceFile

    if not isinstance(value, Path):
        raise InputError(field, redact(str(value)), "an uploaded picture or an http(s) link to one")
    try:
        limits, file = UploadLimits.from_settings(settings), SourceFile(field, value)
        return decode_apart(DecodeRequest.within(limits, file, _SHORTER_SIDE, background)).image
    except PicturesError as error:
        raise PicturesError(f"The input {field} cannot be used: {error}.", code=error.code, field=field) from error
