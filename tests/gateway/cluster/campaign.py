"""The campaign of a cluster: ``python -m tests.gateway.cluster.campaign [--predictions 200] [--trainings 6]``.

Jobs of the embedded base (``--quick``: of the quick entries) run on three nodes that are processes of this machine,
with PostgreSQL and an S3 server on the loopback. Meanwhile a worker's server is killed as the kernel kills one that has
taken too much memory, a node is killed and another comes, and the head is killed and started again. At the end every
job must have succeeded, once: with one webhook's id, and a training with one version.
"""

from __future__ import annotations

import argparse
import logging
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import boto3
import httpx
from moto.server import ThreadedMotoServer

from lora_service.serving import entries
from tests.gateway.cluster.nodes import Nodes, worker_processes
from tests.gateway.postgres import Cluster
from tests.gateway.receiver import Receiver, receiving
from tests.gateway.running import QUICK, RunningGateway

FINAL = ("succeeded", "failed", "canceled")
PICTURES = Path(__file__).parents[3] / "lora_service/demo/subject.zip"
DISTURBANCES = ("worker", "node", "head")


@dataclass
class Report:
    """What was done and seen."""

    states: Counter[str] = field(default_factory=Counter)
    done: list[str] = field(default_factory=list)
    attempts: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Return it as lines."""
        states = ", ".join(f"{count} {name}" for name, count in sorted(self.states.items()))
        lines = [f"ended: {states}; begun {self.attempts} times; killed: {', '.join(self.done)}",
                 f"{self.seconds:.0f} seconds, {len(self.problems)} problems"]  # fmt: skip
        return "\n".join([*lines, *self.problems])


class Campaign:
    """One campaign.

    Args:
        gateway, nodes, receiver: run already.
        inputs: of a prediction and of a training.
    """

    def __init__(
        self, gateway: RunningGateway, nodes: Nodes, receiver: Receiver, inputs: tuple[dict[str, Any], dict[str, Any]],
        say: Callable[[str], None],
    ) -> None:  # fmt: skip
        self._gateway, self._nodes, self._receiver, self._inputs, self._say = gateway, nodes, receiver, inputs, say
        self._jobs: dict[str, str] = {}
        self._ended: dict[str, dict[str, Any]] = {}
        self.report = Report()

    def run(self, predictions: int, trainings: int, seconds: float) -> Report:
        """Submit, disturb, wait, judge."""
        begun = time.monotonic()
        self._submit(predictions, trainings)
        left, total = list(DISTURBANCES), predictions + trainings
        while len(self._ended) < total and time.monotonic() - begun < seconds:
            self._look()
            done = len(self._ended) / total
            if left and done > 0.15 + 0.25 * len(self.report.done):
                self._disturb(left.pop(0))
            time.sleep(0.5)
        self.report.seconds = time.monotonic() - begun
        self._wait_for_webhooks(60)
        self._judge()
        self.report.attempts = self._gateway.log.read_text().count(" begins (attempt ")
        return self.report

    def _submit(self, predictions: int, trainings: int) -> None:
        hook = {"webhook": self._receiver.url, "webhook_events_filter": ["completed"]}
        version = self._gateway.call("GET", "/v1/models/local/lora-training").json()["latest_version"]["id"]
        upload = self._gateway.call("POST", "/v1/files", files={"content": ("p.zip", PICTURES.read_bytes())}).json()
        for number in range(trainings):
            inputs = self._inputs[1] | {"instance_data": upload["urls"]["get"]}
            body = {"input": inputs, "destination": f"me/dog-{number}", **hook}
            path = f"/v1/models/local/lora-training/versions/{version}/trainings"
            self._jobs[self._gateway.call("POST", path, json=body).json()["id"]] = f"me/dog-{number}"
        for number in range(predictions):
            body = {"input": self._inputs[0] | {"prompt": f"a red star {number}"}, **hook}
            answer = self._gateway.call("POST", "/v1/models/local/lora/predictions", json=body)
            self._jobs[answer.json()["id"]] = ""

    def _look(self) -> None:
        """Take note of jobs that have ended: some of them, so that there is time for disturbances."""
        before = len(self._ended)
        for identifier, destination in self._jobs.items():
            if identifier not in self._ended and len(self._ended) < before + 5:
                shown = self._shown(identifier, destination)
                if shown["status"] in FINAL:
                    self._ended[identifier] = shown
                elif not destination:
                    break  # those behind it wait

    def _shown(self, identifier: str, destination: str) -> dict[str, Any]:
        plural = "trainings" if destination else "predictions"
        return dict(self._gateway.call("GET", f"/v1/{plural}/{identifier}").json())

    def _disturb(self, what: str) -> None:
        self._say(f"{what} at {len(self._ended)} of {len(self._jobs)}")
        if what == "worker":
            os.kill(random.choice(worker_processes(self._nodes)), signal.SIGKILL)
        elif what == "node":
            busy = max(self._nodes.nodes, key=lambda node: len(worker_processes(self._nodes, node)))
            self._nodes.kill(busy)
            self._nodes.add()
        else:
            self._nodes.kill_head()
            time.sleep(5)
            self._nodes.start_head()
            self._nodes.replace_ended()
        self.report.done.append(what)

    def _wait_for_webhooks(self, seconds: float) -> None:
        end = time.monotonic() + seconds
        while time.monotonic() < end and set(self._jobs) - {each.job["id"] for each in self._receiver.taken}:
            time.sleep(0.5)

    def _judge(self) -> None:
        told = defaultdict(set)
        for each in self._receiver.taken:
            told[each.job["id"]].add((each.id, each.job["status"]))
        for identifier, destination in self._jobs.items():
            shown = self._ended.get(identifier) or self._shown(identifier, destination)
            self.report.states[shown["status"]] += 1
            if shown["status"] != "succeeded":
                self.report.problems.append(f"{identifier} is {shown['status']}: {shown['error']}")
            elif self._shown(identifier, destination)["completed_at"] != shown["completed_at"]:
                self.report.problems.append(f"{identifier} ended twice")
            elif len(told[identifier]) != 1:
                self.report.problems.append(f"{identifier} was told of as {told[identifier]}")
            elif destination:
                versions = self._gateway.call("GET", f"/v1/models/{destination}/versions").json()["results"]
                if len(versions) != 1 or not httpx.get(shown["output"]["weights"]).content:
                    self.report.problems.append(f"{identifier} made {len(versions)} versions")


@contextmanager
def bucket() -> Iterator[dict[str, str]]:
    """Yield the settings of a bucket of moto's server."""
    logging.getLogger("werkzeug").setLevel(logging.WARNING)
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    settings = {"AWS_ENDPOINT_URL": f"http://{host}:{port}", "AWS_ACCESS_KEY_ID": "a", "AWS_SECRET_ACCESS_KEY": "b",
                "AWS_DEFAULT_REGION": "us-east-1"}  # fmt: skip
    client = boto3.client(
        "s3", endpoint_url=settings["AWS_ENDPOINT_URL"], aws_access_key_id="a", aws_secret_access_key="b",
        region_name="us-east-1",
    )  # fmt: skip
    client.create_bucket(Bucket="pictures")
    try:
        yield settings | {"BLOB_STORE": "s3://pictures/lora"}
    finally:
        server.stop()


