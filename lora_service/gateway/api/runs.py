"""What workers of a cluster call: the run folder of a training, by a link of one attempt at it."""

from __future__ import annotations

from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel
from starlette.concurrency import run_in_threadpool

from lora_service.file_chunks import read_chunks
from lora_service.gateway.api.access import GatewayOf
from lora_service.gateway.api.received import received
from lora_service.gateway.database import jobs
from lora_service.gateway.database.tables import FINAL, Job
from lora_service.gateway.gateway import Gateway
from lora_service.gateway.problems import Problem
from lora_service.gateway.queue import run_files
from lora_service.gateway.queue.inputs import internal_link

router = APIRouter(prefix="/internal/runs", include_in_schema=False)


class RunState(BaseModel):
    """What a worker says of a run folder.

    Attributes:
        present: the paths of its files.
        taken: the wishes that the training has heeded.
    """

    present: list[str]
    taken: list[str] = []


@router.get("/{job}/{key}")
def read_run(job: str, key: str, gateway: GatewayOf) -> dict[str, Any]:
    """Return the files that are kept of a run folder."""
    _job(gateway, job, key)
    files = run_files.kept(gateway, job)
    return {"files": [{"path": file.details["path"], "url": internal_link(gateway, file)} for file in files]}


@router.post("/{job}/{key}")
def note_run(job: str, key: str, state: RunState, gateway: GatewayOf) -> dict[str, Any]:
    """Forget the files that are not there any more; returns what is asked of the training."""
    _job(gateway, job, key)
    run_files.forget(gateway, job, state.present)
    return {"wishes": run_files.wishes(gateway, job, state.taken)}


@router.put("/{job}/{key}/{path:path}")
async def keep_run_file(job: str, key: str, path: str, gateway: GatewayOf, request: Request) -> Response:
    """Keep a file of a run folder."""
    row = await run_in_threadpool(_job, gateway, job, key)
    async with received(request, gateway.settings.max_upload_bytes) as file:
        await run_in_threadpool(run_files.keep, gateway, row, path, read_chunks(file))
    return Response(status_code=201)


def _job(gateway: Gateway, identifier: str, key: str) -> Job:
    """Return the training of a link.

    Raises:
        Problem: it is none (403), or its attempt is over (410).
    """
    attempt = gateway.attempt_of("runs", identifier, key)
    if attempt is None:
        raise Problem(403, "This link is not valid.")
    with gateway.database.read() as session:
        row = jobs.find(session, identifier)
    if row is None or row.status in FINAL or (row.attempt, row.claimed) != (attempt, True):
        raise Problem(410, "This attempt at the job is over.")
    return row
