"""Which files of an upload are pictures, and which belong to one: captions, masks, tables of captions."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

from lora_service.dataset.captions.tables import is_table, read_table
from lora_service.dataset.captions.text_files import is_text, read_captions
from lora_service.dataset.report import Repeats, Skipped
from lora_service.dataset.upload.archives import SourceFile
from lora_service.dataset.upload.member_names import natural_key
from lora_service.errors import PicturesError

_CAPTION_ENDINGS = (".txt", ".caption")  # the first wins where a picture has both
_NOTES = re.compile(r"(readme|licen[cs]e|credits?|attribution|notes?|info|instructions|sources?)\b", re.IGNORECASE)
_MASK_FOLDERS = {"masks", "mask"}
_MASK_SUFFIX = re.compile(r"[._-](mask|masklabel)$", re.IGNORECASE)
_KOHYA_FOLDER = re.compile(r"(\d{1,6})_(.+)")


@dataclass(frozen=True)
class RawSample:
    """A file that is to be read as a picture, with what came along for it; captions are empty if their file is."""

    file: SourceFile
    captions: tuple[str, ...] | None
    mask: SourceFile | None
    repeats: int

    @property
    def name(self) -> str:
        return self.file.name


@dataclass(frozen=True)
class PairedFiles:
    """The files of an upload, each in its part; candidates are in the order of their names."""

    candidates: tuple[RawSample, ...]
    skipped: tuple[Skipped, ...]
    folders: tuple[Repeats, ...]


def pair_files(files: Sequence[SourceFile]) -> PairedFiles:
    """Says of each file whether it is a picture, a mask or a caption, and to which picture it belongs.

    Raises:
        PicturesError: a caption belongs to no picture.
    """
    tables: list[SourceFile] = []
    texts: list[SourceFile] = []
    others: list[SourceFile] = []
    for file in files:
        kind = tables if is_table(file.name) else texts if _is_caption(file) else others
        kind.append(file)
    masks, spare_masks = _masks(others)
    taken = {mask.name for mask in masks.values()} | {spare.name for spare in spare_masks}
    pictures = sorted((file for file in others if file.name not in taken), key=lambda file: natural_key(file.name))
    captions, notes = _captions(texts, tables, [*pictures, *masks.values()])
    folders = {_folder(file.name): _repeats(file.name) for file in pictures}
    candidates = (
        RawSample(
            file,
            captions=captions.get(file.name),
            mask=masks.get(file.name),
            repeats=found.repeats if (found := folders[_folder(file.name)]) else 1,
        )
        for file in pictures
    )
    skipped = spare_masks + [Skipped(file.name, "it is a text that belongs to no picture") for file in notes]
    return PairedFiles(tuple(candidates), tuple(skipped), tuple(folder for folder in folders.values() if folder))


def stem(name: str) -> str:
    """``name`` without its ending, in small letters: what a picture and its caption share."""
    return PurePosixPath(name).with_suffix("").as_posix().lower()


def _is_caption(file: SourceFile) -> bool:
    return file.name.lower().endswith(_CAPTION_ENDINGS) and is_text(file.path)


def _folder(name: str) -> str:
    return PurePosixPath(name).parent.name


def _repeats(name: str) -> Repeats | None:
    folder = _folder(name)
    match = _KOHYA_FOLDER.fullmatch(folder)
    return Repeats(folder, max(1, int(match[1])), match[2].strip()) if match else None


def _masks(files: Sequence[SourceFile]) -> tuple[dict[str, SourceFile], list[Skipped]]:
    """Masks by their picture's name, and those that no picture needs."""
    by_stem: dict[str, list[SourceFile]] = {}
    for file in files:
        by_stem.setdefault(stem(file.name), []).append(file)
    masks: dict[str, SourceFile] = {}
    spare: list[Skipped] = []
    orphans: list[Skipped] = []
    for file in files:
        owners = [owner for owner_stem in _owner_stems(file.name, by_stem) for owner in by_stem[owner_stem]]
        new = {owner.name: file for owner in owners if owner.name not in masks}
        masks |= new
        if owners and not new:
            spare.append(Skipped(file.name, "its picture has another mask"))
        elif not owners and _folder(file.name).lower() in _MASK_FOLDERS:
            orphans.append(Skipped(file.name, "it is a mask without a picture"))
    # a folder of masks in which nothing is a mask holds pictures: somebody may want to teach masks
    return masks, spare + orphans if masks else []


def _owner_stems(name: str, known: Iterable[str]) -> list[str]:
    """The stems of the pictures that ``name`` would be the mask of, by each way of naming masks."""
    path = PurePosixPath(stem(name))
    bare = _MASK_SUFFIX.sub("", path.name)
    if path.parent.name in _MASK_FOLDERS:
        above = path.parent.parent
        beside = [s for s in known if PurePosixPath(s).name == bare and PurePosixPath(s).parent.parent == above]
        found = [(above / bare).as_posix(), *(s for s in beside if PurePosixPath(s).parent != path.parent)]
    else:
        found = [(path.parent / bare).as_posix()] if bare != path.name else []
    return [s for s in found if s in known]


def _captions(
    texts: Sequence[SourceFile], tables: Sequence[SourceFile], pictures: Sequence[SourceFile]
) -> tuple[dict[str, tuple[str, ...]], list[SourceFile]]:
    """Captions by their picture's name, and texts that are plainly no captions."""
    owners: dict[str, set[str]] = {}
    for picture in pictures:
        for key in (picture.name.lower(), stem(picture.name)):
            owners.setdefault(key, set()).add(picture.name)
    captions: dict[str, tuple[str, ...]] = {}
    orphans = []
    for table in tables:
        rows = read_table(table)
        orphans += [key for key in rows if key.lower() not in owners and stem(key) not in owners]
        for key, lines in rows.items():
            captions |= dict.fromkeys(owners.get(key.lower()) or owners.get(stem(key), set()), lines)
    notes = []
    for text in sorted(texts, key=lambda file: -_CAPTION_ENDINGS.index(PurePosixPath(file.name.lower()).suffix)):
        if stem(text.name) in owners:
            for owner in owners[stem(text.name)]:
                captions[owner] = read_captions(text.path) or captions.get(owner, ())
        elif _NOTES.match(PurePosixPath(text.name).name) or not pictures:
            notes.append(text)
        else:
            orphans.append(text.name)
    if orphans:
        raise PicturesError(
            f"These captions belong to no picture: {shortened(orphans)}; name each like its picture, or remove it."
        )
    return captions, notes


def shortened(names: Sequence[str], limit: int = 5) -> str:
    """The first ``limit`` of ``names`` for a sentence, and how many more there are."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(names[:limit]) + more
