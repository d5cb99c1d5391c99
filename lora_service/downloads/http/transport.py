"""One guarded GET: every hop is checked, redirects are bounded, a token stays with its host."""

from __future__ import annotations

import contextlib
import http.client
import re
import ssl
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import Self

from urllib3 import HTTPResponse
from urllib3.connection import HTTPConnection
from urllib3.exceptions import HTTPError, ReadTimeoutError

from lora_service import __version__
from lora_service.downloads.http.deadline import Deadline
from lora_service.downloads.http.fetch_errors import UnreachableError
from lora_service.downloads.http.limits import DownloadLimits
from lora_service.downloads.http.network import Network
from lora_service.downloads.parsed_url import ParsedUrl, joined
from lora_service.downloads.sites import hugging_face
from lora_service.errors import LinkError

_CHUNK = 64 * 1024
_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_HEADERS = {"User-Agent": f"lora-service/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"}


@dataclass
class Reply:
    """An answer whose body has not been read yet; use it as a context, which closes the connection.

    Attributes:
        link: who answered, after all redirects.
        status: the HTTP status; 401 too where a redirect led to a sign-in page.
        headers: the answer's headers, names in any case.
        sha256: what a site on the way said that the file hashes to, or ''.
        with_token: whether a token was sent to the first host.
    """

    link: ParsedUrl
    status: int
    headers: Mapping[str, str]
    sha256: str
    with_token: bool
    _connection: HTTPConnection
    _response: HTTPResponse
    _watch: Deadline

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """End the connection, whatever of the body is left."""
        self._response.close()
        self._connection.close()

    @property
    def content_type(self) -> str:
        """The media type, in lower case, without parameters."""
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower()

    @property
    def is_encoded(self) -> bool:
        """Whether the body was compressed although that was not wanted; its length is unknown then."""
        return self.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity")

    def chunks(self) -> Iterator[bytes]:
        """The body, as it comes.

        Raises:
            UnreachableError: it ends before its announced length, or stalls.
            FetchCancelled: the caller asked to stop.
        """
        with _explained(self.link, self._watch):
            for chunk in self._response.stream(_CHUNK, decode_content=True):
                self._watch.check()
                yield chunk
            self._watch.check()

    def text(self, limit: int) -> str:
        """The body's first ``limit`` bytes as text."""
        body = bytearray()
        for chunk in self.chunks():
            body += chunk
            if len(body) >= limit:
                break
        return bytes(body[:limit]).decode("utf-8", "replace")


@dataclass(frozen=True)
class Transport:
    """Sends requests through a guarded network."""

    network: Network
    limits: DownloadLimits

    def open(self, url: str, watch: Deadline, token: str = "", headers: Mapping[str, str] | None = None) -> Reply:
        """The answer at the end of all redirects.

        Args:
            url: an http or https link.
            watch: ends the request on time.
            token: sent as ``Authorization: Bearer`` to the origin of ``url``, and never again once a redirect
                has led away from it.
            headers: others to send, to every host on the way.

        Raises:
            ForbiddenAddressError: a hop leads where the service may not go.
            UnreachableError: a host does not answer.
            LinkError: the redirects do not end, or lead to no link.
        """
        link = ParsedUrl.parse(url)
        sha256 = ""
        seen = set()
        asked_with_token = bool(token)
        for _ in range(self.limits.redirects + 1):
            seen.add(link.url)
            reply = self._ask(link, watch, {**_HEADERS, **(headers or {}), **_authorization(token)})
            reply.with_token = asked_with_token
            reply.sha256 = sha256 = sha256 or _announced_hash(reply)
            location = reply.headers.get("Location")
            if reply.status not in _REDIRECTS or not location:
                return reply
            target = ParsedUrl.parse(joined(link.url, location))
            if _is_sign_in(target):
                reply.status = 401
                return reply
            reply.close()
            if target.url in seen:
                raise LinkError(f"The host {target.host!r} redirects in a circle; copy the link again.")
            token = token if target.origin == link.origin else ""
            link = target
        raise LinkError(
            f"The link is redirected more than {self.limits.redirects} times, last to {link.host!r}; "
            "paste the link of the file itself."
        )

    def _ask(self, link: ParsedUrl, watch: Deadline, headers: Mapping[str, str]) -> Reply:
        watch.check()
        connection = self.network.open(link, self.limits.address)
        try:
            with _explained(link, watch):
                watch.connect(connection, self.limits.connect)
                connection.timeout = self.limits.read
                connection.request("GET", link.target, headers=headers, preload_content=False)
                response = connection.getresponse()
        except BaseException:
            connection.close()
            raise
        return Reply(link, response.status, response.headers, "", False, connection, response, watch)


@contextlib.contextmanager
def _explained(link: ParsedUrl, watch: Deadline) -> Iterator[None]:
    """Turns what sockets, TLS and HTTP raise into one sentence about the host."""
    try:
        yield
    except (OSError, http.client.HTTPException, HTTPError) as error:
        watch.check()  # the watch may have shut the socket down, and then that is the reason
        if isinstance(error, ssl.SSLCertVerificationError):
            raise LinkError(f"The host {link.host!r} cannot prove its name: {error.verify_message}.") from error
        if isinstance(error, (TimeoutError, ReadTimeoutError)):
            raise UnreachableError(f"The host {link.host!r} stopped answering; try again later.") from error
        raise UnreachableError(f"The host {link.host!r} broke off the connection; try again later.") from error


def _authorization(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


def _announced_hash(reply: Reply) -> str:
    """Hugging Face names the SHA-256 of large files on its own answer, before it redirects to a storage."""
    found = re.fullmatch(r'"?([0-9a-f]{64})"?', reply.headers.get("X-Linked-Etag", ""))
    return found.group(1) if found and reply.link.host in hugging_face.HOSTS else ""


def _is_sign_in(link: ParsedUrl) -> bool:
    return link.host == "accounts.google.com" or bool(re.match(r"/(login|signin|ServiceLogin)\b", link.path))
