"""Recorded steps: the same training as the eager one, on a device that records by remembering what to call."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_service.models.diffusion_base import DiffusionBase
from lora_service.settings import Settings
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.losses.batch_loss import BatchLoss
from lora_service.training.optimization.captured_gradients import CapturedGradients, CudaGraphs, PassRecorder
from lora_service.training.optimization.gradients import Gradients
from lora_service.training.trainer import Trainer
from tests.small_base import picture_zip, small_base
from tests.small_flow import small_flow_base
from tests.training.pass_recorder import Recorder

STEPS = {"task": "object", "seed": 1, "max_train_steps_ti": 4, "max_train_steps_tuning": 5, "resolution": 32}


def file_of(
    folder: Path, base: DiffusionBase, gradients: Gradients | None, log: list[str] | None = None, **inputs: Any
) -> bytes:
    """Train, and return the file."""
    folder.mkdir(exist_ok=True)
    settings = Settings(class_image_cache=folder / "cache")
    lines = [] if log is None else log
    trainer = Trainer(base, folder / "job", settings=settings, gradients=gradients, log=lines.append)
    return trainer.run(picture_zip(folder / "pictures.zip"), TrainConfig.of(STEPS | inputs)).path.read_bytes()


@pytest.mark.parametrize(
    "inputs",
    [
        {},
        {"train_batch_size": 2, "gradient_accumulation_steps": 2, "more_resolutions": "64"},
        {"learning_rate_text": 0, "continue_inversion": False, "optimizer": "prodigy"},
        {"preservation": "prior", "class_word": "dog", "num_class_images": 2},
        {"preservation": "output", "class_word": "dog", "ema_decay": 0.5},
    ],
    ids=["plain", "several shapes", "encoded once", "prior", "output"],
)
def test_a_recorded_training_makes_the_file_of_an_eager_one(tmp_path: Path, inputs: dict[str, Any]) -> None:
    recorder = Recorder()
    eager = file_of(tmp_path / "eager", small_base(), None, **inputs)
    assert (
        file_of(tmp_path / "recorded", small_base(), CapturedGradients(PassRecorder(recorder.record)), **inputs)
        == eager
    )
    assert recorder.recorded >= 2, "one stage after the other"
    assert recorder.replayed > recorder.recorded


@pytest.mark.parametrize("make", [lambda: small_base(family="sdxl"), lambda: small_flow_base("zimage")])
def test_other_families_too(tmp_path: Path, make: Callable[[], DiffusionBase]) -> None:
    recorder = Recorder()
    eager = file_of(tmp_path / "eager", make(), None)
    assert file_of(tmp_path / "recorded", make(), CapturedGradients(PassRecorder(recorder.record))) == eager
    assert recorder.replayed


def test_what_cannot_be_recorded_runs_eagerly_and_says_so_once(tmp_path: Path) -> None:
    def record(passes: Callable[[], BatchLoss]) -> Callable[[], BatchLoss]:
        passes()
        raise RuntimeError("operation not permitted when stream is capturing\nCUDA kernel errors might be …")

    log: list[str] = []
    eager = file_of(tmp_path / "eager", small_base(), None)
    assert (
        file_of(tmp_path / "recorded", small_base(), CapturedGradients(PassRecorder(record, log.append)), log) == eager
    )
    assert [line for line in log if "not recorded" in line] == [
        "warning: the steps are not recorded, which would be faster: operation not permitted when stream is capturing"
    ]


def test_a_setting_that_does_nothing_here_says_so(tmp_path: Path) -> None:
    log: list[str] = []
    trainer = Trainer(small_base(), tmp_path / "job", settings=Settings(cuda_graphs=True), log=log.append)
    config = TrainConfig.of(STEPS | {"max_train_steps_ti": 0, "max_train_steps_tuning": 1, "samples": 0})
    trainer.run(picture_zip(tmp_path / "pictures.zip"), config)
    assert "warning: CUDA_GRAPHS does nothing on a cpu" in log


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_card_steps_are_recorded_and_learn_the_same(tmp_path: Path) -> None:
    from lora_service.models.loading import load_base

    settings, reports = Settings(device="cuda"), {}
    for gradients in (None, CapturedGradients(PassRecorder(CudaGraphs().record, pytest.fail))):
        folder = tmp_path / str(gradients is None)
        folder.mkdir()
        trainer = Trainer(load_base(settings, for_training=True), folder / "job", gradients=gradients)
        config = TrainConfig.of({**STEPS, "max_train_steps_tuning": 100, "resolution": 64, "samples": 0})
        result = trainer.run(picture_zip(folder / "pictures.zip"), config)
        reports[gradients is None] = result.stages["stage 2"].losses
    torch.testing.assert_close(torch.tensor(reports[False]), torch.tensor(reports[True]), rtol=0.05, atol=0.01)
