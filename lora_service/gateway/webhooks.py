"""Sends webhooks: signed, guarded as links are, and again with growing pauses until somebody took them."""

from __future__ import annotations

import asyncio
import http.client
import logging
import random
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from urllib3.exceptions import HTTPError

from lora_service import __version__
from lora_service.downloads.http.deadline import Deadline
from lora_service.downloads.http.network import Network
from lora_service.downloads.parsed_url import ParsedUrl
from lora_service.errors import ForbiddenAddressError, LinkError, UnreachableError
from lora_service.gateway.database import deliveries
from lora_service.gateway.database.tables import Delivery, User
from lora_service.gateway.events import wait
from lora_service.gateway.gateway import WEBHOOKS, Gateway
from lora_service.gateway.identifiers import webhook_signature

_log = logging.getLogger(__name__)
_TIMEOUT = 10.0
_AT_ONCE = 16
_AT_ONCE_OF_ONE = 4  # of one user, whose receiver may be slow
_LOOK_SECONDS = 30.0
_ATTEMPTS = {"completed": 14}
"""Attempts by event: those of the end go on for a day."""
_ATTEMPTS_OF_OTHERS = 4


def pause(attempts: int) -> float:
    """Return the seconds after so many failed attempts: 1, 2, 4 … up to four hours, a fifth of it by chance."""
    return float(min(4 * 3600, 2 ** (attempts - 1) * (4 if attempts > 6 else 1))) * random.uniform(0.9, 1.1)


class WebhookSender:
    """Sends what waits in the database.

    Args:
        gateway: whose webhooks.
        network: the guarded way to the receivers.
    """

    def __init__(self, gateway: Gateway, network: Network | None = None) -> None:
        self._gateway = gateway
        self._network = network or gateway.network()
        self._sending: dict[str, asyncio.Task[None]] = {}
        self._owners: Counter[str] = Counter()
        self._threads = ThreadPoolExecutor(_AT_ONCE, thread_name_prefix="webhook")

    async def serve(self) -> None:
        """Send until cancelled; what was not taken by then stays in the database."""
        with self._gateway.hub.waiting(WEBHOOKS) as added:
            try:
                while True:
                    seconds = _LOOK_SECONDS
                    try:
                        seconds = await self._send_due()
                    except Exception:  # a database that is away for a moment must not end the sending
                        _log.exception("the sending of webhooks goes on after an error")
                    await wait(added, seconds)
            finally:
                for task in self._sending.values():
                    task.cancel()
                self._threads.shutdown(wait=False, cancel_futures=True)

    async def _send_due(self) -> float:
        """Begin to send what is due; returns the seconds until there will be more."""
        for delivery in await asyncio.to_thread(self._due):
            if len(self._sending) < _AT_ONCE and self._owners[delivery.owner] < _AT_ONCE_OF_ONE:
                task = asyncio.create_task(self._send(delivery))
                self._sending[delivery.job] = task
                self._owners[delivery.owner] += 1
                task.add_done_callback(partial(self._sent, delivery))
        return await asyncio.to_thread(self._seconds_left)

    def _sent(self, delivery: Delivery, _task: asyncio.Task[None]) -> None:
        self._sending.pop(delivery.job, None)
        self._owners[delivery.owner] -= 1
        self._gateway.hub.notify(WEBHOOKS)

    def _due(self) -> list[Delivery]:
        busy = [owner for owner, count in self._owners.items() if count >= _AT_ONCE_OF_ONE]
        with self._gateway.database.read() as session:
            return list(deliveries.due(session, time.time(), _AT_ONCE, jobs=list(self._sending), owners=busy))

    def _seconds_left(self) -> float:
        with self._gateway.database.read() as session:
            at = deliveries.next_time(session)
        return _LOOK_SECONDS if at is None else min(_LOOK_SECONDS, max(0.5, at - time.time()))

    async def _send(self, delivery: Delivery) -> None:
        try:
            problem = await asyncio.get_running_loop().run_in_executor(self._threads, self._post, delivery)
            await asyncio.to_thread(self._note, delivery, problem)
        except Exception:
            _log.exception("webhook %s stays in the database", delivery.id, extra={"job": delivery.job})

    def _post(self, delivery: Delivery) -> str:
        """Send a webhook; returns why it was not taken, ``""`` if it was."""
        with self._gateway.database.read() as session:
            secret = session.get_one(User, delivery.owner).webhook_secret
        now = int(time.time())
        headers = {
            "Content-Type": "application/json",
            "User-Agent": f"lora-service/{__version__}",
            "webhook-id": delivery.id,
            "webhook-timestamp": str(now),
            "webhook-signature": webhook_signature(secret, delivery.id, now, delivery.body),
        }
        try:
            with Deadline(_TIMEOUT) as deadline:
                link = ParsedUrl.parse(delivery.url)
                connection = self._network.open(link, _TIMEOUT)
                try:
                    deadline.connect(connection, _TIMEOUT)
                    connection.request("POST", link.request_target, delivery.body.encode(), headers)
                    status = connection.getresponse().status
                finally:
                    connection.close()
        except ForbiddenAddressError as error:
            return f"gave up: {error}"
        except (LinkError, UnreachableError, HTTPError, OSError, http.client.HTTPException, ValueError) as error:
            return str(error) or type(error).__name__
        return "" if 200 <= status < 300 else f"the receiver answers {status}"

    def _note(self, delivery: Delivery, problem: str) -> None:
        attempts = delivery.attempts + 1
        most = _ATTEMPTS.get(delivery.event, _ATTEMPTS_OF_OTHERS)
        with self._gateway.database.write() as session:
            if not problem:
                deliveries.done(session, delivery.id)
            elif attempts >= most or problem.startswith("gave up"):
                deliveries.done(session, delivery.id)
                _log.warning("webhook %s is given up: %s", delivery.id, problem, extra={"job": delivery.job})
            else:
                deliveries.postpone(session, delivery.id, time.time() + pause(attempts))
