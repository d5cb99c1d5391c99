"""Pairing of the files of an upload: each image with its captions, its mask and its repeats."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from lora_service.dataset.captions.caption_files import captions_in, is_table, read_table
from lora_service.dataset.captions.text_decoding import TextDecoder, is_text
from lora_service.dataset.options import UploadLimits
from lora_service.dataset.report import PRIOR_PICTURE, RepeatFolder, Skipped, join_names
from lora_service.dataset.upload.source_files import RawSample, SourceFile, natural_key
from lora_service.errors import PicturesError, quote

_CAPTION_SUFFIXES = (".txt", ".caption", ".json")  # the first wins where an image has both
_NOTES = re.compile(r"(readme|licen[cs]e|credits?|attribution|notes?|info|instructions|sources?)\b", re.IGNORECASE)
_MASK_FOLDERS = {"masks", "mask"}
_MASK_SUFFIX = re.compile(r"[._-](mask|masklabel)$", re.IGNORECASE)
_REPEAT_FOLDER = re.compile(r"(\d+)_(.+)")
_PRIOR_FOLDER = re.compile(
    r"(regs?|regulari[sz]ation)([ _-]?(images?|pictures?|photos?|imgs?|data|set|dir|folder))?", re.IGNORECASE
)
_MAX_DIGITS = 12  # of the number of a folder's repeats; more are refused all the same
_NO_REPEATS = RepeatFolder("", 1, "")


@dataclass(frozen=True)
class PairedFiles:
    """The samples of an upload, in the order of their names, and the files that belong to none."""

    samples: tuple[RawSample, ...]
    skipped: tuple[Skipped, ...]
    folders: tuple[RepeatFolder, ...]


def pair_files(files: Sequence[SourceFile], limits: UploadLimits, *, takes_class_folders: bool = False) -> PairedFiles:
    """Sort ``files`` into images, masks and captions, and pair them by their names.

    Args:
        limits: the most repeats and caption bytes.
        takes_class_folders: sort the files for prior preservation, and no others.

    Raises:
        PicturesError: a caption belongs to no image (code ``unmatched_captions``), a table of captions cannot be read
            (``invalid_table``), a caption file is too large (``caption_too_large``), or a folder asks for too many
            repeats (``too_many_repeats``).
    """
    if takes_class_folders:
        files = [file for file in files if _is_for_prior(file)]
    files, left_out = _leave_out_folders(files)
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
    captions, notes = _pair_captions(texts, tables, [*images, *masks.values()], limits)
    folders = {_folder(file.name): _repeat_folder(file.name) for file in images}
    for folder in filter(None, folders.values()):
        if folder.repeats > limits.max_repeats:
            message = f"The folder {quote(folder.folder)} asks for more than the {limits.max_repeats} repeats of a "
            raise PicturesError(f"{message}picture that are accepted; rename it.", code="too_many_repeats")
    samples = []
    for file in images:
        folder = folders[_folder(file.name)] or _NO_REPEATS
        samples.append(
            RawSample(
                file,
                captions=file_captions.lines if (file_captions := captions.get(file.name)) else None,
                mask=masks.get(file.name),
                repeats=folder.repeats,
                word=folder.word,
                warnings=(file_captions.warning,) if file_captions and file_captions.warning else (),
            )
        )
    skipped = [*left_out, *skipped_masks]
    skipped += [Skipped(file.name, "it is a text that captions no picture", "unmatched_text") for file in notes]
    return PairedFiles(tuple(samples), tuple(skipped), tuple(folder for folder in folders.values() if folder))


def _leave_out_folders(files: Sequence[SourceFile]) -> tuple[Sequence[SourceFile], list[Skipped]]:
    """Return the files that are taught, and those whose folders say by kohya's naming that they are not."""
    taught: list[SourceFile] = []
    left_out: list[Skipped] = []
    for file in files:
        folder = _repeat_folder(file.name)
        if folder is not None and not folder.repeats:
            left_out.append(Skipped(file.name, "its folder's name says 0 times", "repeats_0"))
        elif _is_for_prior(file):
            left_out.append(Skipped(file.name, "it is for preservation 'prior' and not the subject", PRIOR_PICTURE))
        else:
            taught.append(file)
    if any(file.code == PRIOR_PICTURE for file in left_out) and not any(_is_image(file) for file in taught):
        return files, []  # a set whose one folder happens to be called reg
    return taught, left_out


def _is_for_prior(file: SourceFile) -> bool:
    return any(_PRIOR_FOLDER.fullmatch(part) for part in PurePosixPath(file.name).parent.parts)


def _stem(name: str) -> str:
    """Return ``name`` without its suffix, in small letters: equal for an image and its caption."""
    return PurePosixPath(name).with_suffix("").as_posix().lower()


def _is_caption(file: SourceFile) -> bool:
    if _suffix(file.name) not in _CAPTION_SUFFIXES:
        return False
    with file.path.open("rb") as opened:
        return is_text(opened.read(512))


def _is_image(file: SourceFile) -> bool:
    return not is_table(file.name) and not _is_caption(file)


def _suffix(name: str) -> str:
    return PurePosixPath(name.lower()).suffix


def _folder(name: str) -> str:
    return PurePosixPath(name).parent.name


def _repeat_folder(name: str) -> RepeatFolder | None:
    folder = _folder(name)
    match = _REPEAT_FOLDER.fullmatch(folder)
    if not match:
        return None
    return RepeatFolder(folder, int(match[1][:_MAX_DIGITS]), match[2].strip())


