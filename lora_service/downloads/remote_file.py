"""What a link resolves to: all that a fetch needs to know, without having asked the network."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path


class AuthScope(StrEnum):
    """Which token a source may be asked for with; the values are the settings' names."""

    NONE = "none"
    HUGGING_FACE = "hf_token"
    CIVITAI = "civitai_token"
    GIVEN = "api_token"
    """Only one that came with the request."""


class Listing(StrEnum):
    """The listing that has to be read first, because the link names no file yet."""

    NONE = "none"
    HUGGING_FACE = "hugging-face"
    CIVITAI = "civitai"


@dataclass(frozen=True)
class ErrorHints:
    """What to say when a fetch fails; each ends the sentence "The link … cannot be fetched: "."""

    no_token: str = "the server wants a sign-in; make the file public, or give a token as api_token"
    bad_token: str = "the server does not accept the token; check that it is valid for this file"
    missing: str = "there is no such file; copy the link again"
    page: str = "a web page came instead of a file; copy the link of the download button"


@dataclass(frozen=True)
class RemoteFile:
    """Where a file is, and on what terms it is asked for.

    Attributes:
        site: whose link it is: ``google-drive``, ``hugging-face``, ``civitai``, ``dropbox``, ``github``,
            ``replicate``, ``web``, ``data`` or ``local``.
        url: what is asked for first; never holds a token of ours. For ``local`` the path.
        link: the pasted link as messages may quote it.
        token: which token goes to the host of ``url``, and to no other.
        catalogue: the listing that ``url`` leads to, when it is none of a file.
        within: the folder of the listing that was meant, or ''.
        sha256: what the file must hash to, or ''.
        link_token: a token that was part of the link; it was taken out of ``url``.
    """

    site: str
    url: str
    link: str
    token: AuthScope = AuthScope.NONE
    catalogue: Listing = Listing.NONE
    within: str = ""
    sha256: str = ""
    link_token: str = field(default="", repr=False)
    advice: ErrorHints = field(default=ErrorHints(), repr=False)

    @property
    def headers(self) -> tuple[str, ...]:
        """Names of the headers that a token adds to the request."""
        return () if self.token is AuthScope.NONE else ("Authorization",)

    @property
    def cache_key(self) -> str:
        """A file name that is the same for every spelling of the link, and tells nothing of it but the site."""
        identity = "\n".join((self.url, self.within, self.sha256))
        return f"{self.site}-{hashlib.sha256(identity.encode()).hexdigest()[:40]}"

    @property
    def path(self) -> Path:
        """The file of a ``local`` source."""
        return Path(self.url)
