"""Generates the images of a request, with the LoRAs it names."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import torch
from diffusers.image_processor import VaeImageProcessor
from PIL import Image, ImageOps
from torch import Tensor

from lora_service.errors import InputError
from lora_service.generation.clip_skip import choose_clip_skip
from lora_service.generation.control.structure_control import StructureControl
from lora_service.generation.denoiser import Denoiser
from lora_service.generation.denoising import DenoisingBatch, DenoisingCallback, DenoisingPlan, denoise
from lora_service.generation.image_files import GeneratedImage
from lora_service.generation.input_images import InputImages
from lora_service.generation.layer_cache import LayerCache
from lora_service.generation.pipelines import PipelineTask, make_pipeline
from lora_service.generation.prompt_cache import PromptCache
from lora_service.generation.prompt_embeddings import EMBEDDING_SCALE, report_embeddings
from lora_service.generation.prompt_loras import follow_lora_tags
from lora_service.generation.prompts import PromptEncoder, Prompts
from lora_service.generation.request import GenerateRequest
from lora_service.generation.scheduler_classes import has_zero_terminal_snr, make_scheduler
from lora_service.generation.schedulers import check_scheduler
from lora_service.generation.sizes import Size, check_work, choose_size
from lora_service.generation.step_callbacks import FreshLayerCache, LoraSteps
from lora_service.lora.patcher import Patcher, PatchReport
from lora_service.lora.scale import Scale
from lora_service.lora.weights import LoraWeights
from lora_service.models.control_loading import ControlModels
from lora_service.models.diffusion_base import DiffusionBase

ScaledLora = tuple[LoraWeights, Scale]
Log = Callable[[str], None]

ZERO_TERMINAL_RESCALE = 0.7
"""Guidance rescale of bases whose noise ends without signal, as https://arxiv.org/abs/2305.08891 has it."""
_IMAGE_PROCESSOR = VaeImageProcessor()


