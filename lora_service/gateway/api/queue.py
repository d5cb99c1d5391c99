"""The queue as a user may see it, and another order of one's own jobs in it."""

from __future__ import annotations

from typing import Annotated, Any

from fastapi import APIRouter
from pydantic import BaseModel, Field

from lora_service.gateway import views
from lora_service.gateway.api.access import Caller, GatewayOf, LinksOf, Reader, Runner
from lora_service.gateway.database import line
from lora_service.gateway.database.tables import Job
from lora_service.gateway.gateway import Gateway
from lora_service.gateway.problems import Problem, invalid, not_found

router = APIRouter(prefix="/v1/queue", tags=["queue"])


class OrderBody(BaseModel):
    """Another order of waiting jobs."""

    jobs: Annotated[list[str], Field(min_length=1, max_length=1000, description="Identifiers, first to last.")]


@router.get("")
def get_queue(gateway: GatewayOf, caller: Reader, links: LinksOf) -> dict[str, Any]:
    """Return what runs and what waits, in the order of beginning; of others' jobs, that they are there."""
    return _queue(gateway, caller, links)


@router.post("/order")
def order_queue(body: OrderBody, gateway: GatewayOf, caller: Runner, links: LinksOf) -> dict[str, Any]:
    """Have one's own waiting jobs come in this order, in the places that they have together."""
    if len(set(body.jobs)) < len(body.jobs):
        raise invalid("jobs", "must name each job once")
    try:
        with gateway.database.write() as session:
            line.reorder(session, caller.user, body.jobs)
    except KeyError as error:
        raise not_found("job") from error
    except line.CannotReorderError as error:
        raise Problem(409, f"These jobs cannot take each other's places: {error}.") from error
    return _queue(gateway, caller, links)


def _queue(gateway: Gateway, caller: Caller, links: views.Links) -> dict[str, Any]:
    with gateway.database.read() as session:
        running, waiting = line.running(session), line.waiting(session)
    return {
        "running": [_entry(job, None, caller, links) for job in running],
        "waiting": [_entry(job, place, caller, links) for place, job in waiting],
    }


def _entry(job: Job, place: int | None, caller: Caller, links: views.Links) -> dict[str, Any]:
    entry = {
        "id": None,
        "kind": job.kind,
        "status": job.status,
        "user": None,
        "mine": job.owner == caller.user,
        "position": place,
        "created_at": views.time_text(job.created_at),
        "started_at": views.time_text(job.started_at),
    }
    if job.owner != caller.user and not caller.may("admin"):
        return entry
    return entry | {
        "id": job.id,
        "user": job.owner,
        "model": job.model,
        "destination": job.destination,
        "priority": job.priority,
        "metrics": job.metrics,
        "urls": views.job_urls(job, links),
    }
