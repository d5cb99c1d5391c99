"""A scripted training server that reports, draws samples and heeds wishes as the real one does."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from PIL import Image
from safetensors.torch import save

from lora_service.gateway.engine.jobs import CANCEL, EngineJob, EngineLostError, OnProgress
from lora_service.serving.entries import HOME
from lora_service.training.runs.run_folder import RunFolder
from tests.gateway.in_process import Running, ScriptedEngine, document, run_gateway

ANN, EVE, ROOT = ("anns" * 5, "eves" * 5, "root" * 5)
TOKENS = f"ann:run:{ANN},eve:run:{EVE},root:admin:{ROOT},reader:read:{'read' * 5}"
PICTURES = "data:application/zip;base64,UEsFBgAAAAAAAAAAAAAAAAAAAAAAAA=="
"""An empty zip: the scripted server does not look into it."""
BEGUN, GO_ON = "begun", "go on"


@dataclass
class TrainingEngine(ScriptedEngine):
    """Takes three steps of each stage, and waits before the last one for ``may_end``, a wish, or its cancellation.

    Args:
        runs: the gateway's folder of runs.
        lora: the file that it gives back.
    """

    runs: Path = Path()
    lora: bytes = b"lora"
    may_end: bool = False
    lost: list[str] = field(default_factory=list)

    async def document(self) -> dict[str, Any]:
        return document(self.kind, HOME)

    async def run(self, job: EngineJob, on_progress: OnProgress) -> Mapping[str, Any]:
        self.begun.append(job.id)
        self.inputs.append(job.input)
        run = RunFolder(self.runs / job.id)
        run.path.mkdir(parents=True, exist_ok=True)
        run.record.write_text("{}")
        stopped = False
        for stage, step in [("stage 1 (tokens)", 1), ("stage 1 (tokens)", 3), ("stage 2 (LoRA)", 1)]:
            await self._report(on_progress, stage, step)
        self._draw(run, "stage-2-step-000001.png")
        await self._report(on_progress, "stage 2 (LoRA)", 2)
        if job.input.get("class_word") == "lost" and self.begun.count(job.id) == 1:
            raise EngineLostError("it was asked to be lost")
        while not (self.may_end or stopped):
            if run.save_request.exists():
                run.save_request.unlink()
                run.saved.mkdir(exist_ok=True)
                (run.saved / "x-stage-2-step-000002.safetensors").write_bytes(self.lora)
                await self._report(on_progress, "stage 2 (LoRA)", 2)
            stopped = run.stop_request.exists()
            try:
                if await asyncio.wait_for(job.events.get(), 0.02) == CANCEL:
                    return {"status": "canceled", "logs": ""}
            except TimeoutError:
                pass
        if not stopped:
            self._draw(run, "stage-2-step-000003.png")
            await self._report(on_progress, "stage 2 (LoRA)", 3)
        output = "data:application/octet-stream;base64," + base64.b64encode(self.lora).decode()
        return {"status": "succeeded", "logs": "done", "output": output, "metrics": {"seed": 1}}

    async def _report(self, on_progress: OnProgress, stage: str, step: int) -> None:
        metrics = {"stage": stage, "step": step, "of": 3, "loss": 1 / step, "seconds_left": 3.0 - step, "log": "no"}
        metrics |= {"held_out_loss": 0.5} if step > 1 else {}
        await on_progress({"status": "processing", "logs": f"{stage}: step {step} of 3", "metrics": metrics})

    def _draw(self, run: RunFolder, name: str) -> None:
        run.samples.mkdir(exist_ok=True)
        for each in (name, "latest.png", ".part.png"):
            Image.new("RGB", (8, 8), "red").save(run.samples / each)


def lora_file(**metadata: str) -> bytes:
    """A small LoRA of one layer, in kohya's layout."""
    import torch

    name = "lora_unet_down_blocks_0_attentions_0_transformer_blocks_0_attn1_to_q"
    tensors = {
        f"{name}.lora_down.weight": torch.ones(2, 32),
        f"{name}.lora_up.weight": torch.ones(32, 2),
        f"{name}.alpha": torch.tensor(2.0),
    }
    return save(tensors, metadata)


@contextmanager
def run_trainings(folder: Path, lora: bytes = b"lora", **settings: Any) -> Iterator[tuple[Running, TrainingEngine]]:
    """Run a gateway with this training server, and users ann, eve and root."""
    engine = TrainingEngine("train", runs=folder / "runs", lora=lora)
    settings = {"require_tokens": "yes", "api_tokens": TOKENS, "rate_limit": 100_000} | settings
    drawing = ScriptedEngine()
    with run_gateway(folder, engines=[drawing, engine], **settings) as running:
        running.engine = drawing
        try:
            yield running, engine
        finally:
            engine.may_end = True


def begin(running: Running, token: str = ANN, *, destination: str = "", **inputs: Any) -> dict[str, Any]:
    """Begin a training: of the user's "dog", unless it has another destination."""
    version = running.call("GET", "/v1/models/local/lora-training", token).json()["latest_version"]["id"]
    user = running.call("GET", "/v1/account", token).json()["username"]
    body = {"destination": destination or f"{user}/dog", "input": {"instance_data": PICTURES, **inputs}}
    answer = running.call("POST", f"/v1/models/local/lora-training/versions/{version}/trainings", token, json=body)
    assert answer.status_code == 201, answer.text
    return dict(answer.json())


def progress(running: Running, job: dict[str, Any], token: str = ANN) -> dict[str, Any]:
    """The progress of a training."""
    return dict(running.call("GET", f"/v1/trainings/{job['id']}/progress", token).json())


def wait_for(
    running: Running, job: dict[str, Any], *, samples: int = 1, saved: int = 0, step: int = 2
) -> dict[str, Any]:
    """Wait until a training has come so far; returns its progress."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        shown = progress(running, job)
        if len(shown["samples"]) >= samples and len(shown["saved"]) >= saved and (shown["step"] or 0) >= step:
            return shown
        time.sleep(0.02)
    raise AssertionError(shown)
