"""Inference requests one after another on one warm base model, as a server or the command line runs them."""

from __future__ import annotations

import base64
import io
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from functools import cached_property, partial
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING, Any, ClassVar

from lora_service.downloads.auth import check_one_host
from lora_service.downloads.fetcher import FetchedFile, Fetcher
from lora_service.downloads.parsed_url import redact
from lora_service.downloads.prefetch import Prefetch
from lora_service.downloads.remote_file import RemoteFile
from lora_service.downloads.resolve import resolve
from lora_service.errors import InputError, LoraFileError, blame_input, quote, shorten
from lora_service.generation.input_images import InputImages
from lora_service.generation.request import GenerateRequest
from lora_service.generation.schedulers import SCHEDULERS
from lora_service.services.image_uploads import open_image
from lora_service.services.model_service import (
    JobLog,
    Log,
    ModelService,
    RecordMetric,
    ignore_metric,
    module_map,
)
from lora_service.services.worker import COMMON_IMPORTS, Worker, family_imports
from lora_service.settings import Settings

if TYPE_CHECKING:
    from lora_service.generation.generator import ImageGenerator, ScaledLora
    from lora_service.generation.image_files import GeneratedImage
    from lora_service.generation.progress import Preview
    from lora_service.generation.safety import SafetyChecker
    from lora_service.lora.weights import LoraWeights
    from lora_service.models.diffusion_base import DiffusionBase

OnPreview = Callable[["Preview"], None]
"""Called with a small picture of what is being drawn."""
PARSED_BYTES = 2**30
"""Memory of the parsed LoRAs that are kept, beside those of the last request: the same link again costs nothing."""
_FileKey = tuple[FetchedFile, int, int]
"""File, time of change in nanoseconds, and size."""

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


@dataclass(frozen=True)
class LoraSources:
    """The LoRAs of a request that are no links in ``lora_urls``.

    ``lora`` may be anything: Cog hands over a ``Path`` for what it downloaded, and a bare ``str`` for what it did not
    understand, which must not be opened.
    """

    replicate_weights: str
    lora: object


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
        self._allow_local = allow_local
        self._weights = str(weights or "").strip()
        self._fetcher = Fetcher(self.settings)
        self._parsed: OrderedDict[_FileKey, LoraWeights] = OrderedDict()
        self._used: dict[_FileKey, LoraWeights] = {}
        self._hits = 0

    def warm_up(self) -> None:
        """Load the base model and the trained weights; with ``WARM_UP`` also draw once, to have all kernels ready.

        In a server's worker, everything that a request may need is imported as well.
        """
        if self._worker:
            self._worker.prepare((*_IMPORTS, *family_imports(self.settings)))
        generator = self._generator
        if self._weights:
            _ = self._trained_weights
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
        from lora_service.generation.safety import is_check_wanted

        log = JobLog(log, record_metric)
        uploads = [path for path in (image, mask, adapter_condition_image, lora) if isinstance(path, Path)]
        with self._job(log, uploads), self._keeping_parsed():
            more_loras = bool(replicate_weights.strip() or self._weights) + (lora is not None)
            request = GenerateRequest.of(inputs, more_loras)
            images = InputImages(
                image=open_image("image", image, self.settings),
                mask=open_image("mask", mask, self.settings, background=_BLACK),
                adapter_condition_image=open_image("adapter_condition_image", adapter_condition_image, self.settings),
            )
            started, self._hits = time.monotonic(), 0
            sources = LoraSources(replicate_weights.strip(), lora)
            loras, embeddings = self._loras(request, sources, token, log)
            fetched = time.monotonic()
            checked = is_check_wanted(self.settings, request.disable_safety_checker, log)
            show = on_preview or partial(_record_preview, record_metric)
            previews = self._previews(request, show, checked=checked, log=log)
            generated = self._generator.generate(
                request, loras, embeddings=embeddings, images=images, on_preview=previews, log=log
            )
            kept = self._without_held_back(generated, checked=checked, log=log)
            paths = self._save(request, kept)
            record_metric("seed", generated[0].seed)
            record_metric("seeds", " ".join(str(image.seed) for image in generated))
            if len(kept) < len(generated):
                record_metric("held_back", len(generated) - len(kept))
            if request.preview_every and on_preview is None:
                record_metric("preview", "")  # the pictures are there
            record_metric("loras", len(loras))
            record_metric("loras_in_memory", self._hits)
            record_metric("seconds_lora", round(fetched - started, 3))
            record_metric("seconds_drawing", round(time.monotonic() - fetched, 3))
            return paths

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

    def _loras(
        self, request: GenerateRequest, more: LoraSources, token: str | None, log: Log
    ) -> tuple[list[ScaledLora], list[LoraWeights]]:
        """Return the request's LoRAs, read, with their scales, and its textual inversions.

        The LoRAs are the trained weights, the upload, and those by link, in this order.
        """
        links: dict[str, Sequence[str]] = {
            "replicate_weights": [more.replicate_weights] if more.replicate_weights else [],
            "lora_urls": request.links(),
            "embedding_urls": request.links("embedding_urls"),
        }
        files: list[tuple[str, RemoteFile]] = []
        for name in links:
            with blame_input(name):
                found = [resolve(link, allow_local=self._allow_local) for link in links[name]]
            files += [(name, replace(file, is_embedding=name == "embedding_urls")) for file in found]
        check_one_host([file for _, file in files], token, self.settings)
        weights = [self._trained_weights] if self._weights and not more.replicate_weights else []
        uploaded = [] if more.lora is None else [_read_upload(more.lora)]
        fetched: dict[str, list[LoraWeights]] = {name: [] for name in links}
        until = time.monotonic() + self.settings.max_download_seconds
        version = self._generator.base.defaults.version

        def fetch(file: RemoteFile, cancelled: Event) -> object:
            return self._fetcher.fetch_file(file, token=token, base=version, until=until, cancelled=cancelled)

        with Prefetch([file for _, file in files], fetch):
            for name, file in files:
                with blame_input(name):
                    fetched[name].append(self._lora(file, token, log, until))
                _propose_settings(fetched[name][-1], file, request, self.base, log)
        loras = [*weights, *fetched["replicate_weights"], *uploaded, *fetched["lora_urls"]]
        for number, lora in enumerate(loras, start=1):
            log(_description(number, lora))
            for warning in lora.warnings:
                log(f"warning: LoRA {number}: {warning}")
        scales = request.scales(len(loras) - len(links["lora_urls"]))
        return list(zip(loras, scales, strict=True)), [_checked_embedding(each) for each in fetched["embedding_urls"]]

    @cached_property
    def _trained_weights(self) -> LoraWeights:
        """The LoRA that Cog handed to ``setup``."""
        with blame_input("COG_WEIGHTS"):
            return self._lora(resolve(self._weights, allow_local=True), None, print)

    def _lora(self, remote: RemoteFile, token: str | None, log: Log, until: float | None = None) -> LoraWeights:
        """Return the LoRA in ``remote``, from memory where it was parsed before.

        A copy in the cache that was damaged since is fetched again.
        """
        base = self._generator.base.defaults.version
        file = self._fetcher.fetch_file(remote, token=token, base=base, until=until)
        if file.note:
            log(file.note)
        try:
            return self._read(remote, file)
        except LoraFileError:
            if not self._fetcher.cache.discard_if_damaged(file.path):
                raise
        return self._read(remote, self._fetcher.fetch_file(remote, token=token, base=base, until=until))

    def _read(self, remote: RemoteFile, file: FetchedFile) -> LoraWeights:
        from lora_service.lora.files import read_lora

        stat = file.path.stat()
        # Each use sets the time of a file in the cache, whose name is the hash of its content.
        key = (file, stat.st_mtime_ns if remote.site == "local" else 0, stat.st_size)
        weights = self._parsed.get(key) or self._used.get(key)
        self._hits += weights is not None
        weights = weights or read_lora(file.path, file.name, torch_embedding=remote.is_embedding)
        self._used[key] = weights
        return weights

    @contextmanager
    def _keeping_parsed(self) -> Iterator[None]:
        """Keep the LoRAs of a request that is drawn, and drop the longest unused ones beyond ``PARSED_BYTES``.

        Those of a refused request are not kept: no base may fit them, and requests could bring any number of them.
        """
        try:
            yield
            for key, weights in self._used.items():
                self._parsed[key] = weights
                self._parsed.move_to_end(key)
            total = sum(weights.memory_bytes for weights in self._parsed.values())
            while total > PARSED_BYTES and len(self._parsed) > len(self._used):
                _, unused = self._parsed.popitem(last=False)
                total -= unused.memory_bytes
        finally:
            self._used = {}


