"""A pasted link -> a verified file. This is what the rest of the service calls."""

from __future__ import annotations

import contextlib
import json
import logging
import mimetypes
import re
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from filelock import Timeout

from lora_service.errors import LinkError
from lora_service.links import sites, tokens
from lora_service.links.addresses import Guard
from lora_service.links.cache import Cache, Entry
from lora_service.links.download import Download, Fetched, Known, Progress
from lora_service.links.errors import UnreachableError
from lora_service.links.limits import Limits
from lora_service.links.network import Network
from lora_service.links.partial import Partial
from lora_service.links.resolve import data_bytes, resolve
from lora_service.links.source import Catalogue, Source
from lora_service.links.transport import Transport
from lora_service.links.verify import check_safetensors, check_start, sha256_of
from lora_service.links.watch import Watch
from lora_service.settings import Settings

_log = logging.getLogger(__name__)
_LOCK_POLL = 0.2


@dataclass(frozen=True)
class Request:
    """What comes with a link.

    Attributes:
        token: the ``api_token`` input; it goes to the link's own host only.
        on_progress: called with the bytes so far and in all (None where unknown).
        should_stop: asked ten times a second, from another thread too; when true, the fetch ends with
            :class:`~lora_service.links.errors.FetchCancelled` within a second.
    """

    token: str | None = None
    on_progress: Progress | None = None
    should_stop: Callable[[], bool] | None = None


