"""``lora-service train-many``: the lines of a file as trainings in the same batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lora_service.cli.train_many import train_many_command
from lora_service.lora.files import read_lora
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.trainer import Trainer, TrainResult
from tests.small_base import picture_zip, small_base

STEPS = {"task": "object", "max_train_steps_ti": 1, "max_train_steps_tuning": 2, "resolution": 32, "samples": 0}


@pytest.fixture(autouse=True)
def _small_base(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("lora_service.models.loading.load_base", lambda settings, for_training=False: small_base())
    monkeypatch.chdir(tmp_path)
    picture_zip(tmp_path / "dog.zip")


def run(lines: list[dict[str, Any]], *options: str) -> Result:
    Path("jobs.jsonl").write_text("\n".join(json.dumps(line) for line in lines))
    return CliRunner().invoke(train_many_command, ["jobs.jsonl", *options])


def job(destination: str = "", **inputs: Any) -> dict[str, Any]:
    named = {"destination": destination} if destination else {}
    return {"input": {"instance_data": "@dog.zip", **STEPS, **inputs}, **named}


def test_each_line_becomes_a_file_of_its_own_and_a_failed_one_leaves_the_others() -> None:
    result = run([job(seed=1), job("me/second", seed=2, trigger="zwx dog"), job("me/bad", resolution=33, seed=3)])
    assert result.exit_code == 1, result.output
    assert sorted(path.name for path in Path("loras").glob("*.safetensors")) == [
        "dog.safetensors",
        "second.safetensors",
    ]
    assert read_lora(Path("loras/second.safetensors")).trigger == "zwx dog"
    assert "second: done in" in result.output
    assert "bad: failed: resolution is 33" in result.output
    assert "1 of 3 failed" in result.output
    assert Path("loras/second-run/run.json").exists()


def test_all_lines_are_checked_before_the_first_job_begins() -> None:
    result = run(
        [
            job(),
            job(steps=3),
            job(),
            {"input": STEPS},
            job("me/other", preset="no"),
            {**job("me/sdxl"), "model": "me/sdxl"},
        ]
    )
    said = str(result.exception)
    for part in (
        "line 2: steps is 3",
        "line 3: the name 'dog' is line 1's",
        "line 4: instance_data is None",
        "line 5: preset is 'no'",
        "line 6: model is 'me/sdxl'",
    ):
        assert part in said
    assert not Path("loras").exists()


def test_a_file_is_not_overwritten_without_force() -> None:
    Path("loras").mkdir()
    Path("loras/dog.safetensors").write_text("mine")
    result = run([job(seed=1)])
    assert result.exception is not None
    assert "--force" in str(result.exception)
    assert Path("loras/dog.safetensors").read_text() == "mine"
    assert run([job(seed=1)], "--force").exit_code == 0
    assert read_lora(Path("loras/dog.safetensors")).rank


def test_several_processes_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRAIN_PROCESSES", "2")
    result = run([job(seed=1)])
    assert "TRAIN_PROCESSES is 2, but it must be 1" in str(result.exception)


def test_a_launcher_is_refused_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert "TRAIN_PROCESSES is 2, but it must be 1" in str(run([job(seed=1)]).exception)


def test_trackers_that_have_one_run_at_a_time_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRACKERS", "wandb")
    assert "TRACKERS is 'wandb', but it must be tensorboard" in str(run([job(seed=1)]).exception)


def test_a_link_that_cannot_be_fetched_and_a_defect_leave_the_other_jobs_alone(
    monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    plain = Trainer.run

    def broken(self: Trainer, source: Path, config: TrainConfig, **more: Any) -> TrainResult:
        if config.seed == 3:
            raise KeyError("gone")
        return plain(self, source, config, **more)

    monkeypatch.setattr(Trainer, "run", broken)
    monkeypatch.setenv("CUDA_GRAPHS", "1")
    link = {"instance_data": None, "instance_data_urls": "http://127.0.0.1:9/dog.zip"}
    result = run([job("me/linked", seed=1, **link), job(seed=2), job("me/broken", seed=3)])
    assert result.exit_code == 1
    assert "linked: failed: The link leads to port 9" in result.output
    assert "broken: failed: KeyError: 'gone'" in result.output
    assert "Traceback" in result.stderr + capfd.readouterr().err
    assert "wrote loras/dog.safetensors" in result.output
    assert "warning: CUDA_GRAPHS does nothing on a cpu" in result.output
    assert sorted(path.name for path in Path("loras").iterdir()) == ["dog-run", "dog.safetensors"]


def test_files_of_other_inputs_are_read_too() -> None:
    assert run([job("me/first", seed=1)]).exit_code == 0
    result = run([job("me/second", seed=1, start_from="@loras/first.safetensors")])
    assert result.exit_code == 0, result.output
    assert "layers go on from start_from" in result.output


def test_links_and_names_that_differ_by_case_alone_are_refused_with_what_would_work() -> None:
    result = run([job("me/dog"), job("me/Dog"), {"input": {**STEPS, "instance_data": "https://example.org/dog.zip"}}])
    assert "line 2: the name 'Dog' is line 1's" in str(result.exception)
    assert "links go into instance_data_urls" in str(result.exception)
