"""Ends jobs before their time: in the database at once, then on their server."""

from __future__ import annotations

import asyncio

from lora_service.gateway.database import jobs
from lora_service.gateway.database.jobs import Result
from lora_service.gateway.engine.jobs import CANCEL
from lora_service.gateway.gateway import Gateway


async def cancel(gateway: Gateway, identifier: str) -> None:
    """Give an open job the state ``canceled``, and have its server end it; one that has ended stays as it is."""
    await asyncio.to_thread(_store, gateway, identifier)
    gateway.tell(identifier, CANCEL)


def _store(gateway: Gateway, identifier: str) -> None:
    with gateway.database.write() as session:
        row = jobs.find(session, identifier)
        if row is None or not jobs.finish(session, row, Result("canceled")):
            return
        session.refresh(row)
        gateway.add_webhook(session, row, "completed")
    gateway.hub.notify(identifier)
