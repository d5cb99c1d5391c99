"""Generates the images of a request, with the LoRAs it names."""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from PIL import Image

from lora_service.errors import InputError
from lora_service.generation.control.structure_control import StructureControl
from lora_service.generation.denoiser import Denoiser
from lora_service.generation.denoising import DenoisingCallback, DenoisingPlan, LatentLayout, LoraSteps, Picture
from lora_service.generation.denoising_progress import FlowPreviews, Preview, Previews, Progress
from lora_service.generation.flow_modes import choose_flow_mode
from lora_service.generation.image_batches import draw_in_batches
from lora_service.generation.image_files import GeneratedImage
from lora_service.generation.image_memory import check_memory
from lora_service.generation.image_settings import guidance_rescale, image_settings, mask_feather
from lora_service.generation.initial_image import InitialImage, InputImages
from lora_service.generation.layer_cache import FreshLayerCache, LayerCache
from lora_service.generation.lora_sets import LoraSet, LoraSetEncoder
from lora_service.generation.modes import choose_mode
from lora_service.generation.own_loras import SideBySide, drawn_together
from lora_service.generation.pipelines import make_pipeline
from lora_service.generation.prompt_cache import PromptCache
from lora_service.generation.prompt_embeddings import EMBEDDING_SCALE
from lora_service.generation.prompt_loras import follow_lora_tags
from lora_service.generation.prompts import prompt_arguments
from lora_service.generation.request import GenerateRequest
from lora_service.generation.scheduler_classes import make_flow_scheduler, make_scheduler
from lora_service.generation.schedulers import check_scheduler
from lora_service.generation.sizes import Size, check_work, choose_size
from lora_service.generation.unsupported_inputs import fit_to_base
from lora_service.lora.patcher import Patcher, ScaledLora
from lora_service.lora.weights import LoraWeights
from lora_service.models.control_loading import ControlModels
from lora_service.models.diffusion_base import DiffusionBase
from lora_service.models.families.family import PipelineTask

Log = Callable[[str], None]


