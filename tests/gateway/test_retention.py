"""The time for which links are valid, and files, inputs and outputs are kept."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Iterator
from typing import Any

import pytest

from lora_service.gateway import views
from lora_service.gateway.queue.janitor import Janitor
from tests.gateway.in_process import Running, run_gateway

DAY = 24 * 3600


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    folder = tmp_path_factory.mktemp("gateway")
    with run_gateway(folder, keep_uploads_seconds=DAY, keep_jobs_seconds=10 * DAY) as running:
        yield running


def sweep(running: Running, days: float) -> int:
    """Remove what is kept no longer in so many days."""
    return Janitor(running.gateway).sweep(time.time() + days * DAY)


def upload(running: Running) -> dict[str, Any]:
    return dict(running.call("POST", "/v1/files", files={"content": ("a.png", b"abc")}).json())


def content(running: Running, link: str) -> int:
    return running.call("GET", link.removeprefix(running.url)).status_code


@pytest.mark.attack("link")
def test_a_link_opens_its_own_file_until_it_expires(running: Running) -> None:
    file, other = upload(running), upload(running)
    link = file["urls"]["download"]
    assert content(running, link) == 200
    assert content(running, link.replace(file["id"], other["id"])) == 403
    assert content(running, link[:-1] + ("0" if link[-1] != "0" else "1")) == 403
    late = dataclasses.replace(running.gateway.signer, lifetime=-1)
    for purpose in (views.DOWNLOAD, views.STREAM):
        assert content(running, f"{running.url}/files/{file['id']}/a.png?{late.query(purpose, file['id'])}") == 403
    later = link.replace("expires=", "expires=9")
    assert content(running, later) == 403


def test_an_upload_is_removed_after_its_time(running: Running) -> None:
    file = upload(running)
    sweep(running, 0.5)
    assert content(running, file["urls"]["download"]) == 200
    sweep(running, 1.5)
    assert content(running, file["urls"]["download"]) == 404
    assert running.call("GET", f"/v1/files/{file['id']}").status_code == 404
    assert not running.gateway.blobs.exists(file["id"])


def test_an_upload_that_a_waiting_job_needs_is_kept(running: Running) -> None:
    first = running.draw(input={"seconds": 60})
    file = upload(running)
    job = running.draw(input={"image": file["urls"]["get"]})
    sweep(running, 1.5)
    assert running.gateway.blobs.exists(file["id"])
    running.call("POST", f"/v1/predictions/{first['id']}/cancel")
    assert running.finished(job)["status"] == "succeeded"
    assert file["id"] in running.engine.inputs[-1]["image"]
    sweep(running, 1.5)
    assert not running.gateway.blobs.exists(file["id"])


def test_an_old_job_loses_its_data_and_keeps_its_record(running: Running) -> None:
    job = running.draw(input={"prompt": "a secret"}, wait=20)
    sweep(running, 9)
    assert content(running, job["output"][0]) == 200
    sweep(running, 11)
    shown = running.call("GET", f"/v1/predictions/{job['id']}").json()
    assert (shown["status"], shown["data_removed"]) == ("succeeded", True)
    assert (shown["input"], shown["output"], shown["logs"]) == ({}, None, "")
    assert content(running, job["output"][0]) == 404


def test_trained_weights_outlive_their_training(running: Running) -> None:
    version = running.call("GET", "/v1/models/local/lora-training").json()["latest_version"]["id"]
    training = running.call(
        "POST",
        f"/v1/models/local/lora-training/versions/{version}/trainings",
        json={"input": {"instance_data": "data:application/zip;base64,YQ=="}, "destination": "me/dog"},
    ).json()
    training = running.finished(training)
    assert training["status"] == "succeeded"
    sweep(running, 11)
    assert running.call("GET", f"/v1/trainings/{training['id']}").json()["data_removed"] is True
    answer = running.call("POST", "/v1/models/me/dog/predictions", json={"input": {}}, headers={"Prefer": "wait"})
    assert answer.json()["status"] == "succeeded"
    weights = running.engine.inputs[-1]["replicate_weights"]
    assert running.call("GET", weights.removeprefix(running.url)).content == b"lora"
