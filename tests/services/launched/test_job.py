"""What goes over to the processes of a training, and what does not."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from lora_service.errors import BaseModelError, InputError, LoraServiceError, ProcessesError, SettingError
from lora_service.services.kept_runs import train_or_resume
from lora_service.services.launched.job import (
    ExchangeFolder,
    LaunchedJob,
    TrainJob,
    secret_variables,
    with_secrets,
    without_secrets,
)
from lora_service.services.launched.launched_training import _outcome
from lora_service.services.training_service import TrainingService, TrainingUpload
from lora_service.settings import Settings
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.runs.run_folder import RunOptions
from tests.errors import raises
from tests.small_base import picture_zip, small_base

RUN = "abcdefgh"


def test_errors_arrive_as_they_were() -> None:
    for error in (
        InputError("lora_rank", "x", "a number", code="a_code"),
        SettingError("DEVICE", "gpu", "cpu"),
        BaseModelError("it is none", code="b", field="BASE_MODEL"),
    ):
        same = pickle.loads(pickle.dumps(error))
        assert (type(same), str(same), same.__dict__) == (type(error), str(error), error.__dict__)


def test_every_error_arrives() -> None:
    kinds = [LoraServiceError]
    for kind in kinds:
        kinds += kind.__subclasses__()
        error = kind.__new__(kind, "a sentence")
        error.code, error.field = "code", "field"
        same = pickle.loads(pickle.dumps(error))
        assert (type(same), str(same), same.code, same.field) == (kind, "a sentence", "code", "field")


def test_tokens_go_by_the_environment_and_not_by_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    settings = Settings(hf_token=SecretStr("hf_secret"), civitai_token=SecretStr(""), max_pictures=7)
    job = TrainJob(TrainConfig.of({"seed": 5}), tmp_path, None, tmp_path, RunOptions(), 0.0)
    exchange = ExchangeFolder(tmp_path)
    exchange.write_job(LaunchedJob(job, without_secrets(settings), allow_local=False))
    assert b"hf_secret" not in (tmp_path / "job.pickle").read_bytes()
    assert secret_variables(settings) == {"HF_TOKEN": "hf_secret"}
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.delenv("CIVITAI_TOKEN", raising=False)
    read = exchange.read_job()
    assert with_secrets(read.settings) == settings
    assert read.job.config == job.config


def test_of_several_errors_the_one_that_explains_most_is_raised(tmp_path: Path) -> None:
    exchange = ExchangeFolder(tmp_path)
    with raises(ProcessesError, code="process_lost"):
        _outcome(exchange, 2)
    exchange.write_outcome(0, RuntimeError("the other side has gone"))
    with pytest.raises(RuntimeError, match="has gone"):
        _outcome(exchange, 2)
    exchange.killed.write_text('{"1": "SIGKILL"}')
    with raises(ProcessesError) as caught:
        _outcome(exchange, 2)
    assert "process 2 by SIGKILL" in str(caught.value)
    exchange.write_outcome(1, InputError("lora_rank", 0, "more"))
    with raises(InputError, field="lora_rank"):
        _outcome(exchange, 2)


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> TrainingService:
    """A service whose processes are this one."""

    def train_launched(launched: LaunchedJob, log: object, on_progress: object) -> object:
        with TrainingService(Settings()) as alone:
            return alone.run_job(launched.job, log, on_progress)  # type: ignore[arg-type]

    monkeypatch.setattr("lora_service.models.loading.load_base", lambda settings, for_training=False: small_base())
    monkeypatch.setattr("lora_service.services.training_service.train_launched", train_launched)
    return TrainingService(Settings(run_folders=tmp_path / "runs", train_processes=2))


def test_what_asks_for_checkpoints_is_refused(service: TrainingService, tmp_path: Path) -> None:
    upload = TrainingUpload(picture_zip(tmp_path / "p.zip"), "")
    with raises(InputError, field="save_every", code="several_processes"):
        service.train(upload, {}, options=RunOptions(save_every=5))
    with raises(InputError, field="resume", code="several_processes"):
        service.resume(tmp_path)


def test_a_training_that_was_lost_is_begun_anew_and_it_is_said(service: TrainingService, tmp_path: Path) -> None:
    record = tmp_path / "runs" / RUN / "run.json"
    record.parent.mkdir(parents=True)
    record.write_text('{"status": "running"}')
    upload, lines = TrainingUpload(picture_zip(tmp_path / "p.zip"), ""), list[str]()
    inputs = {"max_train_steps_ti": 0, "max_train_steps_tuning": 1, "resolution": 32, "samples": 0}
    path = train_or_resume(service, upload, inputs, RUN, log=lines.append)
    assert path.exists()
    assert any(line.startswith("warning: the training is begun anew") for line in lines)
    assert any("no checkpoints" in line for line in lines)
    assert not (tmp_path / "runs" / RUN / "checkpoints").exists()


def test_a_warm_service_has_the_base_on_disk_and_not_in_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    fetched: list[str] = []
    monkeypatch.setattr(
        "lora_service.models.hub_download.ensure_local", lambda settings: fetched.append(settings.base_model)
    )
    service = TrainingService(Settings(warm_up=True, train_processes=2, base_model="sdxl"))
    service.warm_up()
    assert fetched == ["sdxl"]
    assert not {"base", "judge"} & service.__dict__.keys()


@pytest.mark.parametrize("number", ["0", "1"])
def test_what_libraries_print_is_no_message(tmp_path: Path, number: str) -> None:
    code = (
        "import sys; from pathlib import Path; from lora_service.services.launched import process\n"
        "process.ExchangeFolder.read_job = lambda self: print('a line of some library')\n"
        "sys.exit(process.main(Path(sys.argv[1])))"
    )
    environment = os.environ | {"RANK": number}
    ended = subprocess.run(
        [sys.executable, "-c", code, str(tmp_path)], env=environment, capture_output=True, text=True, check=False
    )
    assert (ended.returncode, ended.stdout) == (1, "")
    assert "a line of some library" in ended.stderr
