"""The answers of a Cog server on a job, and their meaning."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Any

import httpx
import pytest

from lora_service.gateway.engine.cog_client import CogClient
from lora_service.gateway.engine.jobs import EngineJob, EngineLostError


async def _ignore(told: Mapping[str, Any]) -> None:
    """Nothing is done with progress."""


def run(*told: dict[str, Any]) -> Mapping[str, Any]:
    """Run a job whose server takes it and then tells this."""

    async def main() -> Mapping[str, Any]:
        transport = httpx.MockTransport(lambda request: httpx.Response(202, json={"status": "starting"}))
        async with httpx.AsyncClient(transport=transport) as client:
            job = EngineJob("a" * 26, {}, "http://127.0.0.1/told")
            for each in told:
                job.events.put_nowait(each)
            return await CogClient("http://127.0.0.1:5000", client).run(job, _ignore)

    return asyncio.run(main())


def test_the_end_that_is_told_is_the_end() -> None:
    error = {"status": "failed", "error": "it was asked to fail"}
    assert run({"status": "processing"}, error) == error


@pytest.mark.parametrize(
    "error",
    [
        "Worker crashed",
        "worker crashed",
        "Failed to send request: Failed to send on slot socket: Broken pipe (os error 32)",
    ],
)
def test_a_job_whose_worker_was_killed_has_not_failed_but_is_begun_again(error: str) -> None:
    with pytest.raises(EngineLostError):
        run({"status": "processing"}, {"status": "failed", "error": error})