def _record_preview(record_metric: RecordMetric, preview: Preview) -> None:
    """Record a preview as a small data URI, which reaches clients with Cog's webhooks."""
    data = io.BytesIO()
    preview.image.save(data, "JPEG", quality=75)
    record_metric("preview", f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}")


def _read_upload(lora: object) -> LoraWeights:
    """Return the LoRA that was uploaded; its name was lost on the way."""
    from lora_service.lora.files import read_lora

    if not isinstance(lora, Path):
        raise InputError("lora", redact(str(lora)), "an uploaded LoRA or an http(s) link to one")
    with blame_input("lora"):
        return read_lora(lora, f"lora{lora.suffix}")


def _propose_settings(
    weights: LoraWeights, file: RemoteFile, request: GenerateRequest, base: DiffusionBase, log: Log
) -> None:
    """Say in the log what a LoRA that was distilled for few steps is made for, where the request asks for other."""
    from lora_service.generation.few_steps import few_step_advice, few_step_kind

    kind = few_step_kind(weights, file.link)
    advice = few_step_advice(kind, request, base.defaults) if kind else None
    if advice:
        log(f"{file.link}: {advice}")


def _checked_embedding(weights: LoraWeights) -> LoraWeights:
    """Return what was read from ``embedding_urls`` if it is a textual inversion."""
    if weights.layers or not weights.embeddings:
        expected = "links to textual inversions; a LoRA's link belongs into lora_urls"
        raise InputError("embedding_urls", weights.name, expected, code="not_an_embedding")
    return weights


def _description(number: int, weights: LoraWeights) -> str:
    tokens = shorten(" ".join(weights.tokens)) or "none"
    return f"LoRA {number}: rank {weights.rank}, trigger {quote(weights.trigger)}, tokens {tokens}"
