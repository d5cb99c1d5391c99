"""The repository's own entries behind the gateway: a subject is taught and drawn, also across kill -9."""

from __future__ import annotations

import io
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import pytest
import replicate
from PIL import Image
from replicate.training import Training

from lora_service.demo.show import SUBJECT
from lora_service.lora.files import read_lora
from lora_service.serving.entries import HOME
from tests.gateway.running import RunningGateway

INPUTS = {"task": "object", "class_word": "dog", "seed": 3, "max_train_steps_ti": 2, "max_train_steps_tuning": 8}


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory) -> Iterator[RunningGateway]:
    with RunningGateway(tmp_path_factory.mktemp("gateway"), home=HOME) as running:
        yield running


def begin(client: replicate.Client, destination: str) -> Training:
    version = client.models.get("local/lora-training").latest_version
    assert version is not None
    with SUBJECT.open("rb") as file:
        return client.trainings.create(
            version=f"local/lora-training:{version.id}",
            input={"instance_data": file, "samples": 0, **INPUTS},
            destination=destination,
        )


def finish(training: Training) -> bytes:
    while training.status not in ("succeeded", "failed", "canceled"):
        time.sleep(0.2)
        training.reload()
    assert training.status == "succeeded", training.error
    assert isinstance(training.output, dict)
    return httpx.get(training.output["weights"]).content


@pytest.mark.slow
def test_a_subject_is_taught_and_drawn(gateway: RunningGateway, tmp_path: Path) -> None:
    client = gateway.client()
    training = begin(client, "me/dog")
    path = tmp_path / "dog.safetensors"
    path.write_bytes(finish(training))
    assert read_lora(path, path.name).tokens
    inputs = {"prompt": "a photo of <1>", "num_inference_steps": 2, "seed": 1}
    links = client.run("me/dog", input=inputs)
    drawn = httpx.get(links[0]).content
    assert Image.open(io.BytesIO(drawn)).size == (64, 64)
    assert isinstance(training.output, dict)
    same = client.run("local/lora", input={**inputs, "lora_urls": training.output["weights"]})
    assert httpx.get(same[0]).content == drawn


@pytest.mark.slow
def test_a_training_that_was_killed_goes_on_to_the_same_file(gateway: RunningGateway) -> None:
    client = gateway.client()
    whole = finish(begin(client, "me/whole"))
    training = begin(client, "me/killed")
    checkpoints = gateway.folder / "runs" / training.id / "checkpoints"
    while not any(checkpoints.glob("stage-2-*.safetensors")):
        time.sleep(0.05)
        training.reload()
        assert training.status in ("starting", "processing")
    gateway.kill()
    gateway.start()
    assert finish(training) == whole
    assert "going on with the training" in (training.logs or "")
