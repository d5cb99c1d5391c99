"""A run that was interrupted at any step goes on to the same file."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_service.errors import InputError
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.training import trainer as trainer_module
from lora_service.training.callbacks.stopping import INTERRUPTED, StopRequest
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.optimization.loop import StageRun, TrainingCallback
from lora_service.training.runs.checkpoints import CheckpointFolder, CheckpointWriter, save_interval
from lora_service.training.runs.run_folder import RunFolder, RunOptions, StopSignal
from lora_service.training.runs.run_record import RunRecord
from lora_service.training.runs.state_file import read_state, write_state
from lora_service.training.trainer import Trainer, TrainResult
from tests.errors import raises
from tests.small_base import hashes, picture_zip, small_base

STEPS = {
    "task": "style",
    "seed": 4,
    "max_train_steps_ti": 3,
    "max_train_steps_tuning": 4,
    "resolution": 32,
    "lr_scheduler": "cosine",
    "lr_warmup_steps": 1,
    "continue_inversion": True,
    "flip": True,
    "samples": 0,
}
OPTIONS = RunOptions(save_every=2)


class Killed(BaseException):
    """Stands for what ends a process without asking."""


@pytest.fixture
def base() -> DiffusionBase:
    return small_base()


def begin(
    base: DiffusionBase,
    folder: Path,
    options: RunOptions = OPTIONS,
    log: Callable[[str], None] = lambda line: None,
    **inputs: Any,
) -> TrainResult:
    folder.mkdir(parents=True, exist_ok=True)
    job = Trainer(base, folder / "run", options=options, log=log)
    return job.run(picture_zip(folder / "p.zip"), TrainConfig.of(STEPS | inputs))


def resume(base: DiffusionBase, folder: Path, log: Callable[[str], None] = lambda line: None) -> TrainResult:
    run = RunFolder(folder / "run")
    record = RunRecord.read(run)
    job = Trainer(base, run.path, options=RunOptions(stop=StopSignal()), resumed=record, log=log)
    return job.run(record.source(run), record.config())


def killed_after(monkeypatch: pytest.MonkeyPatch, steps: int, moment: str) -> None:
    """Have the process "killed" around the end of its step number ``steps``, over both stages; 0 is before any."""
    count = 0

    class Killer(TrainingCallback):
        def on_stage_start(self, stage: StageRun) -> None:
            if steps == count == 0:
                raise Killed

        def on_step_end(self, stage: StageRun) -> None:
            nonlocal count
            count += 1
            if count == steps:
                raise Killed

    original = Trainer._callbacks

    def callbacks(self: Trainer, *arguments: Any) -> list[TrainingCallback]:
        usual = original(self, *arguments)
        return [Killer(), *usual] if moment == "before saving" else [*usual, Killer()]

    monkeypatch.setattr(Trainer, "_callbacks", callbacks)


def killed(steps: int, moment: str, work: Callable[..., TrainResult], *arguments: Any, **inputs: Any) -> None:
    """Do ``work`` until it is killed."""
    with pytest.MonkeyPatch.context() as patch:
        killed_after(patch, steps, moment)
        with pytest.raises(Killed):
            work(*arguments, **inputs)


@pytest.mark.parametrize("moment", ["before saving", "after saving"])
def test_a_run_killed_at_any_step_goes_on_to_the_same_bytes(tmp_path: Path, base: DiffusionBase, moment: str) -> None:
    expected = begin(base, tmp_path / "whole").path.read_bytes()
    weights = hashes(base)
    for steps in range(8):
        folder = tmp_path / str(steps)
        killed(steps, moment, begin, base, folder)
        lines: list[str] = []
        result = resume(base, folder, lines.append)
        saved = steps > 2 or (steps == 2 and moment == "after saving")
        assert any(line.startswith("going on with") for line in lines) == saved
        assert result.path.read_bytes() == expected, steps
        assert {name: report.steps for name, report in result.stages.items()} == {"stage 1": 3, "stage 2": 4}
        assert not (folder / "run" / "checkpoints").exists()
    assert hashes(base) == weights


def test_a_run_that_is_killed_again_and_again_ends_all_the_same(tmp_path: Path, base: DiffusionBase) -> None:
    expected = begin(base, tmp_path / "whole", samples=3).path.read_bytes()
    killed(2, "after saving", begin, base, tmp_path / "often", samples=3)
    for steps in (2, 1, 1):
        killed(steps, "after saving", resume, base, tmp_path / "often")
    assert resume(base, tmp_path / "often").path.read_bytes() == expected


@pytest.mark.parametrize("steps", [2, 5])
def test_a_request_to_stop_writes_a_file_and_the_run_can_go_on(
    tmp_path: Path, base: DiffusionBase, steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    expected = begin(base, tmp_path / "whole").path.read_bytes()
    stop, count = StopSignal(), 0
    take_step = StageRun.take_step

    def counted(self: StageRun) -> None:
        nonlocal count
        take_step(self)
        count += 1
        stop.requested = count >= steps

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(StageRun, "take_step", counted)
        result = begin(base, tmp_path / "stopped", RunOptions(save_every=None, stop=stop))
    assert result.interrupted
    report = json.loads(read_header(result.path)["lora_service.report"])
    stage, done = ("stage 1", 2) if steps == 2 else ("stage 2", 2)
    assert report["stopped"] == {stage: f"step {done}: {INTERRUPTED}"}
    assert bool(result.resolved.trigger) == (steps == 5)  # tokens alone have no trigger word
    assert RunRecord.read(RunFolder(tmp_path / "stopped" / "run")).status == "stopped"
    assert resume(base, tmp_path / "stopped").path.read_bytes() == expected


def read_header(path: Path) -> dict[str, str]:
    from safetensors import safe_open

    with safe_open(path, "pt") as file:
        return dict(file.metadata())


def interrupted(base: DiffusionBase, folder: Path, **inputs: Any) -> None:
    killed(5, "after saving", begin, base, folder, **inputs)


def test_a_damaged_checkpoint_is_left_for_the_one_before(tmp_path: Path, base: DiffusionBase) -> None:
    expected = begin(base, tmp_path / "whole").path.read_bytes()
    interrupted(base, tmp_path / "cut")
    newest = max((tmp_path / "cut" / "run" / "checkpoints").iterdir())
    newest.write_bytes(newest.read_bytes()[:-100])
    (newest.parent / ".stage-2-LoRA-000004.safetensors.part").write_bytes(b"half")
    lines: list[str] = []
    assert resume(base, tmp_path / "cut", lines.append).path.read_bytes() == expected
    assert any(newest.name in line for line in lines if line.startswith("warning: "))


def test_changed_pictures_bases_and_settings_are_refused(tmp_path: Path, base: DiffusionBase) -> None:
    interrupted(base, tmp_path)
    run = RunFolder(tmp_path / "run")
    record = RunRecord.read(run)
    picture_zip(tmp_path / "p.zip", ("red", "green", "black"))
    with raises(InputError, field="resume", code="pictures_changed"):
        resume(base, tmp_path)
    picture_zip(tmp_path / "p.zip")
    with raises(InputError, field="resume", code="base_changed"):
        resume(small_base("v_prediction", "sd2"), tmp_path)
    replace(record, inputs={**record.inputs, "lora_rank": 3}).write(run)
    with raises(InputError, field="resume", code="settings_changed") as caught:
        resume(base, tmp_path)
    assert "lora_rank 3" in str(caught.value)
    record.write(run)
    (tmp_path / "p.zip").unlink()
    with raises(InputError, field="resume", code="pictures_gone"):
        resume(base, tmp_path)


def test_checkpoints_of_another_run_are_refused(tmp_path: Path, base: DiffusionBase) -> None:
    interrupted(base, tmp_path / "one")
    interrupted(base, tmp_path / "other", seed=5)
    for path in (tmp_path / "one" / "run" / "checkpoints").iterdir():
        path.unlink()
    for path in (tmp_path / "other" / "run" / "checkpoints").iterdir():
        path.rename(tmp_path / "one" / "run" / "checkpoints" / path.name)
    with raises(InputError, field="resume", code="foreign_checkpoint"):
        resume(base, tmp_path / "one")


@pytest.mark.parametrize(
    ("text", "code"), [(None, "no_run"), ("{", "unreadable_run"), ('{"format": 99}', "unreadable_run")]
)
def test_a_folder_without_a_readable_record_is_refused(tmp_path: Path, text: str | None, code: str) -> None:
    if text is not None:
        (tmp_path / "run.json").write_text(text)
    with raises(InputError, field="resume", code=code):
        RunRecord.read(RunFolder(tmp_path))


def test_a_state_comes_back_as_it_was(tmp_path: Path) -> None:
    shared = torch.arange(6).reshape(2, 3)
    tree = {
        "a": [1, 2.5, None, True, "x"],
        "b": (shared, shared.t()),
        "c": {0: torch.tensor(1e-9), "$tensor": "a text"},
        "d": float("inf"),
        "e": torch.Generator().get_state(),
        "f": torch.ones(2, dtype=torch.bfloat16),
    }
    write_state(tmp_path / "s.safetensors", tree)
    read = read_state(tmp_path / "s.safetensors")
    assert read["a"] == tree["a"]
    assert read["d"] == tree["d"]
    assert isinstance(read["b"], tuple)
    assert list(read["c"]) == [0, "$tensor"]
    assert torch.equal(read["b"][1], shared.t())
    assert torch.equal(read["e"], tree["e"])  # type: ignore[arg-type]
    assert read["f"].dtype == torch.bfloat16
    assert [path.name for path in tmp_path.iterdir()] == ["s.safetensors"]


def test_a_state_of_something_else_is_refused(tmp_path: Path) -> None:
    with pytest.raises(TypeError):
        write_state(tmp_path / "s.safetensors", {"a": object()})
    (tmp_path / "p.safetensors").write_bytes(b"\x80\x04pickle")
    with pytest.raises(ValueError, match=r"p\.safetensors"):
        read_state(tmp_path / "p.safetensors")


def test_a_file_that_is_not_whole_takes_nothings_place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "s.safetensors"
    write_state(path, {"step": 1})
    monkeypatch.setattr(Path, "replace", lambda self, target: (_ for _ in ()).throw(Killed))
    with pytest.raises(Killed):
        write_state(path, {"step": 2})
    assert read_state(path) == {"step": 1}


def test_the_newest_checkpoints_stay(tmp_path: Path, base: DiffusionBase) -> None:
    names: list[list[str]] = []
    save = CheckpointFolder.save

    def noted(self: CheckpointFolder, *arguments: Any) -> Path:
        path = save(self, *arguments)
        names.append(sorted(each.name for each in self.path.iterdir()))
        return path

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(CheckpointFolder, "save", noted)
        begin(base, tmp_path, RunOptions(save_every=1, keep=2))
    assert names[1] == ["stage-1-tokens-000001.safetensors", "stage-1-tokens-000002.safetensors"]
    assert names[3] == ["stage-1-tokens-000003.safetensors", "stage-2-LoRA-000000.safetensors"]
    assert all(len(each) <= 2 for each in names)


def test_without_save_every_nothing_is_written(tmp_path: Path, base: DiffusionBase) -> None:
    begin(base, tmp_path, RunOptions())
    assert not (tmp_path / "run" / "checkpoints").exists()


@pytest.mark.parametrize(("steps", "expected"), [(1, 1), (8, 2), (700, 175), (4000, 250)])
def test_a_run_saves_each_quarter_at_most_250_steps_apart(steps: int, expected: int) -> None:
    assert save_interval(steps) == expected


def test_callbacks_go_on_too(tmp_path: Path, base: DiffusionBase, monkeypatch: pytest.MonkeyPatch) -> None:
    class Counter(TrainingCallback):
        def __init__(self) -> None:
            self.seen: list[tuple[str, int]] = []

        def on_step_end(self, stage: StageRun) -> None:
            self.seen.append((stage.spec.name, stage.step))

        def state_dict(self) -> dict[str, Any]:
            return {"seen": list(self.seen)}

        def load_state_dict(self, state: Any) -> None:
            self.seen = list(state["seen"])

    counters: list[Counter] = []

    class Reporter(Counter):
        def __init__(self, on_progress: object) -> None:
            super().__init__()
            counters.append(self)

    monkeypatch.setattr(trainer_module, "ProgressReporter", Reporter)
    interrupted(base, tmp_path)
    resume(base, tmp_path)
    every_step = [("stage 1 (tokens)", 1), ("stage 1 (tokens)", 2), ("stage 1 (tokens)", 3)]
    every_step += [("stage 2 (LoRA)", step) for step in range(1, 5)]
    assert len(counters) == 2
    assert counters[1].seen == every_step


def test_the_callbacks_come_in_the_order_that_resuming_needs(base: DiffusionBase, tmp_path: Path) -> None:
    record = RunRecord({}, {"start_from": ""}, [], save_every=1)
    names = [type(each) for each in Trainer(base, tmp_path)._callbacks([], record, None, dict)]
    assert names[-2:] == [CheckpointWriter, StopRequest]


@pytest.mark.slow
def test_processes_that_are_killed_at_random_moments_go_on_to_the_same_bytes() -> None:
    """The whole campaign is ``python -m tests.training.kill_campaign``."""
    command = [sys.executable, "-m", "tests.training.kill_campaign", "--kills", "5", "--seed", str(os.getpid())]
    ended = subprocess.run(command, capture_output=True, text=True, check=False, timeout=1200)
    assert ended.returncode == 0, ended.stdout + ended.stderr
