"""The LoRAs of requests: fetched, read, and kept in memory for the next request that names them."""

from __future__ import annotations

import time
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Event
from typing import TYPE_CHECKING

from lora_service.downloads.auth import check_one_host
from lora_service.downloads.fetcher import FetchedFile, Fetcher
from lora_service.downloads.parsed_url import redact
from lora_service.downloads.prefetch import Prefetch
from lora_service.downloads.remote_file import RemoteFile
from lora_service.downloads.resolve import resolve
from lora_service.errors import InputError, LoraFileError, blame_input, quote, shorten
from lora_service.generation.request import GenerateRequest
from lora_service.services.model_service import Log
from lora_service.settings import Settings

if TYPE_CHECKING:
    from lora_service.lora.patcher import ScaledLora
    from lora_service.lora.weights import LoraWeights
    from lora_service.models.defaults import ModelDefaults

PARSED_BYTES = 2**30
"""Memory of the parsed LoRAs that are kept, beside those of the last request: the same link again costs nothing."""
_FileKey = tuple[FetchedFile, int, int]
"""File, time of change in nanoseconds, and size."""


@dataclass(frozen=True)
class LoraSources:
    """The LoRAs of a request that are no links in ``lora_urls``.

    ``lora`` may be anything: Cog hands over a ``Path`` for what it downloaded, and a bare ``str`` for what it did not
    understand, which must not be opened.
    """

    replicate_weights: str
    lora: object


class LoraReader:
    """Reads the LoRAs of one request after another.

    Args:
        allow_local: a LoRA may be a path on this machine: yes on a command line, never on a server.
        weights: link or path of a trained LoRA that is the first of every request without ``replicate_weights``;
            "" for none.

    Attributes:
        hits: how many files of the last request were in memory.
    """

    def __init__(self, settings: Settings, *, allow_local: bool, weights: str) -> None:
        self.settings, self.weights = settings, weights
        self.fetcher = Fetcher(settings)
        self.hits = 0
        self._allow_local = allow_local
        self._trained: LoraWeights | None = None
        self._parsed: OrderedDict[_FileKey, LoraWeights] = OrderedDict()
        self._used: dict[_FileKey, LoraWeights] = {}

    def count(self, sources: LoraSources) -> int:
        """Return the number of LoRAs beside those in ``lora_urls``."""
        return bool(sources.replicate_weights or self.weights) + (sources.lora is not None)

    def trained_weights(self, defaults: ModelDefaults) -> LoraWeights | None:
        """Return the service's own trained LoRA, if it has one; ``defaults`` are those of its base.

        Raises:
            LoraServiceError: it cannot be had.
        """
        if self.weights and self._trained is None:
            with blame_input("COG_WEIGHTS"):
                self._trained = self._lora(resolve(self.weights, allow_local=True), None, defaults, print)
        return self._trained

    @contextmanager
    def request(self) -> Iterator[None]:
        """Keep the LoRAs of a request that is drawn, and drop the longest unused ones beyond ``PARSED_BYTES``.

        Those of a refused request are not kept: no base may fit them, and requests could bring any number of them.
        """
        self.hits = 0
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

    def read(
        self, request: GenerateRequest, sources: LoraSources, token: str | None, defaults: ModelDefaults, log: Log
    ) -> tuple[list[ScaledLora], list[LoraWeights]]:
        """Return the request's LoRAs with their scales, and its textual inversions.

        The LoRAs are the trained weights, the upload, and those by link, in this order.

        Args:
            token: sent to the links' own host only.
            defaults: of the base that draws.

        Raises:
            LoraServiceError: a link, or the file behind it, cannot be used.
        """
        links: dict[str, Sequence[str]] = {
            "replicate_weights": [sources.replicate_weights] if sources.replicate_weights else [],
            "lora_urls": request.links(),
            "embedding_urls": request.links("embedding_urls"),
        }
        files: list[tuple[str, RemoteFile]] = []
        for name in links:
            with blame_input(name):
                remotes = [resolve(link, allow_local=self._allow_local) for link in links[name]]
            files += [(name, replace(file, is_embedding=name == "embedding_urls")) for file in remotes]
        check_one_host([file for _, file in files], token, self.settings)
        trained = None if sources.replicate_weights else self.trained_weights(defaults)
        uploaded = [] if sources.lora is None else [_read_upload(sources.lora)]
        fetched: dict[str, list[LoraWeights]] = {name: [] for name in links}
        until = time.monotonic() + self.settings.max_download_seconds

        def fetch(file: RemoteFile, cancelled: Event) -> object:
            return self.fetcher.fetch_file(file, token=token, base=defaults.version, until=until, cancelled=cancelled)

        with Prefetch([file for _, file in files], fetch):
            for name, file in files:
                with blame_input(name):
                    fetched[name].append(self._lora(file, token, defaults, log, until))
                _propose_settings(fetched[name][-1], file, request, defaults, log)
        service_loras = [] if trained is None else [trained]
        loras = [*service_loras, *fetched["replicate_weights"], *uploaded, *fetched["lora_urls"]]
        for number, lora in enumerate(loras, start=1):
            log(_description(number, lora))
            for warning in lora.warnings:
                log(f"warning: LoRA {number}: {warning}")
        scales = request.scales(len(loras) - len(links["lora_urls"]))
        return list(zip(loras, scales, strict=True)), [_checked_embedding(each) for each in fetched["embedding_urls"]]

    def _lora(
        self, remote: RemoteFile, token: str | None, defaults: ModelDefaults, log: Log, until: float | None = None
    ) -> LoraWeights:
        """Return the LoRA in ``remote``, from memory where it was parsed before.

        A copy in the cache that was damaged since is fetched again.
        """
        file = self.fetcher.fetch_file(remote, token=token, base=defaults.version, until=until)
        if file.note:
            log(file.note)
        try:
            return self._parse(remote, file)
        except LoraFileError:
            if not self.fetcher.cache.discard_if_damaged(file.path):
                raise
        return self._parse(remote, self.fetcher.fetch_file(remote, token=token, base=defaults.version, until=until))

    def _parse(self, remote: RemoteFile, file: FetchedFile) -> LoraWeights:
        from lora_service.lora.files import read_lora

        stat = file.path.stat()
        # Each use sets the time of a file in the cache, whose name is the hash of its content.
        key = (file, stat.st_mtime_ns if remote.site == "local" else 0, stat.st_size)
        weights = self._parsed.get(key) or self._used.get(key)
        self.hits += weights is not None
        weights = weights or read_lora(file.path, file.name, torch_embedding=remote.is_embedding)
        self._used[key] = weights
        return weights


def _read_upload(lora: object) -> LoraWeights:
    """Return the LoRA that was uploaded; its name was lost on the way."""
    from lora_service.lora.files import read_lora

    if not isinstance(lora, Path):
        raise InputError("lora", redact(str(lora)), "an uploaded LoRA or an http(s) link to one")
    with blame_input("lora"):
        return read_lora(lora, f"lora{lora.suffix}")


def _propose_settings(
    weights: LoraWeights, file: RemoteFile, request: GenerateRequest, defaults: ModelDefaults, log: Log
) -> None:
    """Say in the log what a LoRA that was distilled for few steps is made for, where the request asks for other."""
    from lora_service.generation.few_steps import few_step_advice, few_step_kind

    kind = few_step_kind(weights, file.link)
    advice = few_step_advice(kind, request, defaults) if kind else None
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
