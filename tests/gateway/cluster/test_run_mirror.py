"""The run folder of a training on a worker: kept with the gateway, brought to the next worker, wishes heeded."""

from __future__ import annotations

from pathlib import Path

import httpx
import pytest

from lora_service.gateway.engine.ray.run_mirror import RunMirror
from lora_service.gateway.queue.janitor import Janitor
from tests.gateway.cluster.held_training import HeldEngine, train
from tests.gateway.in_process import Running


def fill(folder: Path, files: dict[str, bytes]) -> None:
    for name, content in files.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)


def stored(running: Running) -> list[Path]:
    return list((running.gateway.settings.gateway_folder / "files").iterdir())


def test_what_one_worker_wrote_another_goes_on_from(running: tuple[Running, HeldEngine], tmp_path: Path) -> None:
    gateway, engine = running
    job = train(gateway, engine)
    before = len(stored(gateway))
    first = RunMirror(tmp_path / "first", engine.links[0])
    first.restore()
    fill(first._folder, {
        "run.json": b"{}", "checkpoints/stage-1-000010.safetensors": b"old", "upload/a dög.zip": b"zip", ".lock": b"",
        "samples/stage-1-step-000010.png": b"drawn", "unpacked/1.jpg": b"no", "checkpoints/.x.part": b"no",
    })  # fmt: skip
    first.copy()
    (first._folder / "checkpoints/stage-1-000010.safetensors").unlink()
    fill(first._folder, {"checkpoints/stage-2-000020.safetensors": b"new" * 1000, "run.json": b'{"a": 1}'})
    first.copy()
    second = RunMirror(tmp_path / "second", engine.links[0])
    fill(second._folder, {"left": b"of an attempt before"})
    second.restore()
    found = {path.relative_to(second._folder).as_posix(): path.read_bytes()
             for path in second._folder.rglob("*") if path.is_file()}  # fmt: skip
    assert found == {
        "run.json": b'{"a": 1}', "checkpoints/stage-2-000020.safetensors": b"new" * 1000, "upload/a dög.zip": b"zip",
    }  # fmt: skip
    assert len(stored(gateway)) == before + 3  # what was replaced is not kept
    gateway.call("POST", f"/v1/trainings/{job['id']}/cancel")
    Janitor(gateway.gateway).sweep()
    assert len(stored(gateway)) == before + 1  # the sample is the job's, the rest was for its run


def test_samples_are_shown_and_wishes_heeded(running: tuple[Running, HeldEngine], tmp_path: Path) -> None:
    gateway, engine = running
    job = train(gateway, engine)
    assert gateway.call("POST", f"/v1/trainings/{job['id']}/save").status_code == 409  # nothing is learned yet
    mirror = RunMirror(tmp_path / "run", engine.links[0])
    mirror.restore()
    fill(mirror._folder, {"run.json": b"{}"})
    mirror.copy()
    assert gateway.call("POST", f"/v1/trainings/{job['id']}/save").status_code == 202
    mirror.copy()
    assert (mirror._folder / "save").exists()
    (mirror._folder / "save").unlink()  # as the training does
    fill(
        mirror._folder, {"saved/dog-stage-2-step-000030.safetensors": b"lora", "samples/stage-2-step-000030.png": b"p"}
    )
    mirror.copy()
    mirror.copy()
    assert not (mirror._folder / "save").exists()
    assert gateway.call("POST", f"/v1/trainings/{job['id']}/stop").json()["is_stopping"]
    mirror.copy()
    assert (mirror._folder / "stop").exists()
    gateway.call("POST", f"/v1/trainings/{job['id']}/cancel")


def test_an_attempt_that_is_over_changes_nothing(running: tuple[Running, HeldEngine], tmp_path: Path) -> None:
    gateway, engine = running
    job = train(gateway, engine)
    mirror = RunMirror(tmp_path / "run", engine.links[0])
    mirror.restore()
    mirror.start()
    gateway.call("POST", f"/v1/trainings/{job['id']}/cancel")
    before = len(stored(gateway))
    fill(mirror._folder, {"run.json": b"{}"})
    mirror.close()
    assert len(stored(gateway)) == before
    assert not mirror._folder.exists()
    assert httpx.get(engine.links[0]).status_code == 410


@pytest.mark.attack("links of run folders", count=9)
def test_a_link_is_of_one_attempt_and_a_path_stays_in_the_folder(running: tuple[Running, HeldEngine]) -> None:
    gateway, engine = running
    job = train(gateway, engine)
    link = engine.links[0]
    key = link.rpartition("/")[2]
    tricks = [link.replace("/runs/", "/jobs/"), link.replace(f"/{key}", f"/2-{key.partition('-')[2]}"), f"{link}0"]
    tricks += [link.replace(job["id"], "a" * 26)]
    for trick in tricks:
        assert httpx.post(trick, json={"present": []}).status_code == 403, trick
    for name in ("..%2f..%2fkey", "a%2f..%2f..%2fkey", "%2fetc%2fpasswd", ".lock", "a%5c..%5cb"):
        assert httpx.put(f"{link}/{name}", content=b"x").status_code in (400, 404), name
    gateway.call("POST", f"/v1/trainings/{job['id']}/cancel")
