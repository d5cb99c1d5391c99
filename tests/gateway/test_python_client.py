"""Replicate's official Python client, unchanged, against a gateway and Cog's real servers."""

from __future__ import annotations

import io
import time
from pathlib import Path

import httpx
import pytest
import replicate
from replicate.exceptions import ModelError, ReplicateError

from tests.gateway.running import RunningGateway


@pytest.fixture(scope="module")
def client(gateway: RunningGateway) -> replicate.Client:
    return gateway.client()


def test_a_model_is_run_by_its_name(client: replicate.Client, gateway: RunningGateway) -> None:
    links = client.run("local/lora", input={"prompt": "a cat", "num_outputs": 2})
    assert len(links) == 2
    pictures = [httpx.get(link) for link in links]
    assert [picture.headers["content-type"] for picture in pictures] == ["image/png"] * 2
    assert pictures[0].content != pictures[1].content


def test_a_version_is_run_and_waited_for(client: replicate.Client) -> None:
    version = client.models.get("local/lora").latest_version
    assert version is not None
    assert "prompt" in version.openapi_schema["components"]["schemas"]["Input"]["properties"]
    prediction = client.predictions.create(version=version, input={"prompt": "a cat"})
    assert prediction.status == "starting"
    prediction.wait()
    assert prediction.status == "succeeded"
    assert prediction.logs == "drawing a cat\n"
    assert prediction.metrics is not None
    assert prediction.metrics["predict_time"] >= 0
    assert client.run(f"local/lora:{version.id}", input={"prompt": "a cat"})


def test_a_job_that_takes_longer_than_the_wait_is_starting(client: replicate.Client) -> None:
    model = client.models.get("local/lora")
    prediction = client.models.predictions.create(model, input={"seconds": 3}, wait=1)
    assert prediction.status == "starting"
    prediction.wait()
    assert prediction.status == "succeeded"


def test_a_failed_job_raises_its_error(client: replicate.Client) -> None:
    with pytest.raises(ModelError, match="asked to fail") as raised:
        client.run("local/lora", input={"behaviour": "fail"})
    assert raised.value.prediction.status == "failed"


def test_a_running_job_is_cancelled(client: replicate.Client, gateway: RunningGateway) -> None:
    prediction = client.models.predictions.create("local/lora", input={"seconds": 600})
    while prediction.status == "starting":
        time.sleep(0.1)
        prediction.reload()
    prediction.cancel()
    assert prediction.status == "canceled"
    assert client.run("local/lora", input={"prompt": "the next"})
    prediction.reload()
    assert prediction.status == "canceled"


def test_a_waiting_job_is_cancelled(client: replicate.Client) -> None:
    running = client.models.predictions.create("local/lora", input={"seconds": 2})
    waiting = client.models.predictions.create("local/lora", input={"seconds": 600})
    waiting.cancel()
    assert waiting.status == "canceled"
    running.wait()
    assert running.status == "succeeded"
    waiting.reload()
    assert waiting.started_at is None


def test_an_invalid_input_is_refused_at_once(client: replicate.Client) -> None:
    with pytest.raises(ReplicateError) as raised:
        client.run("local/lora", input={"num_outputs": 99, "colour": "red"})
    assert raised.value.status == 422
    assert "input.num_outputs" in str(raised.value.detail)
    assert "input.colour" in str(raised.value.detail)


def test_a_file_is_uploaded_given_and_removed(client: replicate.Client, tmp_path: Path) -> None:
    path = tmp_path / "cat.png"
    path.write_bytes(b"x" * 12345)
    file = client.files.create(path, metadata={"what": "cat"})
    assert (file.name, file.size, file.metadata) == ("cat.png", 12345, {"what": "cat"})
    assert client.files.get(file.id).checksums == file.checksums
    assert file.id in [each.id for each in client.files.list()]
    prediction = client.models.predictions.create("local/lora", input={"image": file.urls["get"]}, wait=60)
    assert prediction.metrics is not None
    assert prediction.metrics["bytes"] == 12345
    assert client.files.delete(file.id)
    with pytest.raises(ReplicateError) as raised:
        client.files.get(file.id)
    assert raised.value.status == 404


