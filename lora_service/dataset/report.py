"""What became of each file of an upload: for a person's log, for ``--json``, and as counts for the file's header."""

from __future__ import annotations

from collections import Counter
from dataclasses import asdict, dataclass
from typing import Any

from lora_service.dataset.choices import CaptionSource, MaskSource

_NAME_WIDTH = 32


@dataclass(frozen=True)
class UsedImage:
    """One picture that is used; sizes are (width, height), the crop (left, top, right, bottom) of the original."""

    name: str
    original: tuple[int, int]
    size: tuple[int, int]
    crop: tuple[int, int, int, int]
    captions: tuple[str, ...]
    caption_source: CaptionSource
    mask: MaskSource | None
    repeats: int
    warnings: tuple[str, ...]


@dataclass(frozen=True)
class Skipped:
    """One file that is not used, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Duplicate:
    """A picture that is the same as an earlier one (``exact``: dropped), or nearly so (used)."""

    name: str
    same_as: str
    exact: bool


@dataclass(frozen=True)
class Repeats:
    """A folder named as kohya's trainer wants it, ``10_red dog``: its pictures count ``repeats`` times."""

    folder: str
    repeats: int
    word: str


@dataclass(frozen=True)
class DatasetReport:
    """What was used, what was not and why."""

    used: tuple[UsedImage, ...]
    skipped: tuple[Skipped, ...] = ()
    duplicates: tuple[Duplicate, ...] = ()
    folders: tuple[Repeats, ...] = ()
    warnings: tuple[str, ...] = ()

    @property
    def warning_count(self) -> int:
        near = sum(not duplicate.exact for duplicate in self.duplicates)
        return near + len(self.warnings) + sum(len(picture.warnings) for picture in self.used)

    @property
    def smallest(self) -> tuple[int, int]:
        """The size of the original with the fewest pixels."""
        return min((picture.original for picture in self.used), key=lambda size: (size[0] * size[1], size))

    def lines(self) -> list[str]:
        """For the log: one line when there is nothing to say, else a short table and what is wrong."""
        lines = [self._summary()]
        lines += [
            f"folder {f.folder!r}: each picture counts {f.repeats} times, called {f.word!r}" for f in self.folders
        ]
        if not (self.skipped or self.duplicates or self.warning_count):
            return lines
        lines += [_row(picture) for picture in self.used]
        lines += [f"warning: {warning}" for warning in self.warnings]
        lines += [f"left out: {file.name}: {file.reason}" for file in self.skipped]
        return lines + [_sentence(duplicate) for duplicate in self.duplicates]

    def as_json(self) -> dict[str, Any]:
        """What ``check --json`` prints."""
        return {
            "used": [_json(picture) for picture in self.used],
            "left_out": [asdict(file) for file in self.skipped],
            "duplicates": [asdict(duplicate) for duplicate in self.duplicates],
            "folders": [asdict(folder) for folder in self.folders],
            "warnings": list(self.warnings),
        }

    def counts(self) -> dict[str, Any]:
        """Numbers without any name, for metrics and the file's header."""
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
        return dict(sorted(Counter(picture.mask or "none" for picture in self.used).items()))

    def _caption_counts(self) -> dict[str, int]:
        return dict(sorted(Counter(picture.caption_source for picture in self.used).items()))

    def _summary(self) -> str:
        sizes = Counter(picture.size for picture in self.used)
        shown = ", ".join(f"{count} at {w} × {h}" for (w, h), count in sorted(sizes.items()))
        captions = ", ".join(f"{source} {count}" for source, count in self._caption_counts().items())
        masks = ", ".join(f"{source} {count}" for source, count in self._mask_counts().items())
        width, height = self.smallest
        return f"pictures: {shown}; captions: {captions}; masks: {masks}; smallest original {width} × {height}"


def _row(picture: UsedImage) -> str:
    (w, h), (to_w, to_h) = picture.original, picture.size
    parts = [f"{_shorten(picture.name):{_NAME_WIDTH}} {w} × {h} → {to_w} × {to_h}"]
    parts.append(f"mask: {picture.mask or 'none'}")
    parts.append(f"caption: {picture.caption_source}")
    return " | ".join([*parts, *picture.warnings])


def _shorten(name: str) -> str:
    return name if len(name) <= _NAME_WIDTH else f"…{name[1 - _NAME_WIDTH :]}"


def _sentence(duplicate: Duplicate) -> str:
    if duplicate.exact:
        return f"left out: {duplicate.name}: the same file as {duplicate.same_as}"
    return f"warning: {duplicate.name} is nearly the same picture as {duplicate.same_as}"


def _json(picture: UsedImage) -> dict[str, Any]:
    return {
        "name": picture.name,
        "size": list(picture.size),
        "original": list(picture.original),
        "crop": list(picture.crop),
        "caption": picture.captions[0],
        "captions": list(picture.captions),
        "caption_source": picture.caption_source,
        "mask": picture.mask,
        "repeats": picture.repeats,
        "warnings": list(picture.warnings),
    }
