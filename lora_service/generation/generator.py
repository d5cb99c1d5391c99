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
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageOps

from lora_service.errors import InputError
from lora_service.generation.pipelines import pipeline_for
from lora_service.generation.request import LARGEST_SIDE, GenerateRequest, expand_references
from lora_service.generation.schedulers import SCHEDULERS, check_schedule, check_scheduler
from lora_service.lora.patcher import Patcher
from lora_service.lora.scale import Scale
from lora_service.lora.weights import LoraWeights
from lora_service.models.diffusion_base import DiffusionBase

ScaledLora = tuple[LoraWeights, Scale]
Log = Callable[[str], None]

_PICTURES = VaeImageProcessor()
"""Pictures <-> tensors in [-1, 1]."""


@dataclass(frozen=True)
class GeneratedImage:
    """One drawn picture, its own seed, and the settings it was made with."""

    image: Image.Image
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)


class ImageGenerator:
    """A base model that draws; it stays patched with the last request's LoRAs, so that the same again costs nothing.

    Every request states all of its LoRAs, so a request without one gets the bare
    base, and a failed or cancelled one leaves the bare base behind.
    """

    def __init__(self, base: DiffusionBase) -> None:
        self.base = base
        self.patcher = Patcher(base.components, base.tokenizers)

    def draw(
        self,
        request: GenerateRequest,
        loras: list[ScaledLora],
        *,
        image: Image.Image | None = None,
        log: Log = lambda line: None,
    ) -> list[GeneratedImage]:
        """The pictures of ``request``. Picture ``i`` has seed ``seed + i`` and is what that seed alone would give.

        Args:
            loras: the LoRAs of ``request``, read, in its order.
            image: the picture to start from, upright, for picture to picture.
            log: called with lines for the person who waits.

        Raises:
            InputError: a size does not suit the base, or the prompt names a LoRA that is not there.
            WrongBaseError: a LoRA belongs to another base.
        """
        width, height = self._size(request, image)
        with self._patched(loras) as report:
            if report.warning:
                log(f"warning: {report.warning}")
            subjects = [None if s.is_zero else name for name, (_, s) in zip(report.subjects, loras, strict=True)]
            wording = expand_references(request.prompt, subjects)
            for note in wording.notes:
                log(note)
            self._warn_of_truncation(wording.prompt, log)
            with torch.inference_mode():
                draw, settings = self._call(request, wording.prompt, (width, height), image)
            first = random.SystemRandom().randrange(2**32 - 8) if request.seed is None else request.seed
            pictures = []
            for i in range(request.num_outputs):
                started, seed = time.monotonic(), (first + i) % 2**32
                generator = torch.Generator("cpu").manual_seed(seed)  # the same pictures on every device
                with torch.inference_mode():
                    drawn = draw(generator)
                pictures.append(GeneratedImage(drawn, seed, {"seed": seed, "prompt": wording.prompt, **settings}))
                log(f"picture {i + 1} of {request.num_outputs}: seed {seed}, {time.monotonic() - started:.1f} s")
        return pictures

    @contextmanager
    def _patched(self, loras: list[ScaledLora]) -> Iterator[Any]:
        try:
            yield self.patcher.apply(loras)
        except BaseException:
            self.patcher.restore()
            raise

    def _size(self, request: GenerateRequest, image: Image.Image | None) -> tuple[int, int]:
        """The pictures' size: as asked, else the given picture's, else the base's."""
        native = self.base.defaults.resolution
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
    ) -> tuple[Callable[[torch.Generator], Image.Image], dict[str, Any]]:
        """What draws one picture from a generator, and the settings for the file."""
        defaults = self.base.defaults
        settings: dict[str, Any] = {
            "num_inference_steps": request.num_inference_steps or defaults.num_inference_steps,
            "guidance_scale": defaults.guidance_scale if request.guidance_scale is None else request.guidance_scale,
        }
        check_scheduler(request.scheduler, settings["num_inference_steps"])
        check_schedule(request.scheduler, self.base.scheduler_config)
        told = {
            **settings,
            "negative_prompt": request.negative_prompt,
            "width": size[0],
            "height": size[1],
            "scheduler": request.scheduler,
            # What did nothing is not told: at scale 0 the file is the base's own, byte for byte.
            "lora_scales": "" if all(scale.is_zero for _, scale in request.loras()) else request.lora_scales,
            "base": defaults.title,
        }
        if image is not None:
            told["prompt_strength"] = request.prompt_strength
            if int(request.prompt_strength * settings["num_inference_steps"]) < 1:
                least = 1 / settings["num_inference_steps"]
                wanted = f"at least {least:.2g}, so that one of {settings['num_inference_steps']} steps is taken"
                raise InputError("prompt_strength", request.prompt_strength, wanted)
        given = {**settings, **self._embeds(prompt, request.negative_prompt)}
        scheduler = SCHEDULERS[request.scheduler].make(self.base.scheduler_config)
        if image is None:
            return self._from_text({**given, "width": size[0], "height": size[1]}, scheduler), told
        start = ImageOps.fit(image.convert("RGB"), size, Image.Resampling.LANCZOS)
        return self._from_picture({**given, "strength": request.prompt_strength}, start, scheduler), told

    def _embeds(self, prompt: str, negative: str) -> dict[str, torch.Tensor]:
        """Both prompts as the pipelines take them, through the text encoders and tokenizers as they are now."""
        text = self.base.text.with_tokenizers(self.patcher.tokenizers)
        # One at a time, as the pipelines do: a batch of two differs in the last bits.
        wanted, unwanted = (text.encode(text.tokenize([words]).to(self.base.device)) for words in (prompt, negative))
        return {**wanted.as_arguments(), **unwanted.as_arguments("negative_")}

    def _from_text(self, given: dict[str, Any], scheduler: Any) -> Callable[[torch.Generator], Image.Image]:
        pipeline = pipeline_for(self.base, "text2img", scheduler)
        return lambda generator: self._picture(pipeline(**given, generator=generator, output_type="latent").images)

    def _from_picture(
        self, given: dict[str, Any], start: Image.Image, scheduler: Any
    ) -> Callable[[torch.Generator], Image.Image]:
        pipeline = pipeline_for(self.base, "img2img", scheduler)
        posterior = self.base.posterior(_PICTURES.preprocess(start))

        def draw(generator: torch.Generator) -> Image.Image:
            # The pipelines know latents by their 4 channels; what else there is they must encode themselves.
            is_known = self.base.vae.config.latent_channels == 4
            image = self.base.scaled(posterior.sample(generator)) if is_known else start
            return self._picture(pipeline(**given, image=image, generator=generator, output_type="latent").images)

        return draw

    def _picture(self, latents: torch.Tensor) -> Image.Image:
        return _PICTURES.postprocess(self.base.decode(latents))[0]

    def _warn_of_truncation(self, prompt: str, log: Log) -> None:
        text = self.base.text.with_tokenizers(self.patcher.tokenizers)
        words, room = text.count(prompt), text.positions - 2  # the start and the end take a place each
        if words > room:
            log(f"warning: the prompt has {words} tokens and only the first {room} are read")


def save_image(picture: GeneratedImage, path: Path, quality: int = 90) -> Path:
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
