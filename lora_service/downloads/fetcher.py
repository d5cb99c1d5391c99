"""Fetch a ``RemoteFile``: a LoRA into the cache, a picture or zip into a folder."""

from __future__ import annotations

import contextlib
import json
import logging
import tempfile
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import unquote, urlsplit

from filelock import Timeout

from lora_service.downloads.auth import select_token
from lora_service.downloads.cache import Cache, CachedFile, TtlCache
from lora_service.downloads.http.addresses import AddressPolicy
from lora_service.downloads.http.deadline import Deadline, DownloadLimits
from lora_service.downloads.http.download import Download, DownloadJob, DownloadResult, Validators
from lora_service.downloads.http.network import Network
from lora_service.downloads.http.transport import Transport
from lora_service.downloads.partial_file import PartialFile, safe_file_name
from lora_service.downloads.remote_file import Listing, RemoteFile
from lora_service.downloads.sites import direct_links, site_registry
from lora_service.errors import LinkError, LoraFileError, UnreachableError
from lora_service.lora.archive import check_torch_file, is_archive, is_torch_file, unpack_lora
from lora_service.lora.safetensors_header import MAX_HEADER_BYTES, read_header
from lora_service.settings import Settings

_log = logging.getLogger(__name__)

_LOCK_POLL = 0.2
"""Seconds between two attempts to get an entry's lock."""
_HEADER_LENGTH_BYTES = 8
_GIT_LFS_MAGIC = b"version https://git-lfs"


@dataclass(frozen=True)
class FetchedFile:
    """A file on this machine, its name as the server or the link has it, and a note for the user on its choice."""

    path: Path
    name: str
    note: str = ""


