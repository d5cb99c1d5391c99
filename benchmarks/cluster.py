"""What a cluster costs and gains: a job's own cost, one worker against three, LoRAs that stay where they are patched.

    python -m benchmarks.cluster [--jobs 60] [--swap 0.5]

The nodes are processes of this machine (Ray's test cluster), the servers Cog's, with an entry that sleeps: a job takes
``seconds``, and ``--swap`` more where its LoRA is not the one that the server drew with last. So the figures are those
of queue, gateway and Ray, and none of a model.
"""

from __future__ import annotations

import argparse
import random
import statistics
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import psutil

from benchmarks.gateway import DRAW, resident_mebibytes
from tests.gateway.cluster.nodes import Nodes
from tests.gateway.running import RunningGateway

_SETTINGS = {"RAY_PREDICT_GPUS": "0", "RAY_TRAIN_GPUS": "0", "RAY_WAITING_PER_WORKER": "1", "RATE_LIMIT": "1000000"}
_END_SECONDS = 600.0
_WATCHED_SECONDS = 20.0


@dataclass(frozen=True)
class Run:
    """What became of jobs that were queued together; times in seconds.

    Attributes:
        seconds: from the first begin to the last end.
        pace: between the ends of two jobs, the median.
        swaps: jobs whose LoRA was not the one before.
    """

    jobs: int
    seconds: float
    pace: float
    swaps: int


@contextmanager
def gateway_on(nodes: Nodes | None, workers: int, **settings: str) -> Iterator[RunningGateway]:
    """Yield a gateway with so many workers on a cluster, or with this machine's own server."""
    environment = {**_SETTINGS, "RAY_PREDICT_WORKERS": str(workers), "RAY_MIN_WORKERS": str(workers), **settings}
    if nodes is not None:
        environment["RAY_ADDRESS"] = nodes.address
    with tempfile.TemporaryDirectory() as folder:
        engine = "local" if nodes is None else "ray"
        with RunningGateway(Path(folder) / "g", environment=environment, engine=engine) as gateway:
            end = time.monotonic() + _END_SECONDS
            while nodes is not None and gateway.log.read_text().count(" is ready on ") < workers:
                assert time.monotonic() < end, gateway.log.read_text()[-5000:]
                time.sleep(0.2)
            done(gateway, [{"seconds": 0.2}] * workers)
            yield gateway


def done(gateway: RunningGateway, inputs: list[dict[str, Any]]) -> Run:
    """Queue jobs, which begin once all of them wait, and return what became of them."""
    with httpx.Client(base_url=gateway.url, trust_env=False, timeout=120) as client:
        jobs = [client.post(DRAW, json={"input": each}).json()["id"] for each in inputs]
        ended: dict[str, dict[str, Any]] = {}
        end = time.monotonic() + _END_SECONDS
        while len(ended) < len(jobs):
            assert time.monotonic() < end, gateway.log.read_text()[-5000:]
            time.sleep(0.3)
            for job in [job for job in jobs if job not in ended]:
                shown = client.get(f"/v1/predictions/{job}").json()
                if shown["completed_at"] is None:
                    break
                ended[job] = shown
            for each in client.get("/v1/predictions").json()["results"]:
                if each["completed_at"] is not None and each["id"] in jobs:
                    ended[each["id"]] = each
    assert all(shown["status"] == "succeeded" for shown in ended.values())
    begins = sorted(_moment(shown["started_at"]) for shown in ended.values())
    ends = sorted(_moment(shown["completed_at"]) for shown in ended.values())
    pace = statistics.median(ends[n + 1] - ends[n] for n in range(len(ends) - 1)) if len(ends) > 1 else 0.0
    swaps = sum(int(shown["metrics"].get("swapped", 0)) for shown in ended.values())
    return Run(len(jobs), ends[-1] - begins[0], pace, swaps)


def _moment(text: str) -> float:
    from datetime import datetime

    return datetime.fromisoformat(text).timestamp()


def scheduling(nodes: Nodes, jobs: int) -> None:
    """Print what a job costs beside its own time, on one worker."""
    for name, cluster in (("this machine", None), ("Ray", nodes)):
        with gateway_on(cluster, 1) as gateway:
            run = done(gateway, [{"seconds": 0.2}] * jobs)
            print(f"{name}: {1000 * (run.pace - 0.2):.0f} ms a job beside its own time, median of {jobs}")


def scaling(nodes: Nodes, jobs: int) -> None:
    """Print how much sooner three workers are done than one."""
    times = {}
    for workers in (1, 3):
        with gateway_on(nodes, workers) as gateway:
            times[workers] = done(gateway, [{"seconds": 1.0}] * jobs).seconds
            assert gateway.process is not None
            memory = resident_mebibytes(gateway.process.pid)
    ratio = times[1] / times[3]
    print(f"{jobs} jobs of 1 s: {times[1]:.1f} s on one worker, {times[3]:.1f} s on three, ratio {ratio:.2f}")
    print(f"memory of the gateway: {memory:.0f} MiB")


def gateway_time(nodes: Nodes, jobs: int) -> None:
    """Print what of a core the gateway's process takes for a job, and for each second that one runs."""
    with gateway_on(nodes, 3) as gateway:
        assert gateway.process is not None
        process = psutil.Process(gateway.process.pid)
        before = core_seconds(process)
        done(gateway, [{"seconds": 0.0}] * jobs)
        a_job = (core_seconds(process) - before) / jobs
        for _ in range(3):
            gateway.call("POST", DRAW, json={"input": {"seconds": _WATCHED_SECONDS + 10}})
        time.sleep(5)
        before = core_seconds(process)
        time.sleep(_WATCHED_SECONDS)  # nobody asks meanwhile
        a_second = (core_seconds(process) - before) / _WATCHED_SECONDS / 3
    print(f"of a core, the gateway takes {1000 * a_job:.0f} ms for a job with its requests and reports,")
    print(f"and {1000 * a_second:.1f} ms for each second that a job runs")


def core_seconds(process: psutil.Process) -> float:
    """Return the seconds of a core that a process has taken."""
    times = process.cpu_times()
    return times.user + times.system


def affinity(nodes: Nodes, jobs: int, swap: float) -> None:
    """Print how often a job's LoRA was where it went, and what it saved."""
    chance = random.Random(0)
    # Some LoRAs are asked for often, most seldom: the n-th one in proportion to 1/n.
    names = chance.choices(range(12), [1 / (n + 1) for n in range(12)], k=jobs)
    inputs = [{"seconds": 0.3, "swap": swap, "lora_urls": f"https://example.com/{name}.safetensors"} for name in names]
    for passes in ("0", "4"):
        with gateway_on(nodes, 3, RAY_LORA_PASSES=passes) as gateway:
            run = done(gateway, inputs)
        print(
            f"RAY_LORA_PASSES={passes}: {100 * (1 - run.swaps / jobs):.0f} % of {jobs} jobs found their LoRA patched, "
            f"{run.seconds:.1f} s"
        )


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=60)
    parser.add_argument("--swap", type=float, default=0.5, help="seconds that another LoRA takes")
    options = parser.parse_args()
    with Nodes(3) as nodes:
        scheduling(nodes, options.jobs)
        scaling(nodes, options.jobs)
        gateway_time(nodes, options.jobs)
        affinity(nodes, options.jobs, options.swap)


if __name__ == "__main__":
    main()
