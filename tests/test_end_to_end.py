"""The whole job through Cog's own servers, as a client does it: a zip in, a LoRA out, pictures from its link."""

from __future__ import annotations

import base64
import functools
import http.server
import io
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from lora_service.lora.files import read_lora
from tests.service import Service
from tests.small_base import picture_zip
from tools.synthetic.subjects import write_zip

DOG = Path(__file__).resolve().parents[1] / "../shared/data/pictures/dog6.zip"
STEPS = {"task": "object", "seed": 7, "max_train_steps_ti": 6, "max_train_steps_tuning": 6, "class_word": "cat"}
PICTURE = {"prompt": "a photo of <1> on the beach", "seed": 5, "num_inference_steps": 4}


@dataclass(frozen=True)
class FileServer:
    """A folder on loopback."""

    folder: Path
    url: str

    def link(self, content: bytes, name: str) -> str:
        (self.folder / name).write_bytes(content)
        return f"{self.url}/{name}"


class _Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, *arguments: Any) -> None:
        """Not into the tests' output."""


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Iterator[FileServer]:
    folder = tmp_path_factory.mktemp("served")
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(_Quiet, directory=str(folder)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    yield FileServer(folder, f"http://127.0.0.1:{server.server_port}")
    server.shutdown()


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """A real zip of photographs, or a drawn one where it is not at hand."""
    if DOG.exists():
        return DOG.read_bytes()
    path = tmp_path_factory.mktemp("drawn") / "subject.zip"
    write_zip(path, seed=2, count=5, size=96)
    return path.read_bytes()


@pytest.fixture(scope="module")
def environment(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    return {
        "BASE_MODEL": "embedded",
        "ALLOW_PRIVATE_ADDRESSES": "127.0.0.1:*",
        "LORA_CACHE": str(tmp_path_factory.mktemp("cache")),
        "TORCH_THREADS": "2",
    }


@pytest.fixture(scope="module")
def trainer(start_service: Any, environment: dict[str, str]) -> Service:
    return start_service("train", environment=environment)


@pytest.fixture(scope="module")
def drawer(start_service: Any, environment: dict[str, str]) -> Service:
    return start_service("predict", environment=environment)


@pytest.fixture(scope="module")
def lora(trainer: Service, archive: bytes) -> bytes:
    """The training server's LoRA of the zip, posted as a data URI."""
    return content(trainer.output(instance_data=data_uri(archive), **STEPS))


def data_uri(data: bytes, kind: str = "application/zip") -> str:
    return f"data:{kind};base64,{base64.b64encode(data).decode()}"


def content(uri: str) -> bytes:
    return base64.b64decode(uri.partition(",")[2])


def test_the_lora_is_whole_and_tells_its_story(lora: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.safetensors").write_bytes(lora)
    weights = read_lora(tmp_path / "a.safetensors")
    assert weights.tokens == ("<s1>", "<s2>")
    assert weights.rank == 8
    assert '"seed": 7' in weights.metadata["lora_service.report"]
    assert b"/tmp" not in lora


def test_the_same_seed_gives_the_same_bytes_over_http_by_link_too(
    trainer: Service, archive: bytes, files: FileServer, lora: bytes
) -> None:
    link = files.link(archive, "dog.zip")
    assert content(trainer.output(instance_data=link, **STEPS)) == lora
    assert content(trainer.output("trainings", instance_data_urls=link, **STEPS)) == lora


def test_metrics_and_logs_say_what_was_done(trainer: Service, archive: bytes) -> None:
    body = trainer.post(instance_data=data_uri(archive), **STEPS).json()
    assert body["metrics"]["pictures_used"] >= 4
    assert body["metrics"]["steps_stage_2"] == 6
    assert "trigger" in body["logs"]
    assert "stage 2 (LoRA): step 6 of 6" in body["logs"]


def test_the_link_draws_at_every_scale_and_scale_0_is_the_base(drawer: Service, files: FileServer, lora: bytes) -> None:
    link = files.link(lora, "dog.safetensors")
    base = drawer.output(**PICTURE)
    drawn = {s: drawer.output(lora_urls=link, lora_scales=s, **PICTURE) for s in ("0", "0.5", "1.0")}
    assert drawn["0"] == base
    assert len({drawn[s][0] for s in drawn}) == 3
    assert drawer.output(lora_urls=link, lora_scales="1.0", **PICTURE) == drawn["1.0"]
    assert drawer.output(**PICTURE) == base


def test_each_lora_of_a_request_has_pictures_of_the_same_seeds(drawer: Service, files: FileServer, lora: bytes) -> None:
    link, other = files.link(lora, "dog.safetensors"), files.link(lora, "same.safetensors")
    body = drawer.post(
        lora_urls=f"{link}|{other}|{link}", lora_scales="1|0.3|1", lora_mode="each", num_outputs=2, **PICTURE
    ).json()
    assert body["status"] == "succeeded", body
    pictures = [pixels(uri) for uri in body["output"]]
    assert body["metrics"]["lora_numbers"] == "1 1 2 2 3 3"
    assert body["metrics"]["seeds"] == "5 6 5 6 5 6"
    assert "LoRAs 1, 2, 3 are drawn side by side" in body["logs"]
    assert "image 3 of 6: LoRA 2, seed 5" in body["logs"]
    alone = [
        pixels(uri)
        for scale in ("1", "0.3")
        for uri in drawer.output(lora_urls=link, lora_scales=scale, num_outputs=2, **PICTURE)
    ]
    for drawn, expected in zip(pictures, [*alone, *alone[:2]], strict=True):
        assert np.abs(drawn - expected).max() <= 2
    assert np.abs(pictures[0] - pictures[2]).max() > 20
    assert drawer.post(lora_mode="each", **PICTURE).json()["metrics"]["error_field"] == "lora_mode"


def pixels(uri: str) -> Any:
    with Image.open(io.BytesIO(content(uri))) as image:
        return np.asarray(image, int)


def test_several_pictures_of_another_format_come_in_order(drawer: Service) -> None:
    three = drawer.output(**PICTURE, num_outputs=3, output_format="webp")
    assert len(three) == 3
    assert all(uri.startswith("data:image/webp") for uri in three)
    again = drawer.output(**{**PICTURE, "seed": 7}, output_format="webp")
    assert content(again[0])[-200:] == content(three[2])[-200:]


def error(service: Service, **inputs: Any) -> str:
    """The message of a job that must fail, or of the request that must be refused."""
    answer = service.post(**inputs)
    body = answer.json()
    if answer.status_code == 422:
        return " ".join(f"{'.'.join(d['loc'])}: {d['msg']}" for d in body["detail"])
    assert body["status"] == "failed", body
    assert "\n" not in body["error"]
    # Cog leaves the logs of a failed job empty, and puts its own words before the sentence.
    assert body["error"].endswith(body["metrics"]["error_message"])
    assert body["metrics"]["error_code"] not in ("", "internal_error")
    assert "log" in body["metrics"]
    return str(body["error"])


def zip_of_text(folder: Path) -> bytes:
    import zipfile

    with zipfile.ZipFile(folder / "text.zip", "w") as made:
        made.writestr("a.txt", "a photo of a dog")
    return (folder / "text.zip").read_bytes()


def empty_zip(folder: Path) -> bytes:
    return picture_zip(folder / "empty.zip", colors=()).read_bytes()


def test_bad_trainings_are_told_in_one_sentence_and_leave_the_server_ready(
    trainer: Service, files: FileServer, archive: bytes, tmp_path: Path, lora: bytes
) -> None:
    zipped = data_uri(archive)
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "instance_data is None, but it must be a zip of pictures"),
        ({"instance_data": zipped, "instance_data_urls": "https://example.com/a.zip"}, "one of the two"),
        ({"instance_data": data_uri(b"this is no zip")}, ""),
        ({"instance_data": data_uri(b"")}, "empty"),
        ({"instance_data": data_uri(empty_zip(tmp_path))}, ""),
        ({"instance_data": data_uri(zip_of_text(tmp_path))}, ""),
        ({"instance_data": "/etc/passwd"}, "instance_data is '/etc/passwd', but it must be an uploaded zip"),
        ({"instance_data": "file:///etc/passwd"}, "instance_data is 'file:///etc/passwd'"),
        ({"instance_data": zipped, "max_train_steps_ti": -1}, "max_train_steps_ti"),
        ({"instance_data": zipped, "lora_rank": 0}, "lora_rank"),
        (
            {"instance_data": zipped, "max_train_steps_ti": 0, "max_train_steps_tuning": 0},
            "max_train_steps_tuning is 0",
        ),
        ({"instance_data": zipped, "resolution": 65}, "resolution is 65"),
        ({"instance_data_urls": f"{files.url}/gone.zip"}, "404"),
        ({"instance_data_urls": "http://169.254.169.254/a.zip"}, "169.254.169.254"),
        ({"instance_data_urls": "/etc/passwd"}, "/etc/passwd"),
    ]
    for inputs, message in cases:
        said = error(trainer, **inputs)
        assert message in said, inputs
        assert "Traceback" not in said
        assert 10 < len(said) < 600, said
    assert content(trainer.output(instance_data=zipped, **STEPS)) == lora


def test_bad_requests_are_told_in_one_sentence_and_leave_the_base_as_it_was(
    drawer: Service, files: FileServer, lora: bytes, tmp_path: Path
) -> None:
    import torch

    from lora_service.lora.files import write_lora
    from lora_service.lora.weights import LoraLayer, LoraWeights

    base = drawer.output(**PICTURE)
    path = "down_blocks.0.attentions.0.transformer_blocks.0.attn1.to_q"
    wide = LoraWeights(layers={"unet": {path: LoraLayer(torch.zeros(4, 320), torch.ones(320, 4), 4.0)}})
    write_lora(tmp_path / "sd15.safetensors", wide)
    links = {
        "page": files.link(b"<!doctype html><title>Sign in</title>", "page.safetensors"),
        "other": files.link((tmp_path / "sd15.safetensors").read_bytes(), "sd15.safetensors"),
        "good": files.link(lora, "good.safetensors"),
    }
    cases: list[tuple[dict[str, Any], str]] = [
        ({"lora_urls": f"{files.url}/gone.safetensors"}, "404"),
        ({"lora_urls": links["page"]}, ""),
        ({"lora_urls": links["other"]}, "320"),
        ({"lora_urls": "/etc/passwd"}, "/etc/passwd"),
        ({"lora_urls": links["good"], "lora_scales": "5"}, "lora_scales is '5'"),
        ({"lora_urls": links["good"], "prompt": "<2>"}, "prompt is '<2>'"),
        ({"width": 65}, "width is 65"),
        ({"num_outputs": 0}, "num_outputs"),
        ({"image": "/etc/passwd"}, "image is '/etc/passwd'"),
        ({"image": data_uri(b"no picture", "image/png")}, "image"),
    ]
    for inputs, message in cases:
        said = error(drawer, **inputs)
        assert message in said, inputs
        assert 10 < len(said) < 600, said
    assert drawer.output(**PICTURE) == base
