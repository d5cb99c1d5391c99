"""A file while it is downloaded, and the safe name that it gets when it is complete."""

from __future__ import annotations

import contextlib
import hashlib
import json
import mimetypes
import os
import re
from pathlib import Path

from lora_service.errors import LinkError

_MAX_NAME_LENGTH = 120
_MAX_SAME_NAME = 100_000


class PartialFile:
    """The bytes received so far, and the validator of the file version that they belong to.

    The validator is the server's strong ETag or Last-Modified: with it a server can be asked for the rest, and
    answers with the whole file when there is another version by now. It is written beside the bytes, so that the next
    process can resume the download of a killed one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._validator_path = path.with_suffix(".json")

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def validator(self) -> str:
        """The value for ``If-Range``; '' when the download cannot be resumed."""
        if not self.size:
            return ""
        try:
            return str(json.loads(self._validator_path.read_text())["validator"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""  # a process was killed between the two files: begin again

    def begin(self, validator: str) -> None:
        """Start from nothing; the order matters to a process that is killed in between."""
        self._validator_path.unlink(missing_ok=True)
        self.path.write_bytes(b"")
        if validator:
            temporary = self._validator_path.with_suffix(".json.new")
            temporary.write_text(json.dumps({"validator": validator}))
            temporary.replace(self._validator_path)

    def discard(self) -> None:
        """Remove the bytes and the validator."""
        self._validator_path.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def sync(self) -> None:
        """Flush the bytes to the disk, so that a power cut after ``move_to`` leaves no empty file."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())

    def sha256(self) -> str:
        """The SHA-256 of the bytes, as 64 hexadecimal digits."""
        with self.path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def move_to(self, target: Path) -> None:
        """Rename the complete file atomically to its final path."""
        self.path.replace(target)
        self._validator_path.unlink(missing_ok=True)

    def move_into(self, folder: Path, name: str) -> Path:
        """Move the complete file into a folder, numbered when the name is taken, and return its path.

        Raises:
            LinkError: too many files have that name.
        """
        target = _reserve(folder, name)
        self.move_to(target)
        return target


def safe_file_name(name: str, content_type: str) -> str:
    """Return a file name without folders or a leading dot, of letters, digits and a few signs.

    Args:
        name: the server's or the link's name of the file; may be empty or hostile.
        content_type: the media type, which gives the suffix where the name has none.
    """
    base_name = name.replace("\\", "/").rpartition("/")[2]
    safe = re.sub(r"[^\w. ()+-]", "_", base_name).strip(" .")[-_MAX_NAME_LENGTH:].lstrip(" .")
    if "." in safe:
        return safe
    return f"{safe or 'file'}{mimetypes.guess_extension(content_type) or ''}"


def _reserve(folder: Path, name: str) -> Path:
    """Create an empty new file of that name, with a number where it is taken."""
    stem, dot, suffix = name.rpartition(".")
    for number in range(1, _MAX_SAME_NAME):
        numbered = name if number == 1 else f"{stem}-{number}.{suffix}" if dot else f"{name}-{number}"
        with contextlib.suppress(FileExistsError):
            (folder / numbered).open("xb").close()
            return folder / numbered
    raise LinkError(
        f"There are {_MAX_SAME_NAME} files named {name!r} in one training; rename them.", code="too_many_files"
    )
