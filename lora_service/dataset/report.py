"""The fate of each file of an upload: lines for a log, JSON for ``check --json``, and counts for a LoRA's header."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from lora_service.dataset.images.crops import Box, Size
from lora_service.dataset.options import CaptionSource, MaskSource
from lora_service.errors import quote, shorten

_NAME_WIDTH = 32


@dataclass(frozen=True)
class UsedImage:
    """One image of the dataset; ``crop`` is the part of the upright original that becomes ``size`` pixels.

    ``more_sizes`` are those of further resolutions, at which it is taught too.
    """

    name: str
    original: Size
    size: Size
    crop: Box
    captions: tuple[str, ...]
    caption_source: CaptionSource
    mask: MaskSource | None
    repeats: int
    warnings: tuple[str, ...]
    more_sizes: tuple[Size, ...] = ()


@dataclass(frozen=True)
class Skipped:
    """One file that is not used: ``reason`` is for a person, ``code`` for a program."""

    name: str
    reason: str
    code: str


@dataclass(frozen=True)
class Duplicate:
    """An image that is the same file as an earlier one (``exact``: not used), or nearly the same picture (used)."""

    name: str
    same_as: str
    exact: bool


@dataclass(frozen=True)
class RepeatFolder:
    """A folder named as for kohya's trainer, ``10_red dog``: each image in it counts ``repeats`` times."""

    folder: str
    repeats: int
    word: str


@dataclass(frozen=True)
class DatasetReport:
    """The images that are used, the files that are not and why."""

    used: tuple[UsedImage, ...]
    skipped: tuple[Skipped, ...] = ()
    duplicates: tuple[Duplicate, ...] = ()
    folders: tuple[RepeatFolder, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def warning_count(self) -> int:
        """The number of all warnings; each near duplicate is one."""
        near = sum(not duplicate.exact for duplicate in self.duplicates)
        return near + len(self.warnings) + sum(len(image.warnings) for image in self.used)

    @property
    def smallest(self) -> Size:
        """The size of the original with the fewest pixels."""
        return min((image.original for image in self.used), key=lambda size: (size[0] * size[1], size))

    def lines(self) -> list[str]:
        """Return lines for a log: a summary, and where there are problems, a row per image and a line per problem."""
        lines = [self._summary()]
        lines += [
            f"folder {quote(f.folder)}: each picture counts {f.repeats} times, called {quote(f.word)}"
            for f in self.folders
        ]
        if not (self.skipped or self.duplicates or self.warning_count):
            return lines
        lines += [_row(image) for image in self.used]
        lines += [f"warning: {warning}" for warning in self.warnings]
        by_reason: dict[str, list[str]] = {}
        for file in self.skipped:
            by_reason.setdefault(file.reason, []).append(file.name)
        lines += [f"left out: {join_names(names)}: {reason}" for reason, names in by_reason.items()]
        return lines + [_duplicate_line(duplicate) for duplicate in self.duplicates]

    def as_json(self) -> dict[str, Any]:
        """Return the object that ``check --json`` prints."""
        return {
            "used": [_image_json(image) for image in self.used],
            "left_out": [{"name": file.name, "reason": file.reason} for file in self.skipped],
            "duplicates": [asdict(duplicate) for duplicate in self.duplicates],
            "folders": [asdict(folder) for folder in self.folders],
            "warnings": list(self.warnings),
        }

    def counts(self) -> dict[str, Any]:
        """Return numbers without file names, for metrics and a LoRA's header."""
        return {
            "used": len(self.used),
            "left_out": len(self.skipped),
            "duplicates": sum(duplicate.exact for duplicate in self.duplicates),
            "near_duplicates": sum(not duplicate.exact for duplicate in self.duplicates),
            "warnings": self.warning_count,
            "smallest": list(self.smallest),
            "masks": self._mask_counts(),
            "captions": self._caption_counts(),
        }

    def _mask_counts(self) -> dict[str, int]:
        return dict(sorted(Counter(image.mask or "none" for image in self.used).items()))

    def _caption_counts(self) -> dict[str, int]:
        return dict(sorted(Counter(image.caption_source for image in self.used).items()))

    def _summary(self) -> str:
        sizes = Counter(size for image in self.used for size in (image.size, *image.more_sizes))
        shown = ", ".join(f"{count} at {w} × {h}" for (w, h), count in sorted(sizes.items()))
        captions = ", ".join(f"{source} {count}" for source, count in self._caption_counts().items())
        masks = ", ".join(f"{source} {count}" for source, count in self._mask_counts().items())
        width, height = self.smallest
        return f"pictures: {shown}; captions: {captions}; masks: {masks}; smallest original {width} × {height}"


def join_names(names: Sequence[str], limit: int = 5) -> str:
    """Return the first ``limit`` of ``names`` for a message, and the number of the others."""
    more = f" and {len(names) - limit} more" if len(names) > limit else ""
    return ", ".join(shorten(name) for name in names[:limit]) + more


def _row(image: UsedImage) -> str:
    (w, h), (to_w, to_h) = image.original, image.size
    parts = [f"{_shorten(image.name):{_NAME_WIDTH}} {w} × {h} → {to_w} × {to_h}"]
    parts.append(f"mask: {image.mask or 'none'}")
    parts.append(f"caption: {image.caption_source}")
    return " | ".join([*parts, *image.warnings])


def _shorten(name: str) -> str:
    return name if len(name) <= _NAME_WIDTH else f"…{name[1 - _NAME_WIDTH :]}"


def _duplicate_line(duplicate: Duplicate) -> str:
    name, same_as = shorten(duplicate.name), shorten(duplicate.same_as)
    if duplicate.exact:
        return f"left out: {name}: the same file as {same_as}"
    return f"warning: {name} is nearly the same picture as {same_as}"


def _image_json(image: UsedImage) -> dict[str, Any]:
    return {
        "name": image.name,
        "size": list(image.size),
        "original": list(image.original),
        "crop": list(image.crop),
        "caption": image.captions[0],
        "captions": list(image.captions),
        "caption_source": image.caption_source,
        "mask": image.mask,
        "repeats": image.repeats,
        "warnings": list(image.warnings),
    }
