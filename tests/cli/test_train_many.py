"""``lora-service train-many``: the lines of a file as trainings in the same batches."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lora_service.cli.train_many import train_many_command
from lora_service.lora.files import read_lora
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
    result = run([job(), job(steps=3), job(), {"input": STEPS}, job("me/other", preset="no")])
    said = str(result.exception)
    for part in (
        "line 2: steps is 3",
        "line 3: the name 'dog' is line 1's",
        "line 4: instance_data is None",
        "line 5: preset is 'no'",
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
