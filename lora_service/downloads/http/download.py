"""Download one file completely: retries, resumed ranges, size limits, and the pages that come instead."""

from __future__ import annotations

import errno
import random
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from email.message import Message
from email.utils import parsedate_to_datetime

from lora_service.downloads.http.deadline import Deadline
from lora_service.downloads.http.transport import Response, Transport
from lora_service.downloads.partial_file import PartialFile
from lora_service.downloads.remote_file import RemoteFile
from lora_service.downloads.sites import site_registry
from lora_service.errors import LinkError, UnreachableError
from lora_service.settings import MEBIBYTE

HEAD_BYTES = 512
"""After so many bytes a file can be inspected, and the rest need not be downloaded."""

_PAGE_TYPES = frozenset({"text/html", "application/xhtml+xml"})
_BUSY_STATUSES = frozenset({408, 425, 429})
_COUNT = r"[0-9]{1,15}"


@dataclass(frozen=True)
class Validators:
    """The validators of a cached version (RFC 9110, section 8.8), with which a server is asked for a newer one."""

    etag: str = ""
    last_modified: str = ""

    @property
    def headers(self) -> dict[str, str]:
        """The headers of the conditional request."""
        headers = {"If-None-Match": self.etag, "If-Modified-Since": self.last_modified}
        return {name: value for name, value in headers.items() if value}

    def match(self, headers: Mapping[str, str]) -> bool:
        """Return whether a response is about the same version, for servers that send it although it is unchanged."""
        etag, last_modified = headers.get("ETag", ""), headers.get("Last-Modified", "")
        if self.etag and etag:
            return self.etag.removeprefix("W/") == etag.removeprefix("W/")
        return bool(self.last_modified) and self.last_modified == last_modified


@dataclass(frozen=True)
class DownloadResult:
    """The server's description of the file that was downloaded.

    Attributes:
        etag, last_modified: validators of this version, or ''.
        sha256: the SHA-256 that the file must have, or ''.
        name: its file name, or ''.
        content_type: its media type, or ''.
        unchanged: the cached version is still the newest, and nothing was downloaded.
    """

    etag: str = ""
    last_modified: str = ""
    sha256: str = ""
    name: str = ""
    content_type: str = ""
    unchanged: bool = False


@dataclass(frozen=True)
class DownloadJob:
    """A file to download, the token that is sent to the file's own host ('': none), and the time that is left."""

    remote: RemoteFile
    token: str
    deadline: Deadline


