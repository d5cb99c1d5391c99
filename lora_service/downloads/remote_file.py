"""The result of resolving a link: all that a fetch needs to know, without having asked the network."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from typing import Any


class AuthScope(StrEnum):
    """The token that may be sent for a file; the values are the names of the settings and of the input."""

    NONE = "none"
    HUGGING_FACE = "hf_token"
    CIVITAI = "civitai_token"
    REQUEST = "api_token"
    """Only one that came with the request: the service has no token of its own for these hosts."""


class Listing(StrEnum):
    """The JSON listing that has to be read first, because the link names no file yet."""

    NONE = "none"
    HUGGING_FACE = "hugging-face"
    CIVITAI = "civitai"


def objects_of(value: Any) -> list[dict[str, Any]]:
    """Return the JSON objects of a part of a listing; a server that sends anything else there sent none."""
    return [item for item in value if isinstance(item, dict)] if isinstance(value, list) else []


@dataclass(frozen=True)
class ErrorHints:
    """A site's advice for each way in which a download fails; it ends the sentence "The link … cannot be fetched: ".

    Attributes:
        sign_in_required: the server refused a request without a token.
        token_rejected: the server refused a request with one.
        not_found: there is no such file.
        web_page: a web page came instead of the file.
        code: the one error code of the first three, where the site means the same by all of them; else ''.
    """

    sign_in_required: str = "the server wants a sign-in; make the file public, or give a token as api_token"
    token_rejected: str = "the server does not accept the token; check that it is valid for this file"
    not_found: str = "there is no such file; copy the link again"
    web_page: str = "a web page came instead of a file; copy the link of the download button"
    code: str = ""


@dataclass(frozen=True)
class RemoteFile:
    """The place of a file, and the terms on which it is requested.

    Attributes:
        site: the site whose link it is: ``google-drive``, ``hugging-face``, ``civitai``, ``dropbox``, ``github``,
            ``replicate``, ``web``, ``data`` or ``local``.
        url: the URL of the first request; never holds a token. For ``local`` the path, for ``data`` the URI.
        link: the pasted link, redacted, as messages may quote it.
        auth_scope: the token that goes to the host of ``url``, and to no other.
        listing: the listing that ``url`` leads to, when it leads to none of a file.
        subfolder: the folder of the listing that was meant, with a slash at its end, or ''.
        sha256: the SHA-256 that the file must have, or ''.
        link_token: a token that was part of the link; it was taken out of ``url``.
        is_embedding: a textual inversion is meant, which may be a file of PyTorch's own (``.pt``).
        note: a sentence for the user on why this file of a listing was taken, or ''.
        hints: the site's advice when the download fails.
    """

    site: str
    url: str
    link: str
    auth_scope: AuthScope = AuthScope.NONE
    listing: Listing = Listing.NONE
    subfolder: str = ""
    sha256: str = ""
    link_token: str = field(default="", repr=False)
    is_embedding: bool = False
    note: str = ""
    hints: ErrorHints = field(default=ErrorHints(), repr=False)

    @property
    def headers(self) -> tuple[str, ...]:
        """Names of the headers that a token adds to the request."""
        return () if self.auth_scope is AuthScope.NONE else ("Authorization",)

    @property
    def cache_key(self) -> str:
        """A file name that is the same for every spelling of the link, and reveals nothing of it but the site."""
        identity = "\n".join((self.url, self.subfolder, self.sha256))
        return f"{self.site}-{hashlib.sha256(identity.encode()).hexdigest()[:40]}"

    @property
    def local_path(self) -> Path:
        """The path of a ``local`` file."""
        return Path(self.url)
