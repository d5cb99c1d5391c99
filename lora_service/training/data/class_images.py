"""Class pictures that the untouched base draws, for prior preservation where none are given."""

from __future__ import annotations

import hashlib
import json
import shutil
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from PIL import Image

from lora_service.dataset.load import TrainingDataset, load_dataset
from lora_service.dataset.options import DatasetOptions
from lora_service.errors import quote
from lora_service.generation.generator import ImageGenerator
from lora_service.generation.request import GenerateRequest
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.fingerprint import fingerprint
from lora_service.training.data.class_image_cache import ClassImageCache

_REPORT_SECONDS = 5.0


@dataclass
class ClassImageArtist:
    """Draws class pictures, with the base's own sampling defaults, or takes them from the cache.

    The seeds count from 0 and not from the job's: other jobs with the same base and prompt want the same pictures.

    Args:
        base: as it was loaded; nothing of a training is in it.
        log: called with the progress.
    """

    base: DiffusionBase
    cache: ClassImageCache
    log: Callable[[str], None] = lambda line: None
    _keys: dict[str, str] = field(default_factory=dict, init=False)

    def dataset(self, prompts: Sequence[str], count: int, options: DatasetOptions, folder: Path) -> TrainingDataset:
        """Return ``count`` pictures of ``prompts`` in turn, each captioned with its prompt.

        Args:
            options: those of ``class_options``.
            folder: the job's folder.

        Raises:
            PicturesError: as of ``load_dataset``.
        """
        drawn = folder / "class-pictures"
        drawn.mkdir(parents=True)
        try:
            self._write(prompts, count, options.resolution, drawn)
            return load_dataset(drawn, options, folder)
        finally:
            shutil.rmtree(drawn)

    def _write(self, prompts: Sequence[str], count: int, side: int, folder: Path) -> None:
        """Write the pictures with their captions to ``folder``."""
        started = reported = time.monotonic()
        drawn = 0
        self.log(f"class pictures: {count} of {', '.join(map(quote, prompts))}, by the base itself")
        for seed in range(count):
            prompt = prompts[seed % len(prompts)]
            image = self.cache.find(self._key(prompt, side), seed)
            if image is None:
                image, drawn = self._draw(prompt, side, seed), drawn + 1
                self._store(self._key(prompt, side), seed, image)
            image.save(folder / f"{seed}.png")
            (folder / f"{seed}.txt").write_text(prompt, encoding="utf-8")
            now = time.monotonic()
            if now - reported > _REPORT_SECONDS and seed + 1 < count:
                left = (now - started) / (seed + 1) * (count - seed - 1)
                self.log(f"class pictures: {seed + 1} of {count}, {left:.0f} s left for them")
                reported = now
        self.cache.trim(self._keys.values())
        cached = count - drawn
        self.log(f"class pictures: {drawn} drawn in {time.monotonic() - started:.0f} s, {cached} from an earlier job")

    def _draw(self, prompt: str, side: int, seed: int) -> Image.Image:
        request = GenerateRequest(prompt=prompt, seed=seed, width=side, height=side)
        return self._generator.generate(request, [])[0].image

    @cached_property
    def _generator(self) -> ImageGenerator:
        return ImageGenerator(self.base)

    def _store(self, key: str, seed: int, image: Image.Image) -> None:
        try:
            self.cache.store(key, seed, image)
        except OSError as error:  # a full or read-only disk: the next job draws them again
            if not seed:
                self.log(f"warning: class pictures cannot be kept for later jobs: {error.strerror}")

    def _key(self, prompt: str, side: int) -> str:
        """Return the cache's key of a prompt's pictures."""
        if prompt not in self._keys:
            request, defaults = GenerateRequest(prompt=prompt), self.base.defaults
            settings: Mapping[str, object] = {
                "base": self._fingerprint,
                "prompt": prompt,
                "side": side,
                "scheduler": request.scheduler,
                "scheduler_config": self.base.scheduler_config,
                "steps": defaults.num_inference_steps,
                "guidance_scale": defaults.guidance_scale,
            }
            text = json.dumps(settings, sort_keys=True, default=str)
            self._keys[prompt] = hashlib.sha256(text.encode()).hexdigest()[:32]
        return self._keys[prompt]

    @cached_property
    def _fingerprint(self) -> str:
        return f"{fingerprint(self.base)} {self.base.device.type} {self.base.dtype}"
