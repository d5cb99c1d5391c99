"""Which captions a picture gets: its own, its name's, a model's, or its task's templates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from PIL import Image

from lora_service.dataset.captions.model import load_caption_model
from lora_service.dataset.captions.task_templates import TEMPLATES
from lora_service.dataset.captions.templates import as_template
from lora_service.dataset.choices import CaptionSource
from lora_service.dataset.options import DatasetOptions
from lora_service.dataset.upload.pairing import RawSample, shortened
from lora_service.errors import PicturesError

_MANY_WORDS = 60  # about 75 tokens, all that CLIP's text encoder reads
_SEPARATORS = re.compile(r"[\s_\-.+~]+")
_COUNTER = re.compile(r"\s*(\(\d+\)|\d+)\s*$")
_CAMERA = re.compile(
    r"(img|dsc[fn]?|pxl|mvimg|p|image|images|photo|picture|pic|screenshot|screen shot|untitled|whatsapp|signal|"
    r"file|frame|scan|download|unnamed|edited|copy)\b",
    re.IGNORECASE,
)
_HEXADECIMAL = re.compile(r"[0-9a-f ]{8,}", re.IGNORECASE)


@dataclass(frozen=True)
class SelectedCaptions:
    """A picture's templates, where they came from, and what a person should know of them."""

    templates: tuple[str, ...]
    source: CaptionSource
    warnings: tuple[str, ...] = ()


def select_captions(
    candidates: Sequence[RawSample], images: Sequence[Image.Image], options: DatasetOptions
) -> list[SelectedCaptions]:
    """The captions of each candidate, whose picture as it is trained on is in ``images``.

    Raises:
        PicturesError: in mode ``files``, a picture has no caption.
        InputError: the model that is to write captions cannot be used.
    """
    found = [_own(candidate, options) for candidate in candidates]
    if options.caption_mode == "model":
        return _with_model(found, images, options)
    without = [candidate.name for candidate, own in zip(candidates, found, strict=True) if own is None]
    if without and options.caption_mode == "files":
        raise PicturesError(
            f"caption_mode is 'files', but these pictures have no caption: {shortened(without)}; "
            "add a text file of the same name to each, or use caption_mode 'auto'."
        )
    return [own or _templates(candidate, options) for candidate, own in zip(candidates, found, strict=True)]


def name_caption(name: str) -> str:
    """What the file's name says of the picture; "" for a camera's or a counter's name."""
    text = _SEPARATORS.sub(" ", PurePosixPath(name).stem).strip()
    while (shorter := _COUNTER.sub("", text)) != text:
        text = shorter
    if _CAMERA.match(text) or _HEXADECIMAL.fullmatch(text) or not re.search(r"[^\W\d]{3}", text):
        return ""
    return text


def _own(candidate: RawSample, options: DatasetOptions) -> SelectedCaptions | None:
    """The captions that came with the picture, unless the options want others."""
    if options.caption_mode != "template" and candidate.captions:
        templates = tuple(as_template(text, options.trigger_words) for text in candidate.captions)
        return SelectedCaptions(templates, "file", tuple(_too_long(templates)))
    if options.caption_mode == "filename" and (text := name_caption(candidate.name)):
        return SelectedCaptions((as_template(text, options.trigger_words),), "filename")
    return None


def _templates(candidate: RawSample, options: DatasetOptions) -> SelectedCaptions:
    warnings: tuple[str, ...] = ()
    if candidate.captions and options.caption_mode == "template":
        warnings = ("its caption file is not used, as caption_mode is 'template'",)
    elif candidate.captions == ():
        warnings = ("its caption file is empty",)
    elif options.caption_mode == "filename":
        warnings = ("its name says nothing of the picture",)
    return SelectedCaptions(options.custom_prompts or TEMPLATES[options.task], "template", warnings)


def _with_model(
    found: Sequence[SelectedCaptions | None], images: Sequence[Image.Image], options: DatasetOptions
) -> list[SelectedCaptions]:
    wanted = [image for image, own in zip(images, found, strict=True) if own is None]
    if options.caption_model is None or not wanted:
        return [own for own in found if own is not None]
    written = iter(load_caption_model(options.caption_model)(wanted))
    return [own or SelectedCaptions((as_template(next(written), options.trigger_words),), "model") for own in found]


def _too_long(templates: Sequence[str]) -> list[str]:
    longest = max(len(template.split()) for template in templates)
    if longest <= _MANY_WORDS:
        return []
    return [f"its caption has {longest} words, of which the model reads about the first {_MANY_WORDS}"]
