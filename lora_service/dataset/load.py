"""Loading a dataset: from an upload to the images of a training."""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Executor, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from PIL import Image

from lora_service.dataset.captions.select import SelectedCaptions, fit_prompts, select_captions
from lora_service.dataset.images.crops import SMALLEST_CROP, Crop, crop_for, nearest_bucket
from lora_service.dataset.images.decode import DecodedImage
from lora_service.dataset.images.decoder_process import DecodeRequest, cancel_decoding, decode_apart
from lora_service.dataset.images.duplicates import Fingerprint, fingerprint, near_duplicates
from lora_service.dataset.images.faces import FaceDetector, face_detector
from lora_service.dataset.images.masks import Mask, find_mask
from lora_service.dataset.options import DatasetOptions
from lora_service.dataset.report import DatasetReport, Duplicate, Skipped, UsedImage, join_names
from lora_service.dataset.training_images import TrainingImage, UncroppedImage
from lora_service.dataset.upload.archives import extract
from lora_service.dataset.upload.pairing import pair_files
from lora_service.dataset.upload.source_files import RawSample, UnusableFileError
from lora_service.errors import PicturesError, quote, shorten

_LITTLE_KEPT = 0.45  # a telephone's picture of 9 to 19 keeps 47 % in a square
MAX_SUBJECTS = 8
"""Most subjects of one LoRA, a folder each."""
_MAX_WORKERS = 4  # each holds one image at full size


@dataclass(frozen=True)
class TrainingDataset:
    """The images of one training, in the order of their names, and the report of their upload.

    The images at further resolutions follow those at the main one.
    """

    images: tuple[TrainingImage, ...]
    report: DatasetReport
    triggers: tuple[str, ...] = ()
    """The subjects' names in the folders' names, where the options say to take them; several are taught apart."""


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
class _View:
    """An image as the model will see it at one resolution."""

    crop: Crop
    image: Image.Image
    mask: Mask
    uncropped: UncroppedImage | None


@dataclass(frozen=True)
class _PreparedImage:
    """An image at each resolution, the main one first, without its captions."""

    sample: RawSample
    views: tuple[_View, ...]
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
    _check_names(options.captions, [each.sample.name for each in prepared])
    triggers, folder_warnings = _folder_triggers([each.sample for each in prepared], options)
    options, prompt_warnings = fit_prompts(_with_window(options, triggers))
    captions = _select_captions(prepared, triggers, options)
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
    pairs = list(zip(prepared, captions, strict=True))
    images = tuple(
        _training_image(*pair, triggers, view)
        for number in range(len(options.resolutions))
        for pair in pairs
        for view in pair[0].views[number : number + 1]
    )
    return TrainingDataset(images, report, triggers)


def _check_names(captions: Iterable[str], names: Sequence[str]) -> None:
    """Check that all captions of the input are of images that are used.

    Raises:
        PicturesError: some are not (code ``unmatched_captions``, of the field ``captions``).
    """
    if unmatched := sorted(set(captions).difference(names)):
        raise PicturesError(
            f"captions names pictures that are not used: {join_names(unmatched)}; name each as the report of the "
            f"pictures does: {join_names(names)}.",
            code="unmatched_captions",
            field="captions",
        )


def _word(sample: RawSample) -> str:
    """Return the subject's name in a sample's folder."""
    return " ".join(sample.word.split())


