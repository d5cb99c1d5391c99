"""How pictures are to be read, and how much of them is accepted."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import get_args

from lora_service.dataset.captions.model import CaptionModelRef
from lora_service.dataset.captions.templates import DEFAULT_MARKS, check_prompt
from lora_service.dataset.choices import CaptionMode, MaskMode, Task
from lora_service.errors import InputError
from lora_service.settings import MEBIBYTE, Settings


@dataclass(frozen=True)
class UploadLimits:
    """What an upload may hold at most; beyond it, one sentence says so and nothing is read further."""

    max_zip_bytes: int = 1024 * MEBIBYTE
    """An archive's size, packed and unpacked alike."""
    max_pictures: int = 1000
    max_members: int = 20_000
    """Files and folders in one archive."""
    max_picture_bytes: int = 256 * MEBIBYTE
    """One file of an archive, unpacked."""
    max_pixels: int = 120_000_000
    """Width × height of one picture: the largest telephones take 108 million."""
    max_ratio: int = 200
    """How many times larger than packed a file of more than 16 MiB may unpack."""

    @staticmethod
    def from_settings(settings: Settings) -> UploadLimits:
        return UploadLimits(**{each.name: getattr(settings, each.name) for each in fields(UploadLimits)})


@dataclass(frozen=True)
class DatasetOptions:
    """Everything about how the pictures of a training are read.

    Args:
        resolution: the side in pixels of a square crop; with buckets, the side of the square of the same area.
        bucket_step: the sides of buckets are multiples of this: 64 for bases of full size, 8 × the VAE's factor for
            small ones.
        custom_prompts: templates with ``{}`` for the subject, in place of the task's own.
        trigger_words: what stands for the subject in caption files, besides the subject's own trigger.
        background: the colour that transparent pictures are laid on.
        face_model: an ONNX file of the YuNet face detector; none: the Haar cascades that OpenCV carries.
        caption_model: what writes captions in mode ``model``.

    Raises:
        InputError: a value cannot be used; the message names it.
    """

    resolution: int
    task: Task = "face"
    mask_mode: MaskMode = "auto"
    caption_mode: CaptionMode = "auto"
    aspect_ratio_buckets: bool = False
    bucket_step: int = 64
    custom_prompts: tuple[str, ...] = ()
    trigger_words: tuple[str, ...] = DEFAULT_MARKS
    limits: UploadLimits = field(default_factory=UploadLimits)
    background: tuple[int, int, int] = (255, 255, 255)
    face_model: Path | None = None
    caption_model: CaptionModelRef | None = None

    def __post_init__(self) -> None:
        if not 16 <= self.resolution <= 4096 or self.resolution % 8:
            raise InputError("resolution", self.resolution, "a multiple of 8 from 16 to 4096")
        if self.bucket_step < 8 or self.bucket_step % 8:
            raise InputError("bucket_step", self.bucket_step, "a multiple of 8")
        if self.aspect_ratio_buckets and self.bucket_step > self.resolution:
            raise InputError("bucket_step", self.bucket_step, f"at most the resolution, {self.resolution}")
        for name, value, kind in (
            ("task", self.task, Task),
            ("mask_mode", self.mask_mode, MaskMode),
            ("caption_mode", self.caption_mode, CaptionMode),
        ):
            if value not in get_args(kind):
                raise InputError(name, value, f"one of {', '.join(get_args(kind))}")
        for prompt in self.custom_prompts:
            check_prompt(prompt)
        if self.caption_mode == "model" and self.caption_model is None:
            raise InputError("caption_mode", "model", "another mode, unless the setting CAPTION_MODEL names a model")

    @property
    def finds_faces(self) -> bool:
        """Whether faces are looked for in pictures that bring no mask."""
        return self.mask_mode == "face" or (self.mask_mode == "auto" and self.task == "face")
