"""Inference requests one after another on one warm base model, as a server or the command line runs them."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from PIL import Image

from lora_service.downloads.auth import check_one_host
from lora_service.downloads.fetcher import Fetcher
from lora_service.downloads.remote_file import RemoteFile
from lora_service.downloads.resolve import resolve
from lora_service.errors import InputError, PicturesError, quote, shorten
from lora_service.generation.request import LARGEST_SIDE, GenerateRequest
from lora_service.services.model_service import Log, ModelService, RecordMetric, blame_input, ignore_metric
from lora_service.settings import Settings

if TYPE_CHECKING:
    from lora_service.generation.generator import ImageGenerator
    from lora_service.lora.weights import LoraWeights

PARSED_BYTES = 2**30
"""Size of the parsed LoRAs that are kept in memory, beside the last one: the same link again costs nothing."""


class InferenceService(ModelService):
    """Generates images; LoRAs are fetched, checked and kept.

    Args:
        allow_local: a LoRA may be a path on this machine: yes on a command line, never on a server.
    """

    folder_prefix: ClassVar[str] = "lora-pictures-"

    def __init__(self, settings: Settings | None = None, *, allow_local: bool = False) -> None:
        super().__init__(settings)
        self._allow_local = allow_local
        self._fetcher = Fetcher(self.settings)
        self._parsed: OrderedDict[tuple[Path, int, int], LoraWeights] = OrderedDict()

    def warm_up(self) -> None:
        """Load the base model; with ``WARM_UP`` also draw once, so that the first request finds all kernels ready."""
        generator = self._generator
        if self.settings.warm_up:
            generator.generate(GenerateRequest.of({"prompt": "", "num_inference_steps": 2}), [])

    @cached_property
    def _generator(self) -> ImageGenerator:
        from lora_service.generation.generator import ImageGenerator
        from lora_service.models.loading import load_base, use_threads

        use_threads(self.settings)
        return ImageGenerator(load_base(self.settings))

    def run(
        self,
        inputs: Mapping[str, Any],
        *,
        image: object = None,
        token: str | None = None,
        record_metric: RecordMetric = ignore_metric,
        log: Log = print,
    ) -> list[Path]:
        """Draw what ``inputs`` ask for; the files lie in a folder of their own until the next request.

        Args:
            image: the picture to start from, anything that Cog hands over.
            token: sent to the links' own host only.

        Raises:
            LoraServiceError: a mistake that the user can mend.
        """
        with self._job():
            request = GenerateRequest.of({k: v for k, v in inputs.items() if v is not None})
            start = self._open(image)
            started = time.monotonic()
            loras = self._loras(request, token, log)
            fetched = time.monotonic()
            generated = self._generator.generate(request, loras, image=start, log=log)
            paths = self._save(request, generated)
            record_metric("seed", generated[0].seed)
            record_metric("seconds_lora", round(fetched - started, 3))
            record_metric("seconds_drawing", round(time.monotonic() - fetched, 3))
            return paths

    def _save(self, request: GenerateRequest, generated: list[Any]) -> list[Path]:
        from lora_service.generation.generator import save_image

        folder = self._output.renew()
        suffix = "jpg" if request.output_format == "jpeg" else request.output_format
        return [
            save_image(image, folder / f"out-{i}.{suffix}", request.output_quality) for i, image in enumerate(generated)
        ]

    def _loras(self, request: GenerateRequest, token: str | None, log: Log) -> list[Any]:
        """Return the request's LoRAs, read, with their scales."""
        with blame_input("lora_urls"):
            files = [(resolve(link, allow_local=self._allow_local), scale) for link, scale in request.loras()]
            check_one_host([file for file, _ in files], token, self.settings)
            return [(self._lora(file, token, log), scale) for file, scale in files]

    def _lora(self, file: RemoteFile, token: str | None, log: Log) -> LoraWeights:
        """Return the LoRA in ``file``, from memory where it was parsed before."""
        from lora_service.lora.files import read_lora

        path = self._fetcher.fetch(file, token=token)
        key = (path, path.stat().st_mtime_ns, path.stat().st_size)
        if key not in self._parsed:
            self._parsed[key] = read_lora(path)
            while len(self._parsed) > 1 and sum(size for *_, size in self._parsed) > PARSED_BYTES:
                self._parsed.popitem(last=False)
        self._parsed.move_to_end(key)
        weights = self._parsed[key]
        tokens = shorten(" ".join(weights.tokens)) or "none"
        log(f"LoRA of rank {weights.rank}, trigger {quote(weights.trigger)}, tokens {tokens}")
        return weights

    def _open(self, image: object) -> Image.Image | None:
        """Decode the picture to start from, upright and in sRGB, in whatever format it is."""
        if image is None:
            return None
        from lora_service.dataset.images.decoder_process import DecodeRequest, decode_apart
        from lora_service.dataset.options import UploadLimits
        from lora_service.dataset.upload.source_files import SourceFile

        if not isinstance(image, Path):
            raise InputError("image", image, "an uploaded picture or an http(s) link to one")
        try:
            limits, file = UploadLimits.from_settings(self.settings), SourceFile("image", image)
            return decode_apart(DecodeRequest.within(limits, file, LARGEST_SIDE, (255, 255, 255))).image
        except PicturesError as error:
            raise PicturesError(
                f"The image to start from cannot be used: {error}.", code=error.code, field="image"
            ) from error
