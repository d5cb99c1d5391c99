"""One upload and its outcome."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from tests.dataset.picture_makers import png

A, B = png(1), png(2)
BOTH = ("a.png", "b.png")


@dataclass(frozen=True)
class Case:
    """One upload and its outcome.

    Args:
        title: what is special about it.
        data: the file's bytes.
        used: the names of the pictures that are used; none: ``error`` is part of the one sentence.
        skipped: a part of the reason for each name that is left out.
        said: parts of the report's lines.
        options: other than those of an object at 64 pixels.
    """

    title: str
    data: bytes
    used: tuple[str, ...] = ()
    error: str = ""
    skipped: Mapping[str, str] = field(default_factory=dict)
    said: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    file: str = "upload.zip"
