"""Captions of each image: those of the input, else by ``caption_mode`` from its files, its name, a model, templates."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from PIL import Image

from lora_service.dataset.captions.model import load_caption_model
from lora_service.dataset.captions.templates import TEMPLATES, caption_to_template
from lora_service.dataset.options import CaptionSource, DatasetOptions
from lora_service.dataset.report import join_names
from lora_service.dataset.upload.source_files import RawSample
from lora_service.errors import PicturesError, quote

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
    """The caption templates of one image, their source, and warnings for a person."""

    templates: tuple[str, ...]
    source: CaptionSource
    warnings: tuple[str, ...] = ()


def select_captions(
    samples: Sequence[RawSample], images: Sequence[Image.Image], options: DatasetOptions
) -> list[SelectedCaptions]:
    """Return the captions of each sample; ``images`` are the same samples as they are trained on.

    Raises:
        PicturesError: in mode ``files``, an image has no caption (code ``missing_captions``).
        InputError: the captioning model cannot be used.
    """
    templates_of = _TemplateCache(options)
    selected = [
        _from_input(sample, options, templates_of)
        or _from_files(sample, options, templates_of)
        or _from_name(sample, options)
        for sample in samples
    ]
    if options.caption_mode == "model":
        return _add_model_captions(selected, images, options)
    missing = [sample.name for sample, captions in zip(samples, selected, strict=True) if captions is None]
    if missing and options.caption_mode == "files":
        raise PicturesError(
            f"caption_mode is 'files', but these pictures have no caption: {join_names(missing)}; "
            "add a text file of the same name to each, or use caption_mode 'auto'.",
            code="missing_captions",
            field="caption_mode",
        )
    return [captions or _from_templates(sample, options) for sample, captions in zip(samples, selected, strict=True)]


def fit_prompts(options: DatasetOptions) -> tuple[DatasetOptions, tuple[str, ...]]:
    """Return ``options`` with custom prompts whose subject the base reads, and warnings of those that are cut."""
    window = options.token_window
    if window is None or options.caption_mode == "model":
        return options, ()
    warnings = tuple(
        warning
        for prompt in options.custom_prompts
        if (warning := window.warning(prompt, f"the template {quote(prompt)} of custom_prompts"))
    )
    return replace(options, custom_prompts=tuple(map(window.keep_subject, options.custom_prompts))), warnings


def caption_from_name(name: str) -> str:
    """Return the caption in a file's name; "" for the name of a camera or a counter."""
    text = _SEPARATORS.sub(" ", PurePosixPath(name).stem).strip()
    while (shorter := _COUNTER.sub("", text)) != text:
        text = shorter
    if _CAMERA.match(text) or _HEXADECIMAL.fullmatch(text) or not re.search(r"[^\W\d]{3}", text):
        return ""
    return text


class _TemplateCache(dict[tuple[str, ...], SelectedCaptions]):
    """Captions of a file -> their templates: one text may caption a thousand pictures, and hold a thousand lines."""

    def __init__(self, options: DatasetOptions) -> None:
        super().__init__()
        self._options = options

    def __missing__(self, captions: tuple[str, ...]) -> SelectedCaptions:
        templates = (caption_to_template(caption, self._options.trigger_words) for caption in captions)
        self[captions] = _fitted(tuple(templates), "file", self._options)
        return self[captions]


def _fitted(templates: tuple[str, ...], source: CaptionSource, options: DatasetOptions) -> SelectedCaptions:
    """Return ``templates`` with the subject where the base reads it, and a warning of the first that is cut."""
    window = options.token_window
    if window is None:
        return SelectedCaptions(templates, source)
    warnings = [warning for template in templates if (warning := window.warning(template))]
    more = f" (and {len(warnings) - 1} more of its captions)" if len(warnings) > 1 else ""
    fitted = tuple(map(window.keep_subject, templates))
    return SelectedCaptions(fitted, source, tuple(f"{warning}{more}" for warning in warnings[:1]))


def _from_input(sample: RawSample, options: DatasetOptions, templates_of: _TemplateCache) -> SelectedCaptions | None:
    captions = options.captions.get(sample.name)
    return replace(templates_of[captions], source="input") if captions else None


def _from_files(sample: RawSample, options: DatasetOptions, templates_of: _TemplateCache) -> SelectedCaptions | None:
    if options.caption_mode == "template" or not sample.captions:
        return None
    return templates_of[sample.captions]


def _from_name(sample: RawSample, options: DatasetOptions) -> SelectedCaptions | None:
    if options.caption_mode != "filename" or not (caption := caption_from_name(sample.name)):
        return None
    return _fitted((caption_to_template(caption, options.trigger_words),), "filename", options)


def _from_templates(sample: RawSample, options: DatasetOptions) -> SelectedCaptions:
    warnings: tuple[str, ...] = ()
    if sample.captions and options.caption_mode == "template":
        warnings = ("its caption file is not used, as caption_mode is 'template'",)
    elif sample.captions == ():
        warnings = ("its caption file is empty",)
    elif options.caption_mode == "filename":
        warnings = ("its name says nothing of the picture",)
    templates = options.custom_prompts or TEMPLATES[options.task]
    if options.token_window is not None:
        templates = tuple(map(options.token_window.keep_subject, templates))
    return SelectedCaptions(templates, "template", warnings)


def _add_model_captions(
    selected: Sequence[SelectedCaptions | None], images: Sequence[Image.Image], options: DatasetOptions
) -> list[SelectedCaptions]:
    """Return ``selected`` with captions by the model for the images that have none yet."""
    uncaptioned = [image for image, captions in zip(images, selected, strict=True) if captions is None]
    if options.caption_model is None or not uncaptioned:
        return [captions for captions in selected if captions is not None]
    generated = (
        _fitted((caption_to_template(caption, options.trigger_words),), "model", options)
        for caption in load_caption_model(options.caption_model)(uncaptioned)
    )
    return [captions or next(generated) for captions in selected]
