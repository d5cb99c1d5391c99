"""Caption files in any encoding."""

from __future__ import annotations

import codecs
from pathlib import Path

MAX_TEXT_BYTES = 16 * 1024 * 1024
_BOMS = {codecs.BOM_UTF8: "utf-8-sig", codecs.BOM_UTF16_LE: "utf-16", codecs.BOM_UTF16_BE: "utf-16"}


def is_text(path: Path) -> bool:
    """Whether the file's beginning is text, whatever its name."""
    with path.open("rb") as file:
        head = file.read(512)
    return b"\0" not in head or any(head.startswith(bom) for bom in _BOMS)


def read_text(path: Path) -> str:
    """The file's text: by its byte-order mark, else UTF-8, else the Windows alphabet of Western Europe."""
    with path.open("rb") as file:
        data = file.read(MAX_TEXT_BYTES)
    for bom, encoding in _BOMS.items():
        if data.startswith(bom):
            return data.decode(encoding, errors="replace")
    try:
        return data.decode("utf-8")
    except UnicodeDecodeError:
        return data.decode("cp1252", errors="replace")


def read_captions(path: Path) -> tuple[str, ...]:
    """The file's captions: each line that is not empty is one."""
    return tuple(line for raw in read_text(path).splitlines() if (line := " ".join(raw.split())))
