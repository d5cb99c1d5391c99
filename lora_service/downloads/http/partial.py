"""A file that is still being downloaded, and what is needed to go on with it."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from pathlib import Path


class PartialFile:
    """The bytes that have come so far, and the validator of the file that they are the beginning of.

    The validator is the server's strong ETag or Last-Modified: with it a server can be asked for the rest, and
    says so when the file is another one by now. It is written beside the bytes, so that the next process can go
    on where a killed one stopped.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self._note = path.with_suffix(".json")

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self.path.stat().st_size if self.path.exists() else 0

    @property
    def validator(self) -> str:
        """What ``If-Range`` may be asked with; '' when the bytes are of no use."""
        if not self.size:
            return ""
        try:
            return str(json.loads(self._note.read_text())["validator"])
        except (OSError, ValueError, KeyError, TypeError):
            return ""  # a process was killed between the two files: begin again

    def begin(self, validator: str) -> None:
        """Start from nothing; the order matters to a process that is killed in between."""
        self._note.unlink(missing_ok=True)
        self.path.write_bytes(b"")
        if validator:
            temporary = self._note.with_suffix(".json.new")
            temporary.write_text(json.dumps({"validator": validator}))
            temporary.replace(self._note)

    def discard(self) -> None:
        """Forget everything."""
        self._note.unlink(missing_ok=True)
        self.path.unlink(missing_ok=True)

    def sync(self) -> None:
        """Have the bytes on the disk, so that a power cut after ``move_to`` leaves no empty file."""
        with self.path.open("rb") as file:
            os.fsync(file.fileno())

    def move_to(self, target: Path) -> None:
        """Make the whole file appear under its final name, at once."""
        self.path.replace(target)
        self._note.unlink(missing_ok=True)


def validator_of(headers: Mapping[str, str]) -> str:
    """What identifies this version of a file byte for byte: a strong ETag, else Last-Modified, else ''."""
    etag = headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")