@dataclass(frozen=True)
class Download:
    """One download.

    Attributes:
        job: the file.
        partial: receives the bytes; a part that is there already is resumed, if the server agrees.
        transport: sends the requests.
        max_bytes: most that is stored.
        validators: those of the cached version, or none.
        inspect_head: called once the first ``HEAD_BYTES`` have come; raises to refuse the rest.
    """

    job: DownloadJob
    partial: PartialFile
    transport: Transport
    max_bytes: int
    validators: Validators = field(default_factory=Validators)
    inspect_head: Callable[[], None] | None = None

    def run(self) -> DownloadResult:
        """Download the whole file.

        Raises:
            UnreachableError: the server stayed busy, broke off or silent through all attempts.
            LinkError: the link leads to no file, to one that is too large, or to one that the token does not open.
        """
        limits = self.transport.limits
        attempt = 0
        while True:
            attempt += 1
            try:
                return self._attempt()
            except UnreachableError as error:
                pause = error.retry_after
                if pause is None:
                    pause = limits.backoff * 2 ** (attempt - 1) * random.uniform(0.75, 1.25)
                elif pause > limits.max_retry_after:
                    raise
                if not error.retry or attempt >= limits.max_attempts:
                    raise
            self.job.deadline.wait(pause)

    def _attempt(self) -> DownloadResult:
        url, token = self.job.remote.url, self.job.token
        for _ in range(self.transport.limits.max_pages):
            with self.transport.open(url, self.job.deadline, token, self._conditional_headers()) as response:
                if response.status == 304 and self.validators.headers:
                    return DownloadResult(unchanged=True)
                if response.status == 416:
                    raise self._range_refused(f"The host {response.link.host!r} cannot resume the file; try again.")
                page = self._read_page(response)
                if page is None:
                    return self._receive(response)
                url, token = self._confirmed_url(page, response), ""  # a page may name any host
        raise LinkError(
            f"The link {self.job.remote.link!r} leads from page to page and to no file; "
            f"{self.job.remote.hints.web_page}.",
            code="too_many_pages",
        )

    def _conditional_headers(self) -> dict[str, str]:
        validator = self.partial.validator
        if validator:
            return {"Range": f"bytes={self.partial.size}-", "If-Range": validator}
        return self.validators.headers

    def _read_page(self, response: Response) -> str | None:
        """Return the text of a web page, or None for a file; every other response raises."""
        page = response.text(MEBIBYTE) if response.content_type in _PAGE_TYPES else None
        if response.status in (200, 206):
            return page
        self._check_refusal(page or "")
        raise self._status_error(response)

    def _confirmed_url(self, page: str, response: Response) -> str:
        """Return the URL of the download that a page asks to confirm."""
        self._check_refusal(page)
        url = site_registry.confirmed_url(self.job.remote, page, response.link.url)
        if url is None:
            title = re.search(r"<title[^>]{0,200}>([^<]{1,100})", page, re.IGNORECASE)
            quoted_title = f" (“{' '.join(title.group(1).split())}”)" if title else ""
            raise self._error(f"{self.job.remote.hints.web_page}{quoted_title}", "html_instead_of_file")
        return url

    def _check_refusal(self, page: str) -> None:
        reason = site_registry.refusal_reason(self.job.remote, page)
        if reason:
            raise self._error(f"the site says “{reason}”", "refused_by_site")

    def _error(self, reason: str, code: str) -> LinkError:
        return LinkError(f"The link {self.job.remote.link!r} cannot be fetched: {reason}.", code=code)

    def _status_error(self, response: Response) -> LinkError:
        hints, status, host = self.job.remote.hints, response.status, response.link.host
        if status in (401, 403):
            hint, code = (
                (hints.token_rejected, "token_rejected")
                if response.token_sent
                else (hints.sign_in_required, "sign_in_required")
            )
            return self._error(f"{hint} (status {status})", hints.code or code)
        if status in (404, 410):
            return self._error(f"{hints.not_found} (status {status})", hints.code or "not_found")
        if status in _BUSY_STATUSES or status >= 500:
            seconds = _retry_after(response.headers)
            when = f"in {seconds:.0f} seconds" if seconds else "later"
            return UnreachableError(
                f"The link {self.job.remote.link!r} cannot be fetched: the host {host!r} is busy or broken "
                f"(status {status}); try again {when}.",
                code="server_busy",
                retry_after=seconds,
            )
        return self._error(f"the host {host!r} answers with status {status}; copy the link again", "unexpected_status")

    def _receive(self, response: Response) -> DownloadResult:
        if self.validators.match(response.headers) and response.status == 200:
            return DownloadResult(unchanged=True)
        offset = self._resume_offset(response)
        length = response.headers.get("Content-Length", "")
        if re.fullmatch(_COUNT, length) and not response.is_encoded and offset + int(length) > self.max_bytes:
            raise self._too_large(offset + int(length))
        self._write(response, offset)
        return DownloadResult(
            etag=response.headers.get("ETag", ""),
            last_modified=response.headers.get("Last-Modified", ""),
            sha256=self.job.remote.sha256 or response.sha256,
            name=_disposition_name(response.headers) or response.link.file_name,
            content_type=response.content_type,
        )

    def _resume_offset(self, response: Response) -> int:
        """Return the number of bytes before the response's; a part that does not fit the response is discarded."""
        validator = "" if response.is_encoded else _range_validator(response.headers)
        if response.status == 206:
            size = self.partial.size
            continues = re.match(rf"bytes {size}-", response.headers.get("Content-Range", ""))
            if continues and validator in ("", self.partial.validator) and not response.is_encoded:
                return size
            raise self._range_refused(f"The host {response.link.host!r} sent another part of the file; try again.")
        self.partial.begin(validator)
        return 0

    def _write(self, response: Response, offset: int) -> None:
        size, inspected = offset, offset >= HEAD_BYTES
        try:
            with self.partial.path.open("ab") as file:
                for chunk in response.chunks():
                    if size + len(chunk) > self.max_bytes:
                        raise self._too_large(None)
                    file.write(chunk)
                    size += len(chunk)
                    if self.inspect_head and not inspected and size >= HEAD_BYTES:
                        file.flush()
                        self.inspect_head()
                        inspected = True
        except OSError as error:
            if error.errno in (errno.ENOSPC, errno.EDQUOT):
                raise self._error(
                    "there is no room left on the disk; clear the cache or make room", "disk_full"
                ) from error
            raise

    def _range_refused(self, message: str) -> UnreachableError:
        """Discard the part that the server does not continue, so that the next attempt begins again."""
        self.partial.discard()
        return UnreachableError(message, code="range_refused")

    def _too_large(self, size: int | None) -> LinkError:
        self.partial.discard()
        problem = f"is {size / MEBIBYTE:.0f} MiB" if size else "is larger than announced"
        return self._error(
            f"the file {problem}, and at most {self.max_bytes / MEBIBYTE:.0f} MiB are fetched", "too_large"
        )


def _range_validator(headers: Mapping[str, str]) -> str:
    """Return the validator for ``If-Range`` (RFC 9110, section 13.1.5): a strong ETag, else Last-Modified, else ''."""
    etag = headers.get("ETag", "")
    return etag if etag and not etag.startswith("W/") else headers.get("Last-Modified", "")


def _retry_after(headers: Mapping[str, str]) -> float | None:
    """Return the seconds to wait, from either form of Retry-After; None when there is none or it is no date."""
    value = headers.get("Retry-After", "").strip()
    if re.fullmatch(_COUNT, value):
        return float(value)
    try:
        date = parsedate_to_datetime(value)
        return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - datetime.now(UTC)).total_seconds())
    except (ValueError, OverflowError):
        return None


def _disposition_name(headers: Mapping[str, str]) -> str:
    message = Message()
    message["Content-Disposition"] = headers.get("Content-Disposition", "")
    try:
        return message.get_filename("")
    except (ValueError, LookupError):  # of an encoding that does not exist
        return ""