@dataclass(frozen=True)
class _Drawing:
    """All that has been settled before the first noise is drawn.

    Attributes:
        request: the inputs.
        sets: one, or one for each LoRA.
        embeddings: the textual inversions, scaled.
        size: width and height.
        initial: the initial image, if there is one.
        settings: of all images, for their files' metadata.
        callbacks: of all batches.
    """

    request: GenerateRequest
    sets: Sequence[LoraSet]
    embeddings: Sequence[ScaledLora]
    size: Size
    initial: InitialImage | None
    settings: Mapping[str, Any]
    callbacks: Sequence[DenoisingCallback]


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
        self.patcher = Patcher(base.components, base.tokenizers, hold_addresses=base.compiled is not None)
        self._sets = LoraSetEncoder(base, self.patcher, prompt_cache)

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

        It depends on that seed alone, but for the last bits, in which batches of different sizes differ. With
        ``lora_mode`` ``each`` there are as many of each LoRA, from the same seeds, those of the first LoRA first.

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
        request.check_lora_mode(len(loras))
        request = fit_to_base(request, self.base, images, log)
        size = choose_size(request, self.base, images.shape)
        own = request.lora_mode == "each"
        count = request.num_outputs * (len(loras) if own else 1)
        check_work(request, self.base, size, self._max_pixel_steps, count)
        check_memory(self.base, size)
        initial = InitialImage.fit(images, size, log)
        request, loras = follow_lora_tags(request, loras, log)
        scaled_embeddings = [(each, EMBEDDING_SCALE) for each in embeddings]
        with self._restored_on_failure():
            together = [[lora] for lora in loras] if own else [loras]
            sets = [
                self._sets.apply(request, each, scaled_embeddings, log, number if own else None)
                for number, each in enumerate(together, start=1)
            ]
            shared = image_settings(request, self.base, size, images)
            with torch.inference_mode():
                control = self._control(request, size, images, log)
            callbacks: list[DenoisingCallback] = [*control, Progress(count, log)]
            if request.preview_every and on_preview is not None:
                previews = FlowPreviews if self.base.family.objective == "flow" else Previews
                callbacks.append(previews(self.base, request.preview_every, on_preview))
            drawing = _Drawing(request, sets, scaled_embeddings, size, initial, shared, callbacks)
            return self._draw(drawing, log)

    @contextmanager
    def _restored_on_failure(self) -> Iterator[None]:
        try:
            yield
        except BaseException:
            self.patcher.restore()
            raise

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
            guidance_rescale=guidance_rescale(request, self.base),
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

    @torch.inference_mode()
    def _plan(self, drawing: _Drawing) -> DenoisingPlan:
        """Choose pipeline and scheduler, and prepare what they are called with."""
        request, size, initial = drawing.request, drawing.size, drawing.initial
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
        }
        pipeline, callbacks = self._pipeline(mode.task, request, scheduler)
        width, height = (side // self.base.vae_scale_factor for side in size)
        layout = LatentLayout(self.base.family, height, width)
        return DenoisingPlan(
            layout,
            pipeline,
            arguments,
            lambda numbers: prompt_arguments(self.base.text, [drawing.sets[number].encoded for number in numbers]),
            mode.batch_arguments,
            [*mode.callbacks, *callbacks, *drawing.callbacks],
        )

    def _draw(self, drawing: _Drawing, log: Log) -> list[GeneratedImage]:
        request, sets = drawing.request, drawing.sets
        first_seed = random.SystemRandom().randrange(2**32 - 8) if request.seed is None else request.seed
        seeds = [(first_seed + i) % 2**32 for i in range(request.num_outputs)]
        pictures = [Picture(seed, number) for number in range(len(sets)) for seed in seeds]
        generated: dict[Picture, GeneratedImage] = {}
        for numbers, plan in self._plans(drawing, log):
            drawn = [picture for picture in pictures if picture.lora in numbers]
            waiting = iter(drawn)
            started = time.monotonic()
            for images in draw_in_batches(self.base, plan, drawn, drawing.size, log):
                seconds = (time.monotonic() - started) / len(images)
                for image in images:
                    picture = next(waiting)
                    settings = {"seed": picture.seed, **drawing.settings, **sets[picture.lora].settings}
                    generated[picture] = GeneratedImage(self._finish(drawing, image), picture.seed, settings)
                    of_lora = f"LoRA {picture.lora + 1}, " if request.lora_mode == "each" else ""
                    place = f"image {pictures.index(picture) + 1} of {len(pictures)}"
                    log(f"{place}: {of_lora}seed {picture.seed}, {seconds:.1f} s")
                started = time.monotonic()
        return [generated[picture] for picture in pictures]

    def _plans(self, drawing: _Drawing, log: Log) -> Iterator[tuple[list[int], DenoisingPlan]]:
        """Yield the numbers of sets of LoRAs that are drawn in the same batches, and have the base ready for them."""
        sets = drawing.sets
        if drawing.request.lora_mode == "together":
            yield [0], self._plan(drawing)
            return
        loras = [lora for each in sets for lora in each.loras]
        for numbers in drawn_together(self.base, loras, [each.encoded for each in sets], drawing.size, log):
            if len(numbers) == 1:
                self.patcher.apply([loras[numbers[0]], *drawing.embeddings])
                yield numbers, self._plan(drawing)
                continue
            self.patcher.restore()
            beside = SideBySide(self.base, [loras[number] for number in numbers], numbers)
            plan = self._plan(drawing)
            yield numbers, replace(plan, callbacks=[*plan.callbacks, beside], lora_bytes=beside.bytes_each)

    def _finish(self, drawing: _Drawing, image: Image.Image) -> Image.Image:
        if drawing.initial is None or not drawing.request.keep_unmasked:
            return image
        return drawing.initial.keep_unmasked(image, mask_feather(drawing.request, self.base))
