"""An inference entry that draws at once: Cog's real server without a model, for the gateway's tests."""

import os
import tempfile
import time
from pathlib import Path as LocalPath

from cog import BaseRunner, Input, Path
from PIL import Image

OUTPUTS = LocalPath(tempfile.mkdtemp())


class Predictor(BaseRunner):
    patched = ""

    def run(
        self,
        prompt: str = Input(default="a dog", max_length=5000, description="What to draw."),
        num_outputs: int = Input(default=1, ge=1, le=8, description="How many pictures."),
        seconds: float = Input(default=0.0, ge=0, le=600, description="How long to take."),
        swap: float = Input(default=0.0, ge=0, le=600, description="How long LoRAs take that were not the last ones."),
        image: Path | None = Input(default=None, description="A picture to start from."),
        lora_urls: str = Input(default="", description="Links."),
        replicate_weights: str = Input(default="", description="A link."),
        behaviour: str = Input(default="", choices=["", "fail", "crash", "crash once"], description="What happens."),
    ) -> list[Path]:
        print(f"drawing {prompt}")
        swapped, self.patched = lora_urls != self.patched, lora_urls
        self.record_metric("swapped", int(swapped))
        end = time.monotonic() + seconds + (swap if swapped else 0)
        while time.monotonic() < end:
            time.sleep(0.02)
        if behaviour == "fail":
            raise ValueError("it was asked to fail")
        if behaviour == "crash" or (behaviour == "crash once" and not _was_here(prompt)):
            os._exit(1)
        self.record_metric("bytes", image.stat().st_size if image else 0)
        for name, value in (("weights", replicate_weights), ("links", lora_urls)):
            if value:
                print(f"{name}: {value}")
        paths = []
        for number in range(num_outputs):
            path = OUTPUTS / f"out-{number}.png"
            Image.new("RGB", (4, 4), (number, 0, 0)).save(path)
            paths.append(Path(path))
        return paths


def _was_here(prompt: str) -> bool:
    mark = LocalPath(prompt)
    if mark.exists():
        return True
    mark.touch()
    return False
