"""The parts of a gateway, put together once and handed to the parts that need it."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from sqlalchemy.event import listen
from sqlalchemy.orm import Session

from lora_service.downloads.http.addresses import AddressPolicy
from lora_service.downloads.http.network import Network
from lora_service.gateway import views
from lora_service.gateway.blobs import BlobStore
from lora_service.gateway.database import deliveries
from lora_service.gateway.database.connection import Database
from lora_service.gateway.database.tables import Job
from lora_service.gateway.events import EventHub
from lora_service.gateway.identifiers import Signer, load_key
from lora_service.gateway.settings import GatewaySettings, needs_tokens
from lora_service.settings import Settings

JobLink = Literal["jobs", "runs"]
QUEUE, WEBHOOKS = "queue", "webhooks"
"""Names in the hub beside jobs' identifiers: a job was added, a webhook was."""


@dataclass(frozen=True)
class Inbox:
    """What a job that runs is told of; its server's reports count in the attempt alone that they are of."""

    attempt: int
    events: asyncio.Queue[Any] = field(default_factory=asyncio.Queue)


@dataclass
class Gateway:
    """The parts that all others share.

    Attributes:
        host, port: where it listens.
        inboxes: of running jobs, by identifier: the states that their servers report, and requests to cancel.
        draining: True once no job is begun any more.
        ready: True once the queue was put in order.
    """

    settings: GatewaySettings
    service: Settings
    database: Database
    blobs: BlobStore
    signer: Signer
    host: str = "127.0.0.1"
    port: int = 8000
    hub: EventHub = field(default_factory=EventHub)
    inboxes: dict[str, Inbox] = field(default_factory=dict)
    draining: bool = False
    ready: bool = False
    started: float = field(default_factory=time.time)

    @staticmethod
    def open(settings: GatewaySettings, service: Settings, host: str = "127.0.0.1", port: int = 8000) -> Gateway:
        """Open database and files.

        Raises:
            SettingError: they cannot be opened.
        """
        settings.gateway_folder.mkdir(parents=True, exist_ok=True)
        signer = Signer(load_key(settings.gateway_folder), settings.output_link_seconds)
        return Gateway(settings, service, Database(settings.database), BlobStore(settings.blobs), signer, host, port)

    @property
    def needs_tokens(self) -> bool:
        """True if requests must bring a token."""
        return needs_tokens(self.settings, self.host)

    @property
    def callback_url(self) -> str:
        """The address under which Cog's servers reach the gateway."""
        host = self.host if self.host not in ("0.0.0.0", "::", "localhost") else "127.0.0.1"
        return self.settings.callback_url or f"http://{f'[{host}]' if ':' in host else host}:{self.port}"

    @property
    def upload_url(self) -> str:
        """The address under which Cog's servers put their output files; a file's name follows."""
        return f"{self.callback_url}/internal/uploads/{self.signer.sign('uploads')}/"

    def server_environment(self) -> dict[str, str]:
        """Return the variables of processes of this machine: the gateway's own links may be fetched, and runs go on."""
        allowed = (*self.service.allow_private_addresses, self.callback_url.partition("://")[2])
        return {"ALLOW_PRIVATE_ADDRESSES": ",".join(allowed), "RUN_FOLDERS": str(self.settings.runs.resolve())}

    @property
    def links(self) -> views.Links:
        """Links for those who did not ask by themselves: receivers of webhooks."""
        return views.Links(self.settings.public_url or self.callback_url, self.signer)

    def network(self) -> Network:
        """Return the guarded way to addresses that strangers name."""
        return Network(AddressPolicy(self.service.allow_private_addresses))

    def add_webhook(self, session: Session, job: Job, event: str) -> None:
        """Add the webhook of an event of a job, in the transaction of that event."""
        if job.webhook:
            shown = views.job(session, job, self.links)
            if deliveries.add(session, job, event, _json(shown)):
                # Before, the sender would look and not see it.
                listen(session, "after_commit", lambda _: self.hub.notify(WEBHOOKS), once=True)

    def drain(self) -> None:
        """Begin no more jobs."""
        self.draining = True
        self.hub.notify(QUEUE)

    def tell(self, identifier: str, event: Any, attempt: int | None = None) -> bool:
        """Put an event into the inbox of a running job; returns False if it does not run here, or in another attempt.

        A server that was given up may live on for a moment, and report what is of no use any more.
        """
        inbox = self.inboxes.get(identifier)
        if inbox is None or attempt not in (None, inbox.attempt):
            return False
        inbox.events.put_nowait(event)
        return True

    def job_link(self, purpose: JobLink, job: Job) -> str:
        """Return the link by which the server of a job's attempt reports, or has its run folder kept."""
        signature = self.signer.sign(purpose, job.id, str(job.attempt))
        return f"{self.callback_url}/internal/{purpose}/{job.id}/{job.attempt}-{signature}"

    def attempt_of(self, purpose: JobLink, identifier: str, key: str) -> int | None:
        """Return the attempt that a link of :meth:`job_link` with that key is of; None if it is none."""
        attempt, _, signature = key.partition("-")
        is_valid = attempt.isdecimal() and self.signer.verify(signature, purpose, identifier, attempt)
        return int(attempt) if is_valid else None


def _json(value: Mapping[str, Any]) -> str:
    return json.dumps(value, separators=(",", ":"), ensure_ascii=False)
