"""A worker's own port: Cog's server behind it listens on the loopback alone, and only who knows the key may pass."""

from __future__ import annotations

import hmac
from collections.abc import Awaitable, Callable
from pathlib import Path

import httpx
from starlette.applications import Starlette
from starlette.concurrency import run_in_threadpool
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from lora_service.gateway.engine.ray.run_mirror import RunMirror

_TIMEOUT = httpx.Timeout(60.0)


class Front:
    """The app behind the port.

    Args:
        cog: the address of Cog's server.
        key: the first part of every path.
        runs: the server's ``RUN_FOLDERS``.
    """

    def __init__(self, cog: str, key: str, runs: Path) -> None:
        self._cog, self._key, self._runs = cog, key, runs
        self._client = httpx.AsyncClient(trust_env=False, timeout=_TIMEOUT)
        self._mirror: RunMirror | None = None
        self.app = Starlette(
            routes=[
                Route("/{key}/health-check", self._guarded(self._pass_on)),
                Route("/{key}/predictions/{job}", self._guarded(self._pass_on), methods=["PUT"]),
                Route("/{key}/predictions/{job}/cancel", self._guarded(self._pass_on), methods=["POST"]),
                Route("/{key}/runs/{job}", self._guarded(self._open_run), methods=["PUT"]),
                Route("/{key}/runs/{job}", self._guarded(self._close_run), methods=["DELETE"]),
            ]
        )

    def _guarded(self, answer: Callable[[Request], Awaitable[Response]]) -> Callable[[Request], Awaitable[Response]]:
        async def guarded(request: Request) -> Response:
            if not hmac.compare_digest(request.path_params["key"].encode(), self._key.encode()):
                return PlainTextResponse("this port is the gateway's", 403)
            return await answer(request)

        return guarded

    async def _pass_on(self, request: Request) -> Response:
        path = request.url.path.removeprefix(f"/{self._key}")
        kept = {name: value for name, value in request.headers.items() if name in ("content-type", "prefer")}
        try:
            answer = await self._client.request(
                request.method, f"{self._cog}{path}", content=await request.body(), headers=kept
            )
        except httpx.HTTPError as error:
            return PlainTextResponse(f"Cog's server does not answer ({type(error).__name__})", 502)
        return Response(answer.content, answer.status_code, media_type=answer.headers.get("content-type"))

    async def _open_run(self, request: Request) -> Response:
        """Bring the run folder of a training here, and keep it with the gateway from now on."""
        link = (await request.body()).decode()
        await run_in_threadpool(self._close)
        mirror = RunMirror(self._runs / request.path_params["job"], link)
        try:
            await run_in_threadpool(mirror.restore)
        except (httpx.HTTPError, OSError, ValueError) as error:
            return PlainTextResponse(f"the run folder cannot be brought here: {error}", 502)
        self._mirror = mirror
        mirror.start()
        return Response(status_code=204)

    async def _close_run(self, request: Request) -> Response:
        """Have the gateway keep what is new in the folder, and remove it here."""
        await run_in_threadpool(self._close)
        return Response(status_code=204)

    def _close(self) -> None:
        mirror, self._mirror = self._mirror, None
        if mirror is not None:
            mirror.close()
