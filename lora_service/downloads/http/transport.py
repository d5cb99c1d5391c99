"""One guarded GET: every hop is checked, redirects are bounded, a token is sent to its own host only."""

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
from lora_service.downloads.http.deadline import Deadline, DownloadLimits
from lora_service.downloads.http.network import Network
from lora_service.downloads.parsed_url import ParsedUrl, join_url
from lora_service.downloads.sites import hugging_face
from lora_service.errors import LinkError, UnreachableError

_CHUNK_BYTES = 64 * 1024
_REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
_HEADERS = {"User-Agent": f"lora-service/{__version__}", "Accept": "*/*", "Accept-Encoding": "identity"}


@dataclass
class Response:
    """A response whose body has not been read yet; a context that closes the connection.

    Attributes:
        link: the link that was answered, after all redirects.
        status: the HTTP status; 401 too where a redirect led to a sign-in page.
        headers: the response's headers, names in any case.
        sha256: the file's SHA-256 as a site on the way announced it, or ''.
        token_sent: whether a token was sent to the first host.
    """

    link: ParsedUrl
    status: int
    headers: Mapping[str, str]
    sha256: str
    token_sent: bool
    _connection: HTTPConnection
    _response: HTTPResponse
    _deadline: Deadline

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, tb: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        """Close the connection, even when the body has not been read to its end."""
        self._response.close()
        self._connection.close()

    @property
    def content_type(self) -> str:
        """The media type, in lower case, without parameters."""
        return self.headers.get("Content-Type", "").partition(";")[0].strip().lower()

    @property
    def is_encoded(self) -> bool:
        """True when the body is compressed although ``identity`` was requested; its length is unknown then."""
        return self.headers.get("Content-Encoding", "identity").strip().lower() not in ("", "identity")

    def chunks(self) -> Iterator[bytes]:
        """Yield the body as it arrives.

        Raises:
            UnreachableError: it ends before its announced length, or stalls, or the deadline has passed.
        """
        with _translated_errors(self.link, self._deadline):
            for chunk in self._response.stream(_CHUNK_BYTES, decode_content=True):
                self._deadline.check()
                yield chunk
            self._deadline.check()

    def text(self, limit: int) -> str:
        """Return the body's first ``limit`` bytes as text."""
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

    def open(self, url: str, deadline: Deadline, token: str = "", headers: Mapping[str, str] | None = None) -> Response:
        """Return the response at the end of all redirects.

        Args:
            url: an http or https link.
            deadline: ends the request on time.
            token: sent as ``Authorization: Bearer`` to the origin of ``url``, and never again once a redirect
                has led away from it.
            headers: more headers, sent to every host on the way.

        Raises:
            ForbiddenAddressError: a hop leads where the service may not connect.
            UnreachableError: a host does not answer.
            LinkError: the redirects do not end, or lead to no link.
        """
        link = ParsedUrl.parse(url)
        sha256 = ""
        visited = set()
        token_sent = bool(token)
        for _ in range(self.limits.max_redirects + 1):
            visited.add(link.url)
            response = self._get(link, deadline, {**_HEADERS, **(headers or {}), **_authorization(token)})
            response.token_sent = token_sent
            response.sha256 = sha256 = sha256 or _announced_sha256(response)
            location = response.headers.get("Location")
            if response.status not in _REDIRECT_STATUSES or not location:
                return response
            target = ParsedUrl.parse(join_url(link.url, location))
            if _is_sign_in(target):
                response.status = 401
                return response
            response.close()
            if target.url in visited:
                raise LinkError(
                    f"The host {target.host!r} redirects in a circle; copy the link again.", code="redirect_loop"
                )
            token = token if target.origin == link.origin else ""
            link = target
        raise LinkError(
            f"The link is redirected more than {self.limits.max_redirects} times, last to {link.host!r}; "
            "paste the link of the file itself.",
            code="too_many_redirects",
        )

    def _get(self, link: ParsedUrl, deadline: Deadline, headers: Mapping[str, str]) -> Response:
        deadline.check()
        connection = self.network.open(link, self.limits.address_timeout)
        try:
            with _translated_errors(link, deadline):
                deadline.connect(connection, self.limits.connect_timeout)
                connection.timeout = self.limits.read_timeout
                connection.request("GET", link.request_target, headers=headers, preload_content=False)
                response = connection.getresponse()
        except BaseException:
            connection.close()
            raise
        return Response(link, response.status, response.headers, "", False, connection, response, deadline)


@contextlib.contextmanager
def _translated_errors(link: ParsedUrl, deadline: Deadline) -> Iterator[None]:
    """Turn the exceptions of sockets, TLS and HTTP into one sentence about the host."""
    try:
        yield
    except (OSError, http.client.HTTPException, HTTPError, ValueError) as error:  # ValueError: a chunk of size -5
        deadline.check()  # it may have shut the socket down, and then that is the reason
        if isinstance(error, ssl.SSLCertVerificationError):
            raise LinkError(
                f"The host {link.host!r} cannot prove its name: {error.verify_message}.", code="untrusted_certificate"
            ) from error
        if isinstance(error, (TimeoutError, ReadTimeoutError)):
            raise UnreachableError(
                f"The host {link.host!r} stopped answering; try again later.", code="timed_out"
            ) from error
        raise UnreachableError(
            f"The host {link.host!r} broke off the connection; try again later.", code="connection_lost"
        ) from error


def _authorization(token: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {token}"} if token else {}


def _announced_sha256(response: Response) -> str:
    """Return the hash that Hugging Face sends with its own response, before it redirects to a storage host."""
    match = re.fullmatch(r'"?([0-9a-f]{64})"?', response.headers.get("X-Linked-Etag", ""))
    return match.group(1) if match and response.link.host in hugging_face.HOSTS else ""


def _is_sign_in(link: ParsedUrl) -> bool:
    return link.host == "accounts.google.com" or bool(re.match(r"/(login|signin|ServiceLogin)\b", link.path))
