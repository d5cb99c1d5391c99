"""Generates the images of a request, with the LoRAs it names."""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageOps
from PIL.PngImagePlugin import PngInfo

from lora_service.errors import InputError
from lora_service.generation.clip_skip import choose_clip_skip
from lora_service.generation.pipelines import make_pipeline, make_scheduler
from lora_service.generation.request import LARGEST_SIDE, GenerateRequest, expand_references
from lora_service.generation.schedulers import check_scheduler
from lora_service.lora.patcher import Patcher
from lora_service.lora.scale import Scale
from lora_service.lora.weights import LoraWeights
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.text_encoders import MAX_CHUNKS

ScaledLora = tuple[LoraWeights, Scale]
Log = Callable[[str], None]
GenerateImage = Callable[[torch.Generator], Image.Image]
"""Generates one image from the noise of a random generator."""

_IMAGE_PROCESSOR = VaeImageProcessor()
_EXIF_IFD, _EXIF_USER_COMMENT = 0x8769, 0x9286


@dataclass(frozen=True)
class GeneratedImage:
    """A generated image, its own seed, and the settings it was generated with."""

    image: Image.Image
    seed: int
    settings: Mapping[str, Any] = field(default_factory=dict)


class Prompts(NamedTuple):
    """The two prompts of a request, without references; the fields are named as the inputs."""

    prompt: str
    negative_prompt: str


class ImageGenerator:
    """A base model that generates images; it stays patched with the last request's LoRAs, which cost nothing again.

    Every request names all of its LoRAs, so a request without one gets the bare base, and a failed or cancelled one
    leaves the bare base behind.

    Args:
        base: the base model.
        max_pixel_steps: most width × height × steps × images of a request; None: any.
    """

    def __init__(self, base: DiffusionBase, max_pixel_steps: int | None = None) -> None:
        self.base = base
        self._max_pixel_steps = max_pixel_steps
        self.patcher = Patcher(base.components, base.tokenizers)
        self._text = base.text

    def generate(
        self,
        request: GenerateRequest,
        loras: list[ScaledLora],
        *,
        image: Image.Image | None = None,
        log: Log = lambda line: None,
    ) -> list[GeneratedImage]:
        """Generate the images of ``request``. Image ``i`` has the seed ``seed + i`` and depends on that seed alone.

        Args:
            request: the inputs.
            loras: the LoRAs of ``request``, loaded, in its order.
            image: the initial image of img2img, upright; None for text2img.
            log: called with lines for the person who waits.

        Raises:
            InputError: a size does not suit the base, or the prompt names a LoRA that the request does not have.
            WrongBaseError: a LoRA belongs to another base.
        """
        size = self._size(request, image)
        self._check_budget(request, size)
        with self._patched(loras) as report:
            if report.warning:
                log(f"warning: {report.warning}")
            subjects = [None if s.is_zero else name for name, (_, s) in zip(report.subjects, loras, strict=True)]
            clip_skip = choose_clip_skip(request, loras, self.base, log)
            self._text = self.base.text.with_tokenizers(self.patcher.tokenizers).with_clip_skip(clip_skip)
            prompts = self._expand_prompts(request, subjects, report.named_subjects, log)
            with torch.inference_mode():
                generate_image, settings = self._prepare(request, prompts, size, image)
            # At scale 0 a LoRA changes nothing, and the file is the bare base's, byte for byte.
            scales = "" if all(scale.is_zero for _, scale in loras) else request.lora_scales
            return _generate_images(generate_image, request, {**settings, "lora_scales": scales}, log)

    def _expand_prompts(
        self,
        request: GenerateRequest,
        subjects: list[str | None],
        named_subjects: Sequence[Mapping[str, str]],
        log: Log,
    ) -> Prompts:
        """Return both prompts with their references expanded; the log gets notes, and warnings of what is cut off."""
        expanded = []
        for field_name in Prompts._fields:
            result = expand_references(getattr(request, field_name), subjects, field_name, named_subjects)
            for note in result.notes:
                log(note)
            self._warn_of_truncation(field_name, result.prompt, log)
            expanded.append(result.prompt)
        return Prompts(*expanded)

    @contextmanager
    def _patched(self, loras: list[ScaledLora]) -> Iterator[Any]:
        try:
            yield self.patcher.apply(loras)
        except BaseException:
            self.patcher.restore()
            raise

    def _size(self, request: GenerateRequest, image: Image.Image | None) -> tuple[int, int]:
        """Return width and height: the request's, else the initial image's, else the base's."""
        native = self.base.defaults.resolution
        if image is not None and request.width is None and request.height is None:
            scale = native / min(image.size)
            width, height = (min(LARGEST_SIDE, self.base.nearest_side(side * scale)) for side in image.size)
            return width, height
        size = request.width or native, request.height or native
        for name, value in zip(("width", "height"), size, strict=True):
            self.base.check_side(name, value)
        return size

    def _check_budget(self, request: GenerateRequest, size: tuple[int, int]) -> None:
        """Refuse a request that would take hours.

        Raises:
            InputError: it exceeds the limit (``too_much_work``).
        """
        steps = request.num_inference_steps or self.base.defaults.num_inference_steps
        pixel_steps = size[0] * size[1] * steps * request.num_outputs
        if self._max_pixel_steps is not None and pixel_steps > self._max_pixel_steps:
            limit = self._max_pixel_steps // (size[0] * size[1] * request.num_outputs)
            expected = (
                f"at most {limit} for {request.num_outputs} pictures of {size[0]} × {size[1]} pixels, as "
                f"MAX_PIXEL_STEPS is {self._max_pixel_steps}; take fewer or smaller pictures"
            )
            raise InputError("num_inference_steps", steps, expected, code="too_much_work")

    def _prepare(
        self,
        request: GenerateRequest,
        prompts: Prompts,
        size: tuple[int, int],
        image: Image.Image | None,
    ) -> tuple[GenerateImage, dict[str, Any]]:
        """Return the function that generates the request's images, and the settings for their metadata."""
        defaults = self.base.defaults
        steps = request.num_inference_steps or defaults.num_inference_steps
        guidance_scale = defaults.guidance_scale if request.guidance_scale is None else request.guidance_scale
        check_scheduler(request.scheduler, steps)
        from_noise = image is None or request.prompt_strength == 1
        scheduler = make_scheduler(request.scheduler, self.base.scheduler_config, img2img=not from_noise)
        settings = {
            "prompt": prompts.prompt,
            "num_inference_steps": steps,
            "guidance_scale": guidance_scale,
            "negative_prompt": prompts.negative_prompt,
            "width": size[0],
            "height": size[1],
            "scheduler": request.scheduler,
            "base": defaults.title,
        }
        if self._text.clip_skip is not None:
            settings["clip_skip"] = self._text.clip_skip
        kwargs = {"num_inference_steps": steps, "guidance_scale": guidance_scale}
        if image is not None:
            settings["prompt_strength"] = request.prompt_strength
        if image is None or from_noise:
            embeds = self._encode_prompts(prompts)
            return self._text2img({**kwargs, **embeds, "width": size[0], "height": size[1]}, scheduler), settings
        if int(request.prompt_strength * steps) < 1:
            expected = f"at least {1 / steps:.2g}, so that one of {steps} steps is taken"
            raise InputError("prompt_strength", request.prompt_strength, expected)
        embeds = self._encode_prompts(prompts)
        initial = ImageOps.fit(image.convert("RGB"), size, Image.Resampling.LANCZOS)
        return self._img2img({**kwargs, **embeds, "strength": request.prompt_strength}, initial, scheduler), settings

    def _encode_prompts(self, prompts: Prompts) -> dict[str, torch.Tensor]:
        """Return both prompt embeds as a pipeline's keyword arguments, from the patched text encoders.

        Both have the chunks of the longer prompt, as the UNet takes them in one batch.
        """
        text = self._text
        all_rows = [self.patcher.with_all_rows(prompt) for prompt in prompts]
        chunks = text.chunks_for(max(map(text.count, all_rows)))
        # One at a time, as the pipelines do: a batch of two differs in the last bits.
        prompt_embeds, negative_embeds = (
            text.encode(text.tokenize([prompt], chunks).to(self.base.device)) for prompt in all_rows
        )
        return {**prompt_embeds.as_kwargs(), **negative_embeds.as_kwargs("negative_")}

    def _text2img(self, kwargs: dict[str, Any], scheduler: Any) -> GenerateImage:
        pipeline = make_pipeline(self.base, "text2img", scheduler)
        return lambda generator: self._decode(pipeline(**kwargs, generator=generator, output_type="latent").images)

    def _img2img(self, kwargs: dict[str, Any], initial: Image.Image, scheduler: Any) -> GenerateImage:
        pipeline = make_pipeline(self.base, "img2img", scheduler)
        posterior = self.base.posterior(_IMAGE_PROCESSOR.preprocess(initial))
        # The pipelines recognize latents by their 4 channels; they have to encode an image to any others themselves.
        takes_latents = self.base.vae.config.latent_channels == 4

        def generate_image(generator: torch.Generator) -> Image.Image:
            image = self.base.scale_latents(posterior.sample(generator)) if takes_latents else initial
            return self._decode(pipeline(**kwargs, image=image, generator=generator, output_type="latent").images)

        return generate_image

    def _decode(self, latents: torch.Tensor) -> Image.Image:
        return _IMAGE_PROCESSOR.postprocess(self.base.decode(latents))[0]

    def _warn_of_truncation(self, name: str, prompt: str, log: Log) -> None:
        tokens = self._text.count(self.patcher.with_all_rows(prompt))
        limit = MAX_CHUNKS * self._text.chunk_tokens
        if tokens > limit:
            log(f"warning: the {name.replace('_', ' ')} has {tokens} tokens and only the first {limit} are used")


