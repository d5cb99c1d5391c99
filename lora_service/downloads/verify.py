"""Whether a downloaded file is what a LoRA's link must lead to."""

from __future__ import annotations

import hashlib
from pathlib import Path

from lora_service.downloads.remote_file import RemoteFile
from lora_service.downloads.sites import github
from lora_service.errors import LinkError, LoraFileError
from lora_service.lora.safetensors_header import MAX_HEADER_BYTES, read_header

START_BYTES = 512
"""After so many bytes a file of another kind is recognised, and the rest need not be downloaded."""

_LENGTH_BYTES = 8
_LFS = b"version https://git-lfs"


def check_safetensors(path: Path, source: RemoteFile) -> None:
    """Read a file's header and see that all tensors lie inside it.

    Raises:
        LinkError: it is a web page, a Git LFS pointer, a pickle, cut off, or anything else.
    """
    with path.open("rb") as file:
        if file.read(len(_LFS)) == _LFS:
            raise LinkError(
                f"The link {source.link!r} leads to a Git LFS pointer and not to the file itself; "
                f"{github.lfs_advice(source)}."
            )
    try:
        read_header(path)
    except LoraFileError as error:
        reason = str(error).removeprefix(path.name).strip()
        raise LinkError(f"What the link {source.link!r} leads to {reason}") from error


def check_start(path: Path, source: RemoteFile) -> None:
    """Refuse a file by its first bytes; what may still become a safetensors file passes.

    Raises:
        LinkError: it begins as something else.
    """
    with path.open("rb") as file:
        length = int.from_bytes(file.read(_LENGTH_BYTES), "little")
    # Text, zips, pickles and pictures all begin with bytes that read as a huge length.
    if length > MAX_HEADER_BYTES:
        check_safetensors(path, source)


def sha256_of(path: Path) -> str:
    """The SHA-256 of a file, as 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
