"""Generated images and their files, which carry the settings that they were generated with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

_EXIF_IFD, _EXIF_USER_COMMENT = 0x8769, 0x9286


@dataclass(frozen=True)
class GeneratedImage:
    """A generated image, its own seed, and the settings it was generated with."""

    image: Image.Image
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)


def save_image(generated: GeneratedImage, path: Path, quality: int = 90) -> Path:
    """Write an image to ``path``, in the format of its suffix, with its settings in the metadata.

    The metadata is JSON with the prompt, the seed and all other settings but the links, as these may hold a token. PNG
    has it as the text chunk ``parameters``, JPEG and WebP as the EXIF user comment.
    """
    text = json.dumps(dict(generated.settings), ensure_ascii=False, sort_keys=True)
    if path.suffix == ".png":
        info = PngInfo()
        info.add_itxt("parameters", text)
        generated.image.save(path, pnginfo=info)
    else:
        exif = Image.Exif()
        exif.get_ifd(_EXIF_IFD)[_EXIF_USER_COMMENT] = b"UNICODE\0" + text.encode("utf-16-be")
        generated.image.save(path, quality=quality, exif=exif)
    return path
