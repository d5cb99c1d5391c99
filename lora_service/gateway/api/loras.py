"""LoRA files: what a user has taught or uploaded; inspect, convert, share, remove."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Annotated, Any, Literal

from fastapi import APIRouter, Depends, Request, Response
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from lora_service.gateway import views
from lora_service.gateway.api.access import Caller, GatewayOf, LinksOf, Reader, Runner
from lora_service.gateway.api.files import check_not_awaited
from lora_service.gateway.api.models import remove_version
from lora_service.gateway.database import catalog, stored_files
from lora_service.gateway.database.tables import StoredFile, Version
from lora_service.gateway.file_work import FileWork
from lora_service.gateway.gateway import Gateway
from lora_service.gateway.library import facts_of
from lora_service.gateway.problems import not_found
from lora_service.gateway.uploads import chunks_of, store, upload_expiry

router = APIRouter(prefix="/v1/loras", tags=["loras"])
_PURPOSES = ("weights", "saved", "input")
"""Purposes of the files that may be LoRAs of a user's."""
_MONTH = 30 * 24 * 3600


class ConversionBody(BaseModel):
    """Another layout of a LoRA file."""

    format: Literal["kohya", "comfyui", "diffusers", "cloneofsimo", "embedding"]
    dtype: Literal["float16", "bfloat16", "float32"] = "float16"


class ShareBody(BaseModel):
    """A link for somebody without a token."""

    seconds: int = Field(default=24 * 3600, ge=60, le=_MONTH, description="For how long the link is valid.")


def work_of(request: Request) -> FileWork:
    """Return what works on strangers' files."""
    work: FileWork = request.app.state.file_work
    return work


WorkOf = Annotated[FileWork, Depends(work_of)]


def _owned_file(gateway: Gateway, caller: Caller, identifier: str) -> StoredFile:
    with gateway.database.read() as session:
        row = stored_files.find(session, identifier)
    if row is None or row.purpose not in _PURPOSES:
        raise not_found("LoRA")
    caller.check_owner(row.owner, "LoRA")
    return row


def _copy(gateway: Gateway, row: StoredFile, folder: Path) -> Path:
    try:
        return gateway.blobs.copy(row.id, folder / row.name)
    except FileNotFoundError as error:
        raise not_found("LoRA") from error


@router.get("")
def list_loras(gateway: GatewayOf, caller: Reader, links: LinksOf) -> dict[str, Any]:
    """Return what the caller has taught, newest first."""
    with gateway.database.read() as session:
        rows = catalog.trained(session, caller.user)
    results = [_shown(gateway, links, file, version) for version, file in rows]
    return {"previous": None, "next": None, "results": results}


@router.get("/{file}")
async def get_lora(file: str, gateway: GatewayOf, caller: Reader, links: LinksOf, work: WorkOf) -> dict[str, Any]:
    """Return what a LoRA file holds, and the formats that it can be converted to."""
    row = await run_in_threadpool(_owned_file, gateway, caller, file)
    with tempfile.TemporaryDirectory(prefix="lora-gateway-") as folder:
        path = await run_in_threadpool(_copy, gateway, row, Path(folder))
        answer = await work.run(caller.user, "inspect", {"path": str(path), "name": row.name})
    answer["inspect"].pop("thumbnail", None)
    return await run_in_threadpool(_with_version, gateway, links, row) | answer


def _with_version(gateway: Gateway, links: views.Links, row: StoredFile) -> dict[str, Any]:
    with gateway.database.read() as session:
        version = catalog.of_weights(session, row.id)
    facts = facts_of(gateway, row)
    curves = {name: facts.get(name, {}) for name in ("losses", "held_out_losses")}
    return _shown(gateway, links, row, version) | curves


def _shown(gateway: Gateway, links: views.Links, row: StoredFile, version: Version | None) -> dict[str, Any]:
    """Return a LoRA as lists have it."""
    facts = facts_of(gateway, row)
    training = version.training if version else None
    with gateway.database.read() as session:
        samples = stored_files.of_job(session, training, ("sample",)) if training else []
        thumbnail = stored_files.find(session, str(facts.get("thumbnail")))
    if thumbnail is not None and (thumbnail.owner, thumbnail.purpose) != (row.owner, "thumbnail"):
        thumbnail = None  # no fact, but what a stranger wrote into the record
    return {
        "id": row.id,
        "name": row.name,
        "model": f"{version.owner}/{version.name}" if version else None,
        "version": f"{version.owner}/{version.name}:{version.id}" if version else None,
        "training": training,
        "created_at": views.time_text(row.created_at),
        "expires_at": views.time_text(row.expires_at),
        "size": row.size,
        **{name: facts.get(name) or None for name in ("trigger", "base", "rank", "prompt")},
        "tokens": facts.get("tokens", []),
        "thumbnail": links.file(thumbnail) if thumbnail else None,
        "url": links.file(row),
        "samples": [views.training_file(each, links) for each in samples],
        "progress": links.api(f"trainings/{training}/progress") if training else None,
    }


@router.post("/{file}/convert", status_code=201)
async def convert_lora(
    file: str, body: ConversionBody, gateway: GatewayOf, caller: Runner, links: LinksOf, work: WorkOf
) -> dict[str, Any]:
    """Write a LoRA in another format; the new file is kept as long as an upload."""
    row = await run_in_threadpool(_owned_file, gateway, caller, file)
    with tempfile.TemporaryDirectory(prefix="lora-gateway-") as folder:
        path = await run_in_threadpool(_copy, gateway, row, Path(folder))
        name = f"{path.stem}-{body.format}.safetensors"
        output = Path(folder) / "converted" / name
        output.parent.mkdir()
        request = {"path": str(path), "name": row.name, "output": str(output), **body.model_dump()}
        answer = await work.run(caller.user, "convert", request)
        new = await run_in_threadpool(
            store, gateway, chunks_of(output), owner=row.owner, purpose="input", name=name,
            expires_at=upload_expiry(gateway),
        )  # fmt: skip
    return views.file(new, links) | {"warnings": answer["warnings"]}


@router.post("/{file}/share", status_code=201)
def share_lora(file: str, body: ShareBody, gateway: GatewayOf, caller: Runner, links: LinksOf) -> dict[str, Any]:
    """Return a link to a LoRA file that needs no token and expires; whoever has it can also draw with it here."""
    row = _owned_file(gateway, caller, file)
    until = time.time() + body.seconds
    expires_at = until if row.expires_at is None else min(until, row.expires_at)
    return {"url": links.file(row, body.seconds), "expires_at": views.time_text(expires_at)}


@router.delete("/{file}", status_code=204)
def delete_lora(file: str, gateway: GatewayOf, caller: Runner) -> Response:
    """Remove a LoRA file; one that was taught goes with its version, its samples and the files saved on the way."""
    row = _owned_file(gateway, caller, file)
    with gateway.database.write() as session:
        check_not_awaited(session, row)
        version = catalog.of_weights(session, row.id)
        if version is not None:
            removed = remove_version(session, version)
        else:
            removed = [row.id]
            session.delete(session.get_one(StoredFile, row.id))
    for each in removed:
        gateway.blobs.remove(each)
    return Response(status_code=204)
