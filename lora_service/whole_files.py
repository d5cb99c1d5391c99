"""Files that are whole or not there, whenever a process ends."""

from __future__ import annotations

import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

LEFTOVERS = ".*.part"
"""The names of what a process left half written that was killed."""


@contextmanager
def whole_file(path: Path, *, durable: bool = False) -> Iterator[Path]:
    """Yield a path beside ``path`` to write to, which takes its place at the end; what breaks off leaves it as it was.

    The folder of ``path`` is made where it is missing.

    Args:
        durable: the file is on the disk before the context ends, so that it survives the machine's end too.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name[-100:]}.{secrets.token_hex(4)}.part")
    try:
        yield part
        if durable:
            _flush(part)
        part.replace(path)
        if durable:
            _flush(path.parent)
    finally:
        part.unlink(missing_ok=True)


def _flush(path: Path) -> None:
    """Have the system write what it holds of a file or folder to the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
