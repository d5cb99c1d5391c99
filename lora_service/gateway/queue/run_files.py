"""Files in the run folder of a training that runs: taken for samples and LoRA files, made for wishes.

The run folder of a server on this machine is under the gateway's own; one elsewhere has none there, unless its
``RUN_FOLDERS`` is the same folder.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from lora_service.gateway.database import stored_files
from lora_service.gateway.database.tables import Job
from lora_service.gateway.gateway import Gateway
from lora_service.gateway.uploads import chunks_of, store
from lora_service.training.runs.run_folder import RunFolder

_STEP = re.compile(r"(stage)-(\d+)-step-(\d{6,})\.(png|safetensors)$")


def run_folder(gateway: Gateway, job: str) -> RunFolder:
    """Return the run folder of a training, which need not exist."""
    return RunFolder(gateway.settings.runs / job)


def ask(gateway: Gateway, job: str, wish: Literal["save", "stop"]) -> bool:
    """Have a training write a file or end with what it has; returns False where it has no run folder here yet."""
    run = run_folder(gateway, job)
    if not run.holds_a_run:
        return False
    try:
        (run.save_request if wish == "save" else run.stop_request).touch()
    except FileNotFoundError:  # it has just ended
        return False
    return True


def collect(gateway: Gateway, job: Job) -> None:
    """Store the samples and LoRA files that a training has written since the last call."""
    run = run_folder(gateway, job.id)
    found = [(path, "sample") for path in _whole(run.samples, "png")]
    found += [(path, "saved") for path in _whole(run.saved, "safetensors")]
    if not found:
        return
    with gateway.database.read() as session:
        known = {(row.purpose, row.name) for row in stored_files.of_job(session, job.id, ("sample", "saved"))}
    for path, purpose in sorted(found, key=lambda each: each[0].stat().st_mtime):
        match = _STEP.search(path.name)
        if match and (purpose, path.name) not in known:
            details = {"stage": f"{match[1]} {match[2]}", "step": int(match[3])}
            store(
                gateway, chunks_of(path), owner=job.owner, purpose=purpose, name=path.name, job=job.id, details=details
            )


def _whole(folder: Path, suffix: str) -> Iterator[Path]:
    """Yield the files that are not being written."""
    return (path for path in folder.glob(f"*.{suffix}") if not path.name.startswith("."))
