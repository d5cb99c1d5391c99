"""Files of an upload: their names, the samples they make, and the error of one that is skipped."""

from __future__ import annotations

import re
import unicodedata
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from lora_service.errors import PicturesError

MAX_NAME = 1000
"""The most characters of a name, with its folders."""
_JUNK_FOLDERS = {"__macosx", "@eadir", "$recycle.bin", "system volume information"}
_JUNK_FILES = {"thumbs.db", "desktop.ini", "ehthumbs.db", "icon\r"}
_DRIVE = re.compile(r"[A-Za-z]:")


class UnusableFileError(PicturesError):
    """One file cannot be used; the message is the reason, without the file's name: "it is …".

    A dataset is loaded without the file and reports it as skipped, with the message and the code.
    """

    default_code = "unusable_file"


@dataclass(frozen=True)
class SourceFile:
    """One file of an upload: its name there, and the path of its bytes."""

    name: str
    path: Path


@dataclass(frozen=True)
class RawSample:
    """An image file as it was uploaded, not yet decoded, with all that belongs to it.

    Args:
        captions: its captions, empty if its caption file is; none: it has no caption file.
        mask: its mask file.
        repeats: how many times it counts, by its folder's name.
        word: the subject's name in its folder's name, as in ``10_ohwx dog``; "" in other folders.
        warnings: messages for a person about its files.
    """

    file: SourceFile
    captions: tuple[str, ...] | None
    mask: SourceFile | None
    repeats: int
    word: str = ""
    warnings: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.file.name


def clean_name(name: str) -> str:
    """Return ``name`` as it is shown and matched: forward slashes, composed letters, nothing unprintable."""
    name = unicodedata.normalize("NFC", name.replace("\\", "/"))
    name = "".join(c if c.isprintable() else "?" for c in name)
    return "/".join(part for part in name.split("/") if part not in ("", ".")) or "unnamed"


def check_name(name: str) -> None:
    """Check the name of an archive's member, although it never becomes a path.

    Raises:
        UnusableFileError: it is absolute, or leads out of the archive (code ``unsafe_path``), or is longer than
            ``MAX_NAME`` (``name_too_long``).
    """
    if len(name) > MAX_NAME:
        raise UnusableFileError(f"its name has more than {MAX_NAME} characters", code="name_too_long")
    name = name.replace("\\", "/")
    if name.startswith("/") or _DRIVE.match(name):
        raise UnusableFileError("its name is an absolute path", code="unsafe_path")
    if ".." in name.split("/"):
        raise UnusableFileError("its name leads out of the archive", code="unsafe_path")


def is_junk(name: str) -> bool:
    """Return True for hidden files and those that operating systems add unasked."""
    parts = [part.lower() for part in PurePosixPath(name).parts]
    if any(part.startswith(".") or part in _JUNK_FOLDERS for part in parts):
        return True
    return bool(parts) and parts[-1] in _JUNK_FILES


def natural_key(name: str) -> list[tuple[int, str]]:
    """Return a sort key that puts "2.jpg" before "10.jpg"."""
    return [(int(part[:18]), "") if part.isdecimal() else (-1, part.lower()) for part in re.split(r"(\d+)", name)]
