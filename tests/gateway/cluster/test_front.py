"""A worker's own port: only who knows the key passes, and run folders come and go with their jobs."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse
from starlette.routing import Route

from lora_service.gateway.engine.ray.front import Front
from tests.gateway.cluster.held_training import HeldEngine, train
from tests.gateway.in_process import Running

KEY = "the-key"


async def echo(request: Request) -> JSONResponse:
    """Stand in for Cog's server."""
    content = (await request.body()).decode()
    return JSONResponse({"path": request.url.path, "prefer": request.headers.get("prefer"), "content": content}, 202)


class AskedFront:
    """A front, asked without a port."""

    def __init__(self, runs: Path) -> None:
        self.front = Front("http://cog", KEY, runs)
        cog = Starlette(routes=[Route("/{path:path}", echo, methods=["GET", "PUT", "POST"])])
        self.front._client = httpx.AsyncClient(transport=httpx.ASGITransport(cog))

    def ask(self, method: str, path: str, **options: Any) -> httpx.Response:
        async def ask() -> httpx.Response:
            transport = httpx.ASGITransport(self.front.app)
            async with httpx.AsyncClient(transport=transport, base_url="http://worker", timeout=60) as client:
                return await client.request(method, path, **options)

        return asyncio.run(ask())


@pytest.fixture
def asked(tmp_path: Path) -> AskedFront:
    return AskedFront(tmp_path / "runs")


def test_the_gateway_is_passed_on(asked: AskedFront) -> None:
    answer = asked.ask("PUT", f"/{KEY}/predictions/abc", content="{}", headers={"Prefer": "respond-async"})
    assert answer.status_code == 202
    assert answer.json() == {"path": "/predictions/abc", "prefer": "respond-async", "content": "{}"}
    assert asked.ask("GET", f"/{KEY}/health-check").json()["path"] == "/health-check"
    assert asked.ask("POST", f"/{KEY}/predictions/abc/cancel").json()["path"] == "/predictions/abc/cancel"


@pytest.mark.attack("ports of workers", count=6)
@pytest.mark.parametrize(
    ("method", "path"),
    [("GET", "/x/health-check"), ("PUT", "/the-ke/predictions/a"), ("PUT", "/x/runs/a"), ("DELETE", "/x/runs/a"),
     ("GET", f"/{KEY}/openapi.json"), ("POST", f"/{KEY}/shutdown")],
)  # fmt: skip
def test_nobody_else_is(asked: AskedFront, method: str, path: str) -> None:
    assert asked.ask(method, path).status_code in (403, 404)


def test_a_server_that_does_not_answer_is_no_answer_of_its(tmp_path: Path) -> None:
    asked = AskedFront(tmp_path)
    asked.front._client = httpx.AsyncClient(transport=httpx.MockTransport(_refuse))
    assert asked.ask("GET", f"/{KEY}/health-check").status_code == 502


def _refuse(_: httpx.Request) -> httpx.Response:
    raise httpx.ConnectError("no")


def test_a_run_folder_comes_with_its_job_and_goes_with_it(
    asked: AskedFront,
    running: tuple[Running, HeldEngine],
    tmp_path: Path,
) -> None:
    gateway, engine = running
    job = train(gateway, engine)
    folder = tmp_path / "runs" / job["id"]
    place = f"/{KEY}/runs/{job['id']}"
    assert asked.ask("PUT", place, content=engine.links[0]).status_code == 204
    folder.mkdir(parents=True)
    (folder / "run.json").write_text('{"step": 7}')
    assert asked.ask("DELETE", place).status_code == 204
    assert not folder.exists()
    assert asked.ask("PUT", place, content=engine.links[0]).status_code == 204
    assert (folder / "run.json").read_text() == '{"step": 7}'
    gateway.call("POST", f"/v1/trainings/{job['id']}/cancel")
    assert asked.ask("PUT", place, content=engine.links[0]).status_code == 502  # the attempt is over
    assert asked.ask("DELETE", place).status_code == 204
