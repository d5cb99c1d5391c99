"""The library: what was taught, and LoRA files that were uploaded."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from lora_service.gateway.database.stored_files import mark
from lora_service.gateway.database.tables import Job, StoredFile
from lora_service.lora.files import read_lora
from lora_service.lora.header_facts import REPORT_KEY, THUMBNAIL_KEY, TOKENS_KEY, TRIGGER_KEY
from tests.gateway.in_process import PICTURE, Running
from tests.gateway.scripted_training import ANN, EVE, ROOT, TrainingEngine, begin, lora_file, run_trainings

READER = "read" * 5
REPORT = {
    "prompt": "a photo of <1>",
    "losses": {"stage 2": [0.5, 0.25]},
    "held_out_losses": {"stage 2": [[1, 0.5], [3, 0.4]]},
}
LORA = lora_file(
    **{
        TRIGGER_KEY: "zwx dog",
        THUMBNAIL_KEY: PICTURE,
        REPORT_KEY: json.dumps(REPORT),
        TOKENS_KEY: json.dumps({"<s1>": {"text_encoder": {"data": "AAA8AAA8", "shape": [3]}}}),
        "ss_sd_model_name": "Stable Diffusion 1.5",
        "ss_network_dim": "2",
    }
)


@pytest.fixture(scope="module")
def trainings(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Running, TrainingEngine]]:
    with run_trainings(tmp_path_factory.mktemp("gateway"), LORA) as (running, engine):
        engine.may_end = True
        yield running, engine


@pytest.fixture(scope="module")
def running(trainings: tuple[Running, TrainingEngine]) -> Running:
    return trainings[0]


def taught(running: Running) -> dict[str, Any]:
    """A LoRA that ann has taught, as her library has it."""
    job = running.finished(begin(running), ANN)
    (lora,) = (each for each in library(running) if each["training"] == job["id"])
    return lora


def library(running: Running, token: str = ANN) -> list[dict[str, Any]]:
    return list(running.call("GET", "/v1/loras", token).json()["results"])


def upload(running: Running, content: bytes, name: str = "a.safetensors", token: str = ANN) -> dict[str, Any]:
    return dict(running.call("POST", "/v1/files", token, files={"content": (name, content)}).json())


def content(running: Running, link: str) -> bytes:
    answer = running.call("GET", link.removeprefix(running.url))
    assert answer.status_code == 200
    return answer.content


def test_the_library_tells_of_what_was_taught(running: Running) -> None:
    lora = taught(running)
    assert {name: lora[name] for name in ("trigger", "tokens", "base", "rank", "prompt", "size", "name", "model")} == {
        "trigger": "zwx dog",
        "tokens": ["<s1>"],
        "base": "Stable Diffusion 1.5",
        "rank": 2,
        "prompt": "a photo of <1>",
        "size": len(LORA),
        "name": "lora.bin",
        "model": "ann/dog",
    }
    assert content(running, lora["thumbnail"]).startswith(b"\x89PNG")
    assert [sample["step"] for sample in lora["samples"]] == [1, 3]
    assert content(running, lora["url"]) == LORA
    points = running.call("GET", lora["progress"].removeprefix(running.url), ANN).json()["points"]
    assert len(points) == 5
    newer = taught(running)
    assert [each["id"] for each in library(running)][:2] == [newer["id"], lora["id"]]


def test_a_file_is_inspected(running: Running) -> None:
    lora = taught(running)
    shown = running.call("GET", f"/v1/loras/{lora['id']}", ANN).json()
    assert shown["inspect"]["layout"] == "kohya"
    assert shown["inspect"]["rank"] == 2
    assert shown["inspect"]["tokens"] == shown["tokens"] == ["<s1>"]
    assert shown["formats"] == ["kohya", "comfyui", "diffusers", "cloneofsimo", "embedding"]
    assert shown["losses"] == REPORT["losses"]
    assert shown["held_out_losses"] == REPORT["held_out_losses"]
    assert shown["version"] == lora["version"]


def test_a_file_is_converted(running: Running, tmp_path: Path) -> None:
    file = upload(running, LORA, "ann's.safetensors")
    answer = running.call("POST", f"/v1/loras/{file['id']}/convert", ANN, json={"format": "diffusers"})
    assert answer.status_code == 201
    converted = answer.json()
    assert converted["name"] == "ann_s-diffusers.safetensors"
    assert converted["expires_at"]
    paths = tmp_path / "before.safetensors", tmp_path / converted["name"]
    for path, data in zip(paths, (LORA, content(running, converted["urls"]["download"])), strict=True):
        path.write_bytes(data)
    before, after = map(read_lora, paths)
    assert (before.format, after.format) == ("kohya", "diffusers")
    assert after.trigger == "zwx dog"
    assert list(map(str, before.layers["unet"])) == list(map(str, after.layers["unet"]))
    file = upload(running, lora_file(), "plain.safetensors")
    refused = running.call("POST", f"/v1/loras/{file['id']}/convert", ANN, json={"format": "embedding"})
    assert refused.status_code == 422
    assert running.call("POST", f"/v1/loras/{file['id']}/convert", ANN, json={"format": "zip"}).status_code == 422


def test_an_uploaded_file_draws_and_is_known(running: Running) -> None:
    file = upload(running, LORA, "dog.safetensors")
    drawn = running.draw(ANN, wait=20, input={"lora_urls": file["urls"]["get"]})
    assert drawn["status"] == "succeeded"
    link = running.engine.inputs[-1]["lora_urls"]
    assert link.endswith("/dog.safetensors")
    assert content(running, link) == LORA
    shown = running.call("GET", f"/v1/loras/{file['id']}", ANN).json()
    assert (shown["trigger"], shown["version"], shown["training"]) == ("zwx dog", None, None)
    assert file["id"] not in [each["id"] for each in library(running)]


@pytest.mark.attack("file")
@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"lora",
        b"\x00" * 100,
        b"\xff" * 8 + b"{",
        b"PK\x03\x04" + b"a" * 100,
        LORA[:-1],
        lora_file(**{REPORT_KEY: "[" * 100_000, TOKENS_KEY: '{"a": 1}', THUMBNAIL_KEY: "data:text/html;base64,PGI+"}),
    ],
)
def test_a_file_that_is_no_lora_is_refused_by_name(running: Running, content: bytes) -> None:
    file = upload(running, content, "strange.safetensors")
    for method, path, body in (("GET", "", None), ("POST", "/convert", {"format": "diffusers"})):
        answer = running.call(method, f"/v1/loras/{file['id']}{path}", ANN, json=body)
        assert answer.status_code == 422
        assert answer.json()["detail"].startswith("strange.safetensors")


@pytest.mark.attack("link")
def test_a_shared_link_opens_its_file_until_it_expires(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    lora = taught(running)
    other = upload(running, b"secret")
    shared = running.call("POST", f"/v1/loras/{lora['id']}/share", ANN, json={"seconds": 7200}).json()
    link = shared["url"].removeprefix(running.url)
    assert content(running, link) == LORA
    drawn = running.draw(EVE, wait=20, input={"lora_urls": shared["url"]})
    assert drawn["status"] == "succeeded"
    later = re.sub(r"expires=\d", "expires=9", link)
    for changed in (later, link.replace(lora["id"], other["id"]), link[:-1] + ("1" if link[-1] != "1" else "2")):
        assert running.call("GET", changed).status_code == 403
        refused = running.call(
            "POST", "/v1/models/local/lora/predictions", EVE, json={"input": {"lora_urls": running.url + changed}}
        )
        assert refused.status_code == 422
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 7100)
    assert running.call("GET", link).status_code == 200
    monkeypatch.setattr(time, "time", lambda: now + 7300)
    assert running.call("GET", link).status_code == 403
    monkeypatch.undo()
    for seconds in (0, 59, 31 * 24 * 3600, "x"):
        answer = running.call("POST", f"/v1/loras/{lora['id']}/share", ANN, json={"seconds": seconds})
        assert answer.status_code == 422
    assert running.call("DELETE", f"/v1/loras/{lora['id']}", ANN).status_code == 204
    assert running.call("GET", link).status_code == 404


def test_what_is_shared_tells_when_an_upload_ends_before(running: Running) -> None:
    file = upload(running, LORA)
    shared = running.call("POST", f"/v1/loras/{file['id']}/share", ANN, json={"seconds": 30 * 24 * 3600}).json()
    assert shared["expires_at"] == file["expires_at"]


def test_one_that_is_removed_goes_with_all_that_its_training_left(running: Running) -> None:
    for lora in library(running):
        running.call("DELETE", f"/v1/loras/{lora['id']}", ANN)
    lora = taught(running)
    busy = running.call(
        "POST", "/v1/predictions", ANN, json={"version": lora["version"], "input": {"seconds": 30}}
    ).json()
    assert running.call("DELETE", f"/v1/loras/{lora['id']}", ANN).status_code == 409
    running.call("POST", f"/v1/predictions/{busy['id']}/cancel", ANN)
    assert running.call("DELETE", f"/v1/loras/{lora['id']}", ANN).status_code == 204
    assert library(running) == []
    for link in (lora["url"], lora["thumbnail"], lora["samples"][0]["url"]):
        assert running.call("GET", link.removeprefix(running.url)).status_code == 404
    model, _, version = lora["version"].partition(":")
    assert running.call("GET", f"/v1/models/{model}/versions/{version}", ANN).status_code == 404


@pytest.mark.attack("users")
def test_others_neither_see_nor_change_it(running: Running) -> None:
    lora, file = taught(running), upload(running, LORA)
    picture = running.draw(ANN, wait=20)["output"][0].split("/files/")[1][:26]
    assert library(running, EVE) == []
    for each in (lora["id"], file["id"], picture, "a" * 26, "../key"):
        for method, path, body in (
            ("GET", "", None),
            ("POST", "/convert", {"format": "kohya"}),
            ("POST", "/share", {}),
            ("DELETE", "", None),
        ):
            assert running.call(method, f"/v1/loras/{each}{path}", EVE, json=body).status_code == 404
            assert running.call(method, f"/v1/loras/{each}{path}", json=body).status_code in (401, 404)
    for method, path, body in (("POST", "/convert", {"format": "kohya"}), ("POST", "/share", {}), ("DELETE", "", None)):
        assert running.call(method, f"/v1/loras/{lora['id']}{path}", READER, json=body).status_code == 403
    assert running.call("GET", f"/v1/loras/{picture}", ANN).status_code == 404  # of one's own, but no LoRA
    assert running.call("GET", f"/v1/loras/{lora['id']}", ROOT).status_code == 200
    assert lora["id"] in [each["id"] for each in library(running)]


@pytest.mark.attack("others' things by id")
def test_a_record_cannot_name_a_file_of_somebody_else(running: Running) -> None:
    evil = upload(running, LORA, "evil.safetensors", EVE)
    others = upload(running, b"private", "private.txt")
    with running.gateway.database.write() as session:  # as an upload's metadata could before the key was refused
        session.get_one(StoredFile, evil["id"]).details = {"lora": {"thumbnail": others["id"], "trigger": "x"}}
    assert running.call("GET", f"/v1/loras/{evil['id']}", EVE).json()["thumbnail"] is None
    answer = running.call(
        "POST", "/v1/files", EVE, files={"content": ("a", b"x")}, data={"metadata": json.dumps({"lora": {}})}
    )
    assert answer.status_code == 422


def test_a_file_that_was_lost_does_not_hide_the_others(running: Running) -> None:
    lora = taught(running)
    running.gateway.blobs.remove(lora["id"])
    with running.gateway.database.write() as session:
        session.get_one(StoredFile, lora["id"]).details = {}
    assert lora["id"] in [each["id"] for each in library(running)]
    assert running.call("GET", f"/v1/loras/{lora['id']}", ANN).status_code == 404


def test_a_file_that_a_job_waits_for_stays(running: Running) -> None:
    lora, file = taught(running), upload(running, LORA)
    busy = running.call("POST", "/v1/models/local/lora/predictions", ANN, json={"input": {"seconds": 30}}).json()
    for path, needed in ((f"/v1/files/{file['id']}", file["id"]), (f"/v1/loras/{lora['id']}", lora["id"])):
        with running.gateway.database.write() as session:
            row = session.scalars(select(Job).where(Job.id == busy["id"])).one()
            row.input = {"seconds": 30, "lora_urls": mark(needed)}
        answer = running.call("DELETE", path, ANN)
        assert (answer.status_code, "cancel the job" in answer.text) == (409, True)
        assert running.call("GET", path, ANN).status_code == 200
    running.call("POST", f"/v1/predictions/{busy['id']}/cancel", ANN)
    assert running.call("DELETE", f"/v1/files/{file['id']}", ANN).status_code == 204
    assert running.call("DELETE", f"/v1/loras/{lora['id']}", ANN).status_code == 204
