"""Generates the images of a request, with the LoRAs it names."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from lora_service.errors import InputError
from lora_service.generation.clip_skip import choose_clip_skip
from lora_service.generation.control.structure_control import StructureControl
from lora_service.generation.denoiser import Denoiser
from lora_service.generation.denoising import DenoisingCallback, DenoisingPlan, LatentLayout, LoraSteps
from lora_service.generation.denoising_progress import FlowPreviews, Preview, Previews, Progress
from lora_service.generation.flow_modes import choose_flow_mode
from lora_service.generation.image_batches import draw_in_batches
from lora_service.generation.image_files import GeneratedImage
from lora_service.generation.image_memory import check_memory
from lora_service.generation.initial_image import InitialImage, InputImages
from lora_service.generation.layer_cache import FreshLayerCache, LayerCache
from lora_service.generation.modes import choose_mode
from lora_service.generation.pipelines import make_pipeline
from lora_service.generation.prompt_cache import PromptCache
from lora_service.generation.prompt_embeddings import EMBEDDING_SCALE, report_embeddings
from lora_service.generation.prompt_loras import follow_lora_tags
from lora_service.generation.prompts import PromptEncoder, Prompts
from lora_service.generation.request import GenerateRequest
from lora_service.generation.scheduler_classes import has_zero_terminal_snr, make_flow_scheduler, make_scheduler
from lora_service.generation.schedulers import check_scheduler
from lora_service.generation.sizes import Size, check_work, choose_size
from lora_service.generation.unsupported_inputs import fit_to_base
from lora_service.lora.patcher import Patcher, PatchReport
from lora_service.lora.scale import Scale
from lora_service.lora.weights import LoraWeights
from lora_service.models.control_loading import ControlModels
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.families.family import PipelineTask

ScaledLora = tuple[LoraWeights, Scale]
Log = Callable[[str], None]

ZERO_TERMINAL_RESCALE = 0.7
"""Guidance rescale of bases whose noise ends without signal, as https://arxiv.org/abs/2305.08891 has it."""


