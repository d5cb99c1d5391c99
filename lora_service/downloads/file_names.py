"""File names that strangers choose, made harmless."""

from __future__ import annotations

import contextlib
import mimetypes
import re
from pathlib import Path

from lora_service.errors import LinkError

_LONGEST = 120
_MOST_ALIKE = 100_000


def harmless(name: str, content_type: str) -> str:
    """A file name without folders or a leading dot, of letters, digits and a little between them.

    Args:
        name: what the server or the link calls the file; may be empty or hostile.
        content_type: gives the suffix where the name has none.
    """
    last = name.replace("\\", "/").rpartition("/")[2]
    kept = re.sub(r"[^\w. ()+-]", "_", last).strip(" .")[-_LONGEST:].lstrip(" .")
    if "." in kept:
        return kept
    return f"{kept or 'file'}{mimetypes.guess_extension(content_type) or ''}"


def reserve(folder: Path, name: str) -> Path:
    """An empty new file in a folder, numbered when the name is taken.

    Raises:
        LinkError: too many files have that name.
    """
    stem, dot, suffix = name.rpartition(".")
    for number in range(1, _MOST_ALIKE):
        counted = name if number == 1 else f"{stem}-{number}.{suffix}" if dot else f"{name}-{number}"
        with contextlib.suppress(FileExistsError):
            (folder / counted).open("xb").close()
            return folder / counted
    raise LinkError(f"There are {_MOST_ALIKE} files named {name!r} in one training; rename them.")
