"""The blob store: files under their identifiers, in a folder or wherever fsspec reaches."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import fsspec

from lora_service.errors import SettingError
from lora_service.file_chunks import read_chunks


class TooLargeError(Exception):
    """A file is larger than allowed."""


@dataclass(frozen=True)
class BlobInfo:
    """A file as it was stored."""

    size: int
    sha256: str


class BlobStore:
    """Files by identifier; one that is not whole is never seen.

    Args:
        place: a folder, or a URL of fsspec's: ``s3://bucket/prefix``.

    Raises:
        SettingError: nothing of fsspec's is installed for such a URL.
    """

    def __init__(self, place: str) -> None:
        try:
            self._files, root = fsspec.url_to_fs(place)
        except (ImportError, ValueError) as error:
            raise SettingError("BLOB_STORE", place, f"a folder, or a URL that fsspec can open ({error})") from error
        self._root = str(root).rstrip("/")
        self._is_local = "file" in (self._files.protocol if isinstance(self._files.protocol, tuple) else [])
        if self._is_local:
            self._files.makedirs(self._root, exist_ok=True)

    def write(self, identifier: str, chunks: Iterable[bytes], limit: int) -> BlobInfo:
        """Store a file; it is there only once all of it is.

        Raises:
            TooLargeError: it is of more than ``limit`` bytes.
        """
        digest, size, path = hashlib.sha256(), 0, self._path(identifier)
        target = f"{path}.part" if self._is_local else path  # an object store shows nothing before the end by itself
        try:
            with self._files.open(target, "wb") as file:
                for chunk in chunks:
                    size += len(chunk)
                    if size > limit:
                        raise TooLargeError(f"more than {limit} bytes")
                    digest.update(chunk)
                    file.write(chunk)
        except BaseException:
            with contextlib.suppress(Exception):
                self._files.rm(target)
            raise
        if self._is_local:
            self._files.mv(target, path)
        return BlobInfo(size, digest.hexdigest())

    def read(self, identifier: str, start: int = 0, end: int | None = None) -> Iterator[bytes]:
        """Yield a file's bytes from ``start`` up to ``end``.

        Raises:
            FileNotFoundError: there is none.
        """
        file: Any = self._files.open(self._path(identifier), "rb")
        return _part(file, start, end)

    def copy(self, identifier: str, path: Path) -> Path:
        """Copy a file to ``path`` of this machine; returns ``path``.

        Raises:
            FileNotFoundError: there is none.
        """
        with path.open("wb") as target:
            for chunk in self.read(identifier):
                target.write(chunk)
        return path

    def remove(self, identifier: str) -> None:
        """Remove a file, if it is there."""
        with contextlib.suppress(FileNotFoundError):
            self._files.rm(self._path(identifier))

    def exists(self, identifier: str) -> bool:
        """Return True if the file is there."""
        return bool(self._files.exists(self._path(identifier)))

    def check(self) -> None:
        """Raise the store's own error if it does not answer."""
        self._files.ls(self._root) if self._is_local else self._files.exists(f"{self._root}/-")

    def _path(self, identifier: str) -> str:
        return f"{self._root}/{identifier}"


def _part(file: Any, start: int, end: int | None) -> Iterator[bytes]:
    with file:
        file.seek(start)
        yield from read_chunks(file, None if end is None else end - start)
