"""The registry of sites: a link's host decides by which rules it is read, and its pages and listings too."""

from __future__ import annotations

from collections.abc import Callable

from lora_service.downloads.parsed_url import ParsedUrl
from lora_service.downloads.remote_file import Listing, RemoteFile
from lora_service.downloads.sites import civitai, direct_links, google_drive, hugging_face, replicate

Parser = Callable[[ParsedUrl], RemoteFile]

PARSERS: dict[str, Parser] = {
    host: parser
    for hosts, parser in (
        (civitai.HOSTS, civitai.parse),
        (direct_links.DROPBOX_HOSTS, direct_links.parse_dropbox),
        (direct_links.GITHUB_HOSTS, direct_links.parse_github),
        (replicate.HOSTS, replicate.parse),
        (google_drive.HOSTS, google_drive.parse),
        (hugging_face.HOSTS, hugging_face.parse),
    )
    for host in hosts
}

_SELECTORS: dict[Listing, Callable[[RemoteFile, object, str], RemoteFile]] = {
    Listing.HUGGING_FACE: lambda remote, listing, _: hugging_face.select_file(remote, listing),
    Listing.CIVITAI: civitai.select_file,
}


def parse(link: ParsedUrl) -> RemoteFile:
    """Return the file that a link names, by the rules of the site whose host it has.

    Raises:
        LinkError: the site's link names no file.
    """
    if replicate.is_file_host(link.host):
        return replicate.parse(link)
    return PARSERS.get(link.host, direct_links.parse_web)(link)


def confirmed_url(remote: RemoteFile, page: str, url: str) -> str | None:
    """Return the URL behind a page that only asks to confirm a download, or None."""
    return google_drive.confirmed_url(page, url) if remote.site == google_drive.SITE else None


def refusal_reason(remote: RemoteFile, page: str) -> str:
    """Return the reason that a site's page gives for refusing a download, or ''."""
    return google_drive.refusal_reason(page) if remote.site == google_drive.SITE else ""


def select_file(remote: RemoteFile, listing: object, base: str = "") -> RemoteFile:
    """Return the one file that a listing offers for a base, named as kohya names it; '': any.

    Raises:
        LinkError: there is none, or more than one.
    """
    return _SELECTORS[remote.listing](remote, listing, base)
