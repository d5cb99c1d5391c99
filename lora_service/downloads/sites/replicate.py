"""Replicate: files that its API gives out, and the weights of models that were trained there.

A trained model is named by its page, ``owner/name:version`` as its clients name it, or ``replicate:owner/name``. The
site answers ``/owner/name/_weights``, or ``/owner/name/versions/VERSION/_weights``, with a redirect to the archive.
"""

from __future__ import annotations

import re

from lora_service.downloads.parsed_url import ParsedUrl
from lora_service.downloads.remote_file import AuthScope, ErrorHints, RemoteFile

SITE = "replicate"
_FILE_HOST = "replicate.delivery"
_HOST = "replicate.com"
HOSTS = (_FILE_HOST, _HOST, f"www.{_HOST}")

_VERSION = r"[0-9a-f]{64}"
_OWNER = r"[A-Za-z0-9][A-Za-z0-9-]*"
_NAME = r"[A-Za-z0-9][\w.-]*"
_NAMED = re.compile(rf"({_OWNER})/({_NAME}):({_VERSION})|replicate:({_OWNER})/({_NAME})(?::({_VERSION}))?", re.ASCII)
_RESERVED_OWNERS = {
    "account", "about", "api", "blog", "changelog", "collections", "deployments", "docs", "explore", "home", "p",
    "playground", "pricing", "signin", "showcase", "trainings", "predictions",
}  # fmt: skip
_WEIGHTS = "_weights"

_EXPIRED = (
    "it has expired: Replicate deletes what its API gives out after an hour; "
    "run the training again, or paste the link of a kept copy"
)
_FILE_HINTS = ErrorHints(sign_in_required=_EXPIRED, token_rejected=_EXPIRED, not_found=_EXPIRED, code="expired")
_NO_WEIGHTS = (
    "Replicate gives out no trained weights of {}: it has no such model or version, was not made by a training, or is "
    "private; paste the link of the training's own output, or give a token as api_token"
)


def parse(link: ParsedUrl) -> RemoteFile:
    """Parse a link to a file that a prediction or training gave out, or to the page of a trained model.

    Raises:
        LinkError: the link leads to another page.
    """
    if is_file_host(link.host):
        return RemoteFile(SITE, link.url, link.redacted, hints=_FILE_HINTS)
    match link.segments:
        case (owner, name, *rest) if owner not in _RESERVED_OWNERS and ":" in name and not rest:
            if named := parse_name(f"{owner}/{name}"):
                return named
        case (owner, name, *rest) if owner not in _RESERVED_OWNERS and _are_names(owner, name):
            version = _version(tuple(rest))
            if version is not None:
                return _weights(owner, name, version, link.redacted)
    raise link.refusal(
        "is no trained model on Replicate; paste the model's page, owner/name:version, or the link of the output file, "
        f"which begins with https://{_FILE_HOST}/"
    )


def parse_name(text: str) -> RemoteFile | None:
    """Parse ``owner/name:version``, whose version has 64 digits, or ``replicate:owner/name``; None for other text."""
    match = _NAMED.fullmatch(text)
    if match is None:
        return None
    owner, name, version = match.groups()[:3] if match[1] else match.groups()[3:]
    return _weights(owner, name, version or "", text)


def is_file_host(host: str) -> bool:
    """Return whether Replicate gives out files there; it has one subdomain per region."""
    return host == _FILE_HOST or host.endswith(f".{_FILE_HOST}")


def _version(rest: tuple[str, ...]) -> str | None:
    """Return the version that the rest of a page's path names, '' for the newest; None for a page of another kind."""
    if rest and rest[-1] == _WEIGHTS:
        rest = rest[:-1]
    if rest and rest[0] == "versions":
        rest = rest[1:]
    if not rest:
        return ""
    return rest[0] if len(rest) == 1 and re.fullmatch(_VERSION, rest[0]) else None


def _are_names(owner: str, name: str) -> bool:
    return bool(re.fullmatch(_OWNER, owner, re.ASCII) and re.fullmatch(_NAME, name, re.ASCII))


def _weights(owner: str, name: str, version: str, shown: str) -> RemoteFile:
    path = f"{owner}/{name}/versions/{version}" if version else f"{owner}/{name}"
    reason = _NO_WEIGHTS.format(f"{owner}/{name}")
    return RemoteFile(
        SITE,
        f"https://{_HOST}/{path}/{_WEIGHTS}",
        shown,
        auth_scope=AuthScope.REQUEST,
        hints=ErrorHints(sign_in_required=reason, token_rejected=reason, not_found=reason, web_page=reason),
    )
