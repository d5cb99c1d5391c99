"""Archives, folders and single files to plain files in the job's own folder.

Nothing in an archive is trusted. Its names never become paths: what is unpacked is numbered, and the name
only travels along. What is declared is checked before reading, what is read is counted while reading.
"""

from __future__ import annotations

import bz2
import gzip
import lzma
import stat
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Protocol

from lora_service.errors import PicturesError
from lora_service.pictures.guarded import GuardedFile
from lora_service.pictures.names import clean_name, is_junk, refusal, zip_name
from lora_service.pictures.options import Limits
from lora_service.pictures.report import LeftOut
from lora_service.settings import MEBIBYTE

_CHUNK = 256 * 1024
_RATIO_MATTERS_FROM = 16 * MEBIBYTE
_OPENERS: dict[bytes, Callable[..., Any]] = {
    b"\x1f\x8b": gzip.open,
    b"BZh": bz2.open,
    b"\xfd7zXZ": lzma.open,
}
_FOREIGN = {b"Rar!": "a RAR archive", b"7z\xbc\xaf\x27\x1c": "a 7z archive", b"%PDF": "a PDF document"}
_DAMAGED = (zipfile.BadZipFile, tarfile.TarError, EOFError, OSError, zlib.error, lzma.LZMAError, ValueError)


@dataclass(frozen=True)
class SourceFile:
    """One file of an upload: its name there, and where its bytes lie."""

    name: str
    path: Path


@dataclass
class Unpacked:
    """What an upload held."""

    files: list[SourceFile] = field(default_factory=list)
    left_out: list[LeftOut] = field(default_factory=list)


def unpack(source: Path | Sequence[Path], folder: Path, limits: Limits) -> Unpacked:
    """The files in ``source``: an archive, a folder, a picture, or several of these.

    Members of archives are written to ``folder`` under numbers; other files stay where they are.

    Raises:
        PicturesError: ``source`` is missing, empty, damaged as a whole, or beyond a limit.
    """
    sources = [source] if isinstance(source, Path) else list(source)
    if not sources:
        raise PicturesError("No pictures were given: a zip, a tar, a folder or pictures are needed.")
    unpacker = _Unpacker(folder, limits)
    for each in sources:
        unpacker.add(each, f"{each.name}/" if len(sources) > 1 else "")
    return unpacker.result


class _Member(Protocol):
    """One member of any archive."""

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
class _ZipMember:
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
        if self.info.flag_bits & 0x1:
            return "it is encrypted; make the archive without a password"
        if stat.S_ISLNK(self.info.external_attr >> 16):
            return "it is a link, not a file"
        return ""

    def open(self) -> IO[bytes]:
        return self.archive.open(self.info)


@dataclass(frozen=True)
class _TarMember:
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
        return self.info.size

    @property
    def refused(self) -> str:
        if self.info.issym() or self.info.islnk():
            return "it is a link, not a file"
        return "" if self.info.isreg() and not self.info.issparse() else "it is no ordinary file"

    def open(self) -> IO[bytes]:
        opened = self.archive.extractfile(self.info)
        if opened is None:
            raise tarfile.ReadError("no data")
        return opened


