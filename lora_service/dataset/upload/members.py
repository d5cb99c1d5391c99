"""The members of a zip and of a tar, told in the same way."""

from __future__ import annotations

import bz2
import gzip
import lzma
import stat
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from lora_service.dataset.upload.guarded import GuardedFile
from lora_service.dataset.upload.member_names import zip_name

_ENCRYPTED = 0x1
_OPENERS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
_TAR_MAGIC = slice(257, 262)
_ARCHIVES = {
    b"PK\x03\x04": "a zip",
    b"PK\x05\x06": "a zip",
    b"Rar!": "a RAR archive",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"\x28\xb5\x2f\xfd": "a zstd archive",
    b"\x1f\x8b": "a gzip archive",
    b"BZh": "a bzip2 archive",
    b"\xfd7zXZ": "an xz archive",
}


class Member(Protocol):
    """One file of an archive; ``refused`` says why it is not even looked at, or is empty."""

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def packed(self) -> int: ...
    @property
    def refused(self) -> str: ...
    def open(self) -> IO[bytes]: ...


@dataclass(frozen=True)
class ZipMember:
    archive: zipfile.ZipFile
    info: zipfile.ZipInfo

    @property
    def name(self) -> str:
        return zip_name(self.info)

    @property
    def size(self) -> int:
        return self.info.file_size

    @property
    def packed(self) -> int:
        return self.info.compress_size

    @property
    def refused(self) -> str:
        if self.info.flag_bits & _ENCRYPTED:
            return "it is encrypted; make the archive without a password"
        return "it is a link, not a file" if stat.S_ISLNK(self.info.external_attr >> 16) else ""

    def open(self) -> IO[bytes]:
        return self.archive.open(self.info)


@dataclass(frozen=True)
class TarMember:
    archive: tarfile.TarFile
    info: tarfile.TarInfo

    @property
    def name(self) -> str:
        return self.info.name

    @property
    def size(self) -> int:
        return self.info.size

    @property
    def packed(self) -> int:
        return self.info.size  # a tar is packed as a whole, so its members have no ratio of their own

    @property
    def refused(self) -> str:
        if self.info.issym() or self.info.islnk():
            return "it is a link, not a file"
        return "" if self.info.isreg() and not self.info.issparse() else "it is no ordinary file"

    def open(self) -> IO[bytes]:
        opened = self.archive.extractfile(self.info)
        if opened is None:
            raise tarfile.ReadError("it has no data")
        return opened


def archive_kind(head: bytes) -> str:
    """What archive a file that begins with ``head`` (512 bytes) is, for a sentence; "" if it is none."""
    if head[_TAR_MAGIC] == b"ustar":
        return "a tar"
    return next((kind for magic, kind in _ARCHIVES.items() if head.startswith(magic)), "")


def zip_members(path: Path) -> Iterator[Member]:
    """The files in the zip at ``path``; raises anything where it is damaged, as zipfile does."""
    with path.open("rb") as file, zipfile.ZipFile(GuardedFile(file, path.stat().st_size)) as archive:
        yield from (ZipMember(archive, info) for info in archive.infolist() if not info.filename.endswith("/"))


def tar_members(path: Path, max_bytes: int) -> Iterator[Member]:
    """The files in the tar at ``path``, packed or not; raises anything where it is damaged, as tarfile does.

    Args:
        max_bytes: how far the unpacked tar is read.
    """
    with path.open("rb") as file:
        head = file.peek(8)
        opener = next((opener for magic, opener in _OPENERS.items() if head.startswith(magic)), None)
        guarded = GuardedFile(opener(file) if opener else file, max_bytes)
        with tarfile.open(fileobj=guarded, mode="r:") as archive:
            yield from (TarMember(archive, info) for info in archive if not info.isdir())
        if guarded.last.strip(b"\0"):  # tarfile takes a broken header for the end, which is a block of zeros
            raise tarfile.ReadError("what follows is no tar")
