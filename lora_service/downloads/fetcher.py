"""A pasted link -> a verified file. This is what the rest of the service calls."""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

from filelock import Timeout

from lora_service.downloads import auth, file_names, sites
from lora_service.downloads.cache import Cache, CachedFile
from lora_service.downloads.http.addresses import AddressPolicy
from lora_service.downloads.http.deadline import Deadline
from lora_service.downloads.http.download import Download, DownloadJob, Fetched, OnBytes, Validators
from lora_service.downloads.http.fetch_errors import UnreachableError
from lora_service.downloads.http.limits import DownloadLimits
from lora_service.downloads.http.network import Network
from lora_service.downloads.http.partial import PartialFile
from lora_service.downloads.http.transport import Transport
from lora_service.downloads.http.ttl_cache import TtlCache
from lora_service.downloads.remote_file import Listing, RemoteFile
from lora_service.downloads.resolve import data_bytes, resolve
from lora_service.downloads.verify import check_safetensors, check_start, sha256_of
from lora_service.errors import LinkError
from lora_service.settings import Settings

_log = logging.getLogger(__name__)
_LOCK_POLL = 0.2


class Fetcher:
    """Fetches links through the guard and keeps what it fetched; safe to share between threads.

    Args:
        settings: the cache's place and size, what is allowed, the service's own tokens.
        network: how names become connections; None: the system's way, guarded by the settings.
        limits: how long a fetch may take.
    """

    def __init__(
        self, settings: Settings, network: Network | None = None, limits: DownloadLimits | None = None
    ) -> None:
        self._settings = settings
        self._limits = limits or DownloadLimits()
        self._transport = Transport(network or Network(AddressPolicy(settings.allow_private_addresses)), self._limits)
        self._chosen: TtlCache[tuple[str, str], RemoteFile] = TtlCache(self._limits.fresh)
        self._granted: TtlCache[tuple[str, str], bool] = TtlCache(self._limits.fresh)
        self.cache = Cache(settings.lora_cache, settings.lora_cache_max_bytes)

    def fetch(
        self,
        source: RemoteFile | str,
        *,
        token: str | None = None,
        on_progress: OnBytes | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Path:
        """The LoRA that a link leads to, as a checked file in the cache.

        Args:
            source: a link, or what ``resolve`` made of it; a ``local`` one is given back as it is.
            token: the ``api_token`` input; it goes to the link's own host only.
            on_progress: called with the bytes so far and in all (None where unknown).
            should_stop: asked ten times a second, from another thread too; when it is true, the fetch ends
                within a second. An exception in this thread ends it as well.

        Raises:
            LinkError: the link leads to nothing that is a LoRA, or nowhere.
            ForbiddenAddressError: it leads where the service may not go.
            UnreachableError: the server does not answer now.
            FetchCancelled: ``should_stop`` became true.
        """
        source = resolve(source) if isinstance(source, str) else source
        if source.site == "local":
            return source.path
        bearer = auth.choose(source, token, self._settings)
        with Deadline(self._limits.total, should_stop) as watch:
            job = self._with_file(DownloadJob(source, bearer, watch, on_progress))
            fresh = self._fresh(job)
            if fresh:
                return fresh
            with self._locked(job):
                return self._fresh(job) or self._refreshed(job)

    def download(
        self,
        source: RemoteFile | str,
        folder: Path,
        *,
        token: str | None = None,
        max_bytes: int | None = None,
        on_progress: OnBytes | None = None,
        should_stop: Callable[[], bool] | None = None,
    ) -> Path:
        """A picture or archive that a link leads to, as a new file in a folder; it is not kept in the cache.

        Args:
            source: a link to one file, or what ``resolve`` made of it; a ``local`` one is given back as it is.
            folder: where the file goes, under the name that the server or the link gives it.
            token, on_progress, should_stop: as for ``fetch``.
            max_bytes: most that is fetched; None: ``MAX_ZIP_BYTES``.

        Raises:
            LinkError, ForbiddenAddressError, UnreachableError, FetchCancelled: as ``fetch``.
        """
        source = resolve(source) if isinstance(source, str) else source
        if source.site == "local":
            return source.path
        if source.catalogue is not Listing.NONE:
            raise LinkError(f"The link {source.link!r} names a model; paste the link of one picture or zip.")
        bearer = auth.choose(source, token, self._settings)
        most = self._settings.max_zip_bytes if max_bytes is None else max_bytes
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as unfinished:
            partial = PartialFile(Path(unfinished) / "file.part")
            with Deadline(self._limits.total, should_stop) as watch:
                fetched = self._get(DownloadJob(source, bearer, watch, on_progress), partial, most)
            _check_hash(source, fetched, partial)
            target = file_names.reserve(folder, file_names.harmless(fetched.name, fetched.content_type))
            partial.move_to(target)
        return target

    def _with_file(self, job: DownloadJob) -> DownloadJob:
        """The job itself, or the same for the one file of the listing that its source names."""
        if job.source.catalogue is Listing.NONE:
            return job
        known = self._chosen.get((job.key, job.token))
        if known:
            return replace(job, source=known)
        with tempfile.TemporaryDirectory() as folder:
            partial = PartialFile(Path(folder) / "listing.part")
            self._get(replace(job, on_progress=None), partial, self._limits.page_bytes)
            try:
                listing = json.loads(partial.path.read_bytes())
            except (ValueError, RecursionError) as error:
                raise LinkError(
                    f"The site's listing of {job.source.link!r} cannot be read; paste the link of the file itself."
                ) from error
        chosen = sites.choose(job.source, listing)
        self._chosen.put((job.key, job.token), chosen)
        return replace(job, source=chosen)

    def _fresh(self, job: DownloadJob) -> Path | None:
        """The cached file, when the server need not be asked about it."""
        entry = self.cache.find(job.key)
        if entry is None:
            return None
        if entry.private:
            is_fresh = self._granted.get((job.key, job.token)) is not None
        else:
            is_fresh = 0 <= time.time() - entry.checked < self._limits.fresh
        return self.cache.use(entry) if is_fresh else None

    @contextlib.contextmanager
    def _locked(self, job: DownloadJob) -> Iterator[None]:
        """Hold the entry's lock; others who want the same link wait here, and can be stopped meanwhile."""
        lock = self.cache.lock(job.key)
        while not lock.is_locked:
            job.watch.check()
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=_LOCK_POLL)
        try:
            yield
        finally:
            lock.release()

    def _refreshed(self, job: DownloadJob) -> Path:
        """The newest version: the cached one if the server says so, else a new download. Hold the lock."""
        entry = self.cache.find(job.key)
        known = Validators(entry.etag, entry.last_modified) if entry else Validators()
        partial = self.cache.partial(job.key)
        try:
            fetched = self._get(job, partial, self._settings.max_download_bytes, known, is_lora=True)
        except UnreachableError as error:
            path = self.cache.use(entry) if entry and not entry.private else None
            if path is None:
                raise
            _log.warning("%s The copy in the cache is used.", error)
            return path
        if fetched.unchanged and entry:
            self.cache.renew(entry, private=entry.private and bool(job.token))
            path = self.cache.use(entry) or self._refreshed(job)
        else:
            path = self._store(job, fetched, partial)
        if job.token:
            self._granted.put((job.key, job.token), True)
        return path

    def _store(self, job: DownloadJob, fetched: Fetched, partial: PartialFile) -> Path:
        try:
            _check_hash(job.source, fetched, partial)
            check_safetensors(partial.path, job.source)
        except LinkError:
            partial.discard()
            raise
        entry = CachedFile(
            key=job.key,
            link=job.source.link,
            sha256="",
            size=0,
            etag=fetched.etag,
            last_modified=fetched.last_modified,
            private=bool(job.token),
            checked=time.time(),
        )
        return self.cache.store(entry, partial)

    def _get(
        self,
        job: DownloadJob,
        partial: PartialFile,
        max_bytes: int,
        known: Validators | None = None,
        *,
        is_lora: bool = False,
    ) -> Fetched:
        if job.source.site == "data":
            return _unpack(job.source, partial, max_bytes)
        return Download(
            job=job,
            into=partial,
            transport=self._transport,
            max_bytes=max_bytes,
            known=known or Validators(),
            look=(lambda: check_start(partial.path, job.source)) if is_lora else None,
        ).run()


def _unpack(source: RemoteFile, partial: PartialFile, max_bytes: int) -> Fetched:
    data = data_bytes(source)
    if len(data) > max_bytes:
        raise LinkError(f"The data URI {source.link!r} holds {len(data)} bytes, and at most {max_bytes} are taken.")
    partial.path.write_bytes(data)
    return Fetched(name="data", content_type=source.url[len("data:") :].partition(",")[0].partition(";")[0])


def _check_hash(source: RemoteFile, fetched: Fetched, partial: PartialFile) -> None:
    if fetched.sha256 and sha256_of(partial.path) != fetched.sha256:
        raise LinkError(
            f"What the link {source.link!r} leads to is not the file that was announced: its SHA-256 differs from "
            f"{fetched.sha256[:12]}…; try again, or copy the link again."
        )
