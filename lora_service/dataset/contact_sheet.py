"""The contact sheet: all images of a dataset as the model will see them, with their masks and captions."""

from __future__ import annotations

import math
from dataclasses import dataclass

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from lora_service.dataset.load import TrainingDataset
from lora_service.dataset.report import UsedImage
from lora_service.dataset.training_images import TrainingImage

_TILE = 240
_MARGIN = 12
_LINE = 16
_MAX_CAPTION_LINES = 4
_MAX_COLUMNS = 8
_MAX_TILES = 400  # a sheet of more would have a hundred megapixels
_BACKGROUND, _NAME_COLOR, _CAPTION_COLOR, _WARNING_COLOR = "white", "black", "#707070", "#b34700"
_BORDER_COLOR = "#d0d0d0"
_MASK_EDGE_COLOR = (255, 40, 40)
_UNMASKED = 90  # brightness, of 255, of the parts outside a mask
_FONT = ImageFont.load_default(12)


def contact_sheet(dataset: TrainingDataset) -> Image.Image:
    """Return the sheet, RGB: parts outside a mask are dimmed, its edge is red, a caption stands below each image.

    Images are shown at the main resolution alone.
    """
    pairs = list(zip(dataset.images, dataset.report.used, strict=False))
    tiles = [_tile(image, used) for image, used in pairs[:_MAX_TILES]]
    columns = min(_MAX_COLUMNS, math.ceil(math.sqrt(len(tiles))))
    width = _TILE + _MARGIN
    height = _TILE + (1 + max(len(tile.lines) for tile in tiles)) * _LINE + _MARGIN
    size = (columns * width + _MARGIN, math.ceil(len(tiles) / columns) * height + _MARGIN)
    sheet = Image.new("RGB", size, _BACKGROUND)
    for index, tile in enumerate(tiles):
        row, column = divmod(index, columns)
        tile.draw(sheet, _MARGIN + column * width, _MARGIN + row * height)
    return sheet


@dataclass(frozen=True)
class _Tile:
    """An image of at most ``_TILE`` pixels a side, and the lines of text below it with their colours."""

    image: Image.Image
    lines: list[tuple[str, str]]

    def draw(self, sheet: Image.Image, left: int, top: int) -> None:
        pen = ImageDraw.Draw(sheet)
        x, y = left + (_TILE - self.image.width) // 2, top + (_TILE - self.image.height) // 2
        pen.rectangle((x - 1, y - 1, x + self.image.width, y + self.image.height), outline=_BORDER_COLOR)
        sheet.paste(self.image, (x, y))
        for number, (text, color) in enumerate(self.lines):
            pen.text((left, top + _TILE + 4 + number * _LINE), text, fill=color, font=_FONT)


def _tile(training_image: TrainingImage, used: UsedImage) -> _Tile:
    image = _show_mask(training_image)
    scale = _TILE / max(image.size)
    resample = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    image = image.resize((max(1, round(image.width * scale)), max(1, round(image.height * scale))), resample)
    captions = training_image.captions
    count = f" (one of {len(captions)})" if len(captions) > 1 else ""
    lines = [(_wrap(f"{used.name}  {used.size[0]} x {used.size[1]}")[-1], _NAME_COLOR)]
    lines += [(line, _CAPTION_COLOR) for line in _wrap(captions[-1] + count)[:_MAX_CAPTION_LINES]]
    lines += [(line, _WARNING_COLOR) for warning in used.warnings for line in _wrap(warning)]
    return _Tile(image, lines)


def _show_mask(training_image: TrainingImage) -> Image.Image:
    if training_image.mask is None:
        return training_image.image
    brightness = training_image.mask.point([max(value, _UNMASKED) for value in range(256)])
    dimmed = ImageChops.multiply(training_image.image, Image.merge("RGB", (brightness, brightness, brightness)))
    inside = training_image.mask.point([255 if value >= 128 else 0 for value in range(256)])
    edge = ImageChops.subtract(inside.filter(ImageFilter.MaxFilter(3)), inside)
    dimmed.paste(_MASK_EDGE_COLOR, mask=edge)
    return dimmed


def _wrap(text: str) -> list[str]:
    """Return ``text`` in lines of a tile's width; a word that is wider alone is cut."""
    lines: list[str] = []
    line = ""
    for word in map(_truncate, text.replace("×", "x").split()):  # Pillow's font has no ×
        longer = f"{line} {word}".strip()
        if line and _FONT.getlength(longer) > _TILE:
            lines.append(line)
            line = word
        else:
            line = longer
    return [*lines, line] if line else lines


def _truncate(word: str) -> str:
    if _FONT.getlength(word) <= _TILE:
        return word
    while _FONT.getlength(word + "...") > _TILE:
        word = word[: len(word) * 9 // 10]
    return word + "..."
