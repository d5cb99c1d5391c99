"""Files in the run folder of a training that runs: taken for samples and LoRA files, made for wishes.

The run folder of a server on this machine is under the gateway's own; one elsewhere has none there, unless its
``RUN_FOLDERS`` is the same folder. Workers of a cluster send what is in theirs: samples and saved files come into the
gateway's, the rest into the blob store, from which the training goes on elsewhere.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Literal

from sqlalchemy import delete

from lora_service.gateway.database import stored_files
from lora_service.gateway.database.tables import Job, StoredFile
from lora_service.gateway.gateway import Gateway
from lora_service.gateway.problems import Problem
from lora_service.gateway.uploads import chunks_of, store
from lora_service.training.runs.run_folder import RunFolder
from lora_service.whole_files import whole_file

_PATH = re.compile(r"(?!\.)[^/\\\0]{1,200}(/(?!\.)[^/\\\0]{1,200}){0,5}")
"""Of a file in a run folder; nothing in it begins with a dot."""
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


def keep(gateway: Gateway, job: Job, name: str, chunks: Iterable[bytes]) -> None:
    """Keep a file of the run folder of a worker.

    Args:
        name: its path there, with ``/``.

    Raises:
        Problem: the path is none, or the file is larger than ``MAX_UPLOAD_BYTES``.
    """
    if not _PATH.fullmatch(name):
        raise Problem(400, "A file of a run folder has a path like checkpoints/stage-2-000100.safetensors.")
    run = run_folder(gateway, job.id)
    if name.startswith((f"{run.samples.name}/", f"{run.saved.name}/")):
        if _STEP.search(name) and name.count("/") == 1:
            _write(run.path / name, chunks)
        return
    row = store(gateway, chunks, owner=job.owner, purpose="run", name=name, job=job.id, details={"path": name})
    _remove(gateway, [each for each in kept(gateway, job.id) if each.details["path"] == name and each.id != row.id])
    if name == run.record.name:
        _write(run.path / name, gateway.blobs.read(row.id))


def kept(gateway: Gateway, job: str) -> list[StoredFile]:
    """Return the files of the run folder of a worker; ``details`` has the path of each as ``path``."""
    with gateway.database.read() as session:
        return stored_files.of_job(session, job, ("run",))


def forget(gateway: Gateway, job: str, present: Iterable[str]) -> None:
    """Remove the files that are not in the run folder of a worker any more."""
    names = set(present)
    _remove(gateway, [each for each in kept(gateway, job) if each.details["path"] not in names])


def wishes(gateway: Gateway, job: str, taken: Sequence[str] = ()) -> list[str]:
    """Return what was asked of a training that is on a worker, without what the worker has done."""
    run = run_folder(gateway, job)
    if run.save_request.name in taken:
        run.save_request.unlink(missing_ok=True)
    return [path.name for path in (run.save_request, run.stop_request) if path.exists()]


def _remove(gateway: Gateway, files: Sequence[StoredFile]) -> None:
    with gateway.database.write() as session:
        session.execute(delete(StoredFile).where(StoredFile.id.in_([file.id for file in files])))
    for file in files:
        gateway.blobs.remove(file.id)


def _write(path: Path, chunks: Iterable[bytes]) -> None:
    with whole_file(path) as part, part.open("wb") as file:
        file.writelines(chunks)


def _whole(folder: Path, suffix: str) -> Iterator[Path]:
    """Yield the files that are not being written."""
    return (path for path in folder.glob(f"*.{suffix}") if not path.name.startswith("."))
