"""Http(s) links: parsed once, joined, and redacted for messages."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote, urlencode, urljoin, urlsplit

from lora_service.errors import ForbiddenAddressError, LinkError

DEFAULT_PORTS = {"http": 80, "https": 443}
_SAFE_IN_PATH = "/%:@!$&'()*+,;=~"
_SAFE_IN_QUERY = _SAFE_IN_PATH + "?"
_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+(%[a-z0-9._-]+)?", re.ASCII)
_MAX_QUOTED_LENGTH = 160


@dataclass(frozen=True)
class ParsedUrl:
    """The parts of a link; ``host`` is lower case ASCII, ``path`` and ``query`` are percent-encoded."""

    scheme: str
    host: str
    port: int
    path: str
    query: str
    fragment: str

    @staticmethod
    def parse(text: str) -> ParsedUrl:
        """Take a link apart.

        Raises:
            ForbiddenAddressError: it carries a user name or password.
            LinkError: it is no http or https link.
        """
        if re.search(r"[\x00-\x1f\x7f\\]", text):
            raise LinkError(
                f"The link {redact(text)!r} holds a line break or backslash; paste one link without them.",
                code="malformed_link",
            )
        try:
            parts = urlsplit(text)
            scheme, port = parts.scheme, parts.port
            host = (parts.hostname or "").rstrip(".").encode("idna").decode("ascii")
        except ValueError as error:
            raise _malformed(text) from error
        if scheme not in DEFAULT_PORTS or not host:
            raise LinkError(f"{redact(text)!r} is no web link; paste one that begins with https://.", code="not_a_link")
        if not _HOST.fullmatch(host):
            raise _malformed(text)
        if "@" in parts.netloc:
            raise ForbiddenAddressError(
                f"The link {redact(text)!r} carries a user name or password; paste it without, "
                "and give a token instead.",
                code="credentials_in_link",
            )
        return ParsedUrl(
            scheme=scheme,
            host=host,
            port=DEFAULT_PORTS[scheme] if port is None else port,
            path=quote(parts.path, safe=_SAFE_IN_PATH) or "/",
            query=quote(parts.query, safe=_SAFE_IN_QUERY),
            fragment=parts.fragment,
        )

    @property
    def segments(self) -> tuple[str, ...]:
        """The segments of the path, still percent-encoded, without empty ones."""
        return tuple(segment for segment in self.path.split("/") if segment)

    def parameter(self, name: str) -> str:
        """The first value of a query parameter, or ''."""
        return dict(reversed(parse_qsl(self.query))).get(name, "")

    @property
    def netloc(self) -> str:
        """Host, and the port unless it is the scheme's default."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def request_target(self) -> str:
        """Path and query, as the request line names them."""
        return f"{self.path}?{self.query}" if self.query else self.path

    @property
    def origin(self) -> tuple[str, str, int]:
        """Scheme, host and port: a token is bound to them."""
        return self.scheme, self.host, self.port

    @property
    def url(self) -> str:
        """The link, put together again without its fragment."""
        return f"{self.scheme}://{self.netloc}{self.request_target}"

    @property
    def redacted(self) -> str:
        """The link as messages may quote it."""
        return redact(self.url)

    def refusal(self, problem: str, *, code: str = "page_link") -> LinkError:
        """Return the error of a link that names no single file, from the end of its sentence without the full stop."""
        return LinkError(f"The link {self.redacted!r} {problem}.", code=code)

    @property
    def file_name(self) -> str:
        """The last segment of the path, decoded, or ''."""
        return unquote(self.segments[-1]) if self.segments else ""


def join_url(base: str, reference: str) -> str:
    """Return the absolute URL of a reference in a page or redirect.

    Raises:
        LinkError: it is malformed.
    """
    try:
        return urljoin(base, reference)
    except ValueError as error:
        raise _malformed(reference) from error


def _malformed(text: str) -> LinkError:
    return LinkError(f"The link {redact(text)!r} cannot be read; copy it again.", code="malformed_link")


def with_query(base: str, **parameters: str) -> str:
    """Return ``base`` with the parameters that are not empty as its query."""
    query = urlencode({name: value for name, value in parameters.items() if value})
    return f"{base}?{query}" if query else base


def redact_all(links: Sequence[str]) -> str:
    """Return several links as one short text for messages, each redacted."""
    return _cut("|".join(redact(link) for link in links[:_MAX_QUOTED_LENGTH]))


def redact(text: str) -> str:
    """Return a link without password, query and fragment, where secrets travel, and cut to a length for messages."""
    text = re.sub(r"[\x00-\x1f\x7f]+", " ", text)
    if text.startswith("data:"):
        return text[:40] + ("…" if len(text) > 40 else "")
    first, *others = text.split("//")
    head = first.partition("/")[0]
    if ":" in head and not head.startswith(("urn:", "civitai:")):
        first = _without_credentials(first)
    text = "//".join([first, *map(_without_credentials, others)])
    return _cut(re.sub(r"[?#].*", "?…", text))


def _without_credentials(text: str) -> str:
    """Return what follows the ``//`` of a link, without user name and password.

    A password may hold ``?`` and ``#`` and a query ``@``; where they cannot be told apart neither is shown.
    """
    head, slash, rest = text.partition("/")
    before, at, host = head.rpartition("@")
    if at and re.search("[?#]", before):
        return "?…"
    return host + slash + rest


def _cut(text: str) -> str:
    return text if len(text) <= _MAX_QUOTED_LENGTH else text[: _MAX_QUOTED_LENGTH - 1] + "…"
