"""Likeness, following and drift of a base as it is: bare, while it trains, or with a LoRA."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace

from PIL import Image

from benchmarks.quality.subjects import Subject
from lora_service.demo.evaluation import UNRELATED_PROMPTS, drift, reconstruct
from lora_service.generation.generator import ImageGenerator
from lora_service.generation.request import GenerateRequest
from lora_service.lora.patcher import ScaledLora
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.image_judge import ImageJudge
from lora_service.training.context import TrainingContext
from lora_service.training.optimization.loop import StageRun, TrainingCallback
from tools.judges.judging import TextJudge

SEED = 11
"""Of every picture that is measured."""
Draw = Callable[[Sequence[str]], list[Image.Image]]
"""Prompts -> a picture of each."""


@dataclass(frozen=True)
class Measures:
    """What pictures were judged to be.

    Attributes:
        likeness: mean cosine, −1 to 1, of pictures of the subject with pictures of it that were not trained on.
        following: share of pictures of the subject that suit their own prompt better than the others'.
        drift: mean of 1 − cosine, 0 to 2, of pictures without the subject to what the bare base draws.
        pixel_drift: mean change of a pixel of these, 0 to 1.
    """

    likeness: float
    following: float
    drift: float
    pixel_drift: float

    def rounded(self) -> dict[str, float]:
        """Return them by name, with four decimals."""
        return {name: round(value, 4) for name, value in asdict(self).items()}


@dataclass(eq=False)
class Judges:
    """Measures pictures of one base; what the bare base draws is drawn once."""

    base: DiffusionBase
    image: ImageJudge
    text: TextJudge
    _of_base: dict[tuple[str, ...], list[Image.Image]] = field(default_factory=dict, init=False)

    def measure(self, subject: Subject, pictures: Sequence[Image.Image], others: Sequence[Image.Image]) -> Measures:
        """Measure ``pictures`` of the subject's prompts in order, and ``others`` of the prompts without it."""
        before = self.of_base(UNRELATED_PROMPTS)
        return Measures(
            likeness=self.image.similarity(pictures, subject.references(self.base.defaults.resolution)),
            following=self.text.top_1_accuracy(pictures, subject.prompts.of_base()),
            drift=self._distance(before, others),
            pixel_drift=sum(drift(b, a) for b, a in zip(before, others, strict=True)) / len(before),
        )

    def floor(self, subject: Subject) -> Measures:
        """Return the measures of the bare base, asked for the nearest that it knows."""
        return self.measure(subject, self.of_base(subject.prompts.of_base()), self.of_base(UNRELATED_PROMPTS))

    def ceiling(self, subject: Subject) -> float:
        """Return the likeness of further pictures of the subject, encoded and decoded by the base's VAE."""
        side = self.base.defaults.resolution
        references = subject.references(side)
        return self.image.similarity(reconstruct(self.base, subject.references(side, len(references))), references)

    def drift(self, prompts: Sequence[str], loras: list[ScaledLora]) -> float:
        """Return the drift of ``prompts`` with LoRAs."""
        return self._distance(self.of_base(prompts), self.draw(prompts, loras))

    def of_base(self, prompts: Sequence[str]) -> list[Image.Image]:
        """Return what the bare base draws of ``prompts``."""
        key = tuple(prompts)
        if key not in self._of_base:
            self._of_base[key] = self.draw(prompts, [])
        return self._of_base[key]

    def draw(self, prompts: Sequence[str], loras: list[ScaledLora]) -> list[Image.Image]:
        """Draw ``prompts``; the base is bare afterwards."""
        generator = ImageGenerator(self.base)
        try:
            return _draw(generator, prompts, loras)
        finally:
            generator.patcher.restore()

    def _distance(self, before: Sequence[Image.Image], after: Sequence[Image.Image]) -> float:
        return float(1 - (self.text.embed(before) * self.text.embed(after)).sum(dim=1).mean())


def _draw(generator: ImageGenerator, prompts: Sequence[str], loras: list[ScaledLora]) -> list[Image.Image]:
    requests = [GenerateRequest(prompt=prompt, seed=SEED) for prompt in prompts]
    return [generator.generate(request, loras)[0].image for request in requests]


@dataclass(frozen=True)
class Point:
    """Where a training is, and what the base draws there."""

    pictures: int
    seconds: float
    measures: Measures


class Curve(TrainingCallback):
    """Measures a training ``times`` times, evenly spread over its pictures; the last time is the caller's.

    The seconds are the processor's, without those of the measuring.
    """

    def __init__(self, context: TrainingContext, judges: Judges, subject: Subject, times: int) -> None:
        config = context.resolved.config
        self._context, self._judges, self._subject = context, judges, subject
        self._batch = config.train_batch_size * config.gradient_accumulation_steps
        self._stages = (config.max_train_steps_ti, config.max_train_steps_tuning)
        self._due = [round(sum(self._stages) * i / times) for i in range(1, times)]
        self._offset, self._measuring, self._started = 0, 0.0, 0.0
        self.points: list[Point] = []

    @property
    def seconds(self) -> float:
        """Of the processor since the first step."""
        return time.process_time() - self._started - self._measuring if self._started else 0.0

    def on_stage_start(self, stage: StageRun) -> None:
        """Start the clock."""
        self._started = self._started or time.process_time()

    def on_step_end(self, stage: StageRun) -> None:
        """Measure if it is time to."""
        if self._due and self._offset + stage.step >= self._due[0]:
            self._due = [step for step in self._due if step > self._offset + stage.step]
            seconds, started = self.seconds, time.process_time()
            with stage.evaluating():
                measures = self._measure()
            self._measuring += time.process_time() - started
            self.points.append(Point((self._offset + stage.step) * self._batch, seconds, measures))

    def on_stage_end(self, stage: StageRun) -> None:
        """Count on from here; a stage may end before its steps do."""
        self._offset += stage.step

    @property
    def pictures(self) -> int:
        """Pictures seen in all."""
        return self._offset * self._batch

    def _measure(self) -> Measures:
        prompts = self._subject.prompts.of_lora(self._context.resolved.subject_text)
        # The noise is that of the floor and of the finished LoRA, so that nothing but the learning differs.
        generator = ImageGenerator(replace(self._context.base, text=self._context.text))
        pictures, others = (_draw(generator, asked, []) for asked in (prompts, UNRELATED_PROMPTS))
        return self._judges.measure(self._subject, pictures, others)


def flat(measures: Mapping[str, Measures]) -> dict[str, float]:
    """Return measures by name, each with its own name in front."""
    return {f"{name}_{key}": value for name, each in measures.items() for key, value in each.rounded().items()}