def _folder_triggers(samples: Sequence[RawSample], options: DatasetOptions) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the words of the folders where they are the triggers, and a warning where several are taught as one.

    Raises:
        PicturesError: several subjects are taught, and a picture is in no folder of one (code
            ``pictures_without_subject``), or they are too many (``too_many_subjects``).
    """
    words = tuple(dict.fromkeys(word for sample in samples if (word := _word(sample))))
    names = join_names([quote(word) for word in words])
    if not options.takes_folder_word:
        return (), (f"the folders name {len(words)} subjects, {names}, and all of them are taught as one",) * (
            len(words) > 1
        )
    if len(words) > MAX_SUBJECTS:
        message = f"The folders name {len(words)} subjects, {names}, but {MAX_SUBJECTS} are accepted at most; "
        raise PicturesError(f"{message}a trigger of your own teaches them as one.", code="too_many_subjects")
    if len(words) > 1 and (others := [sample.name for sample in samples if not sample.word]):
        raise PicturesError(
            f"The folders name {len(words)} subjects, {names}, and these pictures are in none of them: "
            f"{join_names(others)}; move each to its subject's, or give a trigger to teach all as one.",
            code="pictures_without_subject",
        )
    return words, ()


def _with_window(options: DatasetOptions, triggers: Sequence[str]) -> DatasetOptions:
    """Return ``options`` for captions in which any of ``triggers`` may name the subject."""
    window = options.token_window
    for trigger in triggers:
        window = window and window.for_subject("trigger", trigger)
    return replace(options, token_window=window)


def _select_captions(
    prepared: Sequence[_PreparedImage], triggers: Sequence[str], options: DatasetOptions
) -> list[SelectedCaptions]:
    """Return the captions of each image, in which the trigger of its own subject stands for that."""
    captions: dict[str, SelectedCaptions] = {}
    for trigger in triggers or [""]:
        of_subject = [each for each in prepared if len(triggers) < 2 or _word(each.sample) == trigger]
        words = (*options.trigger_words, *filter(None, [trigger]))
        selected = select_captions(
            [each.sample for each in of_subject],
            [each.views[0].image for each in of_subject],
            replace(options, trigger_words=words),
        )
        captions |= {each.sample.name: of_image for each, of_image in zip(of_subject, selected, strict=True)}
    return [captions[each.sample.name] for each in prepared]


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
        request = DecodeRequest.within(options.limits, sample.file, max(options.resolutions), options.background)
        decoded = decode_apart(request)
    except UnusableFileError as error:
        return Skipped(sample.name, str(error), error.code)
    mask = find_mask(decoded, sample.mask, options, detector)
    main, *others = (_view(decoded, mask, side, options) for side in options.resolutions)
    fitting = [view for view in others if view.crop.scale <= 1 or view.crop.size == main.crop.size]
    warnings = [*decoded.warnings, *main.mask.warnings, *_crop_warnings(main, options)]
    if too_large := [f"{w} × {h}" for view in others if view not in fitting for w, h in [view.crop.size]]:
        warnings.append(f"it is too small for {', '.join(too_large)} and is not taught at that size")
    views = {main.crop.size: main}
    for view in fitting:  # buckets of a small image may be the same at several resolutions
        views.setdefault(view.crop.size, view)
    return _PreparedImage(sample, tuple(views.values()), fingerprint(decoded.image), tuple(warnings))


def _view(decoded: DecodedImage, mask: Mask, side: int, options: DatasetOptions) -> _View:
    """Return an image as it is seen at a resolution of ``side`` pixels."""
    size = (side, side)
    if options.aspect_ratio_buckets:
        size = nearest_bucket(decoded.original, side, options.bucket_step)
    crop = crop_for(decoded.original, size, mask.center)
    cropped = mask.cropped(crop)
    uncropped = _uncropped(decoded, mask, crop) if options.random_crop else None
    return _View(crop, crop.apply(decoded.image), cropped, uncropped)


def _uncropped(decoded: DecodedImage, mask: Mask, crop: Crop) -> UncroppedImage:
    """Return the whole image, as large as the smallest random crop needs."""
    scale = min(1.0, crop.scale / SMALLEST_CROP * decoded.original[0] / decoded.image.width)
    width, height = (max(1, round(length * scale)) for length in decoded.image.size)
    size = (width, height)
    masked = mask.image and mask.image.resize(size, Image.Resampling.BILINEAR)
    return UncroppedImage(decoded.image.resize(size, Image.Resampling.LANCZOS), masked, mask.box_in(decoded.original))


def _crop_warnings(view: _View, options: DatasetOptions) -> Iterator[str]:
    crop = view.crop
    if crop.scale > 1:
        yield f"it is too small and was enlarged {crop.scale:.1f} times"
    if crop.kept < _LITTLE_KEPT:
        remedy = "" if options.aspect_ratio_buckets else "; aspect_ratio_buckets keeps more"
        yield f"its crop keeps {100 * crop.kept:.0f} % of it{remedy}"
    if options.random_crop and crop.scale >= 1 and crop.kept == 1:
        yield "it is as small as its crop, so random_crop has no room in it"


def _training_image(
    prepared: _PreparedImage, captions: SelectedCaptions, triggers: Sequence[str], view: _View
) -> TrainingImage:
    return TrainingImage(
        name=prepared.sample.name,
        image=view.image,
        captions=captions.templates,
        mask=view.mask.image,
        crop=view.crop.box,
        original=view.crop.original,
        repeats=prepared.sample.repeats,
        subject=triggers.index(_word(prepared.sample)) if len(triggers) > 1 else 0,
        uncropped=view.uncropped,
    )


def _used_image(prepared: _PreparedImage, captions: SelectedCaptions) -> UsedImage:
    main, *others = prepared.views
    return UsedImage(
        name=prepared.sample.name,
        original=main.crop.original,
        size=main.crop.size,
        crop=main.crop.box,
        captions=captions.templates,
        caption_source=captions.source,
        mask=main.mask.source,
        repeats=prepared.sample.repeats,
        warnings=(*prepared.warnings, *prepared.sample.warnings, *captions.warnings),
        more_sizes=tuple(view.crop.size for view in others),
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
