"""One module per site: which hosts are its own, and what its links mean.

A site's ``parse`` is pure: :class:`~lora_service.downloads.parsed_url.Link` in,
:class:`~lora_service.downloads.remote_file.Source` or :class:`~lora_service.errors.LinkError` out.
"""

from __future__ import annotations

from collections.abc import Callable

from lora_service.downloads.parsed_url import ParsedUrl
from lora_service.downloads.remote_file import Listing, RemoteFile
from lora_service.downloads.sites import civitai, dropbox, github, google_drive, hugging_face, replicate, web

PARSERS: dict[str, Callable[[ParsedUrl], RemoteFile]] = {
    host: site.parse
    for site in (civitai, dropbox, github, google_drive, hugging_face, replicate)
    for host in site.HOSTS
}


def parse(link: ParsedUrl) -> RemoteFile:
    """The source that a link names, by the rules of the site whose host it has."""
    if replicate.is_file_host(link.host):
        return replicate.parse(link)
    return PARSERS.get(link.host, web.parse)(link)


def follow_page(source: RemoteFile, page: str, url: str) -> str | None:
    """The address behind a page that only asks to confirm a download, or None."""
    return google_drive.follow_page(page, url) if source.site == google_drive.SITE else None


def reason(source: RemoteFile, page: str) -> str:
    """The site's own words on a page that refuses a download, or ''."""
    return google_drive.reason(page) if source.site == google_drive.SITE else ""


def choose(source: RemoteFile, listing: object) -> RemoteFile:
    """The file of a listing that a source without one means.

    Raises:
        LinkError: there is none, or more than one.
    """
    return _CHOICES[source.catalogue](source, listing)


_CHOICES: dict[Listing, Callable[[RemoteFile, object], RemoteFile]] = {
    Listing.HUGGING_FACE: hugging_face.choose,
    Listing.CIVITAI: civitai.choose,
}
