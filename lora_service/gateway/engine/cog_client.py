"""A job over Cog's HTTP API: sent without waiting, followed by its webhooks and by the server's health.

Cog has no GET of a job, so its end comes by webhook alone. A server that is idle although no end came has lost the job
or its webhook, and one that does not answer was lost itself: both mean that the job is begun again.
"""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

import httpx

from lora_service.gateway.engine.jobs import (
    CANCEL,
    EngineJob,
    EngineLostError,
    OnProgress,
    RefusedError,
    ServerAwayError,
)

_POLL_SECONDS = 1.0
_IDLE_SECONDS = 15.0  # an idle server without an end of its job; Cog repeats the last webhook for some seconds
_BUSY_SECONDS = 120.0  # a server that goes on saying 409
_SILENT_SECONDS = 60.0
_CANCEL_SECONDS = 30.0
_ENDED = ("succeeded", "failed", "canceled")
_LOST_WORKER = ("worker crashed", "worker fatal", "failed to send request", "slot socket error", "prediction task lost")
"""How the errors begin, in either case of letters, that Cog itself gives a job whose worker was killed."""


class CogClient:
    """Runs jobs on one server.

    Args:
        url: the server's address.
        client: sends the requests.
        is_lost: returns True if the server's process has ended or was restarted since the last call.
        look_seconds: between two health checks of a server that reports nothing.
    """

    def __init__(
        self,
        url: str,
        client: httpx.AsyncClient,
        is_lost: Callable[[], bool] = lambda: False,
        look_seconds: float = _POLL_SECONDS,
    ) -> None:
        self.url, self._client, self._is_lost = url.rstrip("/"), client, is_lost
        self._look_seconds, self._looked_at = look_seconds, 0.0

    async def document(self) -> dict[str, Any]:
        """Return the server's OpenAPI document.

        Raises:
            EngineLostError: it does not answer with one.
        """
        try:
            answer = await self._client.get(f"{self.url}/openapi.json", timeout=10)
            document = answer.json()
        except (httpx.HTTPError, ValueError) as error:
            raise EngineLostError(f"{self.url} does not answer as a Cog server does ({error})") from error
        if answer.status_code != 200 or not isinstance(document, dict):
            raise EngineLostError(f"{self.url}/openapi.json answers {answer.status_code}")
        return document

    async def status(self) -> str:
        """Return what the health check says; ``""`` when nothing answers."""
        try:
            answer = (await self._client.get(f"{self.url}/health-check", timeout=10)).json()
        except (httpx.HTTPError, ValueError):
            return ""
        return str(answer.get("status", "")) if isinstance(answer, dict) else ""

    async def run(self, job: EngineJob, on_progress: OnProgress) -> Mapping[str, Any]:
        """Send a job and follow it to its end, as :meth:`JobEngine.run` says."""
        await self._send(job)
        quiet_since = time.monotonic()
        cancelled_at: float | None = None
        while True:
            with contextlib.suppress(TimeoutError):
                event = await asyncio.wait_for(job.events.get(), _POLL_SECONDS)
                quiet_since = time.monotonic()
                if event == CANCEL:
                    cancelled_at = cancelled_at or time.monotonic()
                    await self._cancel(job.id)
                elif _has_lost_worker(event) and not cancelled_at:
                    raise EngineLostError("the server lost its worker")
                elif event.get("status") in _ENDED:
                    return dict(event)
                else:
                    await on_progress(event)
                continue
            if cancelled_at and time.monotonic() - cancelled_at > _CANCEL_SECONDS:
                raise EngineLostError("the server did not end a cancelled job")
            await self._check(quiet_since)

    async def _check(self, quiet_since: float) -> None:
        """Raise an error if the job will never be heard of again."""
        if self._is_lost():
            raise EngineLostError("the server ended")
        if time.monotonic() - self._looked_at < self._look_seconds:
            return
        self._looked_at = time.monotonic()
        status, seconds = await self.status(), time.monotonic() - quiet_since
        if status in ("READY", "IDLE") and seconds > _IDLE_SECONDS:
            raise EngineLostError("the server is idle, and no end of the job was heard of")
        if status in ("UNHEALTHY", "DEFUNCT", "SETUP_FAILED"):
            raise EngineLostError("the server lost its worker")
        if not status and seconds > _SILENT_SECONDS:
            raise EngineLostError("the server does not answer")

    async def _send(self, job: EngineJob) -> None:
        body = {"id": job.id, "input": dict(job.input), "context": {"run": job.id}, "webhook": job.webhook,
                "webhook_events_filter": ["start", "output", "logs", "completed"]}  # fmt: skip
        end = time.monotonic() + _BUSY_SECONDS
        while True:
            try:
                answer = await self._client.put(
                    f"{self.url}/predictions/{job.id}", json=body, headers={"Prefer": "respond-async"}, timeout=60
                )
            except (httpx.ConnectError, httpx.ConnectTimeout) as error:
                raise ServerAwayError("the server cannot be reached") from error
            except httpx.HTTPError as error:
                raise EngineLostError(f"the server does not answer ({type(error).__name__})") from error
            if answer.status_code not in (409, 503):
                break
            # The slot of the job before is freed a moment after its end.
            if self._is_lost() or time.monotonic() > end:
                raise ServerAwayError("the server stays busy with another job")
            await asyncio.sleep(0.1)
        if answer.status_code == 422 or answer.status_code == 413:
            raise RefusedError(_reason(answer))
        if answer.status_code >= 300:
            raise EngineLostError(f"the server answers {answer.status_code}")

    async def _cancel(self, identifier: str) -> None:
        with contextlib.suppress(httpx.HTTPError):  # what it means is seen at the next health check
            await self._client.post(f"{self.url}/predictions/{identifier}/cancel", timeout=10)


def _has_lost_worker(event: Mapping[str, Any]) -> bool:
    return event.get("status") == "failed" and str(event.get("error")).lower().startswith(_LOST_WORKER)


def _reason(answer: httpx.Response) -> str:
    """Return Cog's list of refused inputs as a sentence."""
    try:
        detail = answer.json()["detail"]
        return "; ".join(f"{error['loc'][-1]}: {error['msg']}" for error in detail)
    except (ValueError, KeyError, TypeError, IndexError):
        return f"the server answers {answer.status_code}: {answer.text[:200]}"
