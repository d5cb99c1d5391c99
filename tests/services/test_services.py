"""The frame of both services: one job's output at a time, and what a failed job leaves."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from lora_service.errors import InputError, LinkError
from lora_service.services.inference_service import InferenceService
from lora_service.services.model_service import JobLog, ModelService, OutputFolder, ignore_metric
from lora_service.services.training_service import TrainingService, TrainingUpload
from lora_service.settings import Settings
from tests.errors import raises
from tests.small_base import picture_zip, small_base

STEPS = {"task": "object", "seed": 1, "max_train_steps_ti": 1, "max_train_steps_tuning": 1, "resolution": 32}
DRAW = {"prompt": "a dog", "num_inference_steps": 1, "seed": 1}


@pytest.fixture(autouse=True)
def _small_base(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr("lora_service.models.loading.load_base", lambda settings, for_training=False: small_base())
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))


@pytest.fixture
def training() -> Iterator[TrainingService]:
    with TrainingService(Settings()) as service:
        yield service


@pytest.fixture
def inference() -> Iterator[InferenceService]:
    with InferenceService(Settings()) as service:
        yield service


def quiet(line: str) -> None:
    pass


def outputs(folder: Path) -> list[Path]:
    return sorted(folder.glob("lora-*"))


def test_a_folder_is_renewed_and_the_one_before_goes(tmp_path: Path) -> None:
    folder = OutputFolder("lora-test-")
    first = folder.renew()
    second = folder.renew()
    assert outputs(tmp_path) == [second]
    assert first != second
    folder.clear()
    folder.clear()
    assert outputs(tmp_path) == []


def test_one_jobs_output_lies_there_until_the_next_job_and_none_after_the_end(
    training: TrainingService, tmp_path: Path
) -> None:
    upload = TrainingUpload(picture_zip(tmp_path / "pictures.zip"), "")
    paths = [training.train(upload, STEPS, log=quiet).path for _ in range(2)]
    assert [path.exists() for path in paths] == [False, True]
    training.close()
    assert outputs(tmp_path) == []


def test_a_failed_job_leaves_nothing_and_the_next_one_succeeds(inference: InferenceService, tmp_path: Path) -> None:
    before = [path.read_bytes() for path in inference.run(DRAW, log=quiet)]
    with raises(InputError, field="width"):
        inference.run(DRAW | {"width": 17}, log=quiet)
    assert outputs(tmp_path) == []
    assert [path.read_bytes() for path in inference.run(DRAW, log=quiet)] == before


@pytest.mark.parametrize("error", [RuntimeError("a defect"), KeyboardInterrupt()], ids=["defect", "cancel"])
def test_only_a_defect_leaves_its_traceback_in_the_log(
    error: BaseException, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failing(ModelService):
        def run(self) -> None:
            with self._job(JobLog(quiet, ignore_metric)):
                (self._output.renew() / "half").touch()
                raise error

    with pytest.raises(type(error)), Failing(Settings()) as service:
        service.run()
    assert ("a defect" in capsys.readouterr().err) == isinstance(error, Exception)
    assert outputs(tmp_path) == []


def test_a_users_mistake_leaves_no_traceback(training: TrainingService, capsys: pytest.CaptureFixture[str]) -> None:
    with raises(InputError, field="resolution"):
        training.train(TrainingUpload(None, "https://example.org/a.zip"), STEPS | {"resolution": 5}, log=quiet)
    assert capsys.readouterr().err == ""


def test_the_error_of_a_link_names_the_input_that_holds_it(
    training: TrainingService, inference: InferenceService
) -> None:
    with raises(LinkError, field="instance_data_urls", code="unsupported_scheme") as caught:
        training.train(TrainingUpload(None, "ftp://example.org/a.zip"), STEPS, log=quiet)
    assert ".safetensors" not in str(caught.value)  # pictures are wanted here
    with raises(LinkError, field="lora_urls", code="unsupported_scheme"):
        inference.run(DRAW | {"lora_urls": "ftp://example.org/a.safetensors"}, log=quiet)


@pytest.mark.parametrize(
    ("file", "links", "field"),
    [
        (None, " ", "instance_data"),
        (Path("a.zip"), "https://example.org/a.zip", "instance_data_urls"),
        ("/etc/passwd", "", "instance_data"),
    ],
    ids=["neither", "both", "a path on the server"],
)
def test_an_upload_is_one_file_or_links(file: Any, links: str, field: str) -> None:
    with raises(InputError, field=field):
        TrainingUpload(file, links).check()
