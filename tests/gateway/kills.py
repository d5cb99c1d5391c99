"""The campaign of kills: ``python -m tests.gateway.kills [--kills 200] [--seed 0] [--postgresql] [--minutes 60]``.

While random jobs are submitted, the gateway, its servers of Cog, their workers and the database's server are killed
with SIGKILL at random moments and started again. At the end each job must have the one final state that its input
leads to, each training exactly one version with all of its steps, and each webhook must have come at least once, all
of an event with the same id.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx

from tests.gateway.postgres import Cluster
from tests.gateway.receiver import Receiver, receiving
from tests.gateway.running import RunningGateway

FINAL = ("succeeded", "failed", "canceled")
END_SECONDS = 600.0
STEPS = 40


@dataclass
class Job:
    """A job that was accepted, and the final states that may become of it."""

    plural: str
    allowed: tuple[str, ...]
    destination: str = ""


@dataclass
class Report:
    """Counts of what was done and seen."""

    kills: Counter[str] = field(default_factory=Counter)
    jobs: dict[str, Job] = field(default_factory=dict)
    unanswered: int = 0
    states: Counter[str] = field(default_factory=Counter)
    webhooks: int = 0
    repeated: int = 0
    seconds: float = 0.0
    problems: list[str] = field(default_factory=list)

    def text(self) -> str:
        """Return it as lines."""
        kills = ", ".join(f"{count} of {name}" for name, count in sorted(self.kills.items()))
        states = ", ".join(f"{count} {name}" for name, count in sorted(self.states.items()))
        lines = [
            f"{self.kills.total()} kills: {kills}",
            f"{len(self.jobs)} jobs accepted, {self.unanswered} requests without an answer",
            f"ended: {states}; webhooks of ends {self.webhooks}, {self.repeated} of them repeated",
            f"{self.seconds:.0f} seconds, {len(self.problems)} problems",
        ]
        return "\n".join([*lines, *self.problems])


class Campaign:
    """One campaign.

    Args:
        gateway: runs already.
        receiver: takes the webhooks.
        cluster: its database, where that is a server.
    """

    def __init__(self, gateway: RunningGateway, receiver: Receiver, cluster: Cluster | None, seed: int) -> None:
        self._gateway, self._receiver, self._cluster = gateway, receiver, cluster
        self._chance, self.report = random.Random(seed), Report()

    def run(self, kills: int, seconds: float, say: Callable[[str], None] = print) -> Report:
        """Kill and submit until there were so many kills or the time is over, then look at what became of it all."""
        begun = time.monotonic()
        while self.report.kills.total() < kills and time.monotonic() - begun < seconds:
            for _ in range(self._chance.randint(1, 3)):
                self._submit()
            time.sleep(self._chance.uniform(0, 2))
            self._kill()
            if self.report.kills.total() % 10 == 0:
                say(f"{self.report.kills.total()} kills, {len(self.report.jobs)} jobs")
        ended = self._wait_for_ends()
        self._wait_for_webhooks()
        self._judge(ended)
        self.report.seconds = time.monotonic() - begun
        return self.report

    def _submit(self) -> None:
        kind = self._chance.choice(["draw", "draw", "picture", "fail", "cancel", "train"])
        body: dict[str, Any] = {"webhook": self._receiver.url, "webhook_events_filter": ["completed"]}
        path, job = "/v1/models/local/lora/predictions", Job("predictions", ("succeeded",))
        if kind == "train":
            name = f"me/dog-{len(self.report.jobs)}-{self.report.unanswered}"
            path, job = f"{self._teacher()}/trainings", Job("trainings", ("succeeded",), name)
            data = "data:application/zip;base64,UEsDBA=="
            body |= {"destination": name, "input": {"instance_data": data, "steps": STEPS, "seconds": 0.02}}
        else:
            body["input"] = {"seconds": round(self._chance.uniform(0, 1), 2), "num_outputs": self._chance.randint(1, 3)}
        if kind == "picture":
            body["input"]["image"] = "data:image/png;base64,iVBORw=="
        elif kind == "fail":
            body["input"]["behaviour"], job.allowed = "fail", ("failed",)
        elif kind == "cancel":
            body["input"]["seconds"], job.allowed = 600, ("canceled",)
        answer = self._call("POST", path, json=body)
        if answer is None or answer.status_code != 201:
            self.report.unanswered += 1
            return
        identifier = answer.json()["id"]
        self.report.jobs[identifier] = job
        if kind == "cancel":
            time.sleep(self._chance.uniform(0, 1))
            self._call("POST", f"/v1/predictions/{identifier}/cancel")

    def _teacher(self) -> str:
        answer = self._call("GET", "/v1/models/local/lora-training")
        identifier = answer.json()["latest_version"]["id"] if answer is not None else "none"
        return f"/v1/models/local/lora-training/versions/{identifier}"

    def _call(self, method: str, path: str, **options: Any) -> httpx.Response | None:
        with contextlib.suppress(httpx.HTTPError):
            return self._gateway.call(method, path, **options)
        return None

    def _kill(self) -> None:
        targets = {"gateway": 2.0, "Cog server": 2.0, "worker": 4.0} | ({"PostgreSQL": 3.0} if self._cluster else {})
        target = self._chance.choices(list(targets), list(targets.values()))[0]
        if self._cluster and not self.report.kills:
            target = "PostgreSQL"  # also in a short campaign
        assert self._gateway.process is not None
        servers = children(self._gateway.process.pid)
        workers = [pid for server in servers for pid in children(server)]
        pids = {"Cog server": servers, "worker": workers}.get(target, [])
        if target == "PostgreSQL" and self._cluster is not None:
            self._cluster.kill()
            time.sleep(self._chance.uniform(0, 1))
            self._cluster.start()
        elif pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._chance.choice(pids), signal.SIGKILL)
        else:
            target = "gateway"
            self._gateway.kill()
            self._gateway.start()
        self.report.kills[target] += 1

    def _wait_for_ends(self) -> dict[str, dict[str, Any]]:
        """Return all jobs as they are when they have ended; those that were to be cancelled are once more."""
        ended: dict[str, dict[str, Any]] = {}
        end = time.monotonic() + END_SECONDS
        while len(ended) < len(self.report.jobs) and time.monotonic() < end:
            for identifier, job in self.report.jobs.items():
                if identifier in ended:
                    continue
                if job.allowed == ("canceled",):  # its cancel may not have come through
                    self._call("POST", f"/v1/predictions/{identifier}/cancel")
                answer = self._call("GET", f"/v1/{job.plural}/{identifier}")
                if answer is not None and answer.status_code == 200 and answer.json()["status"] in FINAL:
                    ended[identifier] = answer.json()
            time.sleep(0.5)
        return ended

    def _wait_for_webhooks(self) -> None:
        end = time.monotonic() + END_SECONDS / 4
        while time.monotonic() < end and set(self.report.jobs) - {each.job["id"] for each in self._receiver.taken}:
            time.sleep(0.5)

    def _judge(self, ended: dict[str, dict[str, Any]]) -> None:
        told = defaultdict(list)
        for each in self._receiver.taken:
            told[each.job["id"]].append(each)
        for identifier, job in self.report.jobs.items():
            shown = ended.get(identifier)
            if shown is None:
                self.report.problems.append(f"{identifier} has no final state")
                continue
            self.report.states[shown["status"]] += 1
            if shown["status"] not in job.allowed:
                self.report.problems.append(f"{identifier} is {shown['status']}: {shown['error']}")
            self._judge_webhooks(
                identifier, shown["status"], [(each.id, each.job["status"]) for each in told[identifier]]
            )
            again = self._call("GET", f"/v1/{job.plural}/{identifier}")
            if again is None or [again.json()[key] for key in ("status", "completed_at")] != [
                shown[key] for key in ("status", "completed_at")
            ]:
                self.report.problems.append(f"{identifier} ended twice")
            if job.destination and shown["status"] == "succeeded":
                self._judge_training(identifier, job.destination, shown)

    def _judge_webhooks(self, identifier: str, status: str, came: list[tuple[str, str]]) -> None:
        self.report.webhooks += len(came)
        self.report.repeated += max(0, len(came) - 1)
        if len(set(came)) != 1 or came[0][1] != status:
            self.report.problems.append(f"{identifier} is {status}, and its webhooks are {came}")

    def _judge_training(self, identifier: str, destination: str, shown: dict[str, Any]) -> None:
        versions = self._call("GET", f"/v1/models/{destination}/versions")
        count = len(versions.json()["results"]) if versions is not None else 0
        content = httpx.get(shown["output"]["weights"]).text
        if count != 1 or content != f"4 bytes, {STEPS} steps":
            self.report.problems.append(f"{identifier} made {count} versions, and the file {content!r}")


def children(parent: int) -> list[int]:
    """Return the processes whose parent is that one."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            if int(path.read_text().rpartition(")")[2].split()[1]) == parent:
                found.append(int(path.parent.name))
    return sorted(found)


