"""The first job of a fresh server is cancelled at a random moment, and the next one succeeds.

The campaign of 40 moments for each kind of server takes a quarter of an hour and more:

    CANCEL_MOMENTS=40 python -m pytest tests/serving/test_cancel.py -s
"""

from __future__ import annotations

import base64
import os
import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor, wait
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import requests

from lora_service.serving.entries import Mode
from lora_service.serving.server import CogServer
from lora_service.serving.supervisor import RestartPolicy, supervise
from tests.service import Service
from tests.small_base import picture_zip
from tests.training_processes import training_processes

MOMENTS = int(os.environ.get("CANCEL_MOMENTS", "1"))
SEED = int(os.environ.get("CANCEL_SEED", random.SystemRandom().randrange(2**16)))
LONGEST = 4.0
"""Seconds after the start of a job within which it is cancelled: these jobs take a little longer on one core."""
LONGEST_END = 120.0
"""Seconds within which a job ends that Cog has cancelled: a second or two, but for a machine that is very busy."""
NEXT: dict[Mode, dict[str, Any]] = {"train": {}, "predict": {"num_inference_steps": 2, "num_outputs": 1}}
"""Inputs in which the next job differs from the cancelled one, to be done sooner."""


@pytest.fixture
def inputs(tmp_path: Path) -> dict[Mode, dict[str, Any]]:
    data = base64.b64encode(picture_zip(tmp_path / "pictures.zip").read_bytes()).decode()
    return {
        "train": {
            "instance_data": f"data:application/zip;base64,{data}",
            "task": "object",
            "max_train_steps_ti": 2,
            "max_train_steps_tuning": 2,
        },
        "predict": {"prompt": "a red star", "num_inference_steps": 50, "num_outputs": 4},
    }


@contextmanager
def supervised(mode: Mode, **settings: str) -> Iterator[Service]:
    """Serve the embedded base, supervised."""
    stop = threading.Event()
    with CogServer(mode, environment={"BASE_MODEL": "embedded", **settings}) as server, ThreadPoolExecutor(1) as pool:
        server.wait_ready(600)
        watch = pool.submit(supervise, server, stop=stop, policy=RestartPolicy(interval=0.2))
        try:
            yield Service(server)
        finally:
            stop.set()
        watch.result(120)


def cancel_after(service: Service, seconds: float, inputs: dict[str, Any]) -> str:
    """Start a job, cancel it after so many seconds, and return how it ended."""
    url = f"{service.server.url}/predictions/first"
    with ThreadPoolExecutor(1) as pool:
        job = pool.submit(requests.put, url, json={"input": inputs}, timeout=600)
        time.sleep(seconds)
        # Cog answers 404 as long as it has not registered the job, and forgets that cancellation.
        while requests.post(f"{url}/cancel", json={}, timeout=30).status_code == 404 and not job.done():
            time.sleep(0.01)
        started = time.monotonic()
        done, _ = wait([job], LONGEST_END)
        if not done:
            log = (service.server.folder / "server.log").read_text(encoding="utf-8", errors="replace")
            service.server.stop(0)  # or the thread that waits for the answer would hold this one up
            pytest.fail(f"a job that was cancelled after {seconds:.2f} s did not end within {LONGEST_END} s:\n{log}")
        print(f"ended {time.monotonic() - started:.2f} s after Cog took the cancellation")
        return job.result().json()["status"]


def next_job(service: Service, inputs: dict[str, Any]) -> dict[str, Any]:
    """Return the answer to the next job, once a worker takes it."""
    end = time.monotonic() + 600
    while True:
        try:
            return service.post(wait=600, **inputs).json()
        except requests.ConnectionError:  # the supervisor is starting another server
            assert time.monotonic() < end
            time.sleep(0.2)


@pytest.mark.slow
@pytest.mark.parametrize("moment", range(MOMENTS))
@pytest.mark.parametrize("mode", ["train", "predict"])
def test_the_job_after_a_cancelled_one_succeeds(mode: Mode, moment: int, inputs: dict[Mode, dict[str, Any]]) -> None:
    seconds = random.Random(SEED * 1000 + moment).uniform(0.0, LONGEST)
    with supervised(mode) as service:
        ended = cancel_after(service, seconds, inputs[mode])
        answer = next_job(service, inputs[mode] | NEXT[mode])
    print(f"{mode}: cancelled after {seconds:.2f} s (seed {SEED}): {ended}; the next: {answer['status']}")
    assert answer["status"] == "succeeded", answer


@pytest.mark.slow
def test_the_processes_of_a_cancelled_training_end(inputs: dict[Mode, dict[str, Any]]) -> None:
    endless = {**inputs["train"], "max_train_steps_tuning": 20000, "samples": 0}
    with supervised("train", TRAIN_PROCESSES="2") as service, ThreadPoolExecutor(1) as pool:
        job = pool.submit(requests.put, f"{service.server.url}/predictions/first", json={"input": endless}, timeout=600)
        end = time.monotonic() + 300
        while len(found := training_processes()) < 2:
            assert time.monotonic() < end
            assert not job.done(), job.result().text
            time.sleep(0.1)
        requests.post(f"{service.server.url}/predictions/first/cancel", json={}, timeout=30)
        assert job.result(LONGEST_END).json()["status"] == "canceled"
        assert not any(each.is_running() for each in found)
        answer = next_job(service, inputs["train"])
        assert answer["status"] == "succeeded", answer
        assert answer["metrics"]["stage"] == "stage 2 (LoRA)"
        assert "stage 2 (LoRA): step 2 of 2" in answer["logs"]
        assert not list((service.server.folder / "tmp").glob("lora-processes-*"))
