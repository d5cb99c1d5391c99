"""Requests one after another on one warm base model, as a server or a command line runs them."""

from __future__ import annotations

import time
import traceback
from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, Self

from PIL import Image

from lora_service.downloads import Fetcher, RemoteFile, check_one_host, resolve
from lora_service.errors import InputError, LoraServiceError, PicturesError
from lora_service.generation.request import LARGEST_SIDE, GenerateRequest
from lora_service.services.output_folder import OutputFolder
from lora_service.settings import Settings

if TYPE_CHECKING:
    from lora_service.generation.generator import ImageGenerator
    from lora_service.lora.weights import LoraWeights

KEPT_BYTES = 2**30
"""Size of the parsed LoRAs that are kept in memory, beside the last one: the same link again costs nothing."""

RecordMetric = Callable[[str, float | int | str], None]


class InferenceService:
    """BatchPlan what requests ask for; the base model is loaded once, LoRAs are fetched, checked and kept.

    Args:
        allow_local: whether a LoRA may be a path on this machine: yes on a command
            line, never on a server.

    A context manager that removes the last request's pictures at its end.
    """

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def __init__(self, settings: Settings | None = None, *, allow_local: bool = False) -> None:
        self.settings = settings or Settings.from_environment()
        self._allow_local = allow_local
        self._fetcher = Fetcher(self.settings)
        self._drawing: ImageGenerator | None = None
        self._parsed: OrderedDict[tuple[Path, int, int], LoraWeights] = OrderedDict()
        self._folder = OutputFolder("lora-pictures-")

    def warm_up(self) -> None:
        """Load the base model; with ``WARM_UP`` also draw once, so that the first request finds all kernels ready."""
        drawing = self._loaded()
        if self.settings.warm_up:
            drawing.generate(GenerateRequest.of({"prompt": "", "num_inference_steps": 2}), [])

    def _loaded(self) -> ImageGenerator:
        if self._drawing is None:
            from lora_service.generation.generator import ImageGenerator
            from lora_service.models.loading import load_base, use_threads

            use_threads(self.settings)
            self._drawing = ImageGenerator(load_base(self.settings))
        return self._drawing

    def run(
        self,
        inputs: Mapping[str, Any],
        *,
        image: object = None,
        token: str | None = None,
        record_metric: RecordMetric = lambda name, value: None,
        log: Callable[[str], None] = print,
    ) -> list[Path]:
        """Draw what ``inputs`` ask for; the files lie in a folder of their own until the next request.

        Raises:
            LoraServiceError: something that the user can mend.
        """
        self.close()
        try:
            request = GenerateRequest.of({k: v for k, v in inputs.items() if v is not None})
            return self._run(request, self._opened(image), token, record_metric, log)
        except Exception as error:
            if not isinstance(error, LoraServiceError):
                traceback.print_exc()  # Cog shows the message alone
            raise

    def _run(
        self,
        request: GenerateRequest,
        image: Image.Image | None,
        token: str | None,
        record_metric: RecordMetric,
        log: Callable[[str], None],
    ) -> list[Path]:
        from lora_service.generation.generator import save_image

        started = time.monotonic()
        asked = [(resolve(link, allow_local=self._allow_local), scale) for link, scale in request.loras()]
        check_one_host([source for source, _ in asked], token, self.settings)
        loras = [(self._lora(source, token, log), scale) for source, scale in asked]
        fetched = time.monotonic()
        pictures = self._loaded().generate(request, loras, image=image, log=log)
        folder = self._folder.renew()
        ending = "jpg" if request.output_format == "jpeg" else request.output_format
        paths = [
            save_image(picture, folder / f"out-{i}.{ending}", request.output_quality)
            for i, picture in enumerate(pictures)
        ]
        record_metric("seed", pictures[0].seed)
        record_metric("seconds_lora", round(fetched - started, 3))
        record_metric("seconds_drawing", round(time.monotonic() - fetched, 3))
        return paths

    def _lora(self, source: RemoteFile, token: str | None, log: Callable[[str], None]) -> LoraWeights:
        """The LoRA that ``source`` leads to, from memory where it was parsed before."""
        from lora_service.lora.reader import read_lora

        path = self._fetcher.fetch(source, token=token)
        key = (path, path.stat().st_mtime_ns, path.stat().st_size)
        if key not in self._parsed:
            self._parsed[key] = read_lora(path)
            while len(self._parsed) > 1 and sum(size for *_, size in self._parsed) > KEPT_BYTES:
                self._parsed.popitem(last=False)
        self._parsed.move_to_end(key)
        weights = self._parsed[key]
        log(f"LoRA of rank {weights.rank}, trigger {weights.trigger!r}, tokens {' '.join(weights.tokens) or 'none'}")
        return weights

    def _opened(self, image: object) -> Image.Image | None:
        """The picture to start from, upright and in sRGB, whatever it is kept in."""
        if image is None:
            return None
        from lora_service.dataset.images.decode import decode
        from lora_service.dataset.upload.archives import SourceFile

        if not isinstance(image, Path):
            raise InputError("image", image, "an uploaded picture or an http(s) link to one")
        try:
            return decode(SourceFile("image", image), LARGEST_SIDE, (255, 255, 255), self.settings.max_pixels).image
        except PicturesError as error:
            raise PicturesError(f"The image to start from cannot be used: {error}.") from error

    def close(self) -> None:
        """Remove what the last request left: the server does not."""
        self._folder.clear()
