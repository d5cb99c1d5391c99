"""Loading a dataset: from an upload to the images of a training."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from lora_service.dataset.captions.select import SelectedCaptions, fit_prompts, select_captions
from lora_service.dataset.images.crops import Crop, crop_for, nearest_bucket
from lora_service.dataset.images.decoder_process import DecodeRequest, cancel_decoding, decode_apart
from lora_service.dataset.images.duplicates import Fingerprint, fingerprint, near_duplicates
from lora_service.dataset.images.faces import FaceDetector, face_detector
from lora_service.dataset.images.masks import Mask, find_mask
from lora_service.dataset.options import DatasetOptions
from lora_service.dataset.report import DatasetReport, Duplicate, Skipped, UsedImage, join_names
from lora_service.dataset.training_images import TrainingImage
from lora_service.dataset.upload.archives import extract
from lora_service.dataset.upload.pairing import pair_files
from lora_service.dataset.upload.source_files import RawSample, UnusableFileError
from lora_service.errors import PicturesError, quote, shorten

_LITTLE_KEPT = 0.45  # a telephone's picture of 9 to 19 keeps 47 % in a square
_MAX_WORKERS = 4  # each holds one image at full size


@dataclass(frozen=True)
class TrainingDataset:
    """The images of one training, in the order of their names, and the report of their upload."""

    images: tuple[TrainingImage, ...]
    report: DatasetReport
    trigger: str = ""
    """The subject's name in the folders' names, where the options say to take it and there is one."""


def load_dataset(source: Path | Sequence[Path], options: DatasetOptions, folder: Path) -> TrainingDataset:
    """Return the images in ``source``, checked, upright, cropped, captioned and masked.

    Args:
        source: an archive, a folder, an image file, or several of these.
        folder: the job's folder; archives are extracted into it while this runs, and nothing is written elsewhere.

    Raises:
        PicturesError: nothing in it can be used (code ``no_pictures``, or the reason that all its files share), there
            is too much of it (``too_many_pictures``), or a person must correct something in it; see ``extract``,
            ``pair_files`` and ``select_captions`` for the other codes.
        InputError: a model that the options name cannot be used.
    """
    extracted_to = folder / "unpacked"
    extracted_to.mkdir(parents=True)
    try:
        return _load(source, options, extracted_to)
    finally:
        shutil.rmtree(extracted_to)


@dataclass(frozen=True)
class _PreparedImage:
    """An image as the model will see it, without its captions."""

    sample: RawSample
    crop: Crop
    image: Image.Image
    mask: Mask
    fingerprint: Fingerprint
    warnings: tuple[str, ...]


def _load(source: Path | Sequence[Path], options: DatasetOptions, folder: Path) -> TrainingDataset:
    extracted = extract(source, folder, options.limits)
    paired = pair_files(extracted.files, options.limits, takes_class_folders=options.takes_class_folders)
    if (count := len(paired.samples)) > options.limits.max_pictures:
        message = f"{count} pictures were given, but {options.limits.max_pictures} are accepted at most."
        raise PicturesError(message, code="too_many_pictures")
    detector = face_detector(options.face_model) if options.detects_faces else None
    with _workers() as workers:
        samples, copies = _drop_copies(paired.samples, list(workers.map(_digest, paired.samples)))
        results = list(workers.map(lambda sample: _prepare(sample, options, detector), samples))
    prepared = [result for result in results if isinstance(result, _PreparedImage)]
    skipped = [*extracted.skipped, *paired.skipped, *(result for result in results if isinstance(result, Skipped))]
    if not prepared:
        raise _no_pictures(skipped)
    trigger, folder_warnings = _folder_trigger([each.sample for each in prepared], options)
    options, prompt_warnings = fit_prompts(_with_trigger(options, trigger))
    captions = select_captions([each.sample for each in prepared], [each.image for each in prepared], options)
    if not any(each.source == "template" for each in captions):
        prompt_warnings = ()
    similar = near_duplicates([each.sample.name for each in prepared], [each.fingerprint for each in prepared])
    report = DatasetReport(
        used=tuple(_used_image(*pair) for pair in zip(prepared, captions, strict=True)),
        skipped=tuple(skipped),
        duplicates=(*copies, *similar),
        folders=paired.folders,
        warnings=(*folder_warnings, *prompt_warnings),
    )
    images = tuple(_training_image(*pair) for pair in zip(prepared, captions, strict=True))
    return TrainingDataset(images, report, trigger)


def _folder_trigger(samples: Sequence[RawSample], options: DatasetOptions) -> tuple[str, tuple[str, ...]]:
    """Return the word of the folders where it is the trigger, else "", and a warning where there are several."""
    words = list(dict.fromkeys(" ".join(sample.word.split()) for sample in samples if sample.word))
    if len(words) > 1:
        names = join_names([quote(word) for word in words])
        return "", (f"the folders name {len(words)} subjects, {names}, and all of them are taught as one",)
    return (words[0] if words and options.takes_folder_word else ""), ()


def _with_trigger(options: DatasetOptions, trigger: str) -> DatasetOptions:
    """Return ``options`` for captions in which ``trigger`` names the subject too."""
    if not trigger:
        return options
    window = options.token_window and options.token_window.for_subject("trigger", trigger)
    return replace(options, trigger_words=(*options.trigger_words, trigger), token_window=window)


@contextmanager
def _workers() -> Iterator[Executor]:
    """Yield threads that stop at once when the context ends by an exception, such as a job's cancellation."""
    with ThreadPoolExecutor(min(_MAX_WORKERS, os.cpu_count() or 1)) as workers:
        try:
            yield workers
        except BaseException:
            workers.shutdown(wait=False, cancel_futures=True)
            cancel_decoding()
            raise