@pytest.mark.parametrize("strategy", ["base64", "url"])
def test_an_open_file_is_an_input(client: replicate.Client, strategy: str) -> None:
    picture = io.BytesIO(b"y" * 777)
    model = client.models.get("local/lora")
    prediction = client.models.predictions.create(
        model, input={"image": picture}, wait=60, file_encoding_strategy=strategy
    )
    assert prediction.metrics is not None
    assert prediction.metrics["bytes"] == 777
    assert prediction.input is not None
    assert httpx.get(prediction.input["image"]).content == b"y" * 777


def test_events_are_streamed(client: replicate.Client) -> None:
    events = list(client.stream("local/lora", input={"prompt": "a cat", "num_outputs": 2, "seconds": 0.5}))
    assert [event.event.value for event in events if event.event.value == "output"] == ["output"] * 2
    assert "".join(event.data for event in events if event.event.value == "logs") == "drawing a cat\n"
    assert events[-1].event.value == "done"


def test_what_was_taught_is_drawn_with(client: replicate.Client) -> None:
    version = client.models.get("local/lora-training").latest_version
    assert version is not None
    data = client.files.create(io.BytesIO(b"z" * 99))
    training = client.trainings.create(
        version=f"local/lora-training:{version.id}",
        input={"instance_data": data.urls["get"], "steps": 5},
        destination="me/dog",
    )
    while training.status not in ("succeeded", "failed", "canceled"):
        time.sleep(0.1)
        training.reload()
    assert training.status == "succeeded"
    assert training.destination == "me/dog"
    assert isinstance(training.output, dict)
    assert httpx.get(training.output["weights"]).content == b"99 bytes, 5 steps"
    assert client.trainings.get(training.id).status == "succeeded"
    assert training.id in [each.id for each in client.trainings.list()]
    assert client.run("me/dog", input={"prompt": "a photo of <1>"})
    drawn = client.predictions.create(version=training.output["version"], input={"prompt": "a photo of <1>"})
    drawn.wait()
    assert drawn.model == "me/dog"
    assert drawn.logs is not None
    assert "weights: http" in drawn.logs


def test_pages_are_listed_by_cursor(client: replicate.Client) -> None:
    ids = [client.models.predictions.create("local/lora", input={"seconds": 600}).id for _ in range(103)]
    for identifier in ids:
        client.predictions.cancel(identifier)
    first = client.predictions.list()
    assert [each.id for each in first] == ids[:2:-1]
    assert first.next is not None
    second = client.predictions.list(first.next)
    assert [each.id for each in second][:3] == ids[2::-1]
    assert second.previous is not None
    assert [each.id for each in client.predictions.list(second.previous)] == [each.id for each in first]


def test_a_deployment_is_made_run_changed_and_removed(client: replicate.Client) -> None:
    version = client.models.get("local/lora").latest_version
    assert version is not None
    made = client.deployments.create(
        name="drawing", model="local/lora", version=version.id, hardware="local", min_instances=0, max_instances=1
    )
    assert made.current_release is not None
    assert made.current_release.version == version.id
    prediction = client.deployments.predictions.create("local/drawing", input={"prompt": "a cat"}, wait=60)
    assert prediction.status == "succeeded"
    changed = client.deployments.update("local", "drawing", max_instances=2)
    assert changed.current_release is not None
    assert changed.current_release.number == 2
    assert [each.name for each in client.deployments.list()] == ["drawing"]
    assert client.deployments.delete("local", "drawing")


def test_account_hardware_models_and_search(client: replicate.Client) -> None:
    assert client.accounts.current().username == "local"
    assert [each.sku for each in client.hardware.list()] == ["local"]
    assert {"local/lora", "local/lora-training"} <= {each.id for each in client.models.list()}
    assert [each.id for each in client.models.search("lora-training")] == ["local/lora-training"]
    made = client.models.create("me", "cat", visibility="private", hardware="local", description="A cat.")
    assert (made.id, made.latest_version) == ("me/cat", None)
    assert client.models.delete("me/cat")
