"""Many jobs through a gateway: bad lines before anything begins, one file of results, interruptions."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner, Result

from lora_service.cli import batch
from lora_service.cli.batch import batch_command
from lora_service.errors import InputError, ServingError
from tests.gateway.in_process import Running, run_gateway


@pytest.fixture
def running(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Running]:
    monkeypatch.setattr(batch, "_LOOK_SECONDS", 0.02)
    with run_gateway(tmp_path / "gateway", rate_limit=100_000) as running:
        yield running


def write(folder: Path, *lines: Any) -> Path:
    path = folder / "jobs.jsonl"
    path.write_text("".join(f"{line if isinstance(line, str) else json.dumps(line)}\n" for line in lines))
    return path


def run(running: Running, jobs: Path, *options: str) -> Result:
    arguments = [str(jobs), "--url", running.url, *options]
    return CliRunner().invoke(batch_command, arguments, standalone_mode=False)


def entries(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_each_line_has_one_result(running: Running, tmp_path: Path) -> None:
    (tmp_path / "dog.zip").write_bytes(b"pictures")
    training = {"input": {"instance_data": "@dog.zip"}, "destination": "me/dog"}
    lines = [{"input": {"prompt": f"picture {number}"}} for number in range(7)]
    jobs = write(tmp_path, *lines, "", training, {"input": {"behaviour": "fail"}})
    result = run(running, jobs, "--at-once", "3", "--files", str(tmp_path / "files"))
    assert isinstance(result.exception, SystemExit)  # one has failed
    found = entries(tmp_path / "jobs-results.jsonl")
    assert [entry["line"] for entry in found] == [*range(1, 8), 9, 10]
    assert [entry["status"] for entry in found] == ["succeeded"] * 8 + ["failed"]
    assert found[-1]["error"] == "It was asked to fail."
    assert found[7]["output"]["version"].startswith("me/dog:")
    assert (tmp_path / "files" / found[7]["files"][0]).read_bytes() == b"lora"
    assert len(list((tmp_path / "files").iterdir())) == 8
    assert len(running.engine.begun) == 8
    assert len(running.call("GET", "/v1/files").json()["results"]) == 1  # uploaded once


def test_bad_lines_are_named_before_anything_begins(running: Running, tmp_path: Path) -> None:
    good = {"input": {"prompt": "a cat"}}
    jobs = write(tmp_path, good, "{", {"inputs": {}}, {"input": {"image": "@no.png"}}, {"destination": "nowhere"})
    result = run(running, jobs)
    assert isinstance(result.exception, InputError)
    assert [f"line {number}:" in str(result.exception) for number in range(1, 6)] == [False, True, True, True, True]
    jobs = write(tmp_path, good, {"input": {"propmt": "a cat"}}, {"input": {"num_outputs": 99}}, {"model": "me/none"})
    result = run(running, jobs)
    assert isinstance(result.exception, InputError)
    assert result.exception.code == "bad_lines"
    assert [f"line {number}:" in str(result.exception) for number in range(1, 5)] == [False, True, True, True]
    assert running.engine.begun == []
    assert not (tmp_path / "jobs-results.jsonl").exists()


def test_an_interrupted_batch_goes_on_and_does_nothing_twice(
    running: Running, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = write(tmp_path, *({"input": {"prompt": str(number), "seconds": 0.05}} for number in range(12)))
    output, note = tmp_path / "jobs-results.jsonl", batch.Results.note

    def interrupted(self: batch.Results, job: Any, shown: Any, **more: Any) -> None:
        note(self, job, shown, **more)
        if sum(self.status(each) == "succeeded" for each in self_jobs) == 4:
            raise KeyboardInterrupt

    self_jobs = batch.read_jobs(jobs)
    monkeypatch.setattr(batch.Results, "note", interrupted)
    assert run(running, jobs, "--at-once", "5").exit_code != 0
    monkeypatch.setattr(batch.Results, "note", note)
    with output.open("a") as file:
        file.write('{"line": 12, "dig')  # as a machine leaves it that loses its power
    result = run(running, jobs, "--at-once", "5")
    assert result.exception is None, result.exception
    found = entries(output)
    assert [(entry["line"], entry["status"]) for entry in found] == [(number, "succeeded") for number in range(1, 13)]
    assert sorted(job["prompt"] for job in running.engine.inputs) == sorted(str(number) for number in range(12))
    assert run(running, jobs).exception is None  # there is nothing left
    assert len(running.engine.begun) == 12


@pytest.mark.parametrize(
    ("content", "code"), [("notes\n", "no_results"), ('{"line": 1, "digest": "x"}\n', "other_jobs")]
)
def test_a_file_that_holds_something_else_is_left_alone(
    running: Running, tmp_path: Path, content: str, code: str
) -> None:
    jobs = write(tmp_path, {"input": {}})
    (tmp_path / "jobs-results.jsonl").write_text(content)
    result = run(running, jobs)
    assert isinstance(result.exception, InputError)
    assert result.exception.code == code
    assert (tmp_path / "jobs-results.jsonl").read_text() == content


def test_a_gateway_that_is_away_is_said_to_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(batch, "_PATIENCE_SECONDS", 0.0)
    arguments = [str(write(tmp_path, {"input": {}})), "--url", "http://127.0.0.1:9"]
    result = CliRunner().invoke(batch_command, arguments, standalone_mode=False)
    assert isinstance(result.exception, ServingError)
    assert result.exception.code == "gateway_away"
