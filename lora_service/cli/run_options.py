"""Run folders on the command line: their options, resuming, and Ctrl-C."""

from __future__ import annotations

import json
import os
import shlex
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any, TypeVar, get_args

import click

from lora_service.cli.field_options import GroupedOption
from lora_service.errors import InputError
from lora_service.settings import Settings, Tracker
from lora_service.training.runs.run_folder import RunFolder, StopSignal

CommandFunction = TypeVar("CommandFunction", bound=Callable[..., Any])

_GROUP = "Going on and stopping"
_TRACKERS = get_args(Tracker)
_PATH = click.Path(path_type=Path)


def run_options(function: CommandFunction) -> CommandFunction:
    """Add the options of run folders, checkpoints, trackers and processes to a command."""
    for option in (
        click.option(
            "--num-processes", cls=GroupedOption, group="Memory and precision", type=click.IntRange(1, 64),
            help="Processes that train together, a GPU each; a batch is train_batch_size times as many.  "
            "[default: TRAIN_PROCESSES, else 1]",
        ),
        click.option(
            "--trackers", cls=GroupedOption, group="Seeing it learn", metavar="NAMES", callback=_tracker_names,
            help=f"{', '.join(_TRACKERS)}, or none, split by commas.  [default: TRACKERS, else tensorboard]",
        ),
        click.option(
            "--resume", cls=GroupedOption, group=_GROUP, type=_PATH, metavar="FOLDER",
            help="Go on with the run in this run folder; it knows its pictures and inputs.",
        ),
        click.option(
            "--keep-checkpoints", cls=GroupedOption, group=_GROUP, type=click.IntRange(1, 100), default=2,
            help="How many checkpoints stay, the newest.  [default: 2]",
        ),
        click.option(
            "--save-every", cls=GroupedOption, group=_GROUP, type=click.IntRange(0, 20000),
            help="Steps between two checkpoints, 0 for none.  [default: a quarter of a stage, at most 250]",
        ),
        click.option(
            "--run-folder", cls=GroupedOption, group=_GROUP, type=_PATH,
            help="Folder for what is kept on the way.  [default: a new one beside the LoRA file, like dog-run]",
        ),
    ):  # fmt: skip
        function = option(function)
    return function


def _tracker_names(ctx: click.Context, param: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Return the trackers that ``--trackers`` names, None where it is not given."""
    if value is None:
        return None
    names = tuple(name for part in value.split(",") if (name := part.strip()) and name != "none")
    unknown = next((name for name in names if name not in _TRACKERS), "")
    if unknown:
        raise InputError("--trackers", unknown, f"{', '.join(_TRACKERS)} or none, split by commas")
    return names


def training_settings(trackers: tuple[str, ...] | None, num_processes: int | None = None) -> Settings:
    """Return the environment's settings with the command line's trackers and processes.

    Trackers are TensorBoard where nobody says which.

    Raises:
        SettingError: an environment variable holds an unusable value.
    """
    settings = Settings.from_environment()
    chosen = trackers if trackers is not None else settings.trackers or ("tensorboard",)
    return settings.model_copy(
        update={"trackers": chosen, "train_processes": num_processes or settings.train_processes}
    )


def check_resume(
    folder: Path, links: str, run_folder: Path | None, save_every: int | None, inputs: Mapping[str, Any]
) -> None:
    """Check that nothing is given beside ``--resume`` that the run has from its beginning.

    Raises:
        InputError: something is (code ``fixed_by_run``).
    """
    set_inputs = {name: value for name, value in inputs.items() if value is not None}
    set_inputs |= {"instance_data_urls": links} if links.strip() else {}
    set_inputs |= {"run_folder": str(run_folder)} if run_folder else {}
    set_inputs |= {"save_every": save_every} if save_every is not None else {}
    for name, value in set_inputs.items():
        expected = f"left out with --resume, as the run in {folder} has it from its beginning"
        raise InputError(name, value, expected, code="fixed_by_run")


def recorded_output(folder: Path) -> Path | None:
    """Return the file that the run in ``folder`` was to write, None where it is named at the end."""
    try:
        output = json.loads(RunFolder(folder).record.read_text(encoding="utf-8")).get("output")
    except (OSError, ValueError, AttributeError):
        return None  # what is wrong with it is said where it is read in earnest
    return Path(output) if isinstance(output, str) and output else None


def is_main_process() -> bool:
    """Return True unless a launcher started this process to train beside another; only one has the run folder."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def stop_on_interrupt(*runs: RunFolder, stops: Sequence[StopSignal] = ()) -> Iterator[StopSignal]:
    """Yield a signal that the first Ctrl-C sets once something is learned; any other ends the program as usual.

    What ends by an error and can go on says how.

    Args:
        stops: signals that are set, where there are several runs; the first is yielded.
    """
    stops = stops or [StopSignal()]
    stop = stops[0]
    if not is_main_process():  # the main process asks the others to stop
        signal.signal(signal.SIGINT, signal.SIG_IGN)
        yield stop
        return

    def handle(number: int, frame: FrameType | None) -> None:
        if all(each.requested for each in stops) or not any(each.can_stop for each in stops):
            raise KeyboardInterrupt
        for each in stops:
            each.requested = True
        # Not through sys.stderr, which may be in the middle of a line.
        os.write(2, b"\nstopping after this step, and writing what was learned; Ctrl-C again drops it\n")

    previous = signal.signal(signal.SIGINT, handle)
    try:
        yield stop
    except BaseException:
        for run in (each for each in runs if each.has_checkpoints):
            command = shlex.join(["lora-service", "train", "--resume", str(run.path)])
            print(f"its checkpoints are kept; to go on: {command}", file=sys.stderr)
        raise
    finally:
        signal.signal(signal.SIGINT, previous)
