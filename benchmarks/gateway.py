"""The cost of the gateway: a request against the same to a Cog server, jobs queued in a second, memory with a queue.

    python -m benchmarks.gateway [--requests 30] [--jobs 10000]

The servers are Cog's, with an entry that draws at once. Requests to the gateway (``Prefer: wait``) and to a server
take turns; then one job keeps the server busy while others are queued over four connections.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx

from lora_service.serving.server import CogServer
from tests.gateway.running import QUICK, RunningGateway

DRAW = "/v1/models/local/lora/predictions"
_CONNECTIONS = 4


def resident_mebibytes(pid: int) -> float:
    """Return the resident memory of a process."""
    lines = Path(f"/proc/{pid}/status").read_text().splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith("VmRSS")) / 1024


def seconds_of(client: httpx.Client, url: str, **options: object) -> float:
    """Return the seconds of a request that draws."""
    begun = time.perf_counter()
    while True:
        answer = client.post(url, json={"input": {}}, timeout=120, **options)  # type: ignore[arg-type]
        if answer.status_code != 409:  # the slot of the job before is freed a moment after its answer
            break
    assert answer.json()["status"] == "succeeded", answer.text
    return time.perf_counter() - begun


def compare(gateway: RunningGateway, server: CogServer, requests: int) -> None:
    """Print the time of a request to each side."""
    ours, plain = [], []
    with httpx.Client(trust_env=False) as client:
        for number in range(requests + 1):
            times = (
                seconds_of(client, f"{gateway.url}{DRAW}", headers={"Prefer": "wait"}),
                seconds_of(client, f"{server.url}/predictions"),
            )
            if number:  # the first pair starts what is started on demand
                ours.append(times[0])
                plain.append(times[1])
    slow, fast = statistics.median(ours), statistics.median(plain)
    print(f"a request, median of {requests}: gateway {1000 * slow:.0f} ms, Cog {1000 * fast:.0f} ms, {slow / fast:.2f}")


def fill(gateway: RunningGateway, jobs: int) -> None:
    """Print how fast jobs are queued, and the memory before and after."""
    assert gateway.process is not None
    gateway.call("POST", DRAW, json={"input": {"seconds": 600}})
    before, begun = resident_mebibytes(gateway.process.pid), time.perf_counter()

    def queue(count: int) -> None:
        with httpx.Client(base_url=gateway.url, trust_env=False, timeout=120) as client:
            for _ in range(count):
                assert client.post(DRAW, json={"input": {"prompt": "a cat"}}).status_code == 201

    with ThreadPoolExecutor(_CONNECTIONS) as pool:
        list(pool.map(queue, [jobs // _CONNECTIONS] * _CONNECTIONS))
    seconds, after = time.perf_counter() - begun, resident_mebibytes(gateway.process.pid)
    print(f"{jobs} jobs queued in {seconds:.0f} s, {jobs / seconds:.0f} a second")
    print(f"memory of the gateway: {before:.0f} MiB, with the queue {after:.0f} MiB")


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=30)
    parser.add_argument("--jobs", type=int, default=10_000)
    options = parser.parse_args()
    limits = {"RATE_LIMIT": "1000000", "MAX_QUEUE": "100000", "MAX_QUEUE_PER_USER": "100000", "DRAIN_SECONDS": "0"}
    with tempfile.TemporaryDirectory() as folder, RunningGateway(Path(folder), environment=limits) as gateway:
        with CogServer("predict", home=QUICK) as server:
            server.wait_ready(300)
            compare(gateway, server, options.requests)
        fill(gateway, options.jobs)


if __name__ == "__main__":
    main()