def campaign(
    folder: Path, kills: int, *, seed: int = 0, postgresql: bool = False, seconds: float = 1e9,
    say: Callable[[str], None] = print,
) -> Report:  # fmt: skip
    """Run a campaign on the quick entries; returns what was seen."""
    with contextlib.ExitStack() as stack:
        receiver = stack.enter_context(receiving(refuse=0.2, seed=seed))
        cluster = stack.enter_context(Cluster()) if postgresql else None
        environment = {
            "ALLOW_PRIVATE_ADDRESSES": f"127.0.0.1:{receiver.port}",
            "MAX_JOB_ATTEMPTS": "1000000",
            "RATE_LIMIT": "1000000",
            "DATABASE_URL": cluster.url if cluster else "",
        }
        gateway = stack.enter_context(RunningGateway(folder, environment=environment))
        return Campaign(gateway, receiver, cluster, seed).run(kills, seconds, say)


def main() -> int:
    """Run it from the command line; returns 1 if anything was lost or came twice."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument("--postgresql", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="lora-kills-") as folder:
        report = campaign(
            Path(folder), options.kills, seed=options.seed, postgresql=options.postgresql,
            seconds=60 * options.minutes, say=lambda line: print(line, flush=True),
        )  # fmt: skip
        if report.problems:
            print((Path(folder) / "gateway.log").read_text()[-20_000:])
    print(report.text())
    return 1 if report.problems else 0


if __name__ == "__main__":
    sys.exit(main())
