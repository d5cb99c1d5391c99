"""Archives, folders and single files to plain files in the job's own folder.

Nothing in an archive is trusted. Its names never become paths: what is unpacked is numbered, and the name
only travels along. What is declared is checked before reading, what is read is counted while reading.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from lora_service.dataset.options import UploadLimits
from lora_service.dataset.report import Skipped
from lora_service.dataset.upload.member_names import clean_name, is_junk, refusal
from lora_service.dataset.upload.members import Member, archive_kind, tar_members, zip_members
from lora_service.errors import PicturesError
from lora_service.settings import MEBIBYTE

_CHUNK = 256 * 1024
_HEAD = 512
_RATIO_MATTERS_FROM = 16 * MEBIBYTE
_SELF_EXTRACTING = b"MZ"


@dataclass(frozen=True)
class SourceFile:
    """One file of an upload: its name there, and where its bytes lie."""

    name: str
    path: Path


@dataclass
class Unpacked:
    """What an upload held."""

    files: list[SourceFile] = field(default_factory=list)
    skipped: list[Skipped] = field(default_factory=list)


def unpack(source: Path | Sequence[Path], folder: Path, limits: UploadLimits) -> Unpacked:
    """The files in ``source``: an archive, a folder, a picture, or several of these.

    Members of archives are written to ``folder`` under numbers; other files stay where they are.

    Raises:
        PicturesError: ``source`` is missing, empty, damaged as a whole, or beyond a limit.
    """
    sources = [source] if isinstance(source, Path) else list(source)
    if not sources:
        raise PicturesError("No pictures were given; give a zip, a tar, a folder or pictures.")
    unpacker = _Unpacker(folder, limits)
    for each, label in zip(sources, _labels(sources), strict=True):
        unpacker.add(each, label)
    return unpacker.result


def _labels(sources: Sequence[Path]) -> list[str]:
    """What the names from each source begin with: nothing if there is one source, else its own name, made unique."""
    if len(sources) == 1:
        return [""]
    seen: Counter[str] = Counter()
    labels = []
    for source in sources:
        seen[source.name] += 1
        number = f" ({seen[source.name]})" if seen[source.name] > 1 else ""
        labels.append(clean_name(f"{source.stem}{number}{source.suffix}"))
    return labels


def _head(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(_HEAD)


class _Unpacker:
    """Adds one source after the other; the limits hold for all of them together."""

    def __init__(self, folder: Path, limits: UploadLimits) -> None:
        self.folder = folder
        self.limits = limits
        self.result = Unpacked()
        self._members = 0
        self._declared = 0
        self._written = 0

    def add(self, source: Path, label: str) -> None:
        if source.is_dir():
            self._add_folder(source, f"{label}/")
        elif source.is_file():
            self._add_file(source, label)
        else:
            raise PicturesError(f"{source.name!r} is no file or folder; give a zip, a tar, a folder or pictures.")

    def _add_folder(self, source: Path, prefix: str) -> None:
        for path in sorted(source.rglob("*")):
            name = clean_name(prefix + path.relative_to(source).as_posix())
            if path.is_symlink():
                self._leave_out(name, "it is a link, not a file")
            elif path.is_file() and not is_junk(name):
                self._count_member(source.name)
                self.result.files.append(SourceFile(name, path))

    def _add_file(self, source: Path, label: str) -> None:
        head = _head(source)
        kind = archive_kind(head)
        if not head:
            raise PicturesError(f"{source.name!r} is empty; a zip of pictures is needed.")
        if kind == "a zip" or head.startswith(_SELF_EXTRACTING):
            self._add_archive(source, f"{label}/", zip_members(source))
        elif kind in ("a tar", "a gzip archive", "a bzip2 archive", "an xz archive"):
            self._add_archive(source, f"{label}/", tar_members(source, 2 * self.limits.max_zip_bytes))
        elif kind:
            raise PicturesError(
                f"{source.name!r} is {kind}, which cannot be read; send the pictures as a zip or a tar."
            )
        else:
            self.result.files.append(SourceFile(label or clean_name(source.name), source))

    def _add_archive(self, source: Path, prefix: str, members: Iterator[Member]) -> None:
        if (size := source.stat().st_size) > self.limits.max_zip_bytes:
            limit = _mib(self.limits.max_zip_bytes)
            raise PicturesError(f"{source.name!r} has {_mib(size)}, but an archive may have {limit} at most.")
        before = self._members
        for member in _undamaged(source.name, members):
            self._add_member(source.name, prefix, member)
        if self._members == before:
            raise PicturesError(f"{source.name!r} is an empty archive; it needs pictures.")

    def _add_member(self, source: str, prefix: str, member: Member) -> None:
        self._count_member(source)
        name = clean_name(prefix + member.name)
        self._declared += member.size
        if self._declared > self.limits.max_zip_bytes:
            limit = _mib(self.limits.max_zip_bytes)
            raise PicturesError(f"{source!r} would unpack to more than the {limit} that are accepted.")
        if reason := refusal(member.name) or member.refused or self._too_large(member):
            self._leave_out(name, reason)
        elif not is_junk(name):
            self._unpack(name, member)

    def _unpack(self, name: str, member: Member) -> None:
        path = self.folder / f"{self._members:06}"
        try:
            chunks = _chunks(member)
            head = next(chunks, b"")
            if archive_kind(head):
                self._leave_out(name, "it is an archive inside the archive; unpack it first")
                return
            self._write(path, (chunk for part in ([head], chunks) for chunk in part))
        except _DamagedMemberError as error:
            path.unlink(missing_ok=True)
            self._leave_out(name, str(error))
        else:
            self.result.files.append(SourceFile(name, path))

    def _write(self, path: Path, chunks: Iterable[bytes]) -> None:
        with path.open("wb") as file:
            for chunk in chunks:
                self._written += len(chunk)
                if self._written > self.limits.max_zip_bytes:
                    raise PicturesError("The archives unpack to more than they declare and are not read further.")
                file.write(chunk)

    def _too_large(self, member: Member) -> str:
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
        self.result.skipped.append(Skipped(name, reason))


class _DamagedMemberError(Exception):
    """A member cannot be read; the message is the reason."""


def _undamaged(source: str, members: Iterator[Member]) -> Iterator[Member]:
    """``members``, with what their archive's reader raises as one sentence."""
    count = 0
    try:
        for member in members:
            count += 1
            yield member
    except PicturesError:
        raise
    except Exception as error:  # the readers raise anything on damaged data: BadZipFile, struct.error, IndexError …
        raise PicturesError(f"{source!r} is damaged or cut off after {count} files ({error}); make it anew.") from error


def _chunks(member: Member) -> Iterator[bytes]:
    try:
        with member.open() as packed:
            while chunk := packed.read(_CHUNK):
                yield chunk
    except NotImplementedError as error:
        raise _DamagedMemberError(f"it is packed in a way that cannot be read ({error})") from error
    except PicturesError:
        raise
    except Exception as error:  # as above
        raise _DamagedMemberError(f"it is damaged in the archive ({error})") from error


def _mib(size: int) -> str:
    return f"{size / MEBIBYTE:.1f} MiB"
