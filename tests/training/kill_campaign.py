"""Kill trainings with SIGKILL at random moments and go on: ``python -m tests.training.kill_campaign --kills 20``.

So many processes are killed in each stage, half of them while the run that goes on is killed once more, and each file
is compared with that of a run that nobody interrupted. Processes are forked from one that has imported everything.
"""

from __future__ import annotations

import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path

import click
import torch

from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.loading import load_base
from lora_service.settings import Settings
from lora_service.training import preparation
from lora_service.training.callbacks import training_progress
from lora_service.training.data.class_dataset import PictureSources
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.optimization.processes import Processes
from lora_service.training.preparation import Preparation
from lora_service.training.runs.run_folder import RunFolder, RunOptions
from lora_service.training.runs.run_record import RunRecord
from lora_service.training.trainer import Trainer
from tests.small_base import picture_zip, small_base

STAGES = ("stage 1", "stage 2")


class Campaign:
    """Trainings in child processes, whose steps are told through a pipe."""

    def __init__(self, base: DiffusionBase, folder: Path, steps: int, rng: random.Random) -> None:
        self._base, self._steps, self.rng = base, steps, rng
        self._pictures = picture_zip(folder / "p.zip")
        self._folder = folder
        self.resumed_at: Counter[str] = Counter()
        inputs = {"task": "style", "seed": 4, "class_word": "dog", "continue_inversion": True}
        inputs |= {"max_train_steps_ti": steps, "max_train_steps_tuning": steps}
        self._config = TrainConfig.of(inputs | ({"resolution": 32} if base.name == "small" else {}))
        self._load_pictures_once()

    def _load_pictures_once(self) -> None:
        """Load the pictures before there are forks, in which that would take longer than the training."""
        folder = self._folder / "load"
        preparing = Preparation(self._base, folder, Settings(), Processes(), lambda line: None)
        dataset = preparing.load(PictureSources(self._pictures), self._config, preparing.resolve(self._config)).dataset
        preparation.load_dataset = lambda source, options, folder: dataset

    def begin(self, run: RunFolder) -> Callable[[Callable[[str], None]], None]:
        """Return the work of a new run."""
        every = self.rng.choice((1, 3))

        def work(tell: Callable[[str], None]) -> None:
            trainer = Trainer(self._base, run.path, options=RunOptions(save_every=every), log=tell)
            trainer.on_progress = lambda progress: tell(f"{progress.stage[:7]}:{progress.step}")
            trainer.run(self._pictures, self._config)

        return work

    def resume(self, run: RunFolder) -> Callable[[Callable[[str], None]], None]:
        """Return the work of a run that goes on."""

        def work(tell: Callable[[str], None]) -> None:
            record = RunRecord.read(run)
            if record.status == "finished":
                return
            run.clear_leftovers()
            trainer = Trainer(self._base, run.path, resumed=record, log=tell)
            trainer.on_progress = lambda progress: tell(f"{progress.stage[:7]}:{progress.step}")
            trainer.run(record.source(run), record.config())

        return work

    def kill(self, work: Callable[[Callable[[str], None]], None], stage: str) -> str:
        """Fork, wait for a random step of ``stage`` and a random moment in it, and kill; return where that was."""
        step = self.rng.randrange(self._steps)
        target = f"{stage}:{step}" if step or stage == STAGES[0] else f"{STAGES[0]}:{self._steps}"
        seen, times = "nothing", [time.monotonic()]
        with self._child(work) as child:
            for line in child.lines():
                if re.fullmatch(r"stage \d:\d+", line):
                    seen = line
                    times.append(time.monotonic())
                if line == target or (step == 0 and seen != "nothing") or _is_past(seen, target):
                    break
            time.sleep(self.rng.random() * 1.5 * (times[-1] - times[-2] if len(times) > 2 else 0.1))
        return seen

    def finish(self, work: Callable[[Callable[[str], None]], None], run: RunFolder) -> bytes:
        """Fork, and return the file that the process writes."""
        with self._child(work, kill=False) as child:
            for line in child.lines():
                if line.startswith(("going on with", "there is no checkpoint")):
                    self.resumed_at[re.sub(r" after step.*", "", line)] += 1
        return run.lora.read_bytes()

    def _child(self, work: Callable[[Callable[[str], None]], None], *, kill: bool = True) -> Child:
        return Child(work, kill=kill)


class Child:
    """A forked process; it is killed at the end of the context, or waited for."""

    def __init__(self, work: Callable[[Callable[[str], None]], None], *, kill: bool) -> None:
        self._work, self._kill = work, kill

    def __enter__(self) -> Child:
        reading, writing = os.pipe()
        self._pid = os.fork()
        if not self._pid:
            os.close(reading)
            status = 1
            try:
                training_progress._REPORT_SECONDS = 0.0
                self._work(lambda line: os.write(writing, f"{line}\n".encode()) and None)
                status = 0
            finally:
                if status:
                    import traceback

                    traceback.print_exc()
                os._exit(status)
        os.close(writing)
        self._pipe = os.fdopen(reading)
        return self

    def lines(self) -> Iterator[str]:
        for line in self._pipe:
            yield line.rstrip("\n")

    def __exit__(self, *exception: object) -> None:
        if self._kill:
            os.kill(self._pid, signal.SIGKILL)
        _, status = os.waitpid(self._pid, 0)
        self._pipe.close()
        if not self._kill and status:
            raise RuntimeError(f"the training ended with the status {status}")


def _is_past(seen: str, target: str) -> bool:
    """Return True if a step is behind another; a run that goes on may begin there."""
    return (
        [*map(int, re.findall(r"\d+", seen))] > [*map(int, re.findall(r"\d+", target))] if seen != "nothing" else False
    )


@click.command()
@click.option("--kills", default=20, help="Processes that are killed in each stage.")
@click.option("--steps", default=12, help="Steps of each stage.")
@click.option("--seed", default=0)
@click.option("--embedded", is_flag=True, help="Train the embedded model, and not a tiny random one.")
def main(kills: int, steps: int, seed: int, embedded: bool) -> None:
    """Kill trainings in each stage and compare their files with that of one that ran through."""
    torch.set_num_threads(1)  # a fork does not take threads along
    base = load_base(Settings()) if embedded else small_base()
    failures, moments = 0, Counter[str]()
    with tempfile.TemporaryDirectory() as folder:
        campaign = Campaign(base, Path(folder), steps, random.Random(seed))
        whole = RunFolder(Path(folder) / "whole")
        whole.create()
        expected = campaign.finish(campaign.begin(whole), whole)
        for number in range(kills):
            for stage in STAGES:
                run = RunFolder(Path(folder) / f"{stage}-{number}")
                run.create()
                seen = [campaign.kill(campaign.begin(run), stage)]
                if number % 2 and run.holds_a_run:
                    seen.append(campaign.kill(campaign.resume(run), stage))
                leftovers = sum(1 for _ in run.checkpoints.glob(".*.part"))
                same = campaign.finish(campaign.resume(run), run) == expected
                failures += not same
                moments[stage] += len(seen)
                moments["half a checkpoint left"] += leftovers
                click.echo(f"{stage}, kill {number + 1} at {' and '.join(seen)}: {'same' if same else 'OTHER'} bytes")
                shutil.rmtree(run.path)
    click.echo(f"kills: {dict(moments)}; {dict(campaign.resumed_at)}; files with other bytes: {failures}")
    sys.exit(bool(failures))


if __name__ == "__main__":
    main()
