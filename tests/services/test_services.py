"""The frame of both services: one job's output at a time, and what a failed job leaves."""

import base64
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image, ImageChops

from lora_service.errors import InputError, LinkError, LoraServiceError, WrongBaseError
from lora_service.lora.files import write_lora
from lora_service.lora.weights import LoraLayer, LoraWeights
from lora_service.services.inference_service import InferenceService
from lora_service.services.model_service import JobLog, ModelService, OutputFolder, ignore_metric
from lora_service.services.training_report import report
from lora_service.services.training_service import TrainingService, TrainingUpload
from lora_service.settings import Settings
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.optimization.loop import LoopReport
from lora_service.training.runs.run_folder import RunOptions, StopSignal
from tests.errors import raises
from tests.lora.lora_fakes import random_lora, save
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


def test_a_mask_may_be_transparent_where_the_picture_stays(inference: InferenceService, tmp_path: Path) -> None:
    image, mask = Image.effect_noise((32, 32), 90).convert("RGB"), Image.new("RGBA", (32, 32))
    mask.paste("white", (8, 8, 24, 24))
    image.save(tmp_path / "image.png")
    mask.save(tmp_path / "mask.png")
    [path] = inference.run(
        DRAW | {"num_inference_steps": 2}, image=tmp_path / "image.png", mask=tmp_path / "mask.png", log=quiet
    )
    with Image.open(path) as opened:
        changed = ImageChops.difference(opened.convert("RGB"), image).getbbox()
    assert changed is not None
    assert changed[0] >= 8
    assert changed[3] <= 24


@pytest.mark.parametrize("value", ["/etc/passwd", "file:///etc/passwd"])
def test_a_mask_that_is_no_upload_is_not_opened(inference: InferenceService, tmp_path: Path, value: str) -> None:
    Image.new("RGB", (32, 32)).save(tmp_path / "image.png")
    with raises(InputError, field="mask"):
        inference.run(DRAW, image=tmp_path / "image.png", mask=value, log=quiet)


def test_each_pictures_seed_and_the_previews_asked_for_are_metrics(inference: InferenceService) -> None:
    metrics: list[tuple[str, object]] = []
    inputs = DRAW | {"num_outputs": 3, "seed": 2**32 - 1, "num_inference_steps": 3, "preview_every": 1}
    inference.run(inputs, record_metric=lambda name, value: metrics.append((name, value)), log=quiet)
    assert ("seeds", f"{2**32 - 1} 0 1") in metrics
    previews = [str(value) for name, value in metrics if name == "preview"]
    assert [value[:23] for value in previews] == ["data:image/jpeg;base64,"] * 2 + [""]
    with Image.open(io.BytesIO(base64.b64decode(previews[0][23:]))) as preview:
        assert preview.size == (32, 32)


