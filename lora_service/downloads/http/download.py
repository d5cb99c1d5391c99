"""One source -> the bytes of one file, whole: retries, resuming, caps, and the pages that come instead."""

from __future__ import annotations

import errno
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime

from lora_service.downloads import sites
from lora_service.downloads.http.deadline import Deadline
from lora_service.downloads.http.fetch_errors import UnreachableError
from lora_service.downloads.http.partial import PartialFile, validator_of
from lora_service.downloads.http.transport import Reply, Transport
from lora_service.downloads.remote_file import ErrorHints, RemoteFile
from lora_service.downloads.verify import START_BYTES
from lora_service.errors import LinkError
from lora_service.settings import MEBIBYTE

OnBytes = Callable[[int, int | None], None]
"""Called with the bytes so far and the bytes in all, or None where the server does not say."""

_PAGES = frozenset({"text/html", "application/xhtml+xml"})
_BUSY = frozenset({408, 425, 429})
_COUNT = r"[0-9]{1,15}"


@dataclass(frozen=True)
class Validators:
    """What is already known of a file: how to ask whether there is a newer one."""

    etag: str = ""
    last_modified: str = ""

    @property
    def headers(self) -> dict[str, str]:
        """The conditional request's headers."""
        headers = {"If-None-Match": self.etag, "If-Modified-Since": self.last_modified}
        return {name: value for name, value in headers.items() if value}

    def is_current(self, headers: Mapping[str, str]) -> bool:
        """Whether an answer describes the same file, for servers that send it although it was not changed."""
        etag, last_modified = headers.get("ETag", ""), headers.get("Last-Modified", "")
        if self.etag and etag:
            return self.etag.removeprefix("W/") == etag.removeprefix("W/")
        return bool(self.last_modified) and self.last_modified == last_modified


@dataclass(frozen=True)
class Fetched:
    """What the server said of the file that was fetched.

    Attributes:
        unchanged: the known file is still the newest, and nothing was fetched.
        sha256: what the file must hash to, or ''.
        name: its name, or ''.
        content_type: its media type, or ''.
    """

    etag: str = ""
    last_modified: str = ""
    sha256: str = ""
    name: str = ""
    content_type: str = ""
    unchanged: bool = False


@dataclass(frozen=True)
class DownloadJob:
    """What is fetched for whom.

    Attributes:
        source: what to fetch.
        token: sent to the source's own host, or ''.
        watch: ends the fetch on time.
        on_progress: told how far it is.
    """

    source: RemoteFile
    token: str
    watch: Deadline
    on_progress: OnBytes | None = None

    @property
    def key(self) -> str:
        """The source's name in the cache."""
        return self.source.cache_key


