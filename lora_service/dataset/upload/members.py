"""The members of zip and tar archives behind one interface, read within limits."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import stat
import struct
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

from lora_service.dataset.upload.source_files import UnusableFileError
from lora_service.errors import PicturesError
from lora_service.settings import MEBIBYTE

_MAX_READ = 8 * MEBIBYTE
_ENCRYPTED_FLAG, _UTF8_FLAG = 0x1, 0x800  # general purpose flags of a zip member (APPNOTE.TXT 4.4.4)
_UNICODE_PATH = 0x7075  # the extra field of Info-ZIP (APPNOTE.TXT 4.6.9): version, checksum of the other name, UTF-8
_DECOMPRESSORS: dict[bytes, Callable[..., Any]] = {b"\x1f\x8b": gzip.open, b"BZh": bz2.open, b"\xfd7zXZ": lzma.open}
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
    """One file of an archive; sizes are in bytes, ``size`` as the archive declares it."""

    @property
    def name(self) -> str: ...
    @property
    def size(self) -> int: ...
    @property
    def compressed_size(self) -> int: ...
    def check(self) -> None:
        """Raise ``UnusableFileError`` if it is encrypted, or not an ordinary file."""

    def open(self) -> IO[bytes]: ...


def archive_kind(head: bytes) -> str:
    """Return the kind of archive that begins with ``head`` (512 bytes), for a message; "" if it is none."""
    if head[_TAR_MAGIC] == b"ustar":
        return "a tar"
    return next((kind for magic, kind in _ARCHIVES.items() if head.startswith(magic)), "")


def zip_members(path: Path) -> Iterator[Member]:
    """Yield the files in the zip at ``path``; any exception may be raised where it is damaged, as by zipfile."""
    with path.open("rb") as file, zipfile.ZipFile(GuardedFile(file, path.stat().st_size)) as archive:
        yield from (ZipMember(archive, info) for info in archive.infolist() if not info.filename.endswith("/"))


def tar_members(path: Path, max_bytes: int) -> Iterator[Member]:
    """Yield the files in the tar at ``path``, compressed or not; any exception may be raised where it is damaged.

    Args:
        max_bytes: the position in the decompressed tar up to which it is read.
    """
    with path.open("rb") as file:
        head = file.peek(8)
        decompress = next((opener for magic, opener in _DECOMPRESSORS.items() if head.startswith(magic)), None)
        guarded = GuardedFile(decompress(file) if decompress else file, max_bytes)
        with tarfile.open(fileobj=guarded, mode="r:") as archive:
            yield from (TarMember(archive, info) for info in archive if not info.isdir())
        if guarded.last_read.strip(b"\0"):  # tarfile takes a broken header for the end, which is a block of zeros
            raise tarfile.ReadError("what follows is no tar")


@dataclass(frozen=True)
class ZipMember:
    archive: zipfile.ZipFile
    info: zipfile.ZipInfo

    @property
    def name(self) -> str:
        """The name; UTF-8 is recognised where its flag is missing, as many packers forget it.

        Names in another alphabet are read as cp437, as the format demands: wrong to look at, but the same for an
        image and its caption.
        """
        if self.info.flag_bits & _UTF8_FLAG:
            return self.info.filename
        try:
            return (_unicode_path(self.info.extra) or self.info.filename.encode("cp437")).decode("utf-8")
        except UnicodeError:
            return self.info.filename

    @property
    def size(self) -> int:
        return self.info.file_size

    @property
    def compressed_size(self) -> int:
        return self.info.compress_size

    def check(self) -> None:
        if self.info.flag_bits & _ENCRYPTED_FLAG:
            raise UnusableFileError("it is encrypted; make the archive without a password", code="encrypted")
        if stat.S_ISLNK(self.info.external_attr >> 16):
            raise UnusableFileError("it is a link, not a file", code="link")

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
    def compressed_size(self) -> int:
        return self.info.size  # a tar is compressed as a whole, so its members have no ratio

    def check(self) -> None:
        if self.info.issym() or self.info.islnk():
            raise UnusableFileError("it is a link, not a file", code="link")
        if not self.info.isreg() or self.info.issparse():
            raise UnusableFileError("it is no ordinary file", code="special_file")

    def open(self) -> IO[bytes]:
        opened = self.archive.extractfile(self.info)
        if opened is None:
            raise tarfile.ReadError("it has no data")
        return opened


class GuardedFile(io.RawIOBase):
    """``file``, readable up to ``limit`` bytes from its start and by 8 MiB at a time.

    Readers of zip and tar files take whole directories and headers in one read, of the size that the file
    declares; a few kilobytes of archive can declare gigabytes.

    Raises:
        PicturesError: a read or a seek goes beyond that (code ``zip_bomb``).
    """

    def __init__(self, file: IO[bytes], limit: int) -> None:
        self._file = file
        self._limit = limit
        self.last_read = b""
        """The bytes of the most recent read."""

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._file.tell()

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        if whence == io.SEEK_SET and offset > self._limit:
            raise PicturesError("The archive would unpack to more than is accepted.", code="zip_bomb")
        return self._file.seek(offset, whence)

    def read(self, size: int | None = -1, /) -> bytes:
        length = _MAX_READ + 1 if size is None or size < 0 else min(size, _MAX_READ + 1)
        self.last_read = self._file.read(length)
        if len(self.last_read) > _MAX_READ:
            message = "The archive declares more files, or longer names, than any set of pictures has."
            raise PicturesError(message, code="zip_bomb")
        return self.last_read


def _unicode_path(extra: bytes) -> bytes:
    """Return the UTF-8 name in a zip member's ``extra`` fields, or b""."""
    while len(extra) >= 4:
        kind, size = struct.unpack_from("<HH", extra)
        if kind == _UNICODE_PATH:
            return extra[9 : 4 + size]
        extra = extra[4 + size :]
    return b""
