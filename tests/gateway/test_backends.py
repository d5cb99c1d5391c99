"""The gateway on PostgreSQL and on an S3 store, both on the loopback."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import boto3
import httpx
import pytest
from moto.server import ThreadedMotoServer

from tests.gateway.in_process import DRAW, Running, run_gateway
from tests.gateway.postgres import Cluster, programs

needs_postgresql = pytest.mark.skipif(programs() is None, reason="Debian's package postgresql is not installed")


@pytest.fixture
def bucket(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A bucket of moto's server, by the settings that s3fs reads."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    for name, value in {
        "AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
        "AWS_DEFAULT_REGION": "us-east-1",
    }.items():  # fmt: skip
        monkeypatch.setenv(name, value)
    boto3.client("s3").create_bucket(Bucket="pictures")
    yield "pictures"
    server.stop()


def works(running: Running) -> None:
    """A file is uploaded, given and removed; a job is done, listed and told; a training makes a version."""
    file = running.call("POST", "/v1/files", files={"content": ("a.png", b"abc" * 100_000, "image/png")}).json()
    assert httpx.get(file["urls"]["download"]).content == b"abc" * 100_000
    part = httpx.get(file["urls"]["download"], headers={"Range": "bytes=3-5"})
    assert (part.status_code, part.content) == (206, b"abc")
    job = running.finished(running.draw(input={"prompt": "a\0b", "image": file["urls"]["get"]}))
    assert job["status"] == "succeeded", job["error"]
    assert httpx.get(job["output"][0]).content.startswith(b"\x89PNG")
    assert job["id"] in [each["id"] for each in running.call("GET", "/v1/predictions").json()["results"]]
    version = running.call("GET", "/v1/models/local/lora-training").json()["latest_version"]["id"]
    body = {"destination": "me/dog", "input": {"instance_data": file["urls"]["get"]}}
    path = f"/v1/models/local/lora-training/versions/{version}/trainings"
    training = running.finished(running.call("POST", path, json=body).json())
    assert training["output"]["version"].startswith("me/dog:")
    assert running.finished(running.call("POST", DRAW.replace("local/lora", "me/dog"), json={"input": {}}).json())
    assert running.call("DELETE", f"/v1/files/{file['id']}").status_code == 204
    assert httpx.get(file["urls"]["download"]).status_code == 404


def test_files_are_kept_in_an_s3_store(tmp_path: Path, bucket: str) -> None:
    with run_gateway(tmp_path, blob_store=f"s3://{bucket}/lora") as running:
        works(running)
    names = [each["Key"] for each in boto3.client("s3").list_objects_v2(Bucket=bucket)["Contents"]]
    assert names
    assert all(name.startswith("lora/") for name in names)
    assert not (tmp_path / "files").exists()


@needs_postgresql
def test_jobs_are_kept_in_postgresql(tmp_path: Path) -> None:
    with Cluster() as cluster:
        with run_gateway(tmp_path, database_url=cluster.url) as running:
            works(running)
            for path in ("/v1/predictions/a%00b", "/v1/files/a%00b", "/v1/models/a%00b/c", "/v1/deployments/a/%00"):
                assert running.call("GET", path).status_code == 404, path
            job = running.draw()
            running.finished(job)
        with run_gateway(tmp_path, database_url=cluster.url) as running:
            assert running.call("GET", f"/v1/predictions/{job['id']}").json()["status"] == "succeeded"
        assert not (tmp_path / "gateway.sqlite").exists()
