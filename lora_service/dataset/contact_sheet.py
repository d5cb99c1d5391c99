"""One picture of all pictures, as the model will see them: the crops, their masks, their captions."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from lora_service.dataset.report import UsedImage
from lora_service.dataset.training_images import TrainingDataset, TrainingImage

_TILE = 240
_MARGIN = 12
_LINE = 16
_MOST_CAPTION_LINES = 4
_MOST_COLUMNS = 8
_MOST_TILES = 400  # a sheet of more would have a hundred megapixels
_PAPER, _INK, _GRAY, _WARNING = "white", "black", "#707070", "#b34700"
_FRAME = "#d0d0d0"
_EDGE = (255, 40, 40)
_DIMMED = 90  # how much of 255 is left of what a mask leaves out
_FONT = ImageFont.load_default(12)


def contact_sheet(pictures: TrainingDataset) -> Image.Image:
    """The sheet, RGB: what a mask leaves out is dimmed, its edge red; a caption stands below each picture."""
    both = zip(pictures.pictures, pictures.report.used, strict=True)
    tiles = [_tile(picture, entry) for picture, entry in list(both)[:_MOST_TILES]]
    columns = min(_MOST_COLUMNS, math.ceil(math.sqrt(len(tiles))))
    width = _TILE + _MARGIN
    height = _TILE + (1 + max(len(tile.lines) for tile in tiles)) * _LINE + _MARGIN
    size = (columns * width + _MARGIN, math.ceil(len(tiles) / columns) * height + _MARGIN)
    sheet = Image.new("RGB", size, _PAPER)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        tile.draw(sheet, _MARGIN + column * width, _MARGIN + row * height)
    return sheet


@dataclass(frozen=True)
class _Tile:
    """A picture of at most ``_TILE`` pixels a side, and the lines of text below it with their colours."""

    image: Image.Image
    lines: list[tuple[str, str]]

    def draw(self, sheet: Image.Image, left: int, top: int) -> None:
        pen = ImageDraw.Draw(sheet)
        x, y = left + (_TILE - self.image.width) // 2, top + (_TILE - self.image.height) // 2
        pen.rectangle((x - 1, y - 1, x + self.image.width, y + self.image.height), outline=_FRAME)
        sheet.paste(self.image, (x, y))
        for number, (text, color) in enumerate(self.lines):
            pen.text((left, top + _TILE + 4 + number * _LINE), text, fill=color, font=_FONT)


def _tile(picture: TrainingImage, entry: UsedImage) -> _Tile:
    image = _with_mask(picture)
    scale = _TILE / max(image.size)
    resample = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), resample)
    others = f" (one of {len(picture.captions)})" if len(picture.captions) > 1 else ""
    caption = _wrapped(picture.captions[-1] + others)[:_MOST_CAPTION_LINES]
    lines = [(_wrapped(f"{entry.name}  {entry.size[0]} x {entry.size[1]}")[-1], _INK)]
    lines += [(line, _GRAY) for line in caption]
    return _Tile(image, lines + [(line, _WARNING) for warning in entry.warnings for line in _wrapped(warning)])


def _with_mask(picture: TrainingImage) -> Image.Image:
    if picture.mask is None:
        return picture.image
    kept = picture.mask.point([max(value, _DIMMED) for value in range(256)])
    seen = ImageChops.multiply(picture.image, Image.merge("RGB", (kept, kept, kept)))
    inside = picture.mask.point([255 if value >= 128 else 0 for value in range(256)])
    edge = ImageChops.subtract(inside.filter(ImageFilter.MaxFilter(3)), inside)
    seen.paste(_EDGE, mask=edge)
    return seen


def _wrapped(text: str) -> list[str]:
    """``text`` in lines of a tile's width; a word that is wider alone is cut."""
    lines: list[str] = []
    line = ""
    for word in map(_cut, text.replace("×", "x").split()):  # the font that Pillow carries has no such sign
        longer = f"{line} {word}".strip()
        if line and _FONT.getlength(longer) > _TILE:
            lines.append(line)
            line = word
        else:
            line = longer
    return [*lines, line] if line else lines


def _cut(word: str) -> str:
    if _FONT.getlength(word) <= _TILE:
        return word
    while _FONT.getlength(word + "...") > _TILE:
        word = word[: len(word) * 9 // 10]
    return word + "..."