class ImageGenerator:
    """A base model that generates images; it stays patched with the last request's LoRAs, which cost nothing again.

    Every request names all of its LoRAs, so a request without one gets the bare base, and a failed or cancelled one
    leaves the bare base behind.

    Args:
        base: the base model.
        max_pixel_steps: most width × height × steps × images of a request; None: any.
        controls: the ControlNets and T2I-Adapters for the base; None: those of the environment's settings.
        prompt_cache: keeps prompt embeds, where nothing but the patcher changes the text encoders; None: none are.
    """

    def __init__(
        self,
        base: DiffusionBase,
        max_pixel_steps: int | None = None,
        controls: ControlModels | None = None,
        prompt_cache: PromptCache | None = None,
    ) -> None:
        self.base = base
        self._controls = controls or ControlModels(base)
        self._max_pixel_steps = max_pixel_steps
        self._prompt_cache = prompt_cache
        self.patcher = Patcher(base.components, base.tokenizers, hold_addresses=base.compiled is not None)

    def generate(
        self,
        request: GenerateRequest,
        loras: list[ScaledLora],
        *,
        embeddings: Sequence[LoraWeights] = (),
        images: InputImages | None = None,
        log: Log = lambda line: None,
    ) -> list[GeneratedImage]:
        """Generate the images of ``request``. Image ``i`` has the seed ``seed + i`` and depends on that seed alone.

        Args:
            request: the inputs.
            loras: the LoRAs of ``request``, loaded, in its order.
            embeddings: textual inversions, whose words the prompts may have.
            images: the pictures of the request, if it has any.
            log: called with lines for the person who waits.

        Raises:
            InputError: a size does not suit the base, or the prompt names a LoRA that the request does not have.
            WrongBaseError: a LoRA belongs to another base.
            AdapterError: the model for ``adapter_type`` cannot be used.
        """
        images = images or InputImages()
        size = choose_size(request, self.base, images.shape)
        check_work(request, self.base, size, self._max_pixel_steps)
        request, loras = follow_lora_tags(request, loras, log)
        with self._patched([*loras, *((each, EMBEDDING_SCALE) for each in embeddings)]) as full_report:
            report = report_embeddings(full_report, len(loras), request, log)
            if report.warning:
                log(f"warning: {report.warning}")
            clip_skip = choose_clip_skip(request, loras, self.base, log)
            text = self.base.text.with_tokenizers(self.patcher.tokenizers).with_clip_skip(clip_skip)
            encoder = PromptEncoder(text, self.patcher, self.base.device, log, self._prompt_cache)
            prompts = encoder.expand(request, report, [scale for _, scale in loras])
            with torch.inference_mode():
                plan = self._plan(request, size, encoder, prompts, images)
                plan = replace(plan, callbacks=[*plan.callbacks, *self._control(request, size, images, log)])
            settings = self._settings(request, size, prompts, images)
            if clip_skip is not None:
                settings["clip_skip"] = clip_skip
            # At scale 0 a LoRA changes nothing, and the file is the bare base's, byte for byte.
            settings["lora_scales"] = "" if all(scale.is_zero for _, scale in loras) else request.lora_scales
            return self._generate(request, plan, settings, log)

    @contextmanager
    def _patched(self, loras: list[ScaledLora]) -> Iterator[PatchReport]:
        try:
            yield self.patcher.apply(loras)
        except BaseException:
            self.patcher.restore()
            raise

    def _steps(self, request: GenerateRequest) -> int:
        return request.num_inference_steps or self.base.defaults.num_inference_steps

    def _guidance_scale(self, request: GenerateRequest) -> float:
        return self.base.defaults.guidance_scale if request.guidance_scale is None else request.guidance_scale

    def _settings(self, request: GenerateRequest, size: Size, prompts: Prompts, images: InputImages) -> dict[str, Any]:
        """Return the settings for the files' metadata."""
        settings = {
            "prompt": prompts.prompt,
            "num_inference_steps": self._steps(request),
            "guidance_scale": self._guidance_scale(request),
            "negative_prompt": prompts.negative_prompt,
            "width": size[0],
            "height": size[1],
            "scheduler": request.scheduler,
            "base": self.base.defaults.title,
        }
        if images.image is not None:
            settings["prompt_strength"] = request.prompt_strength
        if request.schedule != "default":
            settings["schedule"] = request.schedule
        if rescale := self._guidance_rescale(request):
            settings["guidance_rescale"] = rescale
        if request.cache_interval > 1:
            settings["cache_interval"] = request.cache_interval
        if images.adapter_condition_image is not None:
            settings |= {"adapter_type": request.adapter_type, "adapter_scale": request.adapter_scale}
        return settings

    def _guidance_rescale(self, request: GenerateRequest) -> float:
        if request.guidance_rescale is not None:
            return request.guidance_rescale
        return ZERO_TERMINAL_RESCALE if has_zero_terminal_snr(self.base.scheduler_config) else 0.0

    def _pipeline(
        self, task: PipelineTask, request: GenerateRequest, scheduler: Any
    ) -> tuple[Any, list[DenoisingCallback]]:
        """Return a pipeline whose UNet does what the request asks of it, and the callbacks that go with it."""
        pipeline = make_pipeline(self.base, task, scheduler)
        callbacks: list[DenoisingCallback] = [] if self.patcher.is_constant else [LoraSteps(self.patcher)]
        cache = LayerCache(self.base.unet, request.cache_interval) if request.cache_interval > 1 else None
        pipeline.unet = Denoiser(
            self.base.unet,
            self.base.compiled,
            guidance_scale=self._guidance_scale(request),
            guidance_rescale=self._guidance_rescale(request),
            layer_cache=cache,
        )
        if cache:
            callbacks.append(FreshLayerCache(cache))
        return pipeline, callbacks

    def _control(
        self, request: GenerateRequest, size: Size, images: InputImages, log: Log
    ) -> Sequence[DenoisingCallback]:
        """Return what makes the UNet follow the condition image, if the request has one."""
        if images.adapter_condition_image is None or request.adapter_scale == 0:
            return ()
        from lora_service.generation.control.condition_image import make_condition_image  # OpenCV, for this alone

        adapter = self._controls.get(request.adapter_type)
        condition = make_condition_image(images.adapter_condition_image, request.adapter_type, size)
        log(condition.note)
        return (StructureControl(self.base, adapter, condition.image, request.adapter_scale),)

    def _plan(
        self, request: GenerateRequest, size: Size, encoder: PromptEncoder, prompts: Prompts, images: InputImages
    ) -> DenoisingPlan:
        """Choose pipeline and scheduler, and prepare what they are called with."""
        steps = self._steps(request)
        check_scheduler(request.scheduler, steps, request.schedule)
        initial = None if request.prompt_strength == 1 else images.image
        scheduler = make_scheduler(
            request.scheduler, self.base.scheduler_config, img2img=initial is not None, schedule=request.schedule
        )
        task: PipelineTask = "text2img" if initial is None else "img2img"
        pipeline, callbacks = self._pipeline(task, request, scheduler)
        if initial is not None and int(request.prompt_strength * steps) < 1:
            expected = f"at least {1 / steps:.2g}, so that one of {steps} steps is taken"
            raise InputError("prompt_strength", request.prompt_strength, expected)
        arguments: dict[str, Any] = {
            "num_inference_steps": steps,
            "guidance_scale": self._guidance_scale(request),
            **encoder.encode(prompts),
        }
        if initial is None:
            arguments |= {"width": size[0], "height": size[1]}
            return DenoisingPlan(pipeline, arguments, callbacks=callbacks)
        arguments["strength"] = request.prompt_strength
        fitted = ImageOps.fit(initial.convert("RGB"), size, Image.Resampling.LANCZOS)
        return DenoisingPlan(pipeline, arguments, self._initial_latents(fitted), callbacks)

    def _initial_latents(self, image: Image.Image) -> Callable[[DenoisingBatch], Mapping[str, Any]]:
        """Return the pipelines' argument ``image`` as a function of the batch, for an initial image."""
        posterior = self.base.posterior(_IMAGE_PROCESSOR.preprocess(image))
        # The pipelines recognize latents by their 4 channels; they have to encode an image to any others themselves.
        if self.base.vae.config.latent_channels != 4:
            return lambda batch: {"image": image}
        return lambda batch: {
            "image": torch.cat([self.base.scale_latents(posterior.sample(each)) for each in batch.generators])
        }

    def _generate(
        self, request: GenerateRequest, plan: DenoisingPlan, settings: dict[str, Any], log: Log
    ) -> list[GeneratedImage]:
        first_seed = random.SystemRandom().randrange(2**32 - 8) if request.seed is None else request.seed
        generated = []
        for i in range(request.num_outputs):
            started, seed = time.monotonic(), (first_seed + i) % 2**32
            with torch.inference_mode():
                image = self._decode(denoise(plan, [seed]))[0]
            generated.append(GeneratedImage(image, seed, {"seed": seed, **settings}))
            log(f"image {i + 1} of {request.num_outputs}: seed {seed}, {time.monotonic() - started:.1f} s")
        return generated

    def _decode(self, latents: Tensor) -> list[Image.Image]:
        images: list[Image.Image] = _IMAGE_PROCESSOR.postprocess(self.base.decode(latents))
        return images