class Fetcher:
    """Fetches links through the guard and keeps what it fetched; safe to share between threads.

    Args:
        settings: the cache's place and size, what is allowed, the service's own tokens.
        network: how names become connections; None: the system's way, guarded by the settings.
        limits: how long a fetch may take.
    """

    def __init__(self, settings: Settings, network: Network | None = None, limits: Limits | None = None) -> None:
        self._settings = settings
        self._limits = limits or Limits()
        network = network or Network(Guard(settings.allow_private_addresses))
        self._transport = Transport(network, self._limits)
        self._granted: dict[tuple[str, str], float] = {}
        self.cache = Cache(settings.lora_cache, settings.lora_cache_max_bytes)

    def fetch(
        self,
        source: Source | str,
        *,
        token: str | None = None,
        on_progress: Progress | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Path:
        """The LoRA that a link leads to, as a checked file in the cache.

        Args:
            source: a link, or what ``resolve`` made of it; a ``local`` one is given back as it is.
            token: see :class:`Request`, as the others.

        Raises:
            LinkError: the link leads to nothing that is a LoRA, or nowhere.
            ForbiddenAddressError: it leads where the service may not go.
            UnreachableError: the server does not answer now.
            FetchCancelled: ``should_stop`` became true.
        """
        source = resolve(source) if isinstance(source, str) else source
        if source.site == "local":
            return source.path
        request = Request(tokens.choose(source, token, self._settings), on_progress, should_stop)
        with Watch(self._limits.total, should_stop) as watch:
            source = self._with_file(source, request, watch)
            fresh = self._fresh(source, request)
            if fresh:
                return fresh
            with self._locked(source, watch):
                return self._fresh(source, request) or self._refreshed(source, request, watch)

    def download(
        self,
        source: Source | str,
        folder: Path,
        *,
        token: str | None = None,
        max_bytes: int | None = None,
        on_progress: Progress | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Path:
        """A picture or archive that a link leads to, as a new file in a folder; it is not kept in the cache.

        Args:
            source: a link to one file, or what ``resolve`` made of it.
            folder: where the file goes, under the name that the server or the link gives it.
            token: see :class:`Request`, as the others.
            max_bytes: most that is fetched; None: ``MAX_ZIP_BYTES``.

        Raises:
            LinkError, ForbiddenAddressError, UnreachableError, FetchCancelled: as ``fetch``.
        """
        source = resolve(source) if isinstance(source, str) else source
        if source.site == "local":
            return source.path
        if source.catalogue is not Catalogue.NONE:
            raise LinkError(f"The link {source.link!r} names a model; paste the link of one picture or zip.")
        request = Request(tokens.choose(source, token, self._settings), on_progress, should_stop)
        most = self._settings.max_zip_bytes if max_bytes is None else max_bytes
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as unfinished:
            partial = Partial(Path(unfinished) / "file.part")
            with Watch(self._limits.total, should_stop) as watch:
                fetched = self._get(source, partial, request, watch, max_bytes=most)
            _check_hash(source, fetched, partial)
            target = _free_name(folder, _file_name(fetched))
            partial.move_to(target)
        return target

    def _with_file(self, source: Source, request: Request, watch: Watch) -> Source:
        """The source itself, or the one file of the listing that it names."""
        if source.catalogue is Catalogue.NONE:
            return source
        with tempfile.TemporaryDirectory() as folder:
            partial = Partial(Path(folder) / "listing.part")
            listing = replace(request, on_progress=None)
            self._get(source, partial, listing, watch, max_bytes=self._limits.page_bytes)
            try:
                content = json.loads(partial.path.read_bytes())
            except (ValueError, RecursionError) as error:
                raise LinkError(
                    f"The site's listing of {source.link!r} cannot be read; paste the link of the file itself."
                ) from error
        return sites.choose(source, content)

    def _fresh(self, source: Source, request: Request) -> Path | None:
        """The cached file, when the server need not be asked about it."""
        entry = self.cache.find(source.cache_key)
        if entry is None:
            return None
        token = request.token or ""
        checked = self._granted.get((entry.key, token), 0.0) if entry.private else entry.checked
        return self.cache.use(entry) if 0 <= time.time() - checked < self._limits.fresh else None

    @contextlib.contextmanager
    def _locked(self, source: Source, watch: Watch) -> Iterator[None]:
        """Hold the entry's lock; others who want the same link wait here, and can be stopped meanwhile."""
        lock = self.cache.lock(source.cache_key)
        while True:
            watch.check()
            try:
                lock.acquire(timeout=_LOCK_POLL)
                break
            except Timeout:
                continue
        try:
            yield
        finally:
            lock.release()

    def _refreshed(self, source: Source, request: Request, watch: Watch) -> Path:
        """The newest version: the cached one if the server says so, else a new download."""
        entry = self.cache.find(source.cache_key)
        known = Known(entry.etag, entry.last_modified) if entry else Known()
        partial = self.cache.partial(source.cache_key)
        try:
            fetched = self._get(source, partial, request, watch, known=known, is_lora=True)
        except UnreachableError as error:
            path = self.cache.use(entry) if entry and not entry.private else None
            if path is None:
                raise
            _log.warning("%s The copy in the cache is used.", error)
            return path
        if request.token:
            self._granted[(source.cache_key, request.token)] = time.time()
        if fetched.unchanged and entry:
            self.cache.renew(entry, private=entry.private and bool(request.token))
            return self.cache.use(entry) or self._refreshed(source, request, watch)
        return self._store(source, fetched, partial, private=bool(request.token))

    def _store(self, source: Source, fetched: Fetched, partial: Partial, *, private: bool) -> Path:
        try:
            _check_hash(source, fetched, partial)
            check_safetensors(partial.path, source)
        except LinkError:
            partial.discard()
            raise
        entry = Entry(
            key=source.cache_key,
            link=source.link,
            sha256="",
            size=0,
            etag=fetched.etag,
            last_modified=fetched.last_modified,
            private=private,
            checked=time.time(),
        )
        return self.cache.store(entry, partial)

    def _get(
        self,
        source: Source,
        partial: Partial,
        request: Request,
        watch: Watch,
        *,
        max_bytes: int | None = None,
        known: Known | None = None,
        is_lora: bool = False,
    ) -> Fetched:
        max_bytes = self._settings.max_download_bytes if max_bytes is None else max_bytes
        if source.site == "data":
            return _unpack(source, partial, max_bytes)
        return Download(
            source=source,
            into=partial,
            transport=self._transport,
            watch=watch,
            max_bytes=max_bytes,
            token=request.token or "",
            known=known or Known(),
            look=(lambda: check_start(partial.path, source)) if is_lora else None,
            on_progress=request.on_progress,
        ).run()


def _unpack(source: Source, partial: Partial, max_bytes: int) -> Fetched:
    data = data_bytes(source)
    if len(data) > max_bytes:
        raise LinkError(f"The data URI {source.link!r} holds {len(data)} bytes, and at most {max_bytes} are taken.")
    partial.path.write_bytes(data)
    return Fetched(name="data", content_type=source.url[len("data:") :].partition(",")[0].partition(";")[0])


def _check_hash(source: Source, fetched: Fetched, partial: Partial) -> None:
    if fetched.sha256 and sha256_of(partial.path) != fetched.sha256:
        raise LinkError(
            f"What the link {source.link!r} leads to is not the file that was announced: its SHA-256 differs from "
            f"{fetched.sha256[:12]}…; try again, or copy the link again."
        )


def _file_name(fetched: Fetched) -> str:
    """A harmless file name: no folder, no leading dot, nothing but letters, digits and a little between them."""
    name = re.sub(r"[^\w. ()+-]", "_", fetched.name.replace("\\", "/").rpartition("/")[2]).strip(" .")[-120:]
    if "." not in name:
        name = f"{name or 'file'}{mimetypes.guess_extension(fetched.content_type) or ''}"
    return name.lstrip(".")


def _free_name(folder: Path, name: str) -> Path:
    """A path that was not there before, and is taken now."""
    stem, dot, suffix = name.rpartition(".")
    for number in range(1, 100_000):
        counted = name if number == 1 else f"{stem}-{number}{dot}{suffix}" if dot else f"{name}-{number}"
        with contextlib.suppress(FileExistsError):
            (folder / counted).open("xb").close()
            return folder / counted
    raise LinkError(f"There are too many files named {name!r} in one training; rename them.")
