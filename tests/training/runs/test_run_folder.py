"""The folder of a run: its names, and whom it is kept from."""

from pathlib import Path

import pytest

from lora_service.errors import InputError
from lora_service.training.runs.run_folder import RunFolder
from tests.errors import raises


def test_a_free_name_is_found(tmp_path: Path) -> None:
    names = []
    for _ in range(3):
        run = RunFolder.free(tmp_path / "dog.v1-run")
        run.create()
        names.append(run.path.name)
    assert names == ["dog.v1-run", "dog.v1-run-2", "dog.v1-run-3"]


@pytest.mark.parametrize(("name", "code"), [("run.json", "run_exists"), ("letter.txt", "folder_not_empty")])
def test_a_folder_with_something_in_it_is_refused_and_kept(tmp_path: Path, name: str, code: str) -> None:
    (tmp_path / name).write_text("precious")
    with raises(InputError, field="run_folder", code=code) as caught:
        RunFolder(tmp_path).create()
    assert ("--resume" in str(caught.value)) == (code == "run_exists")
    assert (tmp_path / name).read_text() == "precious"


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with raises(InputError, field="run_folder", code="not_a_folder"):
        RunFolder(tmp_path / "file").create()


def test_two_processes_do_not_train_in_one_folder(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.create()
    with run.in_use(), raises(InputError, field="run_folder", code="run_in_use"), RunFolder(run.path).in_use():
        pass


def test_a_folder_without_a_run_goes_and_one_with_a_run_stays(tmp_path: Path) -> None:
    empty, used = RunFolder(tmp_path / "empty"), RunFolder(tmp_path / "used")
    for run in (empty, used):
        run.create()
        with run.in_use():
            if run is used:
                run.record.write_text("{}")
    assert [path.name for path in tmp_path.iterdir()] == ["used"]
