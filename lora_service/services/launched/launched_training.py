"""Has one training done by several processes, and passes on what they say as if it were done here."""

from __future__ import annotations

import json
import os
import selectors
import subprocess
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from lora_service.errors import LoraServiceError, ProcessesError
from lora_service.services.launched.ending import end
from lora_service.services.launched.job import (
    ExchangeFolder,
    LaunchedJob,
    TrainJob,
    secret_variables,
    without_secrets,
)
from lora_service.settings import Settings
from lora_service.temporary_folders import temporary_folder
from lora_service.training.runs.run_folder import RunFolder, StopSignal

if TYPE_CHECKING:  # it imports torch
    from lora_service.training.callbacks.training_progress import OnProgress
    from lora_service.training.trainer import TrainResult

_LAUNCHER = "lora_service.services.launched.launcher"
_LOOK_SECONDS = 0.2
"""The longest time between two looks whether somebody asked for an end: Cog raises its cancellation between two
instructions of Python, and waiting for a message is one."""


def is_launched() -> bool:
    """Return True if a launcher started this process to train beside others."""
    return int(os.environ.get("WORLD_SIZE", "1")) > 1


def process_count(settings: Settings) -> int:
    """Return how many processes do a training that is begun here; of a launched one, those that it is among."""
    return int(os.environ["WORLD_SIZE"]) if is_launched() else settings.train_processes


def train_launched(launched: LaunchedJob, log: Callable[[str], None], on_progress: OnProgress) -> TrainResult:
    """Train in as many processes as ``TRAIN_PROCESSES`` says.

    None of them is left when this returns or raises, and nothing of theirs but the run folder.

    Returns:
        the main one's result, without the pictures.

    Raises:
        LoraServiceError: that of the process which failed first.
        ProcessesError: one of them was ended by something else.
        RuntimeError: a defect; the notes have its traceback.
    """
    job, settings = launched.job, launched.settings
    with temporary_folder("lora-processes-") as folder:
        exchange = ExchangeFolder(folder)
        there = replace(job, options=replace(job.options, stop=StopSignal()))
        exchange.write_job(replace(launched, job=there, settings=without_secrets(settings)))
        with _launched(exchange, settings) as launcher, _passing_on_the_stop(job) as look:
            assert launcher.stdout is not None
            for message in _messages(launcher.stdout):
                if message:
                    _pass_on(message, job.options.stop, log, on_progress)
                look()
        return _outcome(exchange, settings.train_processes)


@contextmanager
def _launched(exchange: ExchangeFolder, settings: Settings) -> Iterator[subprocess.Popen[bytes]]:
    """Run the launcher within the context, in a session of its own: a terminal's Ctrl-C is for the service."""
    count = settings.train_processes
    command = [sys.executable, "-u", "-m", _LAUNCHER, str(exchange.path), str(count)]
    launcher = subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, start_new_session=True,
        env={**os.environ, **_environment(exchange, count), **secret_variables(settings)},
    )  # fmt: skip
    try:
        yield launcher
    finally:
        end(launcher)


def _environment(exchange: ExchangeFolder, count: int) -> dict[str, str]:
    """Return the variables of the processes: they share the threads, and what they leave goes with the folder."""
    threads = os.environ.get("OMP_NUM_THREADS", "")
    share = int(threads) if threads.isdecimal() else os.cpu_count() or 1
    temporary = exchange.path / "tmp"
    temporary.mkdir()
    # The package may have been found beside the program that was started, which is not there for a module.
    paths = [str(Path(__file__).parents[3]), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {
        "OMP_NUM_THREADS": str(max(1, share // count)),
        "TMPDIR": str(temporary),
        "PYTHONPATH": os.pathsep.join(paths),
    }


@contextmanager
def _passing_on_the_stop(job: TrainJob) -> Iterator[Callable[[], None]]:
    """Yield what asks the processes for the end once it was asked for here, by the file in the run folder."""
    request, is_passed_on = RunFolder(job.folder).stop_request, False

    def look() -> None:
        nonlocal is_passed_on
        if job.options.stop.requested and not is_passed_on and job.folder.is_dir():
            request.touch()
            is_passed_on = True

    try:
        yield look
    finally:
        if is_passed_on:
            request.unlink(missing_ok=True)


def _messages(out: IO[bytes]) -> Iterator[Mapping[str, Any]]:
    """Yield what is said until all have ended; {} where nothing is said for a while."""
    rest = b""
    with selectors.DefaultSelector() as selector:
        selector.register(out, selectors.EVENT_READ)
        while True:
            if not selector.select(_LOOK_SECONDS):
                yield {}
                continue
            chunk = os.read(out.fileno(), 65536)
            if not chunk:
                return
            *lines, rest = (rest + chunk).split(b"\n")
            yield from map(json.loads, lines)


def _pass_on(message: Mapping[str, Any], stop: StopSignal, log: Callable[[str], None], on_progress: OnProgress) -> None:
    if message["event"] == "log":
        log(message["line"])
    else:
        from lora_service.training.callbacks.training_progress import TrainingProgress

        stop.can_stop = True  # something is learned
        on_progress(TrainingProgress(**message["progress"]))


def _outcome(exchange: ExchangeFolder, count: int) -> TrainResult:
    """Return the result, or raise the error that explains most."""
    outcomes = list(exchange.outcomes())
    for outcome in outcomes:
        if not isinstance(outcome, Exception):
            return outcome
    killed = json.loads(exchange.killed.read_text(encoding="utf-8")) if exchange.killed.exists() else {}
    mistakes = [outcome for outcome in outcomes if isinstance(outcome, LoraServiceError)]
    if mistakes:
        raise mistakes[0]
    if outcomes and not killed:  # else it is of one that missed the one which was killed
        raise outcomes[0]
    ends = " and ".join(f"process {int(number) + 1} by {name}" for number, name in killed.items())
    reason = f"{ends} was killed" if ends else "the log says more"
    raise ProcessesError(
        f"The {count} processes of the training did not come to its end ({reason}); where memory is short, set "
        "TRAIN_PROCESSES lower, as each of them holds the whole base."
    )
