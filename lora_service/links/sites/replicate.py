"""Replicate: files that a prediction or training gave out."""

from __future__ import annotations

from lora_service.errors import LinkError
from lora_service.links.link import Link, shown
from lora_service.links.source import Advice, Source

SITE = "replicate"
FILE_HOST = "replicate.delivery"
HOSTS = (FILE_HOST, "replicate.com", "www.replicate.com")

_EXPIRED = (
    "it has expired: Replicate deletes what its API gives out after an hour; "
    "run the training again, or paste the link of a kept copy"
)
_ADVICE = Advice(no_token=_EXPIRED, bad_token=_EXPIRED, missing=_EXPIRED)


def parse(link: Link) -> Source:
    """A link to a file on replicate.delivery.

    Raises:
        LinkError: the link leads to a page.
    """
    if is_file_host(link.host):
        return Source(SITE, link.url, shown(link.url), advice=_ADVICE)
    raise LinkError(
        f"The link {shown(link.url)!r} is a page of Replicate; paste the link of the output file, "
        "which begins with https://replicate.delivery/."
    )


def is_file_host(host: str) -> bool:
    """Whether Replicate gives out files there; it has one subdomain per region."""
    return host == FILE_HOST or host.endswith(f".{FILE_HOST}")
