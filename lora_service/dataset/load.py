"""From what a person uploads to the pictures of a training."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from lora_service.dataset.captions.select import SelectedCaptions, select_captions
from lora_service.dataset.images.crops import Crop, crop_for, nearest_bucket
from lora_service.dataset.images.decode import UnusableFile, decode
from lora_service.dataset.images.duplicates import Fingerprint, fingerprint, near_duplicates
from lora_service.dataset.images.faces import FaceDetector, face_detector
from lora_service.dataset.images.masks import Mask, find_mask
from lora_service.dataset.options import DatasetOptions
from lora_service.dataset.report import DatasetReport, Duplicate, Skipped, UsedImage
from lora_service.dataset.training_images import TrainingDataset, TrainingImage
from lora_service.dataset.upload.archives import unpack
from lora_service.dataset.upload.pairing import RawSample, pair_files, shortened
from lora_service.errors import PicturesError

_MOST_WORKERS = 4  # each holds one picture at full size


def load_dataset(source: Path | Sequence[Path], options: DatasetOptions, folder: Path) -> TrainingDataset:
    """The pictures in ``source``, checked, upright, framed, captioned and masked.

    Args:
        source: an archive, a folder, a picture, or several of these.
        folder: the job's own; archives are unpacked into it for as long as this takes, and nothing is written
            elsewhere.

    Raises:
        PicturesError: nothing in it can be used, or something in it needs the person's decision.
        InputError: a model that the options name cannot be used.
    """
    unpacked_to = folder / "unpacked"
    unpacked_to.mkdir(parents=True)
    try:
        return _read(source, options, unpacked_to)
    finally:
        shutil.rmtree(unpacked_to)


@dataclass(frozen=True)
class _Framed:
    """A picture as the model will see it, without its captions."""

    candidate: RawSample
    crop: Crop
    image: Image.Image
    mask: Mask
    fingerprint: Fingerprint
    warnings: tuple[str, ...]


def _read(source: Path | Sequence[Path], options: DatasetOptions, folder: Path) -> TrainingDataset:
    unpacked = unpack(source, folder, options.limits)
    found = pair_files(unpacked.files)
    if (count := len(found.candidates)) > options.limits.max_pictures:
        raise PicturesError(f"{count} pictures were given, but {options.limits.max_pictures} are accepted at most.")
    faces = face_detector(options.face_model) if options.finds_faces else None
    with ThreadPoolExecutor(min(_MOST_WORKERS, os.cpu_count() or 1)) as workers:
        unique, copies = _without_copies(found.candidates, list(workers.map(_digest, found.candidates)))
        results = list(workers.map(lambda candidate: _read_one(candidate, options, faces), unique))
    framed = [result for result in results if isinstance(result, _Framed)]
    skipped = [*unpacked.skipped, *found.skipped, *(r for r in results if isinstance(r, Skipped))]
    if not framed:
        raise PicturesError(_nothing_usable(skipped))
    captions = select_captions([each.candidate for each in framed], [each.image for each in framed], options)
    report = DatasetReport(
        used=tuple(_entry(each, own) for each, own in zip(framed, captions, strict=True)),
        skipped=tuple(skipped),
        duplicates=(*copies, *near_duplicates([f.candidate.name for f in framed], [f.fingerprint for f in framed])),
        folders=found.folders,
    )
    return TrainingDataset(tuple(_picture(f, own) for f, own in zip(framed, captions, strict=True)), report)


def _digest(candidate: RawSample) -> bytes:
    with candidate.file.path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _without_copies(
    candidates: Sequence[RawSample], digests: Sequence[bytes]
) -> tuple[list[RawSample], list[Duplicate]]:
    first: dict[bytes, RawSample] = {}
    copies = []
    for candidate, digest in zip(candidates, digests, strict=True):
        if digest in first:
            copies.append(Duplicate(candidate.name, first[digest].name, exact=True))
        else:
            first[digest] = candidate
    return list(first.values()), copies


def _read_one(candidate: RawSample, options: DatasetOptions, faces: FaceDetector | None) -> _Framed | Skipped:
    try:
        decoded = decode(candidate.file, options.resolution, options.background, options.limits.max_pixels)
    except UnusableFile as error:
        return Skipped(candidate.name, str(error))
    mask = find_mask(decoded, candidate.mask, options, faces)
    size = (options.resolution, options.resolution)
    if options.aspect_ratio_buckets:
        size = nearest_bucket(decoded.original, options.resolution, options.bucket_step)
    framing = crop_for(decoded.original, size, mask.center)
    mask = mask.framed(framing)
    warnings = [*decoded.warnings, *mask.warnings]
    if framing.enlargement > 1:
        warnings.append(f"it is too small and was enlarged {framing.enlargement:.1f} times")
    look = fingerprint(decoded.image)
    return _Framed(candidate, framing, framing.apply(decoded.image), mask, look, tuple(warnings))


def _picture(framed: _Framed, captions: SelectedCaptions) -> TrainingImage:
    return TrainingImage(
        name=framed.candidate.name,
        image=framed.image,
        captions=captions.templates,
        mask=framed.mask.image,
        crop=framed.crop.crop,
        original=framed.crop.original,
        repeats=framed.candidate.repeats,
    )


def _entry(framed: _Framed, captions: SelectedCaptions) -> UsedImage:
    return UsedImage(
        name=framed.candidate.name,
        original=framed.crop.original,
        size=framed.crop.size,
        crop=framed.crop.crop,
        captions=captions.templates,
        caption_source=captions.source,
        mask=framed.mask.source,
        repeats=framed.candidate.repeats,
        warnings=(*framed.warnings, *captions.warnings),
    )


def _nothing_usable(skipped: Sequence[Skipped]) -> str:
    if not skipped:
        return "There are no pictures in what was given; a zip of pictures is needed."
    reasons = shortened([f"{file.name}: {file.reason}" for file in skipped], 3)
    return f"There is no picture that can be used in what was given ({reasons})."
