"""An entry that sleeps: a job's own time, and that of another LoRA."""

import tempfile
import time
from pathlib import Path as LocalPath

from cog import BaseRunner, Input, Path

OUTPUTS = LocalPath(tempfile.mkdtemp())


class Predictor(BaseRunner):
    patched = ""

    def run(
        self,
        seconds: float = Input(default=0.0, ge=0, le=600, description="How long to take."),
        swap: float = Input(default=0.0, ge=0, le=600, description="How long another LoRA takes."),
        lora_urls: str = Input(default="", description="Links."),
        replicate_weights: str = Input(default="", description="A link."),
    ) -> list[Path]:
        swapped = lora_urls != self.patched
        self.patched = lora_urls
        self.record_metric("swapped", int(swapped))
        time.sleep(seconds + (swap if swapped else 0))
        path = OUTPUTS / "out-0.txt"
        path.write_text("done")
        return [Path(path)]
