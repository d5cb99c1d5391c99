"""Draws samples now and then in a training, within a share of its time, and shows them in grids."""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image

from lora_service.dataset.options import SUBJECT
from lora_service.generation.image_grid import ImageRow, draw_grid
from lora_service.training.callbacks.samples import Sample, SampleDrawer, SamplePlan, sample_steps, thumbnail_url
from lora_service.training.optimization.loop import StageRun, TrainingCallback
from lora_service.training.runs.run_folder import SAMPLE_TIMES
from lora_service.training.stages import STAGE_2_COST

FOLDER, LATEST, ALL = "samples", "latest.png", "all.png"
LARGEST_SHARE = 0.1
"""Share of a run's time that samples take at most, unless their number was asked for."""
_SMALLEST_SIDE, _LARGEST_SIDE = 160, 256
"""Pixels of a picture's side in a grid."""

Likeness = Callable[[Sequence[Image.Image]], float]
"""Pictures of the subject -> how much they are like it."""


class Sampling(TrainingCallback):
    """Draws samples evenly spread over both stages, the last ones of what is returned.

    ``folder`` gets ``latest.png``, the latest pictures, a file of every time, and at the end ``all.png``, all of them
    in one grid, a row for each time. Pictures that cannot be drawn or written end the samples and not the training.

    Args:
        likeness: judges the pictures that show the subject; None: nobody does.
        show: called with the grid of each time and the step, counted over both stages.
        times: how often to draw where the input leaves it open.
    """

    def __init__(
        self,
        drawer: SampleDrawer,
        folder: Path,
        log: Callable[[str], None],
        likeness: Likeness | None = None,
        show: Callable[[Image.Image, int], None] = lambda grid, step: None,
        times: int = SAMPLE_TIMES,
    ) -> None:
        config = drawer.context.resolved.config
        self._show = show
        self._drawer, self._folder, self._log, self._likeness = drawer, folder, log, likeness
        self._is_bounded = config.samples is None
        self._plan = SamplePlan(len(drawer.prompts), config.samples or times)
        self._stages = (config.max_train_steps_ti, config.max_train_steps_tuning)
        self._due = sample_steps(0, sum(self._stages), self._plan.times)
        self._samples: list[Sample] = []
        self._offset, self._is_on = 0, True
        self._started: tuple[float, float] | None = None

    @property
    def thumbnail(self) -> str:
        """The data URL of the last sample's first picture, "" if there is none."""
        return thumbnail_url(self._samples[-1].images[0]) if self._samples and self._is_on else ""

    def summary(self) -> dict[str, Any]:
        """Return what the header says of the samples."""
        return self._drawer.summary()

    def on_stage_start(self, stage: StageRun) -> None:
        """Count the steps on from the stage before."""
        self._offset = 0 if stage.spec.later_steps or not self._stages[1] else self._stages[0]
        if self._started is None:
            self._started = (time.monotonic(), self._cost(stage))
        self._due = [step for step in self._due if step > self._offset + stage.step]

    def on_step_end(self, stage: StageRun) -> None:
        """Draw if it is time to; the last sample waits for the end of the stage."""
        # A stage may end before its steps do.
        position = self._stages[0] if stage.is_done and not self._offset else self._offset + stage.step
        if self._due and position >= self._due[0] and not self._ends(stage):
            self._sample(stage)

    def on_stage_end(self, stage: StageRun) -> None:
        """Draw what is returned, and all samples in one grid."""
        if not self._ends(stage):
            return
        self._sample(stage)
        if self._samples and self._is_on:
            captions = self._drawer.captions
            widest = max(len(sample.images) for sample in self._samples)
            rows = [sample.row() for sample in self._samples[:-1]] + [self._samples[-1].row(captions[:widest])]
            self._write(ALL, _grid(rows))

    def state_dict(self) -> dict[str, Any]:
        """Return the samples so far, their pictures as ``(h, w, 3)`` in bytes."""
        return {
            "samples": [
                {
                    "stage": sample.stage,
                    "step": sample.step,
                    "images": [torch.from_numpy(np.array(image.convert("RGB"))) for image in sample.images],
                }
                for sample in self._samples
            ],
            "plan": [self._plan.prompts, self._plan.times],
            "due": list(self._due),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on with the samples that were planned, so that the last grid shows those before too."""
        if not state:
            return
        self._samples = [
            Sample(each["stage"], each["step"], [Image.fromarray(image.numpy()) for image in each["images"]])
            for each in state["samples"]
        ]
        self._plan, self._due = SamplePlan(*state["plan"]), list(state["due"])

    def _ends(self, stage: StageRun) -> bool:
        """Return True if this step is the last one of the run."""
        return stage.is_done and not stage.spec.later_steps

    def _sample(self, stage: StageRun) -> None:
        if not self._is_on:
            return
        stage.check_parameters()
        try:
            with stage.evaluating():
                images = self._draw(stage)
            sample = Sample(stage.spec.name, stage.step, images)
            self._samples.append(sample)
            row = sample.row(self._drawer.captions)
            grid = _grid([replace(row, label="")])  # the name says of which step it is
            self._write(sample.file_name, grid)
            self._write(LATEST, _grid([row]))
            self._show(grid, self._offset + stage.step)
        except (torch.OutOfMemoryError, OSError) as error:
            self._is_on = False
            self._log(f"warning: no more samples are drawn: {error}")
            return
        position = self._offset + stage.step
        self._due = [step for step in self._due if step > position]
        self._log(self._line(sample))

    def _draw(self, stage: StageRun) -> list[Image.Image]:
        drawer = self._drawer
        if self._samples:
            return drawer.draw(drawer.prompts[: self._plan.prompts])
        images = drawer.draw(drawer.prompts[:1])  # tells what the others will take
        self._bound(stage, drawer.seconds_per_picture)
        return images + drawer.draw(drawer.prompts[1 : self._plan.prompts])

    def _bound(self, stage: StageRun, seconds_per_picture: float) -> None:
        """Plan fewer pictures where they would take too long, and tell what they take."""
        planned, run_seconds = self._plan, self._run_seconds(stage)
        if self._is_bounded:
            self._plan = planned.within(int(LARGEST_SHARE * run_seconds / max(seconds_per_picture, 1e-9)))
        if self._plan.times < planned.times:
            self._due = sample_steps(self._offset + stage.step, sum(self._stages), self._plan.times - 1)
        took = f"about {self._plan.pictures * seconds_per_picture:.0f} s beside {run_seconds:.0f} s of training"
        fewer = ""
        if self._plan != planned:
            seconds = planned.pictures * seconds_per_picture
            fewer = f"; {_times(planned)} would take {seconds:.0f} s, and are drawn if samples is {planned.times}"
        self._log(f"samples: {_times(self._plan)}, {took}{fewer}")

    def _cost(self, stage: StageRun) -> float:
        """Return the steps of the run so far, in steps of stage 1."""
        return self._offset + stage.step * (STAGE_2_COST if self._offset else 1)

    def _run_seconds(self, stage: StageRun) -> float:
        """Estimate the time of both stages without samples."""
        started, cost = self._started or (time.monotonic(), 0.0)
        seconds = time.monotonic() - started - self._drawer.seconds_per_picture
        total = self._stages[0] + STAGE_2_COST * self._stages[1]
        return seconds / max(self._cost(stage) - cost, 1) * total

    def _line(self, sample: Sample) -> str:
        line = f"sample {len(self._samples)} of {self._plan.times} ({sample.label}): {FOLDER}/{LATEST}"
        drawn = zip(self._drawer.prompts, sample.images, strict=False)
        subject = [image for prompt, image in drawn if SUBJECT in prompt]
        return f"{line}, likeness {self._likeness(subject):.2f}" if self._likeness and subject else line

    def _write(self, name: str, grid: Image.Image) -> None:
        """Write a grid whole or not at all: a viewer may be looking at the file."""
        self._folder.mkdir(parents=True, exist_ok=True)
        temporary = self._folder / f".{secrets.token_hex(4)}.png"
        try:
            grid.save(temporary)
            temporary.replace(self._folder / name)
        finally:
            temporary.unlink(missing_ok=True)


def _grid(rows: Sequence[ImageRow]) -> Image.Image:
    width = max(image.width for row in rows for image in row.images)
    return draw_grid(rows, side=min(max(width, _SMALLEST_SIDE), _LARGEST_SIDE))


def _times(plan: SamplePlan) -> str:
    return f"{plan.times} of {plan.prompts} prompt{'s' * (plan.prompts > 1)}"
