"""A sheet of labelled rows of pictures."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image, ImageDraw, ImageFont

SIDE, GAP, LABEL, LINE = 160, 6, 150, 26
INK, PAPER = (40, 40, 45), (255, 255, 255)


@dataclass(frozen=True)
class Row:
    """One row: what it shows, and its pictures."""

    label: str
    pictures: Sequence[Image.Image]


def draw_sheet(rows: Sequence[Row], notes: Sequence[str] = ()) -> Image.Image:
    """``rows`` below one another with their labels at the left, ``notes`` at the foot."""
    font = ImageFont.load_default(size=15)
    columns = max(len(row.pictures) for row in rows)
    width = LABEL + columns * (SIDE + GAP) + GAP
    height = len(rows) * (SIDE + GAP) + GAP + len(notes) * LINE
    sheet = Image.new("RGB", (width, height), PAPER)
    draw = ImageDraw.Draw(sheet)
    for i, row in enumerate(rows):
        top = GAP + i * (SIDE + GAP)
        draw.multiline_text((GAP, top + SIDE // 3), _wrapped(row.label), fill=INK, font=font)
        for j, picture in enumerate(row.pictures):
            sheet.paste(
                picture.convert("RGB").resize((SIDE, SIDE), Image.Resampling.BICUBIC), (LABEL + j * (SIDE + GAP), top)
            )
    for i, note in enumerate(notes):
        draw.text((GAP, len(rows) * (SIDE + GAP) + GAP + i * LINE), note, fill=INK, font=font)
    return sheet


def _wrapped(label: str, letters: int = 16) -> str:
    lines = [""]
    for word in label.split():
        if lines[-1] and len(lines[-1]) + len(word) >= letters:
            lines.append("")
        lines[-1] = f"{lines[-1]} {word}".strip()
    return "\n".join(lines)
