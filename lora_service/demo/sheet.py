"""A sheet of labelled rows of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

SIDE, GAP, LABEL, LINE = 160, 6, 150, 26
CAPTION_LINE, CAPTION_LINES, CAPTION_LETTERS = 13, 4, 27
INK, PAPER = (40, 40, 45), (255, 255, 255)


@dataclass(frozen=True)
class Row:
    """One row: what it shows, its pictures, and a caption below each if there are any."""

    label: str
    pictures: Sequence[Image.Image]
    captions: Sequence[str] = ()

    @property
    def height(self) -> int:
        return SIDE + GAP + (CAPTION_LINES * CAPTION_LINE if self.captions else 0)


def draw_sheet(rows: Sequence[Row], notes: Sequence[str] = ()) -> Image.Image:
    """``rows`` below one another with their labels, if there are any, at the left, ``notes`` at the foot."""
    font = ImageFont.load_default(size=15)
    columns = max(len(row.pictures) for row in rows)
    left = LABEL if any(row.label for row in rows) else GAP
    foot = GAP + sum(row.height for row in rows)
    sheet = Image.new("RGB", (left + columns * (SIDE + GAP) + GAP, foot + len(notes) * LINE), PAPER)
    draw = ImageDraw.Draw(sheet)
    top = GAP
    for row in rows:
        draw.multiline_text((GAP, top + SIDE // 3), _wrapped(row.label), fill=INK, font=font)
        _draw_row(draw, sheet, row, (left, top))
        top += row.height
    for i, note in enumerate(notes):
        draw.text((GAP, foot + i * LINE), note, fill=INK, font=font)
    return sheet


def _draw_row(draw: ImageDraw.ImageDraw, sheet: Image.Image, row: Row, corner: tuple[int, int]) -> None:
    small = ImageFont.load_default(size=11)
    left, top = corner
    for i, picture in enumerate(row.pictures):
        x = left + i * (SIDE + GAP)
        sheet.paste(picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC), (x, top))
        if row.captions:
            text = _wrapped(row.captions[i], CAPTION_LETTERS)
            draw.multiline_text((x, top + SIDE), text, fill=INK, font=small, spacing=1)


def _wrapped(label: str, letters: int = 16) -> str:
    lines = [""]
    for word in label.split():
        if lines[-1] and len(lines[-1]) + len(word) >= letters:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