def _pair_masks(files: Sequence[SourceFile]) -> tuple[dict[str, SourceFile], list[Skipped]]:
    """Return the mask of each image by the image's name, and the masks that no image needs."""
    by_stem: dict[str, list[SourceFile]] = {}
    siblings: dict[tuple[PurePosixPath, str], list[str]] = {}  # stems by the folder above their own, and their name
    for file in files:
        stem = _stem(file.name)
        if stem not in by_stem:
            path = PurePosixPath(stem)
            siblings.setdefault((path.parent.parent, path.name), []).append(stem)
        by_stem.setdefault(stem, []).append(file)
    masks: dict[str, SourceFile] = {}
    surplus: list[Skipped] = []
    unmatched: list[Skipped] = []
    masked: set[tuple[PurePosixPath, str]] = set()  # the keys of masks whose images all have one
    for file in files:
        key = _mask_key(file.name)
        if key in masked:
            surplus.append(Skipped(file.name, "its picture has another mask", "surplus_mask"))
            continue
        images = [image for stem in _masked_stems(key, siblings) for image in by_stem.get(stem, ())] if key else []
        new = {image.name: file for image in images if image.name not in masks}
        masks.update(new)
        if key and images:
            masked.add(key)
        if images and not new:
            surplus.append(Skipped(file.name, "its picture has another mask", "surplus_mask"))
        elif not images and _folder(file.name).lower() in _MASK_FOLDERS:
            unmatched.append(Skipped(file.name, "it is a mask without a picture", "unmatched_mask"))
    # a folder of masks in which nothing is a mask holds images: somebody may train on pictures of masks
    return masks, surplus + unmatched if masks else []


def _mask_key(name: str) -> tuple[PurePosixPath, str] | None:
    """Return folder and stem of the images that ``name`` would be the mask of, by its own name; None if of none."""
    path = PurePosixPath(_stem(name))
    bare = _MASK_SUFFIX.sub("", path.name)
    return (path.parent, bare) if path.parent.name in _MASK_FOLDERS or bare != path.name else None


def _masked_stems(
    key: tuple[PurePosixPath, str], siblings: Mapping[tuple[PurePosixPath, str], Sequence[str]]
) -> list[str]:
    """Return the stems of the images that the masks of ``key`` would be of, by any convention of naming masks."""
    folder, bare = key
    if folder.name not in _MASK_FOLDERS:
        return [(folder / bare).as_posix()]
    beside = (stem for stem in siblings.get((folder.parent, bare), ()) if PurePosixPath(stem).parent != folder)
    return [(folder.parent / bare).as_posix(), *beside]


@dataclass(frozen=True)
class _Captions:
    """The captions of one image, and a warning about the file they come from."""

    lines: tuple[str, ...]
    warning: str = ""


def _pair_captions(
    texts: Sequence[SourceFile], tables: Sequence[SourceFile], images: Sequence[SourceFile], limits: UploadLimits
) -> tuple[dict[str, _Captions], list[SourceFile]]:
    """Return the captions of each image by its name, and the texts that are plainly no captions, such as a readme."""
    names = _ImageNames(images)
    if sum(text.path.stat().st_size for text in texts) > limits.max_table_bytes:
        message = f"The {len(texts)} caption files have more than {limits.max_table_bytes} bytes, which are accepted."
        raise PicturesError(message, code="caption_too_large")
    decoder = TextDecoder([*texts, *tables])
    captions: dict[str, _Captions] = {}
    unmatched = []
    for table in tables:
        decoded = decoder.decode(table, limits.max_table_bytes)
        for key, lines in read_table(table, decoded).items():
            matches = names.of_row(key)
            captions.update(dict.fromkeys(matches, _Captions(lines, decoded.warning)))
            unmatched += [] if matches else [key]
    notes = []
    for text in sorted(texts, key=lambda file: -_CAPTION_SUFFIXES.index(_suffix(file.name))):
        if matches := names.of_stem(_stem(text.name)):
            decoded = decoder.decode(text, limits.max_caption_bytes)
            lines = captions_in(text, decoded.text)
            if lines or _suffix(text.name) != ".json":
                new = _Captions(lines, decoded.warning)
                captions.update({name: new if lines else captions.get(name, new) for name in matches})
            else:
                notes.append(text)
        elif _NOTES.match(PurePosixPath(text.name).name) or not images or _suffix(text.name) == ".json":
            notes.append(text)
        else:
            unmatched.append(text.name)
    if unmatched:
        raise PicturesError(
            f"These captions belong to no picture: {join_names(unmatched)}; name each like its picture, or remove it.",
            code="unmatched_captions",
        )
    return captions, notes


class _ImageNames:
    """The names of the images, found by those that captions have."""

    def __init__(self, images: Sequence[SourceFile]) -> None:
        self._by_name: dict[str, set[str]] = {}  # by their full name and by their stem in small letters
        self._by_base: dict[str, set[str]] = {}  # by the last part of their stem
        for image in images:
            stem = _stem(image.name)
            for key in {image.name.lower(), stem}:
                self._by_name.setdefault(key, set()).add(image.name)
            self._by_base.setdefault(PurePosixPath(stem).name, set()).add(image.name)

    def of_stem(self, stem: str) -> set[str]:
        return self._by_name.get(stem, set())

    def of_row(self, key: str) -> set[str]:
        """Return the images of a table's row, whose name may have no suffix, or the path on another machine."""
        matches = self._by_name.get(key.lower()) or self._by_name.get(_stem(key))
        if matches:
            return matches
        bases = [PurePosixPath(key.lower()).name, PurePosixPath(_stem(key)).name]
        candidates = next((self._by_base[base] for base in bases if base in self._by_base), set())
        return candidates if len(candidates) == 1 else set()
