"""Samples while a training runs: the same prompts and seed again and again, drawn with what has been learned so far."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

from PIL import Image

from lora_service.dataset.captions.templates import fill_template
from lora_service.dataset.options import SUBJECT, Task
from lora_service.generation.generator import ImageGenerator
from lora_service.generation.image_grid import ImageRow
from lora_service.generation.request import GenerateRequest
from lora_service.training.context import TrainingContext
from lora_service.training.inputs.resolved_config import ResolvedConfig

MOST_INFERENCE_STEPS = 20
"""Denoising steps of a sample: with the default scheduler pictures change little beyond."""
THUMBNAIL_PIXELS = 256

_OTHER = "{other}"
_SUBJECT_PROMPTS = ("a photo of {}", f"a photo of {_OTHER}", "a picture of {} on the beach")
_PROMPTS: Mapping[Task, tuple[str, ...]] = {
    "face": _SUBJECT_PROMPTS,
    "object": _SUBJECT_PROMPTS,
    "style": ("a house in the style of {}", "a house", "a person in the style of {}"),
    "location": ("a photo of {}", "a photo of a house", "a picture of {} at night"),
}
"""The prompts of the samples by task, the most telling first; one does without the subject, and should not change."""
_OTHERS: Mapping[Task, str] = {"face": "a person", "object": "a house"}
"""Drawn in place of the subject where there is no class word."""


def sample_prompts(resolved: ResolvedConfig) -> tuple[str, ...]:
    """Return the prompts of the samples, with ``{}`` for the subject; the first has it, if any has."""
    config = resolved.config
    if config.prompts_of_samples:
        return tuple(sorted(config.prompts_of_samples, key=lambda prompt: SUBJECT not in prompt))
    other = f"a {config.class_word}" if config.class_word else _OTHERS.get(config.task, "")
    return tuple(prompt.replace(_OTHER, other) for prompt in _PROMPTS[config.task])


def sample_steps(start: int, end: int, times: int) -> list[int]:
    """Return ``times`` steps after ``start``, evenly spread, of which ``end`` is the last."""
    return sorted({start + max(1, round((end - start) * i / times)) for i in range(1, times + 1)})


@dataclass(frozen=True)
class SamplePlan:
    """The number of prompts, and of times that they are drawn."""

    prompts: int
    times: int

    @property
    def pictures(self) -> int:
        """The number of all pictures."""
        return self.prompts * self.times

    def within(self, pictures: int) -> SamplePlan:
        """Return the part of it that has at most so many pictures: fewer prompts first, then fewer times.

        Two times remain, the first one, which was measured, and the last one, which shows the result.
        """
        if pictures >= self.pictures:
            return self
        prompts = max(1, pictures // self.times)
        return SamplePlan(prompts, max(min(2, self.times), min(self.times, pictures // prompts)))


@dataclass(frozen=True)
class Sample:
    """The pictures of one time, of the first so many prompts."""

    stage: str
    step: int
    images: Sequence[Image.Image]

    @property
    def label(self) -> str:
        """The label in grids, such as "stage 1, step 350"."""
        return f"{self._number}, step {self.step}"

    @property
    def file_name(self) -> str:
        """The name of its grid, such as "stage-1-step-000350.png"."""
        return f"{self._number.replace(' ', '-')}-step-{self.step:06d}.png"

    @property
    def _number(self) -> str:
        return self.stage.partition(" (")[0]

    def row(self, captions: Sequence[str] = ()) -> ImageRow:
        """Return its row in a grid, with captions below the pictures if there are any."""
        return ImageRow(self.label, self.images, captions[: len(self.images)])


@dataclass
class SampleDrawer:
    """Draws prompts on the base as it is while it trains, LoRA layers and learned tokens in place.

    The noise comes from a generator of its own, so that a training with samples is the same as one without.

    Attributes:
        prompts: with ``{}`` for the subject.
        seconds_per_picture: of the last picture.
    """

    context: TrainingContext
    prompts: tuple[str, ...]
    seconds_per_picture: float = field(default=0.0, init=False)

    @property
    def seed(self) -> int:
        """The seed of every picture: the job's."""
        return self.context.resolved.config.seed or 0

    @property
    def num_inference_steps(self) -> int:
        """The denoising steps of every picture."""
        return min(MOST_INFERENCE_STEPS, self.context.base.defaults.num_inference_steps)

    @property
    def captions(self) -> list[str]:
        """The prompts as they are shown, with ``<1>`` for the subject, as in the prompts of an inference."""
        return [fill_template(prompt, "<1>") for prompt in self.prompts]

    def draw(self, prompts: Sequence[str]) -> list[Image.Image]:
        """Draw ``prompts`` at the base's own size."""
        generator = ImageGenerator(replace(self.context.base, text=self.context.text))
        offloading = self.context.offloading
        with offloading.vae.on_device() if offloading else nullcontext():
            return [self._draw(generator, prompt) for prompt in prompts]

    def _draw(self, generator: ImageGenerator, prompt: str) -> Image.Image:
        started = time.monotonic()
        request = GenerateRequest(
            prompt=fill_template(prompt, self.context.resolved.subject_text),
            seed=self.seed,
            num_inference_steps=self.num_inference_steps,
        )
        image = generator.generate(request, [])[0].image
        self.seconds_per_picture = time.monotonic() - started
        return image

    def summary(self) -> dict[str, Any]:
        """Return what the header says of the samples; prompts of the user's own are private."""
        has_prompts = bool(self.context.resolved.config.sample_prompts)
        return {
            "seed": self.seed,
            "num_inference_steps": self.num_inference_steps,
            "prompts": len(self.prompts) if has_prompts else self.captions,
        }


def thumbnail_url(image: Image.Image) -> str:
    """Return ``image``, scaled to a longer side of 256 pixels, as the data URL of a JPEG: about 20 kB."""
    scale = THUMBNAIL_PIXELS / max(image.size)
    size = (max(1, round(image.width * scale)), max(1, round(image.height * scale)))
    data = io.BytesIO()
    image.convert("RGB").resize(size, Image.Resampling.LANCZOS).save(data, "JPEG", quality=85)
    return "data:image/jpeg;base64," + base64.b64encode(data.getvalue()).decode()
