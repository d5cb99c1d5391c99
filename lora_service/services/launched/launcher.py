"""Starts the processes of a training and ends them all when one fails: ``python -m …launcher FOLDER COUNT``.

It is PyTorch's launcher, which ``accelerate launch`` and ``torchrun`` call too, without the lines that these print.
"""

from __future__ import annotations

import json
import logging
import os
import sys
import uuid

from lora_service.services.launched.ending import end_with_input
from lora_service.services.launched.job import ExchangeFolder

_PROCESS = "lora_service.services.launched.process"


def launch(exchange: ExchangeFolder, count: int) -> None:
    """Run ``count`` processes to their end; those that are killed are noted in the folder, with the signal."""
    from torch.distributed.elastic.multiprocessing import DefaultLogsSpecs
    from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
    from torch.distributed.launcher.api import LaunchConfig, elastic_launch

    logging.getLogger("torch.distributed.elastic").setLevel(logging.CRITICAL)  # the service says what is wrong
    config = LaunchConfig(
        min_nodes=1, max_nodes=1, nproc_per_node=count, run_id=uuid.uuid4().hex, max_restarts=0,
        rdzv_backend="c10d", rdzv_endpoint="localhost:0", local_addr="localhost",
        logs_specs=DefaultLogsSpecs(log_dir=str(exchange.path / "launcher")),
    )  # fmt: skip
    try:
        elastic_launch(config, sys.executable)("-u", "-m", _PROCESS, str(exchange.path))
    except ChildFailedError as error:
        signals = {number: each.signal_name() for number, each in error.failures.items() if each.exitcode < 0}
        exchange.killed.write_text(json.dumps(signals), encoding="utf-8")


if __name__ == "__main__":
    from pathlib import Path

    end_with_input()
    launch(ExchangeFolder(Path(sys.argv[1])), int(sys.argv[2]))
    sys.stdout.flush()
    os._exit(0)  # the rendezvous has threads that may take their time
