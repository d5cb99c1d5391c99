"""Pairing of the files of an upload: each image with its captions, its mask and its repeats."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from lora_service.dataset.captions.caption_files import is_table, is_text, read_captions, read_table
from lora_service.dataset.report import RepeatFolder, Skipped, join_names
from lora_service.dataset.upload.source_files import RawSample, SourceFile, natural_key
from lora_service.errors import PicturesError

_CAPTION_SUFFIXES = (".txt", ".caption")  # the first wins where an image has both
_NOTES = re.compile(r"(readme|licen[cs]e|credits?|attribution|notes?|info|instructions|sources?)\b", re.IGNORECASE)
_MASK_FOLDERS = {"masks", "mask"}
_MASK_SUFFIX = re.compile(r"[._-](mask|masklabel)$", re.IGNORECASE)
_KOHYA_FOLDER = re.compile(r"(\d{1,6})_(.+)")


@dataclass(frozen=True)
class PairedFiles:
    """The samples of an upload, in the order of their names, and the files that belong to none."""

    samples: tuple[RawSample, ...]
    skipped: tuple[Skipped, ...]
    folders: tuple[RepeatFolder, ...]


def pair_files(files: Sequence[SourceFile]) -> PairedFiles:
    """Sort ``files`` into images, masks and captions, and pair them by their names.

    Raises:
        PicturesError: a caption belongs to no image (code ``unmatched_captions``), or a table of captions cannot be
            read (``invalid_table``).
    """
    tables: list[SourceFile] = []
    texts: list[SourceFile] = []
    images_and_masks: list[SourceFile] = []
    for file in files:
        group = tables if is_table(file.name) else texts if _is_caption(file) else images_and_masks
        group.append(file)
    masks, skipped_masks = _pair_masks(images_and_masks)
    not_images = {mask.name for mask in masks.values()} | {mask.name for mask in skipped_masks}
    images = sorted(
        (file for file in images_and_masks if file.name not in not_images), key=lambda file: natural_key(file.name)
    )
    captions, notes = _pair_captions(texts, tables, [*images, *masks.values()])
    folders = {_folder(file.name): _repeat_folder(file.name) for file in images}
    samples = (
        RawSample(
            file,
            captions=captions.get(file.name),
            mask=masks.get(file.name),
            repeats=folder.repeats if (folder := folders[_folder(file.name)]) else 1,
        )
        for file in images
    )
    skipped = skipped_masks + [
        Skipped(file.name, "it is a text that belongs to no picture", "unmatched_text") for file in notes
    ]
    return PairedFiles(tuple(samples), tuple(skipped), tuple(folder for folder in folders.values() if folder))


def _stem(name: str) -> str:
    """Return ``name`` without its suffix, in small letters: equal for an image and its caption."""
    return PurePosixPath(name).with_suffix("").as_posix().lower()


def _is_caption(file: SourceFile) -> bool:
    return file.name.lower().endswith(_CAPTION_SUFFIXES) and is_text(file.path)


def _folder(name: str) -> str:
    return PurePosixPath(name).parent.name


def _repeat_folder(name: str) -> RepeatFolder | None:
    folder = _folder(name)
    match = _KOHYA_FOLDER.fullmatch(folder)
    return RepeatFolder(folder, max(1, int(match[1])), match[2].strip()) if match else None


def _pair_masks(files: Sequence[SourceFile]) -> tuple[dict[str, SourceFile], list[Skipped]]:
    """Return the mask of each image by the image's name, and the masks that no image needs."""
    by_stem: dict[str, list[SourceFile]] = {}
    for file in files:
        by_stem.setdefault(_stem(file.name), []).append(file)
    masks: dict[str, SourceFile] = {}
    surplus: list[Skipped] = []
    unmatched: list[Skipped] = []
    for file in files:
        images = [image for stem in _masked_stems(file.name, by_stem) for image in by_stem[stem]]
        new = {image.name: file for image in images if image.name not in masks}
        masks |= new
        if images and not new:
            surplus.append(Skipped(file.name, "its picture has another mask", "surplus_mask"))
        elif not images and _folder(file.name).lower() in _MASK_FOLDERS:
            unmatched.append(Skipped(file.name, "it is a mask without a picture", "unmatched_mask"))
    # a folder of masks in which nothing is a mask holds images: somebody may train on pictures of masks
    return masks, surplus + unmatched if masks else []


def _masked_stems(name: str, stems: Iterable[str]) -> list[str]:
    """Return those of ``stems`` whose image ``name`` would be the mask of, by any convention of naming masks."""
    path = PurePosixPath(_stem(name))
    bare = _MASK_SUFFIX.sub("", path.name)
    if path.parent.name in _MASK_FOLDERS:
        above = path.parent.parent
        siblings = [s for s in stems if PurePosixPath(s).name == bare and PurePosixPath(s).parent.parent == above]
        matches = [(above / bare).as_posix(), *(s for s in siblings if PurePosixPath(s).parent != path.parent)]
    else:
        matches = [(path.parent / bare).as_posix()] if bare != path.name else []
    return [s for s in matches if s in stems]


def _pair_captions(
    texts: Sequence[SourceFile], tables: Sequence[SourceFile], images: Sequence[SourceFile]
) -> tuple[dict[str, tuple[str, ...]], list[SourceFile]]:
    """Return the captions of each image by its name, and the texts that are plainly no captions, such as a readme."""
    names: dict[str, set[str]] = {}  # of images, by their full name and by their stem in small letters
    for image in images:
        for key in (image.name.lower(), _stem(image.name)):
            names.setdefault(key, set()).add(image.name)
    captions: dict[str, tuple[str, ...]] = {}
    unmatched = []
    for table in tables:
        for key, lines in read_table(table).items():
            matches = names.get(key.lower()) or names.get(_stem(key), set())
            captions |= dict.fromkeys(matches, lines)
            unmatched += [] if matches else [key]
    notes = []
    for text in sorted(texts, key=lambda file: -_CAPTION_SUFFIXES.index(PurePosixPath(file.name.lower()).suffix)):
        if matches := names.get(_stem(text.name), set()):
            lines = read_captions(text.path)
            captions |= {name: lines or captions.get(name, ()) for name in matches}
        elif _NOTES.match(PurePosixPath(text.name).name) or not images:
            notes.append(text)
        else:
            unmatched.append(text.name)
    if unmatched:
        raise PicturesError(
            f"These captions belong to no picture: {join_names(unmatched)}; name each like its picture, or remove it.",
            code="unmatched_captions",
        )
    return captions, notes