def campaign(
    folder: Path, predictions: int, trainings: int, *, quick: bool = True, seconds: float = 3600.0,
    say: Callable[[str], None] = print,
) -> Report:  # fmt: skip
    """Run a campaign; returns what was seen."""
    inputs: tuple[dict[str, Any], dict[str, Any]] = (
        {"num_inference_steps": 1, "seed": 1}, {"max_train_steps_ti": 20, "max_train_steps_tuning": 60, "samples": 0}
    )  # fmt: skip
    if quick:
        inputs = ({"seconds": 0.2}, {"steps": 200, "seconds": 0.05})
    with ExitStack() as stack:
        receiver, database = stack.enter_context(receiving()), stack.enter_context(Cluster())
        nodes = stack.enter_context(Nodes(3, cpus=2, durable=True))
        environment = {
            **stack.enter_context(bucket()), "DATABASE_URL": database.url, "RAY_ADDRESS": nodes.address,
            "ALLOW_PRIVATE_ADDRESSES": f"127.0.0.1:{receiver.port}", "MAX_JOB_ATTEMPTS": "100", "RATE_LIMIT": "1000000",
            "RAY_PREDICT_WORKERS": "2", "RAY_TRAIN_WORKERS": "1", "RAY_PREDICT_GPUS": "0", "RAY_TRAIN_GPUS": "0",
            "RAY_IDLE_SECONDS": "30", "TORCH_THREADS": "1",
        }  # fmt: skip
        home = QUICK if quick else entries.HOME
        gateway = stack.enter_context(RunningGateway(folder, home=home, environment=environment, engine="ray"))
        return Campaign(gateway, nodes, receiver, inputs, say).run(predictions, trainings, seconds)


def main() -> int:
    """Run it from the command line; returns 1 if anything was lost or came twice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--predictions", type=int, default=200)
    parser.add_argument("--trainings", type=int, default=6)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--minutes", type=float, default=60.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lora-cluster-") as folder:
        report = campaign(
            Path(folder), options.predictions, options.trainings, quick=options.quick, seconds=60 * options.minutes,
            say=lambda line: print(line, flush=True),
        )  # fmt: skip
        if report.problems:
            print((Path(folder) / "gateway.log").read_text()[-20_000:])
    print(report.text())
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
