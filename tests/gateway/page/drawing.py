"""A scripted drawing server whose pictures tell in their pixels what they were drawn with."""

from __future__ import annotations

import base64
import io
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import httpx
from PIL import Image
from playwright.sync_api import Locator

from lora_service.gateway.engine.jobs import EngineJob, OnProgress
from lora_service.serving.entries import HOME
from tests.gateway.in_process import ScriptedEngine, document

Told = tuple[int, int, int]
"""The scale of the first LoRA in hundredths, the seed, and a number of the prompt and the LoRAs."""


@dataclass
class DrawingEngine(ScriptedEngine):
    """Draws at once, by the inputs of the repository's own entry."""

    async def document(self) -> dict[str, Any]:
        return document(self.kind, HOME)

    async def run(self, job: EngineJob, on_progress: OnProgress) -> Mapping[str, Any]:
        self.begun.append(job.id)
        self.inputs.append(job.input)
        await on_progress({"status": "processing", "logs": "", "metrics": {"step": 1, "of": 2}})
        seed = job.input.get("seed", 7)
        seeds = [*range(seed, seed + job.input.get("num_outputs", 1))]
        metrics = {}
        if job.input.get("lora_mode") == "each":
            loras = range(1, len(job.input["lora_urls"].split("|")) + 1)
            metrics["lora_numbers"] = " ".join(str(number) for number in loras for _ in seeds)
            seeds *= len(loras)
        output = [picture(told(job.input, number)) for number in seeds]
        metrics["seeds"] = " ".join(map(str, seeds))
        return {"status": "succeeded", "output": output, "metrics": metrics}


def told(inputs: Mapping[str, Any], seed: int) -> Told:
    """What a picture of these inputs tells."""
    scale = float(str(inputs.get("lora_scales", "0.8")).split("|")[0])
    # A link has a key of its own each time; the file it leads to is the LoRA.
    loras = [link.split("/files/")[-1][:26] for link in str(inputs.get("lora_urls", "")).split("|")]
    return round(scale * 100), seed % 256, zlib.crc32(repr((inputs.get("prompt"), loras)).encode()) % 256


def picture(color: Told) -> str:
    file = io.BytesIO()
    Image.new("RGB", (64, 64), color).save(file, "PNG")
    return "data:image/png;base64," + base64.b64encode(file.getvalue()).decode()


def read(pictures: Locator, url: str) -> list[Told]:
    """What the pictures of a page tell."""
    found: list[Told] = []
    for source in pictures.evaluate_all("images => images.map((image) => image.getAttribute('src'))"):
        with Image.open(io.BytesIO(httpx.get(url + source).content)) as image:
            red, green, blue = image.convert("RGB").getpixel((32, 32))  # type: ignore[misc]
            found.append((red, green, blue))
    return found