def _generate_images(
    generate_image: GenerateImage, request: GenerateRequest, settings: dict[str, Any], log: Log
) -> list[GeneratedImage]:
    first_seed = random.SystemRandom().randrange(2**32 - 8) if request.seed is None else request.seed
    images = []
    for i in range(request.num_outputs):
        started, seed = time.monotonic(), (first_seed + i) % 2**32
        generator = torch.Generator("cpu").manual_seed(seed)  # the same noise on every device
        with torch.inference_mode():
            image = generate_image(generator)
        images.append(GeneratedImage(image, seed, {"seed": seed, **settings}))
        log(f"image {i + 1} of {request.num_outputs}: seed {seed}, {time.monotonic() - started:.1f} s")
    return images


def save_image(generated: GeneratedImage, path: Path, quality: int = 90) -> Path:
    """Write an image to ``path``, in the format of its suffix, with its settings in the metadata.

    The metadata is JSON with the prompt, the seed and all other settings but the links, as these may hold a token. PNG
    has it as the text chunk ``parameters``, JPEG and WebP as the EXIF user comment.
    """
    text = json.dumps(dict(generated.settings), ensure_ascii=False, sort_keys=True)
    if path.suffix == ".png":
        info = PngInfo()
        info.add_itxt("parameters", text)
        generated.image.save(path, pnginfo=info)
    else:
        exif = Image.Exif()
        exif.get_ifd(_EXIF_IFD)[_EXIF_USER_COMMENT] = b"UNICODE\0" + text.encode("utf-16-be")
        generated.image.save(path, quality=quality, exif=exif)
    return path
