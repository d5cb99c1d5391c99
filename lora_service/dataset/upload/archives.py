"""Extraction of archives, folders and single files into the job's folder.

Nothing in an archive is trusted. Its names never become paths: extracted files are numbered, and the name is
kept beside. Declared sizes are checked before reading, actual sizes are counted while reading.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path

from lora_service.dataset.options import UploadLimits
from lora_service.dataset.report import Skipped
from lora_service.dataset.upload.members import Member, archive_kind, tar_members, zip_members
from lora_service.dataset.upload.source_files import (
    MAX_NAME,
    SourceFile,
    UnusableFileError,
    check_name,
    clean_name,
    is_junk,
)
from lora_service.errors import PicturesError, quote, shorten
from lora_service.file_chunks import read_chunks
from lora_service.settings import MEBIBYTE

_HEAD = 512
_RATIO_CHECKED_FROM = 16 * MEBIBYTE
_SELF_EXTRACTING = b"MZ"


@dataclass
class ExtractedFiles:
    """The files of an upload, ready to be read, and those that were skipped."""

    files: list[SourceFile] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def extract(source: Path | Sequence[Path], folder: Path, limits: UploadLimits) -> ExtractedFiles:
    """Return the files in ``source``: an archive, a folder, a single file, or several of these.

    Members of archives are written to ``folder``; other files stay in place.

    Raises:
        PicturesError: ``source`` is missing (code ``no_pictures`` or ``not_found``), empty (``empty_file``,
            ``empty_archive``), of another kind (``unsupported_archive``), damaged as a whole (``archive_damaged``), or
            beyond a limit (``archive_too_large``, ``zip_bomb``, ``too_many_files``).
    """
    sources = [source] if isinstance(source, Path) else list(source)
    if not sources:
        message = "No pictures were given; give a zip, a tar, a folder or pictures."
        raise PicturesError(message, code="no_pictures")
    extractor = _Extractor(folder, limits)
    for path, label in zip(sources, _labels(sources), strict=True):
        extractor.add(path, label)
    return extractor.result


def _labels(sources: Sequence[Path]) -> list[str]:
    """Return the prefix of the names from each source: none if there is one source, else a unique name."""
    if len(sources) == 1:
        return [""]
    seen: Counter[str] = Counter()
    labels = []
    for source in sources:
        seen[source.name] += 1
        number = f" ({seen[source.name]})" if seen[source.name] > 1 else ""
        labels.append(clean_name(f"{source.stem}{number}{source.suffix}"))
    return labels


class _Extractor:
    """Adds one source after the other; the limits hold for all of them together."""

    def __init__(self, folder: Path, limits: UploadLimits) -> None:
        self.folder = folder
        self.limits = limits
        self.result = ExtractedFiles()
        self._members = 0
        self._declared_bytes = 0
        self._written_bytes = 0

    def add(self, source: Path, label: str) -> None:
        if source.is_dir():
            self._add_folder(source, f"{label}/")
        elif source.is_file():
            self._add_file(source, label)
        else:
            message = f"{quote(source.name)} is no file or folder; give a zip, a tar, a folder or pictures."
            raise PicturesError(message, code="not_found")

    def _add_folder(self, source: Path, prefix: str) -> None:
        for path in sorted(source.rglob("*")):
            name = clean_name(prefix + path.relative_to(source).as_posix())
            if path.is_symlink():
                self.result.skipped.append(Skipped(name, "it is a link, not a file", "link"))
            elif path.is_file() and not is_junk(name):
                self._count_member(source.name)
                self.result.files.append(SourceFile(name, path))

    def _add_file(self, source: Path, label: str) -> None:
        with source.open("rb") as file:
            head = file.read(_HEAD)
        kind = archive_kind(head)
        if not head:
            raise PicturesError(f"{quote(source.name)} is empty; a zip of pictures is needed.", code="empty_file")
        if kind == "a zip" or head.startswith(_SELF_EXTRACTING):
            self._add_archive(source, f"{label}/", zip_members(source))
        elif kind in ("a tar", "a gzip archive", "a bzip2 archive", "an xz archive"):
            self._add_archive(source, f"{label}/", tar_members(source, 2 * self.limits.max_zip_bytes))
        elif kind:
            message = f"{quote(source.name)} is {kind}, which cannot be read; send the pictures as a zip or a tar."
            raise PicturesError(message, code="unsupported_archive")
        else:
            self.result.files.append(SourceFile(label or clean_name(source.name), source))

    def _add_archive(self, source: Path, prefix: str, members: Iterator[Member]) -> None:
        if (size := source.stat().st_size) > self.limits.max_zip_bytes:
            limit = _mib(self.limits.max_zip_bytes)
            message = f"{quote(source.name)} has {_mib(size)}, but an archive may have {limit} at most."
            raise PicturesError(message, code="archive_too_large")
        members_before = self._members
        for member in _explain_damage(source.name, members):
            self._add_member(source.name, prefix, member)
        if self._members == members_before:
            message = f"{quote(source.name)} is an empty archive; it needs pictures."
            raise PicturesError(message, code="empty_archive")

    def _add_member(self, archive: str, prefix: str, member: Member) -> None:
        self._count_member(archive)
        self._declared_bytes += member.size
        if self._declared_bytes > self.limits.max_zip_bytes:
            message = (
                f"{quote(archive)} would unpack to more than the {_mib(self.limits.max_zip_bytes)} that are accepted."
            )
            raise PicturesError(message, code="archive_too_large")
        name = clean_name(prefix + member.name[: MAX_NAME + 1])
        try:
            check_name(member.name)
            member.check()
            self._check_size(member)
            if not is_junk(name):
                self._extract(name, member)
        except UnusableFileError as error:
            self.result.skipped.append(Skipped(shorten(name), str(error), error.code))

    def _check_size(self, member: Member) -> None:
        limits = self.limits
        if member.size > limits.max_picture_bytes:
            message = f"it has {_mib(member.size)}, but a file may have {_mib(limits.max_picture_bytes)} at most"
            raise UnusableFileError(message, code="too_large")
        if member.size > _RATIO_CHECKED_FROM and member.size > limits.max_ratio * member.compressed_size:
            message = f"it would unpack to more than {limits.max_ratio} times its size, as no picture does"
            raise UnusableFileError(message, code="zip_bomb")

    def _extract(self, name: str, member: Member) -> None:
        path = self.folder / f"{self._members:06}"
        chunks = _member_chunks(member)
        head = next(chunks, b"")
        if archive_kind(head):
            raise UnusableFileError("it is an archive inside the archive; unpack it first", code="nested_archive")
        try:
            self._write(path, chain([head], chunks))
        except UnusableFileError:
            path.unlink(missing_ok=True)
            raise
        self.result.files.append(SourceFile(name, path))

    def _write(self, path: Path, chunks: Iterable[bytes]) -> None:
        with path.open("wb") as file:
            for chunk in chunks:
                self._written_bytes += len(chunk)
                if self._written_bytes > self.limits.max_zip_bytes:
                    message = "The archives unpack to more than they declare and are not read further."
                    raise PicturesError(message, code="zip_bomb")
                file.write(chunk)

    def _count_member(self, source: str) -> None:
        self._members += 1
        if self._members > self.limits.max_members:
            message = f"{quote(source)} holds more than the {self.limits.max_members} files that are accepted."
            raise PicturesError(message, code="too_many_files")


def _explain_damage(archive: str, members: Iterator[Member]) -> Iterator[Member]:
    """Yield ``members``; any exception of their archive's reader becomes a ``PicturesError``."""
    count = 0
    try:
        for member in members:
            count += 1
            yield member
    except PicturesError:
        raise
    except Exception as error:  # the readers raise anything on damaged data: BadZipFile, struct.error, IndexError …
        message = f"{quote(archive)} is damaged or cut off after {count} files ({shorten(str(error))}); make it anew."
        raise PicturesError(message, code="archive_damaged") from error


def _member_chunks(member: Member) -> Iterator[bytes]:
    """Yield the bytes of ``member``; any exception of its decompressor becomes an ``UnusableFileError``."""
    try:
        with member.open() as file:
            yield from read_chunks(file)
    except NotImplementedError as error:
        message = f"it is packed in a way that cannot be read ({shorten(str(error))})"
        raise UnusableFileError(message, code="unsupported_compression") from error
    except PicturesError:
        raise
    except Exception as error:  # as above
        raise UnusableFileError(f"it is damaged in the archive ({shorten(str(error))})", code="damaged") from error


def _mib(size: int) -> str:
    return f"{size / MEBIBYTE:.1f} MiB"
