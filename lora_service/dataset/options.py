"""Options of a dataset: the choices of its inputs, the limits of an upload, and how images are prepared."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Literal, get_args

from lora_service.errors import InputError
from lora_service.settings import MEBIBYTE, Settings

if TYPE_CHECKING:
    from lora_service.dataset.captions.token_window import TokenWindow

Task = Literal["face", "object", "style", "location"]
MaskMode = Literal["auto", "face", "none", "files"]
CaptionMode = Literal["auto", "files", "filename", "template", "model"]
MaskSource = Literal["face", "file", "alpha"]
CaptionSource = Literal["input", "file", "filename", "template", "model"]

SUBJECT = "{}"
"""The subject's placeholder: every caption template holds it."""
DEFAULT_TRIGGER_WORDS = (SUBJECT, "[trigger]", "<1>", "TOK")
"""Marks that stand for the subject in caption files, whatever the trigger word of the training."""


def check_template(template: str) -> None:
    """Check that a template of ``custom_prompts`` names the subject once.

    Raises:
        InputError: it does not.
    """
    if template.count(SUBJECT) != 1:
        raise InputError("custom_prompts", template, "a template that holds {} exactly once, such as 'a photo of {}'")


def parse_prompts(text: str) -> tuple[str, ...]:
    """Return the templates in the input ``custom_prompts``: a JSON list, or none when ``text`` is empty.

    Raises:
        InputError: ``text`` is no such list, or a template does not hold ``{}`` once.
    """
    if not text.strip():
        return ()
    try:
        templates = json.loads(text)
    except (ValueError, RecursionError):
        templates = None
    if not isinstance(templates, list) or not templates or not all(isinstance(each, str) for each in templates):
        raise InputError("custom_prompts", text, """a JSON list of templates, such as '["a photo of {}"]'""")
    for template in templates:
        check_template(template)
    return tuple(templates)


def parse_captions(text: str) -> dict[str, tuple[str, ...]]:
    """Return the captions of each picture that the input ``captions`` names; none when ``text`` is empty.

    Raises:
        InputError: ``text`` is no JSON object of captions, or of lists of them, by names.
    """
    if not text.strip():
        return {}
    try:
        captions = json.loads(text)
    except (ValueError, RecursionError):
        captions = None
    is_object = isinstance(captions, dict)
    by_picture = captions if is_object else {}
    lists = {name: [value] if isinstance(value, str) else value for name, value in by_picture.items()}
    if not is_object or not all(map(_is_list_of_texts, lists.values())):
        raise InputError("captions", text, """a JSON object of captions by pictures, like '{"1.jpg": "{} at sea"}'""")
    return {name: tuple(" ".join(caption.split()) for caption in value) for name, value in lists.items()}


def _is_list_of_texts(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(each, str) for each in value)


@dataclass(frozen=True)
class UploadLimits:
    """The most that an upload may hold; the settings of the same names change it."""

    max_zip_bytes: int = 1024 * MEBIBYTE
    """Size of an archive, packed and unpacked alike."""
    max_pictures: int = 1000
    max_members: int = 20_000
    """Files and folders in one archive."""
    max_picture_bytes: int = 256 * MEBIBYTE
    """Size of one file of an archive, unpacked."""
    max_caption_bytes: int = 64 * 1024
    """Size of one image's caption file."""
    max_table_bytes: int = 16 * MEBIBYTE
    """Size of a table of captions."""
    max_repeats: int = 1000
    """Repeats that a folder's name may ask for."""
    max_pixels: int = 120_000_000
    """Width × height of one image: the largest telephones take 108 million."""
    max_decode_bytes: int = 2048 * MEBIBYTE
    """Memory of the process that decodes an image."""
    max_decode_seconds: int = 30
    """Time for one image."""
    max_ratio: int = 200
    """Unpacked size over packed size of a file of more than 16 MiB."""

    @staticmethod
    def from_settings(settings: Settings) -> UploadLimits:
        return UploadLimits(**{each.name: getattr(settings, each.name) for each in fields(UploadLimits)})


