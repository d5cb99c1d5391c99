"""Draws labelled rows of images as one image."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont, ImageOps

SIDE, GAP, LABEL_WIDTH, LINE_HEIGHT = 160, 6, 150, 26
_CAPTION_LINE_HEIGHT = 13
_LABEL_CHARACTERS, _CAPTION_PIXELS = 16, 5.9
_TEXT_COLOR, _BACKGROUND = (40, 40, 45), (255, 255, 255)


@dataclass(frozen=True)
class ImageRow:
    """A row: its label, its images, and a caption below each image if there are any."""

    label: str
    images: Sequence[Image.Image]
    captions: Sequence[str] = ()

    def height(self, side: int) -> int:
        lines = max((_wrap_caption(caption, side).count("\n") + 1 for caption in self.captions), default=0)
        return side + GAP + _CAPTION_LINE_HEIGHT * lines + (GAP if lines else 0)


def draw_grid(rows: Sequence[ImageRow], notes: Sequence[str] = (), side: int = SIDE) -> Image.Image:
    """Draw ``rows`` below one another, with their labels, if there are any, at the left and ``notes`` at the bottom.

    Args:
        side: of each image, in pixels.
    """
    font = ImageFont.load_default(size=15)
    columns = max(len(row.images) for row in rows)
    left = LABEL_WIDTH if any(row.label for row in rows) else GAP
    bottom = GAP + sum(row.height(side) for row in rows)
    size = (left + columns * (side + GAP) + GAP, bottom + len(notes) * LINE_HEIGHT)
    grid = Image.new("RGB", size, _BACKGROUND)
    draw = ImageDraw.Draw(grid)
    top = GAP
    for row in rows:
        label = _wrap(row.label, _LABEL_CHARACTERS)
        draw.multiline_text((GAP, top + side // 3), label, fill=_TEXT_COLOR, font=font)
        _draw_row(draw, grid, row, (left, top), side)
        top += row.height(side)
    for i, note in enumerate(notes):
        draw.text((GAP, bottom + i * LINE_HEIGHT), note, fill=_TEXT_COLOR, font=font)
    return grid


def _draw_row(draw: ImageDraw.ImageDraw, grid: Image.Image, row: ImageRow, corner: tuple[int, int], side: int) -> None:
    font = ImageFont.load_default(size=11)
    left, top = corner
    for i, image in enumerate(row.images):
        x = left + i * (side + GAP)
        whole = ImageOps.pad(image.convert("RGB"), (side, side), Image.Resampling.BICUBIC, color=_BACKGROUND)
        grid.paste(whole, (x, top))
        if row.captions:
            text = _wrap_caption(row.captions[i], side)
            draw.multiline_text((x, top + side), text, fill=_TEXT_COLOR, font=font, spacing=1)


def _wrap_caption(text: str, side: int) -> str:
    return _wrap(text, int(side / _CAPTION_PIXELS))


def _wrap(text: str, characters: int) -> str:
    lines = [""]
    for word in text.split():
        if lines[-1] and len(lines[-1]) + len(word) >= characters:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
