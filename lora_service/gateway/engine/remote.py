"""A Cog server elsewhere: in a container, on another machine; somebody else starts and restarts it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import httpx

from lora_service.gateway.engine.cog_client import CogClient
from lora_service.gateway.engine.jobs import EngineJob, EngineKind, OneByOne, OnProgress


class RemoteEngine(OneByOne):
    """A server by its address."""

    def __init__(self, kind: EngineKind, client: httpx.AsyncClient, url: str) -> None:
        self.kind: EngineKind = kind
        self._cog = CogClient(url, client)

    async def document(self) -> dict[str, Any]:
        """Return the server's OpenAPI document."""
        return await self._cog.document()

    async def run(self, job: EngineJob, on_progress: OnProgress) -> Mapping[str, Any]:
        """Run a job."""
        return await self._cog.run(job, on_progress)

    async def close(self) -> None:
        """Leave the server as it is."""