class Fetcher:
    """Fetches files through the guarded network, and caches LoRAs; safe to share between threads.

    Args:
        settings: the cache's folder and size, the allowed addresses, the service's own tokens.
        network: the way from names to connections; None: the system's, guarded by the settings.
        limits: limits of each fetch.
    """

    def __init__(
        self, settings: Settings, network: Network | None = None, limits: DownloadLimits | None = None
    ) -> None:
        self._settings = settings
        self._limits = limits or DownloadLimits(total_timeout=settings.max_download_seconds)
        self._transport = Transport(network or Network(AddressPolicy(settings.allow_private_addresses)), self._limits)
        self._selected: TtlCache[tuple[str, str, str], RemoteFile] = TtlCache(self._limits.max_age)
        self._authorized: TtlCache[tuple[str, str], bool] = TtlCache(self._limits.max_age)
        self.cache = Cache(settings.lora_cache, settings.lora_cache_max_bytes)

    def fetch(self, remote: RemoteFile, *, token: str | None = None) -> Path:
        """Return the path of :meth:`fetch_file`."""
        return self.fetch_file(remote, token=token).path

    def fetch_file(
        self,
        remote: RemoteFile,
        *,
        token: str | None = None,
        base: str = "",
        until: float | None = None,
        cancelled: threading.Event | None = None,
    ) -> FetchedFile:
        """Return a LoRA in the cache, or an archive of one; it is downloaded, or revalidated, where needed.

        An exception in this thread, such as a cancelled job raises, ends the fetch and leaves the cache usable.

        Args:
            remote: the file; of a ``local`` one the path is returned as it is.
            token: the ``api_token`` input; it goes to the link's own host only.
            base: the base that the LoRA is for, where a link offers several, as kohya names it: ``sd_v1``.
            until: time of :func:`time.monotonic` at which the fetch ends in any case: one for all links of a job.
            cancelled: ends the fetch when it is set, for one in a thread that no cancellation reaches.

        Raises:
            LinkError: the link leads to nothing that is a LoRA, or nowhere.
            ForbiddenAddressError: it leads where the service may not connect.
            UnreachableError: the server does not answer now.
        """
        if remote.site == "local":
            return FetchedFile(remote.local_path, remote.local_path.name)
        bearer = select_token(remote, token, self._settings)
        with Deadline(self._limits.total_timeout, until, cancelled) as deadline:
            job = self._select_from_listing(DownloadJob(remote, bearer, deadline), base)
            try:
                file = self._fetch(job)
            except LinkError as error:
                content = direct_links.git_lfs_content(job.remote) if error.code == "git_lfs_pointer" else None
                if content is None:
                    raise
                file = self._fetch(replace(job, remote=content))
            return replace(file, note=job.remote.note)

    def _fetch(self, job: DownloadJob) -> FetchedFile:
        file = self._fresh_copy(job)
        if file:
            return file
        try:
            with self._entry_locked(job):
                return self._fresh_copy(job) or self._revalidated_copy(job)
        except OSError as error:  # a cache that may only be read, or a full disk
            entry = self.cache.find(job.remote.cache_key)
            file = self._use(job.remote, entry) if entry and not entry.private else None
            if file is None:
                raise LinkError(
                    f"The link {job.remote.link!r} cannot be fetched, because the folder LORA_CACHE cannot be written: "
                    f"{error.strerror}.",
                    code="cache_not_writable",
                ) from error
            return file

    def download(
        self, remote: RemoteFile, folder: Path, *, max_bytes: int | None = None, until: float | None = None
    ) -> Path:
        """Return the path of a picture or archive as a new file in a folder; it is not cached.

        Args:
            remote: the file; of a ``local`` one the path is returned as it is.
            folder: receives the file, under the name that the server or the link gives it, made safe.
            max_bytes: most that is fetched; None: ``MAX_ZIP_BYTES``.
            until: as of :meth:`fetch_file`.

        Raises:
            LinkError, ForbiddenAddressError, UnreachableError: as ``fetch``.
        """
        if remote.site == "local":
            return remote.local_path
        if remote.listing is not Listing.NONE:
            raise LinkError(
                f"The link {remote.link!r} names a model; paste the link of one picture or zip.", code="model_link"
            )
        bearer = select_token(remote, None, self._settings)
        max_bytes = self._settings.max_zip_bytes if max_bytes is None else max_bytes
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=folder, prefix=".download-") as temporary:
            partial = PartialFile(Path(temporary) / "file.part")
            with Deadline(self._limits.total_timeout, until) as deadline:
                result = self._download(DownloadJob(remote, bearer, deadline), partial, max_bytes)
            _check_sha256(remote, result, partial)
            content = direct_links.git_lfs_content(remote) if _is_git_lfs_pointer(partial.path) else None
            if content is not None:
                return self.download(content, folder, max_bytes=max_bytes, until=until)
            return partial.move_into(folder, safe_file_name(result.name, result.content_type))

    def _select_from_listing(self, job: DownloadJob, base: str) -> DownloadJob:
        """Return the job itself, or one for the only file of the listing that it names."""
        remote, key = job.remote, (job.remote.cache_key, job.token, base)
        if remote.listing is Listing.NONE:
            return job
        selected = self._selected.get(key)
        if selected:
            return replace(job, remote=selected)
        with tempfile.TemporaryDirectory() as folder:
            partial = PartialFile(Path(folder) / "listing.part")
            self._download(job, partial, self._limits.max_page_bytes)
            try:
                listing = json.loads(partial.path.read_bytes())
            except (ValueError, RecursionError) as error:
                raise LinkError(
                    f"The site's listing of {remote.link!r} cannot be read; paste the link of the file itself.",
                    code="unreadable_listing",
                ) from error
        selected = replace(site_registry.select_file(remote, listing, base), is_embedding=remote.is_embedding)
        self._selected.put(key, selected)
        return replace(job, remote=selected)

    def _fresh_copy(self, job: DownloadJob) -> FetchedFile | None:
        """Return the cached file when the server need not be asked about it."""
        entry = self.cache.find(job.remote.cache_key)
        if entry is None:
            return None
        if entry.private:
            is_fresh = self._authorized.get((entry.key, job.token)) is not None
        else:
            is_fresh = 0 <= time.time() - entry.checked < self._limits.max_age
        return self._use(job.remote, entry) if is_fresh else None

    def _use(self, remote: RemoteFile, entry: CachedFile) -> FetchedFile | None:
        """Return the cached file of an entry; None when it was removed meanwhile."""
        path = self.cache.use(entry)
        return FetchedFile(path, entry.name or _lora_name(remote, "")) if path else None

    @contextlib.contextmanager
    def _entry_locked(self, job: DownloadJob) -> Iterator[None]:
        """Hold the entry's lock; other fetches of the same file wait here, until their deadline."""
        lock = self.cache.lock(job.remote.cache_key)
        while not lock.is_locked:
            job.deadline.check()
            with contextlib.suppress(Timeout):
                lock.acquire(timeout=_LOCK_POLL)
        try:
            yield
        finally:
            lock.release()

    def _revalidated_copy(self, job: DownloadJob) -> FetchedFile:
        """Return the newest version: the cached one if the server confirms it, else a new download.

        The caller holds the entry's lock.
        """
        key = job.remote.cache_key
        entry = self.cache.find(key)
        validators = Validators(entry.etag, entry.last_modified) if entry else Validators()
        partial = self.cache.partial(key)
        try:
            result = self._download(job, partial, self._settings.max_download_bytes, validators, is_lora=True)
        except UnreachableError as error:
            file = self._use(job.remote, entry) if entry and not entry.private else None
            if file is None:
                raise
            _log.warning("%s The copy in the cache is used.", error)
            return file
        if result.unchanged and entry:
            self.cache.revalidate(entry, private=entry.private and bool(job.token))
            file = self._use(job.remote, entry) or self._revalidated_copy(job)
        else:
            file = self._store(job, result, partial)
        if job.token:
            self._authorized.put((key, job.token), True)
        return file

    def _store(self, job: DownloadJob, result: DownloadResult, partial: PartialFile) -> FetchedFile:
        try:
            _check_sha256(job.remote, result, partial)
            _check_lora(job.remote, partial, self._settings.max_download_bytes)
        except LinkError:
            partial.discard()
            raise
        entry = CachedFile(
            key=job.remote.cache_key,
            link=job.remote.link,
            sha256="",
            size=0,
            etag=result.etag,
            last_modified=result.last_modified,
            private=bool(job.token),
            checked=time.time(),
            name=_lora_name(job.remote, result.name),
        )
        return FetchedFile(self.cache.store(entry, partial), entry.name)

    def _download(
        self,
        job: DownloadJob,
        partial: PartialFile,
        max_bytes: int,
        validators: Validators | None = None,
        *,
        is_lora: bool = False,
    ) -> DownloadResult:
        if job.remote.site == "data":
            return _decode(job.remote, partial, max_bytes)
        download = Download(
            job=job,
            partial=partial,
            transport=self._transport,
            max_bytes=max_bytes,
            validators=validators or Validators(),
            inspect_head=(lambda: _inspect_head(job.remote, partial)) if is_lora else None,
        )
        try:
            return job.deadline.run(download.run)
        except LinkError as error:
            if error.code != "disk_full" or not is_lora or not self.cache.make_room():
                raise
        return job.deadline.run(download.run)


