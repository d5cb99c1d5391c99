"""Trains as one of several processes; run by ``torch.distributed.run`` from test_processes.py."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import torch

from lora_service.training.inputs.config import TrainConfig
from lora_service.training.trainer import Trainer
from tests.small_base import small_base


def main() -> None:
    torch.set_num_threads(1)
    folder, inputs = Path(sys.argv[1]), json.loads(sys.argv[2])
    rank = os.environ.get("RANK", "0")
    result = Trainer(small_base(), folder / rank).run(folder / "p.zip", TrainConfig.of(inputs))
    losses = {name: stage.losses for name, stage in result.stages.items()}
    values = {"losses": losses, "trigger": result.resolved.trigger, "seed": result.resolved.config.seed}
    (folder / f"{rank}.json").write_text(json.dumps(values))


if __name__ == "__main__":
    main()
