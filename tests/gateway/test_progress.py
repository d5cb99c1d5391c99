"""A training on its way, seen over HTTP: reports, samples, a file meanwhile, an early end."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_service.gateway.queue.janitor import Janitor
from tests.gateway.in_process import Running
from tests.gateway.scripted_training import ANN, EVE, ROOT, TrainingEngine, begin, progress, run_trainings, wait_for


@pytest.fixture
def trainings(tmp_path: Path) -> Iterator[tuple[Running, TrainingEngine]]:
    with run_trainings(tmp_path) as running:
        yield running


def steps(shown: dict[str, Any]) -> list[tuple[str, int]]:
    return [(point["stage"], point["step"]) for point in shown["points"]]


ALL = [("stage 1 (tokens)", 1), ("stage 1 (tokens)", 3), *(("stage 2 (LoRA)", step) for step in (1, 2, 3))]


def test_reports_and_samples_are_there_while_it_runs_and_afterwards(trainings: tuple[Running, TrainingEngine]) -> None:
    running, engine = trainings
    job = begin(running)
    shown = wait_for(running, job)
    assert steps(shown) == ALL[:-1]
    assert shown["points"][0] == {"at": shown["points"][0]["at"], "stage": "stage 1 (tokens)", "step": 1, "of": 3,
                                  "loss": 1.0, "seconds_left": 2.0}  # fmt: skip
    assert shown["points"][1]["held_out_loss"] == 0.5
    assert (shown["stage"], shown["step"], shown["can_stop"], shown["can_save"]) == ("stage 2 (LoRA)", 2, True, True)
    (sample,) = shown["samples"]
    assert (sample["stage"], sample["step"]) == ("stage 2", 1)
    assert running.call("GET", sample["url"].removeprefix(running.url)).content.startswith(b"\x89PNG")
    engine.may_end = True
    running.finished(job, ANN)
    shown = progress(running, job)
    assert steps(shown) == ALL
    assert [sample["step"] for sample in shown["samples"]] == [1, 3]
    assert (shown["status"], shown["can_stop"], shown["can_save"]) == ("succeeded", False, False)
    assert not (running.gateway.settings.runs / job["id"]).exists()


def test_a_file_is_saved_while_it_goes_on(trainings: tuple[Running, TrainingEngine]) -> None:
    running, _ = trainings
    job = begin(running)
    wait_for(running, job)
    asked = running.call("POST", f"/v1/trainings/{job['id']}/save", ANN)
    assert asked.status_code == 202
    (saved,) = wait_for(running, job, saved=1)["saved"]
    assert (saved["stage"], saved["step"], saved["name"]) == ("stage 2", 2, "x-stage-2-step-000002.safetensors")
    assert running.call("GET", saved["url"].removeprefix(running.url)).content == b"lora"
    assert progress(running, job)["status"] == "processing"
    drawn = running.draw(ANN, wait=20, input={"lora_urls": saved["url"]})
    assert drawn["status"] == "succeeded"


def test_one_that_is_stopped_succeeds_with_what_it_has(trainings: tuple[Running, TrainingEngine]) -> None:
    running, _ = trainings
    job = begin(running)
    wait_for(running, job)
    asked = running.call("POST", f"/v1/trainings/{job['id']}/stop", ANN)
    assert asked.status_code == 202
    assert asked.json()["is_stopping"] or asked.json()["status"] == "succeeded"
    job = running.finished(job, ANN)
    assert job["status"] == "succeeded"
    assert job["output"]["version"].startswith("ann/dog:")
    assert steps(progress(running, job)) == ALL[:-1]
    for wish in ("save", "stop"):
        assert running.call("POST", f"/v1/trainings/{job['id']}/{wish}", ANN).status_code == 409


def test_what_has_not_begun_can_only_be_cancelled(trainings: tuple[Running, TrainingEngine]) -> None:
    running, _ = trainings
    wait_for(running, begin(running))
    waiting = begin(running)
    for wish in ("save", "stop"):
        answer = running.call("POST", f"/v1/trainings/{waiting['id']}/{wish}", ANN)
        assert answer.status_code == 409
        assert "cancel" in answer.json()["detail"]
    assert progress(running, waiting)["points"] == []


def test_steps_that_are_taken_again_are_told_once(trainings: tuple[Running, TrainingEngine]) -> None:
    running, engine = trainings
    engine.may_end = True
    job = running.finished(begin(running, class_word="lost"), ANN)
    assert engine.begun.count(job["id"]) == 2
    assert steps(progress(running, job)) == ALL


def test_they_are_kept_as_long_as_the_version(trainings: tuple[Running, TrainingEngine]) -> None:
    running, engine = trainings
    engine.may_end = True
    job = running.finished(begin(running), ANN)
    late = time.time() + 31 * 24 * 3600
    Janitor(running.gateway).sweep(late)
    assert running.call("GET", f"/v1/trainings/{job['id']}", ANN).json()["data_removed"]
    shown = progress(running, job)
    assert steps(shown) == ALL
    assert len(shown["samples"]) == 2
    version = job["output"]["version"].partition(":")[2]
    assert running.call("DELETE", f"/v1/models/ann/dog/versions/{version}", ANN).status_code == 204
    assert progress(running, job)["points"] == progress(running, job)["samples"] == []
    assert list(Path(running.gateway.settings.blobs).iterdir()) == []


def test_those_of_a_training_without_a_version_are_not(trainings: tuple[Running, TrainingEngine]) -> None:
    running, _ = trainings
    job = begin(running)
    wait_for(running, job)
    running.call("POST", f"/v1/trainings/{job['id']}/cancel", ANN)
    end = time.monotonic() + 20
    while running.gateway.inboxes and time.monotonic() < end:
        time.sleep(0.02)
    assert len(progress(running, job)["samples"]) == 1
    Janitor(running.gateway).sweep(time.time() + 31 * 24 * 3600)
    assert progress(running, job)["points"] == progress(running, job)["samples"] == []


@pytest.mark.attack("users")
def test_others_are_not_told_of_it(trainings: tuple[Running, TrainingEngine]) -> None:
    running, _ = trainings
    job = begin(running)
    wait_for(running, job)
    for method, wish in (("GET", "progress"), ("POST", "save"), ("POST", "stop")):
        assert running.call(method, f"/v1/trainings/{job['id']}/{wish}", EVE).status_code == 404
        assert running.call(method, f"/v1/trainings/{job['id']}/{wish}").status_code == 401
    for wish in ("save", "stop"):
        assert running.call("POST", f"/v1/trainings/{job['id']}/{wish}", "read" * 5).status_code in (403, 404)
    assert running.call("GET", f"/v1/trainings/{job['id']}/progress", ROOT).status_code == 200
    assert progress(running, job)["can_stop"]