@dataclass(frozen=True)
class CaptionModelRef:
    """The model that writes captions in mode ``model``.

    Args:
        name: a folder, or a hub id such as "Salesforce/blip-image-captioning-base". A classifier writes tags.
        cache: the folder for models from the hub; none: transformers' default.
        token: the hub's access token, for a gated model.
        device: as torch names it.
        tag_threshold: the least probability of a tag, 0 to 1.
    """

    name: str
    cache: Path | None = None
    token: str = field(default="", repr=False)
    device: str = "cpu"
    tag_threshold: float = 0.35

    @staticmethod
    def from_settings(settings: Settings) -> CaptionModelRef | None:
        """Return the model of the setting ``CAPTION_MODEL``, or None where it is empty."""
        if not settings.caption_model:
            return None
        token = settings.hf_token.get_secret_value()
        return CaptionModelRef(settings.caption_model, cache=settings.model_cache, token=token)


@dataclass(frozen=True)
class DatasetOptions:
    """Options for preparing the images of a training.

    Args:
        resolution: the side in pixels of a square crop; with buckets, the side of the square of the same area.
        more_resolutions: further ones, at which each image is shown too.
        random_crop: keep the uncropped images, for random crops of them.
        bucket_step: the sides of buckets are multiples of this: 64 for bases of full size, 8 × the VAE's factor for
            small ones.
        custom_prompts: templates with ``{}`` for the subject, in place of the task's.
        captions: those of single pictures by name, in place of all others of these.
        trigger_words: words in captions that become ``{}``.
        takes_folder_word: True if the word of a folder named as for kohya's trainer, ``10_ohwx dog``, is the trigger;
            folders with different words are subjects of their own.
        takes_class_folders: True if only the pictures for prior preservation are wanted, of folders such as ``reg``,
            and not those of the subject.
        token_window: the tokens of a caption that the base reads; none: lengths are not checked.
        background: the RGB colour under transparent images.
        face_model: an ONNX file of the YuNet face detector; none: the Haar cascade that OpenCV carries.
        caption_model: the model that writes captions in mode ``model``.

    Raises:
        InputError: a value cannot be used; its ``field`` names it.
    """

    resolution: int
    task: Task = "face"
    mask_mode: MaskMode = "auto"
    caption_mode: CaptionMode = "auto"
    aspect_ratio_buckets: bool = False
    more_resolutions: tuple[int, ...] = ()
    random_crop: bool = False
    bucket_step: int = 64
    custom_prompts: tuple[str, ...] = ()
    captions: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    trigger_words: tuple[str, ...] = DEFAULT_TRIGGER_WORDS
    takes_folder_word: bool = False
    takes_class_folders: bool = False
    token_window: TokenWindow | None = None
    limits: UploadLimits = field(default_factory=UploadLimits)
    background: tuple[int, int, int] = (255, 255, 255)
    face_model: Path | None = None
    caption_model: CaptionModelRef | None = None

    def __post_init__(self) -> None:
        for name, side in self._named_sides():
            if not 16 <= side <= 4096 or side % 8:
                raise InputError(name, side, "a multiple of 8 from 16 to 4096")
            if self.aspect_ratio_buckets and self.bucket_step > side:
                expected = f"at least {self.bucket_step} with aspect_ratio_buckets on this base"
                raise InputError(name, side, expected)
        if self.bucket_step < 8 or self.bucket_step % 8:
            raise InputError("bucket_step", self.bucket_step, "a multiple of 8")
        for name, value, choices in (
            ("task", self.task, get_args(Task)),
            ("mask_mode", self.mask_mode, get_args(MaskMode)),
            ("caption_mode", self.caption_mode, get_args(CaptionMode)),
        ):
            if value not in choices:
                raise InputError(name, value, f"one of {', '.join(choices)}")
        for template in self.custom_prompts:
            check_template(template)
        if self.caption_mode == "model" and self.caption_model is None:
            raise InputError("caption_mode", "model", "another mode, unless the setting CAPTION_MODEL names a model")

    def _named_sides(self) -> list[tuple[str, int]]:
        """Return each resolution with the name of its input."""
        return [("resolution", self.resolution), *(("more_resolutions", side) for side in self.more_resolutions)]

    @property
    def resolutions(self) -> tuple[int, ...]:
        """All resolutions, the main one first."""
        return (self.resolution, *self.more_resolutions)

    @property
    def detects_faces(self) -> bool:
        """True if a face is the mask of an image that comes without one."""
        return self.mask_mode == "face" or (self.mask_mode == "auto" and self.task == "face")
