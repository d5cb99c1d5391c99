"""The contact sheet of a training's pictures, before it."""

from __future__ import annotations

import tempfile
import time
from pathlib import Path
from typing import Any

from fastapi import APIRouter
from pydantic import BaseModel, Field
from starlette.concurrency import run_in_threadpool

from lora_service.gateway import views
from lora_service.gateway.api.access import Caller, GatewayOf, LinksOf, Runner
from lora_service.gateway.api.creation import checked_inputs
from lora_service.gateway.api.loras import WorkOf
from lora_service.gateway.database import catalog
from lora_service.gateway.gateway import Gateway
from lora_service.gateway.identifiers import new_id
from lora_service.gateway.problems import not_found
from lora_service.gateway.queue.inputs import with_links
from lora_service.gateway.uploads import chunks_of, store

router = APIRouter(prefix="/v1/previews", tags=["trainings"])
_KEPT_SECONDS = 3600.0


class PreviewBody(BaseModel):
    """The inputs of the training that is previewed."""

    input: dict[str, Any] = Field(default_factory=dict, description="The training's input.")


@router.post("", status_code=201)
async def create_preview(
    body: PreviewBody, gateway: GatewayOf, caller: Runner, links: LinksOf, work: WorkOf
) -> dict[str, Any]:
    """Return what a training with this input would use: the exact crops, masks and captions, and what is left out."""
    inputs = await run_in_threadpool(_inputs, gateway, caller, links, body.input)
    with tempfile.TemporaryDirectory(prefix="lora-gateway-", ignore_cleanup_errors=True) as folder:
        asked = {"inputs": inputs, "folder": folder, "base": gateway.service.base_model}
        answer = await work.run(caller.user, "preview", asked)
        return await run_in_threadpool(_stored, gateway, caller.user, links, answer, Path(folder))


def _inputs(gateway: Gateway, caller: Caller, links: views.Links, values: dict[str, Any]) -> dict[str, Any]:
    with gateway.database.read() as session:
        trainer = catalog.latest_version(session, *catalog.TRAINING_MODEL)
    if trainer is None:
        raise not_found("model")
    inputs = checked_inputs(gateway, caller, links, trainer.openapi_schema, values)
    return with_links(gateway, {name: value for name, value in inputs.items() if value is not None})


def _stored(gateway: Gateway, owner: str, links: views.Links, answer: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the answer with links to its pictures."""
    expires_at = time.time() + _KEPT_SECONDS

    def link(name: str | None) -> str | None:
        if name is None:
            return None
        row = store(
            gateway, chunks_of(folder / name), owner=owner, purpose="preview", name=name, expires_at=expires_at
        )  # fmt: skip
        return links.file(row)

    pictures = [each | {"image": link(each["image"]), "mask": link(each["mask"])} for each in answer["pictures"]]
    return {"id": new_id(), "expires_at": views.time_text(expires_at), **answer, "pictures": pictures}
