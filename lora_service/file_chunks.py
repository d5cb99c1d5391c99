"""Reads files piece by piece, so that none is in memory as a whole."""

from __future__ import annotations

from collections.abc import Iterator
from typing import IO

_CHUNK_BYTES = 256 * 1024


def read_chunks(file: IO[bytes], length: int | None = None) -> Iterator[bytes]:
    """Yield what follows in an open file, ``length`` bytes at most; None: all of it."""
    while chunk := file.read(_CHUNK_BYTES if length is None else min(_CHUNK_BYTES, length)):
        length = None if length is None else length - len(chunk)
        yield chunk