class _Unpacker:
    """Adds one source after the other; the limits hold for all of them together."""

    def __init__(self, folder: Path, limits: Limits) -> None:
        self.folder = folder
        self.limits = limits
        self.result = Unpacked()
        self._members = 0
        self._declared = 0
        self._written = 0

    def add(self, source: Path, prefix: str) -> None:
        if source.is_dir():
            self._add_folder(source, prefix)
        elif not source.is_file():
            raise PicturesError(f"{source.name!r} is no file or folder; give a zip, a tar, a folder or pictures.")
        else:
            self._add_file(source, prefix)

    def _add_folder(self, source: Path, prefix: str) -> None:
        for path in sorted(source.rglob("*")):
            name = prefix + path.relative_to(source).as_posix()
            if path.is_symlink():
                self._leave_out(name, "it is a link, not a file")
            elif path.is_file() and not is_junk(name):
                self._count_member(source.name)
                self.result.files.append(SourceFile(name, path))

    def _add_file(self, source: Path, prefix: str) -> None:
        with source.open("rb") as file:
            head = file.read(512)
        for magic, kind in _FOREIGN.items():
            if head.startswith(magic):
                raise PicturesError(f"{source.name!r} is {kind}; send the pictures as a zip or a tar.")
        if not head:
            raise PicturesError(f"{source.name!r} is empty; a zip of pictures is needed.")
        packer = next((opener for magic, opener in _OPENERS.items() if head.startswith(magic)), None)
        if zipfile.is_zipfile(source):
            self._add_archive(source, prefix, self._zip_members(source))
        elif packer or head[257:262] == b"ustar":
            self._add_archive(source, prefix, self._tar_members(source))
        else:
            self.result.files.append(SourceFile(source.name, source))

    def _add_archive(self, source: Path, prefix: str, members: Iterator[_Member]) -> None:
        if source.stat().st_size > self.limits.max_zip_bytes:
            raise PicturesError(
                f"{source.name!r} has {_mib(source.stat().st_size)}, but an archive may have "
                f"{_mib(self.limits.max_zip_bytes)} at most."
            )
        before = self._members
        try:
            for member in members:
                self._add_member(source.name, prefix, member)
        except _DAMAGED as error:
            raise PicturesError(f"{source.name!r} is a damaged or cut-off archive ({error}).") from error
        if self._members == before:
            raise PicturesError(f"{source.name!r} is an empty archive; it needs pictures.")

    def _zip_members(self, source: Path) -> Iterator[_Member]:
        with source.open("rb") as file, zipfile.ZipFile(GuardedFile(file, source.stat().st_size)) as archive:
            for info in archive.infolist():
                if not info.is_dir():
                    yield _ZipMember(archive, info)

    def _tar_members(self, source: Path) -> Iterator[_Member]:
        with source.open("rb") as file:
            head = file.peek(8) if hasattr(file, "peek") else b""
            opener = next((opener for magic, opener in _OPENERS.items() if head.startswith(magic)), None)
            stream = opener(file) if opener else file
            with tarfile.open(fileobj=GuardedFile(stream, 2 * self.limits.max_zip_bytes), mode="r:") as archive:
                for info in archive:
                    if not info.isdir():
                        yield _TarMember(archive, info)

    def _add_member(self, source: str, prefix: str, member: _Member) -> None:
        self._count_member(source)
        name = clean_name(member.name)
        if is_junk(name):
            return
        self._declared += member.size
        if self._declared > self.limits.max_zip_bytes:
            raise PicturesError(
                f"{source!r} would unpack to more than the {_mib(self.limits.max_zip_bytes)} that are accepted."
            )
        reason = refusal(member.name) or member.refused or self._too_large(member)
        if reason:
            self._leave_out(prefix + name, reason)
        else:
            self._write(prefix + name, member)

    def _write(self, name: str, member: _Member) -> None:
        path = self.folder / f"{len(self.result.files):06}"
        try:
            with member.open() as packed, path.open("wb") as file:
                while chunk := packed.read(_CHUNK):
                    self._written += len(chunk)
                    if self._written > self.limits.max_zip_bytes:
                        raise PicturesError("The archives unpack to more than they declare; they are not read further.")
                    file.write(chunk)
        except NotImplementedError:
            self._leave_out(name, "it is packed by a method that cannot be read; use deflate")
        except _DAMAGED as error:
            self._leave_out(name, f"it is damaged in the archive ({error})")
        else:
            self.result.files.append(SourceFile(name, path))

    def _too_large(self, member: _Member) -> str:
        if member.size > self.limits.max_picture_bytes:
            return f"it has {_mib(member.size)}, but a file may have {_mib(self.limits.max_picture_bytes)} at most"
        if member.size > _RATIO_MATTERS_FROM and member.size > self.limits.max_ratio * member.packed:
            return f"it would unpack to more than {self.limits.max_ratio} times its size, as no picture does"
        return ""

    def _count_member(self, source: str) -> None:
        self._members += 1
        if self._members > self.limits.max_members:
            raise PicturesError(f"{source!r} holds more than the {self.limits.max_members} files that are accepted.")

    def _leave_out(self, name: str, reason: str) -> None:
        self.result.left_out.append(LeftOut(name, reason))


def _mib(size: int) -> str:
    return f"{size / MEBIBYTE:.1f} MiB"
