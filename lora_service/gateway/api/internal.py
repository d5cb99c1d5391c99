"""The addresses that Cog's servers call: inputs' content, and webhooks of running jobs; a link opens one thing."""

from __future__ import annotations

import json

from fastapi import APIRouter, Request, Response
from starlette.concurrency import run_in_threadpool

from lora_service.file_chunks import read_chunks
from lora_service.gateway import views
from lora_service.gateway.api.access import GatewayOf
from lora_service.gateway.api.files import content
from lora_service.gateway.api.received import received
from lora_service.gateway.database import jobs
from lora_service.gateway.database.tables import Job
from lora_service.gateway.gateway import Gateway
from lora_service.gateway.problems import Problem, not_found
from lora_service.gateway.queue.inputs import internal_link
from lora_service.gateway.uploads import store

router = APIRouter(prefix="/internal", include_in_schema=False)
_MAX_OUTPUT_BYTES = _MAX_WEBHOOK_BYTES = 4 * 1024**3


@router.get("/files/{file}/{key}/{name}")
def read_input(file: str, key: str, name: str, gateway: GatewayOf, request: Request) -> Response:
    """Return a file's content to a server."""
    if not gateway.signer.verify(key, views.INTERNAL, file):
        raise Problem(403, "This link is not valid.")
    return content(gateway, file, request.headers.get("range", ""))


@router.put("/uploads/{key}/{name}")
async def take_output(key: str, name: str, gateway: GatewayOf, request: Request) -> Response:
    """Take an output file of a running job; Cog puts the address in ``Location`` into the job's output."""
    identifier = request.headers.get("x-prediction-id", "")
    if not gateway.signer.verify(key, "uploads"):
        raise Problem(403, "This link is not valid.")
    job = await run_in_threadpool(_job, gateway, identifier)
    async with received(request, _MAX_OUTPUT_BYTES) as file:
        row = await run_in_threadpool(
            store, gateway, read_chunks(file), owner=job.owner, purpose="output", name=name, job=job.id,
            content_type=request.headers.get("content-type", ""),
        )  # fmt: skip
    return Response(status_code=201, headers={"Location": internal_link(gateway, row)})


def _job(gateway: Gateway, identifier: str) -> Job:
    with gateway.database.read() as session:
        row = jobs.find(session, identifier)
    if row is None:
        raise not_found("job")
    return row


@router.post("/jobs/{job}/{key}")
async def take_webhook(job: str, key: str, gateway: GatewayOf, request: Request) -> Response:
    """Take the state of a job from its server."""
    attempt = gateway.attempt_of("jobs", job, key)
    if attempt is None:
        raise Problem(403, "This link is not valid.")
    async with received(request, _MAX_WEBHOOK_BYTES) as file:
        body = await run_in_threadpool(file.read)
    try:
        response = json.loads(body)
    except ValueError as error:
        raise Problem(400, "This webhook is no JSON.") from error
    if not isinstance(response, dict):
        raise Problem(400, "This webhook is no JSON object.")
    # One of a job that does not run here any more is of no use to anybody, and must not be sent again.
    gateway.tell(job, response, attempt)
    return Response(status_code=200)
