"""The form of a case: one upload and its outcome."""

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
        title: the name of the test.
        data: the file's bytes.
        used: the names of the images in the dataset.
        error: the error's code, where the upload is refused.
        quoted: a name or value that the error's message holds.
        skipped: the code of the reason for each file that is skipped.
        report: parts of the report's lines.
        options: those that differ from an object at 64 pixels.
        file: the file's name.
    """

    title: str
    data: bytes
    used: tuple[str, ...] = ()
    error: str = ""
    quoted: str = ""
    skipped: Mapping[str, str] = field(default_factory=dict)
    report: tuple[str, ...] = ()
    options: Mapping[str, Any] = field(default_factory=dict)
    file: str = "upload.zip"
