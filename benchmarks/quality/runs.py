"""Trainings and their rows in a table of comma-separated values, of which an interrupted benchmark repeats none."""

from __future__ import annotations

import csv
import shutil
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from PIL import Image

from benchmarks.quality.measuring import Curve, Judges, flat
from benchmarks.quality.methods import TRIGGER, Method
from benchmarks.quality.subjects import Subject
from lora_service.demo.evaluation import UNRELATED_PROMPTS
from lora_service.lora.files import read_lora
from lora_service.lora.scale import Scale
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.settings import Settings
from lora_service.training.context import TrainingContext
from lora_service.training.inputs.config import TrainConfig
from lora_service.training.optimization.loop import TrainingCallback
from lora_service.training.trainer import Trainer

FLOOR = "base"
"""The method of rows that hold floor and ceiling."""
_CURVE = ("likeness", "following", "drift", "pixel_drift")
COLUMNS = (
    "method", "kind", "subject", "seed", "is_final", "pictures", "seconds", *_CURVE,
    *(f"half_{name}" for name in _CURVE), *(f"trigger_{name}" for name in _CURVE), "class_drift", "kilobytes",
)  # fmt: skip
"""A row for each time that a training was measured. ``half_``: at scale 0.5; ``trigger_``: asked for by the trigger.
``class_drift``: of prompts of the subject's class."""


@dataclass(frozen=True)
class Run:
    """One training."""

    method: str
    kind: str
    subject: int
    seed: int

    @property
    def name(self) -> str:
        """A name for files."""
        method = self.method.replace(",", "-").replace("=", "-").replace("/", "-")
        return f"{method}-{self.kind}-{self.subject}-{self.seed}"


class Table:
    """Rows in a file, each of them there as soon as it is known."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)

    def rows(self) -> list[dict[str, Any]]:
        """Return all rows, numbers as numbers."""
        if not self.path.exists():
            return []
        with self.path.open(newline="", encoding="utf-8") as file:
            return [{name: _number(name, value) for name, value in row.items()} for row in csv.DictReader(file)]

    def done(self) -> set[Run]:
        """Return the trainings that have ended."""
        return {_run(row) for row in self.rows() if row["is_final"]}

    def add(self, run: Run, rows: Sequence[dict[str, Any]]) -> None:
        """Append a training's rows."""
        is_new = not self.path.exists()
        with self.path.open("a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, COLUMNS)
            if is_new:
                writer.writeheader()
            writer.writerows({**asdict(run), **row} for row in rows)


def _run(row: dict[str, Any]) -> Run:
    return Run(row["method"], row["kind"], int(row["subject"]), int(row["seed"]))


def _number(name: str, value: str) -> Any:
    return value if name in ("method", "kind") or value == "" else float(value)


@dataclass(frozen=True, eq=False)
class Bench:
    """What all trainings share.

    Attributes:
        times: how often a training is measured, its end included.
    """

    base: DiffusionBase
    judges: Judges
    folder: Path
    times: int = 8

    def inputs(self, method: Method, subject: Subject, seed: int) -> dict[str, Any]:
        """Return the inputs of a training."""
        return {
            "task": subject.kind,
            "class_word": subject.prompts.class_word or ("picture" if "preservation" in method.inputs else ""),
            "trigger": TRIGGER,
            "seed": seed,
            "samples": 0,
            "max_train_steps_ti": method.steps[0],
            "max_train_steps_tuning": method.steps[1],
            **method.rates(self.base.defaults),
            **method.inputs,
        }

    def train(self, method: Method, run: Run) -> list[dict[str, Any]]:
        """Train, and return the rows; the LoRA and a strip of pictures stay in the folder."""
        subject, job = Subject(run.kind, run.subject), self.folder / "job"
        shutil.rmtree(job, ignore_errors=True)
        curves: list[Curve] = []

        def watch(context: TrainingContext) -> list[TrainingCallback]:
            curves.append(Curve(context, self.judges, subject, self.times))
            return [curves[0]]

        trainer = Trainer(self.base, job, settings=Settings.from_environment(), callbacks=watch)
        result = trainer.run(subject.dataset(self.folder), TrainConfig.of(self.inputs(method, subject, run.seed)))
        curve = curves[0]
        rows = [
            {"is_final": 0, "pictures": p.pictures, "seconds": round(p.seconds, 2), **p.measures.rounded()}
            for p in curve.points
        ]
        path = result.path.replace(self.folder / f"{run.name}.safetensors")
        final = {"is_final": 1, "pictures": curve.pictures, "seconds": round(curve.seconds, 2)}
        return [*rows, {**final, **self.measure(path, run), "kilobytes": round(path.stat().st_size / 1000)}]

    def measure(self, path: Path, run: Run) -> dict[str, float]:
        """Measure a LoRA file at scales 1.0 and 0.5, by its tokens where it has any, and by its trigger."""
        lora, subject = read_lora(path), Subject(run.kind, run.subject)
        word = "<1>" if lora.tokens else TRIGGER
        found = {}
        for name, scale, text in (("", 1.0, word), ("half", 0.5, word), ("trigger", 1.0, TRIGGER)):
            loras = [(lora, Scale(scale, scale))]
            pictures, others = (
                self.judges.draw(prompts, loras) for prompts in (subject.prompts.of_lora(text), UNRELATED_PROMPTS)
            )
            found[name] = self.judges.measure(subject, pictures, others)
            if not name:
                save_strip([*pictures, *others], path.with_suffix(".png"))
        of_class = self.judges.drift(subject.prompts.of_base(), [(lora, Scale(1.0, 1.0))])
        plain = found.pop("").rounded()
        return {**plain, **flat(found), "class_drift": round(of_class, 4)}

    def floor(self, run: Run) -> list[dict[str, Any]]:
        """Return the row of the bare base: its measures, and the ceiling as the trigger's likeness."""
        subject = Subject(run.kind, run.subject)
        ceiling = round(self.judges.ceiling(subject), 4)
        measures = self.judges.floor(subject).rounded()
        return [{"is_final": 1, "pictures": 0, "seconds": 0, **measures, "trigger_likeness": ceiling}]

    def runs(
        self, methods: Sequence[Method], subjects: Sequence[Subject], seeds: Sequence[int]
    ) -> Iterator[tuple[Method | None, Run]]:
        """Yield the trainings, methods taking turns, so that an interrupted benchmark has something of each."""
        for subject in subjects:
            yield None, Run(FLOOR, subject.kind, subject.number, 0)
        for seed in seeds:
            for subject in subjects:
                for method in methods:
                    yield method, Run(method.name, subject.kind, subject.number, seed)


def save_strip(pictures: Sequence[Image.Image], path: Path) -> None:
    """Write pictures of one size side by side."""
    width, height = pictures[0].size
    strip = Image.new("RGB", (width * len(pictures), height))
    for number, picture in enumerate(pictures):
        strip.paste(picture, (number * width, 0))
    strip.save(path)