def _decode(remote: RemoteFile, partial: PartialFile, max_bytes: int) -> DownloadResult:
    media_type, data = direct_links.decode_data_uri(remote)
    if len(data) > max_bytes:
        raise LinkError(
            f"The data URI {remote.link!r} holds {len(data)} bytes, and at most {max_bytes} are taken.",
            code="too_large",
        )
    partial.path.write_bytes(data)
    return DownloadResult(name="data", content_type=media_type)


def _inspect_head(remote: RemoteFile, partial: PartialFile) -> None:
    """Refuse a file by its first bytes; one that may still become a safetensors file passes.

    Raises:
        LinkError: it begins as a file of another kind.
    """
    with partial.path.open("rb") as file:
        header_length = int.from_bytes(file.read(_HEADER_LENGTH_BYTES), "little")
    # Text, zips, pickles and pictures all begin with bytes that read as a huge length.
    may_be_other = is_archive(partial.path) or (remote.is_embedding and is_torch_file(partial.path))
    if header_length > MAX_HEADER_BYTES and not may_be_other:
        _check_lora(remote, partial, 0)


def _check_lora(remote: RemoteFile, partial: PartialFile, max_unpacked_bytes: int) -> None:
    """Read the header of a file, or of the one LoRA in an archive, and check that all tensors lie inside the file.

    Raises:
        LinkError: it is a web page, a Git LFS pointer, a pickle other than a textual inversion, cut off, or anything
            else.
    """
    if _is_git_lfs_pointer(partial.path):
        raise LinkError(
            f"The link {remote.link!r} leads to a Git LFS pointer and not to the file itself; "
            "paste the link of the content itself.",
            code="git_lfs_pointer",
        )
    try:
        if remote.is_embedding and is_torch_file(partial.path):
            check_torch_file(partial.path, partial.path.name)
        elif is_archive(partial.path):
            _check_archive(partial.path, max_unpacked_bytes)
        else:
            read_header(partial.path)
    except LoraFileError as error:
        problem = str(error).removeprefix(partial.path.name).strip()
        raise LinkError(f"What the link {remote.link!r} leads to {problem}", code="not_a_lora") from error


def _is_git_lfs_pointer(path: Path) -> bool:
    with path.open("rb") as file:
        return file.read(len(_GIT_LFS_MAGIC)) == _GIT_LFS_MAGIC


def _check_archive(path: Path, max_bytes: int) -> None:
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".archive-") as folder:
        try:
            unpacked = unpack_lora(path, Path(folder), max_bytes=max_bytes)
            read_header(unpacked.path, unpacked.name)
        except LoraFileError as error:
            raise LoraFileError(f"is an archive that cannot be used: {error}", code=error.code) from error


def _lora_name(remote: RemoteFile, server_name: str) -> str:
    """Return a LoRA's name for people: the server's, or the link's where that alone looks like one."""
    link_name = "" if remote.site == "data" else unquote(urlsplit(remote.url).path.rpartition("/")[2])
    suffixes: tuple[str, ...] = (".safetensors", ".zip", ".tar", ".tgz", ".gz", ".bz2", ".xz")
    suffixes += (".pt", ".bin") if remote.is_embedding else ()
    names = [name for name in (server_name, link_name) if name.lower().endswith(suffixes)]
    return safe_file_name(names[0] if names else server_name or "lora", "")


def _check_sha256(remote: RemoteFile, result: DownloadResult, partial: PartialFile) -> None:
    if result.sha256 and partial.sha256() != result.sha256:
        raise LinkError(
            f"What the link {remote.link!r} leads to is not the file that was announced: its SHA-256 differs from "
            f"{result.sha256[:12]}…; try again, or copy the link again.",
            code="hash_mismatch",
        )
