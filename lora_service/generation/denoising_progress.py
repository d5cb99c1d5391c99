"""Progress while images are drawn: a line with speed and time left, and previews."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image
from torch import Tensor

from lora_service.generation.denoising import DenoisingBatch, DenoisingCallback, Picture
from lora_service.models.diffusion_base import DiffusionBase

_IMAGE_PROCESSOR = VaeImageProcessor()
_LARGEST_PREVIEW = 256  # pixels


@dataclass(frozen=True)
class Preview:
    """A picture that is not finished.

    Attributes:
        image: at most 256 pixels wide and high.
        step: the number of steps that are taken.
        steps: of all.
    """

    image: Image.Image
    step: int
    steps: int


class Progress(DenoisingCallback):
    """Logs the step, the steps per second and the time left, every few seconds.

    Args:
        images: the number of all images.
        log: called with the line.
        interval: seconds between two lines.
        clock: returns the time in seconds.
    """

    def __init__(
        self,
        images: int,
        log: Callable[[str], None],
        interval: float = 2.0,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._images, self._log, self._interval, self._clock = images, log, interval, clock
        self._finished: list[Picture] = []
        self._started = self._logged = 0.0

    def on_batch_start(self, batch: DenoisingBatch) -> None:
        self._started = self._clock()
        if batch.pictures[0] in self._finished:  # a batch that could not be decoded is drawn again, from its first on
            del self._finished[self._finished.index(batch.pictures[0]) :]
        if not self._finished:
            self._logged = self._started

    def on_step_end(self, batch: DenoisingBatch, latents: Tensor) -> Tensor:
        now, size = self._clock(), len(batch.pictures)
        if now - self._logged >= self._interval and batch.step < batch.steps:
            self._logged = now
            rate = batch.step / max(now - self._started, 1e-6)
            steps_left = batch.steps - batch.step + (self._images - len(self._finished) - size) * batch.steps / size
            of_images = f" of {self._pictures(size)}" if self._images > 1 else ""
            speed = f"{rate:.1f} steps/s" if rate >= 1 else f"{1 / rate:.1f} s/step"
            self._log(f"step {batch.step} of {batch.steps}{of_images}: {speed}, {_duration(steps_left / rate)} left")
        if batch.step == batch.steps:
            self._finished.extend(batch.pictures)
        return latents

    def _pictures(self, size: int) -> str:
        first, last = len(self._finished) + 1, len(self._finished) + size
        return f"pictures {first}–{last} of {self._images}" if size > 1 else f"picture {first} of {self._images}"


def _duration(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


class Previews(DenoisingCallback):
    """Shows what the UNet expects of a batch's first picture, every few steps.

    That is the prediction with the prompt, without guidance, of the latents behind the noise.

    Args:
        base: the base model.
        every: the number of steps from one preview to the next.
        show: called with each.
    """

    def __init__(self, base: DiffusionBase, every: int, show: Callable[[Preview], None]) -> None:
        self._base, self._every, self._show = base, every, show
        self._unet: Any = None
        self._watched: _WatchedUnet | None = None

    def on_batch_start(self, batch: DenoisingBatch) -> None:
        self._unet = batch.pipeline.unet
        self._watched = batch.pipeline.unet = _WatchedUnet(self._unet)

    def on_step_end(self, batch: DenoisingBatch, latents: Tensor) -> Tensor:
        if self._watched is not None and batch.step % self._every == 0 and batch.step < batch.steps:
            # The predictions without the prompt, if any, come first.
            first = len(self._watched.sample) - len(batch.pictures)
            predicted = self._predicted_latents(self._watched, first)
            self._show(_preview(self._base, predicted, batch))
        return latents

    def on_batch_end(self, batch: DenoisingBatch) -> None:
        if self._watched is not None:
            batch.pipeline.unet, self._watched = self._unet, None

    def _predicted_latents(self, watched: _WatchedUnet, index: int) -> Tensor:
        """Return the latents ``(1, c, h, w)`` without their noise."""
        output = watched.output[index : index + 1].float()
        noisy = watched.sample[index : index + 1, : output.shape[1]].float()
        if self._base.prediction_type == "sample":
            return output
        alphas = self._base.noise_schedule.alphas_cumprod
        alpha = alphas[int(watched.timestep.flatten()[0].round().clamp(0, len(alphas) - 1))].to(noisy)
        if self._base.prediction_type == "v_prediction":
            return alpha.sqrt() * noisy - (1 - alpha).sqrt() * output
        return (noisy - (1 - alpha).sqrt() * output) / alpha.sqrt().clamp(min=1e-3)


class FlowPreviews(DenoisingCallback):
    """The same for bases of flow matching, whose Euler steps tell what was predicted; there is none of the first step.

    Args: as of :class:`Previews`.
    """

    def __init__(self, base: DiffusionBase, every: int, show: Callable[[Preview], None]) -> None:
        self._base, self._every, self._show = base, every, show
        self._before: Tensor | None = None

    def on_batch_start(self, batch: DenoisingBatch) -> None:
        self._before = None

    def on_step_end(self, batch: DenoisingBatch, latents: Tensor) -> Tensor:
        before, self._before = self._before, latents[:1].float()
        if before is not None and batch.step % self._every == 0 and batch.step < batch.steps:
            earlier, sigma = batch.pipeline.scheduler.sigmas[batch.step - 1 : batch.step + 1].to(before)
            velocity = (self._before - before) / (sigma - earlier)
            self._show(_preview(self._base, self._before - sigma * velocity, batch))
        return latents

    def on_batch_end(self, batch: DenoisingBatch) -> None:
        self._before = None


def _preview(base: DiffusionBase, latents: Tensor, batch: DenoisingBatch) -> Preview:
    [image] = _IMAGE_PROCESSOR.postprocess(base.decode(latents))
    image.thumbnail((_LARGEST_PREVIEW, _LARGEST_PREVIEW))
    return Preview(image, batch.step, batch.steps)


class _WatchedUnet:
    """A UNet as a pipeline calls it, which keeps what it was given last and what it predicted."""

    def __init__(self, unet: Any) -> None:
        self._unet = unet

    def __getattr__(self, name: str) -> Any:
        return getattr(self._unet, name)

    def __call__(self, sample: Tensor, timestep: Any, *args: Any, **kwargs: Any) -> Any:
        result = self._unet(sample, timestep, *args, **kwargs)
        self.sample, self.timestep, self.output = sample, torch.as_tensor(timestep), result[0]
        return result
