"""What an engine is handed and what it gives back."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

EngineKind = Literal["predict", "train"]
CANCEL = "cancel"
"""The event in a job's inbox that asks for its end."""


class EngineLostError(Exception):
    """The server of a job was lost under it; the job may be begun again."""


class ServerAwayError(EngineLostError):
    """The server cannot be reached or is busy with others' jobs; this one was not begun, and waits until it can be."""


class RefusedError(Exception):
    """The server does not take the job; the message says why."""


@dataclass(frozen=True)
class EngineJob:
    """A job for a server.

    Attributes:
        id: the job's identifier, which is also its name in the run folders of trainings.
        input: as Cog takes it: links that the server can open in place of files, no nulls.
        webhook: where the server reports progress and end.
        events: its reports, and ``CANCEL``.
    """

    id: str
    input: Mapping[str, Any]
    webhook: str
    events: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)


class OnProgress(Protocol):
    """Called with each state of a running job, in the form of Cog's responses."""

    async def __call__(self, response: Mapping[str, Any], /) -> None: ...


class JobEngine(Protocol):
    """A server that runs one job at a time."""

    kind: EngineKind

    async def document(self) -> dict[str, Any]:
        """Return the OpenAPI document of its inputs and output."""
        ...

    async def run(self, job: EngineJob, on_progress: OnProgress) -> Mapping[str, Any]:
        """Run a job and return Cog's document of its end.

        Raises:
            EngineLostError: the server was lost.
            ServerAwayError: it was not there, or not free, from the beginning.
            RefusedError: it does not take the job.
        """
        ...

    async def close(self) -> None:
        """End it."""
        ...
