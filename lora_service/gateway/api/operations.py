"""The addresses for operating: health, readiness, metrics."""

from __future__ import annotations

from fastapi import APIRouter, Request, Response
from prometheus_client import CONTENT_TYPE_LATEST, generate_latest

from lora_service.gateway.api.access import GatewayOf, caller_of
from lora_service.gateway.problems import Problem

router = APIRouter(tags=["operations"])


@router.get("/healthz")
def get_health() -> dict[str, str]:
    """Answer if the process is alive."""
    return {"status": "ok"}


@router.get("/readyz")
def get_readiness(gateway: GatewayOf) -> dict[str, str]:
    """Answer if jobs are taken: database and files can be reached, and the gateway does not end."""
    if gateway.draining or not gateway.ready:
        raise Problem(503, "The gateway starts, or ends.", {"Retry-After": "5"})
    try:
        gateway.database.ping()
        gateway.blobs.check()
    except Exception as error:
        raise Problem(503, "The database or the files cannot be reached.", {"Retry-After": "5"}) from error
    return {"status": "ok"}


@router.get("/metrics")
def get_metrics(request: Request, gateway: GatewayOf) -> Response:
    """Return numbers for Prometheus; where tokens are needed, to admins."""
    if gateway.needs_tokens and not caller_of(request).may("admin"):
        raise Problem(403, "This needs a token of the scope admin.")
    return Response(generate_latest(request.app.state.metrics.registry), media_type=CONTENT_TYPE_LATEST)