@pytest.mark.parametrize("error", [RuntimeError("a defect"), KeyboardInterrupt()], ids=["defect", "cancel"])
def test_only_a_defect_leaves_its_traceback_in_the_log(
    error: BaseException, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    class Failing(ModelService):
        folder_prefix = "lora-test-"

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


def test_class_pictures_reach_the_training_as_a_file_only(training: TrainingService, tmp_path: Path) -> None:
    pictures, of_class = picture_zip(tmp_path / "a.zip"), picture_zip(tmp_path / "b.zip", ("black",))
    inputs, lines = STEPS | {"preservation": "prior", "class_word": "dog"}, list[str]()
    result = training.train(TrainingUpload(pictures, "", of_class), inputs, log=lines.append)
    assert set(result.stages["stage 2"].parts) == {"instance", "class"}
    assert any(line.startswith("class pictures: 1 at 32 × 32") for line in lines)
    for class_data, choice in (("/etc/passwd", "prior"), (of_class, "none")):
        with raises(InputError, field="class_data"):
            training.train(TrainingUpload(pictures, "", class_data), inputs | {"preservation": choice}, log=quiet)


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
        TrainingUpload(file, links).check(TrainConfig())


def test_a_run_folder_is_kept_and_none_is_used_twice(training: TrainingService, tmp_path: Path) -> None:
    upload, run = TrainingUpload(picture_zip(tmp_path / "pictures.zip"), ""), tmp_path / "dog-run"
    path = training.train(upload, STEPS, log=quiet, run_folder=run).path
    training.close()
    before = path.read_bytes()
    with raises(InputError, field="run_folder", code="run_exists"):
        training.train(upload, STEPS | {"seed": 2}, log=quiet, run_folder=run)
    with raises(InputError, field="resume", code="run_finished"):
        training.resume(run, log=quiet)
    assert path.read_bytes() == before
    with pytest.raises(LoraServiceError):
        training.train(upload, STEPS | {"resolution": 33}, log=quiet, run_folder=tmp_path / "failed-run")
    assert not (tmp_path / "failed-run").exists()  # nothing was in it


def test_a_service_goes_on_with_a_run_and_its_lora(tmp_path: Path) -> None:
    upload = TrainingUpload(picture_zip(tmp_path / "pictures.zip"), "")
    with TrainingService(Settings(), allow_local=True) as service:
        first = service.train(upload, STEPS, log=quiet, run_folder=tmp_path / "first")
        inputs = STEPS | {"start_from": str(first.path), "seed": 3}
        stop = StopSignal(requested=True)
        whole = service.train(upload, inputs, log=quiet, run_folder=tmp_path / "whole")
        options = RunOptions(save_every=1, stop=stop)
        half = service.train(upload, inputs, log=quiet, run_folder=tmp_path / "half", options=options)
        assert half.interrupted
        assert half.resolved.trigger == ""
        assert whole.resolved.trigger == first.resolved.trigger
        first.path.unlink()  # the run has a copy
        assert service.resume(tmp_path / "half", log=quiet).path.read_bytes() == whole.path.read_bytes()


def test_a_server_starts_from_no_file_of_its_own(training: TrainingService, tmp_path: Path) -> None:
    upload = TrainingUpload(picture_zip(tmp_path / "pictures.zip"), "")
    with raises(LinkError, field="start_from"):
        training.train(upload, STEPS | {"start_from": str(tmp_path / "pictures.zip")}, log=quiet)


def test_a_training_that_diverged_is_recorded(training: TrainingService, tmp_path: Path) -> None:
    stage = LoopReport(3, 1.0, [0.5], "no number any more by step 5", diverged_at=5)
    result = training.train(TrainingUpload(picture_zip(tmp_path / "pictures.zip"), ""), STEPS, log=quiet)
    metrics: dict[str, Any] = {}
    report(replace(result, stages={"stage 2": stage}), metrics.__setitem__, quiet)
    assert metrics["diverged_at"] == 5


def lora_file(path: Path, weights: LoraWeights) -> str:
    write_lora(path, weights)
    return str(path)


def local_inference() -> InferenceService:
    return InferenceService(Settings(), allow_local=True)


def parsed_names(service: InferenceService) -> list[str]:
    return [file.path.name for file, *_ in service.loras._parsed]


@pytest.mark.attack("refused LoRAs in memory (G6)")
def test_only_loras_that_were_drawn_with_stay_in_memory(tmp_path: Path) -> None:
    base = small_base()
    good = lora_file(tmp_path / "good.safetensors", random_lora({"unet": base.unet}))
    layer = LoraLayer(torch.ones(1, 7), torch.ones(9, 1), 1.0)
    bad = lora_file(tmp_path / "bad.safetensors", LoraWeights({"unet": {"conv_in": layer}}))
    with local_inference() as service:
        with raises(WrongBaseError):
            service.run(DRAW | {"lora_urls": f"{good}|{bad}"}, log=quiet)
        assert parsed_names(service) == []
        assert service.loras._used == {}
        service.run(DRAW | {"lora_urls": good}, log=quiet)
        assert parsed_names(service) == ["good.safetensors"]


@pytest.mark.attack("refused LoRAs in memory (G6)")
def test_loras_of_many_small_tensors_count_with_the_memory_they_hold(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = small_base()
    lora = random_lora({"unet": base.unet}, rank=1)
    files = [lora_file(tmp_path / f"{number}.safetensors", lora) for number in range(3)]
    monkeypatch.setattr("lora_service.services.request_loras.PARSED_BYTES", int(2.5 * lora.memory_bytes))
    with local_inference() as service:
        for file in files:
            service.run(DRAW | {"lora_urls": file}, log=quiet)
        assert parsed_names(service) == ["1.safetensors", "2.safetensors"]
        service.run(DRAW | {"lora_urls": "|".join(files)}, log=quiet)  # those of the last request stay
        assert len(parsed_names(service)) == 3


def test_the_log_says_what_of_a_lora_was_left_out(tmp_path: Path) -> None:
    base = small_base()
    tensors = {
        f"unet.{path}.{suffix}": tensor
        for _, path, layer in random_lora({"unet": base.unet})
        for suffix, tensor in layer.tensors.items()
    }
    path = save(tmp_path / "lora.safetensors", tensors | {"bundle_emb.cat.clip_l_out": torch.ones(1, 4)})
    lines: list[str] = []
    with local_inference() as service:
        service.run(DRAW | {"lora_urls": str(path)}, log=lines.append)
    assert [line for line in lines if line.startswith("warning") and "clip_l_out" in line]


def test_the_progress_is_recorded_as_numbers_for_the_whole_job(training: TrainingService, tmp_path: Path) -> None:
    recorded: list[tuple[str, float | int | str]] = []
    shown: list[Any] = []
    training.train(
        TrainingUpload(picture_zip(tmp_path / "pictures.zip"), ""),
        STEPS,
        log=quiet,
        record_metric=lambda name, value: recorded.append((name, value)),
        on_progress=shown.append,
    )
    stages = [progress.stage for progress in shown]
    assert stages == ["stage 1 (tokens)", "stage 2 (LoRA)"]
    assert [value for name, value in recorded if name == "stage"] == stages
    assert [name for name, _ in recorded[:5]] == ["stage", "step", "of", "loss", "seconds_left"]
    left = [value for name, value in recorded if name == "seconds_left"]
    assert left[0] >= left[1] == 0  # type: ignore[operator]
