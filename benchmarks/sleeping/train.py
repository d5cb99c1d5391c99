"""A training entry that counts to a number, and goes on where it was when its server is killed."""

import os
import tempfile
import time
from pathlib import Path as LocalPath

from cog import Input, Path, current_scope

OUTPUTS = LocalPath(tempfile.mkdtemp())


def train(
    instance_data: Path | None = Input(default=None, description="A zip of pictures."),
    steps: int = Input(default=3, ge=1, le=10000, description="How far to count."),
    seconds: float = Input(default=0.01, ge=0, le=10, description="How long a step takes."),
) -> Path:
    if instance_data is None:
        raise ValueError("instance_data is missing")
    run = current_scope().context.get("run", "")
    folder = LocalPath(os.environ["RUN_FOLDERS"]) / run
    folder.mkdir(parents=True, exist_ok=True)
    checkpoint = folder / "step"
    done = int(checkpoint.read_text()) if checkpoint.exists() else 0
    print(f"begins at step {done}")
    while done < steps:
        time.sleep(seconds)
        done += 1
        part = folder / "step.part"
        part.write_text(str(done))
        part.rename(checkpoint)
    path = OUTPUTS / "lora.safetensors"
    path.write_bytes(f"{instance_data.stat().st_size} bytes, {done} steps".encode())
    return Path(path)
