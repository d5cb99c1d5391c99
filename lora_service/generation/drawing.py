"""Draws what a request asks for, with the LoRAs it names."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from diffusers import StableDiffusionImg2ImgPipeline, StableDiffusionPipeline
from PIL import Image, ImageOps

from lora_service.errors import InputError
from lora_service.generation.request import LARGEST_SIDE, GenerateRequest, name_subjects
from lora_service.generation.samplers import SAMPLERS, check_sampler
from lora_service.lora.patcher import Patcher
from lora_service.lora.scale import Scale
from lora_service.lora.weights import LoraWeights
from lora_service.models.bundle import BaseModel

Lora = tuple[LoraWeights, Scale]
Tell = Callable[[str], None]


@dataclass(frozen=True)
class Picture:
    """One drawn picture, its own seed, and the settings it was made with."""

    image: Image.Image
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)


class Drawing:
    """A base model that draws; it stays patched with the last request's LoRAs, so that the same again costs nothing.

    Every request states all of its LoRAs, so a request without one gets the bare
    base, and a failed or cancelled one leaves the bare base behind.
    """

    def __init__(self, base: BaseModel) -> None:
        self.base = base
        self.patcher = Patcher(base.components, base.tokenizers)

    def draw(
        self,
        request: GenerateRequest,
        loras: list[Lora],
        *,
        image: Image.Image | None = None,
        tell: Tell = lambda line: None,
    ) -> list[Picture]:
        """The pictures of ``request``. Picture ``i`` has seed ``seed + i`` and is what that seed alone would give.

        Args:
            loras: the LoRAs of ``request``, read, in its order.
            image: the picture to start from, upright, for picture to picture.
            tell: called with lines for the person who waits.

        Raises:
            InputError: a size does not suit the base, or the prompt names a LoRA that is not there.
            WrongBaseError: a LoRA belongs to another base.
        """
        width, height = self._size(request, image)
        with self._patched(loras) as report:
            if report.warning:
                tell(f"warning: {report.warning}")
            subjects = [None if s.is_nothing else name for name, (_, s) in zip(report.subjects, loras, strict=True)]
            wording = name_subjects(request.prompt, subjects)
            for note in wording.notes:
                tell(note)
            self._tell_of_truncation(wording.prompt, tell)
            call, call_settings = self._call(request, wording.prompt, (width, height), image)
            first = random.SystemRandom().randrange(2**32 - 8) if request.seed is None else request.seed
            pictures = []
            for i in range(request.num_outputs):
                started, seed = time.monotonic(), (first + i) % 2**32
                generator = torch.Generator("cpu").manual_seed(seed)  # the same pictures on every device
                with torch.inference_mode():
                    drawn = call(generator=generator).images[0]
                pictures.append(Picture(drawn, seed, {"seed": seed, "prompt": wording.prompt, **call_settings}))
                tell(f"picture {i + 1} of {request.num_outputs}: seed {seed}, {time.monotonic() - started:.1f} s")
        return pictures

    @contextmanager
    def _patched(self, loras: list[Lora]) -> Iterator[Any]:
        try:
            yield self.patcher.apply(loras)
        except BaseException:
            self.patcher.restore()
            raise

    def _size(self, request: GenerateRequest, image: Image.Image | None) -> tuple[int, int]:
        """The pictures' size: as asked, else the given picture's, else the base's."""
        native = self.base.recipe.resolution
        if image is not None and request.width is None and request.height is None:
            scale = native / min(image.size)
            width, height = (min(LARGEST_SIDE, self.base.nearest_side(side * scale)) for side in image.size)
            return width, height
        size = request.width or native, request.height or native
        for name, value in zip(("width", "height"), size, strict=True):
            self.base.check_side(name, value)
        return size

    def _call(
        self, request: GenerateRequest, prompt: str, size: tuple[int, int], image: Image.Image | None
    ) -> tuple[Callable[..., Any], dict[str, Any]]:
        """The pipeline's call for one picture, lacking only its generator, and the settings for the file."""
        recipe = self.base.recipe
        settings: dict[str, Any] = {
            "negative_prompt": request.negative_prompt,
            "num_inference_steps": request.num_inference_steps or recipe.num_inference_steps,
            "guidance_scale": recipe.guidance_scale if request.guidance_scale is None else request.guidance_scale,
        }
        check_sampler(request.scheduler, settings["num_inference_steps"])
        told = {
            **settings,
            "width": size[0],
            "height": size[1],
            "scheduler": request.scheduler,
            # What did nothing is not told: at scale 0 the file is the base's own, byte for byte.
            "lora_scales": "" if all(scale.is_nothing for _, scale in request.loras()) else request.lora_scales,
            "base": recipe.title,
        }
        if image is None:
            pipeline = self._pipeline(StableDiffusionPipeline, request.scheduler)
            given: dict[str, Any] = {"width": size[0], "height": size[1]}
        else:
            pipeline = self._pipeline(StableDiffusionImg2ImgPipeline, request.scheduler)
            fitted = ImageOps.fit(image.convert("RGB"), size, Image.Resampling.LANCZOS)
            given = {"image": fitted, "strength": request.prompt_strength}
            told["prompt_strength"] = request.prompt_strength
            if int(request.prompt_strength * settings["num_inference_steps"]) < 1:
                least = 1 / settings["num_inference_steps"]
                wanted = f"at least {least:.2g}, so that one of {settings['num_inference_steps']} steps is taken"
                raise InputError("prompt_strength", request.prompt_strength, wanted)

        def call(generator: torch.Generator) -> Any:
            return pipeline(prompt=prompt, generator=generator, **settings, **given)

        return call, told

    def _tell_of_truncation(self, prompt: str, tell: Tell) -> None:
        tokenizer = self.patcher.tokenizers["text_encoder"]
        words = tokenizer.tokenize(prompt)
        room = tokenizer.model_max_length - 2  # the start and the end take a place each
        if len(words) > room:
            tell(f"warning: the prompt has {len(words)} tokens and only the first {room} are read")

    def _pipeline(self, kind: Any, scheduler: str) -> Any:
        """A pipeline around the base's parts as they are now; making one costs a millisecond."""
        pipeline = kind(
            vae=self.base.vae,
            text_encoder=self.base.text_encoder,
            tokenizer=self.patcher.tokenizers["text_encoder"],
            unet=self.base.unet,
            scheduler=SAMPLERS[scheduler].make(self.base.scheduler_config),
            safety_checker=None,
            feature_extractor=None,
            requires_safety_checker=False,
        )
        pipeline.set_progress_bar_config(disable=True)
        return pipeline


def save(picture: Picture, path: Path, quality: int = 90) -> Path:
    """Write ``picture`` to ``path``, in the format of its ending, with its settings in the metadata.

    PNG carries them as the text chunk ``parameters``, JPEG and WebP as the EXIF
    user comment: JSON with the prompt, the seed and what else decides the picture;
    links are not in it, as they may hold a token.
    """
    import json

    from PIL.PngImagePlugin import PngInfo

    text = json.dumps(dict(picture.settings), ensure_ascii=False, sort_keys=True)
    if path.suffix == ".png":
        info = PngInfo()
        info.add_itxt("parameters", text)
        picture.image.save(path, pnginfo=info)
    else:
        exif = Image.Exif()
        user_comment = 0x9286
        exif.get_ifd(0x8769)[user_comment] = b"UNICODE\0" + text.encode("utf-16-be")
        picture.image.save(path, quality=quality, exif=exif)
    return path
