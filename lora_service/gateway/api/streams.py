"""Server-sent events of a job: ``output``, ``logs``, ``error`` and ``done``, as Replicate's clients know them."""

from __future__ import annotations

import asyncio
import json
import re
import time
from collections.abc import AsyncIterator
from dataclasses import InitVar, dataclass, field
from typing import Annotated, Any

from fastapi import APIRouter, Header, Response
from fastapi.responses import StreamingResponse

from lora_service.gateway import views
from lora_service.gateway.api.access import GatewayOf, LinksOf
from lora_service.gateway.database import jobs
from lora_service.gateway.database.tables import FINAL
from lora_service.gateway.events import wait
from lora_service.gateway.gateway import Gateway
from lora_service.gateway.problems import Problem, not_found

router = APIRouter(prefix="/v1/files/streams")
_COMMENT_SECONDS = 15.0  # proxies end connections on which nothing is sent


@dataclass
class EventText:
    """Turns states of a job into the text of the events that are new in them.

    The identifier of an event is the place that the stream has reached with it: characters of the logs and outputs.

    Args:
        progress: whether an event ``progress`` with the metrics is sent too; Replicate's Python client knows none.
        last_event: the identifier of the last event that the client has seen; what came before is not sent again.
    """

    progress: bool = False
    last_event: InitVar[str] = ""
    _logs: int = 0
    _outputs: int = 0
    _metrics: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self, last_event: str) -> None:
        if match := re.fullmatch(r"(\d{1,12}):(\d{1,6})", last_event):
            self._logs, self._outputs = int(match[1]), int(match[2])

    def events(self, shown: dict[str, Any]) -> str:
        """Return the events of a state of the job, those of its end included."""
        text = ""
        logs = shown["logs"] or ""
        if len(logs) < self._logs:  # the job was begun anew, after its server was lost
            self._logs = 0
        if len(logs) > self._logs:
            start, self._logs = self._logs, len(logs)
            text += self._event("logs", logs[start:])
        if self.progress and shown["metrics"] != self._metrics:
            self._metrics = shown["metrics"]
            text += self._event("progress", json.dumps({"status": shown["status"], "metrics": self._metrics}))
        output = shown["output"]
        items = output if isinstance(output, list) else [] if output is None else [output]
        for item in items[self._outputs :]:
            self._outputs += 1
            text += self._event("output", item if isinstance(item, str) else json.dumps(item))
        if shown["status"] in FINAL:
            if shown["status"] == "failed":
                text += self._event("error", str(shown["error"] or "failed"))
            reason = {"canceled": "canceled", "failed": "error"}.get(shown["status"])
            text += self._event("done", json.dumps({"reason": reason} if reason else {}))
        return text

    def _event(self, name: str, data: str) -> str:
        lines = "".join(f"data: {line}\n" for line in data.replace("\r", "\n").split("\n"))
        return f"event: {name}\nid: {self._logs}:{self._outputs}\n{lines}\n"


@router.get("/{job}", tags=["predictions"])
async def stream_job(
    job: str, gateway: GatewayOf, links: LinksOf, expires: str = "", signature: str = "", progress: bool = False,
    last_event_id: Annotated[str, Header(description="Go on after this event.")] = "",
) -> Response:  # fmt: skip
    """Stream a job's events, by the link in its ``urls``."""
    if not expires.isdecimal() or not gateway.signer.allows(views.STREAM, job, expires, signature):
        raise Problem(403, "This link is not valid, or has expired; get the job again for a new one.")
    if await asyncio.to_thread(_state, gateway, links, job) is None:
        raise not_found("job")
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    events = _events(gateway, links, job, EventText(progress, last_event_id))
    return StreamingResponse(events, headers=headers, media_type="text/event-stream")


async def _events(gateway: Gateway, links: views.Links, job: str, text: EventText) -> AsyncIterator[str]:
    last = time.monotonic()
    with gateway.hub.waiting(job) as changed:
        while True:
            shown = await asyncio.to_thread(_state, gateway, links, job)
            if shown is None:
                return
            if new := text.events(shown):
                last = time.monotonic()
                yield new
            if shown["status"] in FINAL:
                return
            await wait(changed, 5.0)
            if time.monotonic() - last > _COMMENT_SECONDS:
                last = time.monotonic()
                yield ": still there\n\n"


def _state(gateway: Gateway, links: views.Links, job: str) -> dict[str, Any] | None:
    with gateway.database.read() as session:
        row = jobs.find(session, job)
        return views.job(session, row, links) if row else None
