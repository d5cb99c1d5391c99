"""The worker of a server: everything is imported before the first job, and no job leaves it unfit for the next."""

from __future__ import annotations

import importlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

from lora_service.errors import InputError
from lora_service.services import worker as worker_module
from lora_service.services.inference_service import InferenceService
from lora_service.services.model_service import JobLog
from lora_service.services.training_service import TrainingService, TrainingUpload
from lora_service.services.worker import IDLE, RUNNING, Worker, family_imports, import_all, remove_leftovers
from lora_service.settings import Settings
from lora_service.temporary_folders import LockedFolder, remove_abandoned_folders
from lora_service.training.trainer import Trainer
from tests.small_base import picture_zip, small_base

ROOT = Path(__file__).resolve().parents[2]
STEPS = {"task": "object", "seed": 1, "max_train_steps_ti": 1, "max_train_steps_tuning": 1, "resolution": 32}
DRAW = {"prompt": "a dog", "num_inference_steps": 1, "seed": 1}


class RecordingWorker(Worker):
    """A worker that goes on and keeps the reasons for which it should have ended."""

    def __init__(self, job_file: Path) -> None:
        super().__init__(job_file)
        self.reasons: list[str] = []

    def end(self, reason: str) -> None:
        self.reasons.append(reason)


@pytest.fixture(autouse=True)
def _small_base(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("lora_service.models.loading.load_base", lambda settings, for_training=False: small_base())
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.fixture
def worker(tmp_path: Path) -> RecordingWorker:
    return RecordingWorker(tmp_path / "job")


@pytest.fixture
def inference(worker: RecordingWorker) -> Iterator[InferenceService]:
    with InferenceService(Settings(), worker=worker) as service:
        yield service


def fail_in_import(folder: Path, error: str) -> Callable[..., None]:
    """Return a function that imports a module which raises ``error``, as a cancellation does at a random moment."""
    (folder / "half_made.py").write_text(f"from tests.services.test_worker import *\nraise {error}\n")

    def fail(*arguments: object, **options: object) -> None:
        sys.path.insert(0, str(folder))
        try:
            __import__("half_made")
        finally:
            sys.path.remove(str(folder))

    return fail


@pytest.mark.parametrize("error", ["KeyboardInterrupt", "RuntimeError('Trying to override a python impl')"])
def test_a_job_that_ends_inside_an_import_ends_the_worker(
    inference: InferenceService,
    worker: RecordingWorker,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    error: str,
) -> None:
    monkeypatch.setattr(inference, "_save", fail_in_import(tmp_path, error))
    with pytest.raises((KeyboardInterrupt, RuntimeError)):
        inference.run(DRAW, log=lambda line: None)
    assert worker.reasons == ["a job ended inside an import"]


def test_a_cancelled_job_leaves_the_worker_and_a_users_mistake_too(
    inference: InferenceService, worker: RecordingWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cancel(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(inference, "_save", cancel)
        with pytest.raises(KeyboardInterrupt):
            inference.run(DRAW, log=lambda line: None)
    with pytest.raises(InputError):
        inference.run(DRAW | {"width": 17}, log=lambda line: None)
    assert inference.run(DRAW, log=lambda line: None)
    assert worker.reasons == []


def test_a_job_that_leaves_a_mode_of_pytorch_on_ends_the_worker(
    inference: InferenceService, worker: RecordingWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    mode = torch.inference_mode()

    def cancel(*arguments: object) -> None:
        mode.__enter__()
        raise KeyboardInterrupt

    monkeypatch.setattr(inference, "_save", cancel)
    try:
        with pytest.raises(KeyboardInterrupt):
            inference.run(DRAW, log=lambda line: None)
        assert worker.reasons == ["a job left PyTorch in a state that the next job cannot use"]
    finally:
        mode.__exit__(None, None, None)


def test_a_base_that_a_job_left_changed_ends_the_worker_and_is_loaded_anew_without_one(
    worker: RecordingWorker, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    upload = TrainingUpload(picture_zip(tmp_path / "pictures.zip"), "")

    def broken(trainer: Trainer, *arguments: object, **options: object) -> None:
        trainer.base.unet.conv_in = torch.nn.Identity()
        raise KeyboardInterrupt

    monkeypatch.setattr(Trainer, "run", broken)
    with TrainingService(Settings(), worker=worker) as service, pytest.raises(KeyboardInterrupt):
        service.train(upload, STEPS, log=lambda line: None)
    assert worker.reasons == ["a job left the base model changed"]
    with TrainingService(Settings()) as service:
        first = service.base
        with pytest.raises(KeyboardInterrupt):
            service.train(upload, STEPS, log=lambda line: None)
        assert service.base is not first


def test_a_second_cancellation_while_clearing_up_ends_the_worker(
    inference: InferenceService, worker: RecordingWorker, monkeypatch: pytest.MonkeyPatch
) -> None:
    def cancel(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(inference, "_save", cancel)
    monkeypatch.setattr(inference, "_base_is_intact", cancel)
    with pytest.raises(KeyboardInterrupt):
        inference.run(DRAW, log=lambda line: None)
    assert worker.reasons == ["clearing up after a job was interrupted"]


def test_the_job_file_says_whether_a_job_runs(inference: InferenceService, tmp_path: Path) -> None:
    states = []
    inference.run(DRAW, log=lambda line: states.append((tmp_path / "job").read_text()))
    assert set(states) == {RUNNING}
    assert (tmp_path / "job").read_text() == IDLE


@pytest.mark.attack("temporary files (G9)")
def test_a_job_removes_what_broken_uploads_and_old_jobs_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cog, folder = tmp_path / "cog", tmp_path / "temporary"
    folder.mkdir()
    for job in ("old", "new"):
        (cog / job / "inputs").mkdir(parents=True)
    (cog / "full" / "outputs").mkdir(parents=True)
    (cog / "full" / "outputs" / "file").touch()
    for path in [*cog.glob("old/*"), *cog.glob("full/*"), cog / "old", cog / "full"]:
        os.utime(path, (0, 0))
    monkeypatch.setattr(worker_module, "COG_JOBS", cog)
    kept, left = folder / "tmpkept.zip", folder / "tmpleft.zip"
    kept.touch()
    left.touch()
    (folder / "cache").touch()
    remove_leftovers(folder, [kept])
    assert sorted(path.name for path in folder.iterdir()) == ["cache", "tmpkept.zip"]
    assert sorted(path.name for path in cog.iterdir()) == ["full", "new"]


@pytest.mark.attack("temporary files (G9)")
def test_folders_of_killed_processes_are_removed_and_those_of_running_ones_stay(tmp_path: Path) -> None:
    """Also in a container, where a process has the number of the one before."""
    code = (
        "import os, signal, tempfile, pathlib\n"
        f"tempfile.tempdir = {str(tmp_path)!r}\n"
        "from lora_service.temporary_folders import LockedFolder\n"
        "(LockedFolder('lora-pictures-').path / 'out-0.png').touch()\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False)
    (left,) = tmp_path.iterdir()
    other = tmp_path / "lora-training-of-somebody.txt"
    other.touch()
    running = LockedFolder("lora-training-")
    remove_abandoned_folders()
    assert left.exists()  # it may have been made this moment
    for path in tmp_path.iterdir():
        os.utime(path, (0, 0))
    Worker().prepare([])
    assert set(tmp_path.iterdir()) == {other, running.path}
    running.remove()


def test_a_failed_job_records_its_error_and_the_last_lines_of_its_log() -> None:
    metrics: dict[str, object] = {}
    log = JobLog(lambda line: None, metrics.__setitem__)
    for i in range(30):
        log(f"line {i} " + "x" * 300)
    log.record_failure(InputError("width", 17, "a multiple of 8"))
    assert (metrics["error_code"], metrics["error_field"]) == ("invalid_input", "width")
    assert metrics["error_message"] == "width is 17, but it must be a multiple of 8."
    lines = str(metrics["log"]).splitlines()
    assert (len(lines), lines[0][:8]) == (20, "line 10 ")
    assert max(map(len, lines)) <= 201
    log.record_failure(ValueError("a defect"))
    assert (metrics["error_code"], metrics["error_message"]) == ("internal_error", "ValueError: a defect")


def test_modules_that_a_version_does_not_have_are_left_out() -> None:
    import_all(["lora_service.no_such_module", "torch.no_such_module", "json:dumps"])
    with pytest.raises(ModuleNotFoundError):
        import_all(["no_such_package.module"])


_JOB = """
import json, pathlib, sys
from lora_service.services.inference_service import InferenceService
from lora_service.services.training_service import TrainingService, TrainingUpload
from lora_service.services.worker import Worker

kind, folder = sys.argv[1], pathlib.Path(sys.argv[2])
service = {"train": TrainingService, "predict": InferenceService}[kind](worker=Worker())
service.warm_up()
before = set(sys.modules)
quiet = lambda line: None
if kind == "train":
    steps = {"max_train_steps_ti": 1, "max_train_steps_tuning": 1}
    service.train(TrainingUpload(folder / "pictures.zip", ""), steps, log=quiet)
else:
    picture = folder / "picture.png"
    for inputs, pictures in (
        ({"scheduler": "KLMS"}, {}),
        ({"scheduler": "Heun", "preview_every": 1, "num_outputs": 2}, {"image": picture}),
        ({"output_format": "webp"}, {"image": picture, "mask": picture}),
    ):
        service.run({"prompt": "a dog", "num_inference_steps": 2, **inputs}, **pictures, log=quiet)
service.close()
print(json.dumps(sorted(set(sys.modules) - before)))
"""


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["train", "predict"])
def test_a_job_imports_nothing_that_its_worker_has_not_imported(kind: str, tmp_path: Path) -> None:
    from PIL import Image

    picture_zip(tmp_path / "pictures.zip")
    Image.new("RGB", (64, 64), "white").save(tmp_path / "picture.png")
    environment = os.environ | {"PYTHONPATH": str(ROOT), "BASE_MODEL": "embedded"}
    command = [sys.executable, "-c", _JOB, kind, str(tmp_path)]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert ended.returncode == 0, ended.stderr
    assert json.loads(ended.stdout.splitlines()[-1]) == []


@pytest.mark.parametrize("name", ["klein", "zimage", "krea2", "chroma", "flux-dev", "qwen-image", "sd15"])
def test_a_worker_imports_what_its_base_needs(name: str, tmp_path: Path) -> None:
    targets = family_imports(Settings(base_model=name, model_cache=tmp_path))
    assert bool(targets) == (name != "sd15")
    for target in targets:
        module, _, names = target.partition(":")
        for each in names.split():
            assert hasattr(importlib.import_module(module), each)
