"""What an engine is handed and what it gives back."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
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
        files: where a training's run folder is kept, if its server is on another machine.
        events: its reports, and ``CANCEL``.
    """

    id: str
    input: Mapping[str, Any]
    webhook: str
    files: str = ""
    events: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)


@dataclass(frozen=True)
class WaitingJob:
    """A job that waits.

    Attributes:
        loras: the same text for jobs that draw with the same LoRAs; empty: with none.
        priority: those of a higher one come first.
    """

    id: str
    loras: str = ""
    priority: int = 0


class OnProgress(Protocol):
    """Called with each state of a running job, in the form of Cog's responses."""

    async def __call__(self, response: Mapping[str, Any], /) -> None: ...


class JobEngine(Protocol):
    """One server, or several of a kind.

    Attributes:
        slots: how many jobs it may run at once.
    """

    kind: EngineKind

    @property
    def slots(self) -> int: ...

    async def document(self) -> dict[str, Any]:
        """Return the OpenAPI document of its inputs and output."""
        ...

    def choose(self, waiting: Sequence[WaitingJob]) -> WaitingJob | None:
        """Return the job that suits it next and keep a place for it, until :meth:`release`.

        Args:
            waiting: at least one; the first are to come first.

        Returns:
            None while there is no place; the hub is told when there is one.
        """
        ...

    def release(self, job: str) -> None:
        """Give up the place of a job that has ended, or that somebody else took."""
        ...

    async def run(self, job: EngineJob, on_progress: OnProgress) -> Mapping[str, Any]:
        """Run a job that has a place, and return Cog's document of its end.

        Raises:
            EngineLostError: the server was lost.
            ServerAwayError: it was not there, or not free, from the beginning.
            RefusedError: it does not take the job.
        """
        ...

    async def close(self) -> None:
        """End it."""
        ...


class OneByOne:
    """The part of an engine that runs one job at a time, in their order."""

    slots = 1

    def choose(self, waiting: Sequence[WaitingJob]) -> WaitingJob | None:
        """Return the first."""
        return waiting[0]

    def release(self, job: str) -> None:
        """Do nothing: the next job is asked for when the one before has ended."""
