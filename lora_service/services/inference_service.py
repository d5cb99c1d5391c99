"""Inference requests one after another on one warm base model, as a server or the command line runs them."""

from __future__ import annotations

import base64
import io
import time
from collections.abc import Callable, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from lora_service.generation.initial_image import InputImages
from lora_service.generation.request import GenerateRequest
from lora_service.generation.schedulers import SCHEDULERS
from lora_service.services.deferred_imports import PEFT
from lora_service.services.image_uploads import open_image
from lora_service.services.model_service import (
    JobLog,
    Log,
    ModelService,
    RecordMetric,
    ignore_metric,
    module_map,
)
from lora_service.services.request_loras import LoraReader, LoraSources
from lora_service.services.worker import COMMON_IMPORTS, Worker, family_imports
from lora_service.settings import Settings

if TYPE_CHECKING:
    from lora_service.generation.denoising_progress import Preview
    from lora_service.generation.generator import ImageGenerator
    from lora_service.generation.image_files import GeneratedImage
    from lora_service.generation.safety import SafetyChecker
    from lora_service.models.diffusion_base import DiffusionBase

OnPreview = Callable[["Preview"], None]
"""Called with a small picture of what is being drawn."""
_BLACK = (0, 0, 0)
_IMPORTS = (
    *COMMON_IMPORTS,
    f"diffusers:{' '.join(choice.class_name for choice in SCHEDULERS.values())}",
    "diffusers:StableDiffusionImg2ImgPipeline StableDiffusionXLImg2ImgPipeline",
    "diffusers:StableDiffusionInpaintPipeline StableDiffusionXLInpaintPipeline",
    "scipy.integrate",  # KLMS
    "scipy.stats",  # schedule beta
    "lora_service.generation.few_steps",
    "cv2",  # masks
    "lora_service.generation.generator",
    "diffusers.pipelines.stable_diffusion.safety_checker",
    "lora_service.generation.control.condition_image",
    "lora_service.generation.safety",
    "lora_service.lora.files",
)


