"""A training on its way: what it has reported, its samples, and wishes for it."""

from __future__ import annotations

from typing import Any, Literal

from fastapi import APIRouter

from lora_service.gateway import views
from lora_service.gateway.api.access import Caller, GatewayOf, LinksOf, Reader, Runner
from lora_service.gateway.database import jobs, measurements, stored_files
from lora_service.gateway.database.tables import FINAL, Job
from lora_service.gateway.gateway import Gateway
from lora_service.gateway.problems import Problem
from lora_service.gateway.queue.run_files import ask, run_folder

router = APIRouter(prefix="/v1/trainings", tags=["trainings"])


@router.get("/{job}/progress")
def get_progress(job: str, gateway: GatewayOf, caller: Reader, links: LinksOf) -> dict[str, Any]:
    """Return what a training has reported, its samples, and the files that were saved on the way."""
    return _progress(gateway, _training(gateway, caller, job), links)


@router.post("/{job}/save", status_code=202)
def save_training(job: str, gateway: GatewayOf, caller: Runner, links: LinksOf) -> dict[str, Any]:
    """Have a running training write a LoRA file of what it has learned so far, and go on."""
    return _ask(gateway, _training(gateway, caller, job), links, "save")


@router.post("/{job}/stop", status_code=202)
def stop_training(job: str, gateway: GatewayOf, caller: Runner, links: LinksOf) -> dict[str, Any]:
    """End a running training after its step, and keep what it has learned as its result."""
    return _ask(gateway, _training(gateway, caller, job), links, "stop")


def _training(gateway: Gateway, caller: Caller, job: str) -> Job:
    with gateway.database.read() as session:
        return caller.check_job(jobs.find(session, job), "training")


def _ask(gateway: Gateway, row: Job, links: views.Links, wish: Literal["save", "stop"]) -> dict[str, Any]:
    if row.status in FINAL:
        raise Problem(409, f"The training has ended already: it {row.status}.")
    if row.status != "processing" or not ask(gateway, row.id, wish):
        raise Problem(
            409,
            "Nothing is learned yet that could be kept; ask again once the steps have begun, or cancel the training. "
            "A server elsewhere cannot be asked unless its RUN_FOLDERS is the gateway's folder of runs.",
        )
    return _progress(gateway, row, links)


def _progress(gateway: Gateway, row: Job, links: views.Links) -> dict[str, Any]:
    with gateway.database.read() as session:
        points = measurements.of_job(session, row.id)
        files = stored_files.of_job(session, row.id, ("sample", "saved"))
    run = run_folder(gateway, row.id)
    metrics = row.metrics or {}
    is_learning = metrics.get("seconds_left") != 0  # after the last step nobody follows a wish any more
    is_on = row.status == "processing" and run.holds_a_run and is_learning
    is_stopping = is_on and run.stop_request.exists()
    return {
        "id": row.id,
        "status": row.status,
        **{name: metrics.get(name) for name in ("stage", "step", "of", "seconds_left")},
        "points": [
            {"at": views.time_text(each.at), "stage": each.stage, "step": each.step, **each.metrics} for each in points
        ],
        "samples": [views.training_file(each, links) for each in files if each.purpose == "sample"],
        "saved": [views.training_file(each, links) for each in files if each.purpose == "saved"],
        "can_save": is_on and not is_stopping,
        "can_stop": is_on and not is_stopping,
        "is_stopping": is_stopping,
    }
