"""A training that lasts, with the link by which its run folder is kept."""

from __future__ import annotations

import time
from typing import Any

from tests.gateway.in_process import Running, ScriptedEngine

PICTURES = "data:application/zip;base64,UEsDBA=="


class HeldEngine(ScriptedEngine):
    """Notes the links of run folders; a training lasts until it is cancelled."""

    def __init__(self) -> None:
        super().__init__("train")
        self.links: list[str] = []

    async def run(self, job: Any, on_progress: Any) -> Any:
        self.links.append(job.files)
        await on_progress({"status": "processing", "logs": ""})
        await job.events.get()
        return {"status": "canceled"}


def train(running: Running, engine: HeldEngine) -> dict[str, Any]:
    version = running.call("GET", "/v1/models/local/lora-training").json()["latest_version"]["id"]
    body = {"destination": "me/dog", "input": {"instance_data": PICTURES, "steps": 5}}
    path = f"/v1/models/local/lora-training/versions/{version}/trainings"
    job = dict(running.call("POST", path, json=body).json())
    end = time.monotonic() + 30
    while running.call("GET", f"/v1/trainings/{job['id']}").json()["status"] != "processing":
        assert time.monotonic() < end
        time.sleep(0.02)
    return job