class InferenceService(ModelService):
    """Generates images; LoRAs are fetched, checked and kept.

    Args:
        allow_local: a LoRA may be a path on this machine: yes on a command line, never on a server.
        weights: link or path of a trained LoRA that is the first of every request, as Cog hands a training's result
            to ``setup``; None or '': none.
    """

    folder_prefix: ClassVar[str] = "lora-pictures-"

    def __init__(
        self,
        settings: Settings | None = None,
        *,
        worker: Worker | None = None,
        allow_local: bool = False,
        weights: object = None,
    ) -> None:
        super().__init__(settings, worker=worker)
        self.loras = LoraReader(self.settings, allow_local=allow_local, weights=str(weights or "").strip())

    def warm_up(self) -> None:
        """Load the base model and the trained weights; with ``WARM_UP`` also draw once, to have all kernels ready.

        In a server's worker, everything that a request may need is imported as well.
        """
        with self._starting((*_IMPORTS, *family_imports(self.settings)), [PEFT]):
            generator = self._generator
            self.loras.trained_weights(generator.base.defaults)
            if self.settings.safety_checker:
                _ = self._safety_checker  # a server that cannot check is of no use
            if self.settings.warm_up or self.settings.compile:
                self._draw_once(generator)

    def _draw_once(self, generator: ImageGenerator) -> None:
        """Draw pictures that nobody sees; with ``COMPILE`` of all classes of shapes, so that no job has to compile."""
        inputs: dict[str, Any] = {"prompt": "", "num_inference_steps": 2}
        generator.generate(GenerateRequest.of(inputs), [])
        if self.settings.compile:
            side = generator.base.nearest_side(generator.base.defaults.resolution * 3 / 4)
            for more in ({"num_outputs": 2}, {"guidance_scale": 1}):  # without guidance, batches are of one
                generator.generate(GenerateRequest.of({**inputs, "width": side, **more}), [])

    @cached_property
    def _generator(self) -> ImageGenerator:
        from lora_service.generation.generator import ImageGenerator
        from lora_service.generation.prompt_cache import PromptCache
        from lora_service.models.control_loading import ControlModels
        from lora_service.models.loading import load_base, use_threads

        use_threads(self.settings)
        base = load_base(self.settings)
        if self.settings.compile:
            base.compile(cuda_graphs=self.settings.cuda_graphs and base.device.type == "cuda")
        controls = ControlModels(base, self.settings)
        generator = ImageGenerator(base, self.settings.max_pixel_steps, controls, PromptCache())
        self._modules = module_map(generator.base.components)
        return generator

    @property
    def base(self) -> DiffusionBase:
        """The base model, loaded at first use; requests change and restore it."""
        return self._generator.base

    def restore_base(self) -> None:
        """Take the last request's LoRAs out of the base."""
        self._generator.patcher.restore()

    def _base_is_intact(self) -> bool:
        generator = self.__dict__.get("_generator")
        if generator is None:
            return True
        generator.patcher.restore()  # again, as the first time may have been interrupted
        return module_map(generator.base.components) == self._modules

    def _drop_base(self) -> None:
        self.__dict__.pop("_generator", None)

    def run(
        self,
        inputs: Mapping[str, Any],
        *,
        image: object = None,
        mask: object = None,
        adapter_condition_image: object = None,
        lora: object = None,
        replicate_weights: str = "",
        token: str | None = None,
        record_metric: RecordMetric = ignore_metric,
        on_preview: OnPreview | None = None,
        log: Log = print,
    ) -> list[Path]:
        """Draw what ``inputs`` ask for; the files lie in a folder of their own until the next request.

        Args:
            image: the picture to start from, anything that Cog hands over.
            mask: white where ``image`` is drawn anew, likewise.
            adapter_condition_image: the picture whose structure is followed, likewise.
            lora: an uploaded LoRA, anything that Cog hands over.
            replicate_weights: link to a training's result, used in place of the service's own weights.
            token: sent to the links' own host only.
            on_preview: called with the previews that the request asks for; None: each is recorded as a metric.

        Raises:
            LoraServiceError: a mistake that the user can mend.
        """
        from lora_service.generation.safety import is_check_required

        log = JobLog(log, record_metric)
        uploads = [path for path in (image, mask, adapter_condition_image, lora) if isinstance(path, Path)]
        sources = LoraSources(replicate_weights.strip(), lora)
        with self._job(log, uploads), self.loras.request():
            request = GenerateRequest.of(inputs, self.loras.count(sources))
            images = self._input_images(image, mask, adapter_condition_image)
            started = time.monotonic()
            loras, embeddings = self.loras.read(request, sources, token, self.base.defaults, log)
            fetched = time.monotonic()
            checked = is_check_required(self.settings, request.disable_safety_checker, log)
            show = on_preview or partial(_record_preview, record_metric)
            previews = self._previews(request, show, checked=checked, log=log)
            generated = self._generator.generate(
                request, loras, embeddings=embeddings, images=images, on_preview=previews, log=log
            )
            kept = self._without_held_back(generated, checked=checked, log=log)
            paths = self._save(request, kept)
            if request.preview_every and on_preview is None:
                record_metric("preview", "")  # the pictures are there
            _record_seeds(generated, len(generated) - len(kept), record_metric)
            if request.lora_mode == "each":
                record_metric("lora_numbers", " ".join(str(image.settings["lora"]) for image in generated))
            record_metric("loras", len(loras))
            record_metric("loras_in_memory", self.loras.hits)
            record_metric("seconds_lora", round(fetched - started, 3))
            record_metric("seconds_drawing", round(time.monotonic() - fetched, 3))
            return paths

    def _input_images(self, image: object, mask: object, adapter_condition_image: object) -> InputImages:
        """Decode the pictures of a request, each anything that Cog hands over."""
        return InputImages(
            image=open_image("image", image, self.settings),
            mask=open_image("mask", mask, self.settings, background=_BLACK),
            adapter_condition_image=open_image("adapter_condition_image", adapter_condition_image, self.settings),
        )

    def _previews(self, request: GenerateRequest, show: OnPreview, *, checked: bool, log: Log) -> OnPreview | None:
        """Return what shows previews; None where pictures are checked, as nobody checks those."""
        if not (request.preview_every and checked):
            return show
        log("warning: preview_every is left out, as this server checks pictures before it shows them")
        return None

    def _without_held_back(
        self, generated: list[GeneratedImage], *, checked: bool, log: Log
    ) -> list[tuple[int, GeneratedImage]]:
        """Return the pictures that may be given out, with their places."""
        from lora_service.generation.safety import without_held_back

        return without_held_back(generated, self._safety_checker, log) if checked else list(enumerate(generated))

    @cached_property
    def _safety_checker(self) -> SafetyChecker:
        """The checker of ``SAFETY_CHECKER``."""
        from lora_service.generation.safety import SafetyChecker

        return SafetyChecker.load(self.settings, self._generator.base.device)

    def _save(self, request: GenerateRequest, generated: list[tuple[int, GeneratedImage]]) -> list[Path]:
        from lora_service.generation.image_files import save_image

        folder = self._output.renew()
        suffix = "jpg" if request.output_format == "jpeg" else request.output_format
        return [save_image(image, folder / f"out-{i}.{suffix}", request.output_quality) for i, image in generated]


def _record_seeds(generated: list[GeneratedImage], held_back: int, record_metric: RecordMetric) -> None:
    record_metric("seed", generated[0].seed)
    record_metric("seeds", " ".join(str(image.seed) for image in generated))
    if held_back:
        record_metric("held_back", held_back)


def _record_preview(record_metric: RecordMetric, preview: Preview) -> None:
    """Record a preview as a small data URI, which reaches clients with Cog's webhooks."""
    data = io.BytesIO()
    preview.image.save(data, "JPEG", quality=75)
    record_metric("preview", f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}")
