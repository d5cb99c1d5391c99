"""Several processes that train together: shares of a batch, and equality with one process."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

from lora_service.training.inputs.config import TrainConfig
from lora_service.training.optimization.processes import Processes
from lora_service.training.trainer import Trainer
from tests.small_base import picture_zip, small_base
from tests.training.same_lora import assert_same_lora

INPUTS = {
    "task": "object", "resolution": 32, "max_train_steps_ti": 3, "max_train_steps_tuning": 4,
    "gradient_accumulation_steps": 2,
}  # fmt: skip


@pytest.mark.parametrize("count", [1, 2, 3, 5, 8])
def test_shares_cover_a_batch_and_their_weighted_means_are_its_mean(count: int) -> None:
    losses = torch.arange(1.0, count + 1)
    shares = [Processes(3, index).share(count) for index in range(3)]
    taken = [losses[share] for share, weight in shares if weight]
    assert sorted(torch.cat(taken).tolist()) == losses.tolist()
    means = [weight * losses[share].mean() for share, weight in shares]
    assert sum(means) / 3 == pytest.approx(losses.mean())


def test_one_process_takes_the_whole_batch() -> None:
    assert Processes().share(3) == (slice(0, None, 1), 1.0)
    assert Processes().agree("a") == "a"


def _train_together(folder: Path, inputs: dict[str, Any]) -> list[dict[str, Any]]:
    """Train in two processes; returns what each saw."""
    command = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"]
    script = ["tests.training.train_together", str(folder), json.dumps(inputs)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())}
    result = subprocess.run([sys.executable, *command, *script], env=environment, capture_output=True, timeout=300)
    assert result.returncode == 0, result.stderr.decode()[-2000:]
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(2)]


def test_two_processes_train_as_one_with_twice_the_batch(tmp_path: Path) -> None:
    picture_zip(tmp_path / "p.zip")
    together = _train_together(tmp_path, INPUTS | {"train_batch_size": 1})
    assert together[0] == together[1]  # also the seed, which nobody gave
    config = TrainConfig.of(INPUTS | {"train_batch_size": 2, "seed": together[0]["seed"]})
    alone = Trainer(small_base(), tmp_path / "alone").run(tmp_path / "p.zip", config)
    assert together[0]["trigger"] == alone.resolved.trigger
    for name, losses in together[0]["losses"].items():
        assert losses == pytest.approx(alone.stages[name].losses, abs=2e-5), name
    files = [tmp_path / rank / "lora.safetensors" for rank in ("0", "1", "alone")]
    assert_same_lora(files[0], files[1], tolerance=0)
    assert_same_lora(files[0], files[2])
