"""Stores files: uploads, data URIs of inputs, what servers give back."""

from __future__ import annotations

import base64
import binascii
import mimetypes
import re
import time
from collections.abc import Iterable, Iterator
from pathlib import Path, PurePosixPath
from typing import Any
from urllib.parse import unquote_to_bytes

from lora_service.errors import InputError
from lora_service.file_chunks import read_chunks
from lora_service.gateway.blobs import TooLargeError
from lora_service.gateway.database import stored_files
from lora_service.gateway.database.tables import StoredFile
from lora_service.gateway.gateway import Gateway
from lora_service.gateway.identifiers import new_id
from lora_service.gateway.problems import Problem

_DATA_URI = re.compile(r"data:([\w.+-]+/[\w.+-]+)?((?:;[\w.+-]+=[^;,]*)*)(;base64)?,", re.IGNORECASE)
_PIECE = 4 * 64 * 1024  # characters of base64 that are decoded at once
_EXTENSIONS = {"image/jpeg": ".jpg", "image/webp": ".webp", "application/zip": ".zip"}


def safe_name(name: str) -> str:
    """Return a file's name as it may stand in links and headers: no folders, no control characters."""
    last = re.split(r"[/\\]", name)[-1]
    kept = re.sub(r"[^\w.() -]", "_", last).strip(". ")
    suffix = PurePosixPath(kept).suffix[:20]
    return (kept if len(kept) <= 100 else kept[: 100 - len(suffix)] + suffix) or "file"


def store(
    gateway: Gateway,
    chunks: Iterable[bytes],
    *,
    owner: str,
    purpose: str,
    name: str,
    content_type: str = "",
    job: str | None = None,
    details: dict[str, Any] | None = None,
    expires_at: float | None = None,
) -> StoredFile:
    """Store a file, and its record once all of it is there.

    Raises:
        Problem: it is larger than ``MAX_UPLOAD_BYTES``.
    """
    identifier, name = new_id(), safe_name(name)
    try:
        written = gateway.blobs.write(identifier, chunks, gateway.settings.max_upload_bytes)
    except TooLargeError as error:
        raise Problem(413, f"A file may have {gateway.settings.max_upload_bytes} bytes at most.") from error
    guessed = mimetypes.guess_type(name)[0] or "application/octet-stream"
    if not re.fullmatch(r"[\w.+-]+/[\w.+-]+(; ?[\w-]+=[\w-]+)*", content_type):
        content_type = guessed
    row = StoredFile(
        id=identifier, owner=owner, purpose=purpose, job=job, name=name, content_type=content_type[:255],
        size=written.size, sha256=written.sha256, details=details or {}, created_at=time.time(), expires_at=expires_at,
    )  # fmt: skip
    with gateway.database.write() as session:
        session.add(row)
    return row


def chunks_of(path: Path) -> Iterator[bytes]:
    """Yield the bytes of a file of this machine."""
    with path.open("rb") as file:
        yield from read_chunks(file)


def upload_expiry(gateway: Gateway) -> float | None:
    """Return until when a file that is uploaded now is kept."""
    seconds = gateway.settings.keep_uploads_seconds
    return time.time() + seconds if seconds else None


def data_uri_content(uri: str) -> tuple[str, Iterator[bytes]]:
    """Return the media type of a data URI and its bytes, decoded piece by piece.

    Raises:
        InputError: it is none.
    """
    match = _DATA_URI.match(uri)
    if not match:
        raise InputError("data URI", uri[:50], "like data:image/png;base64,iVBOR…", code="malformed_data_uri")
    kind, start = match[1] or "text/plain", match.end()
    if not match[3]:
        return kind, iter([unquote_to_bytes(uri[start:])])
    return kind, _decoded(uri, start)


def _decoded(uri: str, start: int) -> Iterator[bytes]:
    try:
        for position in range(start, len(uri), _PIECE):
            yield base64.b64decode(uri[position : position + _PIECE], validate=True)
    except binascii.Error as error:
        raise InputError("data URI", uri[:50], "of well-formed base64", code="malformed_data_uri") from error


def store_data_uri(gateway: Gateway, uri: str, *, owner: str, purpose: str, stem: str, job: str | None = None) -> str:
    """Store the content of a data URI; returns the mark of the file.

    Raises:
        InputError: the URI is malformed.
        Problem: it is too large.
    """
    kind, chunks = data_uri_content(uri)
    suffix = _EXTENSIONS.get(kind) or mimetypes.guess_extension(kind) or ""
    expires_at = upload_expiry(gateway) if purpose == "input" else None
    row = store(gateway, chunks, owner=owner, purpose=purpose, name=f"{stem}{suffix}", content_type=kind, job=job,
                expires_at=expires_at)  # fmt: skip
    return stored_files.mark(row.id)
