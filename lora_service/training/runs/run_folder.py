"""The folder of a run: what a training shows and keeps on the way, and what it needs to go on."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from filelock import FileLock, Timeout

from lora_service.errors import InputError
from lora_service.whole_files import LEFTOVERS

_LOCK = ".lock"
SAMPLE_TIMES = 4
"""The number of times that samples are drawn in a run whose folder is kept."""


@dataclass
class StopSignal:
    """Set by whoever wants the end, for example in a signal handler.

    Attributes:
        requested: True once somebody asked: the training ends after this step.
        can_stop: True while there is something to be kept; before the first step nothing is learned.
    """

    requested: bool = False
    can_stop: bool = False

    @property
    def stops_now(self) -> bool:
        """True if the training is to end with what it has."""
        return self.requested and self.can_stop


@dataclass(frozen=True)
class RunOptions:
    """Options for what is kept of a run on the way.

    Attributes:
        save_every: steps between two checkpoints; None: as suits the stages' lengths; 0: none.
        keep: how many checkpoints stay, the newest.
        output: the file that a command line is to write; None: it is named at the end.
        stop: ends the training after a step.
        sample_times: how often samples are drawn where the input leaves it open.
    """

    save_every: int | None = 0
    keep: int = 2
    output: Path | None = None
    stop: StopSignal = field(default_factory=StopSignal)
    sample_times: int = SAMPLE_TIMES


def no_checkpoints(field: str, value: object) -> InputError:
    """Return the error for an input that is about checkpoints, of which several processes keep none."""
    expected = "left out where several processes train together, as they keep no checkpoints"
    return InputError(field, value, expected, code="several_processes")


@dataclass(frozen=True)
class RunFolder:
    """The paths in the folder of a run."""

    path: Path

    @property
    def samples(self) -> Path:
        """The folder of the pictures that are drawn on the way."""
        return self.path / "samples"

    @property
    def checkpoints(self) -> Path:
        """The folder of the states that a run can go on from."""
        return self.path / "checkpoints"

    @property
    def record(self) -> Path:
        """The file that says what is trained on what."""
        return self.path / "run.json"

    @property
    def lora(self) -> Path:
        """The LoRA file, once there is one."""
        return self.path / "lora.safetensors"

    @property
    def saved(self) -> Path:
        """The folder of the LoRA files that were asked for on the way."""
        return self.path / "saved"

    @property
    def save_request(self) -> Path:
        """The file that somebody makes to have a LoRA file of what is learned so far; the training goes on."""
        return self.path / "save"

    @property
    def stop_request(self) -> Path:
        """The file that somebody makes to end the training and keep what it has learned."""
        return self.path / "stop"

    @property
    def uploads(self) -> Path:
        """The folder of pictures that came by link."""
        return self.path / "upload"

    @property
    def holds_a_run(self) -> bool:
        """True if a run was started here."""
        return self.record.exists()

    @property
    def has_checkpoints(self) -> bool:
        """True if there is a state that it can go on from."""
        return any(self.checkpoints.glob("*.safetensors"))

    @staticmethod
    def free(path: Path) -> RunFolder:
        """Return the folder ``path``, or the first of ``path-2``, ``path-3`` … that does not exist."""
        candidate, number = path, 1
        while candidate.exists():
            number += 1
            candidate = path.with_name(f"{path.name}-{number}")
        return RunFolder(candidate)

    def create(self) -> None:
        """Make the folder.

        Raises:
            InputError: it holds a run (code ``run_exists``) or other files (``folder_not_empty``), or is none
                (``not_a_folder``).
        """
        if self.holds_a_run:
            expected = f"a new folder; --resume {self.path} goes on with the run that is in it"
            raise InputError("run_folder", str(self.path), expected, code="run_exists")
        if self.path.exists() and not self.path.is_dir():
            raise InputError("run_folder", str(self.path), "a folder, and not a file", code="not_a_folder")
        self.path.mkdir(parents=True, exist_ok=True)
        if any(entry.name != _LOCK for entry in self.path.iterdir()):
            raise InputError("run_folder", str(self.path), "a new or empty folder", code="folder_not_empty")

    @contextmanager
    def in_use(self) -> Iterator[None]:
        """Keep other processes out of the folder within the context; the system ends it if the process is killed.

        A folder in which nothing was kept at the end, as the training failed before it began, is removed.

        Raises:
            InputError: another process trains in it (code ``run_in_use``).
        """
        lock = FileLock(self.path / _LOCK, timeout=0)
        try:
            lock.acquire()
        except Timeout as error:
            expected = "the folder of a run that no other process is busy with"
            raise InputError("run_folder", str(self.path), expected, code="run_in_use") from error
        try:
            yield
        finally:
            if not self.holds_a_run:
                (self.path / _LOCK).unlink(missing_ok=True)
                with contextlib.suppress(OSError):  # it is not empty
                    self.path.rmdir()
            lock.release()

    @property
    def start(self) -> Path:
        """The copy of the LoRA that the run goes on from, if it does."""
        return self.path / "start_from.safetensors"

    def clear_leftovers(self) -> None:
        """Remove what a process that was killed left half done."""
        for name in ("unpacked", "class-pictures"):
            shutil.rmtree(self.path / name, ignore_errors=True)
        for part in self.path.glob(LEFTOVERS):
            part.unlink()
