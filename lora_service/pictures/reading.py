"""From what a person uploads to the pictures of a training."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from lora_service.errors import PicturesError
from lora_service.pictures.archives import unpack
from lora_service.pictures.captions import as_template
from lora_service.pictures.dataset import TrainingPicture, TrainingPictures
from lora_service.pictures.decoding import UnusableFile, decode
from lora_service.pictures.faces import FaceDetector, face_detector
from lora_service.pictures.framing import bucket, frame
from lora_service.pictures.kinds import CaptionSource, MaskSource
from lora_service.pictures.masks import center, find_mask
from lora_service.pictures.options import PictureOptions
from lora_service.pictures.report import Duplicate, LeftOut, PictureReport, UsedPicture
from lora_service.pictures.sidecars import Candidate, shortened, sort_files
from lora_service.pictures.templates import TEMPLATES

_MOST_WORKERS = 4  # each holds one picture at full size


def read_pictures(source: Path | Sequence[Path], options: PictureOptions, folder: Path) -> TrainingPictures:
    """The pictures in ``source``, checked, upright, framed, captioned and masked.

    Args:
        source: an archive, a folder, a picture, or several of these.
        folder: the job's own; archives are unpacked into it, and nothing is written elsewhere.

    Raises:
        PicturesError: nothing in it can be used, or something in it needs the person's decision.
    """
    unpacked_to = folder / "unpacked"
    unpacked_to.mkdir(parents=True, exist_ok=True)
    try:
        return _read(source, options, unpacked_to)
    finally:
        shutil.rmtree(unpacked_to)


@dataclass(frozen=True)
class _Read:
    """A picture that was read, and what the report says of it."""

    picture: TrainingPicture
    caption_source: CaptionSource
    mask_source: MaskSource | None
    warnings: tuple[str, ...]


def _read(source: Path | Sequence[Path], options: PictureOptions, folder: Path) -> TrainingPictures:
    unpacked = unpack(source, folder, options.limits)
    found = sort_files(unpacked.files)
    if len(found.candidates) > options.limits.max_pictures:
        raise PicturesError(
            f"{len(found.candidates)} pictures were given, but {options.limits.max_pictures} are accepted at most."
        )
    faces = face_detector(options.face_model) if _wants_faces(options) else None
    with ThreadPoolExecutor(min(_MOST_WORKERS, os.cpu_count() or 1)) as workers:
        digests = list(workers.map(_digest, found.candidates))
        unique, duplicates = _without_copies(found.candidates, digests)
        results = list(workers.map(lambda candidate: _read_one(candidate, options, faces), unique))
    read = [result for result in results if isinstance(result, _Read)]
    left_out = [*unpacked.left_out, *found.left_out, *(r for r in results if isinstance(r, LeftOut))]
    if not read:
        raise PicturesError(_nothing_usable(left_out))
    report = PictureReport(
        used=tuple(_entry(each) for each in read),
        left_out=tuple(left_out),
        duplicates=tuple(duplicates),
        folders=found.folders,
    )
    return TrainingPictures(tuple(each.picture for each in read), report)


def _wants_faces(options: PictureOptions) -> bool:
    return options.mask_mode == "face" or (options.mask_mode == "auto" and options.task == "face")


def _digest(candidate: Candidate) -> bytes:
    with candidate.file.path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _without_copies(
    candidates: Sequence[Candidate], digests: Sequence[bytes]
) -> tuple[list[Candidate], list[Duplicate]]:
    first: dict[bytes, Candidate] = {}
    duplicates = []
    for candidate, digest in zip(candidates, digests, strict=True):
        if digest in first:
            duplicates.append(Duplicate(candidate.name, first[digest].name, exact=True))
        else:
            first[digest] = candidate
    return list(first.values()), duplicates


def _read_one(candidate: Candidate, options: PictureOptions, faces: FaceDetector | None) -> _Read | LeftOut:
    wanted = options.resolution // 2 if options.aspect_ratio_buckets else options.resolution
    try:
        decoded = decode(candidate.file.path, wanted, options.background, options.limits.max_pixels)
    except UnusableFile as error:
        return LeftOut(candidate.name, str(error))
    mask = find_mask(decoded, candidate.mask, options, faces)
    size = (options.resolution, options.resolution)
    if options.aspect_ratio_buckets:
        size = bucket(decoded.original, options.resolution, options.bucket_step)
    framed = frame(decoded.original, size, center(mask.image) if mask.image else None)
    captions, caption_source = _captions(candidate, options)
    picture = TrainingPicture(
        name=candidate.name,
        image=framed.apply(decoded.image),
        captions=captions,
        mask=framed.apply(mask.image) if mask.image else None,
        crop=framed.crop,
        original=decoded.original,
        repeats=candidate.repeats,
    )
    warnings = [*decoded.warnings, *mask.warnings]
    if framed.enlargement > 1:
        warnings.append(f"it is too small and was enlarged {framed.enlargement:.1f} times")
    return _Read(picture, caption_source, mask.source, tuple(warnings))


def _captions(candidate: Candidate, options: PictureOptions) -> tuple[tuple[str, ...], CaptionSource]:
    if candidate.captions:
        return tuple(as_template(text, options.trigger_words) for text in candidate.captions), "file"
    return options.custom_prompts or TEMPLATES[options.task], "template"


def _entry(read: _Read) -> UsedPicture:
    picture = read.picture
    return UsedPicture(
        name=picture.name,
        original=picture.original,
        size=picture.image.size,
        crop=picture.crop,
        captions=picture.captions,
        caption_source=read.caption_source,
        mask=read.mask_source,
        repeats=picture.repeats,
        warnings=read.warnings,
    )


def _nothing_usable(left_out: Sequence[LeftOut]) -> str:
    if not left_out:
        return "There are no pictures in what was given; a zip of pictures is needed."
    reasons = [f"{file.name}: {file.reason}" for file in left_out]
    return f"None of the {len(left_out)} files given can be used as a picture ({shortened(reasons, 3)})."
