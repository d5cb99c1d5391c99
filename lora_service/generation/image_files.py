"""Generated images and their files, which carry the settings that they were generated with."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from PIL.PngImagePlugin import PngInfo

from lora_service.generation.schedulers import SCHEDULERS

PNG_SETTINGS = "lora_service"
"""The PNG text chunk that holds all settings as JSON."""
_EXIF_IFD, _EXIF_USER_COMMENT, _EXIF_MAKER_NOTE = 0x8769, 0x9286, 0x927C
_MAX_EXIF = 65_000
"""Bytes; JPEG takes 65,533 in one segment."""
_SPECIAL = frozenset(',:\n"')


@dataclass(frozen=True)
class GeneratedImage:
    """A generated image, its own seed, and the settings it was generated with."""

    image: Image.Image
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)


def save_image(generated: GeneratedImage, path: Path, quality: int = 90) -> Path:
    """Write an image to ``path``, in the format of its suffix, with its settings in the metadata.

    They are there twice, both without the links, as these may hold a token. As A1111's text (:func:`text_parameters`):
    PNG has it as the text chunk ``parameters``, JPEG and WebP as the EXIF user comment. And all of them as JSON: in
    the text chunk ``lora_service``, or as the EXIF maker note. Of what EXIF has no room for, the text is kept before
    the JSON, and the beginning of the text.
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


def text_parameters(settings: Mapping[str, Any]) -> str:
    """Return settings as A1111 writes them, and Civitai, Forge and ComfyUI's loaders read them too.

    That is the prompt, a line with the negative prompt, and a line of settings by A1111's names.

    Args:
        settings: those of a generated image, by our names.
    """
    lines = [str(settings.get("prompt", ""))]
    if negative := settings.get("negative_prompt"):
        lines.append(f"Negative prompt: {negative}")
    lines.append(", ".join(f"{name}: {_quoted(value)}" for name, value in _named(settings).items() if value != ""))
    return "\n".join(lines)


def _named(settings: Mapping[str, Any]) -> dict[str, Any]:
    scheduler = settings.get("scheduler", "")
    choice = SCHEDULERS.get(scheduler)
    schedule = settings.get("schedule") or (choice.schedule if choice else "default")
    size = f"{settings['width']}x{settings['height']}" if "width" in settings else ""
    return {
        "Steps": settings.get("num_inference_steps", ""),
        "Sampler": (choice and choice.webui_name) or scheduler,
        "Schedule type": schedule.capitalize() if schedule != "default" else "",
        "CFG scale": settings.get("guidance_scale", ""),
        "Seed": settings.get("seed", ""),
        "Size": size,
        "Model": settings.get("base", ""),
        "Clip skip": settings.get("clip_skip", ""),
        "Denoising strength": settings.get("prompt_strength", ""),
        "Mask blur": settings.get("mask_feather", ""),
    }


def _quoted(value: Any) -> str:
    """Return a value, as a JSON string where a comma or a colon in it would end it."""
    text = f"{value:g}" if isinstance(value, float) else str(value)
    return json.dumps(text, ensure_ascii=False) if _SPECIAL & set(text) else text
