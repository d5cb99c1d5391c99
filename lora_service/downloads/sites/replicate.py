"""Replicate: files that a prediction or training gave out."""

from __future__ import annotations

from lora_service.downloads.parsed_url import ParsedUrl, redact
from lora_service.downloads.remote_file import ErrorHints, RemoteFile
from lora_service.errors import LinkError

SITE = "replicate"
FILE_HOST = "replicate.delivery"
HOSTS = (FILE_HOST, "replicate.com", "www.replicate.com")

_EXPIRED = (
    "it has expired: Replicate deletes what its API gives out after an hour; "
    "run the training again, or paste the link of a kept copy"
)
_ADVICE = ErrorHints(no_token=_EXPIRED, bad_token=_EXPIRED, missing=_EXPIRED)


def parse(link: ParsedUrl) -> RemoteFile:
    """A link to a file on replicate.delivery.

    Raises:
        LinkError: the link leads to a page.
    """
    if is_file_host(link.host):
        return RemoteFile(SITE, link.url, redact(link.url), advice=_ADVICE)
    raise LinkError(
        f"The link {redact(link.url)!r} is a page of Replicate; paste the link of the output file, "
        "which begins with https://replicate.delivery/."
    )


def is_file_host(host: str) -> bool:
    """Whether Replicate gives out files there; it has one subdomain per region."""
    return host == FILE_HOST or host.endswith(f".{FILE_HOST}")