def _digest(sample: RawSample) -> bytes:
    with sample.file.path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").digest()


def _drop_copies(samples: Sequence[RawSample], digests: Sequence[bytes]) -> tuple[list[RawSample], list[Duplicate]]:
    """Return the first sample of each digest with the captions of all, and the others as duplicates of it."""
    first: dict[bytes, RawSample] = {}
    copies = []
    for sample, digest in zip(samples, digests, strict=True):
        if digest in first:
            copies.append(Duplicate(sample.name, first[digest].name, exact=True))
            first[digest] = _merged(first[digest], sample)
        else:
            first[digest] = sample
    return list(first.values()), copies


def _merged(sample: RawSample, copy: RawSample) -> RawSample:
    """Return ``sample`` with the captions and the mask that a copy of its image has, in another folder for example."""
    captions = sample.captions if sample.captions else copy.captions
    if sample.captions and copy.captions:
        captions = tuple(dict.fromkeys((*sample.captions, *copy.captions)))
    repeats = max(sample.repeats, copy.repeats)
    return replace(sample, captions=captions, mask=sample.mask or copy.mask, repeats=repeats)


def _prepare(sample: RawSample, options: DatasetOptions, detector: FaceDetector | None) -> _PreparedImage | Skipped:
    try:
        request = DecodeRequest.within(options.limits, sample.file, options.resolution, options.background)
        decoded = decode_apart(request)
    except UnusableFileError as error:
        return Skipped(sample.name, str(error), error.code)
    mask = find_mask(decoded, sample.mask, options, detector)
    size = (options.resolution, options.resolution)
    if options.aspect_ratio_buckets:
        size = nearest_bucket(decoded.original, options.resolution, options.bucket_step)
    crop = crop_for(decoded.original, size, mask.center)
    mask = mask.cropped(crop)
    warnings = [*decoded.warnings, *mask.warnings]
    if crop.scale > 1:
        warnings.append(f"it is too small and was enlarged {crop.scale:.1f} times")
    if crop.kept < _LITTLE_KEPT:
        remedy = "" if options.aspect_ratio_buckets else "; aspect_ratio_buckets keeps more"
        warnings.append(f"its crop keeps {100 * crop.kept:.0f} % of it{remedy}")
    image = crop.apply(decoded.image)
    return _PreparedImage(sample, crop, image, mask, fingerprint(decoded.image), tuple(warnings))


def _training_image(prepared: _PreparedImage, captions: SelectedCaptions) -> TrainingImage:
    return TrainingImage(
        name=prepared.sample.name,
        image=prepared.image,
        captions=captions.templates,
        mask=prepared.mask.image,
        crop=prepared.crop.box,
        original=prepared.crop.original,
        repeats=prepared.sample.repeats,
    )


def _used_image(prepared: _PreparedImage, captions: SelectedCaptions) -> UsedImage:
    return UsedImage(
        name=prepared.sample.name,
        original=prepared.crop.original,
        size=prepared.crop.size,
        crop=prepared.crop.box,
        captions=captions.templates,
        caption_source=captions.source,
        mask=prepared.mask.source,
        repeats=prepared.sample.repeats,
        warnings=(*prepared.warnings, *prepared.sample.warnings, *captions.warnings),
    )


def _no_pictures(skipped: Sequence[Skipped]) -> PicturesError:
    """Return the error of an upload without a usable image; its code is the files' one if they all share it."""
    if not skipped:
        message = "There are no pictures in the upload; a zip of pictures is needed."
        return PicturesError(message, code="no_pictures")
    reasons = ", ".join(f"{shorten(file.name, 80)}: {file.reason}" for file in skipped[:3])
    reasons += f" and {len(skipped) - 3} more" if len(skipped) > 3 else ""
    codes = {file.code for file in skipped}
    message = f"There is no picture that can be used in the upload ({reasons})."
    return PicturesError(message, code=codes.pop() if len(codes) == 1 else "no_pictures")
