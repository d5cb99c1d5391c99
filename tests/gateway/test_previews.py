"""The contact sheet before a training: the crops, masks and captions that the training itself would use."""

from __future__ import annotations

import io
import json
import time
import zipfile
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
from PIL import Image

from lora_service.dataset.load import load_dataset
from lora_service.dataset.options import DatasetOptions
from lora_service.gateway import file_work
from tests.dataset.picture_makers import encoded, half_mask, png, zipped
from tests.gateway.in_process import Running
from tests.gateway.scripted_training import ANN, EVE, run_trainings

MEMBERS = {
    "10_dog/a.png": png(1), "10_dog/a.txt": b"TOK at sea", "10_dog/a_mask.png": encoded(half_mask()),
    "10_dog/b.png": png(2), "10_dog/copy.png": png(1), "10_dog/broken.jpg": b"\xff\xd8\xff broken",
}  # fmt: skip
BOMB = zipped({"a.png": bytes(64 * 1024**2)}, zipfile.ZIP_DEFLATED)
INPUTS = {"task": "object", "resolution": 64, "trigger": "zwx"}


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    with run_trainings(tmp_path_factory.mktemp("gateway")) as (running, _):
        yield running


def upload(running: Running, content: bytes, name: str = "dog.zip", token: str = ANN) -> str:
    answer = running.call("POST", "/v1/files", token, files={"content": (name, content)})
    return str(answer.json()["urls"]["get"])


def ask(running: Running, token: str = ANN, **inputs: Any) -> httpx.Response:
    return running.call("POST", "/v1/previews", token, json={"input": INPUTS | inputs})


def opened(running: Running, link: str) -> Image.Image:
    answer = running.call("GET", link.removeprefix(running.url))
    assert answer.headers["content-type"] == "image/png"
    return Image.open(io.BytesIO(answer.content))


def test_it_shows_what_the_training_would_use(running: Running, tmp_path: Path) -> None:
    answer = ask(running, instance_data=upload(running, zipped(MEMBERS)))
    assert answer.status_code == 201, answer.text
    shown = answer.json()
    path = tmp_path / "dog.zip"
    path.write_bytes(zipped(MEMBERS))
    dataset = load_dataset(path, DatasetOptions(resolution=64, task="object"), tmp_path / "job")
    assert [each["name"] for each in shown["pictures"]] == [image.name for image in dataset.images]
    for each, image in zip(shown["pictures"], dataset.images, strict=True):
        assert np.array_equal(opened(running, each["image"]), image.image)
        assert (each["mask"] is None) == (image.mask is None)
        if image.mask is not None:
            assert np.array_equal(opened(running, each["mask"]), image.mask)
    first, second = shown["pictures"]
    assert (first["caption"], first["caption_source"], first["mask_source"]) == ("{} at sea", "file", "file")
    assert (second["caption_source"], second["mask"], second["repeats"]) == ("template", None, 10)
    assert [each["name"] for each in shown["left_out"]] == ["10_dog/broken.jpg"]
    assert shown["duplicates"] == [{"name": "10_dog/copy.png", "same_as": "10_dog/a.png", "exact": True}]
    assert any(line.startswith("left out: 10_dog/broken.jpg") for line in shown["lines"])


def test_single_pictures_and_edited_captions_are_taken(running: Running) -> None:
    links = [upload(running, png(number), f"{number}.png") for number in (1, 2)]
    captions = json.dumps({"2.png": "zwx on a sofa"})
    shown = ask(running, instance_data_urls="\n".join(links), captions=captions).json()
    assert [(each["name"], each["caption_source"]) for each in shown["pictures"]] == [
        ("1.png", "template"),
        ("2.png", "input"),
    ]
    assert shown["pictures"][1]["caption"] == "{} on a sofa"
    refused = ask(running, instance_data_urls=links[0], captions=captions)
    assert refused.status_code == 422
    assert refused.json()["invalid_fields"][0]["field"] == "input.captions"


@pytest.mark.parametrize(
    ("inputs", "field"),
    [
        ({}, "input.instance_data"),
        ({"task": "dog", "instance_data": "data:application/zip;base64,UEs="}, "input.task"),
        ({"nonsense": 1}, "input.nonsense"),
        ({"resolution": 65, "instance_data": "data:application/zip;base64,UEs="}, "input.resolution"),
        ({"instance_data_urls": "http://127.0.0.1:1/a.zip"}, "input.instance_data_urls"),
    ],
)
def test_a_mistake_names_its_input(running: Running, inputs: dict[str, Any], field: str) -> None:
    answer = ask(running, **inputs)
    assert answer.status_code == 422
    assert field in [each["field"] for each in answer.json()["invalid_fields"]], answer.text


@pytest.mark.attack("archive")
@pytest.mark.parametrize("content", [BOMB, b"PK\x03\x04" + b"\xff" * 1000, zipped({"../../a.png": png(1)}) + b"x"])
def test_a_hostile_zip_is_refused_and_the_next_one_shown(running: Running, content: bytes) -> None:
    answer = ask(running, instance_data=upload(running, content))
    assert answer.status_code in (201, 422)
    if answer.status_code == 201:
        assert [each["name"] for each in answer.json()["pictures"]] == ["a.png"]
    assert ask(running, instance_data=upload(running, zipped(MEMBERS))).status_code == 201


@pytest.mark.attack("flood")
def test_a_user_has_one_made_at_a_time_and_two_waiting(running: Running) -> None:
    link = upload(running, zipped({f"{n}.png": png(n, (600, 400)) for n in range(30)}))
    with ThreadPoolExecutor(4) as workers:
        answers = list(workers.map(lambda _: ask(running, instance_data=link), range(4)))
        assert running.call("GET", "/readyz").status_code == 200
    assert sorted(answer.status_code for answer in answers) == [201, 201, 201, 429]
    refused = next(answer for answer in answers if answer.status_code == 429)
    assert refused.headers["retry-after"]


@pytest.mark.attack("flood")
def test_one_that_takes_too_long_is_ended(running: Running, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(file_work, "SECONDS", 0.05)
    link = upload(running, zipped(MEMBERS))
    begun = time.monotonic()
    assert ask(running, instance_data=link).status_code == 408
    assert time.monotonic() - begun < 10
    monkeypatch.undo()
    assert ask(running, instance_data=link).status_code == 201


@pytest.mark.attack("users")
def test_others_uploads_are_not_shown(running: Running) -> None:
    link = upload(running, zipped(MEMBERS))
    assert ask(running, EVE, instance_data=link).status_code == 422
    assert ask(running, EVE, instance_data_urls=link).status_code == 422
    assert ask(running, "", instance_data=link).status_code == 401
    assert ask(running, "read" * 5, instance_data=link).status_code == 403
    shown = ask(running, instance_data=link).json()["pictures"][0]["image"].removeprefix(running.url)
    assert running.call("GET", shown.partition("?")[0], EVE).status_code == 403
