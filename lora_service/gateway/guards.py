"""Limits around the whole app: sizes of bodies, slow senders, and web pages that ask a gateway without tokens."""

from __future__ import annotations

import asyncio
import time
from urllib.parse import urlsplit

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from lora_service.gateway.api.access import known_hosts
from lora_service.gateway.gateway import Gateway
from lora_service.gateway.problems import Problem, not_found

_PIECE_SECONDS = 20.0
_SLOWEST = 4096  # bytes of a body in a second, on average after its first 30 seconds
_FORM_BYTES = 64 * 1024  # what a form has beside its file


class Guards:
    """A middleware.

    Args:
        app: what it is around.
        gateway: whose settings count.
    """

    def __init__(self, app: ASGIApp, gateway: Gateway) -> None:
        self._app, self._gateway = app, gateway

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        problem = self._refusal(scope)
        if problem is not None:
            await problem.response()(scope, receive, send)
            return
        body = _Body(receive, self._limit(scope))
        answer = _Answer(send, body)
        try:
            await self._app(scope, body, answer)
        except Problem:
            if body.problem is None or answer.is_begun:
                raise
        if body.problem is not None and not answer.is_begun:
            await body.problem.response()(scope, receive, send)

    def _limit(self, scope: Scope) -> int | None:
        settings = self._gateway.settings
        if scope["path"].startswith("/internal/"):
            return None  # each has a key, and a limit of its own
        return settings.max_upload_bytes + _FORM_BYTES if scope["path"] == "/v1/files" else settings.max_body_bytes

    def _refusal(self, scope: Scope) -> Problem | None:
        if "\0" in scope["path"]:  # nothing is called so, and PostgreSQL does not even look
            return not_found("address")
        headers = Headers(scope=scope)
        limit = self._limit(scope)
        length = headers.get("content-length", "0")
        if limit is not None and (not length.isdecimal() or int(length) > limit):
            return _too_large(limit)
        if self._gateway.needs_tokens:
            return None
        # Anybody's page can have the browser ask a server on this machine; only its address gives it away.
        hosts = known_hosts(self._gateway)
        host = urlsplit(f"//{headers.get('host', '')}").hostname
        if host not in hosts:
            return Problem(403, "Without tokens only requests to this machine's own names are answered.")
        origin = headers.get("origin")
        if origin and urlsplit(origin).hostname not in hosts:
            return Problem(403, "Without tokens only this machine's own pages may ask.")
        return None


def _too_large(limit: int) -> Problem:
    return Problem(413, f"The body of this request may have {limit} bytes at most.", {"Connection": "close"})


def _too_slow() -> Problem:
    return Problem(408, "The body comes too slowly.", {"Connection": "close"})


class _Answer:
    """Sends an answer, unless the body was refused: of that, FastAPI would say only that it cannot be parsed."""

    def __init__(self, send: Send, body: _Body) -> None:
        self._send, self._body, self.is_begun = send, body, False

    async def __call__(self, message: Message) -> None:
        if self._body.problem is None or self.is_begun:
            self.is_begun = True
            await self._send(message)


class _Body:
    """Receives a body within limits of size and time; ``problem`` is why it was refused."""

    problem: Problem | None = None

    def __init__(self, receive: Receive, limit: int | None) -> None:
        self._receive, self._limit = receive, limit
        self._size, self._more, self._begun = 0, True, time.monotonic()

    async def __call__(self) -> Message:
        if not self._more:  # the end of the connection may be waited for as long as it takes
            return await self._receive()
        try:
            return await self._next()
        except Problem as problem:
            self.problem = problem
            raise

    async def _next(self) -> Message:
        try:
            message = await asyncio.wait_for(self._receive(), _PIECE_SECONDS)
        except TimeoutError as error:
            raise _too_slow() from error
        if message["type"] == "http.request":
            self._more = message.get("more_body", False)
            if self._more and time.monotonic() - self._begun > 30 + self._size / _SLOWEST:
                raise _too_slow()
            self._size += len(message.get("body", b""))
            if self._limit is not None and self._size > self._limit:
                raise _too_large(self._limit)
        return message
