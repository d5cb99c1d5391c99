"""One of the processes of a training, as the launcher starts it: ``python -m …process FOLDER``.

The main one says on its standard output, in JSON objects of one line each, what the service would say by itself.
"""

from __future__ import annotations

import json
import os
import sys
import traceback
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lora_service.errors import LoraServiceError
from lora_service.services.launched.ending import end_with_input
from lora_service.services.launched.job import ExchangeFolder, with_secrets
from lora_service.services.model_service import describe_defect

if TYPE_CHECKING:
    from lora_service.services.launched.job import LaunchedJob
    from lora_service.training.trainer import TrainResult

Say = Callable[[dict[str, Any]], None]


def main(folder: Path) -> int:
    """Do this process's part; returns the exit status."""
    exchange, number = ExchangeFolder(folder), int(os.environ["RANK"])
    speak = _speaker()  # of all, as they share the pipe to the service
    say = speak if number == 0 else lambda message: None
    outcome: Any = None
    try:
        launched = exchange.read_job()
        if number:
            launched = replace(launched, job=replace(launched.job, folder=exchange.own(number)))
        result = _train(launched, say)
        if number == 0:  # the service has no use for the pictures
            outcome = replace(result, dataset=replace(result.dataset, images=()))
    except LoraServiceError as error:
        outcome = error
    except Exception as error:
        outcome = RuntimeError(describe_defect(error))
        outcome.add_note(f"in process {number} of the training:\n{traceback.format_exc()}")
    if outcome is not None:
        exchange.write_outcome(number, outcome)
    return int(isinstance(outcome, Exception))


def _train(launched: LaunchedJob, say: Say) -> TrainResult:
    from lora_service.services.training_service import TrainingService

    with TrainingService(with_secrets(launched.settings), allow_local=launched.allow_local) as service:
        return service.run_job(
            launched.job,
            lambda line: say({"event": "log", "line": line}),
            lambda progress: say({"event": "progress", "progress": asdict(progress)}),
        )


def _speaker() -> Say:
    """Return what writes messages to standard output, where nothing else is printed from now on."""
    out = os.fdopen(os.dup(sys.stdout.fileno()), "w", buffering=1, encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())
    return lambda message: print(json.dumps(message), file=out, flush=True)


if __name__ == "__main__":
    end_with_input()
    sys.exit(main(Path(sys.argv[1])))
