"""Uploads, and the content of files."""

from __future__ import annotations

import json
import re
from typing import Any
from urllib.parse import quote

from fastapi import APIRouter, Request, Response
from fastapi.responses import StreamingResponse
from sqlalchemy.orm import Session
from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile

from lora_service.file_chunks import read_chunks
from lora_service.gateway import views
from lora_service.gateway.api.access import Caller, GatewayOf, LinksOf, Reader, Runner
from lora_service.gateway.database import stored_files
from lora_service.gateway.database.tables import StoredFile
from lora_service.gateway.gateway import Gateway
from lora_service.gateway.library import FACTS
from lora_service.gateway.problems import Problem, invalid, not_found
from lora_service.gateway.uploads import store, upload_expiry

router = APIRouter()
_MAX_METADATA = 20_000  # characters
_SHOWN_IN_PAGE = frozenset({"image/png", "image/jpeg", "image/webp", "image/gif"})


@router.post("/v1/files", status_code=201, tags=["files"])
async def create_file(request: Request, gateway: GatewayOf, caller: Runner, links: LinksOf) -> dict[str, Any]:
    """Upload a file as the field ``content`` of a form; ``metadata`` may be a JSON object."""
    async with request.form(max_files=2, max_fields=5, max_part_size=_MAX_METADATA) as form:
        content, metadata = form.get("content"), form.get("metadata")
        if not isinstance(content, UploadFile):
            raise invalid("content", "is required: the file, as a part of multipart/form-data")
        text = (await metadata.read(_MAX_METADATA)).decode("utf-8", "replace") if isinstance(
            metadata, UploadFile
        ) else metadata or "{}"  # fmt: skip
        details = _details(text)
        row = await run_in_threadpool(
            store, gateway, read_chunks(content.file), owner=caller.user, purpose="input",
            name=content.filename or "file", content_type=content.content_type or "", details=details,
            expires_at=upload_expiry(gateway),
        )  # fmt: skip
    return views.file(row, links)


def _details(text: str) -> dict[str, Any]:
    try:
        details = json.loads(text)
    except ValueError as error:
        raise invalid("metadata", "must be a JSON object") from error
    if not isinstance(details, dict):
        raise invalid("metadata", "must be a JSON object")
    if FACTS in details:
        raise invalid("metadata", f"must not have the key {FACTS}, which is the gateway's own")
    return details


@router.get("/v1/files", tags=["files"])
def list_files(gateway: GatewayOf, caller: Reader, links: LinksOf) -> dict[str, Any]:
    """Return the caller's uploads, newest first."""
    with gateway.database.read() as session:
        rows = stored_files.uploads(session, caller.user)
    return {"previous": None, "next": None, "results": [views.file(row, links) for row in rows]}


@router.get("/v1/files/{file}", tags=["files"])
def get_file(file: str, gateway: GatewayOf, caller: Reader, links: LinksOf) -> dict[str, Any]:
    """Return what is known of an upload."""
    return views.file(_owned_file(gateway, caller, file), links)


@router.delete("/v1/files/{file}", status_code=204, tags=["files"])
def delete_file(file: str, gateway: GatewayOf, caller: Runner) -> Response:
    """Remove an upload."""
    row = _owned_file(gateway, caller, file)
    with gateway.database.write() as session:
        check_not_awaited(session, row)
        session.delete(session.get_one(StoredFile, row.id))
    gateway.blobs.remove(row.id)
    return Response(status_code=204)


def check_not_awaited(session: Session, file: StoredFile) -> None:
    """Refuse to remove a file that a job of its owner needs; others' jobs with a link to it must not hold it.

    Raises:
        Problem: one waits or runs (409).
    """
    if file.id in stored_files.awaited(session, file.owner):
        raise Problem(409, "A job that waits or runs needs this file; cancel the job first.")


@router.get("/files/{file}/{name}", tags=["files"])
def read_file(
    file: str, name: str, gateway: GatewayOf, request: Request, expires: str = "", signature: str = ""
) -> Response:
    """Return a file's content, by a link that was given out for it."""
    if not expires.isdecimal() or not gateway.signer.allows(views.DOWNLOAD, file, expires, signature):
        raise Problem(403, "This link is not valid, or has expired; get the job or file again for a new one.")
    return content(gateway, file, request.headers.get("range", ""))


def content(gateway: Gateway, identifier: str, byte_range: str = "") -> Response:
    """Return the content of a file, or a part of it.

    Raises:
        Problem: there is no such file.
    """
    with gateway.database.read() as session:
        row = stored_files.find(session, identifier)
    if row is None:
        raise not_found("file")
    start, end = _range(byte_range, row.size)
    try:
        chunks = gateway.blobs.read(identifier, start, end)
    except FileNotFoundError as error:
        raise not_found("file") from error
    # What strangers have uploaded must not run as a page of this address.
    shown = row.content_type if row.content_type in _SHOWN_IN_PAGE else "application/octet-stream"
    place = "inline" if row.content_type in _SHOWN_IN_PAGE else "attachment"
    headers = {
        "Content-Length": str(end - start),
        "Content-Disposition": f"{place}; filename*=utf-8''{quote(row.name)}",
        "ETag": f'"{row.sha256}"',
        "Accept-Ranges": "bytes",
        "X-Content-Type-Options": "nosniff",
        "Content-Security-Policy": "default-src 'none'; sandbox",
        "Cache-Control": "private, max-age=3600",
    }
    partial = (start, end) != (0, row.size)
    if partial:
        headers["Content-Range"] = f"bytes {start}-{end - 1}/{row.size}"
    return StreamingResponse(chunks, 206 if partial else 200, headers, media_type=shown)


def _range(text: str, size: int) -> tuple[int, int]:
    """Return the bytes that a ``Range`` header asks for; all of them where it is none that is understood."""
    match = re.fullmatch(r"bytes=(\d{1,18})-(\d{0,18})", text.strip())
    if not match:
        return 0, size
    start = int(match[1])
    end = min(size, int(match[2]) + 1) if match[2] else size
    return (start, end) if start < end else (0, size)


def _owned_file(gateway: Gateway, caller: Caller, identifier: str) -> StoredFile:
    with gateway.database.read() as session:
        row = stored_files.find(session, identifier)
    if row is None or row.purpose != "input":
        raise not_found("file")
    caller.check_owner(row.owner, "file")
    return row
