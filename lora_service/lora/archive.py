"""A LoRA inside a zip or tar: a file that was packed to be sent, or the ``trained_model.tar`` of a hosting site.

A ``trained_model.tar`` holds ``lora.safetensors``, the learned rows in ``embeddings.pti`` (a safetensors file), and in
``special_params.json`` the word that stands for them: ``{"TOK": "<s0><s1>"}``.
"""

from __future__ import annotations

import json
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from lora_service.errors import LoraFileError, PicturesError
from lora_service.file_chunks import read_chunks
from lora_service.lora.safetensors_header import shortened
from lora_service.settings import MEBIBYTE

if TYPE_CHECKING:  # the package of datasets is imported for an archive alone
    from lora_service.dataset.upload.members import Member

MAX_UNPACKED_BYTES = 4096 * MEBIBYTE
MAX_MEMBERS = 1000
MAX_EMBEDDING_BYTES = 16 * MEBIBYTE
"""Most of a textual inversion; 75 rows for XL take 0.6 MB."""
_MAX_RATIO = 200
_MAX_PARAMETERS_BYTES = 64 * 1024
_HEAD_BYTES = 512
EMBEDDINGS_NAME = "embeddings.pti"
_LORA, _PARAMETERS = "lora.safetensors", "special_params.json"
_READ_KINDS = ("a zip", "a tar", "a gzip archive", "a bzip2 archive", "an xz archive")


@dataclass(frozen=True)
class UnpackedLora:
    """The files of a LoRA that were in an archive.

    Attributes:
        path: the LoRA's own file.
        name: its name in the archive, without folders.
        embeddings: the file of its learned rows, or None.
        word: the word that stands for these rows, or ''.
    """

    path: Path
    name: str
    embeddings: Path | None = None
    word: str = ""


def is_archive(path: Path) -> bool:
    """Return whether a file begins as an archive that is read here; PyTorch's pickles, zips too, are none."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return False
    is_safetensors = head[4:9] == bytes(4) + b"{"  # behind a header's length
    if is_safetensors or b"data.pkl" in head or b"/version" in head:
        return False
    from lora_service.dataset.upload.members import archive_kind

    return archive_kind(head) in _READ_KINDS


def is_torch_file(path: Path) -> bool:
    """Return whether a file begins as one that PyTorch saved, which is a zip."""
    try:
        with path.open("rb") as file:
            head = file.read(_HEAD_BYTES)
    except OSError:
        return False
    return head.startswith(b"PK\x03\x04") and (b"data.pkl" in head or b"/version" in head)


def check_torch_file(path: Path, name: str) -> None:
    """Check that a file of PyTorch's is no larger than any textual inversion, packed and unpacked.

    Raises:
        LoraFileError: it is (``embedding_too_large``), or it is damaged (``pickle``).
    """
    try:
        with zipfile.ZipFile(path) as archive:
            size = sum(member.file_size for member in archive.infolist())
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        raise LoraFileError(f"{name} is damaged; download it again.", code="pickle") from error
    if max(size, path.stat().st_size) > MAX_EMBEDDING_BYTES:
        raise LoraFileError(
            f"{name} is larger than any textual inversion; give a LoRA or model as .safetensors, and in its own input.",
            code="embedding_too_large",
        )


def unpack_lora(path: Path, folder: Path, *, max_bytes: int = MAX_UNPACKED_BYTES) -> UnpackedLora:
    """Write the one LoRA of an archive, and what belongs to it, to ``folder`` under names of our own.

    Args:
        path: the archive.
        folder: an empty folder.
        max_bytes: most that is unpacked.

    Raises:
        LoraFileError: the archive is damaged (``archive_damaged``), or larger than is accepted
            (``archive_too_large``), or holds no LoRA (``no_lora_in_archive``) or several
            (``several_loras_in_archive``).
    """
    from lora_service.dataset.upload.members import tar_members, zip_members

    with path.open("rb") as file:
        is_zip = file.read(2) == b"PK"
    unpacker = _Unpacker(folder, max_bytes)
    try:
        for member in zip_members(path) if is_zip else tar_members(path, 2 * max_bytes):
            unpacker.add(member)
    except LoraFileError:
        raise
    except PicturesError as error:  # of one member, or of a whole bomb
        raise LoraFileError(f"The archive cannot be used: {str(error).rstrip('.')}.", code="archive_damaged") from error
    except Exception as error:  # the readers raise anything on damaged data
        raise LoraFileError(
            "The archive is damaged or cut off; make it anew, or give the .safetensors file.", code="archive_damaged"
        ) from error
    return unpacker.result()


class _Unpacker:
    """Takes what belongs to a LoRA from an archive, member after member."""

    def __init__(self, folder: Path, max_bytes: int) -> None:
        self._folder, self._left = folder, max_bytes
        self._max_bytes = max_bytes
        self._members = 0
        self._loras: dict[str, Path] = {}
        self._embeddings: Path | None = None
        self._word = ""

    def add(self, member: Member) -> None:
        self._members += 1
        if self._members > MAX_MEMBERS:
            raise LoraFileError(
                f"The archive holds more than {MAX_MEMBERS} files; pack the LoRA alone.", code="archive_too_large"
            )
        name = PurePosixPath(member.name.replace("\\", "/")).name
        if name.startswith("."):  # macOS packs a "._lora.safetensors" beside each file
            return
        if name.lower().endswith(".safetensors"):
            self._loras[member.name] = self._write(member)
        elif name == EMBEDDINGS_NAME:
            self._embeddings = self._write(member)
        elif name == _PARAMETERS and member.size <= _MAX_PARAMETERS_BYTES:
            self._word = _word(b"".join(_chunks(member)))

    def result(self) -> UnpackedLora:
        named = {name: path for name, path in self._loras.items() if PurePosixPath(name).name == _LORA}
        loras = named if len(named) == 1 else self._loras
        if not loras:
            raise LoraFileError(
                "The archive holds no .safetensors file; give the LoRA's own file, or a zip or tar with it.",
                code="no_lora_in_archive",
            )
        if len(loras) > 1:
            names = ", ".join(shortened(name) for name in sorted(loras)[:10])
            raise LoraFileError(
                f"The archive holds {len(loras)} .safetensors files ({names}); pack the LoRA alone.",
                code="several_loras_in_archive",
            )
        ((name, path),) = loras.items()
        return UnpackedLora(path, PurePosixPath(name.replace("\\", "/")).name, self._embeddings, self._word)

    def _write(self, member: Member) -> Path:
        member.check()
        if member.size > self._left or member.size > _MAX_RATIO * max(member.compressed_size, MEBIBYTE):
            raise self._too_large()
        path = self._folder / f"{self._members:04}"
        with path.open("wb") as file:
            for chunk in _chunks(member):
                self._left -= len(chunk)
                if self._left < 0:
                    raise self._too_large()
                file.write(chunk)
        return path

    def _too_large(self) -> LoraFileError:
        return LoraFileError(
            f"The archive unpacks to more than the {self._max_bytes / MEBIBYTE:.0f} MiB that are accepted; "
            "give the .safetensors file.",
            code="archive_too_large",
        )


def _chunks(member: Member) -> Iterator[bytes]:
    with member.open() as file:
        yield from read_chunks(file)


def _word(parameters: bytes) -> str:
    """Return the word that ``special_params.json`` maps to the learned tokens, or ''."""
    try:
        words = list(json.loads(parameters))
    except (ValueError, TypeError, RecursionError):
        return ""
    return words[0] if words and isinstance(words[0], str) else ""
