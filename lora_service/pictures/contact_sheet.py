"""One picture of all pictures, as the model will see them: the crops, their masks, their captions."""

from __future__ import annotations

import math

from PIL import Image, ImageChops, ImageDraw, ImageFilter, ImageFont

from lora_service.pictures.dataset import TrainingPicture, TrainingPictures
from lora_service.pictures.report import UsedPicture

_TILE = 240
_MARGIN = 12
_LINE = 16
_LINES = 5  # below each picture: its name, then its caption, then its warnings
_MOST_COLUMNS = 8
_MOST_TILES = 400  # a sheet of more would have hundreds of megapixels
_PAPER, _INK, _GRAY, _WARNING, _EDGE = "white", "black", "#707070", "#b34700", (255, 40, 40)
_DIMMED = 90  # how much of 255 is left of what a mask leaves out


def contact_sheet(pictures: TrainingPictures) -> Image.Image:
    """The sheet, RGB: what a mask leaves out is dimmed, its edge red; the first caption stands below each picture."""
    shown = list(zip(pictures.pictures, pictures.report.used, strict=True))[:_MOST_TILES]
    columns = min(_MOST_COLUMNS, math.ceil(math.sqrt(len(shown))))
    rows = math.ceil(len(shown) / columns)
    width, height = _TILE + _MARGIN, _TILE + _LINES * _LINE + 2 * _MARGIN
    sheet = Image.new("RGB", (columns * width + _MARGIN, rows * height + _MARGIN), _PAPER)
    for index, (picture, entry) in enumerate(shown):
        row, column = divmod(index, columns)
        _draw_tile(sheet, (_MARGIN + column * width, _MARGIN + row * height), picture, entry)
    return sheet


def _draw_tile(sheet: Image.Image, corner: tuple[int, int], picture: TrainingPicture, entry: UsedPicture) -> None:
    seen = _with_mask(picture)
    scale = _TILE / max(seen.size)
    resample = Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.NEAREST
    seen = seen.resize((max(1, round(seen.width * scale)), max(1, round(seen.height * scale))), resample)
    left, top = corner
    sheet.paste(seen, (left + (_TILE - seen.width) // 2, top + (_TILE - seen.height) // 2))
    warnings = [(line, _WARNING) for line in _wrapped("; ".join(entry.warnings))]
    caption = [(line, _GRAY) for line in _wrapped(picture.captions[0])]
    lines = [(_wrapped(f"{entry.name} {entry.size[0]} × {entry.size[1]}")[-1], _INK), *caption][
        : _LINES - len(warnings)
    ]
    pen = ImageDraw.Draw(sheet)
    for number, (text, color) in enumerate([*lines, *warnings][:_LINES]):
        pen.text((left, top + _TILE + 4 + number * _LINE), text, fill=color, font=_FONT)


def _with_mask(picture: TrainingPicture) -> Image.Image:
    if picture.mask is None:
        return picture.image
    kept = picture.mask.point([max(value, _DIMMED) for value in range(256)])
    seen = ImageChops.multiply(picture.image, Image.merge("RGB", (kept, kept, kept)))
    inside = picture.mask.point([255 if value >= 128 else 0 for value in range(256)])
    edge = ImageChops.subtract(inside.filter(ImageFilter.MaxFilter(3)), inside)
    seen.paste(_EDGE, mask=edge)
    return seen


def _wrapped(text: str) -> list[str]:
    """``text`` in lines of a tile's width; words that are wider alone are cut."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if line and _FONT.getlength(longer) > _TILE:
            lines.append(line)
            line = word
        else:
            line = longer
    return [_cut(each) for each in (*lines, line) if each]


def _cut(text: str) -> str:
    while _FONT.getlength(text) > _TILE:
        text = text[: len(text) * 9 // 10] if not text.endswith("…") else text[:-2] + "…"
    return text


def _load_font() -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(12)


_FONT = _load_font()