@dataclass(frozen=True)
class _Drawing:
    """All that has been settled before the first noise is drawn.

    Attributes:
        plan: of the denoising.
        size: width and height.
        initial: the initial image, if there is one.
        settings: for the files' metadata, without the seed.
    """

    plan: DenoisingPlan
    size: Size
    initial: InitialImage | None
    settings: dict[str, Any]


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
        on_preview: Callable[[Preview], None] | None = None,
        log: Log = lambda line: None,
    ) -> list[GeneratedImage]:
        """Generate the images of ``request``, in batches. Image ``i`` has the seed ``seed + i``.

        It depends on that seed alone, but for the last bits, in which batches of different sizes differ.

        Args:
            request: the inputs.
            loras: the LoRAs of ``request``, loaded, in its order.
            embeddings: textual inversions, whose words the prompts may have.
            images: the pictures of the request, if it has any.
            on_preview: called with the previews that the request asks for.
            log: called with lines for the person who waits.

        Raises:
            InputError: a size does not suit the base or the memory, a mask does not suit its image, or the prompt names
                a LoRA that the request does not have.
            WrongBaseError: a LoRA belongs to another base.
            AdapterError: the model for ``adapter_type`` cannot be used.
        """
        images = images or InputImages()
        request = fit_to_base(request, self.base, images, log)
        size = choose_size(request, self.base, images.shape)
        check_work(request, self.base, size, self._max_pixel_steps)
        check_memory(self.base, size)
        initial = InitialImage.fit(images, size, log)
        request, loras = follow_lora_tags(request, loras, log)
        with self._patched([*loras, *((each, EMBEDDING_SCALE) for each in embeddings)]) as full_report:
            report = report_embeddings(full_report, len(loras), request, log)
            if report.warning:
                log(f"warning: {report.warning}")
            clip_skip = choose_clip_skip(request, loras, self.base, log)
            text = self.base.text.with_tokenizers(self.patcher.tokenizers, self.patcher.plain_text)
            text = text.with_clip_skip(clip_skip)
            encoder = PromptEncoder(text, self.patcher, self.base.device, log, self._prompt_cache)
            prompts = encoder.expand(request, report, [scale for _, scale in loras])
            with torch.inference_mode():
                plan = self._plan(request, size, encoder, prompts, initial)
                control = self._control(request, size, images, log)
            callbacks: list[DenoisingCallback] = [*plan.callbacks, *control, Progress(request.num_outputs, log)]
            if request.preview_every and on_preview is not None:
                previews = FlowPreviews if self.base.family.objective == "flow" else Previews
                callbacks.append(previews(self.base, request.preview_every, on_preview))
            settings = self._settings(request, size, prompts, images)
            if clip_skip is not None:
                settings["clip_skip"] = clip_skip
            # At scale 0 a LoRA changes nothing, and the file is the bare base's, byte for byte.
            settings["lora_scales"] = "" if all(scale.is_zero for _, scale in loras) else request.lora_scales
            drawing = _Drawing(replace(plan, callbacks=callbacks), size, initial, settings)
            return self._draw(request, drawing, log)

    @contextmanager
    def _patched(self, loras: list[ScaledLora]) -> Iterator[PatchReport]:
        try:
            yield self.patcher.apply(loras)
        except BaseException:
            self.patcher.restore()
            raise

    def _settings(self, request: GenerateRequest, size: Size, prompts: Prompts, images: InputImages) -> dict[str, Any]:
        """Return the settings for the files' metadata."""
        settings = {
            "prompt": prompts.prompt,
            "num_inference_steps": request.steps(self.base.defaults),
            "guidance_scale": request.guidance(self.base.defaults),
            "negative_prompt": prompts.negative_prompt,
            "width": size[0],
            "height": size[1],
            "scheduler": request.scheduler,
            "base": self.base.defaults.title,
        }
        if images.image is not None:
            settings["prompt_strength"] = request.prompt_strength
        if images.mask is not None:
            settings["keep_unmasked"] = request.keep_unmasked
            if request.keep_unmasked:
                settings["mask_feather"] = self._feather(request)
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
        if self.base.family.objective == "flow":
            return pipeline, callbacks
        cache = LayerCache(self.base.unet, request.cache_interval) if request.cache_interval > 1 else None
        # After the pipeline's making, which takes diffusers' own classes only.
        pipeline.unet = Denoiser(
            self.base.unet,
            self.base.compiled,
            guidance_scale=request.guidance(self.base.defaults),
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
        self,
        request: GenerateRequest,
        size: Size,
        encoder: PromptEncoder,
        prompts: Prompts,
        initial: InitialImage | None,
    ) -> DenoisingPlan:
        """Choose pipeline and scheduler, and prepare what they are called with."""
        steps = request.steps(self.base.defaults)
        check_scheduler(request.scheduler, steps, request.schedule)
        if initial is not None and int(request.prompt_strength * steps) < 1:
            expected = f"at least {1 / steps:.2g}, so that one of {steps} steps is taken"
            raise InputError("prompt_strength", request.prompt_strength, expected)
        strength = request.prompt_strength if initial else 1.0
        if self.base.family.objective == "flow":
            mode = choose_flow_mode(self.base, initial, strength, steps, size)
            scheduler = make_flow_scheduler(request.scheduler, self.base.scheduler_config)
        else:
            mode = choose_mode(self.base, initial, strength, size)
            scheduler = make_scheduler(
                request.scheduler, self.base.scheduler_config, img2img=mode.starts_in_middle, schedule=request.schedule
            )
        arguments: dict[str, Any] = {
            "num_inference_steps": steps,
            **self.base.family.guidance(request.guidance(self.base.defaults)),
            **mode.arguments,
            **encoder.encode(prompts),
        }
        pipeline, callbacks = self._pipeline(mode.task, request, scheduler)
        width, height = (side // self.base.vae_scale_factor for side in size)
        layout = LatentLayout(self.base.family, height, width)
        return DenoisingPlan(layout, pipeline, arguments, mode.batch_arguments, [*mode.callbacks, *callbacks])

    def _draw(self, request: GenerateRequest, drawing: _Drawing, log: Log) -> list[GeneratedImage]:
        first_seed = random.SystemRandom().randrange(2**32 - 8) if request.seed is None else request.seed
        seeds = [(first_seed + i) % 2**32 for i in range(request.num_outputs)]
        generated: list[GeneratedImage] = []
        started = time.monotonic()
        for images in draw_in_batches(self.base, drawing.plan, seeds, drawing.size, log):
            seconds = (time.monotonic() - started) / len(images)
            for image in images:
                seed = seeds[len(generated)]
                finished = self._finish(request, drawing.initial, image)
                generated.append(GeneratedImage(finished, seed, {"seed": seed, **drawing.settings}))
                log(f"image {len(generated)} of {len(seeds)}: seed {seed}, {seconds:.1f} s")
            started = time.monotonic()
        return generated

    def _feather(self, request: GenerateRequest) -> int:
        return self.base.vae_scale_factor if request.mask_feather is None else request.mask_feather

    def _finish(self, request: GenerateRequest, initial: InitialImage | None, image: Image.Image) -> Image.Image:
        if initial is None or not request.keep_unmasked:
            return image
        return initial.keep_unmasked(image, self._feather(request))