@dataclass(frozen=True)
class Download:
    """One download.

    Attributes:
        job: what to fetch.
        into: where the bytes go; what is there already is gone on with, if the server agrees.
        max_bytes: most that is stored.
        known: the version at hand, or none.
        look: called once the first bytes have come; raises to refuse the rest.
    """

    job: DownloadJob
    into: PartialFile
    transport: Transport
    max_bytes: int
    known: Validators = field(default_factory=Validators)
    look: Callable[[], None] | None = None

    def run(self) -> Fetched:
        """Fetch the whole file.

        Raises:
            UnreachableError: the server stayed busy, broke off or silent through all attempts.
            LinkError: what is there is no file, too large, or not for us.
            FetchCancelled: the caller asked to stop.
        """
        attempt = 0
        while True:
            attempt += 1
            try:
                return self._attempt()
            except UnreachableError as error:
                if not error.retry or attempt >= self.transport.limits.attempts:
                    raise
                self.job.watch.wait(self._pause(attempt, error))

    def _pause(self, attempt: int, error: UnreachableError) -> float:
        limits = self.transport.limits
        if error.wait is None:
            return limits.backoff * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)
        if error.wait > limits.longest_wait:
            raise error
        return error.wait

    def _attempt(self) -> Fetched:
        url, token = self.job.source.url, self.job.token
        for _ in range(self.transport.limits.pages):
            with self.transport.open(url, self.job.watch, token, self._conditions()) as reply:
                if reply.status == 304 and self.known.headers:
                    return Fetched(unchanged=True)
                if reply.status == 416:
                    self.into.discard()
                    raise UnreachableError(f"The host {reply.link.host!r} cannot go on with the file; try again.")
                page = self._page(reply)
                if page is None:
                    return self._receive(reply)
                url, token = self._behind(page, reply), ""  # a page may name any host
        raise LinkError(
            f"The link {self.job.source.link!r} leads from page to page and to no file; {self._advice.page}."
        )

    def _conditions(self) -> dict[str, str]:
        validator = self.into.validator
        if validator:
            return {"Range": f"bytes={self.into.size}-", "If-Range": validator}
        return self.known.headers

    @property
    def _advice(self) -> ErrorHints:
        return self.job.source.advice

    def _page(self, reply: Reply) -> str | None:
        """The page's text when it is one; an answer that is neither file nor page raises."""
        page = reply.text(MEBIBYTE) if reply.content_type in _PAGES else None
        if reply.status in (200, 206):
            return page
        words = sites.reason(self.job.source, page or "")
        if words:
            raise self._refused(f"the site says “{words}”")
        raise self._status(reply)

    def _behind(self, page: str, reply: Reply) -> str:
        """The address that a page asks to confirm."""
        words = sites.reason(self.job.source, page)
        if words:
            raise self._refused(f"the site says “{words}”")
        url = sites.follow_page(self.job.source, page, reply.link.url)
        if url is None:
            title = re.search(r"<title[^>]{0,200}>([^<]{1,100})", page, re.IGNORECASE)
            named = f" (“{' '.join(title.group(1).split())}”)" if title else ""
            raise self._refused(f"{self._advice.page}{named}")
        return url

    def _refused(self, why: str) -> LinkError:
        return LinkError(f"The link {self.job.source.link!r} cannot be fetched: {why}.")

    def _status(self, reply: Reply) -> LinkError:
        advice, status = self._advice, reply.status
        if status in (401, 403):
            return self._refused(f"{advice.bad_token if reply.with_token else advice.no_token} (status {status})")
        if status in (404, 410):
            return self._refused(f"{advice.missing} (status {status})")
        if status in _BUSY or status >= 500:
            wait = _retry_after(reply.headers)
            when = f"in {wait:.0f} seconds" if wait else "later"
            return UnreachableError(
                f"The link {self.job.source.link!r} cannot be fetched: the host {reply.link.host!r} is busy or broken "
                f"(status {status}); try again {when}.",
                wait=wait,
            )
        return self._refused(f"the host {reply.link.host!r} answers with status {status}; copy the link again")

    def _receive(self, reply: Reply) -> Fetched:
        if self.known.is_current(reply.headers) and reply.status == 200:
            return Fetched(unchanged=True)
        start = self._start(reply)
        length = reply.headers.get("Content-Length", "")
        total = start + int(length) if re.fullmatch(_COUNT, length) and not reply.is_encoded else None
        if total is not None and total > self.max_bytes:
            raise self._too_large(total)
        self._write(reply, start, total)
        return Fetched(
            etag=reply.headers.get("ETag", ""),
            last_modified=reply.headers.get("Last-Modified", ""),
            sha256=self.job.source.sha256 or reply.sha256,
            name=_name(reply.headers) or reply.link.file_name,
            content_type=reply.content_type,
        )

    def _start(self, reply: Reply) -> int:
        """How many bytes of the file are there already; whatever does not fit the answer is thrown away."""
        validator = "" if reply.is_encoded else validator_of(reply.headers)
        if reply.status == 206:
            size = self.into.size
            agreed = re.match(rf"bytes {size}-", reply.headers.get("Content-Range", ""))
            if agreed and validator in ("", self.into.validator) and not reply.is_encoded:
                return size
            self.into.discard()
            raise UnreachableError(f"The host {reply.link.host!r} sent another part of the file; try again.")
        self.into.begin(validator)
        return 0

    def _write(self, reply: Reply, start: int, total: int | None) -> None:
        done, looked = start, start >= START_BYTES
        try:
            with self.into.path.open("ab") as file:
                for chunk in reply.chunks():
                    if done + len(chunk) > self.max_bytes:
                        raise self._too_large(None)
                    file.write(chunk)
                    done += len(chunk)
                    if self.look and not looked and done >= START_BYTES:
                        file.flush()
                        self.look()
                        looked = True
                    if self.job.on_progress:
                        self.job.on_progress(done, total)
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._refused("there is no room left on the disk; clear the cache or make room") from error
            raise

    def _too_large(self, size: int | None) -> LinkError:
        self.into.discard()
        is_ = f"is {size / MEBIBYTE:.0f} MiB" if size else "is larger than announced"
        return self._refused(f"the file {is_}, and at most {self.max_bytes / MEBIBYTE:.0f} MiB are fetched")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Seconds to wait, from either form of Retry-After."""
    value = headers.get("Retry-After", "").strip()
    if re.fullmatch(_COUNT, value):
        return float(value)
    try:
        when = parsedate_to_datetime(value)
        return max(0.0, (when.replace(tzinfo=when.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):
        return None  # none given, or no date


def _name(headers: Mapping[str, str]) -> str:
    message = Message()
    message["Content-Disposition"] = headers.get("Content-Disposition", "")
    return message.get_filename("")
