"""A pasted http(s) link, taken apart once."""

from __future__ import annotations

import re
from dataclasses import dataclass
from urllib.parse import parse_qsl, quote, unquote, urlencode, urljoin, urlsplit

from lora_service.downloads.http.fetch_errors import ForbiddenAddressError
from lora_service.errors import LinkError

DEFAULT_PORTS = {"http": 80, "https": 443}
_KEPT_IN_PATHS = "/%:@!$&'()*+,;=~"
_KEPT_IN_QUERIES = _KEPT_IN_PATHS + "?"
_HOST = re.compile(r"[a-z0-9._-]+|[0-9a-f:.]+(%[a-z0-9._-]+)?", re.ASCII)
_LONGEST_SHOWN = 160


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
            raise LinkError(f"The link {redact(text)!r} holds a line break or backslash; paste one link without them.")
        try:
            parts = urlsplit(text)
            scheme, port = parts.scheme, parts.port
            host = (parts.hostname or "").rstrip(".").encode("idna").decode("ascii")
        except ValueError as error:
            raise _unreadable(text) from error
        if scheme not in DEFAULT_PORTS or not host:
            raise LinkError(f"{redact(text)!r} is no web link; paste one that begins with https://.")
        if not _HOST.fullmatch(host):
            raise _unreadable(text)
        if "@" in parts.netloc:
            raise ForbiddenAddressError(
                f"The link {redact(text)!r} carries a user name or password; paste it without, "
                "and give a token instead."
            )
        return ParsedUrl(
            scheme=scheme,
            host=host,
            port=DEFAULT_PORTS[scheme] if port is None else port,
            path=quote(parts.path, safe=_KEPT_IN_PATHS) or "/",
            query=quote(parts.query, safe=_KEPT_IN_QUERIES),
            fragment=parts.fragment,
        )

    @property
    def steps(self) -> tuple[str, ...]:
        """The path's parts, still percent-encoded, without empty ones."""
        return tuple(step for step in self.path.split("/") if step)

    def parameter(self, name: str) -> str:
        """The first value of a query parameter, or ''."""
        return dict(reversed(parse_qsl(self.query))).get(name, "")

    @property
    def netloc(self) -> str:
        """Host, and the port unless it is the scheme's own."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}"

    @property
    def target(self) -> str:
        """What the request line names: path and query."""
        return f"{self.path}?{self.query}" if self.query else self.path

    @property
    def origin(self) -> tuple[str, str, int]:
        """What a token is bound to."""
        return self.scheme, self.host, self.port

    @property
    def url(self) -> str:
        """The link, put together again without its fragment."""
        return f"{self.scheme}://{self.netloc}{self.target}"

    @property
    def file_name(self) -> str:
        """The last part of the path, decoded, or ''."""
        return unquote(self.steps[-1]) if self.steps else ""


def joined(base: str, reference: str) -> str:
    """A link in a page or redirect, seen from where it was found.

    Raises:
        LinkError: it is malformed.
    """
    try:
        return urljoin(base, reference)
    except ValueError as error:
        raise _unreadable(reference) from error


def _unreadable(text: str) -> LinkError:
    return LinkError(f"The link {redact(text)!r} cannot be read; copy it again.")


def with_query(base: str, **parameters: str) -> str:
    """``base`` with the parameters that are not empty."""
    query = urlencode({name: value for name, value in parameters.items() if value})
    return f"{base}?{query}" if query else base


def redact(text: str) -> str:
    """A link as messages may quote it: without password, query and fragment, where secrets travel; not too long."""
    text = re.sub(r"[\x00-\x1f\x7f]+", " ", text)
    if text.startswith("data:"):
        return text[:40] + ("…" if len(text) > 40 else "")
    text = re.sub(r"(?<=//)[^/?#]*@", "", text)
    text = re.sub(r"[?#].*", "?…", text)
    return text if len(text) <= _LONGEST_SHOWN else text[: _LONGEST_SHOWN - 1] + "…"
