"""Has strangers' files worked on in processes of their own, few at a time and for a limited time."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import signal
import sys
from collections import Counter, defaultdict
from collections.abc import Mapping
from typing import Any

from lora_service.errors import shorten
from lora_service.gateway.gateway import Gateway
from lora_service.gateway.problems import Problem

SECONDS = 300.0
"""The time of one piece of work."""
_AT_ONCE, _WAITING, _OF_A_USER = 2, 16, 3


class FileWork:
    """The processes of a gateway.

    Args:
        gateway: whose settings they have.
    """

    def __init__(self, gateway: Gateway) -> None:
        self._gateway = gateway
        self._free = asyncio.Semaphore(_AT_ONCE)
        self._users: Counter[str] = Counter()
        self._turns: defaultdict[str, asyncio.Lock] = defaultdict(asyncio.Lock)

    async def run(self, user: str, work: str, request: Mapping[str, Any]) -> dict[str, Any]:
        """Have a work of :mod:`lora_service.services.file_worker` done, one of a user's at a time; returns its answer.

        Raises:
            Problem: the user's mistake (422), too many wait (429), or it takes too long (408).
        """
        if self._users[user] >= _OF_A_USER or self._users.total() >= _WAITING:
            raise Problem(
                429, "Other previews or conversions are being made; try again in a moment.", {"Retry-After": "2"}
            )
        self._users[user] += 1
        try:
            async with asyncio.timeout(SECONDS), self._turns[user], self._free:
                return await self._run(json.dumps({"work": work, **request}).encode())
        except TimeoutError as error:
            raise Problem(408, f"This took more than {SECONDS:.0f} s; give fewer or smaller files.") from error
        finally:
            self._users[user] -= 1
            if not self._users[user]:
                del self._users[user], self._turns[user]

    async def _run(self, request: bytes) -> dict[str, Any]:
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "lora_service.services.file_worker", env=self._environment(), start_new_session=True,
            stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=asyncio.subprocess.PIPE,
        )  # fmt: skip
        try:
            output, errors = await process.communicate(request)
        finally:
            with contextlib.suppress(ProcessLookupError):  # with the processes that decode pictures
                os.killpg(process.pid, signal.SIGKILL)
            await process.wait()
        if process.returncode:
            last = errors.decode("utf-8", "replace").strip().splitlines()[-1:]
            raise RuntimeError(f"the work on a file ended with {process.returncode}: {' '.join(last)}")
        answer: dict[str, Any] = json.loads(output)
        if mistake := answer.get("error"):
            name = f"input.{mistake['field']}" if mistake["field"] else ""
            raise Problem(422, mistake["message"], fields={name: shorten(mistake["message"], 500)} if name else {})
        return answer

    def _environment(self) -> dict[str, str]:
        return {**os.environ, **self._gateway.server_environment(), "OMP_NUM_THREADS": "1"}
