"""Experiment trackers: what each of them holds after a training, without a network."""

from __future__ import annotations

import json
import time
import zipfile
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from lora_service.errors import InputError
from lora_service.settings import Settings
from lora_service.training.callbacks.trackers import RunTrackers, TrackerCallback, check_trackers, run_trackers
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.losses.batch_loss import BatchLoss
from lora_service.training.optimization.loop import LoopSpec, run_loop
from lora_service.training.trainer import Trainer
from tests.errors import raises
from tests.small_base import picture_zip, small_base


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("COMET_START_ONLINE", "0")


def _train(trackers: RunTrackers, folder: Path) -> None:
    """Train two stages of a few steps, with settings, a picture and a file."""
    trackers.store_settings({"task": "object", "lora_rank": 8, "seed": None})
    callback = TrackerCallback(trackers)
    for stage, steps in (("stage 1", 2), ("stage 2", 3)):
        weight = nn.Parameter(torch.zeros(1))

        def compute_loss(i: int, weight: nn.Parameter = weight) -> BatchLoss:
            return BatchLoss(weight.sum() * 0 + i, {"class": torch.tensor(10.0 * i)})

        run_loop(LoopSpec(stage, steps, 1, [{"params": [weight], "lr": 0.5}], compute_loss), TrainConfig(), [callback])
    trackers.log_image("samples", Image.new("RGB", (64, 32), "red"), 5)
    (folder / "dog.safetensors").write_bytes(b"a file")
    trackers.log_file(folder / "dog.safetensors")


def test_tensorboard_holds_every_step(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    with run_trackers(["tensorboard"], "dog", tmp_path, print) as trackers:
        _train(trackers, tmp_path)
    events = event_accumulator.EventAccumulator(str(tmp_path / "dog")).Reload()
    assert [(event.step, event.value) for event in events.Scalars("loss/total")] == [
        (1, 0.0), (2, 1.0), (3, 0.0), (4, 1.0), (5, 2.0),
    ]  # fmt: skip
    assert [event.value for event in events.Scalars("loss/class")] == [0.0, 10.0, 0.0, 10.0, 20.0]
    assert [(event.step, event.value) for event in events.Scalars("lr/0")] == [(2, 0.5), (5, 0.5)]
    image = events.Images("samples")[0]
    assert (image.step, image.width, image.height) == (5, 64, 32)
    assert list(tmp_path.rglob("hparams.yml"))


def test_weights_and_biases_holds_it_without_a_network(tmp_path: Path) -> None:
    pytest.importorskip("wandb")
    with run_trackers(["wandb"], "dog", tmp_path, print) as trackers:
        _train(trackers, tmp_path)
    (log,) = tmp_path.rglob("*.wandb")
    parts, until = (b"loss/total", b"loss/class", b"lora_rank", b"dog.safetensors"), time.monotonic() + 30
    while time.monotonic() < until and not all(part in log.read_bytes() for part in parts):
        time.sleep(0.1)  # a process of its own writes it
    assert all(part in log.read_bytes() for part in parts)
    (picture,) = tmp_path.rglob("*.png")
    assert Image.open(picture).size == (64, 32)


def test_comet_holds_it_without_a_network(tmp_path: Path) -> None:
    pytest.importorskip("comet_ml")
    with run_trackers(["comet"], "dog", tmp_path, print) as trackers:
        _train(trackers, tmp_path)
    (archive,) = tmp_path.glob("*.zip")
    with zipfile.ZipFile(archive) as run:
        messages = [json.loads(line)["payload"] for line in run.read("messages.json").splitlines()]
    metrics = [message["metric"] for message in messages if message.get("metric")]
    totals = [(metric["step"], metric["metricValue"]) for metric in metrics if metric["metricName"] == "loss/total"]
    assert totals == [(1, 0.0), (2, 1.0), (3, 0.0), (4, 1.0), (5, 2.0)]


def test_a_tracker_that_fails_does_not_end_the_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lines = list[str]()
    with run_trackers(["tensorboard"], "dog", tmp_path, lines.append) as trackers:
        monkeypatch.setattr(trackers._trackers["tensorboard"].writer, "add_scalar", None)
        _train(trackers, tmp_path)
    assert len(lines) == 1
    assert lines[0].startswith("warning: tensorboard could not log and is left out")


def test_a_tracker_without_a_key_or_a_package_is_said_before_the_work(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", "/nowhere")
    for name in ("WANDB_MODE", "WANDB_API_KEY", "COMET_START_ONLINE", "COMET_API_KEY"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: True)
    for tracker in ("wandb", "comet"):
        with raises(InputError, field="trackers", code="no_key"):
            check_trackers([tracker])
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with raises(InputError, field="trackers", code="not_installed"):
        check_trackers(["tensorboard"])


def test_a_training_is_logged_to_the_trackers_of_the_settings(tmp_path: Path) -> None:
    event_accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    picture_zip(tmp_path / "p.zip")
    inputs = {"task": "object", "seed": 7, "trigger": "zumvek", "max_train_steps_ti": 2, "max_train_steps_tuning": 3}
    settings = Settings(trackers=("tensorboard",), tracker_folder=tmp_path / "runs")
    trainer = Trainer(small_base(), tmp_path / "job", settings=settings)
    trainer.run(tmp_path / "p.zip", TrainConfig.of(inputs | {"resolution": 32}))
    events = event_accumulator.EventAccumulator(str(tmp_path / "runs" / "zumvek-00000007")).Reload()
    assert [event.step for event in events.Scalars("loss/total")] == [1, 2, 3, 4, 5]
