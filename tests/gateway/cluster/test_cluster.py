"""Jobs on a cluster of nodes that are processes of this machine: they end right, and once, whatever is killed."""

from __future__ import annotations

import base64
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from lora_service.demo.show import SUBJECT
from lora_service.serving.entries import HOME
from tests.gateway.cluster.nodes import Nodes, worker_processes
from tests.gateway.running import RunningGateway
from tests.gateway.test_recovery import draw, state, train, wait_for
from tests.training_processes import training_processes

SETTINGS = {
    "RAY_PREDICT_WORKERS": "2", "RAY_WAITING_PER_WORKER": "1", "RAY_PREDICT_GPUS": "0", "RAY_TRAIN_GPUS": "0",
    "RAY_IDLE_SECONDS": "600", "MAX_JOB_ATTEMPTS": "10",
}  # fmt: skip


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with Nodes(2, cpus=4, durable=True) as nodes:
        yield nodes


@pytest.fixture(scope="module")
def gateway(tmp_path_factory: pytest.TempPathFactory, nodes: Nodes) -> Iterator[RunningGateway]:
    environment = SETTINGS | {"RAY_ADDRESS": nodes.address}
    with RunningGateway(tmp_path_factory.mktemp("gateway"), environment=environment, engine="ray") as running:
        yield running


def test_jobs_are_done_by_several_workers(gateway: RunningGateway, nodes: Nodes) -> None:
    jobs = [draw(gateway, input={"prompt": f"picture {number}", "seconds": 0.5}) for number in range(4)]
    ended = [wait_for(gateway, job, "succeeded") for job in jobs]
    assert [job["logs"] for job in ended] == [f"drawing picture {number}\n" for number in range(4)]
    assert httpx.get(ended[0]["output"][0]).content.startswith(b"\x89PNG")
    assert len(worker_processes(nodes)) == 2
    failed = wait_for(gateway, draw(gateway, input={"behaviour": "fail"}), "failed")
    assert "asked to fail" in failed["error"]


def test_a_running_job_is_cancelled(gateway: RunningGateway) -> None:
    job = draw(gateway, input={"seconds": 600})
    wait_for(gateway, job, "processing")
    assert gateway.call("POST", f"/v1/predictions/{job['id']}/cancel").json()["status"] == "canceled"
    assert wait_for(gateway, draw(gateway), "succeeded")["output"]


def test_a_worker_that_runs_out_of_memory_loses_no_job(gateway: RunningGateway, nodes: Nodes) -> None:
    job = draw(gateway, input={"seconds": 2})
    wait_for(gateway, job, "processing")
    for pid in worker_processes(nodes):  # as the kernel does
        os.kill(pid, signal.SIGKILL)
    assert wait_for(gateway, job, "succeeded")["output"]


@pytest.mark.slow
def test_a_training_in_two_processes_is_begun_anew_when_its_worker_is_lost(tmp_path: Path, nodes: Nodes) -> None:
    environment = SETTINGS | {"RAY_ADDRESS": nodes.address, "TRAIN_PROCESSES": "2"}
    inputs = {"task": "object", "max_train_steps_ti": 0, "max_train_steps_tuning": 60, "samples": 0}
    with RunningGateway(tmp_path / "gateway", home=HOME, environment=environment, engine="ray") as gateway:
        data = base64.b64encode(SUBJECT.read_bytes()).decode()
        training = train(gateway, instance_data=f"data:application/zip;base64,{data}", **inputs)
        while "stage 2" not in (state(gateway, training)["logs"] or ""):
            time.sleep(0.2)
        (worker,) = {parent.pid for each in together(nodes) for parent in each.parents()[1:2]}
        found = together(nodes)
        assert len(found) == 2
        os.kill(worker, signal.SIGKILL)
        ended = wait_for(gateway, training, "succeeded")
        assert not any(each.is_running() for each in found)
    assert "the training is begun anew" in ended["logs"]
    assert "stage 2 (LoRA): step 60 of 60" in ended["logs"]


def together(nodes: Nodes) -> list[psutil.Process]:
    raylets = [node.all_processes["raylet"][0].process.pid for node in nodes.nodes]
    return [each for raylet in raylets for each in training_processes(raylet)]


@pytest.mark.slow
def test_a_training_goes_on_on_another_node(gateway: RunningGateway, nodes: Nodes) -> None:
    training = train(gateway, steps=150, seconds=0.03)
    wait_for(gateway, training, "processing")
    time.sleep(2.5)
    (node,) = [node for node in nodes.nodes if trains_on(node)]
    nodes.kill(node)
    ended = wait_for(gateway, training, "succeeded")
    assert int(ended["logs"].split("begins at step ")[1].split()[0]) > 0
    assert httpx.get(ended["output"]["weights"]).content == b"3 bytes, 150 steps"
    assert state(gateway, training)["completed_at"] == ended["completed_at"]


@pytest.mark.campaign
def test_jobs_outlive_the_head(gateway: RunningGateway, nodes: Nodes) -> None:
    running, waiting = draw(gateway, input={"seconds": 5}), draw(gateway, input={"seconds": 1})
    wait_for(gateway, running, "processing")
    nodes.kill_head()
    time.sleep(1)
    nodes.start_head()
    nodes.replace_ended(5)
    for job in (running, waiting, draw(gateway)):
        assert wait_for(gateway, job, "succeeded")["output"]


def trains_on(node: Any) -> bool:
    raylet = node.all_processes["raylet"][0].process.pid
    lines = [" ".join(each.cmdline()) + str(each.environ()) for each in psutil.Process(raylet).children(recursive=True)]
    return any("coglet" in line and "train.py" in line for line in lines)
